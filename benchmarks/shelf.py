"""Seconds and peak memory of the measures, beside their definitions and the peers that compute the same numbers."""

import contextlib
import io
import logging
import math
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from benchmarks.measure import DEVICE, Cost, by_turns, cost, ratio
from lightning_depth.measures import spectra
from lightning_depth.measures.gram import GramSpectrum
from lightning_depth.measures.jacobians import jacobian_norm
from lightning_depth.measures.lanczos import operator_norm
from lightning_depth.measures.operators import dense_matrix, layer_operator
from lightning_depth.models import ResNet
from lightning_depth.probes.calls import Call, trace

Action = Callable[[], Any]
# What makes an action, and its arguments.
Arm = tuple[Any, ...]

HEAD = [
    "| computation | by | seconds | in units of the last | peak memory | largest difference |",
    "| --- | --- | --- | --- | --- | --- |",
]
# Networks by the names they have in the tables, and the shape of their input.
THEIRS, OURS = "torchvision ResNet-18, 224 x 224", "our ResNet, depth 50, width 64, 32 x 32"
SMALL_THEIRS, SMALL_OURS = "torchvision ResNet-18, 64 x 64", "our ResNet, depth 10, width 16, 32 x 32"
SHAPES = {THEIRS: (3, 224, 224), SMALL_THEIRS: (3, 64, 64), OURS: (3, 32, 32), SMALL_OURS: (3, 32, 32)}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name in (THEIRS, SMALL_THEIRS):
        made: nn.Module = torchvision.models.resnet18()
    else:
        depth, width = (50, 64) if name == OURS else (10, 16)
        model = ResNet(depth=depth, width=width, input_shape=(3, 32, 32), num_classes=10)
        model.configure_model()
        made = model
    return made.to(DEVICE).eval()


def networks(quick: bool) -> tuple[str, str]:
    return (SMALL_THEIRS, SMALL_OURS) if quick else (THEIRS, OURS)


def of_each(value: Tensor, reference: Tensor) -> str:
    return f"{float((value / reference - 1).abs().max()):.0e}"


def of_largest(value: Tensor, reference: Tensor) -> str:
    return f"{float((value - reference).abs().max() / reference.abs().max()):.0e} of the largest"


def rows(
    what: str,
    arms: dict[str, Arm],
    rounds: int,
    against: str,
    difference: Callable[[Tensor, Tensor], str] = of_each,
    once: str = "",
) -> list[str]:
    """A row for each arm, the last of which is ours; differences are to the values of the arm `against`.

    The arm `once` is slow: it is measured once, before the others.
    """
    costs = {name: [cost(*arm)] for name, arm in arms.items() if name == once}
    turns = {name: partial(cost, *arm) for name, arm in arms.items() if name != once}
    costs |= by_turns(turns, rounds)
    ours = [c.seconds for c in costs[list(costs)[-1]]]
    reference = torch.tensor(costs[against][0].value, dtype=torch.float64)
    out = []
    for name, found in costs.items():
        seconds = [c.seconds for c in found]
        value = torch.tensor(found[0].value, dtype=torch.float64)
        shown = "other values" if value.shape != reference.shape else difference(value, reference)
        shown = "the reference" if name == against else shown
        last = f"{seconds[0] / statistics.median(ours):.2f} (once)" if name == once else ratio(seconds, ours)
        times = "1" if found is costs[list(costs)[-1]] else last
        out.append(f"| {what} | {name} | {statistics.median(seconds):.3f} | {times} | {_megabytes(found)} | {shown} |")
    return out


def _megabytes(found: list[Cost]) -> str:
    return f"{statistics.median(c.bytes for c in found) / 2**20:,.0f} MiB"


# Spectra of weights


def weight_spectra(quick: bool) -> list[str]:
    """WeightWatcher's table of all layers, its eigenvalues alone, and ours of the same matrices and of flat kernels."""
    out = list(HEAD)
    for name in networks(quick)[1 if quick else 0 :]:
        arms: dict[str, Arm] = {
            "WeightWatcher, `analyze()` (fits power laws too)": (_analyzed, name),
            "WeightWatcher, its eigenvalues alone": (_watched, name),
            "ours, kernels flattened (`Spectrum`: 7 readings of each layer)": (_readings, name),
            "ours, the same slices of kernels, 7 readings of each layer": (_sliced, name),
        }
        against = "WeightWatcher, its eigenvalues alone"
        out += rows(f"weights of {name}", arms, 1 if quick else 3, against, of_largest, once=next(iter(arms)))
    return out


