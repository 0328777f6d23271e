"""Data sets: one LightningDataModule per file, `lightning_depth.data.CIFAR10` and its neighbours."""

from lightning.pytorch import LightningDataModule

from lightning_depth.plugins import offered

__getattr__, __dir__ = offered(__name__, __path__, LightningDataModule)
