"""Spectra against whole matrices, on networks that are not ours."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_depth.callbacks import Spectrum
from tests.probes.foreign import convnet, loaders, validated, vit
from tests.probes.obvious import features, ranks_and_norms, samples


@pytest.mark.parametrize("network", [convnet, vit])
def test_spectrum_of_weights_is_that_of_every_reshaped_kernel(network):
    module, probe = network(), Spectrum()
    found = validated(module, probe)
    weights = {
        name.rpartition(".")[0]: p.detach().double().flatten(1)
        for name, p in module.named_parameters()
        if p.dim() >= 2 and name.endswith("weight")
    }
    assert {layer for layer, _ in found} - {""} == set(weights)
    assert len(weights) == {convnet: 3, vit: 10}[network]  # patches, two blocks of four matrices, head
    for layer, weight in weights.items():
        if not weight.any():  # the head of a vision transformer starts at zero
            assert found[layer, "effective_rank"] == -math.inf
            assert {found[layer, key] for key in ("stable_rank", "participation_ratio", "spectral_norm")} == {0}
            continue
        sigma = torch.linalg.svdvals(weight).numpy()
        for key, value in ranks_and_norms(sigma, sigma**2).items():
            assert found[layer, key] == pytest.approx(value, rel=1e-9), (layer, key)
        [drawn] = [p.values for p in probe.pictures if p.layer == layer]
        np.testing.assert_allclose(drawn, sigma / sigma[0], rtol=1e-9)


@pytest.mark.parametrize(
    ("kernel", "split", "count"),
    [("cosine", "val", None), ("linear", "val", 7), ("cosine", "train", 20), ("linear", "train", None)],
)
def test_spectrum_of_features_is_that_of_the_whole_gram_matrix(kernel, split, count):
    module = convnet()
    probe = Spectrum(of="gram", kernel=kernel, split=split, samples=count)
    found = validated(module, probe)
    if split == "train":
        x, _ = samples("train", count or 1000)
    else:
        x, _ = loaders()[1].dataset.tensors
        x = x[[i for i in range(31) if (i + 1) * count // 31 > i * count // 31]] if count else x
    rows = features(module, "model.3", x)[0].double()
    assert rows.shape == ({("val", None): 31, ("train", None): 48}.get((split, count), count), 72)
    rows = nn.functional.normalize(rows, dim=1) if kernel == "cosine" else rows
    gram = rows @ rows.T
    eigenvalues = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0).numpy()
    assert {layer for layer, _ in found} == {"", "model.3"}
    for key, value in ranks_and_norms(eigenvalues, eigenvalues).items():
        assert found["model.3", key] == pytest.approx(value, rel=1e-6), key
    pictures = {p.key: p.values for p in probe.pictures}
    np.testing.assert_allclose(pictures["spectrum"], eigenvalues / eigenvalues[0], atol=1e-6)
    unit = nn.functional.normalize(rows, dim=1)
    similarity = unit @ unit.T
    assert pictures["similarity"].shape == similarity.shape
    # Training samples are shown in the order of their choice, held-out ones in theirs.
    np.testing.assert_allclose(pictures["similarity"], similarity, atol=1e-5)
