"""Every config that is shipped names classes that exist with arguments that they take, and says what it is for."""

import re
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Trainer

from lightning_depth import data as data_sets
from lightning_depth.data.base.published import AbstractPublishedImages
from tests.commands import command

ROOT = Path(__file__).parent.parent
DEVICES = sorted((ROOT / "configs" / "trainer").glob("*.yaml"))
PROBES = sorted((ROOT / "configs" / "probes").glob("*.yaml"))
OVERLAYS = DEVICES + PROBES
CONFIGS = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if path not in OVERLAYS]


def name(path):
    return path.relative_to(ROOT / "configs").with_suffix("").as_posix()


def opening(path):
    """The comment at the top, without its marks."""
    lines = path.read_text().splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").strip() for line in lines[:end])


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_a_config_opens_with_its_command_its_cost_and_what_to_expect(path):
    said = opening(path)
    commands = re.findall(r"^python main\.py (\w+) .*?(configs/\S+\.yaml)", said, re.MULTILINE)
    assert commands, said
    assert {file for _, file in commands} == {path.relative_to(ROOT).as_posix()}
    assert re.search(r"\bcost\b[^.]*\d+ (seconds|minutes|min|hours|s|h)\b", said, re.IGNORECASE | re.DOTALL), said
    assert re.search(r"^Expect", said, re.MULTILINE), said


@pytest.mark.parametrize("path", OVERLAYS, ids=name)
def test_an_overlay_opens_with_its_command(path):
    front = "configs/resnet_depth.yaml --config " + path.relative_to(ROOT).as_posix()
    assert f"python main.py fit --config {front}" in opening(path)


def published(node, option):
    """Where the data of a config name a published data set, which may be inside another: `--data.images`."""
    if isinstance(node, dict) and "class_path" in node:
        kind = getattr(data_sets, node["class_path"].rpartition(".")[2], None)
        if kind is not None and issubclass(kind, AbstractPublishedImages):
            yield option
        for name, value in (node.get("init_args") or {}).items():
            yield from published(value, f"{option}.{name}")


def built(folder, *configs, more=()):
    """Build everything that the configs name by the program's own parser, on one batch in place of the run."""
    words = [word for path in configs for word in ("--config", path)]
    here = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "auto"]
    # A shipped config may ask for data that is not here: the digits stand in, as many as there are.
    data = []
    for path in configs:
        for option in published(yaml.safe_load(path.read_text()).get("data") or {}, "--data"):
            data += [f"{option}.root", folder / "data", f"{option}.download", "false"]
            data += [f"{option}.fallback", "embedded_digits"]
    return command(
        "fit", *words, *here, *data, "--trainer.logger", "false", "--trainer.fast_dev_run", "2", *more, cwd=folder
    )


@pytest.mark.parametrize("path", [p for p in CONFIGS if "studies" not in p.parts], ids=name)
def test_a_config_builds_and_takes_a_step(path, tmp_path):
    ended = built(tmp_path, path)
    assert ended.status == 0, ended.err
    assert "epoch 1/1  train/loss" in ended.out + ended.err


@pytest.mark.parametrize("path", PROBES, ids=name)
def test_probes_of_an_overlay_read(path, tmp_path):
    words = ["--model.width", "2", "--model.depth", "10", "--data.samples_per_class", "15"]
    ended = built(tmp_path, ROOT / "configs" / "resnet_depth.yaml", path, more=words)
    assert ended.status == 0, ended.err
    assert "epoch 1/1  train/loss" in ended.out + ended.err


@pytest.mark.parametrize("path", DEVICES, ids=name)
def test_an_overlay_changes_the_front_door_and_nothing_else(path, tmp_path):
    front = ROOT / "configs" / "resnet_depth.yaml"
    resolved = []
    for configs in ([front], [front, path]):
        words = [word for config in configs for word in ("--config", config)]
        ended = command("fit", *words, "--print_config", cwd=tmp_path)
        assert ended.status == 0, ended.err
        resolved.append(ended.out.splitlines())
    changed = {line.split(":")[0].strip() for line in set(resolved[1]) - set(resolved[0])}
    assert changed
    assert changed <= {"accelerator", "devices", "strategy", "precision"}
    assert changed <= set(Trainer.__init__.__annotations__) | {"accelerator"}


def test_null_reaches_an_option_inside_another_class(tmp_path):
    path = ROOT / "configs" / "single_example.yaml"
    ended = built(tmp_path, path, more=["--data.images.image_size", "null"])
    assert ended.status == 0, ended.err
    ended = built(tmp_path, path, more=["--data.images.image_size", "none"])
    assert "image_size: expected int or null, not 'none'" in ended.err
