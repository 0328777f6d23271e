import json

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from torch import nn

from lightning_depth.callbacks import WeightDistance
from lightning_depth.data.base.tensors import AbstractTensorData
from lightning_depth.errors import UserError
from lightning_depth.layers.expansion import ExpandedLayer, collapse, expand
from lightning_depth.models.family import AbstractFamily
from lightning_depth.models.regularisers import chosen_weights, penalty, regularisation, truncate
from lightning_depth.probes.probe import ends_training
from lightning_depth.runs.record import RunRecord
from lightning_depth.training.goals import Goals


@pytest.fixture(autouse=True)
def _same_draws():
    torch.manual_seed(0)


class Signs(AbstractTensorData):
    """Whether the first number is positive."""

    def make(self, split, samples, stream):
        x = torch.randn(samples, 1, 4, 4, generator=stream)
        return x, (x[:, 0, 0, 0] > 0).long()


class Numbers(Signs):
    def make(self, split, samples, stream):
        x, _ = super().make(split, samples, stream)
        return x, x[:, 0, 0, :2]


class Small(AbstractFamily):
    """A convolution and a linear layer."""

    def __init__(self, **recipe):
        super().__init__(**recipe)
        self.save_hyperparameters()

    def build(self, shapes):
        conv = nn.Conv2d(shapes.input[0], 4, 3, padding=1)
        return nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, shapes.outputs))


def fitted(tmp_path, data=None, epochs=3, callbacks=(), trainer=None, goals=None, **recipe):
    model = Small(**{"seed": 1, "loss": "cross_entropy", **recipe})
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, num_sanity_val_steps=0, callbacks=[Goals(**(goals or {})), *callbacks],
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks), **(trainer or {}),
    )  # fmt: skip
    trainer.fit(model, datamodule=data or Signs(train_samples=40, test_samples=10, batch_size=20, seed=1))
    return model, trainer


def stopped_by(trainer):
    return next(callback for callback in trainer.callbacks if isinstance(callback, Goals)).stopped_by


# --- regularisers ---------------------------------------------------------------------------------------------------

KINDS = ["l1", "l2", "squared_frobenius", "nuclear", "effective_rank", "stable_rank"]


