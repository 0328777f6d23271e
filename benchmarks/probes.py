"""What the probes cost in an epoch, and how much faster they are than the definitions."""

import statistics
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn

from benchmarks.measure import DEVICE, by_turns, seconds
from benchmarks.throughput import BATCH, Noise, ours
from lightning_depth import callbacks
from lightning_depth.measures.collapse import CollapseClassifier
from lightning_depth.measures.gram import GramSpectrum, cosine_gram
from lightning_depth.measures.lanczos import operator_norm
from lightning_depth.measures.operators import dense_matrix, layer_operator
from lightning_depth.models import ResNet
from tests.oracles import vote_predictions_nxn


def cost_in_an_epoch(quick: bool) -> list[str]:
    """Seconds that each probe takes of a validation of 10,000 images, beside an epoch of 25,000."""
    data = Noise(augment="crop_flip", batch_size=BATCH)
    data.setup("fit")
    gpu = DEVICE.type == "cuda"
    out = [
        "| front door's network | OperatorNorm | EffectiveRank | RepresentationCollapse | all three | epoch | share |"
    ]
    out.append("| --- | --- | --- | --- | --- | --- | --- |")
    for width in (16, 64):
        steps, warm_up = (150, 20) if gpu else (24, 4) if width == 16 else (7, 2)
        speed = statistics.median(ours(width, steps, warm_up, data) for _ in range(1 if quick else 3))
        epoch = 25_000 / speed
        model = ResNet(depth=18, width=width)
        probes = [callbacks.OperatorNorm(), callbacks.EffectiveRank(), callbacks.RepresentationCollapse()]
        validation(model, data, probes, limit=0.03)  # OperatorNorm starts warm, as in every epoch but the first
        rounds = 1 if quick or (width == 64 and not gpu) else 3
        spent = [validation(model, data, probes, limit=1.0) for _ in range(rounds)]
        cost = [statistics.median(times) for times in zip(*spent, strict=True)]
        shown = " | ".join(f"{seconds:.2f} s" for seconds in [*cost, sum(cost)])
        out.append(f"| ResNet-18, width {width} | {shown} | {epoch:.1f} s | {100 * sum(cost) / epoch:.1f} % |")
    return out


def cost_of_the_shelf(quick: bool) -> list[str]:
    """Seconds of one look of each probe that has something to read of a classifier, with its default arguments."""
    data = Noise(batch_size=BATCH)
    data.setup("fit")
    model = ResNet(depth=18, width=16)
    probes = [
        callbacks.OperatorNorm(),
        callbacks.EffectiveRank(),
        callbacks.RepresentationCollapse(),
        callbacks.Spectrum(),
        callbacks.JacobianNorm(),
        callbacks.NeuralCollapse(),
        callbacks.WeightDistance(),
        callbacks.FeatureSimilarity(),
        callbacks.ActivationImages(),
        callbacks.LocalStability(samples=4),
    ]
    validation(model, data, probes[:-1], limit=0.03)
    spent = [validation(model, data, probes, limit=1.0) for _ in range(1 if quick else 3)]
    out = ["| ResNet-18, width 16, untrained | seconds a look |", "| --- | --- |"]
    for probe, times in zip(probes, zip(*spent, strict=True), strict=True):
        said = " (4 samples)" if isinstance(probe, callbacks.LocalStability) else ""
        out.append(f"| {type(probe).__name__}{said} | {statistics.median(times):.2f} |")
    return out


def validation(model: ResNet, data: Noise, probes: list[Any], limit: float) -> list[float]:
    """The seconds that each probe says it took, its share of the pass over training samples included."""
    fit = Trainer(
        accelerator="gpu" if DEVICE.type == "cuda" else "cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=limit,
        callbacks=[*probes],
    )
    fit.validate(model, data, verbose=False)
    return [next(r.value for r in probe.readings if r.key == "seconds") for probe in probes]


