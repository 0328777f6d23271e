import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from lightning_depth.layers.expansion import expand
from lightning_depth.measures.weight_layers import weight_layers
from lightning_depth.models import MLP, ConvNet, DeepLinear, FullyConv, HuhCNN, ResNet
from lightning_depth.models.resnet import TABLE_1
from lightning_depth.models.shapes import Shapes
from tests.oracles import in_sequence

IMAGES = Shapes((3, 16, 16), classes=10)


def depth(family, shapes=IMAGES):
    return weight_layers(family.draw(0, shapes), torch.zeros(1, *shapes.input))


@pytest.mark.parametrize("d", TABLE_1)
def test_a_resnet_of_depth_d_has_d_and_no_shortcut_counts(d):
    assert depth(ResNet(depth=d, width=1)) == d


# Each family has its paper's own word for depth.
FAMILIES = {
    "MLP: L hidden layers": (MLP(depth=4, width=3), 5),
    "MLP: none": (MLP(depth=0), 1),
    "MLP, ntk": (MLP(depth=2, width=3, initial="ntk"), 3),
    "Fully-Conv: d and the last": (FullyConv(depth=3, width=2), 4),
    "ConvNet: convolutions": (ConvNet(depth=3, channels=2, output="classes"), 3),
    "ConvNet, flattened: and a linear layer": (ConvNet(depth=3, channels=2, output="classes", readout="flatten"), 4),
    "ConvNet, circular": (ConvNet(depth=2, channels=2, output="classes", padding_mode="circular"), 2),
    "HuhCNN": (HuhCNN(width=2), 6),
    "DeepLinear": (DeepLinear(depth=4, width=12), 4),
    "DeepLinear, residual, BatchNorm": (DeepLinear(depth=4, width=12, residual=True, batch_norm=True), 4),
    "DeepLinear, Toeplitz": (DeepLinear(depth=3, width=12, layer="toeplitz"), 3),
    "expanded: its factors": (DeepLinear(depth=2, width=12, expansion={"factor": 3}), 6),
    "expanded, residual": (DeepLinear(depth=1, expansion={"factor": 4, "residual": True, "keep": "class"}), 4),
    "expanded convolutions": (HuhCNN(width=2, expansion={"factor": 3, "which": ["conv"]}), 4 * 3 + 2),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name):
    family, layers = FAMILIES[name]
    assert depth(family) == layers


def test_an_expanded_layer_counts_as_what_it_is_in_sequence():
    layer = expand(nn.Conv2d(4, 6, 3, groups=2), 5)
    x = torch.zeros(1, 4, 8, 8)
    assert weight_layers(layer, x) == weight_layers(in_sequence(layer), x) == 5


@pytest.mark.parametrize(
    ("name", "layers"),
    [("resnet18", 18), ("resnet50", 50), ("alexnet", 8), ("vgg16", 16), ("vit_b_16", 1 + 12 * 4 + 1)],
)
def test_networks_of_torchvision_have_the_depth_of_their_name(name, layers):
    with torch.device("meta"):
        net = torchvision.models.get_model(name)
        assert weight_layers(net, torch.zeros(1, 3, 224, 224)) == layers


class Odd(nn.Module):
    """What is no plain sequence of modules."""

    def __init__(self, forward):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        self.scale = nn.Parameter(torch.ones(4, 4))
        self.how = forward

    def forward(self, x):
        return self.how(self, x)


def in_place(net, x):
    out = torch.zeros(1, 8)
    out[:, :4] = net.a(x)
    out[:, 4:] = net.b(net.a(x))
    return net.c(out[:, 4:].relu_())


ODD = {
    "a module called twice": (lambda n, x: n.a(n.a(x)), 2),
    "functions": (lambda n, x: F.linear(n.a(x), n.b.weight.T), 2),
    "the longer branch": (lambda n, x: n.a(x) + n.b(n.c(x)), 2),
    "unused": (lambda n, x: (n.a(n.b(x)), n.c(x))[1], 1),
    "several outputs": (lambda n, x: {"one": n.a(x), "two": [n.b(n.c(x))]}, 2),
    "the product of its weights": (lambda n, x: x @ (n.a.weight @ n.b.weight @ n.c.weight), 3),
    "two activations": (lambda n, x: n.a(x).T @ n.b(n.c(x)), 2),
    "scaled by a matrix, entry by entry": (lambda n, x: n.a(x) * n.scale, 1),
    "in place, into views": (in_place, 3),
    "none": (lambda n, x: x.exp(), 0),
    "no input": (lambda n, x: n.a.weight @ n.b.weight, 0),
}


@pytest.mark.parametrize("name", ODD)
def test_paths_of_any_module(name):
    forward, layers = ODD[name]
    assert weight_layers(Odd(forward), torch.ones(1, 4)) == layers


@pytest.mark.parametrize("normalised", [parametrizations.spectral_norm, parametrizations.weight_norm])
def test_a_normalised_weight_is_one(normalised):
    assert weight_layers(nn.Sequential(normalised(nn.Linear(4, 5)), nn.Linear(5, 2)), torch.ones(1, 4)) == 2


def test_tokens_attention_and_the_fast_path():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3)
    net = nn.Sequential(nn.Embedding(11, 8), encoder)
    assert weight_layers(net, torch.tensor([[1, 5, 2]])) == 1 + 3 * 4  # two of attention and two after it
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_network_is_as_it_was():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    net[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    randomness = torch.random.get_rng_state()
    with torch.inference_mode():
        assert weight_layers(net, torch.randn(1, 3, generator=torch.Generator())) == 2
    assert [module.training for module in net.modules()] == [True, True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), randomness)
