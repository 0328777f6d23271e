"""`python main.py probe`: look at a checkpoint, or at somebody else's network, with any probe."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from lightning_depth.config.words import CommandParser, check, config_files, options
from lightning_depth.errors import UserError

USAGE = """usage: python main.py probe --ckpt FILE [--probe CLASS [--probe.KEY VALUE ...]] ... [--out DIR]
       python main.py probe --model NETWORK [--model.KEY VALUE ...] [--ckpt WEIGHTS] --data CLASS ... [--probe ...]
       python main.py probe --config FILE ... [--probe ...]

  --ckpt FILE       a run's checkpoint; its network, data and probes are those of the config.yaml of its run. With
                    --model: a file of weights (a state_dict).
  --model NETWORK   import path of any torch.nn.Module's class or function, such as torchvision.models.resnet18, with
                    its arguments; or of a LightningModule.
  --data CLASS      a data module, with its arguments. --data.image_size 224 --data.rgb true suit ImageNet's networks.
  --probe CLASS     a probe, with its arguments; can be given several times. Default: those of the run's config, else
                    OperatorNorm, EffectiveRank and RepresentationCollapse.
  --out DIR         where table and picture go: a new directory. Default: RUN/probed-CHECKPOINT, or runs/probed-NETWORK.

Every other option (--trainer.devices 2, --seed_everything 1, ...) is one of `python main.py validate --help`.

  python main.py probe --ckpt runs/resnet_depth/checkpoints/last.ckpt --probe Spectrum
  python main.py probe --model torchvision.models.resnet18 --data CIFAR10 --probe OperatorNorm --probe.rtol 1e-3"""
DEFAULT_PROBES = ("OperatorNorm", "EffectiveRank", "RepresentationCollapse")


def main(arguments: list[str]) -> None:
    """Parse `arguments`, validate with the probes, write what they read."""
    if not arguments or any(a in ("-h", "--help") for a in arguments):
        print(USAGE)
        return
    own, rest = _own(arguments)
    words, name, root, checkpoint = translated(own, rest)
    check(words)
    from lightning_depth.config.resolve import resolve
    from lightning_depth.runs.directory import check_checkpoint
    from lightning_depth.runs.probing import ProbeRecord
    from lightning_depth.training.fit import look
    from lightning_depth.training.run import locate, provenance

    config = resolve("validate", words)
    recorded = provenance(config) | ({"checkpoint": str(own.ckpt)} if own.ckpt is not None else {})
    record = ProbeRecord(root, name, checkpoint, recorded)
    given = config.parsed["rest"].ckpt_path
    if given is not None:
        check_checkpoint(Path(given))
    try:
        look(config, locate(config), [record], None if given is None else Path(given))
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{own.ckpt} does not hold the weights of this network: {reason}") from error


def _own(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = CommandParser("probe")
    parser.add_argument("--ckpt", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model")
    own, rest = parser.parse_known_args(arguments)
    stray = next((word for word in rest if not word.startswith("-")), None)
    if rest and rest[0] == stray:
        raise UserError(f"{stray!r} is no option of probe.\nSee python main.py probe --help.")
    return own, rest


def translated(own: argparse.Namespace, rest: list[str]) -> tuple[list[str], str, Path, Path | None]:
    """The words of `validate` that do what was asked for; name and root of the new directory; the run's checkpoint."""
    words: list[str] = []
    checkpoint = None
    if own.model is not None:
        name, root = f"probed-{own.model.rpartition('.')[2]}", Path("runs")
        words += _network(own, rest)
        checkpoint = own.ckpt if "--ckpt_path" in words else None
        if not any(word.startswith("--data") for word in rest):
            raise UserError("The probes need data to show the network: give --data, for example --data CIFAR10.")
    elif own.ckpt is not None:
        checkpoint, run = own.ckpt, own.ckpt.resolve().parent.parent
        name, root = f"probed-{own.ckpt.stem}", run
        if not config_files(rest):
            if not own.ckpt.is_file():
                raise UserError(f"There is no checkpoint {own.ckpt}.")
            if not (config := run / "config.yaml").is_file():
                hint = "Give the --config of its network and data, or --model and --data."
                raise UserError(f"{own.ckpt} lies in no run's directory: there is no {config}.\n{hint}")
            words += ["--config", str(config)]
        words += ["--ckpt_path", str(own.ckpt)]
    else:
        if not (files := config_files(rest)):
            hint = "See python main.py probe --help."
            raise UserError(f"No network to look at: give --ckpt, --model or --config.\n{hint}")
        name, root = f"probed-{files[0].stem}", Path("runs")
    if own.out is not None:
        out = own.out if own.out.name not in ("", "..") else own.out.resolve()
        name, root = out.name, out.parent
    return words + _probes(rest, default=own.model is not None), name, root, checkpoint


def _network(own: argparse.Namespace, rest: list[str]) -> list[str]:
    """The options for `--model` and its arguments, which are taken out of `rest`."""
    from lightning.pytorch import LightningModule

    from lightning_depth import models
    from lightning_depth.models.imported import found

    network = getattr(models, own.model, None) or found(own.model)
    if isinstance(network, type) and issubclass(network, LightningModule):
        weights = [] if own.ckpt is None else ["--ckpt_path", str(own.ckpt)]
        return [f"--model={network.__module__}.{network.__qualname__}", *weights]
    arguments, others = {}, []
    for option in options(rest):
        key, value, more = _key_and_value(option)
        if not key.startswith("--model."):
            others += option
            continue
        others += more
        try:
            arguments[key.removeprefix("--model.")] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"{key} {value}: not a value that YAML knows.") from error
    rest[:] = others
    words = ["--model=lightning_depth.models.Imported", f"--model.network={own.model}"]
    if arguments:
        words.append(f"--model.arguments={json.dumps(arguments)}")
    if own.ckpt is not None:
        words.append(f"--model.state={own.ckpt}")
    return words


def _key_and_value(option: list[str]) -> tuple[str, str, list[str]]:
    """What an option sets, to what, and the words that follow and do not belong to it."""
    key, equals, value = option[0].partition("=")
    return (key, value, option[1:]) if equals else (key, "".join(option[1:2]), option[2:])


def _probes(rest: list[str], default: bool) -> list[str]:
    """`rest` with each probe as a callback of the trainer; those of a config only where no other is asked for."""
    probes, others = list[str](), list[str]()
    for option in options(rest):
        key, value, more = _key_and_value(option)
        if key == "--probe":
            if not value:
                raise UserError("--probe needs the name of a probe, such as Spectrum.")
            probes.append(f"--trainer.callbacks+={value}")
        elif key.startswith("--probe."):
            if not probes:
                raise UserError(f"{key} belongs to no --probe: it comes after the one that it is for.")
            probes.append(f"--trainer.callbacks.{key.removeprefix('--probe.')}={value}")
        else:
            more = option
        others += more
    if default and not probes:
        probes = [f"--trainer.callbacks+={probe}" for probe in DEFAULT_PROBES]
    # After the configs, or theirs would come back.
    return [*others, "--trainer.callbacks=null", *probes] if probes else others
