"""Neural collapse and votes on representations against explicit matrices and sklearn."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from lightning_depth.callbacks import NeuralCollapse, RepresentationCollapse
from tests.probes.foreign import convnet, loaders, validated
from tests.probes.obvious import features, samples, with_targets


def test_neural_collapse_is_that_of_explicit_matrices():
    module = convnet()
    found = validated(module, NeuralCollapse(train_samples=40))
    x, y = samples("train", 40)
    h, y = features(module, "model.3", x)[0].double().numpy(), y.numpy()
    means = np.stack([h[y == c].mean(0) for c in range(4)])
    m = means - means.mean(0)
    within = (h - means[y]).T @ (h - means[y]) / len(h)
    between = m.T @ m / 4
    lengths = np.linalg.norm(m, axis=1)
    cosines = (m @ m.T / np.outer(lengths, lengths))[np.triu_indices(4, 1)]
    w = module.model[3].weight.detach().double().numpy()
    test = loaders()[1].dataset.tensors[0]
    test_h, logits = (v.double().numpy() for v in features(module, "model.3", test))
    nearest = ((test_h[:, None] - means) ** 2).sum(2).argmin(1)
    variances = [((h[y == c] - means[c]) ** 2).sum(1).mean() for c in range(4)]
    cdnv = [
        (variances[a] + variances[b]) / (2 * ((means[a] - means[b]) ** 2).sum())
        for a in range(4)
        for b in range(4)
        if a != b
    ]
    expected = {
        "nc1": np.trace(within @ np.linalg.pinv(between, rcond=1e-10, hermitian=True)) / 4,
        "nc2_equinorm": lengths.std() / lengths.mean(),
        "nc2_equiangularity": cosines.std(),
        "nc2_maximal_angle": np.abs(cosines + 1 / 3).mean(),
        "nc3": ((w / np.linalg.norm(w) - m / np.linalg.norm(m)) ** 2).sum(),
        "nc4_held_out": (logits.argmax(1) != nearest).mean(),
        "cdnv": np.mean(cdnv),
    }
    assert 0 < expected["nc4_held_out"] < 1
    assert {key: v for (layer, key), v in found.items() if layer} == pytest.approx(expected, rel=1e-6)


def test_neural_collapse_of_other_layers_reads_what_needs_no_classifier():
    found = validated(convnet(), NeuralCollapse(layers=["model.1"]))
    assert {key for layer, key in found if layer == "model.1"} == {
        "nc1", "nc2_equinorm", "nc2_equiangularity", "nc2_maximal_angle", "cdnv"
    }  # fmt: skip


@pytest.mark.parametrize("neighbours", [1, 5])
def test_nearest_means_and_neighbours_are_those_of_sklearn(neighbours):
    module = convnet()
    probe = RepresentationCollapse(train_samples=41, nearest_mean=True, neighbours=neighbours)
    found = validated(module, probe)
    x, y = samples("train", 41)
    test, truth = loaders()[1].dataset.tensors
    layers = [layer for layer, key in found if key == "error"]
    assert layers == ["input", "model.0", "model.1", "model.3"]
    for layer in layers:
        h, test_h = (features(module, layer, s)[1].flatten(1).double().numpy() for s in (x, test))
        nearest = NearestCentroid().fit(h, y).predict(test_h)
        assert found[layer, "nearest_mean_error"] == pytest.approx((nearest != truth.numpy()).mean())
        # Where two classes have most of the votes, the reading is the expected error of a random choice.
        model = KNeighborsClassifier(neighbours, metric="cosine", algorithm="brute").fit(h, y)
        shares = model.predict_proba(test_h)
        best = shares == shares.max(1, keepdims=True)
        errors = 1 - best[np.arange(31), truth.numpy()] / best.sum(1)
        assert found[layer, "neighbours_error"] == pytest.approx(errors.mean())
        if neighbours == 1:
            assert found[layer, "neighbours_error"] == pytest.approx((model.predict(test_h) != truth.numpy()).mean())


def test_balanced_votes_are_divided_by_the_size_of_their_class():
    def rare(x, y):
        return torch.where((y == 3) & (torch.arange(len(y)) > 8), 0, y)

    module, batches = convnet(), with_targets(rare)
    found = validated(module, RepresentationCollapse(train_samples=48), batches)
    x, y = batches[0].dataset.tensors
    test, truth = batches[1].dataset.tensors
    assert len(set(np.bincount(y).tolist())) > 1
    different = 0
    for layer in ("input", "model.0", "model.1", "model.3"):
        h, test_h = (features(module, layer, s)[1].flatten(1).double().numpy() for s in (x, test))
        correlations = np.corrcoef(test_h, h)[:31, 31:]
        votes = correlations @ np.eye(4)[y]
        for key, divisor in (("error", 48), ("balanced_error", np.bincount(y))):
            error = ((votes / divisor).argmax(1) != truth.numpy()).mean()
            assert found[layer, key] == pytest.approx(error), (layer, key)
        different += found[layer, "error"] != found[layer, "balanced_error"]
    assert different
