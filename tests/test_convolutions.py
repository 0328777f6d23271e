"""Strided 1 x 1 convolutions: right on every processor in every network that we train, and layers to everybody."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_depth.callbacks import JacobianNorm, OperatorNorm, WeightDistance
from lightning_depth.data import EmbeddedDigits
from lightning_depth.layers.convolutions import Conv2d, SubsampleFirst, unguarded
from lightning_depth.layers.expansion import collapse, expand
from lightning_depth.measures.operators import dense_matrix, layer_operator
from lightning_depth.models import Imported, ResNet
from lightning_depth.models.family import AbstractFamily
from lightning_depth.probes import AbstractProbe
from tests.commands import command, written
from tests.probes.foreign import Foreign, loaders, trainer
from tests.strided_convolutions import LAYERS

SETS = ("AVX2", "AVX512_CORE", "DEFAULT")  # instruction sets, at most; DEFAULT is the processor's own


def fuzzed(instructions, *layers):
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions, "PYTHONPATH": str(Path(__file__).parents[1])}
    script = Path(__file__).with_name("strided_convolutions.py")
    try:
        ended = subprocess.run(
            [sys.executable, script, *layers], env=environment, capture_output=True, text=True, timeout=90
        )
    except subprocess.TimeoutExpired:
        return "did not return"
    return "" if ended.returncode == 0 else f"{ended.returncode}: {ended.stderr[-500:]}"


@pytest.mark.parametrize("instructions", SETS)
def test_outputs_and_gradients_are_those_of_float64(instructions):
    assert not fuzzed(instructions, *(name for name in LAYERS if name != "bare"))


def test_the_bare_layer_fails_where_torch_has_not_mended_it():
    if not any(fuzzed(instructions, "bare") for instructions in ("AVX2", "DEFAULT")):
        warnings.warn(
            f"torch {torch.__version__} computes strided 1 x 1 convolutions right on this processor: "
            "lightning_depth.layers.convolutions may have outlived its purpose.",
            stacklevel=1,
        )


class Strided(TorchDispatchMode):
    """Counts the strided 1 x 1 convolutions that torch's kernels are asked for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default):
            shift = int(func is torch.ops.aten.convolution_backward.default)
            weight, stride = args[1 + shift], args[3 + shift]
            self.count += max(weight.shape[2:]) == 1 and max(stride) > 1
        return func(*args, **(kwargs or {}))


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 1, 1))

    def forward(self, x):
        return F.conv2d(x, self.weight, None, (2, 1))


class Same(nn.Conv2d):
    """With a forward of its own, as timm's layers have."""

    def forward(self, x):
        return F.conv2d(x, self.weight, bias=self.bias, stride=self.stride, padding="valid")


class Signal(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 4, 1, stride=2)

    def forward(self, x):
        return self.conv(x.flatten(1)[:, None])[..., None]


def layer(**arguments):
    return nn.Conv2d(3, 4, 1, stride=2, **arguments)


# Everything that the cure has to reach, each from (n, 3, 8, 8) to (n, 4, ...).
KINDS = {
    "layer": layer,
    "padded": lambda: layer(padding=1),
    "reflected": lambda: layer(padding=1, padding_mode="reflect"),
    "subclass": lambda: Same(3, 4, 1, stride=2),
    "function": Functional,
    "signal": Signal,
    "parametrised": lambda: parametrizations.weight_norm(layer()),
    "pruned": lambda: prune.random_unstructured(layer(), "weight", 0.5),
    "frozen": lambda: layer().requires_grad_(False),
    "ours": lambda: Conv2d(3, 4, 1, stride=2),
}
WARNED = {"layer", "padded", "reflected", "subclass", "signal", "parametrised", "pruned"}


class Narrow(nn.Module):
    """A network that has one of these kinds."""

    def __init__(self, kind, num_classes=4):
        super().__init__()
        self.conv = KINDS[kind]()
        self.head = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))


def strided_in_training(network):
    with Strided() as strided:
        network(torch.rand(2, 3, 8, 8)).sum().backward()
    return strided.count


@pytest.mark.parametrize("kind", KINDS)
def test_a_foreign_network_under_our_recipe_never_reaches_the_kernel(kind):
    torch.manual_seed(0)
    bare = Narrow(kind)
    assert strided_in_training(bare) == (0 if kind == "ours" else 1 if kind == "frozen" else 2)
    model = Imported("tests.test_convolutions.Narrow", {"kind": kind}, input_shape=(3, 8, 8), num_classes=4, seed=0)
    model.configure_model()
    for _ in range(2):  # the first call finds out
        assert strided_in_training(model) == 0
    x, weights = torch.rand(5, 3, 8, 8), bare.state_dict()
    model.net.load_state_dict(weights)
    torch.testing.assert_close(model(x), bare(x))


def test_a_family_of_the_users_own_never_reaches_the_kernel():
    class Own(AbstractFamily):
        def build(self, shapes):
            return Narrow("function", shapes.outputs)

    model = Own(input_shape=(3, 8, 8), num_classes=4)
    model.configure_model()
    assert strided_in_training(model) == strided_in_training(model) == 0


