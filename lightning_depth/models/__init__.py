"""Network families: every LightningModule that a file in this folder defines."""

from lightning.pytorch import LightningModule

from lightning_depth.plugins import offered

__getattr__, __dir__ = offered(__name__, __path__, LightningModule)
