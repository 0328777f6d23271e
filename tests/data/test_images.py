import contextlib
import warnings

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

import lightning_depth.data
from lightning_depth.data import CIFAR10, MNIST, EmbeddedDigits, ImageFolder
from lightning_depth.data.base.images import AbstractImageData, class_number, moments
from lightning_depth.data.base.sources import Arrays, Source
from lightning_depth.errors import UserError
from lightning_depth.seeds import generator


class Noise(AbstractImageData):
    """What a third party writes: 101 test images, so that shards are uneven."""

    def find(self):
        return Source("noise", "embedded", "torch.randint")

    def read(self, split):
        n = 120 if split == "train" else 101
        x = torch.randint(256, (n, 6, 6, 1), dtype=torch.uint8, generator=generator(0, "noise", split))
        return Arrays(torch.arange(n) % 3, ["red", "green", "blue"], None, x)


def rows(loader):
    return {tuple(image.flatten().tolist()) for image in loader.images}


def test_the_package_offers_what_its_files_define():
    for cls in (CIFAR10, MNIST, EmbeddedDigits, ImageFolder):
        assert getattr(lightning_depth.data, cls.__name__) is cls
        assert issubclass(cls, LightningDataModule)
    assert not hasattr(lightning_depth.data, "AbstractImageData")


@pytest.mark.parametrize("classes", [["dog", 3], ["dog", "3"]])
def test_configs_may_name_or_number_classes(classes):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    given = {"class_path": "lightning_depth.data.CIFAR10", "init_args": {"classes": classes, "augment": "crop_flip"}}
    data = parser.instantiate(parser.parse_object({"data": given})).data
    assert isinstance(data, CIFAR10)
    assert [class_number(asked, data.names) for asked in data.classes] == [5, 3]
    assert (data.batch_size, data.augment, data.fallback) == (128, "crop_flip", None)