@pytest.mark.parametrize("width", [1, 2, 16])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_our_networks_never_reach_the_kernel_however_they_are_called(width, kernel_size):
    model = ResNet(depth=10, width=width, kernel_size=kernel_size, input_shape=(3, 8, 8), num_classes=4)
    model.configure_model()
    networks = {
        "trained": model,
        "alone": model.net,
        "expanded": expand(model.net, 2),
        "collapsed": collapse(expand(model.net, 2)),
    }
    assert {name: strided_in_training(network) for name, network in networks.items()} == dict.fromkeys(networks, 0)
    assert model.layout == torch.channels_last


def test_shortcuts_are_layers_to_everybody():
    net = ResNet(depth=10, width=2, input_shape=(1, 8, 8), num_classes=2, seed=0)
    net.configure_model()
    shortcut = net.net.stage2[0].shortcut[0]
    assert isinstance(shortcut, nn.Conv2d)
    assert shortcut.stride == (2, 2)
    bare = nn.Conv2d(2, 4, 1, stride=2, bias=False)
    bare.load_state_dict(shortcut.state_dict())  # old checkpoints have these names
    found, wanted = (dense_matrix(layer_operator(module, (2, 8, 8))) for module in (shortcut, bare))
    assert torch.equal(found, wanted)
    again = collapse(expand(net.net, 2, keep="function"))
    assert type(again.stage2[0].shortcut[0]) is type(shortcut)
    assert again.state_dict().keys() == net.net.state_dict().keys()
    probe = OperatorNorm()
    trainer([probe]).validate(Foreign(net.net.eval()), loaders_of_grey_images(), verbose=False)
    assert "model.stage2.0.shortcut.0" in {reading.layer for reading in probe.readings}


def loaders_of_grey_images():
    x, y = torch.rand(8, 1, 8, 8), torch.arange(8) % 2
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 4)


def warnings_of_training(module, *probes, data=None):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(probes, max_epochs=1).fit(module, *(loaders() if data is None else ()), datamodule=data)
    return [str(warning.message) for warning in caught if "oneDNN" in str(warning.message)]


@pytest.mark.parametrize("kind", KINDS)
def test_who_trains_such_a_network_alone_is_warned_once_by_name(kind):
    said = warnings_of_training(Foreign(Narrow(kind)), WeightDistance(), WeightDistance(every=2), JacobianNorm())
    assert len(said) == (kind in WARNED)
    for message in said:
        assert ("model.conv.conv (1)" if kind == "signal" else "model.conv (3)") in message
        assert "SubsampleFirst" in message


def test_nobody_is_warned_without_a_reason():
    wide, grouped = nn.Conv2d(16, 4, 1, stride=2), nn.Conv2d(6, 6, 1, stride=2, groups=6)
    assert unguarded(nn.Sequential(wide, grouped, nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(3, 4, 1))) == []
    with SubsampleFirst():
        module = Foreign(Narrow("layer"))
        assert warnings_of_training(module, WeightDistance()) == []
    model = Imported("tests.test_convolutions.Narrow", {"kind": "layer"}, seed=0)
    data = EmbeddedDigits(classes=[0, 1], samples_per_class=10, image_size=8, rgb=True)
    assert warnings_of_training(model, WeightDistance(), data=data) == []


def test_a_probe_that_takes_gradients_of_weights_takes_no_wrong_ones():
    class Gradient(AbstractProbe):
        def select(self, calls):
            return []

        def measure(self):
            with torch.enable_grad(), Strided() as strided:
                loss = self.network(torch.rand(4, 3, 8, 8)).square().sum()
                torch.autograd.grad(loss, list(self.network.parameters()))
            yield "", "strided", strided.count

    probe = Gradient()
    trainer([probe]).validate(Foreign(Narrow("layer")), loaders()[1], verbose=False)
    assert {reading.key: reading.value for reading in probe.readings}["strided"] == 0


THEIRS = """
import torch
from torch import nn
from tests.probes.foreign import Foreign
from tests.test_convolutions import Narrow, Strided

class Theirs(Foreign):
    def __init__(self):
        super().__init__(Narrow("function"))

    def training_step(self, batch, batch_idx):
        with Strided() as strided:
            loss = super().training_step((batch[0].expand(-1, 3, -1, -1), batch[1]), batch_idx)
            torch.autograd.grad(loss, list(self.parameters()), retain_graph=True)
        assert strided.count == 0
        return loss

    def validation_step(self, batch, batch_idx):
        return None
"""


def test_our_command_trains_a_foreign_module_rightly(tmp_path):
    (tmp_path / "theirs.py").write_text(THEIRS)
    data = {"class_path": "lightning_depth.data.EmbeddedDigits", "init_args": {"classes": [0, 1], "batch_size": 20}}
    config = {"model": {"class_path": "theirs.Theirs"}, "data": data}
    config["trainer"] = {"accelerator": "cpu", "max_epochs": 1, "limit_train_batches": 2, "logger": False}
    path = [tmp_path, Path(__file__).parents[1]]
    ended = command("fit", "--config", written(config, tmp_path), cwd=tmp_path, path=path)
    assert ended.status == 0, ended.err
