"""The curves of the report page."""

import math
from pathlib import Path

import numpy as np
import pytest

from lightning_depth.figures.report import draw
from tests.figures.runs import READINGS, SUMMARY, Drawn, column, line, panel, panels, words, write, write_metrics
from tests.figures.seen import overlaps

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
