"""The effective rank of the features before the last linear layer."""

import math
from collections.abc import Iterable, Sequence
from typing import final

from torch import nn

from lightning_depth.errors import UserError
from lightning_depth.measures.gram import GramSpectrum
from lightning_depth.measures.spectra import effective_rank
from lightning_depth.probes import AbstractProbe, Key, Look, Schedule, Seen, Split, Value
from lightning_depth.probes.calls import Call


@final
class EffectiveRank(AbstractProbe):
    """The effective rank, in nats, of the Gram matrix of cosine similarities of the features (huh2021 2.2, Def. 1).

    The features are the input of the last linear layer that runs (of the last convolution, where there is none), on the
    samples that are evaluated. The spectrum is exact, from the smaller of the two Gram matrices.

    Args:
        every: look after every so many epochs, or `geometric`, or `last`.
        layers: shell patterns on module names, whose *inputs* are then the features; None: the last linear layer.
        split: `val`, what is evaluated, or the un-augmented samples of `train`.
        samples: how many; None: all that are evaluated, or 1,000 of the training split.
        name: what it is called in readings and logs; None: `effective_rank`.
    """

    keys = (
        Key(
            "effective_rank",
            title="Effective rank at each layer (nats)",
            title_one="Effective rank of the features (nats)",
            unit="effective rank (nats)",
            definition="−Σ p ln p, p = λ/Σλ, of the Gram matrix of cosine similarities of the inputs of the last "
            "linear layer; at most the log of the number of features",
            source="huh2021 2.2, Def. 1; Roy and Vetterli 2007 without the exponential",
        ),
    )
    cost = "0.02 s"

    def __init__(
        self,
        every: Schedule = 1,
        layers: list[str] | None = None,
        split: Split = "val",
        samples: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(every, layers, name)
        self.watch(split, samples)
        self._spectra: dict[str, GramSpectrum] = {}

    def select(self, look: Look) -> Iterable[Call]:
        linear = [c.name for c in look.calls if isinstance(c.module, nn.Linear)]
        convolutions = [c.name for c in look.calls if isinstance(c.module, nn.Conv1d | nn.Conv2d | nn.Conv3d)]
        last = (linear or convolutions)[-1:]
        if not last and self.layers is None:
            raise UserError("EffectiveRank finds no linear layer or convolution: name a layer with layers=[...].")
        return self.watched(look, lambda call: call.name in last)

    def begin(self, look: Look, calls: Sequence[Call]) -> None:
        self._spectra = {c.name: GramSpectrum(math.prod(c.input_shape or ())).to(look.device) for c in calls}

    def observe(self, seen: Seen) -> None:
        self._spectra[seen.call.name].update(seen.inputs)

    def measure(self, look: Look) -> Iterable[Value]:
        for layer, spectrum in self._spectra.items():
            yield layer, "effective_rank", float(effective_rank(spectrum.compute()))
