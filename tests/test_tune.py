"""A search goes on where it was killed, counts what diverges, and says in two lines what is wrong."""

import csv
import os
import re
import signal
import time

import pytest
import yaml
from lightning.pytorch import Callback
from matplotlib.text import Text

from lightning_depth.errors import UserError
from lightning_depth.figures import tuning
from lightning_depth.figures.tuning import Trial, best_of, draw_tuning
from lightning_depth.results import write_yaml
from lightning_depth.studies.search import Search, Trials, scored, suggestion
from lightning_depth.studies.tune import override, whole_key
from tests.commands import command, written

RANGE = ["--tune.low", "1e-3", "--tune.high", "1"]
SMALL = ["--config", "tiny.yaml", *RANGE, "--tune.trials", "2", "--tune.folds", "2"]


class KillSearch(Callback):
    """SIGKILL to the search, not to the fit, as a fit of the named trial and fold begins."""

    def on_fit_start(self, trainer, pl_module):
        moment = os.environ.get("KILL_SEARCH")
        if moment and moment in str(trainer.default_root_dir):
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(30)  # the fit ends with its search


def config():
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
    digits = {"classes": [0, 1], "samples_per_class": 10, "batch_size": 10}
    return {
        "seed_everything": 3,
        "model": {"class_path": "MLP", "init_args": {"depth": 1, "width": 4, "optimizer": sgd}},
        "data": {"class_path": "EmbeddedDigits", "init_args": digits},
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "callbacks": [
                {"class_path": "lightning_depth.callbacks.OperatorNorm"},
                {"class_path": "tests.test_tune.KillSearch"},
            ],
        },
    }


