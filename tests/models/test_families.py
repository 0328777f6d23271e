import math

import pytest
import torch
import torchvision
from lightning.pytorch import Trainer
from torch import nn
from torch.nn import functional as F

from lightning_depth.data.base.tensors import AbstractTensorData
from lightning_depth.errors import UserError
from lightning_depth.measures.linear_networks import linear_operator
from lightning_depth.measures.operators import frobenius_norm
from lightning_depth.models import MLP, ConvNet, DeepLinear, FullyConv, HuhCNN, Imported, ResNet
from lightning_depth.models.activations import Sine, activation
from lightning_depth.models.deep_linear import LinearBlock, Toeplitz
from lightning_depth.models.imported import found
from lightning_depth.models.initial import initialise
from lightning_depth.models.resnet import TABLE_1
from lightning_depth.models.shapes import Shapes

SEED = 5


def built(family, shape=(1, 28, 28), **arguments):
    if "target_shape" not in arguments:
        arguments.setdefault("num_classes", 10)
    model = family(input_shape=shape, seed=SEED, **arguments)
    model.configure_model()
    return model


def count(model):
    return sum(p.numel() for p in model.net.parameters())


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.net.parameters()])


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# --- sizes -----------------------------------------------------------------------------------------------------------


# zhang2019 3.1.
@pytest.mark.parametrize(("depth", "width", "parameters"), [(1, 2048, 3_214_096), (3, 784, 2_461_760)])
def test_linear_autoencoders_have_the_parameters_that_zhang2019_counts(depth, width, parameters):
    model = built(MLP, depth=depth, width=width, activation="identity", target_shape=(1, 28, 28))
    assert count(model) == parameters
    assert model(images(2, 1, 28, 28)).shape == (2, 1, 28, 28)


def test_an_mlp_of_depth_l_has_l_hidden_layers_as_mori2020_counts_them():
    d, hidden, classes, depth = 20, 7, 3, 4
    model = built(MLP, shape=(d,), depth=depth, width=hidden, num_classes=classes)
    assert count(model) == hidden * (d + 1) + (depth - 1) * hidden * (hidden + 1) + classes * (hidden + 1)
    assert model(torch.zeros(5, d)).shape == (5, classes)
    assert sum(isinstance(m, nn.ReLU) for m in model.net) == depth


def test_a_convnet_of_zhang2019_has_128_channels_of_5_by_5():
    model = built(ConvNet, target_shape=(1, 28, 28))
    assert count(model) == (25 + 1) * 128 + 3 * (25 * 128 + 1) * 128 + (25 * 128 + 1)
    assert [type(m).__name__ for m in model.net] == ["Conv2d", "ReLU"] * 4 + ["Conv2d"]
    for size in (7, 28, 33):
        assert model(images(1, 1, size, size)).shape == (1, 1, size, size)


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_the_linear_classifier_of_nichani2020_is_convolutions_and_a_mean(padding_mode):
    arguments = {"depth": 5, "channels": 32, "kernel_size": 3, "activation": "identity", "bias": False}
    model = built(ConvNet, shape=(3, 6, 6), output="classes", padding_mode=padding_mode, target_shape=(1,), **arguments)
    assert count(model) == 9 * (3 * 32 + 3 * 32 * 32 + 32)
    x = images(2, 3, 6, 6)
    expected = nn.Sequential(*model.net[:-2])(x).mean(dim=(-2, -1))
    torch.testing.assert_close(model(x), expected)
    with torch.no_grad():
        here, moved = model(x), model(x.roll((1, 2), (-2, -1)))
    shifted = torch.allclose(moved, here, atol=1e-5 * float(here.abs().max()))
    assert shifted == (padding_mode == "circular")  # zero padding alone tells the network where a pixel is


def test_a_convnet_reads_out_by_a_linear_layer_on_all_pixels():
    model = built(ConvNet, shape=(3, 8, 8), depth=2, channels=4, kernel_size=3, output="classes", readout="flatten")
    assert model.net.head.weight.shape == (10, 4 * 64)
    assert model(images(2, 3, 8, 8)).shape == (2, 10)


