"""Weights and activations that are not finite are named."""

import math

import pytest
from torch import nn

from lightning_depth.callbacks import OperatorNorm, Spectrum, WeightDistance
from lightning_depth.errors import UserError
from tests.probes.looks import PROBES, fitted, is_short, make, name_of, suited


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("probe", [*PROBES, "gram"], **name_of)
def test_weights_that_are_not_finite_are_named(probe, bad):
    made = Spectrum(of="gram") if probe == "gram" else make(probe)
    module = suited(type(made))
    module.model[0][0].weight.data[0, 0, 0, 0] = bad
    with pytest.raises(UserError, match=rf"^{type(made).__name__}, (.*, )?epoch 1: ") as error:
        fitted(module, made)
    assert any(name in str(error.value) for name in ("model.", "output", "prediction")), error.value
    assert is_short(error)
    assert not any(m._forward_hooks for m in module.modules())


class Spoil(nn.Module):
    """Makes one number of one sample bad, in evaluation."""

    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def forward(self, x):
        if self.training:
            return x
        x = x.clone()
        x[0, 0, 0, 0] = self.bad
        return x


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("probe", [*PROBES, "gram"], **name_of)
def test_activations_that_are_not_finite_are_named(probe, bad):
    made = Spectrum(of="gram") if probe == "gram" else make(probe)
    module = suited(type(made))
    module.model[0].append(Spoil(bad))
    if probe in (OperatorNorm, Spectrum, WeightDistance):  # they look at weights alone
        assert all(math.isfinite(value) for value in fitted(module, made).values())
        return
    with pytest.raises(UserError, match=rf"^{type(made).__name__}, (.*, )?epoch 1: ") as error:
        fitted(module, made)
    assert any(name in str(error.value) for name in ("model.", "output", "prediction")), error.value
    assert is_short(error)
