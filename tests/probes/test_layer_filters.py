"""Layer filters: what they do not match, and modules that are called never, twice or on other rows."""

import pytest
import torch
from torch import nn

from lightning_depth.callbacks import (
    FeatureSimilarity,
    IdentityConstant,
    LinearOperator,
    LocalStability,
    OperatorNorm,
    Spectrum,
    WeightDistance,
)
from lightning_depth.errors import UserError
from tests.probes.foreign import Foreign, convnet
from tests.probes.looks import OF_WEIGHTS, PROBES, fitted, is_short, make, name_of, said

FILTERED = [p for p in PROBES if p not in (LinearOperator, IdentityConstant, LocalStability)]


@pytest.mark.parametrize("layers", [[], ["nothing.*"]])
@pytest.mark.parametrize("probe", [*FILTERED, "gram"], **name_of)
def test_a_filter_that_matches_nothing_is_a_mistake(probe, layers):
    made = Spectrum(of="gram", layers=layers) if probe == "gram" else make(probe, layers=layers)
    with pytest.raises(UserError, match=rf"^{type(made).__name__}: no .*matches \[") as error:
        fitted(convnet(), made)
    assert str(layers) in str(error.value)
    assert is_short(error)


class Idle(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(192, 4)
        self.spare = nn.Linear(4, 4)

    def forward(self, x):
        return self.head(x.flatten(1))


@pytest.mark.parametrize("probe", [*FILTERED, "gram"], **name_of)
def test_a_layer_that_is_never_called(probe):
    made = Spectrum(of="gram", layers=["*.spare"]) if probe == "gram" else make(probe, layers=["*.spare"])
    if probe in (Spectrum, WeightDistance):  # it has weights all the same
        assert {layer.removesuffix(".weight").removesuffix(".bias") for layer, _ in fitted(Foreign(Idle()), made)} == {
            "",
            "model.spare",
        }
        return
    with pytest.raises(UserError, match=rf"^{type(made).__name__}: .*model.spare is never called") as error:
        fitted(Foreign(Idle()), made)
    assert is_short(error)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(256, 4)

    def forward(self, x):
        return self.head(self.shared(torch.relu(self.shared(self.first(x)))).flatten(1))


@pytest.mark.parametrize("pattern", ["model.shared", "*.shared#2"])
@pytest.mark.parametrize("probe", [*FILTERED, "gram"], **name_of)
def test_a_module_that_is_called_twice_has_a_reading_for_each_call(probe, pattern):
    torch.manual_seed(3)
    made = Spectrum(of="gram", layers=[pattern]) if probe == "gram" else make(probe, layers=[pattern])
    if probe in (Spectrum, WeightDistance):  # its weights are there once
        if "#" not in pattern:
            layers = {layer for layer, _ in fitted(Foreign(Twice()), made)}
            assert layers in ({"", "model.shared"}, {"", "model.shared.weight", "model.shared.bias"})
        return
    found = fitted(Foreign(Twice()), made)
    expected = {"model.shared", "model.shared#2"} if "#" not in pattern else {"model.shared#2"}
    if probe is FeatureSimilarity:
        assert set(made.pictures[0].names) == expected
    else:
        assert {layer for layer, _ in found} - {""} == expected
    if "#" not in pattern and probe not in (OperatorNorm, FeatureSimilarity):
        first, second = ([v for (layer, _), v in found.items() if layer == name] for name in sorted(expected))
        assert first != second


class Windows(nn.Module):
    """Its linear layer sees four windows of each image."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(48, 6)
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        windows = self.inner(x.reshape(len(x) * 4, 48))
        return self.head(windows.reshape(len(x), 24))


@pytest.mark.parametrize("probe", [*(p for p in FILTERED if p.__name__ not in OF_WEIGHTS), "gram"], **name_of)
def test_a_module_whose_rows_are_not_samples_is_left_out_by_name(probe):
    made = Spectrum(of="gram", layers=["*.inner"]) if probe == "gram" else make(probe, layers=["*.inner"])
    found, messages = said(fitted, Foreign(Windows()), made)
    left_out = f"{type(made).__name__}: model.inner (Linear) is left out: its rows are not the samples."
    assert messages.count(left_out) == 1
    assert set(found) == {("", "seconds")}
