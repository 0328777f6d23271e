"""Each further probe's readings against the slow and obvious computation, on networks that are not ours."""

import copy
import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torch.utils.flop_counter import FlopCounterMode

from lightning_depth.callbacks import (
    ActivationImages,
    FeatureSimilarity,
    IdentityConstant,
    JacobianNorm,
    LinearOperator,
    LocalStability,
    NeuralCollapse,
    OperatorNorm,
    RepresentationCollapse,
    Spectrum,
    WeightDistance,
)
from lightning_depth.errors import UserError
from lightning_depth.measures.lanczos import operator_norm
from lightning_depth.measures.operators import layer_operator
from lightning_depth.models.resnet import ResNet
from tests.oracles import linear_cka
from tests.probes.foreign import (
    Autoencoder,
    Foreign,
    autoencoder,
    convnet,
    loaders,
    mlp,
    readings,
    trainer,
    validated,
    vit,
)


def samples(split, count, batches=None):
    """Inputs and labels of the fixed random choice that probes make."""
    x, y = (batches or loaders())[split == "val"].dataset.tensors
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:count]
    return x[chosen], y[chosen]


def features(module, layer, x, number=0):
    """The inputs and outputs of a call of a layer."""
    if layer == "input":
        return x, x
    seen = []
    handle = module.get_submodule(layer).register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    with torch.no_grad():
        module.eval()(x)
    handle.remove()
    return seen[number]


def jacobians(function, x):
    """One matrix a sample."""
    return [torch.func.jacrev(lambda s: function(s[None])[0])(s).reshape(-1, s.numel()).double() for s in x]


# --- spectra ---------------------------------------------------------------------------------------------------------


def ranks_and_norms(sigma, eigenvalues):
    shares = sigma / sigma.sum()
    return {
        "effective_rank": -sum(s * math.log(s) for s in shares if s > 0),
        "stable_rank": (sigma**2).sum() / sigma.max() ** 2,
        "threshold_rank_auc": sigma.sum() / sigma.max(),
        "participation_ratio": eigenvalues.sum() ** 2 / (eigenvalues**2).sum(),
        "nuclear_norm": sigma.sum(),
        "frobenius_norm": math.sqrt((sigma**2).sum()),
        "spectral_norm": sigma.max(),
    }


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


# --- Jacobians and operators -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val"])
def test_jacobian_norms_are_those_of_autograd_matrices(split):
    module = convnet()
    found = validated(module, JacobianNorm(split=split, samples=5))
    x, _ = samples(split, 5)
    module.eval()
    exact = torch.stack([torch.linalg.svdvals(j)[0] for j in jacobians(module, x)]).detach()
    assert found["", "mean"] == pytest.approx(float(exact.mean()), rel=1e-5)
    assert found["", "max"] == pytest.approx(float(exact.max()), rel=1e-5)
    assert found["", "residual"] == 0  # written out


def test_jacobian_norms_of_named_layers():
    module = convnet()
    found = validated(module, JacobianNorm(layers=["model.0", "model.1.0"], samples=4, rtol=1e-4))
    assert {layer for layer, _ in found} == {"", "model.0", "model.1.0"}
    x, _ = samples("val", 4)
    module.eval()
    parts = {"model.0": module.model[0], "model.1.0": nn.Sequential(module.model[0], module.model[1][0])}
    for layer, part in parts.items():
        exact = torch.stack([torch.linalg.svdvals(j)[0] for j in jacobians(part, x)]).detach()
        assert found[layer, "mean"] == pytest.approx(float(exact.mean()), rel=1e-4)
        assert found[layer, "max"] == pytest.approx(float(exact.max()), rel=1e-4)
        assert 0 < found[layer, "residual"] <= 2e-4


def test_a_layers_output_is_read_before_the_network_changes_it_in_place():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 4)]
    module = Foreign(nn.Sequential(*layers))
    found = validated(module, JacobianNorm(layers=["model.0"], samples=2, rtol=1e-5))
    exact = operator_norm(layer_operator(layers[0], (3, 8, 8)), rtol=1e-5).value  # the ReLU would make it smaller
    assert found["model.0", "mean"] == pytest.approx(exact, rel=1e-4)
    assert found["model.0", "max"] == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize(
    ("make", "rtol"),
    [
        (lambda: JacobianNorm(layers=["model.0"], samples=4, rtol=1e-4), 1e-4),
        (lambda: OperatorNorm(layers=["model.0.0"], rtol=1e-5), 1e-5),
    ],
    ids=["JacobianNorm", "OperatorNorm"],
)
def test_starts_are_saved_and_shorten_the_next_look(make, rtol):
    def look(probe):
        torch.manual_seed(0)
        body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        module = Foreign(nn.Sequential(body, nn.Flatten(), nn.Linear(800, 4)))
        with FlopCounterMode(display=False) as counter:
            found = validated(module, probe, loaders(size=10))
        return {k: v for k, v in found.items() if k[1] not in ("seconds", "residual")}, counter.get_total_flops()

    first = make()
    cold, cold_cost = look(first)
    second = make()
    second.load_state_dict(torch_round_trip(first.state_dict()))
    warm, warm_cost = look(second)
    assert warm == pytest.approx(cold, rel=rtol)
    assert warm_cost < cold_cost
    assert look(make()) == (cold, cold_cost)  # the control: nothing else makes it short


