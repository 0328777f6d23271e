"""The recipe by which every family of networks is trained; a family adds its network and nothing else."""

from abc import abstractmethod
from collections.abc import Sequence
from threading import RLock
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_depth.data.base.memory import AbstractMemoryData
from lightning_depth.errors import UserError
from lightning_depth.layers.convolutions import guarded, subsamples
from lightning_depth.layers.expansion import Expansion, expand
from lightning_depth.models import steps_at_once as several
from lightning_depth.models.base import AbstractModel
from lightning_depth.models.losses import SampleMean
from lightning_depth.models.regularisers import LowRank, Regulariser, regularisation, truncate
from lightning_depth.models.shapes import Shapes
from lightning_depth.optimisers.derivative_free import AbstractDerivativeFree, Redraws
from lightning_depth.seeds import derive

_DRAWING = RLock()  # torch's global generator and default dtype are the whole process's


def yang2020_sgd(parameters: Any) -> torch.optim.Optimizer:
    """SGD with learning rate 0.1 and momentum 0.9, as nichani2020 App. C takes it from Yang et al. 2020."""
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


class AbstractFamily(AbstractModel):
    """A family of networks that are trained by gradients (or by another optimizer), by one recipe.

    A family subclasses it, passes `**recipe` on, calls `save_hyperparameters()` and implements `build`. The network is
    a pure function of the family's arguments, the shapes of the data and a seed: see `draw`.

    The training metrics are those of the epoch as it went by: in train mode, on augmented images, before each step.

    Args:
        optimizer: made from the parameters that are trained; default SGD, lr 0.1, momentum 0.9. One that calls for the
            loss several times a step (L-BFGS, and those of `lightning_depth.optimisers`) wants all data in one batch.
        lr_scheduler: made from the optimizer, stepped once an epoch; None for a constant rate.
        steps_at_once: optimizer steps that Lightning sees as one, on as many batches: for networks whose step takes a
            millisecond or less, where Lightning's own work would be most of the time. The weights are the same, bit
            for bit (but for networks that draw random numbers). What counts batches, such as `limit_train_batches`,
            `max_steps` and the hooks of callbacks, then counts groups of them.
        regularisers: penalties that are added to the training loss (huh2021 Table 3), such as
            `[{kind: nuclear, coefficient: 1.0e-4, weights: ["conv*"]}]`; see `Regulariser`. Their sum is logged as
            `train/penalty`.
        low_rank: start with weights of low rank (huh2021 Table 3), such as `{rank: 5}`; see `LowRank`.
        expansion: make each layer a product of several (huh2021 App. B), such as `{factor: 4, which: [conv]}`; see
            `lightning_depth.layers.expansion.expand`.
        channels_last: keep images and convolutions' weights in channels-last memory order: faster, and nothing else
            changes.
        **model: see `AbstractModel`.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable = yang2020_sgd,
        lr_scheduler: LRSchedulerCallable | None = None,
        steps_at_once: int = 1,
        regularisers: list[Regulariser] | None = None,
        low_rank: LowRank | None = None,
        expansion: Expansion | None = None,
        channels_last: bool = True,
        **model: Any,
    ) -> None:
        super().__init__(**model)
        if steps_at_once < 1:
            raise UserError(f"steps_at_once must be at least 1, not {steps_at_once}.")
        self.optimizer, self.lr_scheduler, self.steps_at_once = optimizer, lr_scheduler, steps_at_once
        self.regularisers = list(regularisers or [])
        self.low_rank, self.expansion, self.channels_last = low_rank, expansion, channels_last
        self._counted = False
        self._group: list[Sequence[Tensor]] = []
        self._uncounted: list[dict[str, Tensor]] = []
        self.net: nn.Module | None = None

    @abstractmethod
    def build(self, shapes: Shapes) -> nn.Module:
        """The network, from (n, *shapes.input) to (n, shapes.outputs), or to (n, *shapes.target).

        A function of the family's arguments and `shapes` alone. Weights are drawn from torch's global generator, which
        `draw` seeds.
        """

    @torch.inference_mode(False)
    @torch.enable_grad()
    def draw(self, seed: int, shapes: Shapes, *stream: str | int) -> nn.Module:
        """The network with its initial weights, of low rank and expanded where that is asked for.

        The same arguments give the same network, in any process and thread and any number of times: it is drawn in
        float32 on the CPU, one at a time, and torch's global generator is put back. It can be trained, also where it is
        drawn inside `torch.inference_mode()`.

        Args:
            seed: of the weights.
            shapes: of one sample.
            *stream: names another, independent network of the same seed, such as `"search", 3`.
        """
        with _DRAWING, torch.random.fork_rng(devices=[]), torch.device("cpu"):
            default = torch.get_default_dtype()
            torch.default_generator.manual_seed(derive(seed, "weights", *stream))
            torch.set_default_dtype(torch.float32)
            try:
                net = self.build(shapes)
                if self.low_rank is not None:
                    truncate(net, self.low_rank["rank"], self.low_rank.get("weights"))
                return net if self.expansion is None else expand(net, **self.expansion)
            finally:
                torch.set_default_dtype(default)

    def prepare(self, shapes: Shapes) -> None:
        net = self.draw(self.effective_seed, shapes)
        regularisation(net, self.regularisers)  # what is wrong with them shows before training
        wanted = self.channels_last and any(isinstance(m, nn.Conv2d) for m in net.modules())
        self.layout = torch.channels_last if wanted else torch.contiguous_format
        self.net = net.to(memory_format=self.layout)
        if self.regularisers:
            self.get_submodule("train_metrics").add_module("penalty", SampleMean())

    def initial_state(self) -> dict[str, Tensor]:
        """The parameters before training, by name: drawn again from the seed, on the CPU."""
        net = self.draw(self.effective_seed, self.shapes)
        return {f"net.{name}": parameter.detach() for name, parameter in net.named_parameters()}

    @subsamples
    def forward(self, x: Tensor) -> Tensor:
        assert self.net is not None, "configure_model() makes the network"
        with guarded(self.device):
            outputs: Tensor = self.net(x.contiguous(memory_format=self.layout) if x.dim() == 4 else x)
        return outputs

    def setup(self, stage: str) -> None:
        """Ask the data for several batches at once."""
        self._ask_for(self.steps_at_once)

    def teardown(self, stage: str) -> None:
        """Leave the data as they were."""
        self._ask_for(1)

    def _ask_for(self, batches: int) -> None:
        data = getattr(self._trainer, "datamodule", None)
        if isinstance(data, AbstractMemoryData):
            data.batches_at_once = batches

    def on_train_start(self) -> None:
        own_step = type(self).training_step is not AbstractFamily.training_step
        several.check(self.trainer, self.steps_at_once, own_step)
        optimizer = self.trainer.optimizers[0]
        if isinstance(optimizer, torch.optim.LBFGS | AbstractDerivativeFree):
            name = type(optimizer).__name__
            if self.trainer.world_size > 1:
                raise UserError(f"{name} compares losses, and each process would see its own: train in one process.")
            batches = several.batches_an_epoch(self.trainer, self.steps_at_once)
            if batches > 1:
                wish = f"the {batches} batches of an epoch should be one (data.batch_size)"
                rank_zero_warn(f"{name} compares losses, and those of different batches are no match: {wish}.")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._counted, self._uncounted = False, []
        self._group = several.divided(self.trainer, batch) if self.steps_at_once > 1 else []

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        loss, seen = self._objective(self._group[-1] if self._group else batch)
        # L-BFGS and its like come several times a step, at weights that they only try: the first time counts.
        if not self._counted:
            self._counted = True
            self.count("train", *self._uncounted, seen)
        return loss

    def _objective(self, batch: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimised, and what is counted."""
        seen = self.sample_metrics(batch)
        loss = seen["loss"].mean(dim=-1)
        if self.regularisers:
            assert self.net is not None
            penalty = regularisation(self.net, self.regularisers)
            loss, seen["penalty"] = loss + penalty, penalty.unsqueeze(-1)  # one a step
        return loss, seen

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Take the steps of a group of batches: the last as Lightning does, those before it without its hooks."""
        if self._group:
            for part in self._group[:-1]:
                self._uncounted.append(several.step(self, part, optimizer.optimizer, self._objective))
            several.advance(self.trainer, len(self._group) - 1)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if loss.requires_grad:  # an optimizer that evaluates candidates wants no gradient
            with guarded(self.device):  # a network that checkpoints its activations runs again
                super().backward(loss, *args, **kwargs)

    def configure_optimizers(self) -> Any:
        try:
            optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        except ValueError as error:  # a negative learning rate, say
            raise UserError(f"The optimizer refuses its settings: {error}.") from error
        if isinstance(optimizer, Redraws):
            optimizer.begin(self._redrawn, self.run_seed)
        if self.lr_scheduler is None:
            return optimizer
        return [optimizer], [{"scheduler": self.lr_scheduler(optimizer), "interval": "epoch"}]

    def _redrawn(self, number: int) -> list[Tensor]:
        """The trained parameters of another network of the family: number 1, 2, ..."""
        net = self.draw(self.effective_seed, self.shapes, "search", number)
        return [p.detach() for p in net.parameters() if p.requires_grad]