def test_a_fully_conv_net_is_that_of_figure_9():
    model = built(FullyConv, shape=(3, 16, 16), depth=3, width=16)
    kinds = [type(m).__name__ for m in model.net]
    assert kinds == ["Conv2d", "BatchNorm2d", "LeakyReLU"] * 3 + ["Conv2d", "AdaptiveAvgPool2d", "Flatten"]
    assert count(model) == 9 * (3 * 16 + 2 * 16 * 16) + 3 * 2 * 16 + 9 * 16 * 10 + 10
    assert model(images(2, 3, 16, 16)).shape == (2, 10)


def test_the_cifar_network_of_huh2021_is_that_of_appendix_e():
    model = built(HuhCNN, shape=(3, 32, 32))
    said = [type(m).__name__ for m in model.net]
    stage = ["Conv2d", "MaxPool2d", "ReLU"]
    assert said == [*stage * 3, "Conv2d", "ReLU", "AdaptiveMaxPool2d", "Flatten", "Linear", "ReLU", "Linear"]
    shapes = [tuple(p.shape) for n, p in model.net.named_parameters() if n.endswith("weight")]
    assert shapes == [(64, 3, 3, 3), (128, 64, 3, 3), (256, 128, 3, 3), (512, 256, 3, 3), (256, 512), (10, 256)]
    assert count(model) == sum(math.prod(s) for s in shapes) + 64 + 128 + 256 + 512 + 256 + 10 == 1_684_874
    assert built(HuhCNN, width=4)(images(2, 1, 28, 28)).shape == (2, 10)


# 11,689,512 etc. as torchvision states them; ResNet-10 is ResNet-18 less the second block of each stage.
@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        ("torchvision.models.alexnet", 61_100_840),
        ("torchvision.models.resnet18", 11_689_512),
        ("torchvision.models.resnet34", 21_797_672),
        ("lightning_depth.models.imagenet.resnet10", None),
    ],
)
def test_imagenet_networks_are_torchvisions(network, parameters):
    net = _made(network)
    if parameters is None:
        second = sum(p.numel() for n, p in _made("torchvision.models.resnet18").named_parameters() if ".1." in n[:9])
        parameters = 11_689_512 - second
        assert parameters == 5_418_792
    assert sum(p.numel() for p in net.parameters()) == parameters


def _made(path):
    with torch.device("meta"):  # sizes alone: AlexNet's weights take a second to draw
        return found(path)()


def test_resnet10_is_imported_for_the_classes_of_the_data():
    network = "lightning_depth.models.imagenet.resnet10"
    model = built(Imported, shape=(3, 64, 64), network=network, num_classes=7)
    assert isinstance(model.net, torchvision.models.ResNet)
    assert [len(stage) for stage in (model.net.layer1, model.net.layer2, model.net.layer3, model.net.layer4)] == [1] * 4
    assert model.eval()(images(1, 3, 64, 64)).shape == (1, 7)


# nichani2020 Fig. 15.
@pytest.mark.parametrize("stage", [1, 3])
def test_extra_blocks_go_into_one_stage(stage):
    plain, more = built(ResNet, depth=10, width=2), built(ResNet, depth=10, width=2, extra_blocks=4, extra_stage=stage)
    grown = tuple(b - a for a, b in zip(plain.blocks, more.blocks, strict=True))
    assert grown == tuple(4 if index == stage else 0 for index in range(1, 5))
    filters = 2 * 2 ** (stage - 1)
    assert count(more) - count(plain) == 4 * 2 * (9 * filters**2 + 2 * filters)
    assert built(ResNet, depth=18, width=1, extra_blocks=0, extra_stage=1).blocks == TABLE_1[18]


# --- initialisations -------------------------------------------------------------------------------------------------


def moments(name, layer, index=1, **arguments):
    torch.manual_seed(0)
    initialise([nn.Linear(1, 1)] * index + [layer], name, **arguments)
    weight = layer.weight.detach().double()
    return float(weight.std(correction=0)), float(weight.abs().max()), float((weight**4).mean() / weight.var() ** 2)


