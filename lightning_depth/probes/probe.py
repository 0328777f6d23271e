"""What a probe is: a callback that looks at a network every so often and leaves no trace."""

import inspect
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import DistributedSampler

from lightning_depth.errors import UserError
from lightning_depth.layers.convolutions import guarded, is_on, layers_at_risk
from lightning_depth.probes.calls import INPUT, Call, first_tensor, numbered, trace
from lightning_depth.probes.samples import Split, count_classes, sample_batches, unpack, whole_samples
from lightning_depth.probes.undisturbed import quiet, same_randomness, undisturbed

TRAIN_SAMPLES = 1000

Schedule = int | Literal["geometric", "last"]


class Reading(NamedTuple):
    """One number that a probe read: `layer` is empty where it is about the network or the probe itself."""

    epoch: int
    probe: str
    layer: str
    key: str
    value: float


class Picture(NamedTuple):
    """An array that says more than numbers do; its number of axes says how it is drawn.

    Attributes:
        layer: the layer that it is about, or empty.
        key: what it is.
        values: (k,), a spectrum or a profile; (m, n), a matrix; or (images, height, width), a row of images.
        names: of the entries of the first axis, or none.
    """

    layer: str
    key: str
    values: Tensor
    names: Sequence[str] = ()


class AbstractProbe(Callback, ABC):
    """Looks at any LightningModule during validation and yields readings; it disturbs nothing.

    A probe says which calls it wants to see (`select`), is shown them on the validation batches that run anyway
    (`observe`), and yields what it read (`measure`). Where `train_samples` is not 0 it is first shown that many
    un-augmented training samples, in one pass that all probes share. Weights, buffers, mode, gradients and random
    generators are as if it had never run. Each reading is logged as `<probe>/<layer>/<key>`, so that any logger shows
    it and any callback can monitor it; `readings` and `pictures` hold the last ones.

    Args:
        every: look after every so many epochs; `geometric`: after 1, 2, 4, 8, ... epochs; `last`: only after the last.
            The last epoch is always looked at.
        layers: shell patterns on module names, such as `["*.conv1", "head"]`; None: the probe's own choice.

    Raises:
        UserError: no module that ran has a name that matches `layers`.
    """

    train_samples: int = 0
    """How many training samples to be shown, a fixed random choice."""
    held_out_samples: int | None = None
    """How many validation samples to be shown, evenly spread over the split; None: all of them."""

    network: LightningModule
    """The network, from `select` to `measure`."""
    trainer: Trainer
    num_classes: int = 0

    def __init__(self, every: Schedule = 1, layers: list[str] | None = None) -> None:
        if every not in ("geometric", "last") and (isinstance(every, str) or every < 1):
            raise UserError(
                f"{type(self).__name__}: every must be a number of epochs, geometric or last, not {every!r}."
            )
        self.every = every
        self.layers = layers
        self.readings: list[Reading] = []
        self.pictures: list[Picture] = []
        self._pass: _Pass | None = None
        self._number = 1
        self._said: set[str] = set()

    @property
    def name(self) -> str:
        """The class name in snake case, as it stands in readings and logs; the second of a class ends in `_2`."""
        plain = re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()
        return plain if self._number == 1 else f"{plain}_{self._number}"

    @property
    def state_key(self) -> str:
        """Under which checkpoints hold the state of this probe: two of a class differ in it by their arguments."""
        arguments = [name for name in inspect.signature(type(self)).parameters if name in vars(self)]
        return f"{type(self).__qualname__}({', '.join(f'{name}={vars(self)[name]}' for name in arguments)})"

    @abstractmethod
    def select(self, calls: Sequence[Call]) -> Iterable[Call]:
        """The calls of a forward pass that this probe wants to see, from all of them in the order they ended.

        A pseudo-call named `input` with the batch itself comes first. Called before each look, so state can be reset.
        """

    # Not abstract: a probe that only reads weights needs none of these.
    def observe(
        self, split: Split, layer: str, inputs: Tensor, output: Tensor, targets: Tensor, num_classes: int
    ) -> None:
        """See a batch of a selected call: its input, output and the batch's targets, all with n rows.

        Integers (tokens, bytes) come as float64.
        """

    def between_splits(self) -> None:
        """Called after the training samples and before the held-out ones."""

    @abstractmethod
    def measure(self) -> Iterable[tuple[str, str, float]]:
        """Yield (layer, key, value); the first key of a layer is the one that pictures show."""

    def draw(self) -> Iterable[Picture]:
        """Yield arrays for pictures; called after `measure`."""
        return ()

    def is_due(self, epoch: int, last: bool) -> bool:
        """Whether to look after `epoch` finished epochs."""
        if last:
            return True
        if self.every == "geometric":
            return epoch > 0 and epoch & (epoch - 1) == 0
        return self.every != "last" and epoch % self.every == 0

    def watch(self, split: Split, samples: int | None) -> None:
        """Be shown samples of one split: `samples` of them; None: all held-out samples, or 1,000 training samples."""
        if samples is not None and samples < 1:
            raise UserError(f"{type(self).__name__}: samples must be at least 1, not {samples}.")
        if split == "train":
            self.train_samples, self.held_out_samples = samples or TRAIN_SAMPLES, 0
        else:
            self.train_samples, self.held_out_samples = 0, samples

    def say_once(self, message: str) -> None:
        """A warning on rank zero, once in the life of this probe."""
        if message not in self._said:
            self._said.add(message)
            rank_zero_warn(f"{type(self).__name__}: {message}")

    def chosen(self, calls: Sequence[Call], default: Callable[[Call], bool]) -> list[Call]:
        """The calls that the layer filter names, or those of `default` where there is none.

        Of the latter, modules that the network has and does not call are named in a warning.
        """
        called = {call.module for call in calls}
        idle = {name: m for name, m in self.network.named_modules() if name and m not in called}
        if self.layers is None:
            for name, module in idle.items():
                if default(Call(name, module, None, None)):
                    self.say_once(f"{name} ({type(module).__name__}) is never called as a module: no reading.")
            return [call for call in calls if default(call)]
        found = [call for call in calls if self.is_named(call.name) or self.is_named(call.name.split("#")[0])]
        if not found:
            never = [name for name in idle if self.is_named(name)]
            names = ", ".join(call.name for call in calls[:12])
            why = f"{', '.join(never[:3])} is never called" if never else f"the layers are {names}, …"
            raise UserError(f"{type(self).__name__}: no layer matches {self.layers}; {why}")
        return found

    def is_named(self, name: str) -> bool:
        """Whether the layer filter lets `name` pass."""
        return self.layers is None or any(fnmatchcase(name, pattern) for pattern in self.layers)

    def watched(self, calls: Sequence[Call], default: Callable[[Call], bool]) -> list[Call]:
        """As `chosen`, without the calls that do not map one row per sample to another, which a warning names."""
        found = []
        for call in self.chosen(calls, default):
            if call.per_sample:
                found.append(call)
            else:
                self.say_once(f"{call.name} ({type(call.module).__name__}) is left out: its rows are not the samples.")
        return found

    # --- when: the first probe of the trainer conducts one pass for all of them -------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        alike = [callback for callback in trainer.callbacks if type(callback) is type(self)]  # type: ignore[attr-defined]
        self._number = alike.index(self) + 1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._conducts(trainer):
            self._warn_of_wrong_gradients(pl_module)
        if not trainer.enable_validation:
            self.say_once("probes look during validation, which is off: there will be no readings.")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.sanity_checking or dataloader_idx != 0:
            return
        with undisturbed(pl_module):
            self._conduct(trainer, pl_module, batch, batch_idx)

    def _conducts(self, trainer: Trainer) -> bool:
        """Whether this is the first of the trainer's probes, which acts for all of them."""
        return self is next(p for p in trainer.callbacks if isinstance(p, AbstractProbe))  # type: ignore[attr-defined]

    def _warn_of_wrong_gradients(self, network: LightningModule) -> None:
        if network.device.type != "cpu" or is_on():
            return
        layers = [name for name, _ in layers_at_risk(network)]
        if layers:
            self.say_once(
                f"on a CPU, torch's gradient of the weight of {', '.join(layers[:3])}{', …' if layers[3:] else ''} may "
                "be wrong, crash or hang: a strided 1 x 1 convolution of fewer than 16 channels (oneDNN issue 6035).\n"
                "from lightning_depth.layers.convolutions import subsample_first, then train inside "
                "`with subsample_first():`. The network computes the same."
            )

    def _conduct(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0 and self._conducts(trainer):
            self._pass = _Pass.begin(trainer, pl_module, batch)
        if self._pass is not None:
            self._pass.show(*unpack(batch))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._pass is not None:
            self._pass.rest()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._pass is not None:
            with undisturbed(pl_module):
                self._pass.finish()
            self._pass = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._pass is not None:
            self._pass.release()
            self._pass = None


class AbstractSampleProbe(AbstractProbe):
    """A probe that asks the network questions of its own about a few fixed samples.

    It implements `look`. Every process looks at all the samples, so its readings do not depend on how many there are.

    Args:
        every: see `AbstractProbe`.
        layers: see `AbstractProbe`.
        split: the samples are from the training split, un-augmented, or from the held-out one.
        samples: how many, a fixed random choice.
    """

    def __init__(
        self,
        every: Schedule = 1,
        layers: list[str] | None = None,
        split: Split = "held_out",
        samples: int = 64,
    ) -> None:
        super().__init__(every, layers)
        if samples < 1:
            raise UserError(f"{type(self).__name__}: samples must be at least 1, not {samples}.")
        self.split = split
        self.samples = samples

    @abstractmethod
    def look(self, inputs: Tensor, targets: Tensor) -> Iterable[tuple[str, str, float]]:
        """Yield (layer, key, value) from what `self.network` does to `inputs`, in evaluation mode."""

    def measure(self) -> Iterable[tuple[str, str, float]]:
        return self.look(*whole_samples(self.trainer, self.split, self.samples))

    def is_real(self, what: str, values: Tensor) -> bool:
        """Whether `values` are floating-point; a warning says so where they are not."""
        if not values.is_floating_point():
            self.say_once(f"no reading: {what} are {values.dtype}, not floating-point.")
        return values.is_floating_point()


class _Pass:
    """One look of all probes that are due: training samples, then the validation batches that run anyway."""

    def __init__(self, trainer: Trainer, network: LightningModule, probes: list[AbstractProbe], epoch: int) -> None:
        self.trainer = trainer
        self.network = network
        self.probes = probes
        self.epoch = epoch
        self.seconds = dict.fromkeys(probes, 0.0)
        self.wanted: dict[str, list[AbstractProbe]] = {}
        self.handles: list[torch.utils.hooks.RemovableHandle] = []
        self.split: Split = "held_out"
        self.training: Any = ()
        self.targets: Tensor | None = None
        self.places: Tensor = torch.empty(0)  # where the batch's samples stand among all of the split's
        self.seen = 0
        self.total = 0
        self.repeats = False
        self.count: dict[str, int] = {}

    @classmethod
    def begin(cls, trainer: Trainer, network: LightningModule, batch: Any) -> "_Pass | None":
        fitting = trainer.state.fn == "fit"
        epoch = trainer.current_epoch + (1 if fitting else 0)
        last = not fitting or trainer.should_stop or epoch == trainer.max_epochs
        probes = [p for p in trainer.callbacks if isinstance(p, AbstractProbe)]  # type: ignore[attr-defined]
        due = [p for p in probes if p.is_due(epoch, last)]
        if not due:
            return None
        new = cls(trainer, network, due, epoch)
        try:
            new._find_training_samples()
            new._choose(batch)
            new._hook()
            new._show_training_samples()
        except BaseException:  # nobody has the pass yet, to release it
            new.release()
            raise
        return new

    def _find_training_samples(self) -> None:
        wanted = max(p.train_samples for p in self.probes)
        if wanted:
            self.training = sample_batches(self.trainer, "train", wanted)
            classes = count_classes(self.trainer, self.training)
            for probe in self.probes:
                probe.num_classes = classes

    def _choose(self, batch: Any) -> None:
        inputs, _ = unpack(batch)
        with self.trainer.precision_plugin.forward_context():
            calls = trace(self.network, inputs[:2])
        for probe in self.probes:
            probe.network, probe.trainer = self.network, self.trainer
            with self._timed(probe), quiet(self.network.device.type), self._named(probe, ""):
                for call in probe.select(calls):
                    self.wanted.setdefault(call.name, []).append(probe)

    def _hook(self) -> None:
        modules = dict(self.network.named_modules())
        for name in {name.split("#")[0] for name in self.wanted} - {INPUT}:
            self.handles.append(modules[name].register_forward_hook(self._on_call(name)))

    def _on_call(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self.targets is None:
                return
            self.count[name] = self.count.get(name, 0) + 1
            label = numbered(name, self.count[name])
            inputs = first_tensor(args)
            if inputs is not None and isinstance(output, Tensor):
                with same_randomness():
                    self._observe(label, inputs, output)

        return hook

    def _observe(self, name: str, inputs: Tensor, output: Tensor) -> None:
        assert self.targets is not None
        inputs, output = _real(inputs), _real(output)
        for probe in self.wanted.get(name, []):
            with self._timed(probe), quiet(output.device.type), self._named(probe, name):
                rows = self._rows(probe)
                if rows is None:
                    probe.observe(self.split, name, inputs, output, self.targets, probe.num_classes)
                elif rows.any():
                    part = (inputs[rows], output[rows], self.targets[rows])
                    probe.observe(self.split, name, *part, probe.num_classes)

    def _rows(self, probe: AbstractProbe) -> Tensor | None:
        """Which of the batch's samples the probe looks at; None: all of them."""
        if self.split == "train":
            wanted = self.places < probe.train_samples
        elif not self.repeats and (probe.held_out_samples is None or 0 < self.total <= probe.held_out_samples):
            return None
        elif probe.held_out_samples == 0:
            return torch.zeros(len(self.places), dtype=torch.bool)
        else:  # the samples at which floor(place * wanted / total) rises: evenly spread, exactly so many
            share = min(probe.held_out_samples or self.total, self.total)
            wanted = (self.places + 1) * share // self.total > self.places * share // self.total
            wanted &= self.places < self.total  # beyond are repetitions
        return None if wanted.all() else wanted.to(self.network.device)

    def show(self, inputs: Tensor, targets: Tensor) -> None:
        """Let the hooks see the calls that follow, for these targets."""
        self.targets = targets
        self.count = {}
        mine = self.seen + torch.arange(len(inputs))
        self.places = self.trainer.global_rank + self.trainer.world_size * mine
        self.seen += len(inputs)
        if INPUT in self.wanted:
            self._observe(INPUT, inputs, inputs)

    def rest(self) -> None:
        self.targets = None

    def _show_training_samples(self) -> None:
        wanting = [p for p in self.probes if p.train_samples]
        if wanting:
            start = time.perf_counter()
            before = sum(self.seconds.values())
            self.split = "train"
            with torch.no_grad(), self.trainer.precision_plugin.forward_context():
                for inputs, targets in self.training:
                    self.show(inputs, targets)
                    self.network(inputs)
                    self.rest()
            self.split, self.seen = "held_out", 0
            # The forward pass itself is shared: its cost is, too.
            shared = time.perf_counter() - start - (sum(self.seconds.values()) - before)
            for probe in wanting:
                self.seconds[probe] += shared / len(wanting)
        for probe in self.probes:
            with self._timed(probe), quiet(self.network.device.type):
                probe.between_splits()
        # Lightning's sampler repeats samples where the processes would have unequally many.
        self.repeats = isinstance(getattr(self._loader(), "sampler", None), DistributedSampler)
        if self.repeats or any(p.held_out_samples for p in self.probes):
            self.total = self._held_out()

    def _loader(self) -> Any:
        loaders = self.trainer.val_dataloaders
        return loaders[0] if isinstance(loaders, list | tuple) else loaders

    def _held_out(self) -> int:
        """How many samples all processes will validate."""
        loader = self._loader()
        batches = self.trainer.num_val_batches[0]
        if not hasattr(getattr(loader, "sampler", None), "__len__") or batches == float("inf"):
            raise UserError(
                "A probe cannot choose among validation samples that it cannot count: leave out its samples."
            )
        mine = min(len(loader.sampler), int(batches) * (loader.batch_size or 1))
        every = int(self.trainer.strategy.reduce(torch.tensor(mine, device=self.network.device), reduce_op="sum"))
        return min(every, len(loader.sampler.dataset)) if self.repeats else every

    @contextmanager
    def _timed(self, probe: AbstractProbe) -> Iterator[None]:
        start = time.perf_counter()
        with guarded(self.network.device):  # a probe may take gradients of its own
            yield
        self.seconds[probe] += time.perf_counter() - start

    @contextmanager
    def _named(self, probe: AbstractProbe, layer: str) -> Iterator[None]:
        """Say where a measure found something that is no number."""
        try:
            yield
        except ValueError as error:
            where = f"{layer}, epoch {self.epoch}" if layer else f"epoch {self.epoch}"
            raise UserError(f"{type(probe).__name__}, {where}: {error}.") from error

    def finish(self) -> None:
        self.unhook()
        for probe in self.probes:
            with self._timed(probe), quiet(self.network.device.type), self._named(probe, ""):
                values = list(probe.measure())
                pictures = list(probe.draw())
            values.append(("", "seconds", self.seconds[probe]))
            probe.readings = [Reading(self.epoch, probe.name, *value) for value in values]
            probe.pictures = pictures
            for reading in probe.readings:
                name = "/".join(part for part in (reading.probe, reading.layer, reading.key) if part)
                self.network.log(
                    name, torch.tensor(reading.value, dtype=torch.float64), sync_dist=False, rank_zero_only=True
                )

        self.release()

    def unhook(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def release(self) -> None:
        self.unhook()
        for probe in self.probes:
            probe.__dict__.pop("network", None)
            probe.__dict__.pop("trainer", None)


def _real(values: Tensor) -> Tensor:
    """Integers as float64, anything else as it is."""
    return values if values.is_floating_point() or values.is_complex() else values.double()
