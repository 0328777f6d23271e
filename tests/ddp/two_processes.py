"""Somebody else's linear network, validated in forked processes: for a child that has not used torch yet."""

import json

import torch
from lightning.pytorch import Callback, LightningDataModule

import callbacks as shelf
from lightning_depth.probes import AbstractProbe
from tests.probes.foreign import autoencoder, loaders, trainer


class Written(Callback):
    """What the probes read and drew, in a file: the processes of `ddp_fork` take their callbacks with them."""

    def __init__(self, path):
        self.path = path

    def on_validation_end(self, trainer, pl_module):
        if trainer.is_global_zero:
            probes = [callback for callback in trainer.callbacks if isinstance(callback, AbstractProbe)]
            readings = [[p.name, r.layer, r.key, r.value] for p in probes for r in p.readings if r.key != "seconds"]
            pictures = {f"{p.name}/{d.layer}/{d.key}": d.values.double().tolist() for p in probes for d in p.pictures}
            self.path.write_text(json.dumps([trainer.world_size, readings, pictures]))


def look(path, devices):
    probes = [
        shelf.IdentityConstant(correlations=[-0.5, 0.0, 0.7, 1.0], draws=3, example=4),
        shelf.LinearOperator(samples=37),
        shelf.JacobianNorm(samples=5, rtol=1e-5),
        shelf.OperatorNorm(rtol=1e-6),
        shelf.FeatureSimilarity(samples=13),
        shelf.ActivationImages(samples=3, upper=True),
        shelf.EffectiveRank(split="train", samples=23),
        shelf.EffectiveRank(),  # of all 31 held-out samples, and not of the one that Lightning's sampler repeats
        shelf.RepresentationCollapse(train_samples=29, samples=17, nearest_mean=True),
        Written(path),
    ]
    torch.set_num_threads(1)
    fit = trainer(probes, devices=devices, strategy="ddp_fork" if devices > 1 else "auto")
    train, held_out = loaders()  # 48 and 31 samples
    data = LightningDataModule.from_datasets(train.dataset, held_out.dataset, batch_size=16)
    fit.validate(autoencoder(), data, verbose=False)
