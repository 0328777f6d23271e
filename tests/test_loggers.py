"""Loggers are chosen in YAML; whatever they are, the CSV files are there, and W&B gets everything without a network."""

import csv
import json
import struct

import pytest
import yaml
from PIL import Image

from tests.commands import command, tiny, written

WANDB = "lightning.pytorch.loggers.WandbLogger"
KINDS = FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path):
    """The records of an offline W&B run: LevelDB's log format after a header of 7 bytes, each a protobuf message."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    found, position, parts = [], 7, b""
    while position < len(data):
        left = 32768 - position % 32768
        if left < 7:  # too little for a header: the block ends in zeros
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        assert kind in KINDS
        position += 7 + length
        parts += data[position - length : position]
        if kind in (FULL, LAST):
            found.append(Record())
            found[-1].ParseFromString(parts)
            parts = b""
    return found


def values(items):
    """{name: value} of the items of a history, config or summary record."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A run directory and its W&B log: `offline: false`, no key anywhere, and CIFAR-10 replaced by its fallback."""
    folder = tmp_path_factory.mktemp("wandb")
    (folder / "home").mkdir()
    config = tiny()
    more = {"group": "depths", "tags": ["mine"], "job_type": "probe"}
    logger = {"class_path": WANDB, "init_args": {"project": "depth", "offline": False}, "dict_kwargs": more}
    config["trainer"] |= {"max_epochs": 2, "logger": [logger]}
    config["trainer"]["callbacks"].append({"class_path": "Spectrum", "init_args": {"layers": ["net.head"]}})
    config["data"]["class_path"] = "lightning_depth.data.CIFAR10"
    config["data"]["init_args"] |= {"download": False, "fallback": "embedded_digits"}
    written(config, folder)
    nobody = {"WANDB_MODE": None, "WANDB_API_KEY": None, "HOME": str(folder / "home"), "NETRC": str(folder / "none")}
    ended = command("fit", "--config", "tiny.yaml", cwd=folder, **nobody)
    assert ended.status == 0, ended.err
    run = folder / "runs" / "tiny-fallback"
    (log,) = run.glob("wandb/offline-run-*/run-*.wandb")
    return run, records(log)


def test_who_and_what_the_run_is(logged):
    (run,) = [record.run for record in logged[1] if record.HasField("run")]
    assert (run.project, run.display_name) == ("depth", "tiny-fallback")
    assert (run.run_group, run.job_type) == ("depths", "probe")  # as YAML says
    assert list(run.tags) == ["mine", "fallback data"]


def test_the_whole_config_is_there_once(logged):
    directory, log = logged
    configs = [values(record.config.update) for record in log if record.HasField("config")]
    (config,) = [config for config in configs if config.keys() - {"_wandb"}]
    assert config == yaml.safe_load((directory / "config.yaml").read_text())
    assert config["model"]["init_args"]["depth"] == 10


def test_every_metric_and_reading_is_drawn_against_the_epoch(logged):
    directory, log = logged
    metrics = [record.metric for record in log if record.HasField("metric")]
    assert [metric.step_metric for metric in metrics if metric.glob_name == "*"][-1] == "epoch"
    history = [values(record.history.item) for record in log if record.HasField("history")]
    curves = {}
    for row in history:
        for key, value in row.items():
            if "epoch" in row and isinstance(value, float | int):
                curves.setdefault(key, {})[row["epoch"]] = value
    with (directory / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            for key in ("train/loss", "train/acc", "val/loss", "val/acc"):
                assert curves[key][int(row["epoch"])] == float(row[key])
    with (directory / "readings.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["layer"]]
    for row in rows:
        curve = curves["/".join((row["probe"], row["layer"], row["key"]))]
        assert curve[int(row["epoch"])] == float(row["value"])
    assert {"net.stem.conv", "net.stage4.0.conv2", "net.head"} <= {row["layer"] for row in rows}
    assert {epoch for curve in curves.values() for epoch in curve} == {1, 2}


def test_the_readings_table_and_the_report_are_there(logged):
    directory, log = logged
    history = {}
    for record in log:
        if record.HasField("history"):
            history |= values(record.history.item)
    (files,) = (directory / "wandb").glob("offline-run-*/files")
    table = json.loads((files / history["readings/path"]).read_text())
    assert table["columns"] == ["epoch", "probe", "layer", "at", "key", "value"]
    with (directory / "readings.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    rows = [[int(epoch), probe, layer, None, key, float(value)] for epoch, probe, layer, _, key, value in rows]
    assert table["data"] == rows
    (image,) = history["report/filenames"]
    assert (files / image).read_bytes() == (directory / "report.png").read_bytes()


def test_what_a_probe_draws_is_logged_as_an_image_of_each_look(logged):
    directory, log = logged
    (files,) = (directory / "wandb").glob("offline-run-*/files")
    looks = [values(record.history.item) for record in log if record.HasField("history")]
    images = [row["pictures/spectrum/filenames"] for row in looks if "pictures/spectrum/filenames" in row]
    assert len(images) == 2
    for epoch, (name,) in enumerate(images, 1):
        drawn = directory / "pictures" / "spectrum" / f"epoch-{epoch:05d}.png"
        assert (files / name).read_bytes() == drawn.read_bytes()
        assert Image.open(drawn).width > 1000
    assert not any(key.startswith("pictures/operator_norm") for row in looks for key in row)


TENSORBOARD = {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": "."}}


@pytest.mark.parametrize("logger", [False, TENSORBOARD], ids=["none", "TensorBoard"])
def test_the_csv_files_do_not_depend_on_a_logger(tmp_path, logger):
    config = tiny()
    config["trainer"] |= {"logger": logger, "max_epochs": 1}
    written(config, tmp_path)
    ended = command("fit", "--config", "tiny.yaml", cwd=tmp_path)
    assert ended.status == 0, ended.err
    run = tmp_path / "runs" / "tiny"
    names = {path.name for path in run.iterdir() if path.is_file() and path.name != ".lock"}
    assert names == {"config.yaml", "metrics.csv", "probes.json", "readings.csv", "summary.json", "report.png"}
    assert len((run / "metrics.csv").read_text().splitlines()) == 2
    assert not list(run.rglob("*wandb*"))
    events = list(tmp_path.rglob("events.out.tfevents*"))
    if not logger:
        assert events == []
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (event_file,) = events
    assert run in event_file.parents
    scalars = EventAccumulator(str(event_file))
    scalars.Reload()
    (accuracy,) = scalars.Scalars("val/acc")
    with (run / "metrics.csv").open() as file:
        assert accuracy.value == pytest.approx(float(next(csv.DictReader(file))["val/acc"]), rel=1e-6)
    assert "operator_norm/net.head/norm" in scalars.Tags()["scalars"]
