"""What a user does wrong is said in one or two lines, exits 2 and leaves nothing behind."""

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from lightning_depth.config.messages import readable
from lightning_depth.data import CIFAR10
from tests.commands import command, tiny, written

MAIN = Path(__file__).parent.parent / "main.py"
INFORMATION = re.compile(r"run directory: |Restor|epoch \d|\w+ validates on the test split")


def changed(*changes):
    """The tiny config with the value at each (dotted key, value) replaced; None in place of a value removes it."""
    config = tiny()
    for key, value in changes:
        *parents, last = [int(part) if part.isdecimal() else part for part in key.split(".")]
        node = config
        for parent in parents:
            node = node[parent]
        node[last] = value
    return config


def mistake(*words, cwd, **more):
    """The lines with which `main.py words` refuses, after checking that it did so properly."""
    ended = command(*words, cwd=cwd, **more)
    said = [line for line in ended.err.splitlines() if not INFORMATION.match(line)]
    assert ended.status == 2, ended.err
    assert said[0].startswith("error: "), ended.err
    assert 1 <= len(said) <= 2, ended.err
    return "\n".join(said)


def contents(folder):
    """Every file and folder below `folder` with its content and time of change."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None) for path in folder.rglob("*")
    }


@pytest.fixture
def here(tmp_path):
    """A folder with the tiny config in `tiny.yaml`; the test must leave no run in it."""
    written(tiny(), tmp_path)
    yield tmp_path
    assert not list(tmp_path.glob("runs/*"))


ON_THE_COMMAND_LINE = {
    "--modle.depth 10": "--modle.depth. Did you mean model?",
    "--seed 3": "--seed. Did you mean seed_everything?",
    "--model.dept 12": "dept. Did you mean depth?",
    "--model.init_args.dept=12": "dept. Did you mean depth?",
    "--trainer.max_epoch 3": "trainer.max_epoch. Did you mean max_epochs?",
    "--model.stop_at_train_acc 1.0": "Unknown key stop_at_train_acc. It is goals.train_acc now.",
    "--data.batchsize 3": "batchsize. Did you mean batch_size?",
    "--run.nam x": "run.nam. Did you mean name?",
    "--model.optimizer SGD --model.optimizer.lrr 1": "lrr. Did you mean lr?",
    "--model.optimizer.lr 1": "Other classes have a lr, this one has none",
    "--goals.train_accc 1": "Unknown key goals.train_accc. Did you mean train_acc?",
    "--goals.train_acc 2": "goals.train_acc=2 cannot be reached: it is a share from 0 to 1",
    "--goals null": "--goals has no value of its own",
    "--seed_everything=-1": "seed_everything=-1: a seed is a number from 0 to 4294967295",
    "depth 10": "Unexpected word depth",
    "--model.depth ten": "model.depth: expected int or null, not 'ten'",
    "--trainer.max_epochs 1.5": "trainer.max_epochs: expected int or null, not '1.5'",
    "--data.augment flip": "data.augment: expected 'none' or 'crop' or 'crop_flip' or .*, not 'flip'",
    "--trainer.precision 12": "'bf16-mixed' or ",
    "--model.depth 11": "depth 11 is not in Table 1 .*\\nGive blocks=",
    "--model.depth 10 --model.blocks [1,1,1,2]": "disagree: give one",
    "--model.kernel_size 4": "kernel_size must be odd and positive, not 4",
    "--model ResNett": "Unknown class ResNett for model. Did you mean ResNet?",
    "--model lightning_depth.models.ResNett": "models.ResNett for model. Did you mean ResNet?",
    "--model nowhere.Net": "Unknown class nowhere.Net for model: No module named 'nowhere'",
    "--model lightning_depth.callbacks.OperatorNorm": "model: expected a class_path that names a LightningModule",
    "--model.optimizer torch.optim.SGDD": "torch.optim.SGDD for optimizer. Did you mean SGD?",
    "--data EmbeddedDigit": "EmbeddedDigit for data. Did you mean EmbeddedDigits?",
    "--trainer.callbacks+ EfectiveRank": "EfectiveRank for trainer.callbacks. Did you mean EffectiveRank?",
    "--data.samples_per_class 401": "Class '0' has 400 training images, fewer than samples_per_class=401",
    "--data.classes [0,zero]": "no class 'zero'.*\\nThe classes are 0, 1",
    "--data CIFAR10 --data.download false": "is not under data, and download is off.\\nPut its original files in data/",
    "--trainer.callbacks.layers=[head]": "no layer matches ['head']; the layers are input, net.stem.conv",
    "--trainer.callbacks.every 0": "every must be a number of epochs, geometric or last, not 0",
    "--run.root tiny.yaml/x": "Cannot write the run directory tiny.yaml/x/tiny: .*\\nChoose another with --run.root",
    "--run.name a/b": "'a/b' must be a plain directory name",
    "--ckpt_path last": "Nothing to resume: there is no run runs/tiny",
    "--ckpt_path best": "goes on from its last checkpoint",
    "--ckpt_path none.ckpt": "There is no checkpoint none.ckpt",
    "--ckpt_path tiny.yaml": "tiny.yaml is not a checkpoint, or a truncated one",
    "--trainer.accelerator gpu": "No supported gpu backend found",
    "--trainer.strategy dp": "invalid strategy name",
    "--trainer.max_epochs 0": "No epoch was trained",
    "--model.optimizer SGD --model.optimizer.lr -1": "The optimizer refuses its settings: Invalid learning rate: -1",
    "--model.optimizer SGD --model.optimizer.lr 1e30": "The loss became (nan|inf) in epoch 1 at step 2",
}


@pytest.mark.parametrize("words", ON_THE_COMMAND_LINE)
def test_on_the_command_line(here, words):
    said = mistake("fit", "--config", "tiny.yaml", *words.split(), cwd=here)
    wanted = ON_THE_COMMAND_LINE[words]
    if not re.search(r"\.\*|\\n|\(", wanted):
        wanted = re.escape(wanted)
    assert re.search(wanted, said), said


IN_YAML = {
    "top": ("trainr", {}, "unknown key 'trainr'. Did you mean trainer?"),
    "model": ("model.init_args.dept", 10, "Unknown key dept. Did you mean depth?"),
    "empty value": ("model.init_args.kernelsize", None, "Unknown key kernelsize. Did you mean kernel_size?"),
    "init_arg": ("model", {"class_path": "ResNet", "init_arg": {"depth": 10}}, "Did you mean init_args?"),
    "data": ("data.init_args.sample_per_class", 2, "Unknown key sample_per_class. Did you mean samples_per_class?"),
    "trainer": ("trainer.max_epoch", 2, "Unknown key trainer.max_epoch. Did you mean max_epochs?"),
    "callback": ("trainer.callbacks.0.init_args", {"evry": 2}, "Unknown key evry. Did you mean every?"),
    "scheduler": (
        "model.init_args.lr_scheduler",
        {"class_path": "torch.optim.lr_scheduler.MultiStepLR", "init_args": {"milestone": [1]}},
        "Unknown key milestone. Did you mean milestones?",
    ),
    "no mapping": ("goals", None, "goals must be a mapping, not None"),
    "type": ("model.init_args.depth", "ten", "model.depth: expected int or null, not 'ten'"),
    "list for int": ("trainer.max_epochs", [2], "trainer.max_epochs: expected int or null, not '[2]'"),
    "choice": ("model.init_args.loss", "l2", "model.loss: expected 'mse' or 'cross_entropy', not 'l2'"),
    "key of a mapping": ("model.init_args.low_rank", {"rank": 2, "weigths": ["*"]}, "Unknown key weigths in low_rank."),
    "missing in a mapping": ("model.init_args.expansion", {"factr": 2}, "expansion: expected a factor in {'factr': 2}"),
    "model class": ("model.class_path", "lightning_depth.models.ResNett", "Did you mean ResNet?"),
    "data class": ("data.class_path", "lightning_depth.data.EmbeddedDigit", "Did you mean EmbeddedDigits?"),
    "callback class": (
        "trainer.callbacks.0.class_path",
        "lightning_depth.callbacks.OperatorNor",
        "Did you mean OperatorNorm?",
    ),
}


@pytest.mark.parametrize("where", IN_YAML)
def test_in_yaml(here, where):
    key, value, wanted = IN_YAML[where]
    written(changed((key, value)), here, "wrong.yaml")
    assert wanted in mistake("fit", "--config", "wrong.yaml", cwd=here)


def test_a_key_that_is_known_is_never_suggested_for_itself():
    assert "Did you mean" not in readable("Option 'lr' is not accepted", ["lr"])


# ---------------------------------------------------------------------------------------- refused before torch is there

WITHOUT_TORCH = {
    "fitt": "no command 'fitt'. Did you mean fit?",
    "fit": "give --config FILE",
    "fit --config": "--config needs a file",
    "fit --config none.yaml": "no config file none.yaml",
    "fit --config .": "Cannot read the config file",
    "fit --config broken.yaml": "broken.yaml is not valid YAML",
    "fit --config list.yaml": "list.yaml is not a config: it must be a mapping",
    "fit --config empty.yaml": "empty.yaml is not a config: it must be a mapping",
    "fit --config bytes.yaml": "Cannot read the config file bytes.yaml",
    "fit --config tiny.yaml --modle.depth 3": "Did you mean model?",
    "report nowhere": "nowhere is no run directory",
    "report": "The following arguments are required: directory",
    "report --foo nowhere": "unrecognized arguments: --foo",
}


@pytest.mark.parametrize("words", WITHOUT_TORCH)
def test_config_files_and_commands(here, words):
    (here / "broken.yaml").write_text("a: [1")
    (here / "list.yaml").write_text("- 1")
    (here / "empty.yaml").write_text("")
    (here / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert WITHOUT_TORCH[words] in mistake(*words.split(), cwd=here)


@pytest.mark.parametrize(
    ("words", "status"), [("--help", 0), ("", 0), ("fitt", 2), ("fit --config none.yaml", 2), ("fit --seed 1", 2)]
)
def test_answers_at_once_without_importing_torch(tmp_path, words, status):
    run = [sys.executable, "-X", "importtime", str(MAIN), *words.split()]
    ended = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode == status
    imported = {line.rsplit("|")[-1].strip() for line in ended.stderr.splitlines() if line.startswith("import time")}
    assert "lightning_depth.cli.main" in imported  # the list is what it seems
    assert not {"torch", "lightning", "numpy", "matplotlib"} & imported
    if words == "--help":
        assert "python main.py fit --config" in ended.stdout


@pytest.mark.parametrize("words", ["fit --data.help KLocal", "test --model.help=MLP"])
def test_help_on_one_class_needs_no_config(tmp_path, words):
    ended = command(*words.split(), cwd=tmp_path)
    assert ended.status == 0, ended.err
    assert "usage: " in ended.out


# ------------------------------------------------------------------------------------------------------------- the data


def test_a_truncated_jpeg_is_named(here):
    for split in ("train", "test"):
        for name in CIFAR10.names:
            (here / "data" / "cifar10" / split / name).mkdir(parents=True)
            for i in range(2):
                image = Image.effect_noise((32, 32), 50).convert("RGB")
                image.save(here / "data" / "cifar10" / split / name / f"{i}.jpg")
    broken = here / "data" / "cifar10" / "train" / "ship" / "1.jpg"
    broken.write_bytes(broken.read_bytes()[:400])
    written(changed(("data", {"class_path": "lightning_depth.data.CIFAR10"})), here, "cifar.yaml")
    assert "data/cifar10/train/ship/1.jpg cannot be read" in mistake("fit", "--config", "cifar.yaml", cwd=here)


def test_a_truncated_mnist_file_is_named(here):
    raw = here / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for stem in ("train", "t10k"):
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, 10, 28, 28) + bytes(10 * 784 - 1))
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 10) + bytes(range(10)))
    written(changed(("data", {"class_path": "lightning_depth.data.MNIST"})), here, "mnist.yaml")
    assert "train-images-idx3-ubyte is corrupt" in mistake("fit", "--config", "mnist.yaml", cwd=here)


# ------------------------------------------------------------------------------------------------------------- the runs


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_to_write(here):
    (here / "locked").mkdir(mode=0o500)
    said = mistake("fit", "--config", "tiny.yaml", "--run.root", "locked", cwd=here)
    assert "Cannot write the run directory locked/tiny: Permission denied" in said


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which a run of one epoch has finished."""
    folder = tmp_path_factory.mktemp("finished")
    written(changed(("trainer.max_epochs", 1)), folder)
    assert command("fit", "--config", "tiny.yaml", cwd=folder).status == 0
    return folder


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--model.width 4", "differs in model.init_args.width (was 2, now 4)."),
        (
            "--data.batch_size 5 --seed_everything 7",
            "data.init_args.batch_size (was 20, now 5), seed_everything (was 0",
        ),
        ("--trainer.callbacks.every 2", "trainer.callbacks.0.init_args.every (was 1, now 2)."),
        ("--model.optimizer SGD", "model.init_args.optimizer"),
    ],
)
@pytest.mark.parametrize("wanted", ["last", "runs/tiny/checkpoints/last.ckpt"], ids=["last", "file"])
def test_resuming_with_another_config_names_the_keys(finished, words, named, wanted):
    before = contents(finished)
    said = mistake("fit", "--config", "tiny.yaml", "--ckpt_path", wanted, *words.split(), cwd=finished)
    assert "Cannot resume" in said
    assert named in said
    assert contents(finished) == before


