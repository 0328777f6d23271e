"""The recipe that every family of networks shares; a family adds its network and nothing else."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from lightning_depth.errors import UserError
from lightning_depth.layers.convolutions import guarded, subsamples
from lightning_depth.layers.expansion import Expansion, expand
from lightning_depth.models.losses import LossName, sample_losses
from lightning_depth.models.regularisers import LowRank, Regulariser, regularisation, truncate
from lightning_depth.optimisers.derivative_free import AbstractDerivativeFree
from lightning_depth.optimisers.random_search import RandomSearch
from lightning_depth.seeds import derive, run_seed

SPLITS = ("train", "val", "test")


class Mean64(MeanMetric):
    """A mean whose sums are in float64: over 50,000 samples it is exact to all the digits that anyone prints."""

    @property
    def dtype(self) -> torch.dtype:
        """float64: `set_dtype` alone is forgotten when the metric moves to its device."""
        return torch.float64


def yang2020_sgd(parameters: Any) -> torch.optim.Optimizer:
    """SGD with learning rate 0.1 and momentum 0.9, as nichani2020 App. C takes it from Yang et al. 2020."""
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


class AbstractFamily(LightningModule, ABC):
    """A family of networks that are trained, validated and tested by one recipe.

    A family subclasses it, passes `**recipe` on, calls `save_hyperparameters()` and implements `build`. The network is
    a pure function of the family's arguments, the shape of the data and the seed: it is built when the data are known,
    under a generator of its own.

    The targets are classes (int64, one a sample), or numbers of any shape (`target_shape` in the data module), which
    the network is to return: regression, or images for an autoencoder. Logs `{train,val,test}/loss`, and `acc` where
    there are classes, once an epoch: means over all samples of the split, right under DDP. The training ones are those
    of the epoch as it went by: in train mode, on augmented images, before each step.

    Args:
        loss: `mse` (to the targets, one-hot for classes; mean over the outputs) or `cross_entropy`.
        optimizer: made from the parameters that are trained; default SGD, lr 0.1, momentum 0.9. One that calls for the
            loss several times a step (L-BFGS, and those of `lightning_depth.optimisers`) wants all data in one batch.
        lr_scheduler: made from the optimizer, stepped once an epoch; None for a constant rate.
        stop_at_train_acc: stop once the training accuracy of an epoch is at least this (1.0: every sample right).
        stop_at_train_loss: stop once the training loss of an epoch, without penalties, is at most this.
        check_every: check the goals above every so many epochs only (mori2020 3: 50).
        steps_at_once: optimizer steps that Lightning sees as one, on as many batches: for networks whose step takes a
            millisecond or less, where Lightning's own work would be most of the time. The weights are the same, bit
            for bit (but for networks that draw random numbers). What counts batches, such as `limit_train_batches`,
            `max_steps` and the hooks of callbacks, then counts lots of them.
        regularisers: penalties that are added to the training loss (huh2021 Table 3), such as
            `[{kind: nuclear, coefficient: 1.0e-4, weights: ["conv*"]}]`; see `Regulariser`. Their sum is logged as
            `train/penalty`.
        low_rank: start with weights of low rank (huh2021 Table 3), such as `{rank: 5}`; see `LowRank`.
        expansion: make each layer a product of several (huh2021 App. B), such as `{factor: 4, which: [conv]}`; see
            `lightning_depth.layers.expansion.expand`.
        input_shape: (channels, height, width) of one image, or the shape of any other input; None: the data's.
        num_classes: None: the data's.
        target_shape: shape of one target where targets are numbers; None: the data's, if they have any.
        channels_last: keep images and convolutions' weights in channels-last memory order: faster, and nothing else
            changes.
        seed: of the initial weights; None: that of `seed_everything`.
    """

    def __init__(
        self,
        loss: LossName = "mse",
        optimizer: OptimizerCallable = yang2020_sgd,
        lr_scheduler: LRSchedulerCallable | None = None,
        stop_at_train_acc: float | None = None,
        stop_at_train_loss: float | None = None,
        check_every: int = 1,
        steps_at_once: int = 1,
        regularisers: list[Regulariser] | None = None,
        low_rank: LowRank | None = None,
        expansion: Expansion | None = None,
        input_shape: Sequence[int] | None = None,
        num_classes: int | None = None,
        target_shape: Sequence[int] | None = None,
        channels_last: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.loss: LossName = loss
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        if check_every < 1:
            raise UserError(f"check_every must be at least 1 epoch, not {check_every}.")
        if steps_at_once < 1:
            raise UserError(f"steps_at_once must be at least 1, not {steps_at_once}.")
        self.stop_at_train_acc = stop_at_train_acc
        self.stop_at_train_loss = stop_at_train_loss
        self.check_every = check_every
        self.steps_at_once = steps_at_once
        self.stopped_by: str | None = None
        self.regularisers = list(regularisers or [])
        self.low_rank = low_rank
        self.expansion = expansion
        self._counted = False
        self._lot: list[tuple[Tensor, Tensor]] = []
        self._uncounted: list[dict[str, Tensor]] = []
        self.input_shape = None if input_shape is None else tuple(input_shape)
        self.num_classes = num_classes
        self.target_shape = None if target_shape is None else tuple(target_shape)
        self.channels_last = channels_last
        self.seed = seed
        self.net: nn.Module | None = None

    @abstractmethod
    def build(self, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
        """The network, from (n, *input_shape) to (n, num_outputs). Weights are drawn from torch's global generator.

        There is an output for each class, or for each entry of a target; outputs may have the targets' shape instead.
        """

    def configure_model(self) -> None:
        """Build the network once its data are known (Lightning calls this after the data module's `setup`)."""
        if self.net is not None:
            return
        self.input_shape = tuple(self._from_data("input_shape", self.input_shape))
        self.target_shape = self._from_data("target_shape", self.target_shape, needed=False)
        if self.target_shape is None:
            self.num_classes = int(self._from_data("num_classes", self.num_classes))
        elif self.loss != "mse":
            raise UserError(f"The targets are numbers of shape {tuple(self.target_shape)}: the loss must be mse.")
        elif self.stop_at_train_acc is not None:
            raise UserError("The targets are numbers, which have no accuracy: stop_at_train_loss instead of _acc.")
        self.hparams.update(
            input_shape=list(self.input_shape),
            num_classes=self.num_classes,
            target_shape=None if self.target_shape is None else list(self.target_shape),
        )
        net = self._drawn()
        regularisation(net, self.regularisers)  # what is wrong with them shows before training
        wanted = self.channels_last and any(isinstance(m, nn.Conv2d) for m in net.modules())
        self.layout = torch.channels_last if wanted else torch.contiguous_format
        self.net = net.to(memory_format=self.layout)
        keys = ("loss", "acc") if self.target_shape is None else ("loss",)
        for split in SPLITS:
            penalty = ("penalty",) if split == "train" and self.regularisers else ()
            self.add_module(f"{split}_metrics", _split_metrics((*keys, *penalty)))

    def _drawn(self, *stream: str | int) -> nn.Module:
        outputs = self.num_classes if self.target_shape is None else math.prod(self.target_shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(run_seed(self.seed), "weights", *stream))
            net = self.build(tuple(self.input_shape or ()), outputs or 0)
            if self.low_rank is not None:
                truncate(net, self.low_rank["rank"], self.low_rank.get("weights"))
            return net if self.expansion is None else expand(net, **self.expansion)

    def initial_state(self) -> dict[str, Tensor]:
        """The parameters before training, by name: drawn again from the seed, on the CPU."""
        assert self.net is not None, "configure_model() builds the network"
        return {f"net.{name}": parameter.detach() for name, parameter in self._drawn().named_parameters()}

    def _from_data(self, name: str, given: Any, needed: bool = True) -> Any:
        """What the data say, where they say it; a different value given by hand is a mistake."""
        found = getattr(getattr(self._trainer, "datamodule", None), name, None)
        if found is None and given is None and needed:
            raise UserError(f"{type(self).__name__} needs {name}: the data module does not say it (`{name}`).")
        if found is not None and given is not None and _plain(found) != _plain(given):
            raise UserError(
                f"{type(self).__name__} was given {name}={_plain(given)}, but the data have {_plain(found)}."
            )
        return given if found is None else found

    @subsamples
    def forward(self, x: Tensor) -> Tensor:
        assert self.net is not None, "configure_model() builds the network"
        with guarded(self.device):
            outputs: Tensor = self.net(x.contiguous(memory_format=self.layout) if x.dim() == 4 else x)
        return outputs

    def _losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Of each sample, what is averaged: its loss, and whether its class is right."""
        x, targets = batch
        outputs = self(x)
        losses = {"loss": sample_losses(self.loss, outputs, targets)}
        if self.target_shape is None:
            losses["acc"] = outputs.detach().argmax(dim=-1) == targets
        return losses

    def _count(self, split: str, *seen: Mapping[str, Tensor]) -> None:
        for key, metric in self._metrics(split).items():
            metric.update(torch.cat([values[key].detach().reshape(-1).double() for values in seen]))

    def on_train_start(self) -> None:
        self._check_steps_at_once()
        optimizer = self.trainer.optimizers[0]
        if isinstance(optimizer, torch.optim.LBFGS | AbstractDerivativeFree):
            name = type(optimizer).__name__
            if self.trainer.world_size > 1:
                raise UserError(f"{name} compares losses, and each process would see its own: train in one process.")
            batches = self.trainer.num_training_batches
            if self.steps_at_once > 1:  # Lightning counts lots
                loader: Any = self.trainer.train_dataloader
                batches = -(-len(loader.sampler) // loader.batch_size)
            if batches > 1:
                rank_zero_warn(
                    f"{name} compares losses, and those of different batches are no match: the "
                    f"{batches} batches of an epoch should be one (data.batch_size)."
                )

    def _check_steps_at_once(self) -> None:
        trainer = self.trainer
        refused = {
            "one process": trainer.world_size > 1,
            "no gradient clipping": bool(trainer.gradient_clip_val),
            "accumulate_grad_batches=1": trainer.accumulate_grad_batches > 1,
            "a precision that does not scale losses": getattr(trainer.precision_plugin, "scaler", None) is not None,
            "a family without a training_step of its own": type(self).training_step is not AbstractFamily.training_step,
            "data of lightning_depth": getattr(trainer.train_dataloader, "at_once", 1) != self.steps_at_once,
        }
        if self.steps_at_once > 1 and any(refused.values()):
            wanted = ", ".join(what for what, missing in refused.items() if missing)
            raise UserError(f"steps_at_once={self.steps_at_once} needs {wanted}.")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._counted, self._uncounted, self._lot = False, [], []
        if self.steps_at_once > 1:
            size = self.trainer.train_dataloader.batch_size  # type: ignore[union-attr]  # checked at the start
            self._lot = list(zip(*(tensor.split(size) for tensor in batch), strict=True))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss, seen = self._objective(self._lot[-1] if self._lot else batch)
        # L-BFGS and its like come several times a step, at weights that they only try: the first time counts.
        if not self._counted:
            self._counted = True
            self._count("train", *self._uncounted, seen)
        return loss

    def _objective(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimised, and what is counted."""
        seen = self._losses(batch)
        loss = seen["loss"].mean(dim=-1)
        if self.regularisers:
            assert self.net is not None
            seen["penalty"] = regularisation(self.net, self.regularisers)
            loss = loss + seen["penalty"]
        return loss, seen

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Take the steps of a lot of batches: the last as Lightning does, those before it without its hooks."""
        if self._lot:
            for part in self._lot[:-1]:
                self._step(part, optimizer.optimizer)
            # These count too: for max_steps, loggers and random numbers.
            progress = self.trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step
            for count in (progress.total, progress.current):
                count.ready += len(self._lot) - 1
                count.completed += len(self._lot) - 1
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def _step(self, batch: tuple[Tensor, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """A step that Lightning does not see: what it would do between closure and step is most of a small one."""
        first: list[dict[str, Tensor]] = []

        def closure() -> Tensor:
            optimizer.zero_grad()
            with self.trainer.precision_plugin.train_step_context():
                loss, seen = self._objective(batch)
            first.append(seen)
            self.backward(loss)
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]  # torch takes a tensor as well
        self._uncounted.append({key: values.detach() for key, values in first[0].items()})

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if loss.requires_grad:  # an optimizer that evaluates candidates wants no gradient
            with guarded(self.device):  # a network that checkpoints its activations runs again
                super().backward(loss, *args, **kwargs)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._count("val", self._losses(batch))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._count("test", self._losses(batch))

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The outputs, (n, num_classes)."""
        outputs: Tensor = self(batch[0])
        return outputs

    # The metrics are computed here rather than by `self.log(name, metric)`: an epoch that is resumed after its last
    # step would otherwise log nothing.
    def _finish(self, split: str) -> dict[str, float]:
        values = {f"{split}/{key}": metric.compute() for key, metric in self._metrics(split).items()}
        for metric in self._metrics(split).values():
            metric.reset()
        # Equal on all ranks already; Lightning wants to be told. It would weigh, and round, by the size of a batch.
        self.log_dict(values, sync_dist=True, batch_size=1)
        return {key.split("/")[1]: float(value) for key, value in values.items()}

    def on_train_epoch_end(self) -> None:
        self._stop_at(self._goal(self._finish("train")))

    def on_validation_epoch_start(self) -> None:
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking and self.trainer.is_last_batch:
            self._stop_at(self._goal_reached())  # so that probes know their last look
        for metric in self._metrics("val").values():
            metric.reset()

    def _stop_at(self, goal: str | None) -> None:
        if goal is not None:
            self.trainer.should_stop, self.stopped_by = True, goal

    def _goal(self, values: Mapping[str, float]) -> str | None:
        """The goal that the training values of this epoch reach, if this epoch is one to check it."""
        if (self.current_epoch + 1) % self.check_every:
            return None
        if self.stop_at_train_acc is not None and values["acc"] >= self.stop_at_train_acc:
            return f"training accuracy reached {self.stop_at_train_acc}"
        if self.stop_at_train_loss is not None and values["loss"] <= self.stop_at_train_loss:
            return f"training loss reached {self.stop_at_train_loss}"
        return None

    def _goal_reached(self) -> str | None:
        """The goal that the epoch reaches whose last step was taken."""
        if self.stop_at_train_acc is None and self.stop_at_train_loss is None:
            return None
        return self._goal({key: float(metric.compute()) for key, metric in self._metrics("train").items()})

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer = self.trainer
        if trainer.check_val_every_n_epoch in (None, 1) or not trainer.is_last_batch:
            return
        if self.current_epoch + 1 == trainer.max_epochs or self._goal_reached() is not None:
            trainer.check_val_every_n_epoch = 1  # the last epoch is validated, whichever it is

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def configure_optimizers(self) -> Any:
        try:
            optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        except ValueError as error:  # a negative learning rate, say
            raise UserError(f"The optimizer refuses its settings: {error}.") from error
        if isinstance(optimizer, RandomSearch):
            optimizer.draw = self._drawn_again
        if self.lr_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "epoch"},
        }

    def _drawn_again(self, number: int) -> list[Tensor]:
        return [p.detach() for p in self._drawn("search", number).parameters() if p.requires_grad]

    # A checkpoint in the middle of an epoch carries the epoch's sums so far, each rank's own.
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        mine = {key: _metric_state(metric) for key, metric in self._metrics("train").items()}
        everyone: list[Any] = [mine]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            everyone = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everyone, mine)
        checkpoint["train_metrics"] = everyone
        # A checkpoint loads without unpickling functions: a recipe's callables given from Python stay out of it.
        arguments = checkpoint["hyper_parameters"]
        checkpoint["hyper_parameters"] = type(arguments)({k: v for k, v in arguments.items() if not callable(v)})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        everyone = checkpoint.get("train_metrics", [])
        if len(everyone) == (self.trainer.world_size if self._trainer else 1):
            mine = everyone[self.global_rank if self._trainer else 0]
            for key, metric in self._metrics("train").items():
                _set_metric_state(metric, mine[key])

    def _metrics(self, split: str) -> dict[str, Metric]:
        metrics = self.get_submodule(f"{split}_metrics")
        return {name: metric for name, metric in metrics.named_children() if isinstance(metric, Metric)}


def _split_metrics(keys: Sequence[str]) -> nn.ModuleDict:
    # FiniteLoss looks after losses that are not numbers.
    return nn.ModuleDict({key: Mean64(nan_strategy="disable").set_dtype(torch.float64) for key in keys})


def _metric_state(metric: Metric) -> dict[str, Any]:
    states = {name: getattr(metric, name).detach().cpu().clone() for name in metric._defaults}
    return {"updates": metric._update_count, "states": states}


def _set_metric_state(metric: Metric, state: dict[str, Any]) -> None:
    metric._update_count = state["updates"]
    for name, value in state["states"].items():
        setattr(metric, name, value.to(metric.device))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value
