import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_depth.measures.channels import most_correlated_channel, top_singular_image, upper_output


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 3), c=st.integers(1, 12), h=st.integers(1, 4), w=st.integers(1, 4), double=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_top_singular_image_is_that_of_the_svd(n: int, c: int, h: int, w: int, double: bool, seed: int) -> None:
    activations = random(n, c, h, w, seed=seed, dtype=torch.float64 if double else torch.float32)
    images, shares = top_singular_image(activations)
    for one, image, share in zip(activations, images, shares, strict=True):
        _, sigma, right = torch.linalg.svd(one.double().flatten(1), full_matrices=False)
        sign = 1 if right[0].sum() >= 0 else -1
        assert float(share) == pytest.approx(float(sigma[0] ** 2 / sigma.square().sum()), rel=1e-12)
        if len(sigma) == 1 or sigma[0] > 1.01 * sigma[1]:
            torch.testing.assert_close(image.flatten(), sign * right[0], rtol=0, atol=1e-10)
        alone = top_singular_image(one)
        torch.testing.assert_close(alone.image, image, rtol=0, atol=1e-10)
        assert alone.share.shape == ()


def test_one_picture_in_all_channels_is_found_with_the_sign_of_the_reference() -> None:
    picture = random(6, 5)
    activations = random(40)[:, None, None] * picture
    for reference in (picture, -picture):
        image, share = top_singular_image(activations, reference)
        torch.testing.assert_close(image, reference / picture.norm(), rtol=0, atol=1e-12)
        assert float(share) == pytest.approx(1, abs=1e-12)
    assert float(top_singular_image(random(40, 6, 5)).share) < 0.5  # the measure can say no


def test_zero_activations_have_a_zero_image() -> None:
    activations = torch.stack([torch.zeros(3, 2, 2), torch.ones(3, 2, 2)])
    image, share = top_singular_image(activations)
    torch.testing.assert_close(image[0], torch.zeros(2, 2).double(), rtol=0, atol=0)
    torch.testing.assert_close(image[1], torch.full((2, 2), 0.5).double())
    assert share.tolist() == [0, pytest.approx(1)]
    for shape in [(5, 2, 2), (2, 3, 3)]:  # both sides of the Gram
        assert not top_singular_image(torch.zeros(shape)).image.any()


def test_most_correlated_channel_against_a_loop_over_channels() -> None:
    activations, images = random(4, 7, 5, 5), random(4, 3, 5, 5, seed=1)
    channel, correlation = most_correlated_channel(activations, images)
    for i in range(4):
        reference = images[i].mean(0).flatten()
        cosines = [float(torch.cosine_similarity(a.flatten(), reference, dim=0)) for a in activations[i]]
        assert float(correlation[i]) == pytest.approx(max(cosines), rel=1e-12)
        assert cosines[int(channel[i])] == max(cosines)
        alone = most_correlated_channel(activations[i], images[i])
        assert (int(alone.channel), float(alone.correlation)) == (int(channel[i]), pytest.approx(float(correlation[i])))


def test_it_is_the_cosine_and_signed() -> None:
    image = torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) + 1
    assert float(most_correlated_channel(-image[None], image).correlation) == pytest.approx(-1)
    channel, correlation = most_correlated_channel(torch.stack([-image, image + 3]), image)
    assert int(channel) == 1
    assert float(correlation) < 1 - 1e-3  # Pearson would say 1
    assert most_correlated_channel(torch.zeros(1, 4, 4), image).correlation == 0


def test_a_channel_that_shows_nothing_of_the_image_has_correlation_zero() -> None:
    image = torch.tensor([[1.0, 1.0], [1.0, 2.0]])
    constant, zero = torch.full((2, 2), 0.1), torch.zeros(2, 2)
    assert most_correlated_channel(torch.stack([constant, zero]), image) == (0, 0)
    assert int(most_correlated_channel(torch.stack([constant, zero, image - 0.9]), image).channel) == 2
    assert most_correlated_channel(torch.stack([image, image]), zero) == (0, 0)


def test_a_larger_image_is_averaged_over_blocks() -> None:
    image = random(6, 4)
    blocks = image.view(3, 2, 2, 2).mean((1, 3))
    channel, correlation = most_correlated_channel(torch.stack([-blocks, 2 * blocks]), image)
    assert (int(channel), float(correlation)) == (1, pytest.approx(1))
    # A smaller one is repeated; the corner alone would not do.
    repeated = blocks.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert float(most_correlated_channel(repeated[None], blocks).correlation) == pytest.approx(1)
    assert float(most_correlated_channel(image[None, ::2, ::2], image).correlation) < 0.99
    # The same for the sign of the singular image.
    assert (top_singular_image(blocks[None], -image).image * blocks).sum() < 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_activations_that_are_not_finite_raise(bad: float) -> None:
    wrong = torch.ones(2, 3, 3)
    wrong[1, 0, 0] = bad
    for measure in (top_singular_image, most_correlated_channel):
        for arguments in ((wrong, torch.ones(3, 3)), (torch.ones(2, 3, 3), wrong)):
            with pytest.raises(ValueError, match="not finite"):
                measure(*arguments)
    with pytest.raises(ValueError, match="not finite"):
        upper_output(nn.Sequential(nn.ReLU()), "0", wrong, wrong)


