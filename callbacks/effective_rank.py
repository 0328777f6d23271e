"""The effective rank of the features before the last linear layer."""

import math
from collections.abc import Iterable, Sequence
from typing import final

from torch import Tensor, nn

from lightning_depth.errors import UserError
from lightning_depth.measures.gram import GramSpectrum
from lightning_depth.measures.spectra import effective_rank
from lightning_depth.probes import AbstractProbe, Schedule
from lightning_depth.probes.calls import Call
from lightning_depth.probes.samples import Split


@final
class EffectiveRank(AbstractProbe):
    """The effective rank, in nats, of the Gram matrix of cosine similarities of the features (huh2021 2.2, Def. 1).

    The features are the input of the last linear layer that runs (of the last convolution, where there is none), on the
    validation batches. The spectrum is exact, from the smaller of the two Gram matrices.

    Reads `effective_rank/<layer>/effective_rank` (the entropy, at most the log of the number of features).

    Args:
        every: look after every so many epochs, or `geometric`, or `last`.
        layers: shell patterns on module names, whose *inputs* are then the features; None: the last linear layer.
        split: `held_out`, or the un-augmented samples of `train`.
        samples: how many; None: all of the held-out split, or 1,000 of the training split.
    """

    def __init__(
        self,
        every: Schedule = 1,
        layers: list[str] | None = None,
        split: Split = "held_out",
        samples: int | None = None,
    ) -> None:
        super().__init__(every, layers)
        self.watch(split, samples)
        self._spectra: dict[str, GramSpectrum] = {}

    def select(self, calls: Sequence[Call]) -> Iterable[Call]:
        linear = [c.name for c in calls if isinstance(c.module, nn.Linear)]
        convolutions = [c.name for c in calls if isinstance(c.module, nn.Conv1d | nn.Conv2d | nn.Conv3d)]
        last = (linear or convolutions)[-1:]
        if not last and self.layers is None:
            raise UserError("EffectiveRank finds no linear layer or convolution: name a layer with layers=[...].")
        watched = self.watched(calls, lambda call: call.name in last)
        device = self.network.device
        self._spectra = {c.name: GramSpectrum(math.prod(c.input_shape or ())).to(device) for c in watched}
        return watched

    def observe(
        self, split: Split, layer: str, inputs: Tensor, output: Tensor, targets: Tensor, num_classes: int
    ) -> None:
        self._spectra[layer].update(inputs)

    def measure(self) -> Iterable[tuple[str, str, float]]:
        for layer, spectrum in self._spectra.items():
            yield layer, "effective_rank", float(effective_rank(spectrum.compute()))
