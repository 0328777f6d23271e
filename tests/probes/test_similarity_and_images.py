"""Similarity of representations and images of activations against the slow computation."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_depth.callbacks import ActivationImages, FeatureSimilarity
from lightning_depth.errors import UserError
from tests.oracles import linear_cka
from tests.probes.foreign import Foreign, autoencoder, convnet, loaders, mlp, trainer, validated
from tests.probes.obvious import features, samples


class Family(Foreign):
    """A foreign network that its checkpoints can build."""

    def __init__(self):
        super().__init__(convnet().model)


STAGES = ["input", "model.0", "model.1", "model.3"]


def test_feature_similarity_is_the_cka_of_every_pair_of_stages():
    module, probe = convnet(), FeatureSimilarity(samples=30)
    found = validated(module, probe)
    x, _ = samples("val", 30)
    h = [features(module, layer, x)[1] for layer in STAGES]
    expected = np.array([[float(linear_cka(a, b)) for b in h] for a in h])
    [picture] = probe.pictures
    assert picture.names == STAGES
    np.testing.assert_allclose(picture.values, expected, atol=1e-9)
    assert {key: v for key, v in found.items() if key[0]} == pytest.approx(
        {(layer, "input"): expected[i, 0] for i, layer in enumerate(STAGES)}
        | {(layer, "previous"): expected[i, i - 1] for i, layer in enumerate(STAGES) if i}
    )


@pytest.mark.parametrize(("max_bytes", "times"), [(200 * 30 * 8, 3), (150 * 30 * 8, 4)])
def test_features_that_are_too_large_are_looked_at_in_parts(max_bytes, times):
    # 192 + 256 + 72 + 4 features, at most 200 or 150 at a time
    whole = validated(convnet(), FeatureSimilarity(samples=30))
    with pytest.warns(UserWarning, match=rf"exceed max_bytes: the samples go through the network {times} times"):
        parts = validated(convnet(), FeatureSimilarity(samples=30, max_bytes=max_bytes))
    assert {k: v for k, v in parts.items() if k[0]} == pytest.approx({k: v for k, v in whole.items() if k[0]}, abs=1e-9)


def test_feature_similarity_to_another_run_of_the_family(tmp_path):
    module = Family()
    fit = trainer(max_epochs=1)
    fit.fit(module, *loaders())
    fit.save_checkpoint(tmp_path / "this.ckpt")
    same = validated(module, FeatureSimilarity(samples=30, reference=str(tmp_path / "this.ckpt")))
    assert [same[layer, "reference"] for layer in STAGES] == pytest.approx([1] * 4, abs=1e-9)
    other, probe = Family(), FeatureSimilarity(samples=30, reference=str(tmp_path / "this.ckpt"))
    for p in other.parameters():
        nn.init.normal_(p, generator=torch.Generator().manual_seed(p.numel()))
    found = validated(other, probe)
    x, _ = samples("val", 30)
    expected = np.array(
        [[float(linear_cka(features(other, a, x)[1], features(module, b, x)[1])) for b in STAGES] for a in STAGES]
    )
    np.testing.assert_allclose({p.key: p.values for p in probe.pictures}["cka_reference"], expected, atol=1e-9)
    assert [found[layer, "reference"] for layer in STAGES] == pytest.approx(np.diag(expected), abs=1e-9)
    assert found["model.3", "reference"] < 0.99
    with pytest.raises(UserError, match=r"FeatureSimilarity: .*this.ckpt is no checkpoint of this family"):
        validated(mlp(), FeatureSimilarity(reference=str(tmp_path / "this.ckpt")))


def singular_image(activations, image):
    """(c, h, w) -> the top right singular vector, signed, and its share."""
    _, sigma, right = torch.linalg.svd(activations.double().flatten(1), full_matrices=False)
    small = nn.functional.interpolate(image.double().mean(0)[None, None], activations.shape[1:], mode="area").flatten()
    sign = 1 if float(right[0] @ small) >= 0 else -1
    cosines = nn.functional.cosine_similarity(activations.double().flatten(1), small[None], dim=1)
    share = float(sigma[0] ** 2 / (sigma**2).sum())
    return sign * right[0].view(activations.shape[1:]), share, cosines


@pytest.mark.parametrize("network", [convnet, autoencoder])
def test_activation_images_are_singular_vectors_of_the_channels(network):
    module, probe = network(), ActivationImages(samples=3)
    found = validated(module, probe)
    layers = {convnet: ["input", "model.0", "model.1"], autoencoder: ["input", "model.0", "model.1"]}[network]
    assert [layer for layer, key in found if key == "share"] == layers
    x, _ = samples("val", 3)
    pictures = {(p.layer, p.key): p.values for p in probe.pictures}
    for layer in layers:
        h = features(module, layer, x)[1]
        images, shares, cosines = zip(*(singular_image(a, s) for a, s in zip(h, x, strict=True)), strict=True)
        assert found[layer, "share"] == pytest.approx(np.mean(shares), rel=1e-6)
        assert found[layer, "correlation"] == pytest.approx(np.mean([float(c.max()) for c in cosines]), rel=1e-6)
        torch.testing.assert_close(pictures[layer, "images"], torch.stack(images), rtol=1e-5, atol=1e-6)
        best = torch.stack([a[int(c.argmax())] for a, c in zip(h, cosines, strict=True)])
        assert torch.equal(pictures[layer, "channels"], best)


def test_upper_sub_networks_are_fed_the_image_itself():
    module, probe = autoencoder(), ActivationImages(samples=3, upper=True)
    validated(module, probe)
    x, _ = samples("val", 3)
    module.eval()
    image = x.mean(1, keepdim=True)
    with torch.no_grad():
        expected = {
            "model.0": module.model(image.expand(-1, 3, -1, -1)).mean(1),
            "model.1": module.model[1](image.expand(-1, 5, -1, -1)).mean(1),
        }
    drawn = {p.layer: p.values for p in probe.pictures if p.key == "upper"}
    assert drawn.keys() == expected.keys()
    for layer, wanted in expected.items():
        torch.testing.assert_close(drawn[layer], wanted)


def test_a_classifier_has_no_upper_sub_networks():
    probe = ActivationImages(samples=3, upper=True)
    with pytest.warns(UserWarning, match="ActivationImages: no upper sub-networks: the network returns no images"):
        validated(convnet(), probe)
    assert not [p for p in probe.pictures if p.key == "upper"]


def test_the_input_alone_is_no_activation():
    probe = ActivationImages(samples=3)
    with pytest.warns(UserWarning, match="no stage of this network returns images"):
        found = validated(mlp(), probe)
    assert [layer for layer, key in found if key != "seconds"] == probe.pictures == []
    assert ("input", "share") in validated(mlp(), ActivationImages(samples=3, layers=["input"]))
