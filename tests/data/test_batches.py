import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.utils.data import DataLoader
from torchvision.transforms import functional as tv

from lightning_depth.data.base.batches import EpochOrder, TensorBatches, Transform, crop, flip
from lightning_depth.errors import UserError
from lightning_depth.seeds import generator


def pictures(n, channels=3, size=8):
    return torch.randint(256, (n, size, size, channels), dtype=torch.uint8, generator=generator(0, "pictures"))


def batches(n=37, batch_size=4, rank=0, world=1, augment="crop_flip", seed=5):
    transform = Transform([0.4, 0.5, 0.6], [0.2, 0.3, 0.1], augment, padding=2)
    return TensorBatches(
        pictures(n), torch.arange(n), batch_size, transform, EpochOrder(n, batch_size, seed, rank, world)
    )


def test_order_is_a_pure_function_of_seed_and_epoch():
    order, again, other = EpochOrder(50, 8, seed=1), EpochOrder(50, 8, seed=1), EpochOrder(50, 8, seed=2)
    first = list(order)
    order.set_epoch(3)
    third = list(order)
    again.set_epoch(3)
    assert third == list(again)
    assert sorted(third) == sorted(first) == list(range(50))
    assert third != first != list(other)
    order.set_epoch(0)
    assert list(order) == first


def test_order_serves_a_plain_data_loader():
    order = EpochOrder(10, 4, seed=0)
    loader = DataLoader(torch.arange(10), batch_size=4, sampler=order)
    assert torch.cat(list(loader)).tolist() == list(order)


def test_an_order_that_is_not_reshuffled_stays():
    order = EpochOrder(50, 8, seed=1, reshuffle=False)
    assert torch.equal(order.indices(0), order.indices(7))


@settings(deadline=None, max_examples=60)
@given(n=st.integers(4, 70), size=st.integers(1, 9), world=st.integers(1, 4), epoch=st.integers(0, 3))
def test_many_processes_see_the_batches_of_one(n, size, world, epoch):
    one = EpochOrder(n, size * world, seed=0).indices(epoch).split(size * world)
    shares = [EpochOrder(n, size, 0, rank, world).indices(epoch).split(size) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    for step, ranks in enumerate(zip(*shares, strict=True)):
        together = torch.cat(ranks)
        assert torch.equal(together, one[step][: len(together)])
        assert len(one[step]) - len(together) < world
        assert len(together) == len(one[step]) or step == len(one) - 1


def test_fewer_samples_than_processes_is_a_mistake():
    with pytest.raises(UserError, match="3 training samples"):
        EpochOrder(3, 1, 0, rank=0, world=4)


def test_augmentation_is_torchvisions_image_by_image():
    images = pictures(40, size=9)
    draws = generator(0, "test")
    dy, dx = torch.randint(7, (2, 40), generator=draws)
    mirrored = torch.randint(2, (40,), generator=draws).bool()
    ours = flip(crop(images, dy, dx, padding=3), mirrored)
    for image, y, x, mirror, got in zip(images, dy.tolist(), dx.tolist(), mirrored, ours, strict=True):
        expected = tv.crop(tv.pad(image.permute(2, 0, 1), 3), y, x, 9, 9)
        expected = tv.hflip(expected) if mirror else expected
        assert torch.equal(got.permute(2, 0, 1), expected)


def test_batches_are_normalised_as_torchvision_does():
    n = 6
    loader = TensorBatches(pictures(n), torch.arange(n), 4, Transform([0.4, 0.5, 0.6], [0.2, 0.3, 0.1]))
    x, y = next(iter(loader))
    expected = tv.normalize(pictures(n)[:4].permute(0, 3, 1, 2) / 255, [0.4, 0.5, 0.6], [0.2, 0.3, 0.1])
    torch.testing.assert_close(x, expected)
    assert x.is_contiguous()
    assert x.dtype == torch.float32
    assert y.tolist() == [0, 1, 2, 3]
    assert [len(labels) for _, labels in loader] == [4, 2]


def test_black_padding_is_black_before_normalisation():
    white = torch.full((1, 4, 4, 1), 255, dtype=torch.uint8)
    loader = TensorBatches(
        white, torch.zeros(1, dtype=torch.int64), 1, Transform([0.5], [0.5], "crop", 4), EpochOrder(1, 1, 0)
    )
    values = torch.cat([loader.batch(epoch, 0)[0].flatten() for epoch in range(20)]).unique()
    assert values.tolist() == [-1.0, 1.0]


def test_a_batch_depends_on_epoch_and_step_alone():
    one, two = batches(), batches()
    late = one.batch(3, 5)
    for epoch, step in ((0, 0), (3, 5), (1, 2)):
        two.batch(epoch, step)
    for a, b in zip(late, two.batch(3, 5), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(late[0], batches(seed=6).batch(3, 5)[0])


def test_augmentation_does_not_depend_on_the_number_of_processes():
    one, ranks = batches(batch_size=6), [batches(batch_size=2, rank=r, world=3) for r in range(3)]
    for step in range(6):  # the full batches of 37 images
        for a, b in zip(one.batch(2, step), zip(*(rank.batch(2, step) for rank in ranks), strict=True), strict=True):
            assert torch.equal(a, torch.cat(b))


def test_crops_are_the_same_with_and_without_flips():
    cropped, flipped = batches(augment="crop").batch(0, 0)[0], batches().batch(0, 0)[0]
    same = [torch.equal(a, b) for a, b in zip(cropped, flipped, strict=True)]
    assert all(s or torch.equal(a, b.flip(-1)) for s, a, b in zip(same, cropped, flipped, strict=True))


def test_only_the_resumed_epoch_is_shortened():
    resumed, whole = batches(), batches()
    resumed.start = (2, 7)
    assert len(resumed) == len(whole) == 10
    for epoch, expected in ((2, 3), (3, 10)):
        iterator = iter(resumed)  # as in Lightning, before the epoch is set
        resumed.sampler.set_epoch(epoch)
        got = list(iterator)
        assert len(got) == expected
        for step, (x, y) in enumerate(got, 10 - expected):
            assert torch.equal(x, whole.batch(epoch, step)[0])
            assert torch.equal(y, whole.batch(epoch, step)[1])


def test_the_global_generator_is_not_touched():
    before = torch.get_rng_state()
    list(batches())
    assert torch.equal(torch.get_rng_state(), before)
