"""The matrix of a linear network, and how far it is from the minimum-norm solution."""

from collections.abc import Iterable, Sequence
from typing import final

import torch
from torch import Tensor

from lightning_depth.measures.linear_networks import (
    LinearMap,
    NotLinear,
    distance_to_minimum_norm,
    linear_operator,
    minimum_norm_solution,
)
from lightning_depth.measures.spectra import (
    effective_rank,
    normalised_spectrum,
    schatten_norm,
    singular_values,
    stable_rank,
)
from lightning_depth.probes import AbstractSampleProbe, Picture, Schedule
from lightning_depth.probes.calls import Call
from lightning_depth.probes.samples import Split

NETWORK = "network"


@final
class LinearOperator(AbstractSampleProbe):
    """The whole operator of a linear network (nichani2020 4.1): its norms, its ranks and its distance to A* = Y X^+.

    The matrix is found by feeding the identity basis. A* is the minimum-norm solution for the `samples` chosen training
    samples: inputs x, and as targets y the floating-point targets, or one-hot classes where the network returns scores;
    where it has an offset, that is subtracted from them. It is *the* minimum-norm solution only if the network is
    trained on just these samples.

    Reads `linear_operator/network/norm` (largest singular value), `frobenius_norm`, `stable_rank`, `effective_rank`
    (nats) and `distance` (||A - A*||_F / ||A*||_F). A network that is not linear is named, and nothing is read.

    Args:
        every: look after every so many epochs, or `geometric`, or `last`.
        split: of the samples that A* fits.
        samples: how many of them; all there are, if there are fewer.
        max_bytes: the largest matrix that is read; a network with a larger one is named.
    """

    def __init__(
        self, every: Schedule = 1, split: Split = "train", samples: int = 1000, max_bytes: int = 2**31
    ) -> None:
        super().__init__(every, None, split, samples)
        self.max_bytes = max_bytes
        self._spectrum: Tensor | None = None

    def select(self, calls: Sequence[Call]) -> Iterable[Call]:
        self._spectrum = None
        return []

    def look(self, inputs: Tensor, targets: Tensor) -> Iterable[tuple[str, str, float]]:
        outputs = self.network(inputs[:1])
        if not (self.is_real("inputs", inputs) and self.is_real("outputs", outputs)):
            return
        m, n = outputs[0].numel(), inputs[0].numel()
        if (size := m * n * outputs.element_size()) > self.max_bytes:
            self.say_once(f"no reading: the {m} x {n} matrix takes {size} bytes, more than max_bytes={self.max_bytes}.")
            return
        try:
            found = linear_operator(self.network, tuple(inputs.shape[1:]), max_bytes=self.max_bytes)
        except NotLinear as error:
            self.say_once(f"no reading: {error}.")
            return
        sigma = self._spectrum = singular_values(found.matrix)
        yield NETWORK, "norm", float(schatten_norm(sigma, torch.inf))
        yield NETWORK, "frobenius_norm", float(schatten_norm(sigma, 2.0))
        yield NETWORK, "stable_rank", float(stable_rank(sigma))
        yield NETWORK, "effective_rank", float(effective_rank(sigma))
        wanted = _wanted(found, targets, scores=outputs.dim() == 2)
        if wanted is None:
            self.say_once("no distance: the targets are not what the network returns.")
        else:
            solution = minimum_norm_solution(inputs.flatten(1).double(), wanted)
            yield NETWORK, "distance", distance_to_minimum_norm(found.matrix.double(), solution)

    def draw(self) -> Iterable[Picture]:
        if self._spectrum is not None:
            yield Picture(NETWORK, "spectrum", normalised_spectrum(self._spectrum))


def _wanted(found: LinearMap, targets: Tensor, scores: bool) -> Tensor | None:
    """What the linear part should give: (n, m) in float64; None where the targets are of another size.

    Classes are no targets of a network that does not return a row of `scores`, as an autoencoder does not.
    """
    outputs = len(found.matrix)
    if targets.is_floating_point():
        flat = targets.flatten(1) if targets.dim() > 1 else targets[:, None]
    elif scores and targets.dim() == 1 and int(targets.max()) < outputs:
        flat = torch.nn.functional.one_hot(targets.long(), outputs)
    else:
        return None
    return flat.double() - found.offset.double() if flat.shape[1] == outputs else None
