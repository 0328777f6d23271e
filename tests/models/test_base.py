"""A model that is solved and not trained: no gradient, no optimizer."""

import json
import math

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from lightning_depth.data.base.tensors import AbstractTensorData
from lightning_depth.models.base import AbstractModel
from lightning_depth.runs.record import RunRecord
from lightning_depth.training.goals import Goals
from lightning_depth.training.guards import FiniteLoss, StepSeed
from tests.commands import command, written


class Plane(AbstractTensorData):
    def make(self, split, samples, stream):
        x = torch.randn(samples, 4, generator=stream)
        return x, x @ torch.arange(8.0).reshape(4, 2) + 0.1 * torch.randn(samples, 2, generator=stream)


class Sides(Plane):
    def make(self, split, samples, stream):
        x, y = super().make(split, samples, stream)
        return x, (y[:, 0] > 0).long()


class Ridge(AbstractModel):
    """W = (X^T X + l I)^-1 X^T Y, after one pass over the data."""

    def __init__(self, penalty=1e-3, **model):
        super().__init__(**model)
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.penalty = penalty

    def prepare(self, shapes):
        (d,) = shapes.input
        for name, columns in (("gram", d), ("moments", shapes.outputs), ("weight", shapes.outputs)):
            self.register_buffer(name, torch.zeros(d, columns))
        self.batches = []

    def forward(self, x):
        return x @ self.weight

    def training_step(self, batch, batch_idx):
        x, y = batch
        targets = y if self.shapes.target else torch.nn.functional.one_hot(y, self.shapes.classes).float()
        self.gram += x.T @ x
        self.moments += x.T @ targets
        self.batches.append(batch)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.trainer.is_last_batch:
            self.weight.copy_(torch.linalg.solve(self.gram + self.penalty * torch.eye(len(self.gram)), self.moments))
            for seen in self.batches:
                self.count("train", self.sample_metrics(seen))


def fitted(data, tmp_path, *callbacks, epochs=1):
    model = Ridge()
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, num_sanity_val_steps=0, callbacks=[StepSeed(0), FiniteLoss(), Goals(), *callbacks],
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    return model, trainer


def test_a_ridge_regression_is_a_model(tmp_path):
    data, record = Plane(train_samples=50, test_samples=20, batch_size=8), RunRecord(tmp_path, {}, {})
    model, trainer = fitted(data, tmp_path, record)
    logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
    for split in ("train", "val"):
        x, y = data.split(split)
        assert logged[f"{split}/loss"] == pytest.approx(float((x @ model.weight - y).square().mean()), rel=1e-5)
    x, y = (tensor.double() for tensor in data.split("train"))
    slow = torch.linalg.inv(x.T @ x + 1e-3 * torch.eye(4)) @ x.T @ y
    torch.testing.assert_close(model.weight.double(), slow, atol=1e-4, rtol=1e-4)
    assert not any(optimizer.param_groups for optimizer in trainer.optimizers)
    assert [float(row["val/loss"]) for row in record.metrics.rows()] == [pytest.approx(logged["val/loss"])]
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    again = Ridge.load_from_checkpoint(tmp_path / "x.ckpt")
    assert torch.equal(again(x.float()), model(x.float()))


def test_a_ridge_regression_classifies_too(tmp_path):
    data = Sides(train_samples=200, test_samples=50, batch_size=30)
    model, trainer = fitted(data, tmp_path)
    x, y = data.split("val")
    assert float(trainer.callback_metrics["val/acc"]) == pytest.approx(float((model(x).argmax(1) == y).double().mean()))
    assert float(trainer.callback_metrics["train/acc"]) > 0.9
    outputs = torch.cat(trainer.predict(model, datamodule=data))
    assert torch.equal(outputs, model(data.split("test").inputs))


def test_the_run_of_a_solved_model_has_checkpoints_that_every_command_takes(tmp_path):
    plane = {"train_samples": 50, "test_samples": 20, "batch_size": 8}
    config = {
        "model": {"class_path": f"{__name__}.Ridge"},
        "data": {"class_path": f"{__name__}.Plane", "init_args": plane},
        "trainer": {"accelerator": "cpu", "max_epochs": 2, "enable_progress_bar": False, "logger": False},
    }
    written(config, tmp_path, "ridge.yaml")

    def done(*words):
        ended = command(*words, cwd=tmp_path)
        assert ended.status == 0, ended.err
        return ended

    done("fit", "--config", "ridge.yaml")
    run = tmp_path / "runs" / "ridge"
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 14  # a step for each of 7 batches, twice
    model = Ridge.load_from_checkpoint(run / "checkpoints" / "last.ckpt")
    assert model.weight.count_nonzero() == 8
    x, y = Plane(**plane).split("test")
    tested = done("test", "--config", "ridge.yaml", "--ckpt_path", "last").out
    loss = float(tested.split("test/loss")[1].split()[0])
    assert loss == pytest.approx(float((x @ model.weight - y).square().mean()), rel=1e-5)
    ckpt = "runs/ridge/checkpoints/best.ckpt"
    probed = done("probe", "--ckpt", ckpt, "--probe", "LinearOperator").out
    norm = torch.linalg.matrix_norm(Ridge.load_from_checkpoint(tmp_path / ckpt).weight, 2)
    assert f"{float(norm):.5g}" in probed
    done("predict", "--config", "ridge.yaml", "--ckpt_path", "best")
    done("fit", "--config", "ridge.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "3")
    assert json.loads((run / "summary.json").read_text())["epochs"] == 3
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 21


class Ratios(Callback):
    """Metrics that are no numbers, always or at first."""

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/ratio_loss", math.nan)
        pl_module.log("val/infinite_acc", math.inf)
        pl_module.log("val/late_loss", 0.5 if trainer.current_epoch else math.nan)


def test_a_metric_that_is_no_number_costs_no_run_its_summary(tmp_path):
    record = RunRecord(tmp_path, {}, {})
    fitted(Plane(train_samples=50, test_samples=20, batch_size=8), tmp_path, Ratios(), record, epochs=2)
    summary = json.loads((tmp_path / "summary.json").read_text())
    unsuitable = {"val/ratio_loss": None, "val/infinite_acc": None}
    assert summary["final"].items() >= unsuitable.items()
    assert summary["final"]["val/loss"] < 1
    assert summary["best"]["val/late_loss"] == {"value": 0.5, "epoch": 2}
    assert summary["best"]["val/ratio_loss"]["value"] is None
    assert (tmp_path / "report.png").is_file()
    assert [row["val/ratio_loss"] for row in record.metrics.rows()] == ["nan", "nan"]
