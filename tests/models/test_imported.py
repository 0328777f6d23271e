"""Somebody else's network under our recipe: what it is given, what it refuses, and that it trains."""

import sys
from types import ModuleType

import pytest
import torch
import torchvision
from lightning.pytorch import Trainer
from torch import nn

from lightning_depth.data import EmbeddedDigits
from lightning_depth.errors import UserError
from lightning_depth.models import Imported
from lightning_depth.models.shapes import Shapes

SHAPE = (3, 16, 16)
MOBILE = "torchvision.models.mobilenet_v3_small"


class Net(nn.Module):
    def __init__(self, num_classes=7, width=2, weights=None):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.head = nn.Linear(width, num_classes)
        if weights is not None:
            nn.init.constant_(self.head.bias, weights)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))


class Plain(Net):
    def __init__(self):
        super().__init__()


def passes_on(**arguments):
    return Net(**arguments)


@pytest.fixture(autouse=True)
def somebody(monkeypatch):
    module = ModuleType("somebody")
    module.Net, module.Plain, module.passes_on = Net, Plain, passes_on
    monkeypatch.setitem(sys.modules, "somebody", module)


@pytest.mark.parametrize(
    ("network", "arguments", "classes"),
    [
        ("somebody.Net", {}, 4),
        ("somebody.passes_on", {"width": 5}, 4),  # as torchvision's functions do
        ("somebody.Net", {"num_classes": 9}, 9),
        ("somebody.Net", {"weights": 1.5}, 7),  # pretrained: its head is its own
        ("somebody.Plain", {}, 7),
        (MOBILE, {}, 4),
    ],
)
def test_the_network_is_told_the_number_of_classes_where_it_can_be(network, arguments, classes):
    net = Imported(network, arguments).build(Shapes(SHAPE, 4)).eval()
    assert net(torch.zeros(2, *SHAPE)).shape == (2, classes)
    if "weights" in arguments:
        assert (net.head.bias == 1.5).all()
    if "width" in arguments:
        assert net.conv.out_channels == 5


def test_weights_of_a_file_are_kept_and_the_mode_too(tmp_path):
    torch.manual_seed(1)
    state = torchvision.models.mobilenet_v3_small(num_classes=4).state_dict()
    torch.save(state, tmp_path / "weights.pt")
    net = Imported(MOBILE, state=str(tmp_path / "weights.pt")).build(Shapes(SHAPE, 4))
    assert net.training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "shape", "said"),
    [
        ({"network": "somebody.Nett"}, SHAPE, "There is no network somebody.Nett"),
        ({"network": "nowhere.Net"}, SHAPE, "There is no network nowhere.Net: No module named 'nowhere'"),
        ({"network": "Net"}, SHAPE, "'Net' names no network"),
        (
            {"network": "somebody.Net", "arguments": {"depth": 3}},
            SHAPE,
            "somebody.Net refuses its arguments: .*'depth'",
        ),
        ({"network": "builtins.dict"}, SHAPE, "builtins.dict makes a dict, not a torch.nn.Module"),
        ({"network": "somebody.Net"}, (1, 16, 16), r"refuses inputs of shape \(1, 16, 16\): .*channels"),
        ({"network": "somebody.Net", "state": "none.pt"}, SHAPE, "There is no file of weights none.pt"),
        (
            {"network": "somebody.Net", "state": "other.pt"},
            SHAPE,
            "other.pt does not hold the weights of this network: ",
        ),
        (
            {"network": "somebody.Net", "state": "bytes.pt"},
            SHAPE,
            "bytes.pt does not hold the weights of this network: ",
        ),
        ({"network": "somebody.Net", "state": "list.pt"}, SHAPE, "list.pt does not hold the weights of this network: "),
    ],
)
def test_what_it_refuses(tmp_path, monkeypatch, arguments, shape, said):
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Linear(2, 2).state_dict(), "other.pt")
    torch.save([1], "list.pt")
    (tmp_path / "bytes.pt").write_bytes(b"abc")
    with pytest.raises(UserError, match=said) as refused:
        Imported(**arguments).build(Shapes(shape, 4))
    assert len(str(refused.value).splitlines()) <= 2


def test_it_trains_under_our_recipe(tmp_path):
    data = EmbeddedDigits(samples_per_class=4, classes=[0, 1, 2], rgb=True, image_size=16, batch_size=6)
    model = Imported("somebody.Net", {"width": 3})
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, **quiet)
    trainer.fit(model, data)
    assert model.net.head.out_features == 3
    initial = model.initial_state()
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, initial[n])]
    assert "net.conv.weight" in moved
    assert trainer.callback_metrics["val/loss"].isfinite()
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    loaded = Imported.load_from_checkpoint(tmp_path / "it.ckpt")
    assert all(torch.equal(p, dict(model.named_parameters())[n]) for n, p in loaded.named_parameters())
