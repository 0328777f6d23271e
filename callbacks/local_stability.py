"""Whether a change of a single input coordinate changes the predicted label."""

from collections.abc import Iterable, Sequence
from typing import final

import torch

from lightning_depth.errors import UserError
from lightning_depth.measures.stability import local_stability
from lightning_depth.probes import AbstractSampleProbe, Key, Look, Schedule, Split, Value


@final
class LocalStability(AbstractSampleProbe):
    """s(v): the share of samples whose predicted label no perturbation +-v of one coordinate changes (mori2020 App. B).

    All coordinates are tried. v is in units of the network's inputs, after normalisation.

    Args:
        every: look after every so many epochs, or `geometric`, or `last`.
        split: `val` or `train`.
        samples: how many. A look costs up to 2 d forward passes of each for each v: 6,144 for a CIFAR image.
        strengths: the v, in ascending order.
        name: what it is called in readings and logs; None: `local_stability`.
    """

    keys = (
        Key(
            "stability",
            title="Local stability: no change of one input by v changes the label",
            unit="share of samples",
            rows="strength v",
            at="v",
            definition="share of samples whose label no change ±v of one input coordinate changes; all are tried; one "
            "row for each v",
            source="mori2020 App. B, Eq. 17",
        ),
    )
    cost = "65 s (4 samples)"

    def __init__(
        self,
        every: Schedule = "last",
        split: Split = "val",
        samples: int = 16,
        strengths: Sequence[float] = (0.3, 1.0, 3.0),
        name: str | None = None,
    ) -> None:
        super().__init__(every, None, name, split, samples)
        if not strengths or any(v < 0 for v in strengths):
            raise UserError("LocalStability: strengths must be at least one number, none of them negative.")
        self.strengths = sorted(strengths)

    def measure(self, look: Look) -> Iterable[Value]:
        inputs, _ = self.fixed_samples(look)
        outputs = look.network(inputs[:1])
        if not (self.is_real("inputs", inputs) and self.is_real("outputs", outputs)):
            return
        if outputs.dim() > 2:
            self.say_once(f"no reading: outputs of shape {tuple(outputs.shape[1:])} are no labels.")
            return
        strengths = torch.tensor(self.strengths, dtype=torch.float64)
        for v, share in zip(self.strengths, local_stability(look.network, inputs, strengths), strict=True):
            yield "", "stability", float(share), v
