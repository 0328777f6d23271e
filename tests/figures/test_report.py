"""The report page, read back from the figure that it is before it is written."""

import ast
import csv
import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, to_hex
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import imread
from matplotlib.text import Text

from lightning_depth import results
from lightning_depth.cli import report as report_command
from lightning_depth.errors import UserError
from lightning_depth.figures import page as page_module
from lightning_depth.figures import report as report_module
from lightning_depth.figures.curves import _limit_y
from lightning_depth.figures.report import draw, report
from lightning_depth.figures.style import FALLBACK, REDUCED, STYLE, draw_scale
from lightning_depth.figures.wording import joined, short_names
from tests.figures.seen import cut_off, lay_out, overlaps, seen
from tests.table_of_probes import SHELF

SUMMARY: dict[str, Any] = {
    "run": "resnet_depth18_width16_seed0",
    "status": "finished",
    "config": "configs/resnet_depth.yaml",
    "model": "ResNet depth 18 width 16, 0.7 M parameters",
    "parameters": 701_466,
    "data": {
        "source": "CIFAR-10, image folder",
        "fallback": False,
        "requested": "CIFAR10",
        "validation": "test split",
        "num_classes": 10,
        "train_size": 4000,
    },
    "seed": 0,
    "seconds": 312.4,
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
    "versions": {"torch": "2.11.0"},
    "final": {"val/acc": 0.71},
    "best": {"val/acc": 0.73},
}


def resnet_layers(blocks: tuple[int, ...], per_block: int) -> list[str]:
    names = ["net.stem"]
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            names += [f"net.stage{stage}.{block}.conv{i}" for i in range(1, per_block + 1)]
    return [*names, "net.fc"]


RESNET18 = resnet_layers((2, 2, 2, 2), 2)
RESNET50 = [*resnet_layers((3, 4, 6, 3), 3)[:-1], "net.stage4.2.proj", "net.stage4.2.expand", "net.head", "net.fc"]
STAGES = ["net.stem", "net.stage1", "net.stage2", "net.stage3", "net.stage4", "net.fc"]


SHELF = {probe.declaration.kind: probe.declaration for probe in (c() for c in SHELF)}
READINGS = ["epoch", "probe", "layer", "key", "value"]


