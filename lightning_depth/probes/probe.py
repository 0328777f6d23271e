"""What a probe is: a callback that looks at a network every so often and leaves no trace."""

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_depth.errors import UserError
from lightning_depth.layers.convolutions import is_on, layers_at_risk
from lightning_depth.probes.calls import Call
from lightning_depth.probes.look import Look, Picture, Seen, Value
from lightning_depth.probes.samples import Samples, unpack
from lightning_depth.probes.shared_pass import SharedPass
from lightning_depth.probes.undisturbed import same_randomness, undisturbed
from lightning_depth.results import ArrayKey, Declaration, Key, Reading, Split

TRAIN_SAMPLES = 1000

METRIC_NAMES = ("train", "val", "test", "train_eval", "epoch", "lr", "seconds")  # up to a slash: no probe's

Schedule = int | Literal["geometric", "last"]


class AbstractProbe(Callback, ABC):
    """Looks at any LightningModule during validation and testing, and yields readings; it disturbs nothing.

    A probe yields what it read of a `Look` (`measure`). Where it needs what layers do to data, it says which calls it
    wants to see (`select`), makes room for them (`begin`), and is shown them (`observe`) on the batches that run
    anyway; where `train_samples` is not 0, first on that many un-augmented training samples, in one pass that all
    probes share. Weights, buffers, mode, gradients and random generators are as if it had never run. Each reading is
    logged as `<probe>/<layer>/<key>`, so that any logger shows it and any callback can monitor it; `readings` and
    `pictures` hold the last ones. `keys` and `arrays` declare what is read and how to show it.

    Args:
        every: look after every so many epochs; `geometric`: after 1, 2, 4, 8, ... epochs; `last`: only after the last.
            The last epoch is looked at too, where it is known before its validation to be the last (`ends_training`).
        layers: shell patterns on module names, such as `["*.conv1", "head"]`; None: the probe's own choice.
        name: what it is called in readings and logs; None: its class, as in `operator_norm`.

    Raises:
        UserError: no module that ran has a name that matches `layers`, or two probes of a trainer have one name.
    """

    keys: ClassVar[tuple[Key, ...]] = ()
    arrays: ClassVar[tuple[ArrayKey, ...]] = ()
    cost: ClassVar[str] = ""
    """What a look takes, for readers."""

    train_samples: int = 0
    """How many training samples to be shown, a fixed random choice."""
    val_samples: int | None = None
    """How many of the samples that are evaluated to be shown, evenly spread over the split; None: all of them."""

    def __init__(self, every: Schedule = 1, layers: list[str] | None = None, name: str | None = None) -> None:
        own = type(self).__name__
        if every not in ("geometric", "last") and (isinstance(every, str) or every < 1):
            raise UserError(f"{own}: every must be a number of epochs, geometric or last, not {every!r}.")
        if name is not None and not re.fullmatch(r"\w[\w.-]*", name):
            raise UserError(f"{own}: name {name!r} must be one word: letters, digits, '_', '-', '.'.")
        self.every, self.layers = every, layers
        self.name = snake_case(own) if name is None else name
        self.readings: list[Reading] = []
        self.pictures: list[Picture] = []
        self.logged: set[str] = set()  # as what loggers have got readings
        self._samples: Samples | None = None
        self._pass: SharedPass | None = None
        self.warned: set[str] = set()

    @property
    def state_key(self) -> str:
        """Under which checkpoints hold the state of this probe: two of a class differ in it by name or arguments."""
        arguments = [name for name in inspect.signature(type(self)).parameters if name in vars(self)]
        return f"{type(self).__qualname__}({', '.join(f'{name}={vars(self)[name]}' for name in arguments)})"

    @property
    def declaration(self) -> Declaration:
        """What it declares of its readings."""
        return Declaration(snake_case(type(self).__name__), self.keys, self.arrays)

    def logged_as(self, reading: Reading) -> str:
        """The name under which loggers get a reading, such as `operator_norm/net.head/norm`."""
        axis = next((key.at for key in self.keys if key.name == reading.key and key.at), "at")
        at = "" if reading.at is None else f"{axis}={reading.at:g}"
        return "/".join(part for part in (reading.probe, reading.layer, at, reading.key) if part)

    def select(self, look: Look) -> Iterable[Call]:
        """The calls of a forward pass that this probe wants to see: none where it only reads weights."""
        return ()

    def begin(self, look: Look, calls: Sequence[Call]) -> None:
        """Make room for what the selected calls will show; called in every process, before each look."""

    def observe(self, seen: Seen) -> None:
        """See a batch of a selected call."""

    def between_splits(self) -> None:
        """Called after the training samples and before those that are evaluated."""

    @abstractmethod
    def measure(self, look: Look) -> Iterable[Value]:
        """Yield (layer, key, value), or (layer, key, value, at) where the probe has an axis of its own."""

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
        """Be shown samples of one split: `samples` of them; None: all that are evaluated, or 1,000 for training."""
        check_samples(self, split, samples)
        self.split, self.samples = split, samples
        train = split == "train"
        self.train_samples, self.val_samples = (samples or TRAIN_SAMPLES, 0) if train else (0, samples)

    def say_once(self, message: str) -> None:
        """A warning on rank zero, once in the life of this probe."""
        if message not in self.warned:
            self.warned.add(message)
            rank_zero_warn(f"{type(self).__name__}: {message}")

    def chosen(self, look: Look, default: Callable[[Call], bool]) -> list[Call]:
        """The calls that the layer filter names, or those of `default` where there is none.

        Of the latter, modules that the network has and does not call are named in a warning.
        """
        called = {call.module for call in look.calls}
        idle = {name: m for name, m in look.network.named_modules() if name and m not in called}
        if self.layers is None:
            for name, module in idle.items():
                if default(Call(name, module)):
                    self.say_once(f"{name} ({type(module).__name__}) is never called as a module: no reading.")
            return [call for call in look.calls if default(call)]
        found = [call for call in look.calls if self.is_named(call.name) or self.is_named(call.module_name)]
        if not found:
            never = [name for name in idle if self.is_named(name)]
            names = ", ".join(call.name for call in look.calls[:12])
            why = f"{', '.join(never[:3])} is never called" if never else f"the layers are {names}, …"
            raise UserError(f"{type(self).__name__}: no layer matches {self.layers}; {why}")
        return found

    def is_named(self, name: str) -> bool:
        """Whether the layer filter lets `name` pass."""
        return self.layers is None or any(fnmatchcase(name, pattern) for pattern in self.layers)

    def watched(self, look: Look, default: Callable[[Call], bool]) -> list[Call]:
        """As `chosen`, without the calls that do not map one row per sample to another, which a warning names."""
        found = self.chosen(look, default)
        for call in found:
            if not call.per_sample:
                self.say_once(f"{call.name} ({type(call.module).__name__}) is left out: its rows are not the samples.")
        return [call for call in found if call.per_sample]

    # --- when: the first probe of the trainer conducts one pass for all of them -------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        with same_randomness():
            check_names(trainer.callbacks)  # type: ignore[attr-defined]
            self._samples = Samples(trainer) if self is probes_of(trainer)[0] else None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._samples = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._samples is not None:
            with same_randomness():  # checks of types, where they are switched on, draw which items they look at
                self._warn_of_wrong_gradients(pl_module)
        if not trainer.enable_validation:
            self.say_once("probes look during validation, which is off: there will be no readings.")

    def _warn_of_wrong_gradients(self, network: LightningModule) -> None:
        layers = [name for name, _ in layers_at_risk(network)] if network.device.type == "cpu" and not is_on() else []
        if layers:
            self.say_once(
                f"on a CPU, torch's gradient of the weight of {', '.join(layers[:3])}{', …' if layers[3:] else ''} may "
                "be wrong, crash or hang: a strided 1 x 1 convolution of fewer than 16 channels (oneDNN issue 6035).\n"
                "from lightning_depth.layers.convolutions import subsample_first, then train inside "
                "`with subsample_first():`. The network computes the same."
            )

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.say_once("probes look in fit, validate and test; in predict there will be no readings.")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._samples is None or trainer.sanity_checking or dataloader_idx != 0:
            return
        with undisturbed(pl_module):
            if batch_idx == 0:
                self._pass = _begin(self._samples, pl_module, batch)
            if self._pass is not None:
                self._pass.show(*unpack(batch))

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if self._pass is not None:
            self._pass.targets = None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._pass is not None:
            with undisturbed(pl_module):
                self._pass.finish()
            self._pass = None

    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._pass is not None:
            self._pass.hooks.close()
        self._pass = self._samples = None


