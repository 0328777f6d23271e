"""`python main.py probe`: the readings of the live run from its checkpoint, and those of anybody's network."""

import csv
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision

from lightning_depth.cli.main import main
from lightning_depth.cli.probe import _own, translated
from tests.commands import command, tiny, written

MAIN = Path(__file__).parent.parent / "main.py"
LAST = "--ckpt runs/tiny/checkpoints/last.ckpt"
DATA = "--data EmbeddedDigits --data.samples_per_class 5 --data.classes [0,1,2]"
RGB = f"{DATA} --data.rgb true"
RESNET = "--model torchvision.models.resnet18"
VIT = "--model torchvision.models.VisionTransformer --model.image_size 28 --model.patch_size 14 --model.num_layers 1"
VIT += " --model.num_heads 2 --model.hidden_dim 8 --model.mlp_dim 12"
PROBES = {
    "OperatorNorm": {},
    "WeightDistance": {},
    "EffectiveRank": {"split": "train", "samples": 31},
    "RepresentationCollapse": {"train_samples": 30, "samples": 50},
    "NeuralCollapse": {"train_samples": 30},
    "Spectrum": {},
    "FeatureSimilarity": {"samples": 20},
    "JacobianNorm": {"samples": 3},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run of two epochs, and files that are no checkpoints of it."""
    here = tmp_path_factory.mktemp("probed")
    config = tiny()
    config["trainer"] |= {
        "max_epochs": 2,
        "callbacks": [{"class_path": name, "init_args": arguments} for name, arguments in PROBES.items()],
    }
    written(config, here)
    ended = command("fit", "--config", "tiny.yaml", cwd=here)
    assert ended.status == 0, ended.err
    whole = (here / "runs/tiny/checkpoints/last.ckpt").read_bytes()
    (here / "stray.ckpt").write_bytes(whole)
    (here / "runs/tiny/checkpoints/cut.ckpt").write_bytes(whole[:-1000])
    torch.save([1], here / "runs/tiny/checkpoints/list.ckpt")
    torch.manual_seed(3)
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), here / "weights.pt")
    (here / "bytes.pt").write_bytes(b"abc")
    return here


def readings(directory):
    with (directory / "readings.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["key"] != "seconds"]
    found = {(int(r["epoch"]), r["probe"], r["layer"], r["key"]): float(r["value"]) for r in rows}
    assert len(found) == len(rows)
    return found


def probe(words, folder):
    ended = command("probe", *shlex.split(words), cwd=folder)
    assert ended.status == 0, ended.err
    return ended


def test_a_checkpoint_gives_the_readings_of_the_live_run(folder):
    ended = probe(LAST, folder)
    directory = folder / "runs" / "tiny" / "probed-last"
    live = {name: value for name, value in readings(folder / "runs" / "tiny").items() if name[0] == 2}
    found = readings(directory)
    assert found.keys() == live.keys()
    assert {probe for _, probe, _, _ in found} >= {"weight_distance", "operator_norm", "neural_collapse"}
    for (epoch, of, layer, key), value in found.items():
        if key == "residual":
            continue  # where the iteration stopped depends on where it started
        tolerance = {"operator_norm": 2e-4, "jacobian_norm": 2e-3}.get(of, 1e-6)
        assert value == pytest.approx(live[epoch, of, layer, key], rel=tolerance, abs=1e-9), (of, layer, key)
    assert {path.name for path in directory.iterdir()} == {
        "pictures",
        "probes.json",
        "readings.csv",
        "report.png",
        "summary.json",
    }
    assert {str(p.relative_to(directory / "pictures")) for p in directory.glob("pictures/*/*")} == {
        "spectrum/epoch-00002.npz",
        "feature_similarity/epoch-00002.npz",
    }
    summary = json.loads((directory / "summary.json").read_text())
    assert (summary["status"], summary["epochs"], summary["run"]) == ("probed", 2, "tiny · probed-last")
    run = json.loads((folder / "runs" / "tiny" / "summary.json").read_text())
    assert summary["final"] == {key: pytest.approx(run["final"][key]) for key in ("val/loss", "val/acc")}
    assert [summary[key] for key in ("weight_layers", "seed", "reduced")] == [run["weight_layers"], 0, None]
    assert summary["command"] == f"python main.py probe {LAST}"
    assert (summary["checkpoint"], summary["data"]["num_classes"]) == (LAST.split()[1], 3)
    norm = found[2, "operator_norm", "net.head", "norm"]
    assert any(line.split()[:2] == ["net.head", f"{norm:.5g}"] for line in ended.out.splitlines())
    assert ended.out.rstrip().endswith("probed-last/report.png")
    assert "ModelCheckpoint" not in ended.err
    # Again, with the same readings and a directory of its own: nothing is overwritten.
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs" / "tiny").rglob("*") if path.is_file()}
    words = "--probe Spectrum --probe.of gram --probe EffectiveRank --probe.samples 50"
    words += " --probe Spectrum --probe.name of_weights --probe.every last"
    probe(f"{LAST} {words}", folder)
    again = readings(folder / "runs" / "tiny" / "probed-last-2")
    assert {of for _, of, _, _ in again} == {"spectrum", "of_weights", "effective_rank"}
    assert {layer for _, of, layer, _ in again if of != "of_weights"} == {"net.head"}
    weights = {(layer, key): value for (_, of, layer, key), value in again.items() if of == "of_weights"}
    assert weights == pytest.approx({(n, k): v for (_, of, n, k), v in live.items() if of == "spectrum"}, rel=1e-6)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_somebody_elses_network_with_its_own_weights(folder):
    ended = probe(
        f"{RESNET} --ckpt weights.pt {RGB} --probe Spectrum --probe WeightDistance --out elsewhere/it", folder
    )
    found = readings(folder / "elsewhere" / "it")
    state = torch.load(folder / "weights.pt", weights_only=True)
    for layer in ("conv1", "layer3.0.downsample.0", "fc"):
        sigma = torch.linalg.svdvals(state[f"{layer}.weight"].flatten(1).double())
        assert found[0, "spectrum", f"net.{layer}", "spectral_norm"] == pytest.approx(float(sigma[0]), rel=1e-6)
        assert found[0, "spectrum", f"net.{layer}", "nuclear_norm"] == pytest.approx(float(sigma.sum()), rel=1e-6)
    assert len({layer for _, of, layer, _ in found if of == "spectrum"}) == 21
    assert {value for (_, of, _, _), value in found.items() if of == "weight_distance"} == {0.0}
    assert "initial weights" not in ended.err
    summary = json.loads((folder / "elsewhere" / "it" / "summary.json").read_text())
    assert "torchvision.models.resnet18" in summary["model"]


def test_a_vision_transformer_and_what_cannot_be_read_of_it(folder):
    ended = probe(f"{VIT} {RGB}", folder)
    found = readings(folder / "runs" / "probed-VisionTransformer")
    assert {of for _, of, _, _ in found} == {"operator_norm", "effective_rank", "representation_collapse"}
    norms = {layer for _, of, layer, key in found if of == "operator_norm"}
    block = "net.encoder.layers.encoder_layer_0"
    assert {"net.conv_proj", f"{block}.mlp.0", "net.heads.head"} <= norms
    assert f"{block}.self_attention is left out" in ended.err


MISTAKES = {
    "--ckpt none.ckpt": "There is no checkpoint none.ckpt",
    "--ckpt runs/tiny": "There is no checkpoint runs/tiny",
    "--ckpt stray.ckpt": "stray.ckpt lies in no run's directory: there is no ",
    "--ckpt runs/tiny/checkpoints/cut.ckpt": "cut.ckpt is not a checkpoint, or a truncated one",
    "--ckpt runs/tiny/checkpoints/list.ckpt": "list.ckpt is no checkpoint of a run",
    "--ckpt": "argument --ckpt: expected one argument",
    "--out y": "No network to look at: give --ckpt, --model or --config",
    "--config none.yaml": "There is no config file none.yaml",
    f"--model torchvision.models.resnet19 {DATA}": "no network torchvision.models.resnet19: mod",
    f"--model nowhere.Net {DATA}": "no network nowhere.Net: No module named 'nowhere'",
    f"--model resnet18 {DATA}": "'resnet18' names no network: give an import path",
    f"--model torch.pi {DATA}": "'torch.pi' names no network",
    f"--model builtins.dict {DATA}": "builtins.dict makes a dict, not a torch.nn.Module",
    f"{RESNET} {DATA}": "refuses inputs of shape (1, 28, 28)",
    f"{RESNET} {RGB} --model.deep 3": "got an unexpected keyword argument 'deep'",
    f"{RESNET} {RGB} --model.x '[1'": "--model.x [1: not a value that YAML knows",
    f"{RESNET} {RGB} --ckpt none.pt": "There is no file of weights none.pt",
    f"{RESNET} {RGB} --ckpt bytes.pt": "bytes.pt does not hold the weights of this network",
    f"{RESNET} {RGB} --ckpt stray.ckpt": "stray.ckpt does not hold the weights of this network",
    f"{RESNET} --probe Spectrum": "The probes need data to show the network: give --data",
    f"{LAST} --model ResNet --model.depth 10 --model.width 3 {DATA}": "last.ckpt does not hold the weights of",
    f"{LAST} --probe Spectrun": "Unknown class Spectrun for trainer.callbacks. Did you mean Spectrum?",
    f"{LAST} --probe lightning_depth.callbacks.Spectrun": "Unknown class lightning_depth.callbacks.Spectrun for",
    f"{LAST} --probe Spectrum --probe.off gram": "Unknown key off. Did you mean of?",
    f"{LAST} --probe Spectrum --probe.of grams": "expected 'weights' or 'gram', not 'grams'",
    f"{LAST} --probe Spectrum --probe.layers=[none]": "no module with a weight matrix or kernel matches ['none']",
    f"{LAST} --probe": "--probe needs the name of a probe",
    f"{LAST} --probe --out y": "--probe needs the name of a probe",
    f"{LAST} --probe.of gram": "--probe.of belongs to no --probe",
    f"{LAST} --probe.of gram --probe Spectrum": "--probe.of belongs to no --probe",
    f"{LAST} --probe lightning.pytorch.callbacks.DeviceStatsMonitor": "There is no probe to look with",
    f"{LAST} --probe Timer": "There is no probe to look with",  # it has an enum as a default
    "stray": "'stray' is no option of probe",
    f"{LAST} stray": "'stray' is no option of probe",
    f"{LAST} --probe Spectrum stray": "Unexpected word stray",
    f"{LAST} --layers a": "Unknown option --layers",
    f"{LAST} --out tiny.yaml/x": "Cannot write the directory tiny.yaml/x: ",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_user_errors(folder, words, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    before = set(folder.rglob("*"))
    assert main(["probe", *shlex.split(words)]) == 2
    error = capsys.readouterr().err
    said = error[error.index("error: ") :].splitlines()
    assert len(said) <= 2, error
    assert MISTAKES[words] in said[0]
    assert set(folder.rglob("*")) == before


def test_help_needs_no_torch(tmp_path):
    run = [sys.executable, "-X", "importtime", str(MAIN), "probe", "--help"]
    ended = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0
    assert "--probe CLASS" in ended.stdout
    imported = {line.rsplit("|")[-1].strip() for line in ended.stderr.splitlines() if line.startswith("import time")}
    assert "lightning_depth.cli.main" in imported  # the list is what it seems
    assert not {"torch", "lightning", "numpy", "matplotlib"} & imported


@pytest.mark.parametrize("order", ["config first", "probe first"])
def test_the_probes_of_a_config_give_way_to_those_asked_for(order):
    config, probe = ["--config", "configs/resnet_depth.yaml"], ["--probe", "Spectrum", "--probe.of", "gram"]
    rest = config + probe if order == "config first" else probe + config
    asked = ["--trainer.callbacks=null", "--trainer.callbacks+=Spectrum", "--trainer.callbacks.of=gram"]
    own, _ = _own([])
    assert translated(own, list(rest))[0] == [*config, *asked]
    assert translated(own, list(config))[0] == config
