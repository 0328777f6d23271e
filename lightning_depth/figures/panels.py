"""What a page shows: the columns and the readings of a run's tables, grouped into panels."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_depth.figures.tables import section

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """One line: finite or NaN `values` (NaN leaves a gap) at `epochs`."""

    label: str
    split: str  # "train", "val", "test", a name of the logger's own, or "" where the column names none
    epochs: Array
    values: Array


@dataclass(frozen=True)
class Curves:
    """One panel of lines over epochs."""

    name: str
    title: str
    unit: str
    series: tuple[Series, ...]
    lower_is_better: bool = False
    from_zero: bool = False


@dataclass(frozen=True)
class Heatmap:
    """One panel of layers (rows, input first) over epochs (columns)."""

    name: str
    title: str
    unit: str
    layers: tuple[str, ...]
    epochs: tuple[int, ...]
    values: Array
    chance: float | None = None
    rows: str = "input  →  output"


@dataclass(frozen=True)
class Number:
    """One reading of one look."""

    name: str
    title: str
    unit: str
    value: float


@dataclass(frozen=True)
class Best:
    """The epoch at which the held-out metric was lowest."""

    panel: str
    epoch: float
    value: float


@dataclass(frozen=True)
class Wording:
    """How a known reading is called: its title for many layers, for one, its unit, and the factor to that unit."""

    many: str
    one: str
    unit: str
    factor: float = 1.0
    from_zero: bool = False


def _plain(title: str, unit: str) -> Wording:
    return Wording(title, title, unit)


# Of a probe that stands here, these keys are drawn; of any other, the first that it wrote.
WORDINGS = {
    ("operator_norm", "norm"): Wording(
        "Operator norm of each layer (largest singular value)",
        "Operator norm of {layer} (largest singular value)",
        "largest singular value",
    ),
    ("effective_rank", "effective_rank"): Wording(
        "Effective rank at each layer (nats)", "Effective rank of the features (nats)", "effective rank (nats)"
    ),
    ("representation_collapse", "error"): Wording(
        "Collapse: error of the correlation vote at each stage (%)",
        "Collapse: error of the correlation vote at {layer} (%)",
        "error (%)",
        factor=100.0,
        from_zero=True,
    ),
    ("spectrum", "effective_rank"): Wording(
        "Spectrum: effective rank at each layer (nats)", "Spectrum: effective rank at {layer} (nats)", "effective rank"
    ),
    ("spectrum", "stable_rank"): Wording(
        "Spectrum: stable rank at each layer", "Spectrum: stable rank at {layer}", "stable rank"
    ),
    ("jacobian_norm", "mean"): Wording(
        "Jacobian norm of each layer's output, mean over samples",
        "Jacobian norm, {layer}: mean",
        "largest singular value",
    ),
    ("jacobian_norm", "max"): Wording(
        "Jacobian norm of each layer's output, largest of the samples",
        "Jacobian norm, {layer}: largest",
        "largest singular value",
    ),
    ("linear_operator", "norm"): _plain("Linear network: operator norm", "largest singular value"),
    ("linear_operator", "frobenius_norm"): _plain("Linear network: Frobenius norm", "Frobenius norm"),
    ("linear_operator", "stable_rank"): _plain("Linear network: stable rank", "stable rank"),
    ("linear_operator", "distance"): _plain("Distance to the minimum-norm solution", "relative distance"),
    ("neural_collapse", "nc1"): _plain("NC1: variability within classes", "tr(Σw Σb⁺) / C"),
    ("neural_collapse", "nc2_equinorm"): _plain("NC2: spread of class means' lengths", "std / mean"),
    ("neural_collapse", "nc2_equiangularity"): _plain("NC2: spread of class means' cosines", "std"),
    ("neural_collapse", "nc3"): _plain("NC3: classifier against class means", "squared distance"),
    ("neural_collapse", "nc4_held_out"): Wording(
        "NC4: decisions other than the nearest mean's (%)",
        "NC4: other than the nearest mean's",
        "held-out samples (%)",
        factor=100.0,
        from_zero=True,
    ),
    ("neural_collapse", "cdnv"): _plain("CDNV: variance over class distance", "CDNV"),
    ("identity_constant", "identity"): _plain("Correlation of predictions to the identity", "cosine"),
    ("identity_constant", "constant"): _plain("Correlation of predictions to the constant map", "cosine"),
    ("weight_distance", "distance"): Wording(
        "Distance of each tensor from its start, ‖W − W₀‖ / ‖W₀‖",
        "Distance of {layer} from its start",
        "relative distance",
    ),
    ("feature_similarity", "input"): Wording(
        "Similarity of each stage to the input (debiased linear CKA)", "Similarity of {layer} to the input", "CKA"
    ),
    ("feature_similarity", "previous"): Wording(
        "Similarity of each stage to the one before (debiased linear CKA)",
        "Similarity of {layer} to the one before",
        "CKA",
    ),
    ("local_stability", "stability"): _plain("Samples that no change of one coordinate by v flips", "share of samples"),
    ("activation_images", "share"): Wording(
        "Share of activations in one image (σ₁² / Σσ²)", "Share of activations of {layer} in one image", "share"
    ),
    ("activation_images", "correlation"): Wording(
        "Best channel's correlation with the input image",
        "Best channel of {layer}: correlation with the input",
        "cosine",
    ),
}


SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    "test": "test",
}
SPLIT_FIRST = re.compile(rf"({'|'.join(SPLITS)})[/_.-](.+)", re.IGNORECASE)
SPLIT_LAST = re.compile(rf"(.+)[/_.-]({'|'.join(SPLITS)})", re.IGNORECASE)
NOT_A_METRIC = re.compile(r"step|lr([-_/].*)?|learning_rate|(.*[/_])?(seconds|time)", re.IGNORECASE)


def panels_of_metrics(columns: Mapping[str, Mapping[int, float]], held_out: str) -> list[Curves]:
    """One panel per metric, its splits together: losses, then accuracies as errors, then the rest as they come."""
    groups: dict[str, list[tuple[str, str, Array, Array]]] = {}
    for column, cells in columns.items():
        per_step = column.endswith("_step") and f"{column.removesuffix('_step')}_epoch" in columns
        if NOT_A_METRIC.fullmatch(column) or per_step:
            continue
        split, metric = split_and_metric(column)
        label = {"val": held_out, "": column.replace("_", " ")}.get(split, split)
        epochs = sorted(cells)
        values = np.array([cells[epoch] for epoch in epochs], dtype=np.float64)
        groups.setdefault(metric, []).append((label, split, np.array(epochs, dtype=np.float64), values))

    panels = []
    for metric, group in groups.items():
        convert: Callable[[Array], Array] = np.asarray
        unit = metric.replace("_", " ")
        title = unit[:1].upper() + unit[1:]
        rate = _is_accuracy(metric) or _is_error(metric)
        lower_is_better = rate or "loss" in metric.lower()
        if rate:
            finite = np.concatenate([values[np.isfinite(values)] for *_, values in group])
            whole = (
                1.0 if finite.size == 0 or finite.max() <= 1.0 else 100.0
            )  # logged as a fraction, or as a percentage
            convert = _error_of_accuracy(whole) if _is_accuracy(metric) else _percent_of(whole)
            plain = metric.lower() in ("acc", "error", "err")
            title = "Classification error (%)" if plain else f"Error: {metric.replace('_', ' ')} (%)"
            unit = "error (%)"
        series = tuple(Series(label, split, epochs, convert(values)) for label, split, epochs, values in group)
        panels.append(Curves(metric, title, unit, series, lower_is_better, from_zero=lower_is_better))
    rank = {"loss": 0, "acc": 1}
    return sorted(panels, key=lambda panel: rank.get(panel.name, 2))


def panels_of_probes(
    probes: Mapping[str, Mapping[tuple[str, str], Mapping[int, float]]], classes: int | None
) -> list[Curves | Heatmap | Number]:
    """One panel per probe, of the first key that it wrote for a layer; for a known probe, one for each known key.

    A heatmap where that key has several layers, else a curve, or a number where it was read once in the whole run.
    Readings without a layer are about the probe itself (its cost, say): they are drawn only for a probe that writes
    nothing else, and seconds never.
    """
    panels: list[Curves | Heatmap | Number] = []
    looks = {epoch for readings in probes.values() for of_key in readings.values() for epoch in of_key}
    for probe, kind, key, readings in _shown(probes):
        cells = {layer: cells for (layer, of), cells in readings.items() if of == key}
        if len(cells) > 1:
            cells.pop("", None)
        plain = probe if probe == key else f"{probe}: {key}"
        plain = (plain[:1].upper() + plain[1:]).replace("_", " ")
        wording = WORDINGS.get((kind, key), Wording(f"{plain} at each layer", plain + " of {layer}", key))
        if len(cells) == 1:
            ((layer, only),) = cells.items()
            title = wording.one.format(layer="the features" if layer == "features" else layer) if layer else plain
            epochs = sorted(only)
            values = wording.factor * np.array([only[epoch] for epoch in epochs], dtype=np.float64)
            if len(looks) == 1:
                panels.append(Number(probe, title, wording.unit.replace("_", " "), float(values[0])))
                continue
            line = Series("", "", np.array(epochs, dtype=np.float64), values)
            panels.append(Curves(probe, title, wording.unit.replace("_", " "), (line,), from_zero=wording.from_zero))
        else:
            measured = sorted({epoch for of_layer in cells.values() for epoch in of_layer})
            rows = [[of_layer.get(epoch, math.nan) for epoch in measured] for of_layer in cells.values()]
            chance = 100.0 * (1.0 - 1.0 / classes) if classes and kind == "representation_collapse" else None
            panels.append(
                Heatmap(
                    probe,
                    wording.many,
                    wording.unit.replace("_", " "),
                    tuple(cells),
                    tuple(measured),
                    wording.factor * np.array(rows, dtype=np.float64),
                    chance if key == "error" else None,
                    _rows(list(cells)),
                )
            )
    return panels


def _shown(
    probes: Mapping[str, Mapping[tuple[str, str], Mapping[int, float]]],
) -> Iterator[tuple[str, str, str, Mapping[tuple[str, str], Mapping[int, float]]]]:
    """Each probe, its kind (the second `spectrum` of a run is called `spectrum_2`) and a key to be drawn."""
    for probe, readings in probes.items():
        keys = [key for layer, key in readings if layer] or [key for _, key in readings if key != "seconds"]
        kind = re.sub(r"_\d+$", "", probe)
        known = [key for key in dict.fromkeys(keys) if (kind, key) in WORDINGS]
        for key in known or keys[:1]:
            yield probe, kind, key, readings


def _rows(layers: Sequence[str]) -> str:
    """What the rows of a heatmap are: some probes read at inputs of their own, which stand in place of layers."""
    if all(re.match(r"(rho|v)=", layer) for layer in layers):
        return "correlation of the input" if layers[0].startswith("rho") else "strength v"
    return Heatmap.rows


def best_epoch(panels: Sequence[Curves]) -> Best | None:
    """The best epoch by held-out error, or by held-out loss where no error was logged."""
    for panel in sorted((p for p in panels if p.lower_is_better), key=lambda p: p.name != "acc"):
        for series in panel.series:
            if series.split == "val" and np.isfinite(series.values).any():
                at = int(np.nanargmin(series.values))
                return Best(panel.name, float(series.epochs[at]), float(series.values[at]))
    return None


def held_out_name(summary: Mapping[str, Any]) -> str:
    """What the split called "val" in the tables really is."""
    validation = section(summary, "data").get("validation")
    return "test" if isinstance(validation, str) and re.search(r"\btest\b", validation.lower()) else "validation"


def split_and_metric(column: str) -> tuple[str, str]:
    """The split and the metric that a column's name says.

    >>> split_and_metric("val/acc"), split_and_metric("valid_loss_epoch"), split_and_metric("loss")
    (('val', 'acc'), ('val', 'loss'), ('', 'loss'))
    """
    column = column.removesuffix("_epoch")
    if match := SPLIT_FIRST.fullmatch(column):
        split, metric = SPLITS[match[1].lower()], match[2]
    elif match := SPLIT_LAST.fullmatch(column):
        split, metric = SPLITS[match[2].lower()], match[1]
    else:
        split, _, metric = column.rpartition("/")
    return split, "acc" if metric.lower() in ("acc", "accuracy") else metric


def _is_accuracy(metric: str) -> bool:
    return re.search(r"(?<![a-z])acc(?![a-z])|accuracy", metric.lower()) is not None


def _is_error(metric: str) -> bool:
    return re.search(r"(?<![a-z])err(or)?(?![a-z])", metric.lower()) is not None


def _error_of_accuracy(whole: float) -> Callable[[Array], Array]:
    return lambda values: 100.0 * (1.0 - values / whole)


def _percent_of(whole: float) -> Callable[[Array], Array]:
    return lambda values: 100.0 * values / whole
