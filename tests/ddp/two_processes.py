"""What is trained and looked at in forked processes: for a child that has not used torch yet."""

import json

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer

from lightning_depth import callbacks as shelf
from lightning_depth import data as made
from lightning_depth.models import MLP, ConvNet, DeepLinear, HuhCNN
from lightning_depth.probes import AbstractProbe
from lightning_depth.training.goals import Goals
from tests.probes.foreign import autoencoder, loaders, trainer


class Written(Callback):
    """What the probes read and drew, in a file: the processes of `ddp_fork` take their callbacks with them."""

    def __init__(self, path):
        self.path = path

    def on_validation_end(self, trainer, pl_module):
        if trainer.is_global_zero:
            probes = [callback for callback in trainer.callbacks if isinstance(callback, AbstractProbe)]
            readings = [
                [p.name, r.layer, r.at, r.key, r.value] for p in probes for r in p.readings if r.key != "seconds"
            ]
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
        shelf.EffectiveRank(split="train", samples=23, name="of_train"),
        shelf.EffectiveRank(),  # of all 31 held-out samples, and not of the one that Lightning's sampler repeats
        shelf.RepresentationCollapse(train_samples=29, samples=17, nearest_mean=True),
        Written(path),
    ]
    torch.set_num_threads(1)
    fit = trainer(probes, devices=devices, strategy="ddp_fork" if devices > 1 else "auto")
    train, held_out = loaders()  # 48 and 31 samples
    data = LightningDataModule.from_datasets(train.dataset, held_out.dataset, batch_size=16)
    fit.validate(autoencoder(), data, verbose=False)


# Networks without BatchNorm, whose statistics are each process's own, and even numbers of training samples: two
# processes drop an odd one.
TRAINED = {
    "mlp": lambda batch: (
        MLP(
            depth=2, width=8, loss="cross_entropy", seed=0, expansion={"factor": 2}, low_rank={"rank": 3},
            regularisers=[{"kind": "nuclear", "coefficient": 0.01}, {"kind": "effective_rank", "coefficient": 0.01}],
        ),
        made.RandomLabels(
            made.Folds(made.KLocal(dimension=9, k=2, train_samples=75, test_samples=9, batch_size=batch), 1, 5),
            fraction=0.5,
            seed=0,
        ),
    ),
    "autoencoder": lambda batch: (
        ConvNet(depth=2, channels=4, output="image", seed=0),
        made.SingleExample(made.EmbeddedDigits(image_size=8), labels=[1, 7], indices=[0, 1, 2], batch_size=batch),
    ),
    "linear": lambda batch: (
        DeepLinear(depth=3, seed=0),
        made.LowRankLeastSquares(input_dim=32, train_samples=26, batch_size=batch, seed=0),
    ),
    "crops": lambda batch: (
        HuhCNN(width=4, seed=0),
        made.EmbeddedDigits(
            samples_per_class=5, image_size=8, augment="random_resized_crop", batch_size=batch, seed=0
        ),
    ),
}  # fmt: skip

GOALS = {
    "linear": {"train_loss": 0.5, "every": 2},
    "crops": {"train_loss": -1.0, "every": 3, "judge": "current"},
}


def train(path, devices, case):
    """Train a case for 3 epochs and write its weights, metrics and steps: two processes have half the batch each."""
    torch.set_num_threads(1)
    model, data = TRAINED[case](16 // devices)
    fit = Trainer(
        max_epochs=3, accelerator="cpu", devices=devices, strategy="ddp_fork" if devices > 1 else "auto", logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0,
        callbacks=[Goals(**GOALS.get(case, {})), Weights(path)],
    )  # fmt: skip
    fit.fit(model, datamodule=data)


def _goals(trainer):
    return next(callback for callback in trainer.callbacks if isinstance(callback, Goals))


class Weights(Callback):
    """What was learnt, in a file."""

    def __init__(self, path):
        self.path = path

    def on_train_end(self, trainer, pl_module):
        if trainer.is_global_zero:
            weights = {name: value.detach().clone() for name, value in pl_module.net.state_dict().items()}
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            counted = {"world": trainer.world_size, "steps": trainer.global_step, "stopped": _goals(trainer).stopped_by}
            torch.save((weights, metrics, counted), self.path)
