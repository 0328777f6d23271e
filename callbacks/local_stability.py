"""Whether a change of a single input coordinate changes the predicted label."""

from collections.abc import Iterable, Sequence
from typing import final

import torch
from torch import Tensor

from lightning_depth.errors import UserError
from lightning_depth.measures.stability import local_stability
from lightning_depth.probes import AbstractSampleProbe, Schedule
from lightning_depth.probes.calls import Call
from lightning_depth.probes.samples import Split


@final
class LocalStability(AbstractSampleProbe):
    """s(v): the share of samples whose predicted label no perturbation +-v of one coordinate changes (mori2020 App. B).

    All coordinates are tried. v is in units of the network's inputs, after normalisation.

    Reads for each `v=...`, in place of a layer, `stability`.

    Args:
        every: look after every so many epochs, or `geometric`, or `last`.
        split: `held_out` or `train`.
        samples: how many. A look costs up to 2 d forward passes of each for each v: 6,144 for a CIFAR image.
        strengths: the v, in ascending order.
    """

    def __init__(
        self,
        every: Schedule = "last",
        split: Split = "held_out",
        samples: int = 16,
        strengths: Sequence[float] = (0.3, 1.0, 3.0),
    ) -> None:
        super().__init__(every, None, split, samples)
        if not strengths or any(v < 0 for v in strengths):
            raise UserError("LocalStability: strengths must be at least one number, none of them negative.")
        self.strengths = sorted(strengths)

    def select(self, calls: Sequence[Call]) -> Iterable[Call]:
        return []

    def look(self, inputs: Tensor, targets: Tensor) -> Iterable[tuple[str, str, float]]:
        outputs = self.network(inputs[:1])
        if not (self.is_real("inputs", inputs) and self.is_real("outputs", outputs)):
            return
        if outputs.dim() > 2:
            self.say_once(f"no reading: outputs of shape {tuple(outputs.shape[1:])} are no labels.")
            return
        strengths = torch.tensor(self.strengths, dtype=torch.float64)
        for v, share in zip(self.strengths, local_stability(self.network, inputs, strengths), strict=True):
            yield f"v={v:g}", "stability", float(share)
