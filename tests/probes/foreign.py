"""Networks and data of somebody else: no base class of ours, ordinary data loaders, dropout, shuffling."""

import torch
import torchvision
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Foreign(LightningModule):
    def __init__(self, network):
        super().__init__()
        self.model = network

    def forward(self, x):
        return self.model(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def mlp():
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(3 * 8 * 8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 4)]
    return Foreign(nn.Sequential(*layers))


def resnet18():
    torch.manual_seed(0)
    return Foreign(torchvision.models.resnet18(num_classes=4))


def convnet():
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    body = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2), nn.ReLU(), nn.Dropout(0.2))
    return Foreign(nn.Sequential(stem, body, nn.Flatten(), nn.Linear(72, 4)))


class Autoencoder(Foreign):
    """Learns to return its input; a linear map, so that probes of linear networks and of image maps have something."""

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self(batch[0]), batch[0])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.mse_loss(self(batch[0]), batch[0]))


def autoencoder():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1), nn.Dropout(0.1))
    return Autoencoder(nn.Sequential(body, nn.Conv2d(5, 3, 3, padding=1)))


def vit():
    """Patches of 4, two blocks of attention."""
    torch.manual_seed(0)
    arguments = {"image_size": 8, "patch_size": 4, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 24}
    return Foreign(torchvision.models.VisionTransformer(**arguments, num_classes=4, dropout=0.1))


def loaders(size=8, train=48, held_out=31):
    generator = torch.Generator().manual_seed(1)

    def split(count):
        y = torch.arange(count) % 4
        x = torch.randn(count, 3, size, size, generator=generator) + y.view(-1, 1, 1, 1).float() / 4
        return TensorDataset(x, y)

    return DataLoader(split(train), 16, shuffle=True), DataLoader(split(held_out), 16)


def trainer(callbacks=(), **arguments):
    settings = {"max_epochs": 2, "accelerator": "cpu", "num_sanity_val_steps": 0} | arguments
    return Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **settings,
    )


def validated(module, probe, batches=None, **arguments):
    """What the probe reads of a network that is not trained: (layer, key) -> value."""
    trainer([probe], **arguments).validate(module, datamodule=Data(*(batches or loaders())), verbose=False)
    return readings(probe)


class Data(LightningDataModule):
    def __init__(self, train, held_out):
        super().__init__()
        self.train, self.held_out = train, held_out

    def train_dataloader(self):
        return self.train

    def val_dataloader(self):
        return self.held_out


def readings(probe):
    """(layer, key) -> value; on an axis of the probe's own, (layer, key, at) -> value."""
    return {(r.layer, r.key) if r.at is None else (r.layer, r.key, r.at): r.value for r in probe.readings}
