"""What every model shares: the shapes of its data, a seed, and metrics that are means over all samples of a split."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_depth.errors import UserError
from lightning_depth.models.losses import LossName, SampleMean, correct, sample_losses
from lightning_depth.models.shapes import Shapes
from lightning_depth.results import Split

SPLITS: tuple[Split, ...] = ("train", "val", "test")


class AbstractModel(LightningModule, ABC):
    """A function from inputs to outputs that is fitted, validated and tested; how it is fitted is left open.

    A subclass implements `prepare`, `forward` and `training_step`. A model without a gradient (a regression that is
    solved) sets `automatic_optimization = False` and leaves `configure_optimizers` out; what it has found it keeps in
    buffers, which checkpoints hold. Networks that are trained by a gradient are `AbstractFamily`s.

    The targets are classes (int64, one a sample), or numbers of any shape, which the model is to return. Logs
    `{train,val,test}/loss`, and `acc` where there are classes, once an epoch: means over all samples that were given to
    `count`, right under DDP. Validation, test and prediction are done here, training samples are counted by
    `training_step`.

    Args:
        loss: what is logged and, by a family, minimised: `mse` (to the targets, one-hot for classes; mean over the
            outputs) or `cross_entropy`.
        input_shape: (channels, height, width) of one image, or the shape of any other input; None: the data's.
        num_classes: None: the data's.
        target_shape: shape of one target where targets are numbers; None: the data's, if they have any.
        seed: of everything that is drawn; None: the run's, which `use_run_seed` gives: 0 where nobody calls it.
            Nothing is read from the environment, so `seed_everything` alone changes no weights.
    """

    run_seed: int = 0

    def __init__(
        self,
        loss: LossName = "mse",
        input_shape: Sequence[int] | None = None,
        num_classes: int | None = None,
        target_shape: Sequence[int] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.loss: LossName = loss
        self.input_shape = None if input_shape is None else tuple(input_shape)
        self.num_classes = num_classes
        self.target_shape = None if target_shape is None else tuple(target_shape)
        self.seed = seed
        self._shapes: Shapes | None = None

    @abstractmethod
    def prepare(self, shapes: Shapes) -> None:
        """Make what depends on the shapes of the data; called once, when they are known."""

    def configure_optimizers(self) -> Any:
        """No optimizer, unless a subclass has one."""
        return None

    def use_run_seed(self, seed: int) -> None:
        """Take the run's seed, before the data are known."""
        self.run_seed = seed

    @property
    def effective_seed(self) -> int:
        """The model's own seed, or the run's."""
        return self.run_seed if self.seed is None else self.seed

    @property
    def shapes(self) -> Shapes:
        """Shapes of one sample, once the data are known."""
        assert self._shapes is not None, "configure_model() finds the shapes"
        return self._shapes

    @torch.inference_mode(False)
    @torch.enable_grad()
    def configure_model(self) -> None:
        """Find the shapes, and make what depends on them (Lightning calls this after the data module's `setup`)."""
        if self._shapes is not None:
            return
        self._shapes = shapes = self._find_shapes()
        self.input_shape, self.num_classes, self.target_shape = shapes.input, shapes.classes, shapes.target
        # A checkpoint is enough to make the model again.
        found = {"input_shape": shapes.input, "num_classes": shapes.classes, "target_shape": shapes.target}
        self.hparams.update({name: _plain(value) for name, value in found.items()}, seed=self.effective_seed)
        for split in SPLITS:
            self.add_module(f"{split}_metrics", self.new_metrics())
        self.prepare(shapes)

    def _find_shapes(self) -> Shapes:
        inputs = self._from_data("input_shape", self.input_shape)
        target = self._from_data("target_shape", self.target_shape, needed=False)
        if target is None:
            return Shapes(tuple(inputs), int(self._from_data("num_classes", self.num_classes)))
        if self.loss != "mse":
            raise UserError(f"The targets are numbers of shape {tuple(target)}: the loss must be mse.")
        return Shapes(tuple(inputs), target=tuple(target))

    def _from_data(self, name: str, given: Any, needed: bool = True) -> Any:
        """What the data say, where they say it; a different value given by hand is a mistake."""
        found = getattr(getattr(self._trainer, "datamodule", None), name, None)
        if found is None and given is None and needed:
            raise UserError(f"{type(self).__name__} needs {name}: the data module does not say it (`{name}`).")
        if found is not None and given is not None and _plain(found) != _plain(given):
            given, found = _plain(given), _plain(found)
            raise UserError(f"{type(self).__name__} was given {name}={given}, but the data have {found}.")
        return given if found is None else found

    def new_metrics(self) -> nn.ModuleDict:
        """A mean for everything that `sample_metrics` gives."""
        keys = ("loss", "acc") if self.shapes.target is None else ("loss",)
        return nn.ModuleDict({key: SampleMean() for key in keys})

    def sample_metrics(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Of each sample what is averaged, (*replicas, n): its loss, and whether its class is right."""
        inputs, targets = batch
        outputs = self(inputs)
        found = {"loss": sample_losses(self.loss, outputs, targets, self.shapes)}
        if self.shapes.target is None:
            found["acc"] = correct(outputs.detach(), targets, self.shapes)
        return found

    def count(self, split: Split, *seen: Mapping[str, Tensor]) -> None:
        """Add samples to the means of a split: what `sample_metrics` gave of a batch, or of several."""
        for key, metric in self._means(split).items():
            metric.update(torch.cat([values[key].detach().double() for values in seen], dim=-1))

    def running_metrics(self, split: Split) -> dict[str, Tensor]:
        """The means over all samples that have been counted since the epoch began, (*replicas,) each."""
        return {key: metric.mean() for key, metric in self._means(split).items()}

    # They are computed here rather than by `self.log(name, metric)`: an epoch that is resumed after its last step would
    # otherwise log nothing.
    def _finish(self, split: Split) -> None:
        values = {f"{split}/{key}": value for key, value in self.running_metrics(split).items() if value.dim() == 0}
        self._reset(split)
        # Equal on all ranks already; Lightning wants to be told. It would weigh, and round, by the size of a batch.
        self.log_dict(values, sync_dist=True, batch_size=1)

    def _reset(self, split: Split) -> None:
        for metric in self._means(split).values():
            metric.reset()

    def _means(self, split: Split) -> dict[str, SampleMean]:
        metrics = self.get_submodule(f"{split}_metrics")
        return {name: metric for name, metric in metrics.named_children() if isinstance(metric, SampleMean)}

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        self.count("val", self.sample_metrics(batch))

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        self.count("test", self.sample_metrics(batch))

    def predict_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """The outputs, (n, ...)."""
        outputs: Tensor = self(batch[0])
        return outputs

    def on_train_epoch_end(self) -> None:
        self._finish("train")

    def on_validation_epoch_start(self) -> None:
        self._reset("val")

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    # A checkpoint in the middle of an epoch carries the epoch's sums so far, each rank's own.
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        mine = {key: metric.snapshot() for key, metric in self._means("train").items()}
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
            for key, metric in self._means("train").items():
                metric.restore(mine[key])


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value
