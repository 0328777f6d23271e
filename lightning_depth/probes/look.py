"""What a probe is given and what it gives: a look, a batch of a call, values and pictures."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_depth.errors import UserError
from lightning_depth.probes.calls import Call
from lightning_depth.results import Reading, Split

Value = tuple[str, str, float] | tuple[str, str, float, float]
"""(layer, key, value), or (layer, key, value, at) on an axis of the probe's own; no layer: of the whole network."""


def as_reading(epoch: int, probe: str, layer: Any, key: Any, value: Any, at: Any = None) -> Reading:
    """A reading of what a probe yielded, of any kind of number; a UserError where a table could not hold it."""
    check_text(probe, layer, key)
    where = f"{key} of {layer or 'the network'}"
    place = None if at is None else _number(probe, f"`at` of {where}", at)
    return Reading(epoch, probe, layer, place, key, _number(probe, where, value))


def check_text(probe: str, *names: Any) -> None:
    """Raise a UserError where a layer's name or a key is not one line of text."""
    for name in names:
        if not isinstance(name, str) or re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", name):
            raise UserError(f"{probe}: a layer's name or a key must be one line of text, not {name!r}.")


def _number(probe: str, what: str, value: Any) -> float:
    try:
        number = value.item() if hasattr(value, "item") else value
        if not isinstance(number, str | bytes):
            return float(number)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    raise UserError(f"{probe}: {what} must be a number, not {' '.join(repr(value).split())[:80]}.")


@dataclass(frozen=True)
class Look:
    """One look at a network in evaluation mode.

    Attributes:
        network: the network.
        calls: of a forward pass, in the order in which they ended; first the batch itself, named `input`.
        split: whose batches run: `val`, or in `trainer.test` `test`.
        epoch: the number of finished epochs.
        classes: how many, by the data module or the training samples; 0 where neither was asked.
        processes: how many of them share the samples.
        samples: (split, number) -> a fixed random choice of inputs and targets, all of them in every process; of `val`,
            those of the split whose batches run.
    """

    network: LightningModule
    calls: Sequence[Call]
    split: Split
    epoch: int
    classes: int
    processes: int
    samples: Callable[[Split, int], tuple[Tensor, Tensor]]

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.device


class Seen(NamedTuple):
    """A batch of a call: n rows of inputs, outputs and targets, of samples that the probe asked for.

    Integers (tokens, bytes) come as float64. The split is `train` for the training samples, else that of the look.
    """

    split: Split
    call: Call
    inputs: Tensor
    output: Tensor
    targets: Tensor


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
