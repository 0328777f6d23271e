import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.backends import mha
from torch.nn import functional as F
from torchvision.models.vision_transformer import VisionTransformer

from lightning_depth.measures.jacobians import jacobian_norm
from lightning_depth.measures.linear_networks import linear_operator


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def filled(network: nn.Module) -> nn.Module:
    network = network.double()
    for i, parameter in enumerate(network.parameters()):
        parameter.data = random(*parameter.shape, seed=i) / max(1, parameter[0].numel()) ** 0.5
    for name, buffer in network.named_buffers():
        if "running_var" in name:
            buffer.copy_(torch.linspace(0.5, 2, len(buffer)))
    return network.eval()


def mlp() -> nn.Module:
    return filled(nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 40), nn.GELU(), nn.Linear(40, 25)))


def convnet() -> nn.Module:
    return filled(
        nn.Sequential(
            nn.ReLU(inplace=True),
            nn.Conv2d(2, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3),
            nn.Flatten(),
        )
    )


def vit() -> nn.Module:
    network = VisionTransformer(8, 4, 2, 2, 8, 16, num_classes=20)
    network.heads = nn.Linear(8, 20)  # torchvision starts it at zero
    return filled(network)


NETWORKS: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (mlp, (30,)),
    (convnet, (2, 10, 10)),
    (vit, (3, 8, 8)),
]


