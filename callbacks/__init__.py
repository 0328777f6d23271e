"""The shelf of probes: every callback that a file in this folder defines."""

from lightning.pytorch import Callback

from lightning_depth.plugins import classes_in

globals().update(classes_in(__name__, __path__, Callback))
