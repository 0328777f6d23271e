"""Data sets: one LightningDataModule per file, `lightning_depth.data.CIFAR10` and its neighbours.

Small images are kept as one uint8 tensor on the training device (`batches`); where they come from is decided in
`sources` and `published`. A file added here that subclasses `images.AbstractImageData` adds a data set.
"""

from lightning.pytorch import LightningDataModule

from lightning_depth.plugins import offered

__getattr__, __dir__ = offered(__name__, __path__, LightningDataModule)