class AbstractSampleProbe(AbstractProbe):
    """A probe that feeds the network a few fixed samples of its own: `fixed_samples`.

    Every process looks at all the samples, so its readings do not depend on how many processes there are.

    Args:
        every, layers, name: see `AbstractProbe`.
        split: the samples are from the training split, un-augmented, or from the one that is evaluated (`val`).
        samples: how many, a fixed random choice.
    """

    def __init__(
        self,
        every: Schedule = 1,
        layers: list[str] | None = None,
        name: str | None = None,
        split: Split = "val",
        samples: int = 64,
    ) -> None:
        super().__init__(every, layers, name)
        check_samples(self, split, samples)
        self.split, self.samples = split, samples

    def fixed_samples(self, look: Look) -> tuple[Tensor, Tensor]:
        """Inputs (n, ...) and targets (n, ...), the same ones in every look."""
        return look.samples(self.split, self.samples or TRAIN_SAMPLES)

    def is_real(self, what: str, values: Tensor) -> bool:
        """Whether `values` are floating-point; a warning says so where they are not."""
        if not values.is_floating_point():
            self.say_once(f"no reading: {what} are {values.dtype}, not floating-point.")
        return values.is_floating_point()


def probes_of(trainer: Trainer) -> list[AbstractProbe]:
    """The probes among the trainer's callbacks."""
    return [callback for callback in trainer.callbacks if isinstance(callback, AbstractProbe)]  # type: ignore[attr-defined]


