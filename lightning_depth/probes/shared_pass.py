"""One look of all probes that are due: training samples, then the evaluation's batches that run anyway."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DistributedSampler

from lightning_depth.errors import UserError
from lightning_depth.layers.convolutions import guarded
from lightning_depth.probes.calls import INPUT, Call, first_tensor, trace
from lightning_depth.probes.look import Look, Seen, as_reading, check_text
from lightning_depth.probes.samples import Samples, count_classes, loader_of, unpack
from lightning_depth.probes.undisturbed import same_randomness
from lightning_depth.results import Reading, Split

if TYPE_CHECKING:
    from lightning_depth.probes.probe import AbstractProbe


class SharedPass:
    """Shows the calls of one pass to the `probes` that selected them, and gathers what they read.

    The network is in evaluation mode; `epoch` epochs have ended; `batch` is the first of the evaluation.
    """

    def __init__(
        self, network: LightningModule, probes: Sequence["AbstractProbe"], samples: Samples, epoch: int, batch: Any
    ) -> None:
        self.network, self.probes, self.samples = network, probes, samples
        self.trainer: Trainer = samples.trainer
        self.evaluated: Split = "test" if self.trainer.state.fn == "test" else "val"
        self.split: Split = self.evaluated
        self.seconds = dict.fromkeys(probes, 0.0)
        self.watchers: dict[str, list[tuple[AbstractProbe, Call]]] = {}
        self.hooks = ExitStack()
        self.targets: Tensor | None = None
        self.places: Tensor = torch.empty(0)  # where the batch's samples stand among all of the split's
        self.seen, self.total, self.repeats = 0, 0, False
        self.called: Counter[str] = Counter()
        try:
            asked = max(p.train_samples for p in probes)
            training = samples.batches("train", asked) if asked else ()
            classes = count_classes(self.trainer, training) if asked else 0
            self.look = self._look_at(batch, epoch, classes)
            self._select()
            self._show_training_samples(training)
        except BaseException:  # nobody has the pass yet, to take its hooks out
            self.hooks.close()
            raise

    def _look_at(self, batch: Any, epoch: int, classes: int) -> Look:
        inputs, _ = unpack(batch)
        with self.trainer.precision_plugin.forward_context():
            calls = trace(self.network, inputs[:2])

        def choice(split: Split, samples: int) -> tuple[Tensor, Tensor]:
            return self.samples.whole("train" if split == "train" else self.evaluated, samples)

        return Look(self.network, calls, self.evaluated, epoch, classes, self.trainer.world_size, choice)

    def _select(self) -> None:
        for probe in self.probes:
            with self._at_work(probe):
                selected = list(probe.select(self.look))
                probe.begin(self.look, selected)
                for call in selected:
                    self.watchers.setdefault(call.name, []).append((probe, call))
        for name in {call.module_name for of_call in self.watchers.values() for _, call in of_call} - {INPUT}:
            module = self.network.get_submodule(name)
            self.hooks.enter_context(module.register_forward_hook(partial(self._see, name)))

    def _see(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.targets is None:
            return
        self.called[name] += 1
        inputs = first_tensor(args)
        if inputs is not None and isinstance(output, Tensor):
            with same_randomness():
                self._observe(Call(name, module, number=self.called[name]).name, inputs, output)

    def _observe(self, name: str, inputs: Tensor, output: Tensor) -> None:
        assert self.targets is not None
        inputs, output = _real(inputs), _real(output)
        for probe, call in self.watchers.get(name, []):
            with self._at_work(probe, name):
                rows = self._rows(probe)
                if rows is None:
                    probe.observe(Seen(self.split, call, inputs, output, self.targets))
                elif rows.any():
                    probe.observe(Seen(self.split, call, inputs[rows], output[rows], self.targets[rows]))

    def _rows(self, probe: "AbstractProbe") -> Tensor | None:
        """Which of the batch's samples the probe looks at; None: all of them."""
        if self.split == "train":
            wanted = self.places < probe.train_samples
        elif not self.repeats and (probe.val_samples is None or 0 < self.total <= probe.val_samples):
            return None
        elif probe.val_samples == 0:
            return torch.zeros(len(self.places), dtype=torch.bool)
        else:  # the samples at which floor(place * wanted / total) rises: evenly spread, exactly so many
            share = min(probe.val_samples or self.total, self.total)
            wanted = (self.places + 1) * share // self.total > self.places * share // self.total
            wanted &= self.places < self.total  # beyond are repetitions
        return None if wanted.all() else wanted.to(self.network.device)

    def show(self, inputs: Tensor, targets: Tensor) -> None:
        """Let the hooks see the calls that follow, for these targets; where `targets` is None again, they see none."""
        self.targets, self.called = targets, Counter()
        mine = self.seen + torch.arange(len(inputs))
        self.places = self.trainer.global_rank + self.trainer.world_size * mine
        self.seen += len(inputs)
        if INPUT in self.watchers:
            self._observe(INPUT, inputs, inputs)

    def _show_training_samples(self, training: Any) -> None:
        shown = [p for p in self.probes if p.train_samples]
        if shown:
            start, before = time.perf_counter(), sum(self.seconds.values())
            self.split = "train"
            with torch.no_grad(), self.trainer.precision_plugin.forward_context():
                for inputs, targets in training:
                    self.show(inputs, targets)
                    self.network(inputs)
                    self.targets = None
            self.split, self.seen = self.evaluated, 0
            # The forward pass itself is shared: its cost is, too.
            shared = time.perf_counter() - start - (sum(self.seconds.values()) - before)
            for probe in shown:
                self.seconds[probe] += shared / len(shown)
        for probe in self.probes:
            with self._at_work(probe):
                probe.between_splits()
        # Lightning's sampler repeats samples where the processes would have unequally many.
        loader = loader_of(self.trainer, self.evaluated)
        self.repeats = isinstance(getattr(loader, "sampler", None), DistributedSampler)
        if self.repeats or any(p.val_samples for p in self.probes):
            self.total = self._count(loader)

    def _count(self, loader: Any) -> int:
        """How many samples all processes will evaluate."""
        trainer = self.trainer
        batches = (trainer.num_test_batches if self.evaluated == "test" else trainer.num_val_batches)[0]
        if not hasattr(getattr(loader, "sampler", None), "__len__") or batches == float("inf"):
            unknown = f"{self.evaluated} samples that it cannot count"
            raise UserError(f"A probe cannot choose among {unknown}: leave out its samples.")
        mine = min(len(loader.sampler), int(batches) * (loader.batch_size or 1))
        every = int(trainer.strategy.reduce(torch.tensor(mine, device=self.network.device), reduce_op="sum"))
        return min(every, len(loader.sampler.dataset)) if self.repeats else every

    @contextmanager
    def _at_work(self, probe: "AbstractProbe", layer: str = "") -> Iterator[None]:
        """Time a probe, without gradients or autocast; say where a measure found something that is no number."""
        start, device = time.perf_counter(), self.network.device
        precision = torch.autocast(device.type, enabled=False)
        try:
            # A probe may take gradients of its own, and keep tensors that outlive an inference-mode block.
            with guarded(device), torch.inference_mode(False), torch.no_grad(), precision:
                yield
        except ValueError as error:
            where = f"{layer}, epoch {self.look.epoch}" if layer else f"epoch {self.look.epoch}"
            raise UserError(f"{type(probe).__name__}, {where}: {error}.") from error
        self.seconds[probe] += time.perf_counter() - start

    def finish(self) -> None:
        """Let every probe measure, keep what it read, and log it as `<probe>/<layer>/<key>`."""
        self.hooks.close()
        for probe in self.probes:
            epoch, name = self.look.epoch, probe.name
            with self._at_work(probe):
                measured = probe.measure(self.look)
                readings = [as_reading(epoch, name, layer, key, value, *at[:1]) for layer, key, value, *at in measured]
                pictures = list(probe.draw())
                check_text(name, *(text for picture in pictures for text in (picture.layer, picture.key)))
            if not (readings or pictures or any("no reading" in message for message in probe.warned)):
                probe.say_once("no reading: it found nothing in this network that it reads.")
            seconds = Reading(epoch, name, "", None, "seconds", self.seconds[probe])
            probe.readings, probe.pictures = [*readings, seconds], pictures
            for reading in probe.readings:
                value, key = torch.tensor(reading.value, dtype=torch.float64), probe.logged_as(reading)
                probe.logged.add(key)
                self.network.log(key, value, sync_dist=False, rank_zero_only=True)


def _real(values: Tensor) -> Tensor:
    """Integers as float64, anything else as it is."""
    return values if values.is_floating_point() or values.is_complex() else values.double()
