"""Losses, hits and means over samples, under replica axes: those of each replica alone."""

from functools import partial

import pytest
import torch
from torch import nn

from lightning_depth.errors import UserError
from lightning_depth.models.losses import SampleMean, correct, sample_losses
from lightning_depth.models.shapes import Shapes

REPLICAS = {"none": (), "one": (1,), "three": (3,), "two by three": (2, 3)}
CLASSES, NUMBERS, SCALARS = Shapes((3,), classes=5), Shapes((3,), target=(2, 4)), Shapes((3,), target=())


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def labels(*shape):
    return torch.randint(5, shape, generator=torch.Generator().manual_seed(1))


def alone(function, outputs, targets, replicas):
    """`function` of each replica, stacked."""
    if not replicas:
        return function(outputs, targets)
    return torch.stack([alone(function, o, t, replicas[1:]) for o, t in zip(outputs, targets, strict=True)])


@pytest.mark.parametrize("replicas", REPLICAS.values(), ids=REPLICAS)
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_losses_of_classes_are_those_of_each_replica_alone(loss, replicas):
    outputs, targets = draw(*replicas, 6, 5), labels(*replicas, 6)
    found = sample_losses(loss, outputs, targets, CLASSES)
    assert found.shape == (*replicas, 6)

    def slow(o, t):
        if loss == "cross_entropy":
            return nn.CrossEntropyLoss(reduction="none")(o, t)
        return nn.MSELoss(reduction="none")(o, nn.functional.one_hot(t, 5).float()).mean(1)

    torch.testing.assert_close(found, alone(slow, outputs, targets, replicas))
    hits = correct(outputs, targets, CLASSES)
    assert torch.equal(hits, alone(lambda o, t: o.argmax(1) == t, outputs, targets, replicas))


@pytest.mark.parametrize("replicas", REPLICAS.values(), ids=REPLICAS)
@pytest.mark.parametrize(
    ("shapes", "returned"),
    [(NUMBERS, (2, 4)), (NUMBERS, (8,)), (SCALARS, ()), (SCALARS, (1,)), (Shapes((3,), target=(4,)), (4,))],
)
def test_losses_of_numbers_are_those_of_each_replica_alone(shapes, returned, replicas):
    # (3, n, 4) may be three replicas of vectors, or samples of matrices: the shapes say which.
    outputs, targets = draw(*replicas, 6, *returned), draw(*replicas, 6, *shapes.target) + 1
    found = sample_losses("mse", outputs, targets, shapes)
    assert found.shape == (*replicas, 6)

    def slow(o, t):
        return torch.stack([nn.MSELoss()(o[i].flatten(), t[i].flatten()) for i in range(6)])

    torch.testing.assert_close(found, alone(slow, outputs, targets, replicas))


def test_a_pretrained_head_may_have_more_outputs_than_there_are_classes():
    outputs, targets = draw(6, 9), labels(6)
    torch.testing.assert_close(
        sample_losses("cross_entropy", outputs, targets, CLASSES).mean(), nn.CrossEntropyLoss()(outputs, targets)
    )


@pytest.mark.parametrize(
    ("outputs", "targets", "shapes"),
    [
        ((3, 6, 5), (6,), CLASSES),  # replicas of outputs, and targets of one
        ((6, 5), (3, 6), CLASSES),
        ((6, 4), (6,), CLASSES),  # too few outputs
        ((6,), (6,), CLASSES),
        ((5,), (), CLASSES),  # no batch
        ((6, 2, 4), (6, 2, 3), NUMBERS),
        ((6, 7), (6, 2, 4), NUMBERS),
        ((3, 6, 4), (3, 6, 4), NUMBERS),  # replicas of vectors are no matrices
        ((1, 6, 2, 4), (3, 6, 2, 4), NUMBERS),  # nothing is broadcast
        ((6, 2), (6,), SCALARS),
    ],
)
def test_shapes_that_do_not_fit_are_refused(outputs, targets, shapes):
    made = labels(*targets) if shapes.target is None else draw(*targets)
    with pytest.raises(UserError, match="do not fit together"):
        sample_losses("mse", draw(*outputs), made, shapes)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_are_of_any_whole_dtype(dtype):
    outputs, targets = draw(6, 5), labels(6) % 2
    for function in (*(partial(sample_losses, loss) for loss in ("mse", "cross_entropy")), correct):
        assert torch.equal(function(outputs, targets.to(dtype), CLASSES), function(outputs, targets, CLASSES))


@pytest.mark.parametrize(("label", "dtype"), [(-1, torch.int64), (5, torch.int64), (7, torch.int8), (255, torch.uint8)])
def test_a_label_of_no_class_is_named(label, dtype):
    targets = torch.tensor([0, label, 4], dtype=dtype)
    for function in (*(partial(sample_losses, loss) for loss in ("mse", "cross_entropy")), correct):
        for outputs in (draw(3, 5), draw(3, 9)):  # a wider head has no more classes
            with pytest.raises(UserError, match=rf"the label {label}, but there are 5 classes:\n.*from 0 to 4\.$"):
                function(outputs, targets, CLASSES)


@pytest.mark.parametrize("leading", [(0,), (3, 0), (0, 6), (2, 0, 6)])
def test_no_samples_or_replicas_have_no_losses(leading):
    for shapes, returned in [(NUMBERS, (2, 4)), (NUMBERS, (8,)), (SCALARS, ()), (SCALARS, (1,))]:
        assert sample_losses("mse", draw(*leading, *returned), draw(*leading, *shapes.target), shapes).shape == leading
    for loss in ("mse", "cross_entropy"):
        assert sample_losses(loss, draw(*leading, 5), labels(*leading), CLASSES).shape == leading
    assert correct(draw(*leading, 5), labels(*leading), CLASSES).shape == leading


def test_kinds_of_targets_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="targets that are 5 classes"):
        sample_losses("mse", draw(6, 5), draw(6), CLASSES)
    with pytest.raises(UserError, match="targets that are 5 classes"):
        sample_losses("mse", draw(6, 5), labels(6) * 1j, CLASSES)
    with pytest.raises(UserError, match=r"numbers of shape \(2, 4\)"):
        sample_losses("mse", draw(6, 2, 4), labels(6, 2, 4), NUMBERS)
    with pytest.raises(UserError, match="no accuracy"):
        correct(draw(6, 2, 4), draw(6, 2, 4), NUMBERS)
    for both in ({}, {"classes": 2, "target": (3,)}):
        with pytest.raises(UserError, match="one of classes and target"):
            Shapes((3,), **both)


@pytest.mark.parametrize("replicas", REPLICAS.values(), ids=REPLICAS)
def test_means_over_samples_keep_replica_axes(replicas):
    batches = [draw(*replicas, n) + n for n in (4, 7, 1)]
    mean = SampleMean()
    for batch in batches:
        mean.update(batch)
    found = mean.mean()
    assert (found.shape, found.dtype) == (replicas, torch.float64)
    torch.testing.assert_close(found, torch.cat([b.double() for b in batches], -1).mean(-1))
    again = SampleMean()
    again.restore(mean.snapshot())
    assert torch.equal(again.mean(), found)
    mean.reset()
    mean.update(torch.ones(*replicas, 2, dtype=torch.bool))
    assert torch.equal(mean.mean(), torch.ones(replicas).double())
