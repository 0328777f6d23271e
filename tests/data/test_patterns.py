"""The test patterns of zhang2019."""

import pytest
import torch

from lightning_depth.data.embedded_digits import EmbeddedDigits
from lightning_depth.data.patterns import Patterns, patterns, translated
from lightning_depth.data.single_example import SingleExample
from lightning_depth.errors import UserError
from tests.data.small import ColourSquares, Squares, stream

KINDS = ["constant", "horizontal_stripes", "vertical_stripes", "checkerboard", "gradient", "square", "disc", "noise"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(20, 3, 28, 28), (5, 1, 7, 9), (3, 1, 2, 2)])
def test_patterns_are_pictures_of_their_kind(kind, shape):
    x = patterns(kind, shape, stream())
    assert x.shape == shape
    assert x.min() >= 0
    assert x.max() <= 1
    assert x.flatten(1).amax(1).gt(0).all()
    assert torch.equal(x, patterns(kind, shape, stream()))
    assert kind == "noise" or torch.equal(x[:, 0], x[:, -1])
    flat = {
        "constant": [x.amax((2, 3)) - x.amin((2, 3))],
        "horizontal_stripes": [x.diff(dim=3), x * (1 - x)],
        "vertical_stripes": [x.diff(dim=2), x * (1 - x)],
        "checkerboard": [x * (1 - x), x.diff(dim=2).diff(dim=3) % 2],
        "gradient": [1 - (x.amax((2, 3)) - x.amin((2, 3))), x.diff(n=2, dim=2), x.diff(n=2, dim=3)],
        "square": [x * (1 - x)],
        "disc": [x * (1 - x)],
        "noise": [],
    }[kind]
    for zero in flat:
        assert zero.abs().max() < 1e-5 if zero.numel() else True


def test_squares_and_discs_lie_inside():
    square, disc = (patterns(kind, (50, 1, 28, 28), stream())[:, 0] for kind in ("square", "disc"))
    for one in square:
        rows, columns = one.any(1).sum(), one.any(0).sum()
        assert one.sum() == rows * columns
        assert 6 <= rows <= 15
        assert 6 <= columns <= 15
    assert (disc <= square).all()  # drawn by the same numbers
    assert 0.7 < float(disc.sum() / square.sum()) < 0.87  # pi / 4


def test_stripes_have_both_values_and_all_widths():
    x = patterns("horizontal_stripes", (200, 1, 28, 28), stream())[:, 0, :, 0]
    assert set((x.diff(dim=1) != 0).sum(1).tolist()) == {27, *range(3, 15)} & set((x.diff(dim=1) != 0).sum(1).tolist())
    assert x.amin(1).eq(0).all()


def test_a_pattern_is_the_same_at_another_resolution():
    small, large = (patterns("gradient", (4, 1, n, n), stream()) for n in (7, 112))
    assert torch.allclose(small[:, :, 0, 0], large[:, :, 0, 0])
    assert torch.allclose(small[:, :, -1, -1], large[:, :, -1, -1])


def test_translations_and_mixtures():
    x = torch.rand(3, 2, 5, 6, generator=stream())
    moved = translated(x, [1, -2, 9], [-3, 4, 0])
    assert torch.equal(moved[0, :, 1:, :3], x[0, :, :-1, 3:])
    assert torch.equal(moved[1, :, :3, 4:], x[1, :, 2:, :2])
    assert moved[0, :, 0].eq(0).all()
    assert moved[2].eq(0).all()
    assert torch.equal(translated(x, [0, 0, 0], [0, 0, 0]), x)
    mixture = Patterns(SingleExample(Squares()), kinds=["mixture"], per_kind=3).split("test").inputs
    others = 2 * mixture - SingleExample(Squares()).split("train").inputs
    tested = SingleExample(Squares(), test_samples=20).split("test").inputs
    assert (torch.cdist(others.flatten(1), tested.flatten(1)).min(dim=1).values < 1e-5).all()
    assert len(others.unique(dim=0)) == 3


def test_patterns_are_shown_in_turn_and_do_not_depend_on_one_another():
    example = SingleExample(EmbeddedDigits())
    data = Patterns(example, per_kind=3)
    x, y = data.split("test")
    assert torch.equal(x, y)
    assert len(x) == len(data.captions) == 3 * 12
    assert torch.equal(data.split("train").inputs, example.split("train").inputs)
    assert torch.equal(x[:1], data.split("train").inputs)
    assert data.captions[3:6] == ["translated"] * 3
    few = Patterns(example, kinds=["disc", "images"], per_kind=3).split("test").inputs
    at = data.captions.index("disc")
    assert torch.equal(few[:3], x[at : at + 3])
    at = data.captions.index("images")
    assert torch.equal(few[3:], x[at : at + 3])


def test_patterns_of_another_size_and_another_data_set():
    data = Patterns(SingleExample(Squares()), foreign=EmbeddedDigits(), per_kind=2, test_size=12)
    assert data.split("val").inputs.shape == (26, 1, 12, 12)
    assert data.input_shape == (1, 8, 8)
    with pytest.raises(UserError, match="rgb"):
        Patterns(SingleExample(Squares()), foreign=ColourSquares(), kinds=["foreign"]).split("test")


@pytest.mark.parametrize("arguments", [{"kinds": []}, {"kinds": ["foreign"]}, {"per_kind": 0}, {"test_size": 1}])
def test_impossible_patterns_are_mistakes(arguments):
    with pytest.raises(UserError):
        Patterns(SingleExample(Squares()), **arguments)
    with pytest.raises(UserError, match="shape="):
        patterns("noise", (1, 1, 0, 3), stream())