def check_names(callbacks: Iterable[object]) -> None:
    """Raise a UserError where two probes have one name, or one has that of metrics: they could not be told apart."""
    named: dict[str, AbstractProbe] = {}
    for probe in (callback for callback in callbacks if isinstance(callback, AbstractProbe)):
        name = probe.name
        if name in METRIC_NAMES:
            wrong = f"A probe is called {name}: its readings could not be told from metrics.\nGive it another name"
            raise UserError(f"{wrong}, such as name: {snake_case(type(probe).__name__)}.")
        if named.setdefault(name, probe) is not probe:
            wrong = f"Two probes are called {name}: their readings could not be told apart."
            raise UserError(f"{wrong}\nGive one a name of its own, such as name: {name}_2.")


def ends_training(trainer: Trainer) -> bool:
    """Whether the epoch under way is known to be the last: by `max_epochs`, `max_steps`, or a stop that was asked for.

    A goal and `max_time` ask for it at a step; `EarlyStopping` after a validation, too late for the look in it.
    """
    steps = 0 <= trainer.max_steps <= trainer.global_step
    return trainer.should_stop or steps or trainer.current_epoch + 1 == trainer.max_epochs


def check_samples(probe: AbstractProbe, split: str, samples: int | None) -> None:
    """Raise a UserError where there is no such split to look at, or less than a sample of it."""
    if split not in ("train", "val"):
        renamed = {"held_out": "it is called val now", "test": "with val it is that of the test split in `test`"}
        hint = renamed.get(split, "there is no such split")
        raise UserError(f"{type(probe).__name__}: split must be train or val, not {split}: {hint}.")
    if samples is not None and samples < 1:
        raise UserError(f"{type(probe).__name__}: samples must be at least 1, not {samples}.")


def snake_case(name: str) -> str:
    """The name of a class in snake case, acronyms kept together.

    >>> snake_case("OperatorNorm"), snake_case("NTKSpectrum")
    ('operator_norm', 'ntk_spectrum')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _begin(samples: Samples, network: LightningModule, batch: Any) -> SharedPass | None:
    """The pass of the probes that are due; None where none is."""
    trainer = samples.trainer
    fitting = trainer.state.fn == "fit"
    epoch = trainer.current_epoch + (1 if fitting else 0)
    last = not fitting or ends_training(trainer)
    due = [probe for probe in probes_of(trainer) if probe.is_due(epoch, last)]
    return SharedPass(network, due, samples, epoch, batch) if due else None
