import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lightning_depth.figures.clustering import clustered_order


def blocks(sizes: list[int], seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Cosine similarities of noisy copies of orthogonal vectors, shuffled, and the block of each row."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    features = np.eye(len(sizes))[labels] + 0.1 * rng.normal(size=(len(labels), len(sizes)))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features @ features.T, labels


def runs(labels: NDArray[np.int64]) -> int:
    return len(list(itertools.groupby(labels.tolist())))


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 8), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_shuffled_blocks_come_together(sizes: list[int], seed: int) -> None:
    similarity, labels = blocks(sizes, seed)
    order = clustered_order(similarity)
    assert sorted(order.tolist()) == list(range(len(labels)))
    assert runs(labels[order]) == len(sizes)


def test_the_control_is_not_in_blocks() -> None:
    _, labels = blocks([8, 8, 8], seed=0)
    assert runs(labels) > 10


def test_neighbours_on_a_line_stay_neighbours() -> None:
    position = np.random.default_rng(0).permutation(7)
    similarity = 1 - np.abs(position[:, None] - position) / 10
    along = position[clustered_order(similarity)]
    assert along.tolist() in ([0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0])


def test_scale_shift_and_round_off_change_nothing() -> None:
    similarity, _ = blocks([5, 3, 4], seed=1)
    order = clustered_order(similarity).tolist()
    assert clustered_order(100 * similarity + 7).tolist() == order
    noise = np.random.default_rng(0).uniform(-1e-9, 1e-9, similarity.shape)
    assert clustered_order(similarity + noise).tolist() == order


def test_few_rows() -> None:
    assert clustered_order(np.zeros((0, 0))).tolist() == []
    assert clustered_order(np.ones((1, 1))).tolist() == [0]
    assert sorted(clustered_order(np.ones((2, 2), dtype=np.float32)).tolist()) == [0, 1]
    assert sorted(clustered_order(np.zeros((5, 5), dtype=int)).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_similarity_that_is_not_finite_raises(bad: float) -> None:
    similarity = np.eye(3)
    similarity[0, 1] = similarity[1, 0] = bad
    with pytest.raises(ValueError, match="not finite"):
        clustered_order(similarity)


@pytest.mark.parametrize("shape", [(2, 3), (4,), (2, 2, 2)])
def test_a_matrix_that_is_not_square_raises(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="square"):
        clustered_order(np.zeros(shape))


def test_a_matrix_that_is_not_symmetric_raises() -> None:
    with pytest.raises(ValueError, match="not symmetric"):
        clustered_order(np.array([[1.0, 0.2], [0.3, 1.0]]))
