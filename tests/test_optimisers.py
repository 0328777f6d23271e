import copy

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_depth.data.base.tensors import AbstractTensorData
from lightning_depth.errors import UserError
from lightning_depth.models.family import AbstractFamily
from lightning_depth.optimisers import CMAES, RandomSearch


class Plane(AbstractTensorData):
    """Targets A x with noise: the least-squares solution is unique, and its loss is not zero."""

    def make(self, split, samples, stream):
        x = torch.randn(samples, 3, generator=stream)
        return x, x @ torch.tensor([[0.3, -0.2], [0.1, 0.4], [-0.5, 0.2]]) + 0.1 * torch.randn(
            samples, 2, generator=stream
        )


class Product(AbstractFamily):
    """Two matrices, 3 -> 3 -> 2."""

    def build(self, shapes):
        return nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, shapes.outputs, bias=False))


def least_squares(data):
    x, y = data.split("train")
    solution = torch.linalg.lstsq(x.double(), y.double()).solution
    return solution.T, float((x.double() @ solution - y).square().mean())


def trained(optimizer, epochs, tmp_path, batch_size=0, ckpt_path=None, **recipe):
    data = Plane(train_samples=20, test_samples=5, batch_size=batch_size, seed=3)
    model = Product(optimizer=optimizer, seed=1, **recipe)
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=tmp_path, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return model, data, trainer


OPTIMISERS = {
    "SGD": (lambda p: torch.optim.SGD(p, lr=0.3), 250),
    "momentum": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 150),
    "Nesterov": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), 150),
    "Adam": (lambda p: torch.optim.Adam(p, lr=0.05), 200),
    "L-BFGS": (lambda p: torch.optim.LBFGS(p, lr=1, max_iter=20, line_search_fn="strong_wolfe"), 6),
    "CMA-ES": (lambda p: CMAES(p, sigma0=0.3, seed=0, generations=20), 12),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_reaches_the_least_squares_solution(name, tmp_path):
    model, data, _ = trained(*OPTIMISERS[name], tmp_path)
    solution, loss = least_squares(data)
    first, second = (layer.weight.detach().double() for layer in model.net)
    torch.testing.assert_close(second @ first, solution, atol=2e-3, rtol=0)
    x, y = data.split("train")
    assert float((model(x) - y).detach().square().mean()) == pytest.approx(loss, abs=1e-6)