# A linear layer and a convolution, each with n = 450 inputs, m = 200 and 1,800 outputs (the fan_out of torch).
LAYERS = [(lambda: nn.Linear(450, 200), 450, 200), (lambda: nn.Conv2d(50, 200, 3), 450, 1800)]
# Standard deviation by (n, m), and the kurtosis: 9/5 if uniform, 3 if normal.
SCALES = {
    "pytorch": (lambda n, m: 1 / math.sqrt(3 * n), 1.8),
    "glorot_uniform": (lambda n, m: math.sqrt(2 / (n + m)), 1.8),
    "glorot_normal": (lambda n, m: math.sqrt(2 / (n + m)), 3),
    "he_uniform": (lambda n, m: math.sqrt(2 / n), 1.8),
    "he_normal": (lambda n, m: math.sqrt(2 / n), 3),
    "uniform": (lambda n, m: 1 / math.sqrt(3), 1.8),
    "normal": (lambda n, m: 1.0, 3),
    "siren": (lambda n, m: math.sqrt(2 / n) / 30, 1.8),
    "ntk": (lambda n, m: math.sqrt(2 / n), 3),
}


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize(("make", "n", "m"), LAYERS, ids=["linear", "convolution"])
def test_weights_are_drawn_from_the_distribution_named(name, make, n, m):
    scale, kurtosis = SCALES[name]
    layer = make()
    std, largest, found = moments(name, layer, scale=0.5)
    assert std == pytest.approx(0.5 * scale(n, m), rel=0.01)
    assert found == pytest.approx(kurtosis, rel=0.03)
    if kurtosis < 2:
        assert largest <= 0.5 * math.sqrt(3) * scale(n, m) * (1 + 1e-6)
    biases = float(layer.bias.detach().std())
    expected = {"pytorch": 1 / math.sqrt(3 * n), "siren": 1 / math.sqrt(3 * n), "ntk": 0.1}.get(name, 0.0)
    assert biases == pytest.approx(expected, rel=0.25)


def test_first_layers_differ_under_siren_and_ntk():
    std, largest, _ = moments("siren", nn.Linear(450, 200), index=0)
    assert std == pytest.approx(1 / 450 / math.sqrt(3), rel=0.01)
    assert largest <= 1 / 450
    assert moments("ntk", nn.Linear(450, 200), index=0)[0] == pytest.approx(math.sqrt(1 / 450), rel=0.01)


def test_pytorch_leaves_what_torch_draws():
    torch.manual_seed(0)
    expected = nn.Linear(4, 3)
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    initialise([layer], "pytorch")
    assert torch.equal(layer.weight, expected.weight)
    assert torch.equal(layer.bias, expected.bias)


# mori2020 Eqs. 12 to 14, with Sigma-dot^(L+1) = 1.
def ntk(x, y, depth, beta):
    sigma = {pair: float(a @ b) / len(x) + beta**2 for pair, (a, b) in {"xy": (x, y), "x": (x, x), "y": (y, y)}.items()}
    kernel = sigma["xy"]
    for _ in range(depth):
        length = math.sqrt(sigma["x"] * sigma["y"])
        angle = math.acos(min(1.0, sigma["xy"] / length))
        derivative = (math.pi - angle) / math.pi
        product = length / math.pi * (math.sin(angle) + (math.pi - angle) * math.cos(angle))
        sigma = {"xy": product + beta**2, "x": sigma["x"] + beta**2, "y": sigma["y"] + beta**2}
        kernel = kernel * derivative + sigma["xy"]
    return kernel, sigma


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_gradients_of_wide_networks_have_the_products_of_the_ntk(depth):
    beta, outputs = 0.5, 2
    model = built(
        MLP, shape=(6,), depth=depth, width=1500, initial="ntk", beta=beta, target_shape=(outputs,), channels_last=False
    )
    points = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    gradients = []
    for point in points:
        out = model(point[None])[0]
        for i in range(outputs):
            grads = torch.autograd.grad(out[i], list(model.net.parameters()), retain_graph=True)
            gradients.append(torch.cat([g.flatten() for g in grads]).double())
    found = torch.stack(gradients) @ torch.stack(gradients).mT
    expected = [[ntk(a, b, depth, beta)[0] for b in points] for a in points]
    same = torch.kron(torch.tensor(expected, dtype=torch.float64), torch.eye(outputs, dtype=torch.float64))
    # Eq. 10: the identity in the outputs; 1500 wide, entries fluctuate by a few per cent.
    torch.testing.assert_close(found, same, rtol=0.1, atol=0.1 * float(same.max()))