def torch_round_trip(state):
    from io import BytesIO

    file = BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def columns(network, shape):
    """The matrix of an affine network in float64, a column for each basis vector, and its offset."""
    network = copy.deepcopy(network).double().eval()
    n = math.prod(shape)
    with torch.no_grad():
        offset = network(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
        fed = [network(e.view(1, *shape)).flatten() - offset for e in torch.eye(n, dtype=torch.float64)]
    return torch.stack(fed, dim=1).numpy(), offset.numpy()


def with_targets(targets):
    """The loaders, with targets made from the inputs and labels."""
    made = []
    for loader in loaders():
        x, y = loader.dataset.tensors
        made.append(DataLoader(TensorDataset(x, targets(x, y)), 16))
    return made


def test_linear_operator_of_an_autoencoder_is_the_product_of_its_convolutions():
    module, probe = autoencoder(), LinearOperator(samples=20)
    batches = with_targets(lambda x, y: x)
    found = validated(module, probe, batches)
    matrix, offset = columns(module, (3, 8, 8))
    assert matrix.shape == (192, 192)
    sigma = np.linalg.svd(matrix, compute_uv=False)
    expected = ranks_and_norms(sigma, sigma**2)
    assert found["", "norm"] == pytest.approx(sigma[0], rel=1e-5)
    for key in ("frobenius_norm", "stable_rank", "effective_rank"):
        assert found["", key] == pytest.approx(expected[key], rel=1e-5)
    x = samples("train", 20, batches)[0].flatten(1).double().numpy()
    best = (np.linalg.pinv(x) @ (x - offset)).T
    distance = np.linalg.norm(matrix - best) / np.linalg.norm(best)
    assert found["", "distance"] == pytest.approx(distance, rel=1e-5)
    [spectrum] = probe.pictures
    np.testing.assert_allclose(spectrum.values, sigma / sigma[0], atol=1e-5)


def linear():
    torch.manual_seed(0)
    return Foreign(nn.Sequential(nn.Flatten(), nn.Linear(192, 9, bias=False), nn.Linear(9, 4)))


def test_linear_operator_of_a_classifier_is_compared_with_one_hot_classes():
    module = linear()
    found = validated(module, LinearOperator())
    x, y = samples("train", 1000)
    assert len(x) == 48
    x, one_hot = x.flatten(1).double().numpy(), np.eye(4)[y]
    best = (np.linalg.pinv(x) @ (one_hot - module.model[2].bias.detach().double().numpy())).T
    matrix = (module.model[2].weight @ module.model[1].weight).detach().double().numpy()
    distance = np.linalg.norm(matrix - best) / np.linalg.norm(best)
    assert found["", "distance"] == pytest.approx(distance, rel=1e-5)


def test_no_distance_where_class_labels_are_not_what_the_network_returns():
    probe = LinearOperator()
    with pytest.warns(UserWarning, match=r"LinearOperator: no distance: the targets are not what the network returns"):
        found = validated(autoencoder(), probe)
    assert ("", "norm") in found
    assert ("", "distance") not in found


# --- collapse --------------------------------------------------------------------------------------------------------


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


# --- function space --------------------------------------------------------------------------------------------------


class Constant(nn.Module):
    def __init__(self, example):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("example", example)

    def forward(self, x):
        return self.scale * self.example.expand(len(x), *self.example.shape)


@pytest.mark.parametrize("which", [0, 2])
def test_the_constant_and_the_identity_map_are_told_apart(which):
    rhos = [-0.5, 0.0, 0.3, 1.0]
    example = samples("train", which + 1)[0][-1]
    probe = IdentityConstant(correlations=rhos, draws=3, example=which)
    constant = validated(Autoencoder(Constant(example)), probe)
    identity = validated(
        Autoencoder(nn.Sequential(nn.Identity())), IdentityConstant(correlations=rhos, draws=3, example=which)
    )
    size = float(example.double().square().sum())
    for rho in rhos:
        error = 2 * size * (1 - rho) / example.numel()
        for found, own, other in ((constant, "constant", "identity"), (identity, "identity", "constant")):
            assert found["", own, rho] == pytest.approx(1, abs=1e-6)
            assert found["", other, rho] == pytest.approx(rho, abs=1e-6)
            assert found["", f"{own}_mse", rho] == pytest.approx(0, abs=1e-9)
            assert found["", f"{other}_mse", rho] == pytest.approx(error, rel=1e-5, abs=1e-9)
    inputs, predictions = probe.pictures
    assert inputs.values.shape == predictions.values.shape == (4, 8, 8)
    torch.testing.assert_close(predictions.values, example.mean(0).expand(4, 8, 8))
    torch.testing.assert_close(inputs.values[3], example.mean(0), rtol=1e-5, atol=1e-5)
    assert inputs.names == ["rho=-0.5", "rho=0", "rho=0.3", "rho=1"]


def test_weight_distances_are_those_from_the_start_of_training():
    module, probe = mlp(), WeightDistance()
    before = {name: p.detach().double().clone() for name, p in module.named_parameters()}
    with pytest.warns(UserWarning, match=r"^WeightDistance: model.2.bias starts at zero: no relative distance"):
        trainer([probe]).fit(module, *loaders())
    found = readings(probe)
    after = {name: p.detach().double() for name, p in module.named_parameters()}
    assert {layer for layer, _ in found} - {""} == set(before) - {"model.2.bias"}
    for name in set(before) - {"model.2.bias"}:
        expected = float((after[name] - before[name]).norm() / before[name].norm())
        assert expected > 0
        assert found[name, "distance"] == pytest.approx(expected, rel=1e-6)


def test_the_start_of_a_foreign_network_survives_a_checkpoint(tmp_path):
    def fitted(epochs, **arguments):
        torch.manual_seed(3)
        module, probe = mlp(), WeightDistance(layers=["model.1"])
        fit = trainer([probe], max_epochs=epochs)
        fit.fit(module, *loaders(), **arguments)
        return fit, module, readings(probe)

    start = mlp().model[1].weight.detach()
    first, *_ = fitted(1)
    first.save_checkpoint(tmp_path / "one.ckpt")
    _, module, found = fitted(3, ckpt_path=tmp_path / "one.ckpt", weights_only=False)
    expected = float((module.model[1].weight.detach() - start).norm() / start.norm())
    assert found["model.1.weight", "distance"] == pytest.approx(expected, rel=1e-5)
    assert set(found) == {("model.1.weight", "distance"), ("model.1.bias", "distance"), ("", "seconds")}
    # A probe that comes later has not seen the start.
    trainer(max_epochs=1).fit(module := mlp(), *loaders())
    module.trainer.save_checkpoint(tmp_path / "without.ckpt")
    with pytest.raises(UserError, match="WeightDistance needs the weights at the start of training"):
        fitted(3, ckpt_path=tmp_path / "without.ckpt", weights_only=False)
    with pytest.raises(UserError, match="WeightDistance needs the weights at the start of training"):
        validated(mlp(), WeightDistance())


def test_the_start_of_our_own_network_is_drawn_again():
    module, probe = ResNet(depth=10, width=2, input_shape=(3, 8, 8), num_classes=4, seed=5), WeightDistance()
    module.configure_model()
    before = {name: p.detach().double().clone() for name, p in module.named_parameters()}
    batches = [DataLoader(d.dataset, 16, collate_fn=lambda b: tuple(default_collate(b))) for d in loaders()]
    trainer([probe], max_epochs=1).fit(module, *batches)
    found = readings(probe)
    assert probe.state_dict() == {"initial": {}}  # nothing to carry
    after = {name: p.detach().double() for name, p in module.named_parameters()}
    named = {name for name, start in before.items() if start.any()}
    assert {layer for layer, _ in found} - {""} == named
    for name in named:
        expected = float((after[name] - before[name]).norm() / before[name].norm())
        assert found[name, "distance"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("network", [convnet, mlp])
def test_local_stability_is_that_of_every_coordinate(network):
    module, strengths = network(), [0.5, 2.0, 8.0]
    found = validated(module, LocalStability(samples=3, strengths=strengths))
    x, _ = samples("val", 3)
    shares = []
    with torch.no_grad():
        label = module.eval()(x).argmax(1)
        for v in strengths:
            stable = 0
            for i in range(3):
                moved = torch.cat([x[i].flatten() + v * torch.eye(192), x[i].flatten() - v * torch.eye(192)])
                stable += int((module(moved.view(-1, 3, 8, 8)).argmax(1) == label[i]).all())
            shares.append(stable / 3)
    assert [found["", "stability", v] for v in strengths] == shares
    assert len(set(shares)) > 1


# --- similarity and images -------------------------------------------------------------------------------------------


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


def test_the_input_alone_is_no_activation():
    probe = ActivationImages(samples=3)
    with pytest.warns(UserWarning, match="no stage of this network returns images"):
        found = validated(mlp(), probe)
    assert [layer for layer, key in found if key != "seconds"] == probe.pictures == []
    assert ("input", "share") in validated(mlp(), ActivationImages(samples=3, layers=["input"]))


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