def table(directory):
    with (directory / "trials.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    written(config(), folder)
    ended = command("tune", *SMALL, cwd=folder)
    assert ended.status == 0, ended.err
    return folder / "runs" / "tune-tiny", ended


def test_a_search_has_a_table_a_picture_and_the_best(whole):
    directory, ended = whole
    rows = table(directory)
    assert [(row["trial"], row["fold"]) for row in rows] == [("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")]
    assert {row["status"] for row in rows} == {"finished"}
    assert {row["metric"] for row in rows} == {"val/acc"}
    means = {row["value"]: 0.0 for row in rows}
    for row in rows:
        means[row["value"]] += float(row["result"]) / 2
    best = yaml.safe_load((directory / "best.yaml").read_text())
    value = best["model"]["init_args"]["optimizer"]["init_args"]["lr"]
    assert means[str(value)] == max(means.values())
    assert (directory / "tune.png").stat().st_size > 10_000
    assert re.search(r"trial 1/2  fold 1/2  lr \S+  val/acc \S+  \S+ s  .+ left", ended.out)
    assert "optuna" not in (ended.out + ended.err).lower()
    run = yaml.safe_load((directory / "trials" / "001" / "fold-1" / "config.yaml").read_text())
    assert run["model"]["init_args"]["optimizer"]["init_args"]["lr"] == float(rows[-1]["value"])
    assert run["data"]["init_args"]["fold"] == 1
    assert [c["class_path"] for c in run["trainer"]["callbacks"]] == ["tests.test_tune.KillSearch"]  # no probe
    assert not list(directory.rglob("*.ckpt"))


def test_a_killed_search_goes_on_as_if_it_had_not_been(whole, tmp_path):
    written(config(), tmp_path)
    killed = command("tune", *SMALL, cwd=tmp_path, KILL_SEARCH="001/fold-0")
    assert killed.status == -signal.SIGKILL
    directory = tmp_path / "runs" / "tune-tiny"
    assert len(table(directory)) == 2
    with (directory / "trials.csv").open("a") as file:
        file.write("1,0,model.init")  # torn
    stamps = {path: path.stat().st_mtime_ns for path in directory.glob("trials/000/*/*")}
    ended = command("tune", *SMALL, cwd=tmp_path)
    assert ended.status == 0, ended.err
    assert "going on" in ended.out
    assert table(directory) == table(whole[0])
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    again = command("tune", *SMALL, cwd=tmp_path)
    assert again.status == 0
    assert "fold 1/2" not in again.out
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tune-tiny"]


def test_a_rate_that_diverges_is_the_worst_and_no_crash(tmp_path):
    written(config(), tmp_path)
    words = ["--config", "tiny.yaml", "--tune.low", "1e30", "--tune.high", "1e31", "--tune.trials", "1"]
    ended = command("tune", *words, cwd=tmp_path)
    assert ended.status == 2
    assert ended.err.splitlines() == ["error: All 1 trials diverged.", "A lower --tune.high is the usual cure."]
    (row,) = table(tmp_path / "runs" / "tune-tiny")  # the other nine folds are not tried
    assert row["status"] == "diverged"
    assert row["result"] == ""


MISTAKES = {
    "--tune.low 1 --tune.high 0.1": "--tune.low 1 must be below --tune.high 0.1",
    "--tune.low 0 --tune.high 1": "a logarithmic scale needs it above 0",
    "--tune.low 1e-3": "The following arguments are required: --tune.high",
    "--tune.low ten --tune.high 1": "invalid float value: 'ten'",
    "--tune.low 1 --tune.high 2 --tune.folds 1": "--tune.folds 1: it must be at least 2",
    "--tune.low 1 --tune.high 2 --tune.trials 0": "--tune.trials 0: it must be at least 1",
    "--tune.low 1 --tune.high 2 --tune.fold 3": "Unknown option --tune.fold. Did you mean --tune.folds?",
    "--tune.low 1 --tune.high 2 --modle 3": "Unknown option --modle. Did you mean model?",
    "--tune.low 1 --tune.high 2 --model.dept 3": "dept. Did you mean depth?",
    "--tune.low 1 --tune.high 2 --tune.key model.optimizer.lrr": "optimizer.init_args.lr?",
    "--tune.low 1 --tune.high 2 --tune.name a/b": "must be a plain directory name",
    "--tune.low 0.1 --tune.high 1 --tune.folds 21": "folds=21: there are only 20 training samples",
    "--tune.low 0.1 --tune.high 1 --tune.metric val/ac --tune.folds 2": "Did you mean val/acc?",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_user_errors(words, tmp_path):
    written(config(), tmp_path)
    ended = command("tune", "--config", "tiny.yaml", *words.split(), cwd=tmp_path)
    assert ended.status == 2, ended.err
    assert 1 <= len(ended.err.splitlines()) <= 2, ended.err
    assert MISTAKES[words] in ended.err
    assert not list(tmp_path.glob("runs/*"))


def test_what_is_tried_is_a_function_of_the_history_and_comes_near_the_best():
    search, history = Search("x", 1e-4, 1.0, seed=1), []
    for number in range(12):
        value = suggestion(search, number, history, "max")
        assert value == suggestion(search, number, list(history), "max")
        assert 1e-4 <= value <= 1
        history.append((value, -abs(value - 0.03) / 0.03))
    assert max(mean for _, mean in history) > -0.2
    assert Search("x", 1.0, 2.0).direction_of("val/acc") == "max"
    assert Search("x", 1.0, 2.0).direction_of("val/loss") == "min"
    assert Search("x", 1.0, 2.0, direction="min").direction_of("val/acc") == "min"


def test_trials_that_diverged_are_never_the_best():
    trials = [Trial(0, 1.0, [0.5, 0.5], False), Trial(1, 2.0, [], True), Trial(2, 3.0, [0.9], False)]
    assert best_of(trials, "max") is trials[2]
    assert best_of(trials, "min") is trials[0]
    assert best_of(trials[1:2], "max") is None
    assert scored(trials, "min") == [(1.0, 0.5), (2.0, 0.9), (3.0, 0.9)]


def test_keys_with_and_without_init_args():
    tree = {"model": {"init_args": {"optimizer": {"init_args": {"lr": 0.1}}}}, "seed_everything": 0}
    full = "model.init_args.optimizer.init_args.lr"
    assert whole_key("model.optimizer.lr", tree) == whole_key(full, tree) == full
    with pytest.raises(UserError, match="no such number"):
        whole_key("seed_everything", tree)
    assert override("a.b", 2.0) == {"a": {"b": 2.0}}


def test_the_picture_needs_the_table_alone(tmp_path):
    with pytest.raises(UserError, match="it has no trials"):
        draw_tuning(tmp_path)
    trials = Trials(tmp_path / "trials.csv")
    for trial, (value, result) in enumerate([(1.0, None), (0.01, 3.0), (0.1, 0.02)]):
        status = "finished" if result else "diverged"
        named = {
            "key": "model.lr",
            "metric": "val/loss",
            "direction": "min",
            "data": "FALLBACK digits (embedded)" if result else "",
        }
        trials.append({"trial": trial, "fold": 0, "value": value, "result": result, "status": status, **named})
    assert draw_tuning(tmp_path).is_file()


@pytest.mark.parametrize("log", [True, False])
def test_the_picture_has_the_axis_of_the_search_and_the_band_of_a_reduced_config(tmp_path, monkeypatch, log):
    trials = Trials(tmp_path / "trials.csv")
    for trial, value in enumerate((0.0056, 0.0557)):
        named = {"key": "model.lr", "metric": "val/acc", "direction": "max", "data": "", "status": "finished"}
        trials.append({"trial": trial, "fold": 0, "value": value, "result": 0.5, **named})
    write_yaml(tmp_path / "search.yaml", {"low": 1e-3, "high": 1.0, "log": log})
    write_yaml(tmp_path / "config.yaml", {"run": {"reduced": "3 of 200 epochs"}})
    figures = []
    monkeypatch.setattr(tuning, "write_png", lambda target, draw: figures.append(draw()) or target)
    draw_tuning(tmp_path)
    (ax,) = figures[0].axes
    low, high = ax.get_xlim()
    assert low < 1e-3 < 1.0 < high
    assert (ax.get_xscale(), ax.get_xlabel()) == (("log", "model.lr, log scale") if log else ("linear", "model.lr"))
    assert "REDUCED SETTING: 3 of 200 epochs" in [text.get_text() for text in figures[0].findobj(Text)]