def _watcher(name: str) -> tuple[Any, Any]:
    """The package and its watcher of the network; it prints, and takes over the root logger."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logging.disable(logging.WARNING)
    import weightwatcher

    root.handlers[:] = handlers
    root.setLevel(level)
    return weightwatcher, weightwatcher.WeightWatcher(model=network(name))


def _analyzed(name: str) -> Action:
    _, watcher = _watcher(name)

    def action() -> list[float]:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            found: list[float] = watcher.analyze(min_evals=0)["lambda_max"].tolist()
        return found

    return action


def _watched(name: str) -> Action:
    weightwatcher, watcher = _watcher(name)
    params = weightwatcher.constants.DEFAULT_PARAMS | {"min_evals": 0, "conv2d_norm": False}

    def action() -> list[float]:
        every: list[float] = []
        for layer in watcher.make_layer_iterator(params=params):
            if layer.has_weights and not layer.skipped:
                watcher.apply_normalize_Wmats(layer, params)
                watcher.apply_esd(layer, params)
                every += layer.evals.tolist()
        return every

    return action


def _weights(name: str) -> list[Tensor]:
    return [m.weight.detach() for m in network(name).modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def _measured(sigma: Tensor) -> list[float]:
    found = [spectra.effective_rank, spectra.stable_rank, spectra.threshold_rank_auc]
    norms = [float(spectra.schatten_norm(sigma, p)) for p in (1.0, 2.0, math.inf)]
    return [*(float(measure(sigma)) for measure in found), float(spectra.participation_ratio(sigma.square())), *norms]


def _readings(name: str) -> Action:
    weights = _weights(name)
    return lambda: [_measured(spectra.singular_values(weight.flatten(1))) for weight in weights]


def _sliced(name: str) -> Action:
    weights = _weights(name)

    def action() -> list[float]:
        every: list[float] = []
        for weight in weights:
            slices = weight[..., None] if weight.dim() == 2 else weight.flatten(2)
            sigma = spectra.singular_values(slices.permute(2, 0, 1)).flatten()
            _measured(sigma)
            every += sigma.square().sort().values.tolist()
        return every

    return action


# Rank of features


def feature_rank(quick: bool) -> list[str]:
    """The exponential of the effective rank of features, streamed in batches of 100."""
    out = list(HEAD)
    with tempfile.TemporaryDirectory() as folder:
        for name in networks(quick):
            samples = 200 if quick else 2000 if DEVICE.type == "cuda" or name == OURS else 512
            for layer, features in _features(name, samples).items():
                path = str(Path(folder) / "features.pt")
                torch.save(features, path)
                arms: dict[str, Arm] = {
                    "definition: SVD in float64": (_exact_rank, path),
                    "RankMe callback: float32, eps = 1e-7": (_rankme, path),
                    "ours: `GramSpectrum`, linear kernel": (_streamed_rank, path),
                }
                what = f"{name}, {layer}: {samples:,} random images, d = {features.shape[1]:,}"
                out += rows(what, arms, 1 if quick else 3, next(iter(arms)), once=next(iter(arms)))
        generator = torch.Generator().manual_seed(0)
        left, right = torch.randn(2000, 10, generator=generator), torch.randn(10, 512, generator=generator)
        path = str(Path(folder) / "features.pt")
        torch.save(left @ torch.linalg.qr(right.mT).Q.mT, path)
        arms = {name: (prepare, path) for name, (prepare, _) in arms.items()}
        out += rows("rank 10, 2,000 x 512", arms, 1 if quick else 3, "definition: SVD in float64")
    return out


@torch.no_grad()
def _features(name: str, samples: int) -> dict[str, Tensor]:
    """What enters the last linear layer, and the last convolution's block's whole output."""
    net = network(name)
    kept: dict[str, list[Tensor]] = {"features": [], "the whole last stage": []}
    head = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
    stage = next(m for n, m in net.named_modules() if n.endswith(("layer4", "stage4")))
    head.register_forward_pre_hook(lambda _, args: kept["features"].append(args[0].flatten(1).cpu()))
    stage.register_forward_hook(lambda *args: kept["the whole last stage"].append(args[2].flatten(1).cpu()))
    generator = torch.Generator().manual_seed(0)
    for start in range(0, samples, 100):
        count = min(100, samples - start)
        net(torch.randn(count, *SHAPES[name], generator=generator).to(DEVICE))
    return {layer: torch.cat(batches) for layer, batches in kept.items()}


def _batches(path: str) -> Callable[[], Iterator[Tensor]]:
    """Batches that are gone when the next one comes, as those of a forward pass."""
    features = torch.load(path, map_location=DEVICE)
    return lambda: (batch.clone() for batch in features.split(100))


def _exact_rank(path: str) -> Action:
    features = torch.load(path, map_location=DEVICE)
    return lambda: [float(spectra.exp_effective_rank(spectra.singular_values(features)))]


def _rankme(path: str) -> Action:
    batches = _batches(path)

    def action() -> list[float]:
        """Garrido et al. (2023), Equation 3, as it is written in callbacks."""
        kept = []
        for batch in batches():
            kept.append(batch.detach().cpu())
        sigma = torch.linalg.svdvals(torch.cat(kept))
        p = sigma / sigma.sum() + 1e-7
        return [float(torch.exp(-(p * p.log()).sum()))]

    return action


def _streamed_rank(path: str) -> Action:
    batches = _batches(path)
    width = next(batches()).shape[1]

    def action() -> list[float]:
        metric = GramSpectrum(width, kernel="linear").to(DEVICE)
        for batch in batches():
            metric.update(batch)
        return [float(spectra.exp_effective_rank(metric.compute().sqrt()))]

    return action


# Operator norms


def operator_norms(quick: bool) -> list[str]:
    """The norm of one small layer against its dense matrix, and of all layers of a network, cold and warm."""
    out = list(HEAD)
    size = 8 if quick else 12
    arms: dict[str, Arm] = {"definition: the dense matrix": (_dense_norm, size), "ours": (_one_norm, size)}
    what = f"3x3 convolution, 16 channels, {size} x {size}"
    out += rows(what, arms, 1 if quick else 3, "definition: the dense matrix")
    for name in networks(quick):
        calls = _layers(name)
        sizes = [math.prod(c.input_shape or ()) * math.prod(c.output_shape or ()) for c in calls]
        what = f"all {len(calls)} layers of {name} (the largest as a dense matrix: {4 * max(sizes) / 2**30:,.0f} GiB)"
        warm_arms: dict[str, Arm] = {
            "ours, rtol 1e-5, cold": (_all_norms, name, 1e-5, False),
            "ours, rtol 1e-4, cold": (_all_norms, name, 1e-4, False),
            "ours, rtol 1e-4, warm (from weights 1 % away)": (_all_norms, name, 1e-4, True),
        }
        out += rows(what, warm_arms, 1 if quick else 3, next(iter(warm_arms)), once=next(iter(warm_arms)))
    return out


def _small(size: int) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    return nn.Conv2d(16, 16, 3, padding=1, bias=False), (16, size, size)


def _dense_norm(size: int) -> Action:
    operator = layer_operator(*_small(size))
    return lambda: [float(torch.linalg.matrix_norm(dense_matrix(operator), 2))]


def _one_norm(size: int) -> Action:
    operator = layer_operator(*_small(size))
    return lambda: [operator_norm(operator).value]


def _layers(name: str) -> list[Call]:
    calls = trace(network(name), torch.zeros(1, *SHAPES[name], device=DEVICE))
    return [call for call in calls if isinstance(call.module, nn.Conv2d | nn.Linear)]


def _all_norms(name: str, rtol: float, warm: bool) -> Action:
    calls = _layers(name)
    starts: dict[str, Tensor | None] = {}
    for call in calls if warm else []:
        weight: Any = call.module.weight
        noise = torch.randn_like(weight)
        away = 0.01 * weight.norm() / noise.norm() * noise
        weight.data += away
        starts[call.name] = operator_norm(layer_operator(call.module, call.input_shape or ()), rtol=rtol).start
        weight.data -= away
    return lambda: [
        operator_norm(layer_operator(call.module, call.input_shape or ()), starts.get(call.name), rtol).value
        for call in calls
    ]


# Local operator norms


def jacobian_norms(quick: bool) -> list[str]:
    """The norm of the Jacobian at random inputs: written out by autograd and decomposed, and ours."""
    out = list(HEAD)
    theirs, ours = networks(quick)
    few = 1 if quick else 8
    for name, samples, classes in ((ours, few, 10), (ours, few, 100), (theirs, 1, 100 if quick else 1000)):
        arms: dict[str, Arm] = {
            "definition: `autograd.functional.jacobian`, one sample at a time, SVD": (_written, name, samples, classes),
            "ours, rtol 1e-3": (_lanczos, name, samples, classes),
        }
        what = f"{name}, {classes:,} outputs, {samples} image{'s' * (samples > 1)}"
        slow = next(iter(arms))
        out += rows(what, arms, 1 if quick else 3, slow, once=slow if name == theirs else "")
    return out


def _with_head(name: str, samples: int, classes: int) -> tuple[nn.Module, Tensor]:
    net = network(name)
    for path, module in list(net.named_modules()):
        if isinstance(module, nn.Linear) and module.out_features != classes:
            parent, _, last = path.rpartition(".")
            setattr(net.get_submodule(parent), last, nn.Linear(module.in_features, classes).to(DEVICE))
    generator = torch.Generator().manual_seed(0)
    return net, torch.randn(samples, *SHAPES[name], generator=generator).to(DEVICE)


def _written(name: str, samples: int, classes: int) -> Action:
    net, inputs = _with_head(name, samples, classes)

    def action() -> list[float]:
        found = []
        for x in inputs:
            jacobian = torch.autograd.functional.jacobian(lambda x: net(x[None])[0], x)
            found.append(float(torch.linalg.svdvals(jacobian.flatten(1))[0]))
        return found

    return action


def _lanczos(name: str, samples: int, classes: int) -> Action:
    net, inputs = _with_head(name, samples, classes)
    return lambda: jacobian_norm(net, inputs).values.tolist()
