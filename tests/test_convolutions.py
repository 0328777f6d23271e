"""Strided 1 x 1 convolutions: right on every processor in every network that we train, and layers to everybody."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from lightning_depth.callbacks import OperatorNorm, WeightDistance
from lightning_depth.data import EmbeddedDigits
from lightning_depth.layers.convolutions import PointwiseConv2d, layers_at_risk, subsample_first
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
            [sys.executable, script, *layers], env=environment, capture_output=True, text=True, timeout=240
        )
    except subprocess.TimeoutExpired as expired:
        return f"did not return: {(expired.stderr or b'').decode()[-200:]}"
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


class General(Functional):
    def forward(self, x):
        return torch.convolution(x, self.weight, None, [2, 1], [0, 0], [1, 1], False, [0, 0], 1)


class InTraining(Functional):
    def forward(self, x):
        return F.conv2d(x, self.weight, None, (2, 2) if self.training else (1, 1))


class Checkpointed(nn.Module):
    """Runs its layer again in the backward pass."""

    def __init__(self, reentrant):
        super().__init__()
        self.first, self.conv, self.reentrant = nn.Conv2d(3, 3, 3, padding=1), layer(), reentrant

    def forward(self, x):
        return checkpoint(self.conv, self.first(x), use_reentrant=self.reentrant)


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
    "general function": General,
    "only in training": InTraining,
    "numpy's stride": lambda: nn.Conv2d(3, 4, 1, stride=np.int64(2)),
    "checkpointed": lambda: Checkpointed(False),
    "checkpointed, reentrant": lambda: Checkpointed(True),
    "transposed": lambda: nn.ConvTranspose2d(3, 4, 1, stride=2, output_padding=1),
    "signal": Signal,
    "parametrised": lambda: parametrizations.weight_norm(layer()),
    "pruned": lambda: prune.random_unstructured(layer(), "weight", 0.5),
    "frozen": lambda: layer().requires_grad_(False),
    "ours": lambda: PointwiseConv2d(3, 4, 1, stride=2),
}
UNSEEN = {"function", "general function", "only in training", "ours"}  # no layer names these


class Narrow(nn.Module):
    """A network that has one of these kinds."""

    def __init__(self, kind, num_classes=4):
        super().__init__()
        self.conv = KINDS[kind]()
        self.head = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))


def strided_in_training(network):
    """How often the kernel is asked for in a call and its backward pass, as a trainer makes them."""
    with Strided() as strided:
        loss = network(torch.rand(2, 3, 8, 8)).sum()
        network.backward(loss) if isinstance(network, LightningModule) else loss.backward()
    return strided.count


@pytest.mark.parametrize("kind", KINDS)
def test_a_foreign_network_under_our_recipe_never_reaches_the_kernel(kind):
    torch.manual_seed(0)
    bare = Narrow(kind)
    assert (strided_in_training(bare) == 0) == (kind == "ours")
    model = imported(kind)
    model.eval()(torch.rand(2, 3, 8, 8))
    model.train()
    assert strided_in_training(model) == strided_in_training(model) == 0
    x = torch.rand(5, 3, 8, 8)
    model.net.load_state_dict(bare.state_dict())
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
    said = warnings_of_training(Foreign(Narrow(kind)), WeightDistance(), WeightDistance(every=2, name="again"))
    assert len(said) == (kind not in UNSEEN)
    for message in said:
        assert "model.conv" in message
        assert "subsample_first" in message


def imported(kind):
    model = Imported("tests.test_convolutions.Narrow", {"kind": kind}, seed=0, input_shape=(3, 8, 8), num_classes=4)
    model.configure_model()
    return model


SAFE = {
    "wide": lambda: nn.Conv2d(16, 4, 1, stride=2),
    "grouped": lambda: nn.Conv2d(6, 6, 1, stride=2, groups=6),
    "larger kernel": lambda: nn.Conv2d(3, 4, 3, stride=2),
    "no stride": lambda: nn.Conv2d(3, 4, 1),
    "double": lambda: nn.Conv2d(3, 4, 1, stride=2).double(),
    "signal of two channels": lambda: nn.Conv1d(2, 4, 1, stride=2),
    "transposed": lambda: nn.ConvTranspose2d(3, 4, 1, stride=2),
    "not built yet": lambda: nn.LazyConv2d(4, 1, stride=2),
    "ours": lambda: PointwiseConv2d(3, 4, 1, stride=2),
    "within a module of ours": lambda: imported("layer"),
}


@pytest.mark.parametrize("name", SAFE)
def test_nobody_is_warned_without_a_reason(name):
    assert list(layers_at_risk(nn.Sequential(SAFE[name]()))) == []


def test_nobody_is_warned_who_has_the_cure():
    with subsample_first():
        assert warnings_of_training(Foreign(Narrow("layer")), WeightDistance()) == []
    model = Imported("tests.test_convolutions.Narrow", {"kind": "layer"}, seed=0)
    data = EmbeddedDigits(classes=[0, 1], samples_per_class=10, image_size=8, rgb=True)
    assert warnings_of_training(model, WeightDistance(), data=data) == []


def test_a_forward_of_ones_own_is_not_taken_for_the_guarded_one():
    class Own(Imported):
        def forward(self, x):
            return self.net(x)

    model = Own("tests.test_convolutions.Narrow", {"kind": "layer"}, input_shape=(3, 8, 8), num_classes=4)
    model.configure_model()
    assert [name for name, _ in layers_at_risk(model)] == ["net.conv"]


def test_a_scripted_layer_cannot_be_cured_and_is_named():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(layer())
    assert [name for name, _ in layers_at_risk(nn.Sequential(scripted))] == ["0"]


def test_a_pointwise_layer_has_a_pointwise_kernel():
    with pytest.raises(ValueError, match="1 x 1 kernel, not"):
        PointwiseConv2d(3, 4, 3, stride=2)


@pytest.mark.parametrize(
    "arguments", [{"padding": 1}, {"output_padding": (1, 0)}, {"output_padding": 3, "dilation": 4}]
)
def test_a_transposed_convolution_is_the_same_function(arguments):
    net, x = nn.ConvTranspose2d(3, 4, 1, stride=(2, 3), **arguments).double(), torch.rand(2, 3, 5, 4).double()
    expected = net(x)
    with subsample_first():
        torch.testing.assert_close(net(x), expected)


def test_torchs_functions_are_torchs_again_afterwards():
    before = F.conv2d, torch.conv2d, torch.convolution, F.conv_transpose2d
    with subsample_first():
        with pytest.raises(RuntimeError), subsample_first():
            F.conv2d(torch.ones(1), torch.ones(1))
        assert F.conv2d is not before[0]
    assert (F.conv2d, torch.conv2d, torch.convolution, F.conv_transpose2d) == before


def test_a_probe_that_takes_gradients_of_weights_takes_no_wrong_ones():
    class Gradient(AbstractProbe):
        count = 0

        def ask(self, network):
            with torch.enable_grad(), Strided() as strided:
                loss = network(torch.rand(4, 3, 8, 8)).square().sum()
                torch.autograd.grad(loss, list(network.parameters()))
            self.count += strided.count

        def select(self, look):
            self.ask(look.network)
            return look.calls[:1]

        def observe(self, seen):
            self.ask(network)

        def measure(self, look):
            self.ask(look.network)
            yield "", "strided", float(self.count)

    probe, network = Gradient(), Foreign(Narrow("layer"))
    trainer([probe]).validate(network, loaders()[1], verbose=False)
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
