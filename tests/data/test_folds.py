from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_depth.data import EmbeddedDigits, Folds, KLocal
from lightning_depth.errors import UserError
from lightning_depth.models import MLP


def data(samples=23, **more):
    return KLocal(dimension=6, train_samples=samples, test_samples=7, batch_size=4, eval_batch_size=3, **more)


def served(batches):
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def rows(x):
    return sorted(map(tuple, x.tolist()))


@pytest.mark.parametrize("folds", [2, 5, 23])
def test_every_sample_is_validated_once_and_never_trained_on_then(folds):
    whole = rows(data().split("train").inputs)
    held = []
    for fold in range(folds):
        made = Folds(data(), fold, folds)
        ours, theirs = rows(served(made.val_dataloader())[0]), rows(served(made.train_dataloader())[0])
        assert sorted(ours + theirs) == whole
        assert not set(ours) & set(theirs)
        assert len(ours) in (23 // folds, -(-23 // folds))
        assert made.train_size == len(theirs)
        held += ours
    assert sorted(held) == whole


def test_two_ranks_share_a_fold():
    def on(rank):
        made = Folds(data(22), 1, 4)
        progress = SimpleNamespace(current=SimpleNamespace(processed=0, ready=0))
        loop = SimpleNamespace(restarting=False, epoch_progress=progress)
        loop.epoch_loop = SimpleNamespace(batch_progress=progress)
        device = SimpleNamespace(root_device=torch.device("cpu"))
        made.trainer = SimpleNamespace(
            global_rank=rank, world_size=2, overfit_batches=0, strategy=device, fit_loop=loop
        )
        return made

    alone = Folds(data(22), 1, 4)
    for split in ("train_dataloader", "val_dataloader"):
        parts = [served(getattr(on(rank), split)())[0] for rank in (0, 1)]
        assert rows(torch.cat(parts)) == rows(served(getattr(alone, split)())[0])


def test_the_parts_are_a_function_of_the_seed():
    same = [Folds(data(seed=seed), 0, 5).members(0).tolist() for seed in (1, 1, 2)]
    assert same[0] == same[1] != same[2]
    assert Folds(data(seed=1), 0, 5, seed=2).members(0).tolist() == same[2]


def test_labels_stay_with_their_inputs_and_the_test_split_is_untouched():
    inner = data()
    made = Folds(inner, 2, 5)
    x, y = served(made.val_dataloader())
    assert torch.equal(y, (inner.feature(x) < 0).long())
    assert torch.equal(made.split("test").inputs, data().split("test").inputs)
    assert (made.num_classes, made.target_shape, made.input_shape) == (2, None, (6,))
    assert Folds(data(targets="signs")).target_shape == (1,)
    assert made.source.note == "fold 2 of 5 held out"


def test_images_are_trained_on_with_their_augmentation(capsys):
    digits = EmbeddedDigits(classes=[0, 1], samples_per_class=15, batch_size=8, augment="crop")
    made = Folds(digits, 0, 3)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        barebones=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )
    trainer.fit(MLP(depth=1, width=4), made)
    assert trainer.callback_metrics["val/acc"] * 10 == pytest.approx(
        round(float(trainer.callback_metrics["val/acc"]) * 10)
    )
    assert len(made.train_dataloader().labels) == 20
    assert made.train_dataloader().transform.augment == "crop"
    assert made.val_dataloader().transform.augment == "none"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"folds": 1}, "folds=1: it must be at least 2"),
        ({"folds": 3, "fold": 3}, "fold=3: 3 folds count from 0 to 2"),
        ({"folds": 24}, "folds=24: there are only 23 training samples"),
    ],
)
def test_user_errors(arguments, said):
    with pytest.raises(UserError, match=said):
        Folds(data(), **arguments).setup()