def slow(kind, weight):
    matrix = weight.flatten(1).double()
    sigma = torch.linalg.svdvals(matrix)
    p = sigma / sigma.sum()
    return {
        "l1": matrix.abs().sum(),
        "l2": matrix.square().sum() ** 0.5,
        "squared_frobenius": torch.trace(matrix @ matrix.T),
        "nuclear": sigma.sum(),
        "effective_rank": -(p * p.log()).sum(),
        "stable_rank": sigma.square().sum() / sigma[0] ** 2,
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_penalties_are_those_of_huh2021(kind):
    weight = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(penalty(kind, weight), slow(kind, weight))
    assert torch.autograd.gradcheck(lambda w: penalty(kind, w), weight)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_along_the_gradient_lowers_the_penalty_also_where_values_are_zero(kind):
    # In float64: in float32 the zeros are round-off, of which the nuclear norm's subgradient is arbitrary.
    weight = (torch.randn(5, 2).double() @ torch.randn(2, 5).double()).requires_grad_()
    before = penalty(kind, weight)
    before.backward()
    assert weight.grad.isfinite().all()
    assert penalty(kind, weight - 1e-3 * weight.grad) < before


def test_a_zero_weight_has_a_gradient():
    for kind in ("l1", "l2", "squared_frobenius", "nuclear", "stable_rank"):
        weight = torch.zeros(3, 3, requires_grad=True)
        penalty(kind, weight).backward()
        assert weight.grad.isfinite().all()


def test_weights_are_chosen_by_name():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    assert list(chosen_weights(net)) == ["0.weight", "2.weight"]
    assert list(chosen_weights(net, ["1.*", "2.*"])) == ["2.weight"]
    assert list(chosen_weights(net, ["2.*"], vectors=True)) == ["2.weight", "2.bias"]
    expanded = expand(net, 3)
    assert list(chosen_weights(expanded)) == ["0.weight", "2.weight"]
    torch.testing.assert_close(chosen_weights(expanded)["0.weight"], collapse(expanded)[0].weight.detach())
    assert list(chosen_weights(expanded, ["0.*"], factors=True)) == ["0.weight_1", "0.weight_2", "0.weight_3"]
    total = regularisation(
        net, [{"kind": "l1", "coefficient": 2.0, "weights": ["0.weight"]}, {"kind": "nuclear", "coefficient": 3.0}]
    )
    expected = 2 * penalty("l1", net[0].weight) + 3 * penalty("nuclear", net[0].weight)
    torch.testing.assert_close(total, expected + 3 * penalty("nuclear", net[2].weight))


@pytest.mark.parametrize(
    ("regulariser", "said"),
    [
        ({"kind": "l1", "coefficient": 1.0, "weights": ["head*"]}, r"No weight matches \['head\*'\]"),
        ({"kind": "nuclear", "coefficient": 1.0, "weights": ["*.bias"]}, "No weight matrix matches"),
        ({"kind": "l1", "coefficient": -1.0}, "at least 0"),
    ],
)
def test_a_wrong_regulariser_shows_before_training(regulariser, said):
    model = Small(input_shape=(1, 4, 4), num_classes=2, regularisers=[regulariser])
    with pytest.raises(UserError, match=said):
        model.configure_model()


@pytest.mark.parametrize("kind", KINDS)
def test_training_with_a_penalty_lowers_it_and_the_loss_is_still_the_datas(kind, tmp_path):
    wanted = [{"kind": kind, "coefficient": 0.1, "weights": ["4.weight"]}]
    data = Signs(train_samples=40, test_samples=10, batch_size=0, seed=1)
    penalised, trainer = fitted(tmp_path, data, epochs=1, regularisers=wanted)
    logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
    net, (x, y) = penalised.draw(1, penalised.shapes), data.split("train")
    assert logged["train/loss"] == pytest.approx(float(nn.functional.cross_entropy(net(x), y).detach()), rel=1e-5)
    assert logged["train/penalty"] == pytest.approx(0.1 * float(penalty(kind, net[4].weight.detach())), rel=1e-5)
    assert "val/penalty" not in logged
    plain, _ = fitted(tmp_path, data, epochs=1)
    readings = [float(penalty(kind, model.net[4].weight.detach())) for model in (penalised, plain)]
    assert readings[0] < readings[1]


# --- low rank and expansion -----------------------------------------------------------------------------------------


def test_low_rank_weights_are_the_best_of_their_rank():
    net = nn.Sequential(nn.Conv2d(2, 8, 3), nn.Linear(6, 3))
    before = net[0].weight.detach().flatten(1).clone()
    truncate(net, 2, ["0.weight"])
    after = net[0].weight.detach().flatten(1)
    assert int(torch.linalg.matrix_rank(after)) == 2
    sigma = torch.linalg.svdvals(before)
    torch.testing.assert_close((before - after).norm(), sigma[2:].norm())  # Eckart and Young
    with pytest.raises(UserError, match="None of the chosen weights has a higher rank than 3"):
        truncate(net, 3, ["1.weight"])
    with pytest.raises(UserError, match="at least 1"):
        truncate(net, 0)
    with pytest.raises(UserError, match="No weight matrix matches"):
        truncate(net, 1, ["*.bias"])


def test_expansion_is_an_argument_of_every_family(tmp_path):
    model, trainer = fitted(
        tmp_path,
        expansion={"factor": 3, "which": ["conv"], "keep": "function"},
        low_rank={"rank": 1, "weights": ["0.weight"]},
        callbacks=[WeightDistance()],
    )
    assert [isinstance(m, ExpandedLayer) for m in model.net] == [True, False, False, False, False]
    start = model.draw(1, model.shapes)[0].weight
    assert int(torch.linalg.matrix_rank(start.flatten(1), rtol=1e-5)) == 1
    assert set(model.initial_state()) == {f"net.{n}" for n, _ in model.net.named_parameters()}
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    again = Small.load_from_checkpoint(tmp_path / "x.ckpt")
    x = torch.randn(3, 1, 4, 4)
    assert torch.equal(again.eval()(x), model.eval()(x))
    torch.testing.assert_close(collapse(again.net)(x), model(x), atol=1e-5, rtol=1e-5)


def test_an_expanded_family_is_a_function_of_its_seed():
    def weights(seed):
        model = Small(input_shape=(1, 4, 4), num_classes=2, seed=seed, expansion={"factor": 2})
        model.configure_model()
        return torch.cat([p.detach().flatten() for p in model.net.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


# --- stops ----------------------------------------------------------------------------------------------------------


class Looks(Callback):
    """Whether each validation knew that it was the last."""

    def __init__(self):
        self.last = []

    def on_validation_end(self, trainer, pl_module):
        self.last.append(trainer.should_stop)


@pytest.mark.parametrize(
    ("goals", "epochs", "said"),
    [
        ({"train_acc": 0.0}, 1, "training accuracy reached 0.0"),
        ({"train_acc": 0.0, "every": 3}, 3, "training accuracy reached 0.0"),
        ({"train_loss": 100.0, "every": 2}, 2, "training loss reached 100.0"),
        ({"train_acc": 0.0, "every": 5}, 4, None),
        ({"train_loss": -1.0}, 4, None),
        ({}, 4, None),
    ],
)
def test_goals_are_checked_every_so_many_epochs_and_the_run_says_which_was_reached(goals, epochs, said, tmp_path):
    looks = Looks()
    record = RunRecord(tmp_path, {}, {})
    _, trainer = fitted(tmp_path, epochs=4, callbacks=[looks, record], goals=goals)
    assert trainer.current_epoch == epochs
    assert stopped_by(trainer) == said
    assert looks.last == [False] * (epochs - 1) + [said is not None]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == ("finished" if said is None else f"stopped: {said}")


@pytest.mark.parametrize(
    ("goals", "validated"),
    [
        ({}, [3, 6, 8]),
        ({"train_acc": 0.0, "every": 4}, [3, 4]),
        ({"train_loss": -1.0}, [3, 6, 8]),
    ],
)
def test_the_last_epoch_is_validated_whichever_it_is(goals, validated, tmp_path):
    record = RunRecord(tmp_path, {}, {})
    fitted(tmp_path, epochs=8, callbacks=[record], trainer={"check_val_every_n_epoch": 3}, goals=goals)
    rows = record.metrics.rows()
    assert len(rows) == validated[-1]
    # An epoch without a validation has no value of an earlier one.
    assert [int(row["epoch"]) for row in rows if row["val/acc"]] == validated
    assert [int(row["epoch"]) for row in rows if row["val/loss"]] == validated
    assert all(row["train/acc"] for row in rows)


class Known(Callback):
    """Whether a probe knows, at each validation, that training ends with this epoch."""

    def __init__(self):
        self.at = []

    def on_validation_start(self, trainer, pl_module):
        self.at.append((trainer.current_epoch + 1, trainer.global_step, ends_training(trainer)))


@pytest.mark.parametrize(
    ("ends", "looks"),
    [
        ({"max_steps": 20}, [(3, 15, False), (4, 20, True)]),
        ({"max_steps": 17}, [(3, 15, False)]),
        ({"max_steps": 17, "val_check_interval": 2}, [(3, 12, False), (3, 14, False), (4, 17, True)]),
        ({"max_time": {"milliseconds": 1}}, [(1, 1, True)]),
    ],
)
def test_the_last_epoch_is_validated_and_looked_at_where_its_end_is_known(ends, looks, tmp_path):
    probe, known, data = WeightDistance(every="last"), Known(), Signs(train_samples=40, test_samples=10, batch_size=8)
    _, trainer = fitted(tmp_path, data, 8, [probe, known], {"check_val_every_n_epoch": 3, **ends})
    assert trainer.check_val_every_n_epoch == 3
    assert known.at == looks
    assert {reading.epoch for reading in probe.readings} == {epoch for epoch, _, last in looks if last}


def test_a_goal_that_is_reached_at_the_cap_is_named(tmp_path):
    record = RunRecord(tmp_path, {}, {})
    fitted(tmp_path, epochs=2, goals={"train_acc": 0.0, "every": 2}, callbacks=[record])
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "stopped: training accuracy reached 0.0"


def test_goals_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(UserError, match="every 1 or more epochs"):
        Goals(every=0)
    data = Numbers(train_samples=10, test_samples=10, batch_size=5)
    with pytest.raises(UserError, match="no accuracy"):
        fitted(tmp_path, data, loss="mse", goals={"train_acc": 1.0})
    _, trainer = fitted(tmp_path, data, loss="mse", goals={"train_loss": 100.0})
    assert stopped_by(trainer) == "training loss reached 100.0"


def test_the_summary_and_a_checkpoint_have_the_epoch_of_best_training_accuracy(tmp_path):
    best = ModelCheckpoint(tmp_path, "{epoch}", monitor="train/acc", mode="max", save_on_train_epoch_end=True)
    record = RunRecord(tmp_path, {}, {})
    fitted(tmp_path, epochs=6, callbacks=[best, record], optimizer=lambda p: torch.optim.SGD(p, lr=0.3))
    rows = record.metrics.rows()
    accuracies = [float(row["train/acc"]) for row in rows]
    chosen = json.loads((tmp_path / "summary.json").read_text())["at_best_train"]
    assert chosen["epoch"] == accuracies.index(max(accuracies)) + 1
    assert chosen["val/acc"] == float(rows[chosen["epoch"] - 1]["val/acc"])
    assert torch.load(best.best_model_path, weights_only=True)["epoch"] + 1 == chosen["epoch"]


# --- several steps at once ------------------------------------------------------------------------------------------


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def lbfgs(parameters):
    return torch.optim.LBFGS(parameters, lr=0.1, max_iter=3)


@pytest.mark.parametrize(
    ("steps", "optimizer", "precision"),
    [(2, momentum, "32-true"), (3, momentum, "bf16-mixed"), (50, momentum, "32-true"), (3, lbfgs, "32-true")],
)
def test_several_steps_at_once_are_the_steps_one_by_one(steps, optimizer, precision, tmp_path):
    found = []
    for steps_at_once in (1, steps):
        data = Signs(train_samples=38, test_samples=10, batch_size=5, seed=1)  # 8 batches, the last of them smaller
        model, trainer = fitted(
            tmp_path, data, steps_at_once=steps_at_once, trainer={"precision": precision},
            optimizer=optimizer, lr_scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5),
            regularisers=[{"kind": "nuclear", "coefficient": 0.01}],
        )  # fmt: skip
        state = trainer.optimizers[0].state_dict()["state"]
        found.append((model.state_dict(), state, trainer.global_step, trainer.optimizers[0].param_groups[0]["lr"]))
        found[-1] += ({key: float(value) for key, value in trainer.callback_metrics.items()},)
    (ones, one_state, *one), (many, state, *several) = found
    assert one[:2] == several[:2]
    assert one[0] == 3 * 8
    assert one[2] == pytest.approx(several[2], rel=1e-12)
    assert {"train/loss", "train/acc", "train/penalty", "val/loss"} <= one[2].keys()
    torch.testing.assert_close(many, ones, rtol=0, atol=0)
    torch.testing.assert_close(state, one_state, rtol=0, atol=0)


def test_a_group_is_what_lightning_counts(tmp_path):
    seen = []

    class Sees(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append((batch_idx, len(batch[0]), trainer.global_step))

    data = Signs(train_samples=38, test_samples=10, batch_size=5, seed=1)
    fitted(tmp_path, data, epochs=1, callbacks=[Sees()], steps_at_once=3)
    assert seen == [(0, 15, 3), (1, 15, 6), (2, 8, 8)]


@pytest.mark.parametrize(
    ("trainer", "said"),
    [
        ({"gradient_clip_val": 1.0}, "steps_at_once=2 needs no gradient clipping"),
        ({"accumulate_grad_batches": 2}, "steps_at_once=2 needs accumulate_grad_batches=1"),
    ],
)
def test_what_several_steps_at_once_cannot_do_is_refused(trainer, said, tmp_path):
    with pytest.raises(UserError, match=said):
        fitted(tmp_path, trainer=trainer, steps_at_once=2)


def test_several_steps_at_once_would_pass_by_a_training_step_of_ones_own(tmp_path):
    class Own(Small):
        def training_step(self, batch, batch_idx):
            return 2 * super().training_step(batch, batch_idx)

    data = Signs(train_samples=40, test_samples=10, batch_size=20)
    with pytest.raises(UserError, match="steps_at_once=2 needs a family without a training_step of its own"):
        Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False).fit(
            Own(seed=1, steps_at_once=2), datamodule=data
        )


def test_several_steps_at_once_need_data_that_serve_them(tmp_path):
    class Foreign(Signs):
        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*self.split("train")), 20)

    with pytest.raises(UserError, match="steps_at_once=2 needs data of lightning_depth"):
        fitted(tmp_path, Foreign(train_samples=40, test_samples=10, batch_size=20), steps_at_once=2)
    with pytest.raises(UserError, match="steps_at_once must be at least 1"):
        Small(steps_at_once=0)