def test_a_truncated_checkpoint_is_named(finished):
    whole = finished / "runs" / "tiny" / "checkpoints" / "last.ckpt"
    (finished / "cut.ckpt").write_bytes(whole.read_bytes()[:-1000])
    for command_ in ("fit", "validate", "test"):
        said = mistake(command_, "--config", "tiny.yaml", "--ckpt_path", "cut.ckpt", cwd=finished)
        assert "cut.ckpt is not a checkpoint, or a truncated one" in said
    assert [path.name for path in (finished / "runs").iterdir()] == ["tiny"]


@pytest.mark.parametrize("command_", ["validate", "test"])
def test_there_is_no_run_to_evaluate(here, command_):
    said = mistake(command_, "--config", "tiny.yaml", "--ckpt_path", "best", cwd=here)
    assert f"There is no run runs/tiny to {command_}" in said


def test_an_infinite_loss_keeps_the_last_good_checkpoint(tmp_path):
    written(changed(("model", {"class_path": "tests.sabotage.DivergesInEpoch2"})), tmp_path)
    said = mistake("fit", "--config", "tiny.yaml", cwd=tmp_path)
    assert "The loss became inf in epoch 2 at step 2" in said
    run = tmp_path / "runs" / "tiny"
    for name in ("best", "last"):
        checkpoint = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert checkpoint["epoch"] == 0
        assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    assert len((run / "metrics.csv").read_text().splitlines()) == 2
    assert (run / "report.png").is_file()
    assert not (run / "summary.json").exists()
    assert command("validate", "--config", "tiny.yaml", "--ckpt_path", "last", cwd=tmp_path).status == 0