def test_random_search_comes_near_in_two_dimensions():
    torch.manual_seed(0)
    target = torch.tensor([0.7, -0.4])
    weight = nn.Parameter(torch.tensor([1.0, -1.0]))
    search = RandomSearch([weight], samples=500, seed=0)
    losses = [float(search.step(lambda: (weight - target).square().sum())) for _ in range(6)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-2 < losses[0]
    assert weight.requires_grad


def test_random_search_draws_the_family_anew_and_keeps_the_best(tmp_path):
    model, data, _ = trained(lambda p: RandomSearch(p, samples=30), 2, tmp_path)
    x, y = data.split("train")

    def loss(net):
        with torch.no_grad():
            return float((net(x) - y).square().mean())

    draws = [loss(model.draw(1, model.shapes)), *(loss(model.draw(1, model.shapes, "search", i)) for i in range(1, 61))]
    assert loss(model.net) == pytest.approx(min(draws), rel=1e-6)


@pytest.mark.parametrize("make", [lambda p: CMAES(p, sigma0=0.5, seed=0), lambda p: RandomSearch(p, samples=9)])
def test_steps_never_lose_and_touch_no_generator(make):
    weight = nn.Parameter(torch.tensor([3.0, 2.0, 1.0]))
    search = make([weight])
    seen = []

    def closure():
        assert not weight.requires_grad  # nothing is spent on gradients
        seen.append(weight.detach().clone())
        loss = weight.square().sum()
        return loss * torch.nan if weight[1] > 2.1 else loss  # a candidate may be out of all bounds

    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.random.get_rng_state()
    norms = []
    for _ in range(8):
        search.step(closure)
        norms.append(float(weight.detach().square().sum()))
        assert torch.equal(seen[-1], weight.detach())
    assert norms == sorted(norms, reverse=True)
    assert norms[-1] < norms[0]
    assert any(bool(w[1] > 2.1) for w in seen)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert torch.equal(torch.random.get_rng_state(), torch_state)


@pytest.mark.parametrize("make", [lambda p: CMAES(p, population=6, seed=0), lambda p: RandomSearch(p, 5, seed=0)])
def test_a_search_goes_on_from_its_state_bit_for_bit(make, tmp_path):
    def closure(weight):
        return lambda: (weight - torch.arange(4.0)).square().sum()

    weight = nn.Parameter(torch.randn(4))
    search = make([weight])
    for _ in range(30):
        search.step(closure(weight))
    torch.save({"optimizer": search.state_dict(), "weight": weight.detach()}, tmp_path / "x.ckpt")
    loaded = torch.load(tmp_path / "x.ckpt", weights_only=True)
    again = nn.Parameter(loaded["weight"])
    resumed = make([again])
    resumed.load_state_dict(copy.deepcopy(loaded["optimizer"]))
    for _ in range(20):
        search.step(closure(weight))
        resumed.step(closure(again))
    assert torch.equal(weight, again)


RESUMED = {
    "L-BFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
    "CMA-ES": lambda p: CMAES(p, population=4, seed=0),
    "random search": lambda p: RandomSearch(p, 3, seed=0),
}


@pytest.mark.parametrize("make", RESUMED.values(), ids=RESUMED)
def test_a_fit_goes_on_from_its_checkpoint_bit_for_bit(make, tmp_path):
    whole, *_ = trained(make, 6, tmp_path)
    half, _, trainer = trained(make, 3, tmp_path)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, *_ = trained(make, 6, tmp_path, ckpt_path=tmp_path / "half.ckpt")
    weights = [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in (whole, resumed, half)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_lbfgs_step_counts_once_in_the_epochs_metrics(tmp_path):
    model, data, trainer = trained(lambda p: torch.optim.LBFGS(p, lr=1, max_iter=20), 1, tmp_path)
    x, y = data.split("train")
    before = float((model.draw(1, model.shapes)(x) - y).detach().square().mean())
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(before)
    assert trainer.global_step == 1


@pytest.mark.parametrize("make", [lambda p: torch.optim.LBFGS(p, max_iter=2), lambda p: CMAES(p, population=3)])
@pytest.mark.parametrize("steps_at_once", [1, 2])
def test_mini_batches_are_warned_of(make, steps_at_once, tmp_path):
    with pytest.warns(UserWarning, match="the 2 batches of an epoch should be one"):
        trained(make, 1, tmp_path, batch_size=10, steps_at_once=steps_at_once)


def test_only_trained_parameters_are_optimised(tmp_path):
    class Frozen(Product):
        def build(self, shapes):
            net = super().build(shapes)
            net[1].requires_grad_(False)
            return net

    model = Frozen(input_shape=(3,), target_shape=(2,), optimizer=lambda p: CMAES(p))
    model.configure_model()
    search = model.configure_optimizers()
    assert [p.shape for p in search.weights] == [(3, 3)]
    model = Frozen(input_shape=(3,), target_shape=(2,), optimizer=lambda p: RandomSearch(p, 2))
    model.configure_model()
    drawn = model.configure_optimizers().redraw(1)
    assert [p.shape for p in drawn] == [(3, 3)]
    assert not torch.equal(drawn[0], model.net[0].weight)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: CMAES(p, sigma0=0.0), "sigma0 > 0"),
        (lambda p: CMAES(p, population=1), "population"),
        (lambda p: CMAES([p[0][:1]]), "at least 2 weights"),
        (lambda p: CMAES([torch.zeros(20_000)]), "diagonal"),
        (lambda p: RandomSearch(p, samples=0), "at least 1 sample"),
        (lambda p: RandomSearch(p).step(), "closure"),
    ],
)
def test_user_errors_are_named(make, said):
    with pytest.raises(UserError, match=said):
        make([torch.zeros(3)])


def test_a_diagonal_search_takes_many_weights():
    weight = nn.Parameter(torch.ones(20_000))
    search = CMAES([weight], diagonal=True, population=4)
    search.step(lambda: weight.square().sum())
    assert search.param_groups[0]["lr"] > 0
