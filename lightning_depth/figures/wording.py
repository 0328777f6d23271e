"""Every word and number on a page: readings, names of layers, and what the header and the footer say.

>>> number(0.4567), number(12345.6), number(2.0)
('0.457', '12,346', '2')
"""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from lightning_depth.figures.panels import Best, Curves, Heatmap, section, split_and_metric
from lightning_depth.figures.style import FALLBACK, REDUCED, TRAIN, VALIDATION
from lightning_depth.results import METRICS, READINGS

INPUT = "input"  # the layer under which a probe writes what the network is given


def number(value: float) -> str:
    """Three significant digits, without an exponent where a reader expects none."""
    if not math.isfinite(value):
        return "nan"
    if 1000 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def tick_label(value: float, _: object = None) -> str:
    """A round value beside an axis; matplotlib adds the tick's position, which does not matter."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e6 else f"{value:g}"


def duration(seconds: float) -> str:
    """A length of time as one says it.

    >>> duration(42.4), duration(192.0), duration(9000.0)
    ('42 s', '3 min 12 s', '2 h 30 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def is_percent(panel: Curves | Heatmap) -> bool:
    """Whether the panel's values are percentages."""
    return panel.unit.endswith("(%)")


def reading_of(panel: Curves | Heatmap, value: float) -> str:
    """A value as it stands beside the panel's line or row."""
    return f"{value:.1f}" if is_percent(panel) else number(value)


def with_unit(panel: Curves, value: float) -> str:
    """A value as it stands in a sentence."""
    return reading_of(panel, value) + (" %" if is_percent(panel) else "")


def short_names(layers: Sequence[str], longest: int = 34) -> list[str]:
    """Layer names without the leading modules that all share, and with an ellipsis inside the very long ones.

    The network's input is no layer of it and shares no module with any.

    >>> short_names(["input", "net.stem", "net.stage1.0.conv1"])
    ['input', 'stem', 'stage1.0.conv1']
    """
    shared = _shared_modules([layer for layer in layers if layer != INPUT])
    names = [layer if layer == INPUT else layer[shared:] for layer in layers]
    alike: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        alike.setdefault(ellipsis(name, longest), []).append(name)
    return [_window(name, alike[ellipsis(name, longest)], longest) for name in names]


def _shared_modules(layers: Sequence[str]) -> int:
    """The length of the leading modules, dots included, that all layers share; every layer keeps a name of its own.

    >>> _shared_modules(["net.body.stem", "net.body.head"]), _shared_modules(["net.stem", "net.input"])
    (9, 0)
    """
    parts = [layer.split(".")[:-1] for layer in layers]
    alike = 0
    for modules in zip(*parts, strict=False):
        if len(set(modules)) > 1:
            break
        alike += len(modules[0]) + 1
    return 0 if any(layer[alike:] == INPUT for layer in layers) else alike


def _window(name: str, alike: Sequence[str], longest: int) -> str:
    """`name` in at most `longest` characters, around the place where it differs from those it could be taken for."""
    if len(alike) == 1:
        return ellipsis(name, longest)
    characters = enumerate(zip(*alike, strict=False))
    differs = next((index for index, at in characters if len(set(at)) > 1), min(map(len, alike)))
    start = max(0, min(differs - longest // 2, len(name) - longest + 1))
    shown = name[start:] if len(name) - start < longest else name[start : start + longest - 2] + "…"
    return f"…{shown}" if start else shown


def ellipsis(text: str, longest: int) -> str:
    """`text` in at most `longest` characters; what goes missing is inside, for the ends tell names apart."""
    if len(text) <= longest:
        return text
    tail = (longest - 1) * 2 // 3
    return f"{text[: longest - 1 - tail]}…{text[-tail:]}"


def description(summary: Mapping[str, Any]) -> str:
    """Model · data · seed, as far as the summary knows them."""
    data = section(summary, "data")
    parameters = summary.get("parameters")
    said: list[str] = []
    if summary.get("model"):
        said.append(str(summary["model"]))
    if isinstance(parameters, int) and "parameters" not in " ".join(said):
        said.append(f"{parameters / 1e6:.3g} M parameters" if parameters >= 1e5 else f"{parameters:,} parameters")
    if data.get("name") and data.get("kind"):
        said.append(f"{data['name']} ({data['kind']})")  # the footer has the whole source
    elif data.get("source"):
        said.append(str(data["source"]))
    if isinstance(data.get("train_size"), int):
        said.append(f"{data['train_size']:,} training sample{'s' * (data['train_size'] != 1)}")
    if summary.get("seed") is not None:
        said.append(f"seed {summary['seed']}")
    return "  ·  ".join(said)


def warning_bands(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What must not be overlooked, each with its colour."""
    data = section(summary, "data")
    bands = []
    if data.get("fallback"):
        wanted = f", not {data['requested']}" if data.get("requested") else ""
        bands.append(
            (f"FALLBACK DATA: {data.get('name') or data.get('source') or 'another data set'}{wanted}", FALLBACK)
        )
    if summary.get("reduced"):
        bands.append((f"REDUCED SETTING: {summary['reduced']}", REDUCED))
    return bands


def state(summary: Mapping[str, Any], last: float | None) -> str:
    """How the run ended, or how far it is: status · last epoch · duration."""
    said = []
    if summary.get("status"):
        said.append(" ".join(str(summary["status"]).split()))
    if last is not None:
        said.append(f"last epoch {last:g}")
    if isinstance(summary.get("seconds"), int | float) and math.isfinite(summary["seconds"]):
        said.append(duration(float(summary["seconds"])))
    return "  ·  ".join(said)


def headlines(
    panels: Sequence[Curves], best: Best | None, summary: Mapping[str, Any], held_out: str
) -> list[tuple[str, str, str]]:
    """The results in large type: (number, caption, colour)."""
    shown: list[tuple[str, str, str]] = []
    panel = next((p for p in panels if best is not None and p.name == best.panel), None)
    if panel is not None and best is not None:
        noun = "error" if is_percent(panel) else panel.unit
        for series in panel.series:
            if series.split in ("train", "val") and series.values.size:
                colour, name = (TRAIN, "training") if series.split == "train" else (VALIDATION, held_out)
                shown.append((with_unit(panel, series.values[-1]), f"final {name} {noun}", colour))
        shown.append((with_unit(panel, best.value), f"best {held_out} {noun}, epoch {best.epoch:g}", VALIDATION))
        return shown
    for when in ("final", "best"):
        for key, value in section(summary, when).items():
            split, metric = split_and_metric(str(key))
            if split == "val" and metric == "acc" and isinstance(value, int | float):
                shown.append((f"{100.0 * (1.0 - value):.1f} %", f"{when} {held_out} error", VALIDATION))
    return shown


def _listed(value: object) -> str:
    """A value, or those of a list, as a sentence has them."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def provenance(directory: Path, summary: Mapping[str, Any], undrawn: int) -> str:
    """Where the numbers come from: commit · config · seed · data · versions · date."""
    data = section(summary, "data")
    said: list[str] = []
    if summary.get("git_commit"):
        said.append("commit " + re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28}\b", r"\1", str(summary["git_commit"])))
    for key in ("config", "seed"):
        if summary.get(key) not in (None, []):
            said.append(f"{key} {_listed(summary[key])}")
    if data.get("source"):
        on = f", validated on {data['validation']}" if data.get("validation") else ""
        said.append(f"data {data['source']}{on}")
    versions = summary.get("versions")
    if isinstance(versions, Mapping):
        said.append(", ".join(f"{name} {version}" for name, version in versions.items()))
    elif versions:
        said.append(str(versions))
    tables = [path for name in (METRICS, READINGS) if (path := directory / name).exists()]
    written = datetime.fromtimestamp(max(path.stat().st_mtime for path in tables))
    said.append(str(summary["date"]) if summary.get("date") else f"tables of {written:%Y-%m-%d %H:%M}")
    if undrawn:
        said.append(f"{undrawn} more metrics in {METRICS} are not drawn")
    return "  ·  ".join(" ".join(text.split()) for text in said)
