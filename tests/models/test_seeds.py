"""A network is a function of arguments, shapes and a seed; nothing else of its process matters."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn

from lightning_depth.data import EmbeddedDigits, Folds, KLocal, RandomLabels
from lightning_depth.models import MLP, ConvNet, DeepLinear, FullyConv, HuhCNN, Imported, ResNet
from lightning_depth.models.family import AbstractFamily
from lightning_depth.models.shapes import Shapes
from lightning_depth.optimisers import CMAES, RandomSearch
from lightning_depth.seeds import Seeded
from lightning_depth.training.guards import StepSeed

IMAGES = Shapes((3, 8, 8), classes=4)
NETWORKS = {
    "ResNet": (lambda: ResNet(depth=10, width=2), IMAGES),
    "FullyConv": (lambda: FullyConv(depth=2, width=4), IMAGES),
    "HuhCNN": (lambda: HuhCNN(width=2), IMAGES),
    "ConvNet, classes": (lambda: ConvNet(depth=2, channels=3, output="classes"), IMAGES),
    "ConvNet, images": (lambda: ConvNet(depth=2, channels=3), Shapes((3, 8, 8), target=(2, 8, 8))),
    "MLP": (lambda: MLP(depth=1, width=5), IMAGES),
    "MLP, images": (lambda: MLP(depth=1, width=5), Shapes((6,), target=(2, 3))),
    "DeepLinear": (lambda: DeepLinear(depth=2), Shapes((2, 3), target=(2, 3))),
    "low rank, expanded": (lambda: MLP(width=5, low_rank={"rank": 2}, expansion={"factor": 2}), IMAGES),
    "Imported": (lambda: Imported("torchvision.models.mobilenet_v3_small"), IMAGES),
}


def flat(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_arguments_draw_the_same_network_any_number_of_times(name):
    make, shapes = NETWORKS[name]
    family = make()
    first = family.draw(3, shapes)
    outside = torch.random.get_rng_state()
    torch.set_default_dtype(torch.float64)  # as Lightning does for precision 64-true
    try:
        with torch.device("meta"):
            again = family.draw(3, shapes)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.random.get_rng_state(), outside)
    assert torch.equal(flat(first), flat(again))
    assert torch.equal(flat(first), flat(make().draw(3, shapes)))
    assert not torch.equal(flat(first), flat(family.draw(4, shapes)))
    assert not torch.equal(flat(first), flat(family.draw(3, shapes, "search", 1)))
    assert family.net is None
    outputs = first.eval()(torch.zeros(2, *shapes.input))
    assert outputs.flatten(1).shape == (2, shapes.outputs)


def test_threads_draw_what_each_would_draw_alone():
    family, seeds = MLP(depth=4, width=60), [0, 1, 2, 3] * 8
    alone = [flat(family.draw(seed, IMAGES)) for seed in range(4)]
    outside = torch.random.get_rng_state()
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda seed: flat(family.draw(seed, IMAGES)), seeds))
    assert all(torch.equal(drawn, alone[seed]) for seed, drawn in zip(seeds, together, strict=True))
    assert torch.equal(torch.random.get_rng_state(), outside)
    assert torch.get_default_dtype() == torch.float32


def test_what_is_drawn_in_inference_mode_can_be_trained():
    with torch.inference_mode():
        model = MLP(depth=1, width=5, low_rank={"rank": 2}, expansion={"factor": 2}, input_shape=(6,), num_classes=3)
        model.configure_model()
        start = model.initial_state()
    assert not any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers(), *start.values()))
    assert dict.fromkeys(start, True) == {n: torch.equal(p, start[n]) for n, p in model.named_parameters()}
    model(torch.ones(2, 6)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_one_family_draws_networks_of_several_shapes():
    family = MLP(depth=1, width=5)
    sizes = [[m.out_features for m in family.draw(0, s).modules() if isinstance(m, nn.Linear)] for s in (IMAGES, SMALL)]
    assert sizes == [[5, 4], [5, 6]]


SMALL = Shapes((6,), target=(2, 3))


class Dropped(AbstractFamily):
    def build(self, shapes):
        return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, shapes.outputs))


def cell(seed, optimizer=None):
    """What training does with the run's seed, and what came of it."""
    data = RandomLabels(Folds(KLocal(dimension=5, k=2, train_samples=30, test_samples=8, batch_size=9), 1, 3), 0.5)
    model = Dropped(**({} if optimizer is None else {"optimizer": optimizer}))
    for part in (model, data):
        assert isinstance(part, Seeded)
        part.use_run_seed(seed)
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, num_sanity_val_steps=0, callbacks=[StepSeed(seed)],
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    return flat(model.net), data.split("train").inputs, data.split("train").targets, data.train_dataloader().order


@pytest.mark.parametrize(
    "optimizer", [None, lambda p: CMAES(p, generations=1), lambda p: RandomSearch(p, 2)], ids=["sgd", "cma", "search"]
)
def test_cells_of_different_seeds_in_one_process_are_what_each_is_alone(optimizer, monkeypatch):
    found = {}
    for order in ((1, 2), (2, 1)):
        for seed in order:
            monkeypatch.setenv("PL_GLOBAL_SEED", str(10 + len(found)))
            torch.manual_seed(len(found)), np.random.seed(len(found))
            found.setdefault(seed, []).append(cell(seed, optimizer))
    for first, second in found.values():
        assert all(torch.equal(a, b) for a, b in zip(first[:3], second[:3], strict=True))
        assert list(first[3]) == list(second[3])
    one, two = (cells[0] for cells in found.values())
    assert not any(torch.equal(a, b) for a, b in zip(one[:3], two[:3], strict=True))
    assert list(one[3]) != list(two[3])


def test_a_trainer_of_ones_own_has_seed_0_whatever_the_environment_says(monkeypatch):
    seed_everything(5)
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")  # so that it goes again
    model = MLP(depth=1, width=3, input_shape=(2,), num_classes=2)
    model.configure_model()
    assert torch.equal(flat(model.net), flat(model.draw(0, model.shapes)))
    assert EmbeddedDigits().train_dataloader().order.seed == 0


def test_a_checkpoint_says_from_which_seed_its_network_was_drawn(tmp_path):
    data = KLocal(dimension=5, k=2, train_samples=10, test_samples=5)
    model = MLP(depth=1, width=3)
    model.use_run_seed(6)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    again = MLP.load_from_checkpoint(tmp_path / "x.ckpt")
    assert all(torch.equal(again.initial_state()[name], value) for name, value in model.initial_state().items())
