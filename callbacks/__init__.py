"""The shelf of probes: every callback that a file in this folder defines."""

from lightning.pytorch import Callback

from lightning_depth.plugins import offered

__getattr__, __dir__ = offered(__name__, __path__, Callback)
