"""The matrix of a linear network, and how far it is from the minimum-norm solution."""

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor

from lightning_depth.measures import linear_networks, spectra
from lightning_depth.probes import AbstractSampleProbe, ArrayKey, Key, Look, Picture, Schedule, Split, Value


@final
class LinearOperator(AbstractSampleProbe):
    """The whole operator of a linear network (nichani2020 4.1): its norms, its ranks and its distance to A* = Y X^+.

    The matrix is found by feeding the identity basis. A* is the minimum-norm solution for the `samples` chosen training
    samples: inputs x, and as targets y the floating-point targets, or one-hot classes where the network returns scores;
    where it has an offset, that is subtracted from them. It is *the* minimum-norm solution only if the network is
    trained on just these samples.

    A network that is not linear is named, and nothing is read.

    Args:
        every: look after every so many epochs, or `geometric`, or `last`.
        split: of the samples that A* fits.
        samples: how many of them; all there are, if there are fewer.
        max_bytes: the largest matrix that is read; a network with a larger one is named.
        name: what it is called in readings and logs; None: `linear_operator`.
    """

    keys = (
        Key(
            "norm",
            title="Linear network: operator norm",
            unit="largest singular value",
            definition="σ₁ of the matrix A of a linear network, found by feeding the identity basis",
            source="nichani2020 4.1",
        ),
        Key("frobenius_norm", title="Linear network: Frobenius norm", unit="Frobenius norm", definition="√Σσ² of A"),
        Key("stable_rank", title="Linear network: stable rank", unit="stable rank", definition="of A: Σσ² / σ₁²"),
        Key("effective_rank", definition="of A: −Σ p ln p, p = σ/Σσ"),
        Key(
            "distance",
            title="Distance to the minimum-norm solution",
            unit="relative distance",
            definition="‖A − A*‖ / ‖A*‖ (Frobenius), A* = Y X⁺ the minimum-norm solution for the chosen training "
            "samples (classes as one-hot targets)",
            source="nichani2020 4.1",
        ),
    )
    arrays = (ArrayKey("spectrum", "Singular values of the linear network, divided by the largest"),)
    cost = "—"

    def __init__(
        self,
        every: Schedule = 1,
        split: Split = "train",
        samples: int = 1000,
        max_bytes: int = 2**31,
        name: str | None = None,
    ) -> None:
        super().__init__(every, None, name, split, samples)
        self.max_bytes = max_bytes
        self._pictures: list[Picture] = []

    def measure(self, look: Look) -> Iterable[Value]:
        self._pictures = []
        inputs, targets = self.fixed_samples(look)
        outputs = look.network(inputs[:1])
        if not (self.is_real("inputs", inputs) and self.is_real("outputs", outputs)):
            return
        m, n = outputs[0].numel(), inputs[0].numel()
        if (size := m * n * outputs.element_size()) > self.max_bytes:
            self.say_once(f"no reading: the {m} x {n} matrix takes {size} bytes, more than max_bytes={self.max_bytes}.")
            return
        try:
            found = linear_networks.linear_operator(look.network, tuple(inputs.shape[1:]), max_bytes=self.max_bytes)
        except linear_networks.NotLinear as error:
            self.say_once(f"no reading: {error}.")
            return
        sigma = spectra.singular_values(found.matrix)
        self._pictures = [Picture("", "spectrum", spectra.normalised_spectrum(sigma))]
        yield "", "norm", float(spectra.schatten_norm(sigma, torch.inf))
        yield "", "frobenius_norm", float(spectra.schatten_norm(sigma, 2.0))
        yield "", "stable_rank", float(spectra.stable_rank(sigma))
        yield "", "effective_rank", float(spectra.effective_rank(sigma))
        wanted = _wanted(found, targets, scores=outputs.dim() == 2)
        if wanted is None:
            self.say_once("no distance: the targets are not what the network returns.")
        else:
            solution = linear_networks.minimum_norm_solution(inputs.flatten(1).double(), wanted)
            yield "", "distance", linear_networks.distance_to_minimum_norm(found.matrix.double(), solution)

    def draw(self) -> Iterable[Picture]:
        return self._pictures


def _wanted(found: linear_networks.LinearMap, targets: Tensor, scores: bool) -> Tensor | None:
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
