"""Goals on current weights: what they evaluate, when, and that training does not notice."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import nn

from lightning_depth.callbacks import WeightDistance
from lightning_depth.data import EmbeddedDigits
from lightning_depth.errors import UserError
from lightning_depth.models.family import AbstractFamily
from lightning_depth.runs.record import RunRecord
from lightning_depth.training.goals import Goals
from lightning_depth.training.guards import StepSeed


class Noisy(AbstractFamily):
    """BatchNorm and dropout: train mode and evaluation mode differ, and each pass could leave traces."""

    def __init__(self, **recipe):
        super().__init__(**recipe)
        self.save_hyperparameters()

    def build(self, shapes):
        frozen = nn.BatchNorm2d(3)
        frozen.requires_grad_(False)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3, bias=False), frozen, nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
            nn.Linear(3 * 36, shapes.outputs),
        )  # fmt: skip

    def on_train_epoch_start(self):
        self.net[1].eval()  # a frozen layer stays in the mode in which its owner put it


def fitted(tmp_path, epochs=4, callbacks=(), model=None, trainer=None, **goals):
    data = EmbeddedDigits(samples_per_class=6, image_size=8, augment="crop", batch_size=16, eval_batch_size=25)
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks), num_sanity_val_steps=0,
        default_root_dir=tmp_path, callbacks=[Goals(**goals), StepSeed(), *callbacks], **(trainer or {}),
    )  # fmt: skip
    model = model or Noisy(loss="cross_entropy")
    trainer.fit(model, datamodule=data)
    return model, trainer, data


def slow(model, data):
    """Sample by sample, apart from everything."""
    model.eval()
    images, labels = data.split("train")
    mean, std = data.normalisation
    with torch.no_grad():
        outputs = [model(((x.permute(2, 0, 1)[None].float() / 255) - mean[0]) / std[0])[0] for x in images]
    losses = [float(nn.functional.cross_entropy(o, y)) for o, y in zip(outputs, labels, strict=True)]
    hits = [int(o.argmax()) == int(y) for o, y in zip(outputs, labels, strict=True)]
    return sum(losses) / len(losses), sum(hits) / len(hits)


def test_current_metrics_are_those_of_a_slow_evaluation_of_the_weights(tmp_path):
    record = RunRecord(tmp_path, {}, {})
    model, trainer, data = fitted(tmp_path, judge="current", every=3, callbacks=[record])
    loss, accuracy = slow(model, data)
    assert float(trainer.callback_metrics["train_eval/loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(trainer.callback_metrics["train_eval/acc"]) == pytest.approx(accuracy)
    rows = record.metrics.rows()
    # After every third epoch, and the last; an epoch without has none of an earlier one.
    assert [bool(row["train_eval/loss"]) for row in rows] == [False, False, True, True]
    assert float(rows[-1]["train_eval/acc"]) == pytest.approx(accuracy)
    assert float(rows[-1]["train/acc"]) != pytest.approx(accuracy)


class Modes(Callback):
    def __init__(self):
        self.seen = set()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.add((batch_idx, tuple(module.training for module in pl_module.modules())))


def test_training_does_not_notice(tmp_path):
    found = []
    for goals in ({}, {"judge": "current"}):
        modes = Modes()
        model, trainer, _ = fitted(tmp_path, callbacks=[modes], **goals)
        logged = {k: v for k, v in trainer.callback_metrics.items() if not k.startswith("train_eval")}
        found.append((model.state_dict(), trainer.optimizers[0].state_dict()["state"], logged, modes.seen))
        found[-1] += (torch.random.get_rng_state(),)
    torch.testing.assert_close(found[1][:3], found[0][:3], rtol=0, atol=0)
    assert found[1][3] == found[0][3]
    assert torch.equal(found[1][4], found[0][4])


def test_without_step_seeds_training_does_not_notice_either(tmp_path):
    weights = []
    for goals in ({}, {"judge": "current"}):
        torch.manual_seed(0)
        data = EmbeddedDigits(samples_per_class=6, image_size=8, batch_size=16)
        trainer = Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
            enable_model_summary=False, limit_val_batches=0, callbacks=[Goals(**goals)],
        )  # fmt: skip
        model = Noisy(loss="cross_entropy")
        trainer.fit(model, datamodule=data)
        weights.append(model.state_dict())
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=0)


class Epochs(Callback):
    def __init__(self):
        self.validated = []

    def on_validation_end(self, trainer, pl_module):
        self.validated.append((trainer.current_epoch + 1, trainer.should_stop))


def test_a_goal_on_current_weights_is_reached_where_the_running_mean_never_is(tmp_path):
    def fast(parameters):
        return torch.optim.SGD(parameters, lr=0.03, momentum=0.9)

    outcomes = {}
    for judge in ("running", "current"):
        goals, epochs, probe = Goals(train_acc=1.0, judge=judge), Epochs(), WeightDistance(every="last")
        data = EmbeddedDigits(samples_per_class=6, image_size=8, batch_size=10)
        trainer = Trainer(
            max_epochs=40, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, default_root_dir=tmp_path, num_sanity_val_steps=0,
            check_val_every_n_epoch=39, callbacks=[probe, goals, StepSeed(), epochs],
        )  # fmt: skip
        trainer.fit(Noisy(loss="cross_entropy", optimizer=fast), datamodule=data)
        outcomes[judge] = goals.stopped_by, trainer.current_epoch
        assert epochs.validated[-1] == (trainer.current_epoch, judge == "current")
        assert {reading.epoch for reading in probe.readings} == {trainer.current_epoch}
        assert trainer.check_val_every_n_epoch == 39  # as it was given
    assert outcomes["running"] == (None, 40)
    assert outcomes["current"][0] == "training accuracy of the current weights reached 1.0"
    assert outcomes["current"][1] < 39


def test_what_goals_cannot_judge_is_refused(tmp_path):
    class Foreign(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(64, 10)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(batch[0].flatten(1)), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.raises(UserError, match="Goals need a model of lightning_depth, and Foreign is none"):
        fitted(tmp_path, model=Foreign(), train_loss=1.0)
    _, trainer, _ = fitted(tmp_path, epochs=1, model=Foreign())  # without a goal there is nothing to refuse
    assert trainer.current_epoch == 1
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.randn(20, 1, 8, 8), torch.arange(20) % 3), batch_size=5
    )
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, callbacks=[Goals(judge="current")],
    )  # fmt: skip
    with pytest.raises(UserError, match="has no `train_eval_dataloader"):
        trainer.fit(Noisy(input_shape=(1, 8, 8), num_classes=3), loader)