def write(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    """A table; readings get their column `at`, and beside them is written what the probes of the shelf declare."""
    if header == READINGS:
        header, rows = list(results.Reading._fields), [[*row[:3], "", *row[3:]] for row in rows]
        read = {row[1] for row in rows}
        results.write_declarations(path.parent, {name: one for name, one in SHELF.items() if name in read})
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def write_metrics(directory: Path, epochs: int, val: bool = True, noise: float = 0.01) -> None:
    draws = np.random.default_rng(0)
    rows = []
    for epoch in range(1, epochs + 1):
        t = epoch / max(epochs, 8)
        train_acc = min(1.0, 1 - 0.82 * math.exp(-5.5 * t) + noise * draws.normal() * math.exp(-4 * t))
        val_acc = 0.72 - 0.5 * math.exp(-6 * t) + noise * draws.normal()
        val_loss = 0.9 + 1.3 * math.exp(-7 * t) + 0.5 * t + 3 * noise * draws.normal()
        tested = [f"{val_loss:.5f}", f"{val_acc:.5f}"] if val else ["", ""]
        rows.append([epoch, f"{2.3 * math.exp(-6 * t):.5f}", f"{train_acc:.5f}", *tested, 0.1, 20.8])
    write(
        directory / "metrics.csv",
        ["epoch", "train/loss", "train/acc", "val/loss", "val/acc", "lr-SGD", "seconds"],
        rows,
    )


def write_readings(directory: Path, layers: list[str], epochs: list[int], last: int | None = None) -> None:
    draws = np.random.default_rng(1)
    rows: list[list[Any]] = []
    for epoch in epochs:
        t = epoch / max(last or epochs[-1], 8)
        for index, layer in enumerate(layers):
            depth = index / len(layers)
            norm = (1.5 + 2.5 * math.sin(9 * depth) ** 2) * math.exp(2.6 * t * (0.3 + depth)) + 0.1 * draws.normal()
            rows.append([epoch, "operator_norm", layer, "norm", f"{norm:.4f}"])
            rows.append([epoch, "operator_norm", layer, "residual", 1e-5])
        rows.append([epoch, "operator_norm", "", "seconds", 0.4])
        rows.append(
            [epoch, "effective_rank", "features", "effective_rank", f"{4.8 - 2.4 * (1 - math.exp(-3 * t)):.4f}"]
        )
        for index, stage in enumerate(STAGES):
            error = 0.78 - 0.09 * index - 0.3 * (1 - math.exp(-3 * t)) * index / len(STAGES)
            rows.append([epoch, "representation_collapse", stage, "error", f"{error:.4f}"])
        rows.append([epoch, "representation_collapse", "", "seconds", 0.8])
    write(directory / "readings.csv", READINGS, rows)


def run_of(directory: Path, layers: list[str] = RESNET18, epochs: int = 15) -> Path:
    write_metrics(directory, epochs)
    write_readings(directory, layers, list(range(1, epochs + 1)))
    return directory


def panel(figure: Figure, name: str) -> Axes:
    (found,) = [ax for ax in figure.axes if ax.get_label() == name]
    return found


def panels(figure: Figure) -> list[str]:
    return [str(ax.get_label()) for ax in figure.axes if not str(ax.get_label()).endswith(" colours")]


def line(ax: Axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    (found,) = [line for line in ax.get_lines() if line.get_label() == label]
    return np.asarray(found.get_xdata()), np.asarray(found.get_ydata())


def words(figure: Figure) -> str:
    """Every text on the page, titles, labels and ticks included."""
    lay_out(figure)
    return "\n".join(text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text")))


def image(ax: Axes) -> np.ma.MaskedArray:
    (found,) = ax.get_images()
    return found.get_array()


def column(path: Path, name: str) -> list[float]:
    with path.open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def with_data(**changes: Any) -> dict[str, Any]:
    return {**SUMMARY, "data": {**SUMMARY["data"], **changes}}


@dataclass(frozen=True)
class Drawn:
    """A run's directory and its page, which tests read and leave as they are."""

    directory: Path
    figure: Figure
    layers: list[str]


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    directory = run_of(tmp_path_factory.mktemp("resnet18"))
    return Drawn(directory, draw(directory, SUMMARY), RESNET18)


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    directory = run_of(tmp_path_factory.mktemp("resnet50"), RESNET50)
    return Drawn(directory, draw(directory, SUMMARY), RESNET50)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of every panel, six layers and two epochs."""
    return run_of(tmp_path_factory.mktemp("tiny"), STAGES, epochs=2)


@pytest.fixture(scope="module")
def validated_words(tiny: Path) -> str:
    """The words of a run that was validated on training images and does not know its classes."""
    return words(draw(tiny, with_data(validation="a tenth of the training images", num_classes=None)))


# ------------------------------------------------------------------------------------------------------------ the file


def test_report_is_one_picture_and_nothing_else(tmp_path: Path) -> None:
    before = {path.name for path in run_of(tmp_path, STAGES, epochs=2).iterdir()}
    assert report(tmp_path, SUMMARY) == tmp_path / "report.png"
    assert {path.name for path in tmp_path.iterdir()} == before | {"report.png"}
    assert imread(tmp_path / "report.png").shape[1] == 1760


def test_a_failed_report_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_metrics(tmp_path, 2)
    old = report(tmp_path).read_bytes()
    files = sorted(tmp_path.iterdir())

    def half_written(self: Figure, path: Path, **_: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", half_written)
    with pytest.raises(OSError, match="disk full"):
        report(tmp_path)
    assert (tmp_path / "report.png").read_bytes() == old
    assert sorted(tmp_path.iterdir()) == files


def test_the_picture_is_complete_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moves = []
    replace = os.replace

    def watched(source: Path, target: Path) -> None:
        moves.append((source.parent, imread(source).ndim, target.exists()))
        replace(source, target)

    monkeypatch.setattr(results.os, "replace", watched)
    write_metrics(tmp_path, 2)
    report(tmp_path)
    assert moves == [(tmp_path, 3, False)]


def test_figures_read_tables_and_never_train() -> None:
    names = [
        name
        for path in Path(report_module.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    ]
    roots = {name.split(".")[0] for name in names} - sys.stdlib_module_names
    assert roots == {"numpy", "matplotlib", "scipy", "lightning_depth"}
    assert not any(name.startswith("matplotlib.pyplot") for name in names)


def test_the_users_matplotlib_settings_neither_change_nor_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "DPI", 50)
    run_of(tmp_path, STAGES, epochs=2)
    plain = report(tmp_path).read_bytes()
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "black", "text.color": "red"}):
        mine = dict(mpl.rcParams)
        report(tmp_path)
        assert dict(mpl.rcParams) == mine
    again = imread(tmp_path / "report.png")
    (tmp_path / "report.png").write_bytes(plain)
    assert np.abs(imread(tmp_path / "report.png") - again).mean() < 0.01


# ---------------------------------------------------------------------------------------------------------- the curves


def test_lines_are_the_tables_columns(resnet18: Drawn) -> None:
    table, figure = resnet18.directory / "metrics.csv", resnet18.figure
    assert panels(figure) == ["loss", "acc", "effective_rank", "operator_norm", "representation_collapse"]
    for label, split in (("train", "train"), ("test", "val")):
        x, y = line(panel(figure, "loss"), label)
        assert x.tolist() == column(table, "epoch")
        assert y.tolist() == column(table, f"{split}/loss")
        x, y = line(panel(figure, "acc"), label)
        np.testing.assert_allclose(y, [100 * (1 - acc) for acc in column(table, f"{split}/acc")])


def test_a_validation_split_is_not_called_a_test(resnet18: Drawn, validated_words: str) -> None:
    assert "final test error" in words(resnet18.figure)
    assert "final validation error" in validated_words
    assert "test" not in validated_words


@pytest.mark.parametrize(("lowest", "scale"), [(0.2, "linear"), (0.02, "log"), (0.0, "linear"), (-3.0, "linear")])
def test_loss_is_logarithmic_beyond_a_factor_of_twenty(tmp_path: Path, lowest: float, scale: str) -> None:
    write(tmp_path / "metrics.csv", ["epoch", "train/loss"], [[1, 2.0], [2, lowest]])
    ax = panel(draw(tmp_path), "loss")
    assert ax.get_yscale() == scale
    assert ("log scale" in ax.get_ylabel()) == (scale == "log")


def test_best_epoch_is_marked_and_told(tmp_path: Path) -> None:
    write(tmp_path / "metrics.csv", ["epoch", "val/acc"], [[1, 0.5], [2, 0.75], [3, 0.7]])
    write(tmp_path / "readings.csv", READINGS, [[e, "effective_rank", "features", "effective_rank", e] for e in (1, 3)])
    figure = draw(tmp_path, SUMMARY)
    for name in ("acc", "effective_rank"):
        assert line(panel(figure, name), "best epoch")[0] == pytest.approx([2, 2])
    text = words(figure)
    assert "best 25.0 %, epoch 2" in text
    assert "best test error, epoch 2" in text
    assert "30.0 %" in text


def test_best_falls_back_to_the_loss(tmp_path: Path) -> None:
    write(tmp_path / "metrics.csv", ["epoch", "train/acc", "val/loss"], [[1, 0.5, 2.0], [2, 0.9, 1.0], [3, 1.0, 3.0]])
    assert "best 1.00, epoch 2" in words(draw(tmp_path))


def test_without_validation_there_is_no_best(tmp_path: Path) -> None:
    write_metrics(tmp_path, 5, val=False)
    figure = draw(tmp_path, SUMMARY)
    assert "best epoch" not in [found.get_label() for ax in figure.axes for found in ax.get_lines()]
    assert panels(figure) == ["loss", "acc"]


def test_headline_from_the_summary_where_the_table_has_none(tmp_path: Path) -> None:
    write_metrics(tmp_path, 5, val=False)
    text = words(draw(tmp_path, SUMMARY))
    assert "29.0 %" in text
    assert "27.0 %" in text


def test_foreign_columns_are_grouped_and_drawn(tmp_path: Path) -> None:
    header = [
        "epoch",
        "step",
        "loss",
        "val_loss",
        "train_accuracy",
        "valid_accuracy",
        "ema/loss",
        "lr-Adam",
        "grad_norm",
    ]
    write(tmp_path / "metrics.csv", header, [[e, 10 * e, 1 / (e + 1), 2, 0.5, 0.25, 3, 0.1, 4 - e] for e in range(3)])
    figure = draw(tmp_path)
    assert panels(figure) == ["loss", "acc", "grad_norm"]
    assert line(panel(figure, "loss"), "loss")[1].tolist() == [1, 1 / 2, 1 / 3]
    assert line(panel(figure, "loss"), "validation")[1].tolist() == [2, 2, 2]
    assert line(panel(figure, "loss"), "ema")[1].tolist() == [3, 3, 3]
    assert line(panel(figure, "acc"), "train")[1].tolist() == [50, 50, 50]
    assert line(panel(figure, "acc"), "validation")[1].tolist() == [75, 75, 75]


def test_an_accuracy_in_percent_is_taken_as_one(tmp_path: Path) -> None:
    write(tmp_path / "metrics.csv", ["epoch", "train_acc"], [[1, 60], [2, 90]])
    assert line(panel(draw(tmp_path), "acc"), "train")[1] == pytest.approx([40, 10])


def test_of_step_and_epoch_columns_the_epochs_are_drawn(tmp_path: Path) -> None:
    write(tmp_path / "metrics.csv", ["epoch", "train_loss_step", "train_loss_epoch"], [[0, 9, 2], [1, 8, 1]])
    figure = draw(tmp_path)
    assert panels(figure) == ["loss"]
    assert line(panel(figure, "loss"), "train")[1].tolist() == [2, 1]


def test_empty_cells_are_no_readings_and_nan_is_a_gap(tmp_path: Path) -> None:
    rows = [[1, 3, 2], [2, "nan", ""], [3, 1, 1], [3, "", 0.5]]
    write(tmp_path / "metrics.csv", ["epoch", "train/loss", "val/loss"], rows)
    ax = panel(draw(tmp_path), "loss")
    x, y = line(ax, "train")
    np.testing.assert_array_equal(x, [1, 2, 3])
    np.testing.assert_array_equal(y, [3, math.nan, 1])
    x, y = line(ax, "validation")
    assert (x.tolist(), y.tolist()) == ([1, 3], [2, 0.5])


def test_training_samples_under_current_weights_are_a_line_of_the_same_panels(tmp_path: Path) -> None:
    header = ["epoch", "train/loss", "train/acc", "val/loss", "val/acc", "train_eval/loss", "train_eval/acc"]
    rows = [[1, 3, 0.5, 2, 0.4, "", ""], [2, 2, 0.75, 1, 0.5, 1.5, 0.875]]
    write(tmp_path / "metrics.csv", header, rows)
    figure = draw(tmp_path, SUMMARY)
    assert panels(figure) == ["loss", "acc"]
    for name, value in (("loss", 1.5), ("acc", 12.5)):
        assert [v.tolist() for v in line(panel(figure, name), "train, current weights")] == [[2], [value]]
        drawn = {found.get_label(): found for found in panel(figure, name).get_lines()}
        current, running = drawn["train, current weights"], drawn["train"]
        assert (current.get_linestyle(), running.get_linestyle()) == ("--", "-")
        assert current.get_color() != running.get_color()
    text = words(figure)
    assert "12.5 %\nfinal training error, current\nweights" in text
    assert "train, current\nweights 1.50" in text
    assert overlaps(figure) == []
    write(tmp_path / "metrics.csv", header, [*rows, [3, 1, 1, 1, 0.5, "", ""]])  # the last epoch was not judged so
    assert "0.0 %\nfinal training error\n" in words(draw(tmp_path, SUMMARY))


def test_numbers_beside_each_other_keep_their_zeros(tmp_path: Path) -> None:
    write(tmp_path / "metrics.csv", ["epoch", "train/loss", "val/loss"], [[1, 0.6, 0.7], [2, 0.501, 0.5]])
    text = words(draw(tmp_path))
    assert {"train 0.501", "validation 0.500"} < set(text.split("\n"))


# -------------------------------------------------------------------------------------------------------- the heatmaps


@pytest.mark.parametrize("run", ["resnet18", "resnet50"])
def test_heatmap_is_the_pivot_of_the_readings(request: pytest.FixtureRequest, run: str) -> None:
    drawn = request.getfixturevalue(run)
    figure, layers = drawn.figure, drawn.layers
    expected = np.full((len(layers), 15), np.nan)
    with (drawn.directory / "readings.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if (row["probe"], row["key"]) == ("operator_norm", "norm"):
                expected[layers.index(row["layer"]), int(row["epoch"]) - 1] = float(row["value"])
    ax = panel(figure, "operator_norm")
    np.testing.assert_array_equal(image(ax).filled(np.nan), expected)
    assert ax.get_title(loc="left") == "Operator norm of each layer (largest singular value)"
    low, high = sorted(ax.get_ylim())
    assert ax.get_ylim() == (high, low)  # row 0, the input, is at the top

    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names[0] == "stem"
    assert names[-1] == "fc"
    assert len(names) == min(len(layers), 24)
    assert overlaps(figure) == []
    assert cut_off(figure) == []


def test_fifty_three_layers_fit_the_page(resnet50: Drawn) -> None:
    assert len(RESNET50) == 53
    figure = resnet50.figure
    assert figure.get_figheight() <= 20
    assert panel(figure, "operator_norm").get_position().height * figure.get_figheight() > 5


def test_collapse_is_in_percent_and_names_chance(resnet18: Drawn, validated_words: str) -> None:
    figure = resnet18.figure
    assert "chance" in words(figure)
    ax = panel(figure, "representation_collapse")
    assert image(ax)[0, 0] == pytest.approx(78)
    assert ax.get_images()[0].get_clim() == (0, 90)
    colours = panel(figure, "representation_collapse colours")
    assert "90\nchance" in [label.get_text() for label in colours.get_yticklabels()]
    assert colours.get_ylabel() == "error (%)"
    assert "chance" not in validated_words


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (["input", "net.stem", "net.stage1"], ["input", "stem", "stage1"]),
        (["net.stem", "net.input", "input"], ["net.stem", "net.input", "input"]),
        (["input.stem", "input.head"], ["stem", "head"]),
        (["input"], ["input"]),
    ],
)
def test_the_input_has_no_module_to_share(layers: list[str], names: list[str]) -> None:
    assert short_names(layers) == names


def test_rows_below_the_input_lose_the_module_that_they_share(tmp_path: Path) -> None:
    rows = [[1, "representation_collapse", layer, "error", 0.5] for layer in ("input", *STAGES)]
    write(tmp_path / "readings.csv", READINGS, rows)
    ax = panel(draw(tmp_path), "representation_collapse")
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["input", "stem", "stage1", "stage2", "stage3", "stage4", "fc"]


@pytest.mark.parametrize("layer", ["features", "net.head"])
def test_the_effective_rank_of_one_layer_is_that_of_the_features(tmp_path: Path, layer: str) -> None:
    rows = [[epoch, "effective_rank", layer, "effective_rank", 2.5] for epoch in (1, 2)]
    write(tmp_path / "readings.csv", READINGS, rows)
    title = panel(draw(tmp_path), "effective_rank").get_title(loc="left")
    assert title == "Effective rank of the features (nats)"


def test_what_was_read_once_in_the_whole_run_is_a_number(tmp_path: Path) -> None:
    write(tmp_path / "readings.csv", READINGS, [[3, "effective_rank", "fc", "effective_rank", 2.5]])
    figure = draw(tmp_path)
    assert figure.get_axes() == []
    assert "Effective rank of the features (nats)" in words(figure)
    assert "2.5" in words(figure)


@pytest.mark.parametrize(
    ("values", "logarithmic"), [((1, 30), True), ((1, 5), False), ((-1, 30), False), ((0, 9), False)]
)
def test_colours_are_logarithmic_where_values_span_decades(
    tmp_path: Path, values: tuple[float, float], logarithmic: bool
) -> None:
    write(
        tmp_path / "readings.csv", READINGS, [[e, "operator_norm", f"l{v}", "norm", v] for e in (1, 2) for v in values]
    )
    figure = draw(tmp_path)
    assert isinstance(panel(figure, "operator_norm").get_images()[0].norm, LogNorm) == logarithmic
    assert ("log scale" in panel(figure, "operator_norm colours").get_ylabel()) == logarithmic


def test_a_probe_that_nobody_has_heard_of_gets_its_panel(tmp_path: Path) -> None:
    rows = []
    for epoch in (0, 1, 2, 4):
        rows += [
            [epoch, "dead_units", layer, key, epoch + i] for i, layer in enumerate("abc") for key in ("share", "n")
        ]
        rows += [[epoch, "gradient_noise", "", "seconds", 9], [epoch, "gradient_noise", "", "scale", 10 - epoch]]
        rows += [[epoch, "sharpness", "net", "top", 5], [epoch, "sharpness", "", "seconds", 9]]
        rows += [[epoch, "silent", "", "seconds", 9]]
    write(tmp_path / "readings.csv", READINGS, rows)
    figure = draw(tmp_path)
    assert panels(figure) == ["gradient_noise", "sharpness", "dead_units"]
    assert panel(figure, "dead_units").get_title(loc="left") == "Dead units: share at each layer"
    assert image(panel(figure, "dead_units")).tolist() == [[0, 1, 2, 4], [1, 2, 3, 5], [2, 3, 4, 6]]
    assert panel(figure, "gradient_noise").get_lines()[0].get_ydata().tolist() == [10, 9, 8, 6]
    assert panel(figure, "sharpness").get_title(loc="left") == "Sharpness: top of net"


def test_probes_that_did_not_run_have_no_panel(tmp_path: Path) -> None:
    write_metrics(tmp_path, 3)
    assert panels(draw(tmp_path)) == ["loss", "acc"]
    write(tmp_path / "readings.csv", READINGS, [])
    assert panels(draw(tmp_path)) == ["loss", "acc"]


def test_a_missing_reading_is_a_gap_and_a_second_one_replaces_the_first(tmp_path: Path) -> None:
    rows = [[1, "p", "a", "k", 1], [1, "p", "b", "k", 2], [2, "p", "a", "k", "nan"], [2, "p", "b", "k", 3]]
    rows += [[3, "p", "b", "k", 8], [3, "p", "b", "k", 4]]
    write(tmp_path / "readings.csv", READINGS, rows)
    figure = draw(tmp_path)
    np.testing.assert_array_equal(image(panel(figure, "p")).filled(np.nan), [[1, np.nan, np.nan], [2, 3, 4]])
    assert "grey: no reading" in panel(figure, "p colours").get_ylabel()


def test_long_names_stay_apart(tmp_path: Path) -> None:
    layers = [f"backbone.encoder.transformer_block.{i}.attention.self.query_projection.weight" for i in range(12)]
    layers += ["backbone.$x_1$", "backbone.head"]
    write(tmp_path / "readings.csv", READINGS, [[1, "operator_norm", layer, "norm", 2] for layer in layers])
    figure = draw(tmp_path)
    names = [label.get_text() for label in panel(figure, "operator_norm").get_yticklabels()]
    assert len(set(names)) == len(layers)
    assert max(map(len, names)) <= 34
    assert names[-2:] == ["$x_1$", "head"]
    assert overlaps(figure) == []
    assert cut_off(figure) == []


LONG = "a very long title of a panel that goes on about relative distances of tensors from where they started, in norm"


@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_a_crowded_page_overlaps_and_cuts_nothing(tmp_path: Path, epochs: int) -> None:
    metrics = ["train/loss", "val/loss", "val/acc", f"val/{LONG}", "x" * 90, "a", "b", "c", "d", f"{'w' * 40}/loss"]
    rows = [
        [e, 10 / e, 11 / e, e / 50, 10.0**e if e < 9 else "nan", 5, 1e9 * e, -e, 1, 2, 10 / e] for e in range(1, 41)
    ]
    write(tmp_path / "metrics.csv", ["epoch", *metrics], rows[:epochs])
    deep = [f"backbone.encoder.block.{i}.attention.query_projection.weight" for i in range(60)]
    probes = {LONG: deep, "some": deep[:2], "y" * 80: ["", ""], "operator_norm": deep, "collapse": STAGES}
    read = [
        [epoch, probe, layer, "norm", "nan" if 9 < index < 12 and epoch > 1 else 1.3**index * epoch]
        for epoch in range(1, epochs + 1)
        for probe, layers in probes.items()
        for index, layer in enumerate(layers)
    ]
    write(tmp_path / "readings.csv", READINGS, read)
    long = {"run": "a_long_name_" * 12, "status": f"diverged: {LONG} " * 3, "reduced": LONG * 3, "model": LONG * 2}
    figure = draw(tmp_path, with_data(fallback=True, source=LONG * 3) | long)
    assert len(panels(figure)) >= (11 if epochs == 1 else 12)
    assert overlaps(figure) == []
    assert cut_off(figure) == []


def test_two_probes_of_a_class_have_their_names_in_their_titles(tmp_path: Path) -> None:
    layers = {"spectrum": ["net.stem", "net.head"], "gram_spectrum": ["net.head"], "effective_rank": ["net.head"]}
    rows = [[e, of, name, "effective_rank", 2] for e in (1, 2) for of, names in layers.items() for name in names]
    write(tmp_path / "readings.csv", READINGS, rows)
    declared = {"spectrum": SHELF["spectrum"], "gram_spectrum": SHELF["spectrum"]}
    results.write_declarations(tmp_path, declared)
    figure = draw(tmp_path)
    titles = {name: panel(figure, name).get_title(loc="left") for name in layers}
    assert titles["spectrum"] == "Spectrum: effective rank at each layer (nats) (spectrum)"
    assert titles["gram_spectrum"] == "Spectrum: effective rank at head (nats) (gram_spectrum)"
    assert titles["effective_rank"] == "Effective rank of the features (nats)"


def test_a_layer_has_one_name_on_a_page(tmp_path: Path) -> None:
    deep = [f"net.stage1.{block}.conv" for block in (0, 1)]
    layers = {"operator_norm": ["net.stem", *deep, "net.head"], "mine": deep, "other": deep[:1], "third": [""]}
    rows = [[e, of, name, "norm", 2] for e in (1, 2) for of, names in layers.items() for name in names]
    write(tmp_path / "readings.csv", READINGS, rows)
    results.write_arrays(tmp_path, "mine", 1, [(deep[0], "matrix", np.eye(2), ()), (deep[1], "line", np.ones(3), ())])
    figure = draw(tmp_path)
    rows_of = {name: [t.get_text() for t in panel(figure, name).get_yticklabels()] for name in ("operator_norm",)}
    (mine,) = [ax for ax in figure.axes if ax.get_label() == "mine" and ax.get_title(loc="left")]
    rows_of["mine"] = [label.get_text() for label in mine.get_yticklabels()]
    assert rows_of["operator_norm"] == ["stem", *rows_of["mine"], "head"]
    assert rows_of["mine"] == ["stage1.0.conv", "stage1.1.conv"]
    assert panel(figure, "other").get_title(loc="left") == "Other: norm of stage1.0.conv"
    assert {"stage1.0.conv  epoch 1", "stage1.1.conv"} < set(words(figure).split("\n"))


def test_places_on_an_axis_are_no_modules(tmp_path: Path) -> None:
    rows = [[1, "identity_constant", "", at, "identity", 0.5] for at in (0.1, 0.5, 0.25)]
    write(tmp_path / "readings.csv", list(results.Reading._fields), rows)
    results.write_declarations(tmp_path, {"identity_constant": SHELF["identity_constant"]})
    names = [label.get_text() for label in panel(draw(tmp_path), "identity_constant").get_yticklabels()]
    assert names == ["rho=0.1", "rho=0.5", "rho=0.25"]


def test_readings_older_than_declarations_have_the_panels_of_today(tmp_path: Path) -> None:
    write_metrics(tmp_path, 2)
    shown = [key.name for key in SHELF["linear_operator"].keys if key.title]
    rows = [[2, "linear_operator", "network", key, 1] for key in shown]
    rows += [[2, "identity_constant", f"rho={rho}", "identity", rho] for rho in (0.1, 0.9)]
    with (tmp_path / "readings.csv").open("w", newline="") as file:
        csv.writer(file).writerows([READINGS, *rows])
    before = sorted(tmp_path.iterdir())
    figures: list[Figure] = []
    with pytest.MonkeyPatch.context() as patch:
        compose = report_module.compose
        patch.setattr(report_module, "compose", lambda parts: figures.append(compose(parts)) or figures[-1])
        report_command.main([str(tmp_path)])
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "report.png"])
    text = words(figures[0])
    for title in (key.title for key in SHELF["linear_operator"].keys if key.title):
        assert title in text
    assert "correlation of the input" in text


# ------------------------------------------------------------------------------------------------------------ the words


@pytest.mark.parametrize("width", [2.1, 4.0, 9.7, 16.0])
def test_lines_break_between_parts_and_nothing_is_cut(width: float) -> None:
    parts = ["MLP(depth=3, width=2048, activation=relu)", "11.6 M parameters", "CIFAR-10 (image folder)"]
    parts += ["4,096 training samples", "seed 0"]
    with mpl.rc_context(STYLE):
        figure = page_module.compose([page_module.words(joined(parts), 10.5, 9, width)])
        (text,) = figure.findobj(Text)
        shown = text.get_text()
        assert text.get_window_extent().width <= (width - page_module.PAD) * figure.dpi
    assert " ".join(shown.replace("·", " ").split()) == " ".join(parts)
    lines = shown.split("\n")
    assert not [one for one in lines if one.strip("· ") != one]
    for part in parts[1:]:
        assert len([one for one in lines if part in one]) == (1 if width > 2.5 or len(part) < 18 else 0)


def test_small_print_is_clear_of_titles_and_of_the_edge(tmp_path: Path) -> None:
    header = ["epoch", "train/acc", "val/acc", "train/a_metric_with_a_rather_long_name", "b", "c"]
    write(tmp_path / "metrics.csv", header, [[e, 0.5, e / 10, 0.1 * e, 0.1 * e, 0.3] for e in (98, 99, 100)])
    stages = [[e, "representation_collapse", s, "error", 1.0] for e in (98, 99, 100) for s in ("a", "b", "c")]
    write(tmp_path / "readings.csv", READINGS, stages)
    figure = draw(tmp_path, with_data(num_classes=2))
    boxes = seen(figure)
    for ax in figure.axes:
        title, place = ax._left_title, ax.figure.bbox
        if title.get_text():
            box = title.get_window_extent()
            assert box.x1 < place.x1 - 15
            assert [t.get_text() for t, other in boxes if t is not title and box.padded(1.0).overlaps(other)] == []
    (epoch,) = [box for text, box in boxes if text.get_text() == "epoch 100"]
    assert [t.get_text() for t, box in boxes if t.get_text() != "epoch 100" and epoch.overlaps(box)] == []


def test_header_and_footer_say_what_ran(resnet18: Drawn) -> None:
    text = words(resnet18.figure)
    for said in (
        "resnet_depth18_width16_seed0",
        "ResNet depth 18 width 16, 0.7 M parameters",
        "4,000 training samples",
    ):
        assert said in text
    for said in ("commit 0123456789ab ", "config configs/resnet_depth.yaml", "seed 0", "torch 2.11.0", "5 min 12 s"):
        assert said in text
    assert "FALLBACK" not in text
    assert "REDUCED" not in text


@pytest.mark.parametrize(
    ("config", "said"),
    [("a.yaml", "config a.yaml"), (["a.yaml"], "config a.yaml"), (["a.yaml", "b.yaml"], "config a.yaml, b.yaml")],
)
def test_configs_are_named_as_a_sentence_has_them(tmp_path: Path, config: object, said: str) -> None:
    write(tmp_path / "metrics.csv", ["epoch", "train/loss"], [])
    figure = draw(tmp_path, {"config": config, "seed": 0})
    assert any(text.get_text().startswith(f"{said}  ·  seed 0") for text in figure.findobj(Text))


def test_a_fallback_says_what_it_stands_for(tiny: Path) -> None:
    data = with_data(fallback=True, source="digits", stands_for="MNIST", requested="SingleExample")
    assert "FALLBACK DATA: digits, not MNIST" in words(draw(tiny, data))


def test_fallback_and_reduced_runs_say_so_loudly(tiny: Path) -> None:
    summary = with_data(fallback=True, source="embedded MNIST digits") | {"reduced": "3 of 200 epochs"}
    figure = draw(tiny, summary)
    bands = {text.get_text(): text for text in figure.findobj(Text)}
    assert bands["FALLBACK DATA: embedded MNIST digits, not CIFAR10"].get_weight() == "bold"
    assert "REDUCED SETTING: 3 of 200 epochs" in bands
    coloured = [part for part in figure.findobj(SubFigure) if to_hex(part.get_facecolor()) in (FALLBACK, REDUCED)]
    assert [part.bbox.width for part in coloured] == [figure.bbox.width] * 2
    assert overlaps(figure) == []
    assert cut_off(figure) == []


def test_summary_is_read_from_the_directory_where_none_is_given(tmp_path: Path) -> None:
    write_metrics(tmp_path, 2)
    assert tmp_path.name in words(draw(tmp_path))
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    assert SUMMARY["run"] in words(draw(tmp_path))
    assert SUMMARY["run"] not in words(draw(tmp_path, {}))


@pytest.mark.parametrize(
    "summary",
    [None, {}, {"run": "r"}, {"data": None, "status": None}, {"data": "MNIST", "seconds": "?", "final": 3}],
    ids=["none", "empty", "run", "nones", "odd"],
)
def test_a_poor_summary_makes_a_poorer_page(tiny: Path, summary: dict[str, Any] | None) -> None:
    assert panels(draw(tiny, summary))[:2] == ["loss", "acc"]


# ------------------------------------------------------------------------------------------------------------ the edges


@pytest.mark.parametrize("epochs", [1, 2, 500])
def test_one_epoch_and_five_hundred(tmp_path: Path, epochs: int) -> None:
    figure = draw(run_of(tmp_path, epochs=epochs), SUMMARY)
    found = next(found for found in panel(figure, "loss").get_lines() if found.get_label() == "train")
    assert len(found.get_xdata()) == epochs
    assert len(found.get_markevery()) == (epochs if epochs <= 40 else 0)
    norms = panel(figure, "operator_norm")
    if epochs == 1:  # one look is a profile of points
        assert len(norms.get_lines()[0].get_xdata()) == len(RESNET18)
    else:
        assert image(norms).shape == (len(RESNET18), epochs)
    assert overlaps(figure) == []
    assert cut_off(figure) == []


def test_a_run_of_nothing_but_nan_still_has_a_page(tmp_path: Path) -> None:
    write(tmp_path / "metrics.csv", ["epoch", "train/loss", "val/acc"], [[1, "nan", "nan"], [2, "inf", "nan"]])
    write(tmp_path / "readings.csv", READINGS, [[1, "operator_norm", layer, "norm", "nan"] for layer in "ab"])
    report(tmp_path, {"status": "diverged in epoch 1"})
    assert "no finite value" in words(draw(tmp_path))


def test_a_run_before_its_first_epoch_has_a_page(tmp_path: Path) -> None:
    write(tmp_path / "metrics.csv", ["epoch", "train/loss"], [])
    assert "No epoch is finished" in words(draw(tmp_path))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("metrics.csv", "epoch,train/loss\n1,2.0\n2\n", "line 3: 1 fields where the header has 2"),
        ("metrics.csv", "epoch,train/loss\n1,2.0\n2,low\n", "line 3: train/loss is 'low', not a number"),
        ("metrics.csv", "epoch,train/loss\n1.5,2.0\n", "line 2: the epoch is '1.5'"),
        ("metrics.csv", "epoch,train/loss\n,2.0\n", "line 2: the epoch is ''"),
        ("metrics.csv", "train/loss\n2.0\n", "line 1: the header has no column 'epoch'"),
        ("metrics.csv", "", "line 1: the header has no column 'epoch'"),
        ("readings.csv", "epoch,probe,key,value\n", "line 1: the header has no column 'layer'"),
        ("readings.csv", "epoch,probe,layer,key,value\n1,p,a,k,0.x\n", "line 2: value is '0.x'"),
        ("summary.json", "{", "not a JSON file"),
        ("summary.json", "[]", "a list where an object was expected"),
    ],
)
def test_a_malformed_table_is_a_mistake_with_its_place(tmp_path: Path, name: str, text: str, said: str) -> None:
    write_metrics(tmp_path, 2)
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as user_error:
        report(tmp_path)
    assert str(tmp_path / name) in str(user_error.value)
    assert said in str(user_error.value)
    assert not (tmp_path / "report.png").exists()


def test_a_table_that_is_no_text_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_bytes(b"epoch,loss\n1,\xff\xfe\n")
    with pytest.raises(UserError, match=r"metrics\.csv: not a csv file in UTF-8"):
        draw(tmp_path)


def test_a_directory_without_tables_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither metrics\.csv nor readings\.csv"):
        report(tmp_path)


def test_the_last_digits_of_a_constant_are_no_course():
    ax = Figure().subplots()
    values = np.array([1.0, 1.00001, 1.000005])
    draw_scale(ax, "y", values, logarithmic=False)
    _limit_y(ax, values, from_zero=False)
    low, high = ax.get_ylim()
    assert high - low > 1e-3
    assert low < 1.0 < 1.00001 < high
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert len(set(labels)) == len(labels) > 2
