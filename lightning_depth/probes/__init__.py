"""What a probe is, and the pass that conducts them."""

from lightning_depth.probes.probe import AbstractProbe, AbstractSampleProbe, Picture, Reading, Schedule

__all__ = ["AbstractProbe", "AbstractSampleProbe", "Picture", "Reading", "Schedule"]