def test_classes_are_renumbered_in_the_order_given():
    data = EmbeddedDigits(classes=[7, "1"])
    data.setup()
    full = EmbeddedDigits().train_dataloader()
    assert (data.num_classes, data.class_names, data.train_size) == (2, ["7", "1"], 800)
    loader = data.train_dataloader()
    assert torch.equal(loader.images[loader.labels == 0], full.images[full.labels == 7])
    assert torch.equal(loader.images[loader.labels == 1], full.images[full.labels == 1])
    assert torch.bincount(data.test_dataloader().labels).tolist() == [100, 100]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"classes": ["gren"]}, r"no class 'gren'. Did you mean 'green'\?\nThe classes are red, green, blue"),
        ({"classes": [3]}, "no class 3"),
        ({"classes": ["green", 1]}, "'green' more than once"),
        ({"classes": []}, "classes is empty"),
        ({"samples_per_class": 41}, "Class 'red' has 40 training images, fewer than samples_per_class=41"),
        ({"samples_per_class": 0}, "samples_per_class=0"),
        ({"val_fraction": 1.0}, "val_fraction=1.0"),
        ({"val_fraction": -0.1}, "val_fraction=-0.1"),
        ({"val_fraction": 0.999}, "leaves class 'red' without training images"),
        ({"val_fraction": 0.001}, "leaves class 'red' without validation images"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"eval_batch_size": 0}, "eval_batch_size=0"),
        ({"image_size": 0}, "image_size=0"),
        ({"padding": -1}, "padding=-1"),
        ({"mean": [0.5]}, "both mean and std"),
        ({"mean": [0.5] * 3, "std": [0.5] * 3}, "need 1 numbers"),
        ({"mean": [0.5], "std": [0.0]}, "without variation"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_user_errors_are_told(arguments, said):
    with pytest.raises(UserError, match=said):
        Noise(**arguments).setup()


def test_a_probe_needs_samples():
    with pytest.raises(UserError, match="at least 1"):
        Noise().probe_dataloader(0)


def test_subsets_are_seeded_and_nested():
    small, large = (Noise(samples_per_class=n, seed=1).train_dataloader() for n in (10, 20))
    assert torch.bincount(small.labels).tolist() == [10, 10, 10]
    assert rows(small) < rows(large)
    assert rows(small) == rows(Noise(samples_per_class=10, seed=1).train_dataloader())
    assert rows(small) != rows(Noise(samples_per_class=10, seed=2).train_dataloader())


def test_the_seed_is_the_runs_unless_it_is_given(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "9")  # what another run of this process left behind
    seeds = []
    for data in (Noise(), Noise(), Noise(seed=1)):
        if seeds:
            data.use_run_seed(7)
        seeds.append(data.train_dataloader().order.seed)
    assert seeds == [0, 7, 1]


def test_validation_images_are_stratified_disjoint_and_do_not_depend_on_the_subset():
    whole, part = Noise(val_fraction=0.25), Noise(val_fraction=0.25, samples_per_class=5)
    train, val = whole.train_dataloader(), whole.val_dataloader()
    assert torch.bincount(val.labels).tolist() == [10, 10, 10]
    assert rows(train).isdisjoint(rows(val))
    assert len(rows(train) | rows(val)) == 120
    assert rows(part.val_dataloader()) == rows(val)
    assert rows(part.train_dataloader()) < rows(train)
    assert whole.val_source == "held-out 25% of training split"
    assert len(whole.test_dataloader().labels) == 101


def test_validation_on_the_test_split_is_said_once(capsys, caplog):
    data = Noise()
    with caplog.at_level("INFO"):
        for _ in range(3):
            data.setup("fit")
    assert (caplog.text + capsys.readouterr().err).count("validates on the test split") == 1
    assert data.val_source == "test split"
    assert torch.equal(data.val_dataloader().images, data.test_dataloader().images)


def test_moments_are_those_of_the_pixels():
    images = torch.randint(256, (50, 5, 5, 3), dtype=torch.uint8, generator=generator(0))
    mean, std = moments(images)
    pixels = images.double().div(255).flatten(0, 2)
    torch.testing.assert_close(torch.tensor(mean, dtype=torch.float64), pixels.mean(0))
    torch.testing.assert_close(torch.tensor(std, dtype=torch.float64), pixels.std(0, correction=0))


def test_normalised_digits_have_mean_0_and_variance_1():
    data = EmbeddedDigits(batch_size=5000)
    assert len(data.train_dataloader()) == 1
    x, y = next(iter(data.train_dataloader()))
    assert abs(x.mean()) < 0.01
    assert abs(x.std() - 1) < 0.01
    assert sorted(y.tolist()) == data.train_dataloader().labels.tolist()


def test_probes_see_a_fixed_unaugmented_subset_of_the_training_images():
    data = Noise(augment="crop_flip")
    probe = data.probe_dataloader(30)
    assert rows(probe) == rows(Noise().probe_dataloader(30)) < rows(data.probe_dataloader(60))
    assert rows(probe) < rows(data.train_dataloader())
    assert len(data.probe_dataloader(1000).labels) == 120
    for (x, y), (again, labels) in zip(probe, probe, strict=True):
        assert torch.equal(x, again)
        assert torch.equal(y, labels)


def test_what_validation_asks_for_first_can_be_trained_on():
    data, weight = Noise(), torch.ones(36, 3, requires_grad=True)
    with torch.inference_mode():
        loaders = [data.probe_dataloader(30), data.train_dataloader(), data.val_dataloader()]
    for loader in loaders:
        x, y = next(iter(loader))
        nn.functional.cross_entropy(x.flatten(1) @ weight, y).backward()


class Linear(LightningModule):
    """A linear classifier that remembers what it saw."""

    def __init__(self, pixels=36, classes=3):
        super().__init__()
        self.net = nn.Linear(pixels, classes, dtype=torch.float32)
        nn.init.zeros_(self.net.weight)
        nn.init.zeros_(self.net.bias)
        self.accuracy = MulticlassAccuracy(classes, average="micro")
        self.seen = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.seen.append((self.current_epoch, batch_idx, y.tolist(), x.double().sum().item()))
        return nn.functional.cross_entropy(self.net(x.flatten(1)), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.accuracy(self.net(x.flatten(1)), y)
        self.log("accuracy", self.accuracy)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)


class StopAt(Callback):
    def __init__(self, epoch, batch):
        self.at = epoch, batch

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            raise KeyError("killed")


def fit(folder, data, module, *callbacks, ckpt_path=None, **kwargs):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        **{"max_epochs": 3, **kwargs}, accelerator="cpu", devices=1, callbacks=list(callbacks), default_root_dir=folder,
        **quiet
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return trainer


def test_a_real_fit_on_the_embedded_digits(tmp_path):
    module = Linear(784, 10)
    data = EmbeddedDigits(batch_size=100)
    trainer = fit(tmp_path, data, module, max_epochs=1, limit_train_batches=20)
    assert len(module.seen) == 20
    assert trainer.callback_metrics["accuracy"] > 0.6
    assert data.train_dataloader().images.data_ptr() == data.train_dataloader().images.data_ptr()


def test_overfit_batches_are_the_same_in_every_epoch(tmp_path):
    module = Linear()
    fit(tmp_path, Noise(batch_size=8), module, overfit_batches=2)
    assert len({tuple(labels) for _, batch, labels, _ in module.seen if batch == 0}) == 1


EPOCHS, STEPS = {"max_epochs": 3}, {"max_epochs": -1, "max_steps": 24}


@pytest.mark.parametrize(
    ("length", "every"),
    [
        pytest.param(EPOCHS, {"every_n_train_steps": 3}, id="epochs-inside-epoch"),
        pytest.param(EPOCHS, {"every_n_train_steps": 8}, id="epochs-last-batch"),
        pytest.param(EPOCHS, {"every_n_epochs": 1, "save_on_train_epoch_end": True}, id="epochs-epoch-end"),
        pytest.param(EPOCHS, {"every_n_epochs": 1, "save_on_train_epoch_end": False}, id="epochs-validation-end"),
        pytest.param(STEPS, {"every_n_train_steps": 3}, id="steps-inside-epoch"),
        pytest.param(STEPS, {"every_n_train_steps": 8}, id="steps-last-batch"),
        pytest.param(STEPS, {"every_n_epochs": 1, "save_on_train_epoch_end": False}, id="steps-validation-end"),
        # Not steps-epoch-end: Lightning ends that epoch a second time and counts one epoch too many from then on.
    ],
)
def test_a_resumed_fit_sees_what_an_uninterrupted_one_sees(tmp_path, length, every):
    def data():
        return Noise(batch_size=15, augment="crop", seed=3)

    whole = Linear()
    fit(tmp_path, data(), whole, **length)
    broken = Linear()
    save = ModelCheckpoint(tmp_path, save_last=True, save_top_k=-1, **every)
    with contextlib.suppress(KeyError):
        fit(tmp_path, data(), broken, save, StopAt(1, 5), **length)
    resumed = Linear()
    fit(tmp_path, data(), resumed, ckpt_path=tmp_path / "last.ckpt", **length)
    assert 0 < len(resumed.seen) < len(whole.seen) == 24
    assert resumed.seen == whole.seen[-len(resumed.seen) :]
    assert torch.equal(resumed.net.weight, whole.net.weight)


def test_every_rank_sees_its_share_and_every_test_image_counts_once(monkeypatch):
    monkeypatch.setattr(Noise, "_place", lambda self: self.place)
    counts, labels = [], []
    for rank in range(2):
        data = Noise(eval_batch_size=20)
        data.place = rank, 2
        counts.append(sum(len(y) for _, y in data.val_dataloader()))
        labels.append(sum(len(y) for _, y in data.probe_dataloader(31)))
    assert counts == [51, 50]
    assert labels == [16, 15]
