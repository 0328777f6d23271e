"""What a probe is, and the pass that conducts them."""

from lightning_depth.probes.look import Look, Picture, Seen, Value
from lightning_depth.probes.probe import AbstractProbe, AbstractSampleProbe, Schedule
from lightning_depth.results import ArrayKey, Key, Reading, Split

__all__ = [
    "AbstractProbe", "AbstractSampleProbe", "ArrayKey", "Key", "Look", "Picture", "Reading", "Schedule", "Seen",
    "Split", "Value",
]  # fmt: skip