def test_no_space_left_on_the_device(tmp_path):
    # A file system of 330 kB, in a namespace of its own: room for two checkpoints, and none to replace one.
    (tmp_path / "full").mkdir()
    (tmp_path / "runs").mkdir()
    written(tiny(), tmp_path)
    fit = f"{sys.executable} {MAIN} fit --config tiny.yaml --run.root full"
    script = f"mount -t tmpfs -o size=330k none full || exit 77; {fit}; status=$?; cp -a full/tiny runs; exit $status"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        ended = subprocess.run(
            ["unshare", "-rm", "sh", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("needs the command unshare")
    if ended.returncode == 77 or ended.stderr.startswith("unshare"):
        pytest.skip("may not mount a small file system here")
    said = [line for line in ended.stderr.splitlines() if not INFORMATION.match(line)]
    assert ended.returncode == 2, ended.stderr
    assert said == ["error: No space left on the device.", "Free some, then go on with --ckpt_path last."]
    checkpoint = torch.load(tmp_path / "runs" / "tiny" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 0  # that of the second epoch had no room, and the first one's is whole
    assert command("fit", "--config", "tiny.yaml", "--ckpt_path", "last", cwd=tmp_path).status == 0
    rows = (tmp_path / "runs" / "tiny" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "1", "2", "3"]
