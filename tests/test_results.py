"""The format of a run's directory: one module owns it, files are whole, and runs of earlier versions are read."""

import ast
import csv
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import lightning_depth
from lightning_depth import results
from lightning_depth.errors import UserError
from lightning_depth.figures.directions import better, directions
from lightning_depth.figures.report import draw
from lightning_depth.probes import Key
from lightning_depth.results import Reading, Table
from lightning_depth.studies.search import Search
from tests.table_of_probes import SHELF

PACKAGE = Path(lightning_depth.__file__).parent
OLD = Path(__file__).parent / "figures" / "old_run"  # of before there was a column `at`

# --- nothing else opens them ------------------------------------------------------------------------------------------

NAMES = {name: value for name, value in vars(results).items() if name.isupper() and isinstance(value, str)}
OPENERS = {"open", "read_text", "write_text", "read_bytes", "write_bytes", "fdopen"}
PARSERS = {"json", "csv", "yaml", "np", "numpy", "pickle", "zipfile"}
OF_TEXT = {"loads", "dumps", "safe_load", "safe_dump"}  # a variable of the environment, say
PARSING = OF_TEXT | {"load", "dump", "reader", "writer", "DictReader", "DictWriter", "ZipFile"}
PARSING |= {"save", "savez", "savez_compressed", "loadtxt", "savetxt", "genfromtxt"}
OPEN_NOTHING = ("runs", "figures", "probes", "callbacks")


def opens(call):
    """Whether a call opens a file, or parses or writes what one holds."""
    match call.func:
        case ast.Name(id=name):
            return name == "open"
        case ast.Attribute(value=ast.Name(id=module), attr=name) if module in PARSERS:
            return name in PARSING
        case ast.Attribute(attr=name):
            return name in OPENERS
    return False