def dense_jacobians(function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Slow and obvious: the whole Jacobian of each sample."""
    jacobian = torch.autograd.functional.jacobian
    return torch.stack([jacobian(lambda x: function(x.clone()), x[None]).reshape(-1, x.numel()) for x in inputs])


def dense_norms(function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(dense_jacobians(function, inputs), 2)


@pytest.mark.parametrize(("build", "shape"), NETWORKS)
@pytest.mark.parametrize("limit", [0, 1000])
def test_networks_against_the_dense_jacobian(
    build: Callable[[], nn.Module], shape: tuple[int, ...], limit: int
) -> None:
    network, inputs = build(), random(4, *shape, seed=1)
    kept = inputs.clone()
    found = jacobian_norm(network, inputs, rtol=1e-8, dense_limit=limit)
    jacobians = dense_jacobians(network, inputs)
    exact = torch.linalg.matrix_norm(jacobians, 2)
    torch.testing.assert_close(found.values, exact, rtol=1e-8, atol=0)
    assert (found.iterations == 0) == (limit == 1000)
    assert torch.equal(inputs, kept), "an in-place layer wrote into the caller's inputs"
    assert found.vectors.shape == inputs.shape
    images = (jacobians @ found.vectors.flatten(1)[..., None])[..., 0]
    torch.testing.assert_close(images.norm(dim=1), exact, rtol=1e-8, atol=0)


@pytest.mark.parametrize(("build", "shape"), NETWORKS)
def test_float32_reaches_the_tolerance_and_says_when_it_has_not(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    network, inputs = build(), random(3, *shape, seed=2)
    exact = dense_norms(network, inputs)
    found = jacobian_norm(network.float(), inputs.float(), dense_limit=0)
    assert found.residuals.max() <= 2e-3
    assert ((found.values / exact - 1).abs() < 1e-3).all()
    # Control: two steps are not enough, and the residuals say so.
    hasty = jacobian_norm(network, inputs.float(), max_iterations=2, dense_limit=0)
    assert hasty.residuals.min() > 2e-3
    assert (hasty.values < exact * (1 - 1e-3)).any()


def test_a_linear_network_has_its_operator_norm_everywhere() -> None:
    layers = [nn.Conv2d(2 if i == 0 else 4, 4, 3, padding=1, bias=False) for i in range(4)]
    network = filled(nn.Sequential(*layers))
    exact = float(torch.linalg.matrix_norm(linear_operator(network, (2, 6, 6)).matrix, 2))
    inputs = random(3, 2, 6, 6)
    found = jacobian_norm(network, inputs, rtol=1e-7)
    torch.testing.assert_close(found.values, torch.full((3,), exact, dtype=torch.float64), rtol=1e-7, atol=0)
    # Control: with a bend it depends on the input, and at x it is that of the network with x's pattern.
    bent = nn.Sequential(layers[0], nn.ReLU(), *layers[1:])
    values = jacobian_norm(bent, inputs, rtol=1e-7).values
    assert values.max() / values.min() > 1.001
    pattern = (layers[0](inputs[:1]) > 0).double().detach()
    frozen = jacobian_norm(lambda x: network[1:](network[0](x) * pattern), inputs[:1], rtol=1e-7)
    assert values[0] == pytest.approx(float(frozen.values[0]), rel=1e-7)


def test_a_sample_is_not_disturbed_by_those_beside_it() -> None:
    easy = torch.cat([torch.tensor([1.0]), torch.linspace(0, 0.1, 299)]).double()
    hard = torch.linspace(0, 1, 300, dtype=torch.float64)
    together = torch.stack([easy, hard, torch.zeros(300, dtype=torch.float64), 1e-9 * hard])
    inputs = random(4, 300)
    # the inputs carry which sample is which, so that a batch of one is the same function
    carried = torch.cat([inputs, together], 1)

    def function(x: Tensor) -> Tensor:
        return x[:, :300] * x[:, 300:].detach()

    found = jacobian_norm(function, carried)
    torch.testing.assert_close(found.values, torch.tensor([1, 1, 0, 1e-9], dtype=torch.float64), rtol=1e-3, atol=0)
    assert found.values[2] == 0
    assert found.residuals[2] == 0
    steps = []
    for i in range(4):
        alone = jacobian_norm(function, carried[i : i + 1])
        assert float(alone.values[0]) == pytest.approx(float(found.values[i]), rel=1e-12)
        assert float(alone.residuals[0]) == pytest.approx(float(found.residuals[i]), rel=1e-6)
        torch.testing.assert_close(alone.vectors[0], found.vectors[i], rtol=0, atol=1e-9)
        steps.append(alone.iterations)
    assert steps[2] <= steps[0] < steps[1] == found.iterations


def test_a_krylov_space_that_is_exhausted_leaves_the_value() -> None:
    left, right = random(3, 50), random(3, 60, seed=1)
    exact = float(torch.linalg.matrix_norm(left.mT @ right, 2))
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        matrix = (right.mT @ left).to(dtype)
        found = jacobian_norm(lambda x, a=matrix: x @ a, random(2, 60).to(dtype), rtol=1e-12, max_iterations=40)
        torch.testing.assert_close(found.values, torch.full((2,), exact, dtype=torch.float64), rtol=tolerance, atol=0)


@pytest.mark.parametrize(("m", "d"), [(1, 40), (5, 40), (40, 5), (40, 1), (20, 21), (21, 20), (20, 20)])
def test_few_outputs_or_inputs(m: int, d: int) -> None:
    matrix = random(d, m)
    exact = float(torch.linalg.matrix_norm(matrix, 2))
    for limit in (0, 16, 100):
        found = jacobian_norm(lambda x: (x @ matrix).sin(), torch.zeros(2, d).double(), 1e-12, dense_limit=limit)
        torch.testing.assert_close(found.values, torch.full((2,), exact, dtype=torch.float64), rtol=1e-11, atol=0)
        assert (found.iterations == 0) == (min(m, d) <= limit)


def test_one_number_per_sample_is_a_gradient() -> None:
    inputs = random(3, 2, 4)
    found = jacobian_norm(lambda x: x.square().sum((1, 2)), inputs)
    torch.testing.assert_close(found.values, 2 * inputs.flatten(1).norm(dim=1))
    torch.testing.assert_close(found.vectors.abs(), inputs.abs() / inputs.flatten(1).norm(dim=1)[:, None, None])


def test_inputs_of_one_number_and_of_another_memory_order() -> None:
    inputs = random(3)
    torch.testing.assert_close(jacobian_norm(torch.sin, inputs, start=inputs).values, inputs.cos().abs())
    network, images = convnet(), random(2, 2, 10, 10)
    expected = jacobian_norm(network, images, dense_limit=0)
    found = jacobian_norm(network, images.to(memory_format=torch.channels_last), dense_limit=0, start=expected.vectors)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-3, atol=0)


def test_samples_in_chunks_give_the_same_answers() -> None:
    network, inputs, sizes = convnet(), random(5, 2, 10, 10, seed=3), []

    def watched(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return network(x)

    whole = jacobian_norm(watched, inputs, max_iterations=30, dense_limit=0)
    assert set(sizes) == {5}
    sizes.clear()
    chunked = jacobian_norm(watched, inputs, max_iterations=30, dense_limit=0, max_bytes=2 * 30 * 200 * 8)
    assert set(sizes) == {1, 2}
    torch.testing.assert_close(chunked.values, whole.values, rtol=1e-12, atol=0)
    torch.testing.assert_close(chunked.vectors, whole.vectors, rtol=0, atol=1e-10)
    assert chunked.iterations == whole.iterations


def test_a_warm_start_needs_fewer_steps() -> None:
    network, inputs = convnet(), random(4, 2, 10, 10, seed=4)
    cold = jacobian_norm(network, inputs, rtol=1e-6, dense_limit=0)
    network[1].weight.data *= 1.01
    warm = jacobian_norm(network, inputs, start=cold.vectors, dense_limit=0)
    assert warm.iterations < jacobian_norm(network, inputs, dense_limit=0).iterations
    torch.testing.assert_close(warm.values, dense_norms(network, inputs), rtol=1e-3, atol=0)
    # a zero row starts at random, a wrong direction is left again
    wrong = torch.zeros(2, 300).double()
    wrong[1, 0] = 1
    values = torch.linspace(0.5, 1, 300).double()
    found = jacobian_norm(lambda x: x * values, torch.ones(2, 300).double(), start=wrong)
    torch.testing.assert_close(found.values, torch.ones(2).double(), rtol=1e-3, atol=0)


class Cubed(torch.autograd.Function):
    """An operator without forward mode."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)  # type: ignore[attr-defined]
        return x**3

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * gradient  # type: ignore[attr-defined]


def test_an_operator_without_forward_mode_goes_back_twice() -> None:
    network, inputs = mlp(), random(3, 30, seed=5)
    found = jacobian_norm(lambda x: network(Cubed.apply(x)), inputs, rtol=1e-8)
    torch.testing.assert_close(found.values, dense_norms(lambda x: network(x**3), inputs), rtol=1e-8, atol=0)
    torch.testing.assert_close(
        found.values, jacobian_norm(lambda x: network(x**3), inputs, rtol=1e-8).values, rtol=1e-10, atol=0
    )


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("frozen", [False, True])
def test_nothing_is_left_behind_in_any_grad_mode(context: Callable[[], object], frozen: bool) -> None:
    network, expected = vit(), None
    network.requires_grad_(not frozen)
    first, *others = network.parameters()
    first.grad = torch.ones_like(first)
    with context():  # type: ignore[attr-defined]
        inputs = random(2, 3, 8, 8)
        before = torch.get_rng_state(), {k: v.clone() for k, v in network.state_dict().items()}
        expected = jacobian_norm(network, inputs, dense_limit=0)
        assert torch.is_grad_enabled() == (context is torch.enable_grad)
    assert not expected.values.requires_grad
    assert not expected.vectors.requires_grad
    torch.testing.assert_close(expected.values, dense_norms(network, random(2, 3, 8, 8)), rtol=1e-3, atol=0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(torch.equal(before[1][k], v) for k, v in network.state_dict().items())
    assert torch.equal(first.grad, torch.ones_like(first))
    assert all(p.grad is None and p.requires_grad is not frozen for p in others)
    assert mha.get_fastpath_enabled()
    assert not inputs.requires_grad


def test_autocast_of_the_trainer_is_not_used() -> None:
    network, inputs = mlp().float(), random(2, 30).float()
    exact = jacobian_norm(network, inputs).values
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(jacobian_norm(network, inputs).values, exact)


@pytest.mark.parametrize("inputs", [torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3).half()])
def test_inputs_without_a_derivative_raise(inputs: Tensor) -> None:
    with pytest.raises(ValueError, match="inputs are torch"):
        jacobian_norm(lambda x: x, inputs)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.detach(), "not differentiable"),
        (lambda x: torch.ones(2, 20) * torch.ones(1, requires_grad=True), "not differentiable"),
        (lambda x: x.argmax(1), "returned torch.int64"),
        (lambda x: x.double(), "returned torch.float64"),
        (lambda x: x.sum(), "not a row for each of 2"),
        (lambda x: x.mean(0), "not a row for each of 2"),
        (lambda x: x[:, :0], "not a row for each of 2"),
        (lambda x: x / 0, "outputs are not finite"),
        (lambda x: (x - x).sqrt(), "derivative is not finite"),
        (lambda x: x - x.mean(0), "depend on each other"),
        (lambda x: F.dropout(x, 0.5), "same at each call"),
    ],
)
def test_functions_that_are_refused(function: Callable[[Tensor], Tensor], message: str) -> None:
    for limit in (0, 16):
        with pytest.raises(ValueError, match=message):
            jacobian_norm(function, torch.ones(2, 20), dense_limit=limit)


def test_train_mode_is_refused_where_it_shows() -> None:
    network = convnet().train()
    with pytest.raises(ValueError, match="depend on each other"):
        jacobian_norm(network, random(4, 2, 10, 10))


def test_bad_arguments_raise() -> None:
    inputs = torch.ones(2, 20)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="inputs are not finite"):
            jacobian_norm(torch.sin, torch.full((2, 20), bad))
        with pytest.raises(ValueError, match="start is not finite"):
            jacobian_norm(torch.sin, inputs, start=torch.full((2, 20), bad))
    with pytest.raises(ValueError, match="start has shape"):
        jacobian_norm(torch.sin, inputs, start=torch.ones(2, 19))
    with pytest.raises(ValueError, match="at least one"):
        jacobian_norm(torch.sin, inputs, max_iterations=0)
    with pytest.raises(ValueError, match="nothing to differentiate"):
        jacobian_norm(torch.sin, torch.ones(0, 20))
