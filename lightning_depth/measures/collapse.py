"""Collapse of representations: the error of the correlation-vote classifier (zhang2019 section 3.4)."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_depth.measures.precision import full_float32
from lightning_depth.measures.rows import directions
from lightning_depth.measures.two_splits import AbstractClassifier, is_distributed

# Mean votes lie in [-1, 1] and carry errors of about 1e-15; two that differ by less than this are a tie.
TIE = 1e-12
# Rows are normalised in blocks of so many float64 numbers (16 MB).
_BLOCK = 2**21


def predictions(mean_votes: Float[Tensor, "n classes"]) -> Bool[Tensor, "n classes"]:
    """The classes that each sample is predicted to have: those whose mean vote ties with the largest, to `TIE`.

    >>> predictions(torch.tensor([[0.1, 0.3, -0.2], [0.0, 0.0, 0.0]]))
    tensor([[False,  True, False],
            [ True,  True,  True]])
    """
    return mean_votes >= mean_votes.amax(1, keepdim=True) - TIE


def expected_errors(predicted: Bool[Tensor, "n classes"], y: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """The probability that each prediction is wrong when a tie of t classes is broken uniformly at random.

    0 where the true class stands alone, 1 - 1/t where it is one of t, 1 where it is not among them. So a representation
    that carries no information has the error of guessing, 1 - 1/classes, and not that of the class that argmax names.

    >>> expected_errors(torch.tensor([[True, False], [True, True], [False, True]]), torch.tensor([0, 0, 0]))
    tensor([0.0000, 0.5000, 1.0000], dtype=torch.float64)
    """
    hit = predicted.gather(1, y.long()[:, None]).squeeze(1)
    return 1 - hit.double() / predicted.sum(1)


def _in_memory_order(h: Tensor) -> list[int]:
    """Dimensions 1, 2, ... of h from the slowest to the fastest in memory: flattening in this order copies nothing."""
    return sorted(range(1, h.ndim), key=h.stride, reverse=True)


def _block_rows(h: Tensor) -> int:
    """How many samples of h to treat at once; a GPU wants few large blocks, of which each takes a float64 copy."""
    numbers = _BLOCK if h.device.type == "cpu" else _BLOCK * 32
    return max(1, numbers // max(1, h[0].numel()))


class CollapseClassifier(AbstractClassifier):
    r"""The correlation-vote classifier on the representations of one layer (zhang2019 section 3.4), streamed.

        error of  argmax_c (1 / N) sum_j corr(h(x), h(x_j)) 1[y_j = c]

    The correlation is linear in the centred and normalised h^(x_j), so the sum over the training set is taken first:

        sum_j <h^(x), h^(x_j)> 1[y_j = c] = <h^(x), P_c>,   P_c = sum_{j in c} h^(x_j)

    so the training split (`update_prototypes`) is summed to one prototype a class. The predictions are those of the
    definition, in float64 and to the last one, at O((n + N) d classes) time and O(classes d) memory.

    Votes are divided by the total N, as the definition says, so a larger class has larger votes. `compute_balanced`
    gives the error where the votes of each class are divided by its own count: another definition, in which a class
    without training samples has vote zero. One pass serves both. The all-zero vote is a tie of all classes.

    The batches' memory layout is free and may change from batch to batch: a channels-last batch is read as it lies.

    Args:
        num_classes: see `AbstractTwoSplits`, as for ranks and what raises.
        feature_shape: likewise.
        centred: Pearson correlation over the entries if true, else cosine.
        kwargs: torchmetrics.Metric's.

    >>> metric = CollapseClassifier(num_classes=2, feature_shape=(3,))
    >>> metric.update_prototypes(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 1]))
    >>> metric.update(torch.tensor([[2.0, 1.0, 0.0], [5.0, 5.0, 5.0]]), torch.tensor([0, 0]))
    >>> metric.compute(), metric.compute_balanced()  # right, and a tie of two; classes of one size
    (tensor(0.2500, dtype=torch.float64), tensor(0.2500, dtype=torch.float64))
    """

    prototypes: Tensor
    zero_rows: Tensor
    definitions = 2

    def __init__(self, num_classes: int, feature_shape: tuple[int, ...], centred: bool = True, **kwargs: Any) -> None:
        super().__init__(num_classes, feature_shape, **kwargs)
        self.centred = centred
        prototypes = torch.zeros(num_classes, *feature_shape, dtype=torch.float64)
        self.add_state("prototypes", prototypes, dist_reduce_fx="sum")
        self.add_state("zero_rows", torch.tensor(0), dist_reduce_fx="sum")

    def _learn(self, h: Tensor, y: Tensor) -> None:
        if not len(h):
            return
        order = _in_memory_order(h)
        batch_sum = h.new_zeros(self.num_classes, h[0].numel(), dtype=torch.float64)
        labels = torch.nn.functional.one_hot(y.long(), self.num_classes).double()
        size = _block_rows(h)
        for block, label in zip(torch.split(h.permute(0, *order), size), torch.split(labels, size), strict=True):
            rows, scale = directions(block, self.centred)
            # P_c += sum_j 1[y_j = c] h^(x_j)
            batch_sum.addmm_((label * scale[:, None]).mT, rows)
            self.zero_rows += (scale == 0).sum()
        prototypes = self.prototypes.permute(0, *order)
        prototypes += batch_sum.view(prototypes.shape)

    def _sync(self) -> None:
        torch.distributed.all_reduce(self.prototypes)
        torch.distributed.all_reduce(self.class_counts)

    def _errors(self, h: Tensor, y: Tensor) -> Tensor:
        errors = torch.zeros_like(self.errors)
        if h.dtype == torch.float32 and self.num_classes > 1:
            winners, certain = self._screen(h)
            errors += (certain & (winners != y)).sum(1)
            h, y = h[~certain], y[~certain]
        if len(h):
            errors += torch.stack([expected_errors(predictions(v), y).sum() for v in self._mean_votes(h)])
        return errors

    def _divisors(self) -> Tensor:
        """What the votes of each class are divided by (2, classes): all N, and the balanced votes' class counts."""
        return torch.stack([self.class_counts.sum().expand(self.num_classes), self.class_counts.clamp_min(1)])

    def _screen(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The class of the largest vote (2, n) by float32 arithmetic, and where (n) float64 would surely agree on both.

        Votes need no normalised h: centred prototypes do not see its mean, and its norm scales all votes alike. The
        rounding error of an inner product of d numbers exceeds 10 sqrt(d) u ||h|| ||P||, u = 2^-24, with probability
        below 2 d exp(-50) < 4e-22 d (Higham and Mary 2019, Theorem 2.4 with lambda = 10 for each of its d terms);
        rounding P, rounding the divisor and dividing add u ||h|| ||P|| each. Where a product or an entry of P is below
        float32's least normal number it may be flushed to zero, which adds 2^-126 (2 d + sqrt(d) ||h||) at most. What
        is not certain by that bound is left to float64, as are sums that might overflow: ties, zero rows, NaN.
        """
        order = _in_memory_order(h)
        rows = h.permute(0, *order).flatten(1)
        prototypes = self.prototypes.permute(0, *order).flatten(1)
        divisors = self._divisors()
        with full_float32():
            sums = rows @ prototypes.float().mT
        top = (sums / divisors[:, None].float()).topk(2, dim=2)
        # In float64: the squares of float32 numbers leave its range.
        norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
        lengths = torch.linalg.vector_norm(prototypes, dim=1)
        longest = (lengths / divisors).amax(1, keepdim=True)
        d = rows.shape[1]
        rounding = 2 * (10 * d**0.5 + 3) * 2**-24 * longest
        flushed = 2 * 2**-126 * (2 * d + d**0.5 * norms)
        certain = (top.values[..., 0] - top.values[..., 1]).double() > norms * (rounding + TIE) + flushed
        return top.indices[..., 0], certain.all(0) & (norms * lengths.amax() < 2.0**126)

    def _mean_votes(self, h: Tensor) -> Tensor:
        """The mean votes (2, n, classes) by both definitions, in float64."""
        order = _in_memory_order(h)
        prototypes = self.prototypes.permute(0, *order).flatten(1)
        sums = []
        for block in torch.split(h.permute(0, *order), _block_rows(h)):
            rows, scale = directions(block, self.centred)
            # <h^(x), P_c>
            sums.append(rows @ prototypes.mT * scale[:, None])
            self.zero_rows += (scale == 0).sum()
        return torch.cat(sums) / self._divisors()[:, None]

    def compute_balanced(self) -> Float[Tensor, ""]:
        """Error in [0, 1] of the balanced votes over all test samples of all ranks; every rank must call it."""
        errors, samples = self.errors[1].clone(), self.samples.clone()
        if is_distributed():
            torch.distributed.all_reduce(errors)
            torch.distributed.all_reduce(samples)
        return self._error(errors, samples)