def test_outputs_of_random_networks_under_ntk_have_the_covariance_of_equation_12():
    points = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    model = built(MLP, shape=(6,), depth=2, width=100, initial="ntk", beta=0.5, num_classes=20_000)
    with torch.no_grad():
        x, y = model(points).double()  # the 20,000 outputs share hidden layers of finite width
    _, sigma = ntk(*points, 2, 0.5)
    assert float((x * y).mean()) == pytest.approx(sigma["xy"], rel=0.25)
    assert float((x * x).mean()) == pytest.approx(sigma["x"], rel=0.25)


def test_what_ntk_trains_is_not_what_the_layer_applies():
    model = built(MLP, shape=(8,), depth=1, width=4, initial="ntk", beta=0.1)
    layer = model.net.layer1
    torch.testing.assert_close(layer.weight, layer.parametrizations.weight.original / math.sqrt(8))
    torch.testing.assert_close(layer.bias, 0.1 * layer.parametrizations.bias.original)
    assert float(frobenius_norm(layer, (8,))) == pytest.approx(float(layer.weight.detach().norm()), rel=1e-5)
    assert built(MLP, shape=(8,), initial="ntk", beta=0.0, width=4).net.layer1.bias is None


def test_sines_start_as_in_siren():
    model = built(MLP, shape=(2,), depth=3, width=512, activation="sine", omega_0=30.0)
    x = 2 * torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)) - 1
    # Sitzmann et al. 2020, Theorem 1.8: without biases the arguments of the sines are standard normal, sines arcsine.
    sines = model.net[:5](x)
    assert float((30 * sines @ model.net.layer3.weight.mT).detach().std()) == pytest.approx(1, rel=0.1)
    assert float(sines.detach().std()) == pytest.approx(math.sqrt(0.5), rel=0.05)
    assert MLP(activation="sine", initial="he_normal").initial == "he_normal"


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("relu", F.relu),
        ("leaky_relu", lambda x: torch.where(x > 0, x, 0.01 * x)),
        ("tanh", torch.tanh),
        ("gelu", lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))),
        ("sine", lambda x: torch.sin(30 * x)),
        ("identity", lambda x: x),
    ],
)
def test_activations_are_those_of_their_names(name, function):
    x = torch.linspace(-2, 2, 50)
    torch.testing.assert_close(activation(name)(x), function(x))


# --- linear networks -------------------------------------------------------------------------------------------------

LINEAR = {
    "mlp": (MLP, (1, 4, 4), {"depth": 2, "width": 9, "activation": "identity"}),
    "convolutions": (ConvNet, (2, 5, 5), {"depth": 3, "channels": 4, "kernel_size": 3, "output": "classes"}),
    "circular": (
        ConvNet,
        (2, 5, 5),
        {"depth": 3, "channels": 4, "kernel_size": 3, "output": "classes", "padding_mode": "circular"},
    ),
    "product": (DeepLinear, (6,), {"depth": 4}),
    "residual": (DeepLinear, (6,), {"depth": 4, "residual": True, "batch_norm": True}),
    "toeplitz": (DeepLinear, (5,), {"depth": 3, "layer": "toeplitz", "num_classes": 5}),
}


@pytest.mark.parametrize("kind", LINEAR)
def test_linear_networks_are_linear(kind):
    family, shape, arguments = LINEAR[kind]
    if family is ConvNet:
        arguments = {**arguments, "activation": "identity"}
    model = built(family, shape=shape, **arguments).double().eval()
    matrix, offset = linear_operator(model, shape)
    x = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.flatten(1) @ matrix.mT + offset, model(x))
    if kind in ("product", "toeplitz"):
        expected = torch.linalg.multi_dot([layer.weight for layer in reversed(model.net[1:])])
        torch.testing.assert_close(matrix, expected)


def test_a_network_with_an_activation_is_not_linear():
    with pytest.raises(ValueError, match="not linear"):
        linear_operator(built(ConvNet, shape=(1, 5, 5), depth=2, channels=4, output="classes"), (1, 5, 5))


