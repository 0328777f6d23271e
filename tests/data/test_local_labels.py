"""Labels that are signs of local and of global features."""

import math

import pytest
import torch

from lightning_depth.data.base.tensors import normal
from lightning_depth.data.k_local import KGlobal, KLocal, k_global_feature, k_local_feature, k_local_stability
from lightning_depth.errors import UserError
from lightning_depth.measures.stability import local_stability
from tests.data.small import stream


@pytest.mark.parametrize("indices", [[0], [1, 3], [0, 1, 4]])
def test_features_are_those_of_the_definition(indices):
    x = torch.randn(20, 5, generator=stream())
    for row, local, total in zip(x, k_local_feature(x, indices), k_global_feature(x, indices), strict=True):
        assert float(local) == pytest.approx(math.prod(float(row[i]) for i in indices))
        sums = sum(math.prod(float(row[(j + i) % 5]) for i in indices) for j in range(5))
        assert float(total) == pytest.approx(sums)


@pytest.mark.parametrize(("family", "feature"), [(KLocal, k_local_feature), (KGlobal, k_global_feature)])
def test_labels_are_signs_of_features(family, feature):
    data = family(dimension=7, k=2, train_samples=300)
    x, y = data.split("train")
    assert torch.equal(y == 0, feature(x, data.indices) >= 0)
    assert 100 < y.sum() < 200
    signs = family(dimension=7, k=2, train_samples=300, targets="signs").split("train").targets
    assert torch.equal(signs, 1.0 - 2 * y[:, None])


def test_the_class_of_zero_is_the_first():
    assert k_local_feature(torch.zeros(1, 3), [0, 1]) >= 0
    assert KLocal(dimension=3, k=3, train_samples=1).num_classes == 2  # one label alone does not say how many there are


def test_indices_are_given_or_drawn_for_all_splits():
    assert KLocal(dimension=9, k=3, indices=[8, 0, 4]).indices == [0, 4, 8]
    drawn = [KLocal(dimension=50, k=3, seed=seed).indices for seed in range(5)]
    assert all(sorted(set(i)) == i and len(i) == 3 and i[0] >= 0 and i[-1] < 50 for i in drawn)
    assert len({tuple(i) for i in drawn}) == 5
    data = KLocal(dimension=9, k=3)
    for split in ("val", "test"):
        x, y = data.split(split)
        assert torch.equal(y == 0, k_local_feature(x, data.indices) >= 0)


def test_local_stability_of_the_local_label_is_exact():
    assert k_local_stability(2, 1.0) == pytest.approx(0.1007, abs=5e-5)
    x = normal(20_000, (4,), stream())
    strengths = torch.tensor([0.2, 0.7, 1.5])
    for k in (1, 2, 3):
        measured = local_stability(lambda x, k=k: k_local_feature(x, range(k))[:, None], x, strengths)
        for strength, share in zip(strengths.tolist(), measured.tolist(), strict=True):
            chance = k_local_stability(k, strength)
            assert abs(share - chance) < 4 * math.sqrt(chance * (1 - chance) / len(x))


@pytest.mark.parametrize("arguments", [{"k": 0}, {"k": 6}, {"indices": [1, 1]}, {"indices": [1]}, {"indices": [0, 5]}])
def test_impossible_features_are_mistakes(arguments):
    for family in (KLocal, KGlobal):
        with pytest.raises(UserError, match=r"k=|indices="):
            family(dimension=5, **arguments)
