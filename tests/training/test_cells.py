"""Runs of different seeds in one process, in either order, are what each is alone."""

import os
import shlex

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.data import BatchSampler, DataLoader

from lightning_depth.config.resolve import resolve
from lightning_depth.errors import UserError
from lightning_depth.training.run import locate, run

DATA = "--data RandomLabels --data.data KLocal --data.data.dimension 5 --data.data.k 2 --data.data.train_samples 40"
SMALL = "--data.data.test_samples 8 --data.data.batch_size 10 --trainer.max_epochs 2 --trainer.accelerator cpu"
QUIET = "--trainer.enable_progress_bar false --trainer.enable_checkpointing false"
WORDS = shlex.split(f"--model MLP --model.depth 1 --model.width 6 {DATA} {SMALL} {QUIET}")


class Keep(Callback):
    """What came of a run."""

    def on_train_end(self, trainer, pl_module):
        data = trainer.datamodule
        self.found = {
            **{name: value.clone() for name, value in pl_module.state_dict().items()},
            "labels": data.split("train").targets,
            "order": torch.tensor(list(data.train_dataloader().order)),
            "dropout": torch.rand(3),  # from the state that the last step left
            **{name: value.clone() for name, value in trainer.callback_metrics.items()},
        }


def trained(seed, *words):
    config = resolve("fit", [*WORDS, *words, "--seed_everything", str(seed)])
    keep = Keep()
    run(config, locate(config), more=[keep])
    return keep.found


@pytest.mark.parametrize(
    "words", [(), ("--model.optimizer", "lightning_depth.optimisers.RandomSearch", "--model.optimizer.samples", "2")]
)
def test_two_cells_of_one_process_do_not_mix(words):
    found = {}
    for order in ((0, 3), (3, 0)):
        for seed in order:
            found.setdefault(seed, []).append(trained(seed, *words))
    for first, second in found.values():
        torch.testing.assert_close(first, second, rtol=0, atol=0)
    for key in ("net.layer1.weight", "labels", "order", "dropout"):
        assert not torch.equal(found[0][0][key], found[3][0][key]), key


def test_a_cell_without_a_seed_has_that_of_a_run_of_seed_0():
    zero = trained(0)
    trained(3)
    assert os.environ["PL_GLOBAL_SEED"] == "3"  # what Lightning leaves behind
    none = trained("false")
    for key in ("net.layer1.weight", "labels", "order"):
        assert torch.equal(none[key], zero[key]), key


def test_a_cell_whose_data_fail_leaves_the_loaders_of_the_next_as_they_were(monkeypatch):
    def as_they_are():
        return [kind.__init__ for kind in (DataLoader, BatchSampler)] + [DataLoader.__setattr__]

    def missing():
        raise UserError("the images are gone")

    before, config = as_they_are(), resolve("fit", WORDS)
    data = locate(config)
    monkeypatch.setattr(data, "train_dataloader", missing)
    with pytest.raises(UserError, match="are gone"):
        run(config, data)
    assert as_they_are() == before


def test_goals_are_keys_of_a_config():
    found = trained(0, "--goals.judge", "current", "--goals.train_loss", "100")
    assert {"train_eval/loss", "train_eval/acc"} <= found.keys()
    config = resolve("fit", [*WORDS, "--goals.train_acc", "0.5"])
    assert config.values["goals"] == {"train_acc": 0.5, "train_loss": None, "every": 1, "judge": "running"}
