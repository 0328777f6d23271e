"""What a probe is: a callback that looks at a network once an epoch and leaves no trace."""

import random
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from lightning_depth.mistakes import Mistake

Split = Literal["train", "held_out"]
INPUT = "input"


class Reading(NamedTuple):
    """One number that a probe read: `layer` is empty where it is about the network or the probe itself."""

    epoch: int
    probe: str
    layer: str
    key: str
    value: float


class Call(NamedTuple):
    """One call of a module in a forward pass; shapes are without the batch axis, None where not one tensor."""

    name: str
    module: nn.Module
    input_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...] | None


class AbstractProbe(Callback, ABC):
    """Looks at any LightningModule during validation and yields readings; it disturbs nothing.

    A probe says which calls it wants to see (`select`), is shown them on the validation batches that run anyway
    (`observe`), and yields what it read (`measure`). Where `train_samples` is not 0 it is first shown that many
    un-augmented training samples, in one pass that all probes share. Weights, buffers, mode, gradients and random
    generators are as if it had never run. Each reading is logged as `<probe>/<layer>/<key>`, so that any logger shows
    it and any callback can monitor it, and `readings` holds the last ones.

    Args:
        every: look after every so many epochs.
        layers: shell patterns on module names, such as `["*.conv1", "head"]`; None: the probe's own choice.

    Raises:
        Mistake: no module that ran has a name that matches `layers`.
    """

    train_samples: int = 0

    def __init__(self, every: int = 1, layers: list[str] | None = None) -> None:
        if every < 1:
            raise Mistake(f"{type(self).__name__}: every must be at least 1 epoch, not {every}.")
        self.every = every
        self.layers = layers
        self.readings: list[Reading] = []
        self._pass: _Pass | None = None
        self._said: set[str] = set()

    @property
    def name(self) -> str:
        """The class name in snake case, as it stands in readings and logs."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()

    @abstractmethod
    def select(self, calls: Sequence[Call]) -> Iterable[Call]:
        """The calls of a forward pass that this probe wants to see, from all of them in the order they ended.

        A pseudo-call named `input` with the batch itself comes first. Called before each look, so state can be reset.
        """

    # Not abstract: a probe that only reads weights needs neither.
    def observe(
        self, split: Split, layer: str, inputs: Tensor, output: Tensor, targets: Tensor, num_classes: int
    ) -> None:
        """See a batch of a selected call: its input, output and the batch's targets, all with n rows."""

    def between_splits(self) -> None:
        """Called after the training samples and before the held-out ones."""

    @abstractmethod
    def measure(self) -> Iterable[tuple[str, str, float]]:
        """Yield (layer, key, value); the first key of a layer is the one that pictures show."""

    def say_once(self, message: str) -> None:
        """A warning on rank zero, once in the life of this probe."""
        if message not in self._said:
            self._said.add(message)
            rank_zero_warn(f"{type(self).__name__}: {message}")

    def chosen(self, calls: Sequence[Call], default: Callable[[Call], bool]) -> list[Call]:
        """The calls that the layer filter names, or those of `default` where there is none."""
        if self.layers is None:
            return [call for call in calls if default(call)]
        found = [call for call in calls if any(fnmatchcase(call.name, pattern) for pattern in self.layers)]
        if not found:
            names = ", ".join(call.name for call in calls[:12])
            raise Mistake(f"{type(self).__name__}: no layer matches {self.layers}; the layers are {names}, …")
        return found

    # --- when: the first probe of the trainer conducts one pass for all of them -------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.enable_validation:
            self.say_once("probes look during validation, which is off: there will be no readings.")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.sanity_checking or dataloader_idx != 0:
            return
        with undisturbed(pl_module):
            self._conduct(trainer, pl_module, batch, batch_idx)

    def _conduct(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0 and self is next(p for p in trainer.callbacks if isinstance(p, AbstractProbe)):  # type: ignore[attr-defined]
            self._pass = _Pass.begin(trainer, pl_module, batch)
        if self._pass is not None:
            self._pass.show(*_unpack(batch))

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
            self._pass.unhook()
            self._pass = None


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
        self.targets: Tensor | None = None
        self.count: dict[str, int] = {}
        self.num_classes = 0

    @classmethod
    def begin(cls, trainer: Trainer, network: LightningModule, batch: Any) -> "_Pass | None":
        epoch = trainer.current_epoch + (1 if trainer.state.fn == "fit" else 0)
        last = trainer.max_epochs is not None and epoch == trainer.max_epochs
        due = [
            p
            for p in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(p, AbstractProbe) and (epoch % p.every == 0 or last or trainer.state.fn != "fit")
        ]
        if not due:
            return None
        new = cls(trainer, network, due, epoch)
        new._choose(batch)
        new._hook()
        new._show_training_samples()
        return new

    def _choose(self, batch: Any) -> None:
        inputs, _ = _unpack(batch)
        with self.trainer.precision_plugin.forward_context():
            calls = trace(self.network, inputs[:2])
        for probe in self.probes:
            with self._timed(probe):
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
            label = name if self.count[name] == 1 else f"{name}#{self.count[name]}"
            inputs = next((a for a in args if isinstance(a, Tensor)), None)
            if inputs is not None and isinstance(output, Tensor):
                with same_randomness():
                    self._observe(label, inputs, output)

        return hook

    def _observe(self, name: str, inputs: Tensor, output: Tensor) -> None:
        assert self.targets is not None
        for probe in self.wanted.get(name, []):
            with self._timed(probe), quiet(output.device.type), self._named(probe, name):
                probe.observe(self.split, name, inputs, output, self.targets, self.num_classes)

    def show(self, inputs: Tensor, targets: Tensor) -> None:
        """Let the hooks see the calls that follow, for these targets."""
        self.targets = targets
        self.count = {}
        if INPUT in self.wanted:
            self._observe(INPUT, inputs, inputs)

    def rest(self) -> None:
        self.targets = None

    def _show_training_samples(self) -> None:
        wanting = [p for p in self.probes if p.train_samples]
        if wanting:
            start = time.perf_counter()
            before = sum(self.seconds.values())
            batches = training_samples(self.trainer, max(p.train_samples for p in wanting))
            self.num_classes = _num_classes(self.trainer, batches)
            self.split = "train"
            with torch.no_grad(), self.trainer.precision_plugin.forward_context():
                for inputs, targets in batches:
                    self.show(inputs, targets)
                    self.network(inputs)
                    self.rest()
            self.split = "held_out"
            # The forward pass itself is shared: its cost is, too.
            shared = time.perf_counter() - start - (sum(self.seconds.values()) - before)
            for probe in wanting:
                self.seconds[probe] += shared / len(wanting)
        for probe in self.probes:
            with self._timed(probe), quiet(self.network.device.type):
                probe.between_splits()

    @contextmanager
    def _timed(self, probe: AbstractProbe) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[probe] += time.perf_counter() - start

    @contextmanager
    def _named(self, probe: AbstractProbe, layer: str) -> Iterator[None]:
        """Say where a measure found something that is no number."""
        try:
            yield
        except ValueError as error:
            where = f"{layer}, epoch {self.epoch}" if layer else f"epoch {self.epoch}"
            raise Mistake(f"{type(probe).__name__}, {where}: {error}.") from error

    def finish(self) -> None:
        self.unhook()
        for probe in self.probes:
            with self._timed(probe), quiet(self.network.device.type), self._named(probe, ""):
                values = list(probe.measure())
            values.append(("", "seconds", self.seconds[probe]))
            probe.readings = [Reading(self.epoch, probe.name, *value) for value in values]
            for reading in probe.readings:
                name = "/".join(part for part in (reading.probe, reading.layer, reading.key) if part)
                self.network.log(
                    name, torch.tensor(reading.value, dtype=torch.float64), sync_dist=False, rank_zero_only=True
                )

    def unhook(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []


def trace(network: nn.Module, inputs: Tensor) -> list[Call]:
    """Every call of a module in one forward pass of `inputs`, in the order in which the calls ended.

    The second call of one module is named `<name>#2`, and so on. The batch itself comes first, named `input`.
    """
    calls = [Call(INPUT, nn.Identity(), tuple(inputs.shape[1:]), tuple(inputs.shape[1:]))]
    count: dict[str, int] = {}

    def hook_for(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            count[name] = count.get(name, 0) + 1
            label = name if count[name] == 1 else f"{name}#{count[name]}"
            calls.append(Call(label, module, _shape(args[0] if args else None), _shape(output)))

        return hook

    handles = [m.register_forward_hook(hook_for(name)) for name, m in network.named_modules() if name]
    try:
        with torch.no_grad():
            network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def stages(calls: Sequence[Call]) -> list[str]:
    """The names of the network's stages: the smallest set of sibling modules, nearest the top, that do its work.

    From the top down, a module that holds all the layers with weights is opened; the first with several children that
    hold such layers is the trunk, and those children are the stages.
    """
    names = [call.name.split("#")[0] for call in calls]
    layers = [c.name.split("#")[0] for c in calls if c.module._parameters and next(c.module.parameters()).dim() >= 2]
    prefix = ""
    while True:
        children = list(dict.fromkeys(prefix + n[len(prefix) :].split(".")[0] for n in layers if n.startswith(prefix)))
        if len(children) != 1 or not any(n.startswith(children[0] + ".") for n in layers):
            return [c for c in dict.fromkeys(names) if c in children]
        prefix = children[0] + "."


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Put the buffers of `network` and every random generator back as they were."""
    buffers = [(b, b._version, b.detach().clone()) for b in network.buffers() if not b.is_inference()]
    with same_randomness():
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, version, value in buffers:
                    if buffer._version != version:
                        buffer.copy_(value)


@contextmanager
def same_randomness() -> Iterator[None]:
    """Put the generators of Python, numpy and torch (all devices in use) back as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def quiet(device_type: str) -> Iterator[None]:
    """No gradients, no autocast, and tensors that outlive an inference-mode block."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device_type, enabled=False):
        yield


def training_samples(trainer: Trainer, samples: int) -> Any:
    """Batches of (inputs, targets) from the training split on the module's device, the same ones at every call.

    A data module's `probe_dataloader(samples)` where it has one; otherwise samples spread evenly over the data set of
    the training loader, with whatever its transforms do, drawn once and kept.
    """
    datamodule = getattr(trainer, "datamodule", None)
    if hasattr(datamodule, "probe_dataloader"):
        return datamodule.probe_dataloader(samples)  # type: ignore[union-attr]
    kept = getattr(trainer, "_probe_batches", None)
    if kept is None or kept[0] != samples:
        loader = trainer.train_dataloader
        if loader is None:
            trainer.fit_loop.setup_data()
            loader = trainer.train_dataloader
        if not isinstance(loader, DataLoader):
            raise Mistake("A probe needs training samples: give the data module a `probe_dataloader(samples)`.")
        size = len(loader.dataset)  # type: ignore[arg-type]
        indices = torch.linspace(0, size - 1, min(samples, size)).long()[trainer.global_rank :: trainer.world_size]
        subset = Subset(loader.dataset, indices.tolist())
        batches = DataLoader(subset, batch_size=loader.batch_size or 128, collate_fn=loader.collate_fn)
        kept = (samples, [_unpack(trainer.strategy.batch_to_device(batch)) for batch in batches])
        trainer._probe_batches = kept  # type: ignore[attr-defined]
    return kept[1]


def _num_classes(trainer: Trainer, batches: Iterable[tuple[Tensor, Tensor]]) -> int:
    stated = getattr(getattr(trainer, "datamodule", None), "num_classes", None)
    if stated is not None:
        return int(stated)
    seen = max((int(targets.max()) for _, targets in batches if not targets.is_floating_point()), default=-1) + 1
    return int(trainer.strategy.reduce(torch.tensor(seen), reduce_op="max"))


def _unpack(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, list | tuple) and len(batch) >= 2 and all(isinstance(part, Tensor) for part in batch[:2]):
        return batch[0], batch[1]
    raise Mistake(f"Probes need batches of (inputs, targets) tensors; this one is a {type(batch).__name__}.")


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape[1:]) if isinstance(value, Tensor) and value.dim() > 0 else None