def offences(source, room):
    """The functions of a file that name a file of a run's directory and open something; in some rooms, that open."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        nodes = list(ast.walk(function))
        words = {n.value for n in nodes if isinstance(n, ast.Constant)}
        words |= {NAMES.get(n.id) for n in nodes if isinstance(n, ast.Name)}
        words |= {NAMES.get(n.attr) for n in nodes if isinstance(n, ast.Attribute)}
        names_one = bool(words & set(NAMES.values()))
        calls = [n for n in nodes if isinstance(n, ast.Call) and opens(n)]
        of_files = [call for call in calls if getattr(call.func, "attr", "") not in OF_TEXT]
        if (calls and names_one) or (of_files and room in OPEN_NOTHING):
            found.append(function.name)
    return found


def sources():
    for path in [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "callbacks").glob("*.py")]:
        place = path.relative_to(PACKAGE) if path.is_relative_to(PACKAGE) else path.relative_to(PACKAGE.parent)
        if place != Path("results.py"):
            yield place, path.read_text()


def test_nothing_else_opens_a_file_of_a_runs_directory():
    found = {str(place): wrong for place, source in sources() if (wrong := offences(source, place.parts[0]))}
    assert found == {}


@pytest.mark.parametrize(
    ("room", "body"),
    [
        ("cli", 'json.loads((directory / "summary.json").read_text())'),
        ("studies", 'yaml.safe_load(open(directory / "config.yaml"))'),
        ("training", "(directory / results.METRICS).open()"),
        ("cli", "csv.DictReader(lines, results.READINGS)"),
        ("figures", "np.load(path)"),
        ("runs", "path.write_text(text)"),
        ("callbacks", "open(path)"),
    ],
)
def test_that_rule_can_say_no(room, body):
    assert offences(f"def f(directory, path):\n    return {body}\n", room) == ["f"]
    assert offences("def f(directory):\n    return results.read_summary(directory / 'summary.json')\n", room) == []


# --- whole files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["some.txt", "some.tar.gz", "none"])
def test_a_file_is_whole_or_not_there(tmp_path, name):
    path = tmp_path / name

    def half_written():
        with results.atomic_file(path) as temporary:
            assert temporary.name.endswith(path.suffix)
            temporary.write_text("half")
            assert [file.parent for file in tmp_path.iterdir()] == [tmp_path] * (1 + path.exists())
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        half_written()
    assert list(tmp_path.iterdir()) == []
    results.write_text(path, "größe")
    with pytest.raises(OSError, match="disk full"):
        half_written()
    assert path.read_text(encoding="utf-8") == "größe"
    assert list(tmp_path.iterdir()) == [path]


def test_a_summary_is_none_an_object_or_a_mistake_of_two_lines(tmp_path):
    assert results.read_summary(tmp_path) is None
    results.write_summary(tmp_path, {"run": "a"})
    assert results.read_summary(tmp_path) == {"run": "a"}
    odd = {
        "a": {"b": [float("nan"), 1.5, True]},
        3: -float("inf"),
        "path": tmp_path,
        "none": None,
        "np": [np.float32(2), np.int64(3)],
    }
    results.write_summary(tmp_path, odd)
    said = {"a": {"b": [None, 1.5, True]}, "3": None, "path": str(tmp_path), "none": None, "np": [2.0, 3]}
    assert results.read_summary(tmp_path) == said
    for torn, said in (('{"run": "a', "not a JSON file"), ("[1]", "a list where an object was expected")):
        (tmp_path / "summary.json").write_text(torn)
        with pytest.raises(UserError, match=said) as error:
            results.read_summary(tmp_path)
        assert str(tmp_path / "summary.json") in str(error.value)
        assert str(error.value).count("\n") < 2


def test_a_config_is_there_or_a_mistake(tmp_path):
    results.write_config(tmp_path, {"b": [1, None], "a": "ü"})
    assert results.read_config(tmp_path) == {"b": [1, None], "a": "ü"}
    assert (tmp_path / "config.yaml").read_text().startswith("# The whole config of this run.")
    for torn in ("a: [1", "a: \x00"):
        (tmp_path / "config.yaml").write_text(torn)
        with pytest.raises(UserError, match=r"Cannot read .*config\.yaml: "):
            results.read_config(tmp_path)
    with pytest.raises(UserError, match=r"Cannot read .*config\.yaml: "):
        results.read_config(tmp_path / "none")


def test_declarations_are_kept_beside_those_of_other_probes(tmp_path):
    assert results.read_declarations(tmp_path) == {}
    shelf = [c() for c in SHELF]
    for probe in shelf:
        results.write_declarations(tmp_path, {probe.name: probe.declaration})
    assert results.read_declarations(tmp_path) == {probe.name: probe.declaration for probe in shelf}
    before = os.stat(tmp_path / "probes.json").st_mtime_ns
    results.write_declarations(tmp_path, {shelf[0].name: shelf[0].declaration})
    assert os.stat(tmp_path / "probes.json").st_mtime_ns == before
    for torn, said in (("{", "not a JSON file"), ('{"a": {}}', "no declarations"), ('{"a": 3}', "no declarations")):
        (tmp_path / "probes.json").write_text(torn)
        with pytest.raises(UserError, match=said):
            results.read_declarations(tmp_path)


# --- tables -----------------------------------------------------------------------------------------------------------


def test_readings_come_back_as_they_were_written(tmp_path):
    read = [
        Reading(1, "p", "net.conv#2", None, "k", 0.1 + 0.2),
        Reading(1, "p", "", -0.5, "k", 3.0),
        Reading(1, "p", "", 1e-3, "k", 4.0),
        Reading(2, "p", 'odd, "layer"', None, "k", 5.0),
    ]
    table = Table(tmp_path / "readings.csv", Reading._fields)
    table.append([reading._asdict() for reading in read])
    assert results.read_readings(tmp_path) == read
    table.append([Reading(2, "p", 'odd, "layer"', None, "k", 6.0)._asdict()])
    assert results.read_readings(tmp_path) == [*read[:3], read[3]._replace(value=6.0)]
    with (tmp_path / "readings.csv").open() as file:
        assert next(csv.reader(file)) == ["epoch", "probe", "layer", "at", "key", "value"]
    assert results.read_readings(tmp_path / "none") == []
    (tmp_path / "readings.csv").write_text("epoch,probe,layer,at,key,value\n1,p,,near,k,1\n")
    with pytest.raises(UserError, match=r"line 2: at is 'near', not a number"):
        results.read_readings(tmp_path)


def test_arrays_come_back_in_float32(tmp_path):
    values = np.random.default_rng(0).random((3, 4))
    results.write_arrays(tmp_path, "p", 7, [("net.a", "k", values, []), ("", "k", values, ["x", "ü", "z"])])
    [arrays] = results.read_arrays(tmp_path)
    assert (arrays.probe, arrays.key, arrays.names) == ("p", "k", {"net.a": [], "": ["x", "ü", "z"]})
    np.testing.assert_array_equal(arrays.layers["net.a"][7], values.astype(np.float32))
    assert [path.name for path in (tmp_path / "pictures" / "p").iterdir()] == ["epoch-00007.npz"]


def test_a_torn_line_is_no_row_and_can_be_taken_out(tmp_path):
    table = Table(tmp_path / "t.csv", ["epoch", "a"])
    table.drop_torn_line()
    table.append([{"epoch": 1, "a": 2}])
    whole = (tmp_path / "t.csv").read_text()
    (tmp_path / "t.csv").write_text(whole + "2,")
    assert table.rows() == [{"epoch": "1", "a": "2"}]
    table.drop_torn_line()
    assert (tmp_path / "t.csv").read_text() == whole


# --- runs of earlier versions -----------------------------------------------------------------------------------------


def test_a_run_without_the_column_at_is_read_and_drawn(tmp_path):
    shutil.copytree(OLD, tmp_path / "old")
    read = results.read_readings(tmp_path / "old")
    assert {(r.at, r.layer) for r in read if r.probe == "identity_constant"} == {(0.0, ""), (0.5, ""), (1.0, "")}
    assert [r.at for r in read if r.probe == "local_stability" and r.key != "seconds"] == [0.3, 1.0, 3.0]
    assert {r.layer for r in read if r.probe == "linear_operator"} == {"network"}
    titles = {ax.get_title(loc="left") for ax in draw(tmp_path / "old").axes}
    assert {
        "Identity constant: identity",
        "Operator norm: norm at each layer",
        "Spectrum 2: effective rank of head",
    } < titles


def test_a_run_that_goes_on_has_both_kinds_of_rows(tmp_path):
    shutil.copytree(OLD, tmp_path / "old")
    before = results.read_readings(tmp_path / "old")
    table = Table(tmp_path / "old" / "readings.csv", Reading._fields)
    table.rewind(2)
    fresh = Reading(3, "identity_constant", "", 0.5, "identity", 0.4)
    table.append([fresh._asdict()])
    after = results.read_readings(tmp_path / "old")
    assert after[-1] == fresh
    assert [r for r in after[:-1] if not math.isnan(r.value)] == [r for r in before if not math.isnan(r.value)]


# --- the better direction of a metric ---------------------------------------------------------------------------------

BETTER = {
    "train/loss": "min",
    "val_loss_epoch": "min",
    "val/acc": "max",
    "train_eval/acc": "max",
    "valid_top5_accuracy": "max",
    "val/inaccuracy": "min",
    "val/accumulated_error": "min",
    "perplexity": "min",
    "val/auc": "max",
    "val/f1": "max",
    "grad_norm": None,
    "val/blossom": None,
    "val/loss_accuracy": None,  # both
}


@pytest.mark.parametrize("metric", BETTER)
def test_the_better_direction_of_a_metric(metric):
    assert better(metric) == BETTER[metric]


def test_metrics_without_a_direction_are_left_out():
    assert directions(["val/acc", "grad_norm", "val/loss"]) == {"val/acc": "max", "val/loss": "min"}


def test_a_summary_says_which_direction_is_better_and_figures_believe_it(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,val/reward,val/inaccuracy\n1,1,0.5\n2,3,0.2\n3,2,0.4\n")

    def marked(summary):
        lines = [line for ax in draw(tmp_path, summary).axes for line in ax.get_lines()]
        return {line.get_xdata()[0] for line in lines if line.get_label() == "best epoch"}

    assert marked({}) == {2.0}  # of the inaccuracy
    assert marked({"directions": {"val/reward": "min", "val/inaccuracy": "max"}}) == {1.0}


def test_a_search_asks_for_a_direction_that_nobody_knows():
    ranges = {"key": "model.lr", "low": 0.1, "high": 1.0}
    assert [Search(**ranges).direction_of(metric) for metric in ("val/acc", "val/inaccuracy")] == ["max", "min"]
    with pytest.raises(UserError, match=r"Whether val/reward .*\nGive --tune.direction max, or min"):
        Search(**ranges).direction_of("val/reward")
    assert Search(**ranges, direction="max").direction_of("val/reward") == "max"


def test_a_key_is_named_and_nothing_else_is_needed():
    assert Key("k") == Key(name="k", title="", unit="", factor=1.0)
