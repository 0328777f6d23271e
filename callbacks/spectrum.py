"""The whole spectrum of weights or of features, over time."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal, final

from torch import Tensor, nn
from torchmetrics.aggregation import CatMetric

from lightning_depth.errors import UserError
from lightning_depth.measures import spectra
from lightning_depth.measures.gram import GramSpectrum, Kernel, cosine_gram
from lightning_depth.probes import AbstractProbe, Picture, Schedule
from lightning_depth.probes.calls import Call
from lightning_depth.probes.samples import Split

# So many samples are shown in the picture of a Gram matrix.
SHOWN = 200


@final
class Spectrum(AbstractProbe):
    """All singular values of each layer's weight, or eigenvalues of the Gram matrix of its features (huh2021 Fig 6).

    `weights`: of the weight as a matrix, out x (in / groups * kernel), of every module that has one (of attention, the
    joint one of query, key and value), which is not the layer's operator (see
    OperatorNorm). `gram`: of K_ij = kappa(h_i, h_j) of the layer's inputs h, exact, for cosine or linear kernel.

    Reads for each layer `effective_rank` (nats), `stable_rank`, `threshold_rank_auc` (of shares of the largest value:
    nuclear over spectral norm), `participation_ratio` (of the eigenvalues: those of W^T W for weights), `nuclear_norm`,
    `frobenius_norm` and `spectral_norm`; see `measures.spectra`. Draws the spectrum over its largest value, and of the
    Gram matrix its similarities too, clustered (huh2021 Fig 3).

    Args:
        every: look after every so many epochs, or `geometric`, or `last`.
        layers: shell patterns on module names; None: every layer with a weight matrix or kernel, or for `gram` the last
            linear layer.
        of: `weights` or `gram`.
        kernel: of the Gram matrix, `cosine` or `linear`.
        split: for `gram`: `held_out`, or the un-augmented samples of `train`.
        samples: for `gram`: how many; None: all of the held-out split, or 1,000 of the training split.
    """

    def __init__(
        self,
        every: Schedule = 1,
        layers: list[str] | None = None,
        of: Literal["weights", "gram"] = "weights",
        kernel: Kernel = "cosine",
        split: Split = "held_out",
        samples: int | None = None,
    ) -> None:
        super().__init__(every, layers)
        if of == "gram":
            self.watch(split, samples)
        self.of = of
        self.kernel: Kernel = kernel
        self._weights: dict[str, Tensor] = {}
        self._grams: dict[str, GramSpectrum] = {}
        self._shown: dict[str, CatMetric] = {}
        self._found: dict[str, Tensor] = {}

    def select(self, calls: Sequence[Call]) -> Iterable[Call]:
        if self.of == "weights":
            named = {name: module for name, module in self.network.named_modules() if self.is_named(name)}
            for name, module in named.items():
                if isinstance(module, nn.Embedding):
                    self.say_once(f"{name} (Embedding) is left out: it is a table, not a matrix that is applied.")
            every = {name: _weight(module) for name, module in named.items()}
            self._weights = {name: weight.flatten(1) for name, weight in every.items() if weight is not None}
            if not self._weights:
                raise UserError(f"Spectrum: no module with a weight matrix or kernel matches {self.layers}.")
            return []
        linear = [c.name for c in calls if isinstance(c.module, nn.Linear)][-1:]
        if not linear and self.layers is None:
            raise UserError("Spectrum finds no linear layer: name a layer with layers=[...].")
        watched = self.watched(calls, lambda call: call.name in linear)
        device = self.network.device
        sizes = {c.name: math.prod(c.input_shape or ()) for c in watched}
        self._grams = {name: GramSpectrum(size, kernel=self.kernel).to(device) for name, size in sizes.items()}
        self._shown = {name: CatMetric(nan_strategy="disable").to(device) for name in sizes}
        return watched

    def observe(
        self, split: Split, layer: str, inputs: Tensor, output: Tensor, targets: Tensor, num_classes: int
    ) -> None:
        self._grams[layer].update(inputs)
        kept = self._shown[layer]
        room = -(-SHOWN // self.trainer.world_size) - sum(len(v) for v in kept.value)
        if room > 0:
            kept.update(inputs[:room].flatten(1))

    def measure(self) -> Iterable[tuple[str, str, float]]:
        self._found = {}
        if self.of == "weights":
            for layer, weight in self._weights.items():
                try:
                    self._found[layer] = spectra.singular_values(weight)
                except ValueError as error:
                    raise ValueError(f"{layer}: {error}") from error
        else:
            self._found = {layer: gram.compute() for layer, gram in self._grams.items()}
        for layer, sigma in self._found.items():
            yield layer, "effective_rank", float(spectra.effective_rank(sigma))
            yield layer, "stable_rank", float(spectra.stable_rank(sigma))
            yield layer, "threshold_rank_auc", float(spectra.threshold_rank_auc(sigma))
            eigenvalues = sigma.square() if self.of == "weights" else sigma
            yield layer, "participation_ratio", float(spectra.participation_ratio(eigenvalues))
            for key, p in (("nuclear_norm", 1.0), ("frobenius_norm", 2.0), ("spectral_norm", math.inf)):
                yield layer, key, float(spectra.schatten_norm(sigma, p))

    def draw(self) -> Iterable[Picture]:
        for layer, sigma in self._found.items():
            yield Picture(layer, "spectrum", spectra.normalised_spectrum(sigma))
        for layer, kept in self._shown.items():
            rows = kept.compute()
            if rows.dim() == 2:
                yield Picture(layer, "similarity", cosine_gram(rows))


def _weight(module: nn.Module) -> Tensor | None:
    """The module's own weight matrix or kernel."""
    if isinstance(module, nn.Embedding):
        return None
    name = "in_proj_weight" if isinstance(module, nn.MultiheadAttention) else "weight"
    weight = getattr(module, name, None)
    return weight.detach() if isinstance(weight, Tensor) and weight.dim() >= 2 else None
