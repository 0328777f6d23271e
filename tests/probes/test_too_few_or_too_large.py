"""Too few samples or classes, and too many features for the stated memory."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_depth.callbacks import (
    FeatureSimilarity,
    IdentityConstant,
    JacobianNorm,
    LinearOperator,
    NeuralCollapse,
    OperatorNorm,
    RepresentationCollapse,
)
from lightning_depth.errors import UserError
from lightning_depth.measures.collapse import expected_errors
from tests.oracles import vote_predictions_nxn
from tests.probes.foreign import Data, Foreign, autoencoder, convnet, loaders, readings, trainer, validated
from tests.probes.looks import is_short, said


def test_fewer_samples_than_a_similarity_needs():
    with pytest.raises(UserError, match=r"^FeatureSimilarity, epoch 0: the debiased HSIC needs 4 samples, not 3"):
        validated(convnet(), FeatureSimilarity(samples=3))


@pytest.mark.parametrize("probe", [RepresentationCollapse, LinearOperator, NeuralCollapse, IdentityConstant])
def test_training_samples_that_nobody_gave(probe):
    with pytest.raises(UserError, match=r"^A probe needs train samples: .*probe_dataloader"):
        trainer([probe()]).validate(convnet(), loaders()[1], verbose=False)


class Stated(Data):
    num_classes = 4


def stated(module, probe):
    trainer([probe]).validate(module, datamodule=Stated(*loaders()), verbose=False)
    return readings(probe)


def test_fewer_samples_than_classes():
    found, messages = said(stated, convnet(), NeuralCollapse(train_samples=3))
    seen = len(set(chosen_labels(3).tolist()))
    assert seen < 4
    assert f"NeuralCollapse: model.3: {seen} of 4 classes have training samples; it is about those." in messages
    assert all(math.isfinite(value) for value in found.values())
    collapse = stated(convnet(), RepresentationCollapse(train_samples=3))
    train, test = (loader.dataset.tensors for loader in loaders())
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))[:3]
    for balanced, key in ((False, "error"), (True, "balanced_error")):
        predicted = vote_predictions_nxn(test[0], train[0][order], train[1][order], 4, balanced=balanced)
        error = float(expected_errors(predicted, test[1]).mean())
        assert collapse["input", key] == pytest.approx(error, abs=1e-12)


def chosen_labels(count):
    return loaders()[0].dataset.tensors[1][torch.randperm(48, generator=torch.Generator().manual_seed(0))[:count]]


def of_classes(*classes):
    """Training data of these classes alone."""
    x, y = loaders()[0].dataset.tensors
    kept = torch.isin(y, torch.tensor(classes))
    return DataLoader(TensorDataset(x[kept], y[kept]), 16), loaders()[1]


def test_classes_that_no_training_sample_shows():
    with pytest.raises(UserError, match=r"^RepresentationCollapse: .*label 3.* 3 classes.*num_classes") as error:
        validated(convnet(), RepresentationCollapse(), of_classes(0, 1, 2))
    assert is_short(error)
    found, messages = said(validated, convnet(), NeuralCollapse(), of_classes(0, 1, 2))
    assert any("NeuralCollapse: no nc3 and no nc4 at model.3: it has 4 outputs for 3 classes" in m for m in messages)
    assert "nc3" not in {key for _, key in found}
    assert not any("compute" in m for m in messages), messages  # of torchmetrics, which speaks to its own users
    with pytest.raises(UserError, match=r"^NeuralCollapse, .*epoch 0: .*two classes or more, not 1"):
        validated(convnet(), NeuralCollapse(), of_classes(0))


def test_images_of_another_size_need_no_start_of_theirs():
    torch.manual_seed(0)
    module = Foreign(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    )
    for make in (OperatorNorm, lambda: JacobianNorm(samples=4)):
        seen_before = make()
        validated(module, seen_before, loaders(size=8))
        found, fresh = validated(module, seen_before, loaders(size=10)), validated(module, make(), loaders(size=10))
        for key, value in fresh.items():
            assert key[1] == "seconds" or found[key] == pytest.approx(value, rel=1e-3, abs=1e-3), key


def test_an_example_that_is_not_there():
    with pytest.raises(UserError, match="example=60, but there are 48 training samples"):
        validated(autoencoder(), IdentityConstant(example=60))


def test_more_features_than_nc1_may_hold():
    whole = validated(convnet(), NeuralCollapse())
    found, messages = said(validated, convnet(), NeuralCollapse(max_features=71))
    assert "NeuralCollapse: no nc1 at model.3: it has 72 features, more than max_features=71." in messages
    without = {k: v for k, v in whole.items() if k[1] not in ("nc1", "seconds")}
    assert {k: v for k, v in found.items() if k[1] != "seconds"} == without


def test_neighbours_that_exceed_the_stated_memory_are_left_out():
    # 256 MiB are 1,000,000 times 67 float32 numbers
    probe = RepresentationCollapse(train_samples=1_000_000, neighbours=1)
    found, messages = said(validated, convnet(), probe)
    for layer in ("input", "model.0", "model.1"):
        message = f"no neighbours at {layer}: its training representations exceed 256 MiB."
        assert f"RepresentationCollapse: {message}" in messages
    assert [layer for layer, key in found if key == "neighbours_error"] == ["model.3"]
    assert len([key for _, key in found if key == "error"]) == 4


def test_an_operator_that_exceeds_the_stated_memory_is_not_read():
    found, messages = said(validated, autoencoder(), LinearOperator(max_bytes=192 * 192 * 4 - 1))
    message = "no reading: the 192 x 192 matrix takes 147456 bytes, more than max_bytes=147455."
    assert f"LinearOperator: {message}" in messages
    assert set(found) == {("", "seconds")}
    assert ("", "norm") in validated(autoencoder(), LinearOperator(max_bytes=192 * 192 * 4))