def test_wrong_shapes_raise() -> None:
    with pytest.raises(ValueError, match="activations have shape"):
        top_singular_image(torch.ones(2, 2, 2, 2, 2))
    for reference in (torch.ones(3), torch.ones(3, 1, 2, 2)):
        with pytest.raises(ValueError, match="reference has shape"):
            most_correlated_channel(torch.ones(2, 4, 2, 2), reference)


class Mixed(nn.Module):
    """A module called twice, one called by keyword, one with two tensors, one with an option, one never."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.keyword = nn.Conv2d(4, 4, 3, padding=1)
        self.pair = nn.Bilinear(6, 6, 6)
        self.never = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        x = self.relu(self.keyword(input=x))
        return self.pair(x, x)


@pytest.fixture
def mixed() -> Mixed:
    network = Mixed().double()
    for i, parameter in enumerate(network.parameters()):
        parameter.data = random(*parameter.shape, seed=i)
    return network


def hooks(network: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) for module in network.modules())


def test_the_upper_part_of_a_network_by_hand(mixed: Mixed) -> None:
    carrier, fed = random(2, 1, 6, 6), random(3, 4, 6, 6, seed=1)
    by_hand = mixed.relu(mixed.keyword(fed))
    torch.testing.assert_close(upper_output(mixed, "keyword", fed, carrier), mixed.pair(by_hand, by_hand))
    by_hand = mixed.relu(fed)
    torch.testing.assert_close(upper_output(mixed, "relu#2", fed, carrier), mixed.pair(by_hand, by_hand))
    by_hand = mixed.relu(mixed.keyword(mixed.relu(fed)))
    torch.testing.assert_close(upper_output(mixed, "relu#1", fed, carrier), mixed.pair(by_hand, by_hand))
    other = random(5, 1, 6, 6, seed=2)
    torch.testing.assert_close(upper_output(mixed, "", other, carrier), mixed(other))
    assert hooks(mixed) == 0


def test_every_stage_of_a_chain_fed_with_its_own_input_gives_the_output_of_the_network() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Sequential(nn.ReLU(), nn.Conv2d(3, 2, 3)), nn.Flatten()
    ).eval()
    x, carrier = torch.rand(4, 1, 7, 7), torch.zeros(1, 1, 7, 7)
    hidden = x
    for name, stage in network.named_children():
        torch.testing.assert_close(upper_output(network, name, hidden, carrier), network(x))
        assert not torch.allclose(upper_output(network, name, hidden + 1, carrier), network(x))
        hidden = stage(hidden)


def test_a_path_round_the_layer_still_comes_from_the_carrier() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.branch(x)

    network = nn.Sequential(Residual())
    fed, carrier = torch.full((1, 2), 10.0), torch.ones(1, 2)
    assert upper_output(network, "0.branch", fed, carrier).tolist() == [[11, 11]]
    assert upper_output(network, "0", fed, carrier).tolist() == [[20, 20]]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("nothing", "no module 'nothing'"),
        ("relu#x", "no module 'relu#x'"),
        ("never", "leads to 0 calls of never"),
        ("relu#3", "leads to 2 calls of relu"),
        ("relu#0", "numbered from 1"),
        ("relu#", "no module 'relu#'"),
        ("1", "no module '1'"),
        ("relu", "relu is called 2 times: ask for relu#1"),
        ("pair", "called with 2 tensors"),
    ],
)
def test_what_cannot_be_fed_is_refused_and_leaves_no_hook(mixed: Mixed, layer: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        upper_output(mixed, layer, random(2, 4, 6, 6), random(2, 1, 6, 6))
    assert hooks(mixed) == 0


def test_a_shape_that_is_refused_is_named(mixed: Mixed) -> None:
    carrier = random(2, 1, 6, 6)
    for shape in [(2, 3, 6, 6), (2, 4, 6, 5)]:  # by the layer, and by the bilinear one above it
        with pytest.raises(
            ValueError, match=r"keyword .* refuses \(2, ., 6, .\) where the carrier brings \(2, 4, 6, 6\)"
        ):
            upper_output(mixed, "keyword", random(*shape), carrier)
    assert hooks(mixed) == 0


def test_an_error_that_is_not_about_the_shape_is_left_as_it_is(mixed: Mixed) -> None:
    with pytest.raises(RuntimeError, match="expected input"):  # the carrier's own fault
        upper_output(mixed, "keyword", random(2, 4, 6, 6), random(2, 2, 6, 6))
    with pytest.raises(RuntimeError, match="should be the same"):  # the shape is that of the carrier
        upper_output(mixed, "keyword", random(2, 4, 6, 6).float(), random(2, 1, 6, 6))
    assert hooks(mixed) == 0
