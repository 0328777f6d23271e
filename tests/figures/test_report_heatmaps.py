"""The heatmaps of the report page, and every other panel of probes."""

import csv
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from lightning_depth import results
from lightning_depth.cli import report as report_command
from lightning_depth.figures import report as report_module
from lightning_depth.figures.report import draw
from lightning_depth.figures.wording import short_names
from tests.figures.runs import (
    READINGS,
    RESNET50,
    SHELF,
    STAGES,
    Drawn,
    image,
    panel,
    panels,
    with_data,
    words,
    write,
    write_metrics,
)
from tests.figures.seen import cut_off, overlaps

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