def test_toeplitz_matrices_are_constant_along_diagonals_in_training_too():
    model = built(DeepLinear, shape=(5,), depth=3, layer="toeplitz", width=7, num_classes=6, initial="normal")
    assert count(model) == (7 + 5 - 1) + (7 + 7 - 1) + (6 + 7 - 1)
    step = torch.optim.SGD(model.net.parameters(), lr=0.1)
    for _ in range(3):
        model(torch.randn(7, 5)).square().mean().backward()
        step.step()
    for layer in model.net[1:]:
        assert torch.equal(layer.weight[1:, 1:], layer.weight[:-1, :-1])
        assert layer.weight.unique().numel() == sum(layer.weight.shape) - 1
    t = torch.arange(6.0)
    expected = torch.tensor([[2.0, 1.0, 0.0], [3.0, 2.0, 1.0], [4.0, 3.0, 2.0], [5.0, 4.0, 3.0]])
    assert torch.equal(Toeplitz(3)(t), expected)
    assert torch.equal(Toeplitz(3).right_inverse(expected), t)


def test_a_toeplitz_layer_takes_the_ntk_parameterisation():
    model = built(DeepLinear, shape=(5,), depth=2, layer="toeplitz", num_classes=5, initial="ntk")
    second = model.net.head
    coefficients = second.parametrizations.weight.original
    torch.testing.assert_close(second.weight, Toeplitz(5)(coefficients) * math.sqrt(2 / 5))


def test_a_residual_product_is_one_of_matrices_plus_the_identity():
    model = built(DeepLinear, shape=(6,), depth=3, residual=True)
    one, two, three = model.net.layer1.linear.weight, model.net.layer2.linear.weight, model.net.head.weight
    identity = torch.eye(6)
    matrix, _ = linear_operator(model.double(), (6,))
    torch.testing.assert_close(matrix, three @ (two + identity) @ (one + identity), check_dtype=False)  # 6 -> 10


def test_batch_norm_stands_within_the_residual_branch():
    model = built(DeepLinear, shape=(6,), depth=3, residual=True, batch_norm=True, num_classes=6)
    block, head = model.net.layer2, model.net.head
    x = torch.randn(50, 6)
    branch = block(x) - x
    torch.testing.assert_close(branch.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    assert isinstance(head, LinearBlock)
    assert isinstance(head.bn, nn.Identity)


@pytest.mark.parametrize("depth", [1, 3, 8])
def test_a_shallow_network_may_start_as_a_deep_one(depth):
    arguments = {"shape": (12,), "width": 12, "num_classes": 12, "initial": "normal", "initial_scale": 0.3}
    model = built(DeepLinear, depth=depth, initial_depth=8, **arguments)
    assert count(model) == depth * 144

    def spectra(products):
        values = torch.linalg.svdvals(torch.stack(products).double())
        return values.square().sum(dim=-1).log(), (values[:, 0] / values[:, 1]).log()

    torch.manual_seed(0)
    family = DeepLinear(depth=depth, width=12, initial="normal", initial_scale=0.3, initial_depth=8)
    nets = [family.build(Shapes((12,), 12)) for _ in range(300)]
    found = spectra(
        [torch.linalg.multi_dot([torch.eye(12), *[w.detach() for w in list(net.parameters())[::-1]]]) for net in nets]
    )
    expected = spectra([torch.linalg.multi_dot(list(0.3 * torch.randn(8, 12, 12))) for _ in range(3000)])
    for drawn, wanted in zip(found, expected, strict=True):
        error = float(wanted.std()) / math.sqrt(300)
        assert float(drawn.mean()) == pytest.approx(float(wanted.mean()), abs=4 * error)
        assert float(drawn.std()) == pytest.approx(float(wanted.std()), rel=0.2)


def test_narrow_products_say_that_their_rank_is_limited():
    with pytest.warns(UserWarning, match="limits the rank"):
        built(DeepLinear, shape=(12,), width=5, depth=2)


# --- training --------------------------------------------------------------------------------------------------------


class One(AbstractTensorData):
    def make(self, split, samples, stream):
        x = torch.randn(samples, 1, 3, 3, generator=stream)
        return x, x.clone()


class Numbers(AbstractTensorData):
    def make(self, split, samples, stream):
        x = torch.randn(samples, 6, generator=stream)
        return x, x[:, :5].clone()


def trainer(path, **arguments):
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        default_root_dir=path,
        **arguments,
    )


# Lightning says that a recipe's functions stay out of the hyper-parameters: so they do, and loading needs none.
def sgd(lr, momentum=0.0):
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=momentum)


