"""Every word and number on a page: readings, names of layers, and what the header and the footer say.

>>> number(0.4567), number(12345.6), number(2.0), number(123.4), number(999.7)
('0.457', '12,346', '2.00', '123', '1,000')
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from lightning_depth.figures.panels import CURRENT, Best, Curves, Heatmap, section, split_and_metric
from lightning_depth.results import METRICS, READINGS

INPUT = "input"  # the layer under which a probe writes what the network is given
SEPARATOR = "  ·  "  # between the parts of a line


def number(value: float) -> str:
    """Three significant digits, zeros among them, without an exponent where a reader expects none."""
    if not math.isfinite(value):
        return "nan"
    return f"{value:,.0f}" if 999.5 <= abs(value) < 1e6 else f"{value:#.3g}".removesuffix(".")


def tick_label(value: float, _: object = None) -> str:
    """A round value beside an axis; matplotlib adds the tick's position, which does not matter."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e6 else f"{value:g}"


def duration(seconds: float) -> str:
    """A length of time as one says it.

    >>> duration(42.4), duration(192.0), duration(9000.0)
    ('42 s', '3 min 12 s', '2 h 30 min')
    """
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def evenly_spread(number: int, most: int) -> list[int]:
    """The places of at most `most` of `number` things, the first and the last among them.

    >>> evenly_spread(9, 3), evenly_spread(2, 3)
    ([0, 4, 8], [0, 1])
    """
    return [int(place) for place in np.unique(np.linspace(0, number - 1, min(most, number)).round())]


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

    The network's input is no layer of it and shares no module with any, and one layer alone shares its with none.

    >>> short_names(["input", "net.stem", "net.stage1.0.conv1"]), short_names(["net.head"])
    (['input', 'stem', 'stage1.0.conv1'], ['net.head'])
    """
    shared = shared_modules(layers)
    return fitted([layer.removeprefix(shared) for layer in layers], longest)


def fitted(names: Sequence[str], longest: int = 34) -> list[str]:
    """Names with an ellipsis inside the very long ones."""
    alike: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        alike.setdefault(ellipsis(name, longest), []).append(name)
    return [_window(name, alike[ellipsis(name, longest)], longest) for name in names]


def shared_modules(layers: Iterable[str]) -> str:
    """The leading modules, dots included, that all layers inside modules share; every layer keeps a name of its own.

    >>> shared_modules(["net.body.stem", "net.body.head", "input"]), shared_modules(["net.stem", "net.input"])
    ('net.body.', '')
    """
    every = {INPUT, *layers}
    inside = {layer for layer in every if "." in layer}
    modules = zip(*(layer.split(".")[:-1] for layer in inside), strict=False)
    shared = "".join(f"{names[0]}." for names in takewhile(lambda names: len(set(names)) == 1, modules))
    return "" if len(inside) < 2 or every & {layer.removeprefix(shared) for layer in inside} else shared


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


def joined(parts: Iterable[object]) -> str:
    """What there is to say, on one line."""
    return SEPARATOR.join(" ".join(str(part).split()) for part in parts if part)


def description(summary: Mapping[str, Any]) -> str:
    """Model · data · seed, as far as the summary knows them."""
    data, model = section(summary, "data"), str(summary.get("model") or "")
    parameters, samples = summary.get("parameters"), data.get("train_size")
    brief = data.get("name") and data.get("kind")  # the footer has the whole source
    source = f"{data['name']} ({data['kind']})" if brief else data.get("source")
    count = ""
    if isinstance(parameters, int) and "parameters" not in model:
        count = f"{parameters / 1e6:.3g} M parameters" if parameters >= 1e5 else f"{parameters:,} parameters"
    trained = f"{samples:,} training sample{'s' * (samples != 1)}" if isinstance(samples, int) else ""
    return joined([model, count, source, trained, _named(summary, "seed")])


def _named(summary: Mapping[str, Any], key: str) -> str:
    """A setting with its name; of a list, all entries."""
    value = summary.get(key)
    listed = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return "" if value in (None, []) else f"{key} {listed}"


def warnings(summary: Mapping[str, Any]) -> list[str]:
    """What must not be overlooked."""
    data, found = section(summary, "data"), []
    if data.get("fallback"):
        wanted = data.get("stands_for") or data.get("requested")
        name = data.get("name") or data.get("source") or "another data set"
        found.append(f"FALLBACK DATA: {name}" + (f", not {wanted}" if wanted else ""))
    if summary.get("reduced"):
        found.append(f"REDUCED SETTING: {summary['reduced']}")
    return found


def state(summary: Mapping[str, Any], last: float | None) -> str:
    """How the run ended, or how far it is: status · last epoch · duration."""
    seconds = summary.get("seconds")
    lasted = duration(seconds) if isinstance(seconds, int | float) and math.isfinite(seconds) else ""
    return joined([summary.get("status"), "" if last is None else f"last epoch {last:g}", lasted])


def headlines(
    panels: Sequence[Curves], best: Best | None, summary: Mapping[str, Any], held_out: str
) -> list[tuple[str, str, str]]:
    """The results in large type: (number, caption, split)."""
    shown: list[tuple[str, str, str]] = []
    panel = next((p for p in panels if best is not None and p.name == best.panel), None)
    if panel is not None and best is not None:
        noun = "error" if is_percent(panel) else panel.unit
        of = {series.split: series for series in panel.series if series.values.size}
        captions = {"train": f"final training {noun}", "val": f"final {held_out} {noun}"}
        if CURRENT in of and ("train" not in of or of[CURRENT].epochs[-1] == of["train"].epochs[-1]):
            of["train"], captions["train"] = of[CURRENT], f"{captions['train']}, current weights"
        finals = [(with_unit(panel, of[split].values[-1]), captions[split], split) for split in captions if split in of]
        return [*finals, (with_unit(panel, best.value), f"best {held_out} {noun}, epoch {best.epoch:g}", "val")]
    for when in ("final", "best"):
        for key, value in section(summary, when).items():
            split, metric = split_and_metric(str(key))
            if split in ("val", "test") and metric == "acc" and isinstance(value, int | float):
                which = held_out if split == "val" else "test"
                shown.append((f"{100.0 * (1.0 - value):.1f} %", f"{when} {which} error", "val"))
    return shown


def provenance(directory: Path, summary: Mapping[str, Any], undrawn: int) -> str:
    """Where the numbers come from: commit · config · seed · data · versions · date."""
    data, versions = section(summary, "data"), summary.get("versions")
    commit = re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28}\b", r"\1", str(summary.get("git_commit") or ""))
    if isinstance(versions, Mapping):
        versions = ", ".join(f"{name} {version}" for name, version in versions.items())
    tables = [path for name in (METRICS, READINGS) if (path := directory / name).exists()]
    written = datetime.fromtimestamp(max(path.stat().st_mtime for path in tables))
    on = f", validated on {data['validation']}" if data.get("validation") else ""
    said = [
        commit and f"commit {commit}",
        *(_named(summary, key) for key in ("config", "seed")),
        f"data {data['source']}{on}" if data.get("source") else "",
        versions,
        summary.get("date") or f"tables of {written:%Y-%m-%d %H:%M}",
        f"{undrawn} more metrics in {METRICS} are not drawn" if undrawn else "",
    ]
    return joined(said)
