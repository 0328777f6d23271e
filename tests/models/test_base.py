"""A model that is solved and not trained: no gradient, no optimizer."""

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_depth.data.base.tensors import AbstractTensorData
from lightning_depth.models.base import AbstractModel
from lightning_depth.runs.record import RunRecord
from lightning_depth.training.goals import Goals
from lightning_depth.training.guards import FiniteLoss, StepSeed


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

    def configure_optimizers(self):
        return None

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


def fitted(data, tmp_path, *callbacks):
    model = Ridge()
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
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