def test_one_linear_layer_trained_on_one_example_is_equation_1_of_zhang2019(tmp_path):
    data = One(train_samples=1, test_samples=50, seed=3)
    x_hat = data.split("train").inputs[0].flatten()
    # The loss is a mean over 9 outputs: this rate halves the error at each step.
    model = MLP(depth=0, bias=False, activation="identity", optimizer=sgd(0.25 * 9 / float(x_hat @ x_hat)), seed=SEED)
    trainer(tmp_path, max_epochs=30, limit_val_batches=0).fit(model, datamodule=data)
    start = model.initial_state()["net.head.weight"]
    x = data.split("test").inputs.flatten(1)
    along = (x @ x_hat)[:, None] / (x_hat @ x_hat)
    expected = along * x_hat + (x - along * x_hat) @ start.mT
    torch.testing.assert_close(model(x.view(-1, 1, 3, 3)).flatten(1), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, x, atol=0.1)
    assert float((model.net.head.weight - start).detach().svd().S[1]) < 1e-6  # W_T = W_0 + u x^T


def test_only_the_bottom_layer_moves_and_only_along_the_example(tmp_path):
    data = One(train_samples=1, test_samples=1, seed=3)
    model = MLP(depth=2, width=16, train="bottom", optimizer=sgd(0.1, momentum=0.9), seed=SEED)
    trainer(tmp_path, max_epochs=20, limit_val_batches=0).fit(model, datamodule=data)
    start = model.initial_state()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, start[name]) == (not name.startswith("net.layer1")), name
    assert [p for group in model.configure_optimizers().param_groups for p in group["params"]] == list(
        model.net.layer1.parameters()
    )
    # zhang2019 Eq. 2: W_T = W_0 + u x^T
    moved = (model.net.layer1.weight - start["net.layer1.weight"]).detach()
    x_hat = data.split("train").inputs[0].flatten()
    torch.testing.assert_close(moved, torch.outer(moved @ x_hat, x_hat) / (x_hat @ x_hat), atol=1e-6, rtol=1e-4)
    assert float(moved.norm()) > 0.01


class Pictures(AbstractTensorData):
    def make(self, split, samples, stream):
        return torch.randn(samples, 3, 16, 16, generator=stream), torch.arange(samples) % 10


def autoencoding():
    return One(train_samples=40, test_samples=10, batch_size=20)


def regression():
    return Numbers(train_samples=40, test_samples=10, batch_size=20)


def pictures():
    return Pictures(train_samples=40, test_samples=10, batch_size=20)