def against_definitions(quick: bool) -> list[str]:
    """Speed-up over the definitional computation, and the largest difference between the two."""
    generator = torch.Generator().manual_seed(0)
    rounds = 1 if quick else 3
    out = ["| computation | definition | ours | speed-up | largest difference |", "| --- | --- | --- | --- | --- |"]

    features = torch.randn(5000, 512, generator=generator).relu().to(DEVICE)
    slow: list[torch.Tensor] = []
    fast: list[torch.Tensor] = []
    times = by_turns(
        {
            "definition": lambda: seconds(lambda: slow.append(torch.linalg.svdvals(cosine_gram(features)))),
            "ours": lambda: seconds(lambda: fast.append(_streamed_gram(features))),
        },
        rounds=1 if quick else 2,
    )
    difference = float((slow[-1][:512] - fast[-1][:512]).abs().max() / slow[-1][0])
    out.append(
        _row(
            "effective rank: spectrum of the cosine Gram matrix, p = 5,000, d = 512",
            times,
            f"{difference:.0e} (relative)",
        )
    )

    labels = torch.arange(5000, device=DEVICE) % 10
    for size in (16_384, 512):
        centres = torch.randn(10, size, generator=generator).to(DEVICE)
        train, test = (
            (0.1 * centres[labels] + torch.randn(5000, size, generator=generator).to(DEVICE)).relu() for _ in range(2)
        )
        errors: dict[str, float] = {}

        def definition(
            test: torch.Tensor = test, train: torch.Tensor = train, errors: dict[str, float] = errors
        ) -> None:
            predicted = vote_predictions_nxn(test, train, labels, 10)
            errors["definition"] = float((predicted.int().argmax(1) != labels).double().mean())

        def prototypes(
            test: torch.Tensor = test, train: torch.Tensor = train, errors: dict[str, float] = errors
        ) -> None:
            errors["ours"] = _streamed_collapse(test, train, labels)

        definition(), prototypes()
        times = by_turns({"definition": lambda: seconds(definition), "ours": lambda: seconds(prototypes)}, rounds)
        unequal = f"error {errors['ours']:.4f} against {errors['definition']:.4f}"
        out.append(_row(f"collapse: 5,000 votes of 5,000 images, d = {size:,}", times, unequal))

    conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    operator = layer_operator(conv, (16, 12, 12))
    norms: dict[str, float] = {}
    times = by_turns(
        {
            "definition": lambda: seconds(
                lambda: norms.update(a=float(torch.linalg.matrix_norm(dense_matrix(operator), 2)))
            ),
            "ours": lambda: seconds(lambda: norms.update(b=operator_norm(operator).value)),
        },
        rounds,
    )
    out.append(
        _row(
            "operator norm: 3x3 convolution, 16 channels, 12x12 (dense 2,304 x 2,304, on the CPU)",
            times,
            f"{abs(norms['a'] / norms['b'] - 1):.0e} (relative)",
        )
    )
    return out


def _streamed_gram(features: torch.Tensor) -> torch.Tensor:
    metric = GramSpectrum(512).to(features.device)
    for batch in features.split(250):
        metric.update(batch)
    spectrum: torch.Tensor = metric.compute()
    return spectrum


def _streamed_collapse(test: torch.Tensor, train: torch.Tensor, labels: torch.Tensor) -> float:
    metric = CollapseClassifier(10, tuple(test.shape[1:])).to(test.device)
    for batch, y in zip(train.split(250), labels.split(250), strict=True):
        metric.update_prototypes(batch, y)
    for batch, y in zip(test.split(250), labels.split(250), strict=True):
        metric.update(batch, y)
    return float(metric.compute())


def _row(what: str, times: dict[str, list[float]], difference: str) -> str:
    slow, fast = statistics.median(times["definition"]), statistics.median(times["ours"])
    return f"| {what} | {slow:.2f} s | {fast:.4f} s | {slow / fast:.0f} | {difference} |"
