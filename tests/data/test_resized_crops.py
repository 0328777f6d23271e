"""Random resized crops against torchvision's."""

import pytest
import torch
import torchvision
from torchvision.transforms import v2

from lightning_depth.data import EmbeddedDigits
from lightning_depth.data.base.batches import EpochOrder, TensorBatches, Transform, resized_crop, resized_crop_boxes
from lightning_depth.seeds import generator


def pictures(n, height=24, width=24, channels=3):
    return torch.randint(
        256, (n, height, width, channels), dtype=torch.uint8, generator=generator(0, "pictures", height, width)
    )


@pytest.mark.parametrize("size", [(24, 24), (17, 30), (32, 32)])
def test_resized_crops_are_torchvisions_on_the_same_boxes(size):
    images = pictures(64, *size)
    boxes = resized_crop_boxes(64, *size, (0.08, 1.0), (3 / 4, 4 / 3), generator(0))
    ours = resized_crop(images, boxes).permute(0, 3, 1, 2).int()
    exact, bytewise = [], []
    for image, box in zip(images.permute(0, 3, 1, 2), boxes.tolist(), strict=True):
        exact.append(v2.functional.resized_crop(image.float(), *box, list(size), antialias=True))
        bytewise.append(v2.functional.resized_crop(image, *box, list(size), antialias=True).int())
    off = (ours - torch.stack(exact)).abs()
    assert off.max() < 0.502  # rounding to whole levels
    assert (ours - torch.stack(bytewise)).abs().max() <= 1


def test_the_whole_image_is_a_box_that_changes_nothing():
    images = pictures(5)
    assert torch.equal(resized_crop(images, torch.tensor([[0, 0, 24, 24]] * 5)), images)
    one = images[:, 3:4, 5:6]
    assert torch.equal(resized_crop(images, torch.tensor([[3, 5, 1, 1]] * 5)), one.expand(-1, 24, 24, -1))
    assert torch.equal(resized_crop(one, torch.tensor([[0, 0, 1, 1]] * 5)), one)


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [((32, 32), (0.08, 1.0), (3 / 4, 4 / 3)), ((20, 40), (0.5, 0.9), (0.9, 1.1)), ((6, 6), (0.01, 0.02), (1.0, 1.0))],
)
def test_boxes_are_distributed_as_torchvisions(size, scale, ratio):
    n = 4000
    ours = resized_crop_boxes(n, *size, scale, ratio, generator(0)).double()
    image = torch.zeros(3, *size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        draw = torchvision.transforms.RandomResizedCrop.get_params
        theirs = torch.tensor([draw(image, list(scale), list(ratio)) for _ in range(n)]).double()
    top, left, tall, wide = ours.unbind(1)
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 2:] >= 1).all()
    assert (top + tall <= size[0]).all()
    assert (left + wide <= size[1]).all()
    error = 5 * (theirs.std(0) + ours.std(0)) / n**0.5 + 1e-9
    assert ((ours.mean(0) - theirs.mean(0)).abs() <= error).all()
    assert ((ours.std(0) - theirs.std(0)).abs() <= error).all()


def test_where_no_box_fits_it_is_the_largest_central_one_as_in_torchvision():
    for size, ratio in (((10, 40), (0.5, 0.5)), ((40, 10), (2.0, 2.0)), ((30, 30), (1.0, 1.0))):
        ours = resized_crop_boxes(1, *size, (1.0, 1.0), ratio, generator(0))[0].tolist()
        theirs = torchvision.transforms.RandomResizedCrop.get_params(torch.zeros(3, *size), [1.0, 1.0], list(ratio))
        assert ours == list(theirs)


def batches(rank=0, world=1, batch_size=6, augment="random_resized_crop_flip", **kwargs):
    order = EpochOrder(37, batch_size, 5, rank, world)
    transform = Transform([0.4, 0.5, 0.6], [0.2, 0.3, 0.1], augment, **kwargs)
    return TensorBatches(pictures(37), torch.arange(37), batch_size, transform, order)


def test_a_resized_crop_depends_on_seed_epoch_and_position_alone():
    one, again, ranks = batches(), batches(), [batches(rank, 3, 2) for rank in range(3)]
    again.batch(0, 0)
    assert torch.equal(one.batch(3, 5)[0], again.batch(3, 5)[0])
    for step in range(6):
        together = torch.cat([rank.batch(2, step)[0] for rank in ranks])
        assert torch.equal(one.batch(2, step)[0], together)
    assert not torch.equal(one.batch(0, 0)[0], one.batch(1, 0)[0])


def test_resized_crops_leave_flips_and_order_as_they_are():
    whole = batches(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0)).batch(1, 2)
    padded = batches(augment="crop_flip", padding=0).batch(1, 2)
    for ours, theirs in zip(whole, padded, strict=True):
        assert torch.equal(ours, theirs)
    plain, flipped = (batches(augment=f"random_resized_crop{end}").batch(1, 2)[0] for end in ("", "_flip"))
    same = [torch.equal(a, b) for a, b in zip(plain, flipped, strict=True)]
    assert {*same} == {True, False}
    assert all(s or torch.equal(a, b.flip(-1)) for s, a, b in zip(same, plain, flipped, strict=True))


def test_a_data_set_crops_and_resizes_while_training_alone():
    data = EmbeddedDigits(augment="random_resized_crop", crop_scale=(0.2, 0.5), samples_per_class=5)
    data.setup()
    train = data.train_dataloader()
    (x, y), still = train.batch(0, 0), data.probe_dataloader(50).images
    assert x.shape == (50, 1, 28, 28)
    assert len(y) == 50
    assert train.transform.crop_scale == (0.2, 0.5)
    assert (x > 0).float().mean() > 1.2 * (still > 33).float().mean()  # a part of a digit fills its frame
    assert data.val_dataloader().transform.augment == "none"