FAMILIES = {
    "mlp": (MLP, pictures, {"depth": 2, "width": 8}),
    "mlp, sine": (MLP, pictures, {"depth": 2, "width": 8, "activation": "sine"}),
    "mlp, ntk": (MLP, pictures, {"depth": 2, "width": 8, "initial": "ntk"}),
    "mlp, bottom": (MLP, pictures, {"depth": 2, "width": 8, "train": "bottom"}),
    "mlp, images": (MLP, autoencoding, {"depth": 1, "width": 8}),
    "conv_net": (
        ConvNet,
        autoencoding,
        {"depth": 2, "channels": 4, "kernel_size": 3},
    ),
    "conv_net, classes": (ConvNet, pictures, {"depth": 2, "channels": 4, "output": "classes", "readout": "flatten"}),
    "fully_conv": (FullyConv, pictures, {"depth": 2, "width": 4}),
    "deep_linear": (DeepLinear, regression, {"depth": 3, "initial_depth": 6}),
    "deep_linear, residual": (
        DeepLinear,
        regression,
        {"depth": 3, "residual": True, "batch_norm": True},
    ),
    "toeplitz": (DeepLinear, regression, {"depth": 3, "layer": "toeplitz"}),
    "huh_cnn": (HuhCNN, pictures, {"width": 2}),
    "resnet, extra": (ResNet, pictures, {"depth": 10, "width": 2, "extra_blocks": 1, "extra_stage": 3}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_trains_and_a_checkpoint_rebuilds_it(name, tmp_path):
    family, data, arguments = FAMILIES[name]
    model = family(optimizer=sgd(0.01), seed=SEED, **arguments)
    fit = trainer(tmp_path, max_steps=2)
    fit.fit(model, datamodule=data())
    assert fit.global_step == 2
    start = model.initial_state()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, start[n])}
    assert moved == {n for n, p in model.named_parameters() if p.requires_grad}
    fit.save_checkpoint(tmp_path / "x.ckpt")
    again = family.load_from_checkpoint(tmp_path / "x.ckpt")
    assert {n: p.requires_grad for n, p in again.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }
    x = data().split("train").inputs[:5]
    assert torch.equal(model.eval()(x), again.eval()(x))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_seed_draws_the_same_weights(name):
    family, _, arguments = FAMILIES[name]
    shape = (1, 16, 16) if family is not DeepLinear else (6,)
    if name in ("mlp, images", "conv_net"):
        arguments = {**arguments, "target_shape": shape}
    first = flat(built(family, shape=shape, **arguments))
    torch.manual_seed(99)
    assert torch.equal(first, flat(built(family, shape=shape, **arguments)))
    other = family(
        input_shape=shape, seed=SEED + 1, num_classes=None if "target_shape" in arguments else 10, **arguments
    )
    other.configure_model()
    assert not torch.equal(first, flat(other))


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "arguments", "said"),
    [
        (MLP, {"depth": -1}, "at least 0"),
        (MLP, {"width": 0}, "at least 1"),
        (MLP, {"initial": "siren"}, "for activation=sine, not relu"),
        (ConvNet, {"kernel_size": 4}, "odd"),
        (ConvNet, {"depth": 0}, "at least 1"),
        (ConvNet, {"initial": "siren"}, "for activation=sine"),
        (FullyConv, {"kernel_size": 2}, "odd"),
        (FullyConv, {"width": 0}, "at least 1"),
        (FullyConv, {"initial": "siren"}, "for activation=sine"),
        (HuhCNN, {"width": 0}, "at least 1"),
        (HuhCNN, {"kernel_size": 2}, "odd"),
        (HuhCNN, {"initial": "siren"}, "for activation=sine"),
        (DeepLinear, {"depth": 0}, "at least 1"),
        (DeepLinear, {"width": 0}, "at least 1"),
        (DeepLinear, {"initial": "siren"}, "no sines"),
        (DeepLinear, {"depth": 4, "initial_depth": 3}, "at least depth=4"),
        (DeepLinear, {"initial_depth": 8, "residual": True}, "plain products"),
        (DeepLinear, {"initial_depth": 8, "layer": "toeplitz"}, "plain products"),
        (ResNet, {"depth": 10, "extra_blocks": 2}, "give both"),
        (ResNet, {"depth": 10, "extra_blocks": 2, "extra_stage": 5}, "stages 1 to 4"),
        (ResNet, {"depth": 10, "extra_blocks": -1, "extra_stage": 1}, "stages 1 to 4"),
    ],
)
def test_wrong_arguments_are_named(family, arguments, said):
    with pytest.raises(UserError, match=said):
        family(**arguments)


def test_networks_that_do_not_fit_the_data_are_named():
    circular = {"kernel_size": 7, "padding_mode": "circular"}
    for family, more in ((ConvNet, {"output": "classes"}), (FullyConv, {})):
        with pytest.raises(UserError, match="7 x 7 is larger than an image of 6 x 6"):
            built(family, shape=(1, 6, 6), **circular, **more)
    model = built(ConvNet, shape=(1, 8, 8), depth=1, target_shape=(1, 8, 8), **circular)
    model(images(1, 1, 7, 9))
    with pytest.raises(UserError, match="larger than an image of 5 x 9"):
        model(images(1, 1, 5, 9))
    with pytest.raises(UserError, match="these are classes"):
        built(ConvNet, depth=1)
    with pytest.raises(UserError, match=r"these are of shape \(5,\)"):
        built(ConvNet, depth=1, target_shape=(5,))
    with pytest.raises(UserError, match="image_size of at least 8"):
        built(HuhCNN, shape=(3, 6, 6))
    with pytest.raises(UserError, match="initial_scale=0"):
        built(MLP, initial_scale=0.0)
    with pytest.raises(UserError, match="beta=-1"):
        built(MLP, initial="ntk", beta=-1.0)
    with pytest.raises(UserError, match="omega_0=0"):
        built(MLP, activation="sine", omega_0=0.0)
    assert repr(Sine(2.0)) == "Sine(omega_0=2.0)"
