"""The report page, read back from the figure that it is before it is written."""

import ast
import json
import os
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import imread
from matplotlib.text import Text

from lightning_depth import results
from lightning_depth.errors import UserError
from lightning_depth.figures import page as page_module
from lightning_depth.figures import report as report_module
from lightning_depth.figures.curves import _limit_y
from lightning_depth.figures.report import draw, report
from lightning_depth.figures.style import FALLBACK, REDUCED, STYLE, draw_scale
from lightning_depth.figures.wording import joined
from tests.figures.runs import (
    READINGS,
    RESNET18,
    STAGES,
    SUMMARY,
    Drawn,
    image,
    panel,
    panels,
    run_of,
    with_data,
    words,
    write,
    write_metrics,
)
from tests.figures.seen import cut_off, overlaps, seen

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
