"""The whole spectrum of weights or of features, over time."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal, final

from torch import Tensor, nn
from torchmetrics.aggregation import CatMetric

from lightning_depth.errors import UserError
from lightning_depth.measures import spectra
from lightning_depth.measures.gram import GramSpectrum, Kernel, cosine_gram
from lightning_depth.probes import AbstractProbe, ArrayKey, Key, Look, Picture, Schedule, Seen, Split, Value
from lightning_depth.probes.calls import Call

# So many samples are shown in the picture of a Gram matrix.
SHOWN = 200


@final
class Spectrum(AbstractProbe):
    """All singular values of each layer's weight, or eigenvalues of the Gram matrix of its features (huh2021 Fig 6).

    `weights`: of the weight as a matrix, out x (in / groups * kernel), of every module that has one (of attention, the
    joint one of query, key and value), which is not the layer's operator (see OperatorNorm). `gram`: of K_ij =
    kappa(h_i, h_j) of the layer's inputs h. Draws the spectrum over its largest value, and of the Gram matrix its
    similarities too, clustered (huh2021 Fig 3).

    Args:
        every: look after every so many epochs, or `geometric`, or `last`.
        layers: shell patterns on module names; None: every layer with a weight matrix or kernel, or for `gram` the last
            linear layer.
        of: `weights` or `gram`.
        kernel: of the Gram matrix, `cosine` or `linear`.
        split: for `gram`: `val`, what is evaluated, or the un-augmented samples of `train`.
        samples: for `gram`: how many; None: all that are evaluated, or 1,000 of the training split.
        name: what it is called in readings and logs; None: `spectrum`.
    """

    keys = (
        Key(
            "effective_rank",
            title="Spectrum: effective rank at each layer (nats)",
            title_one="Spectrum: effective rank at {layer} (nats)",
            unit="effective rank (nats)",
            definition="−Σ p ln p, p = σ/Σσ, −∞ for a weight of zeros; `of: weights`: σ of the weight as a matrix, out "
            "× (in · kernel); `of: gram`: eigenvalues of the Gram matrix of a layer's inputs, cosine or linear kernel",
            source="huh2021 Def. 1, Figs 3 and 6",
        ),
        Key(
            "stable_rank",
            title="Spectrum: stable rank at each layer",
            title_one="Spectrum: stable rank at {layer}",
            unit="stable rank",
            definition="Σσ² / σ₁²",
            source="nichani2020 Def. 1",
        ),
        Key(
            "threshold_rank_auc",
            definition="area under the number of σ ≥ t σ₁ over t in [0, 1], which is Σσ / σ₁",
            source="huh2021 App. D",
        ),
        Key("participation_ratio", definition="(Σλ)² / Σλ²; for weights λ = σ²"),
        Key("nuclear_norm", definition="Σσ", source="huh2021 App. D"),
        Key("frobenius_norm", definition="√Σσ²", source="huh2021 App. D"),
        Key("spectral_norm", definition="σ₁", source="huh2021 App. D"),
    )
    arrays = (
        ArrayKey("spectrum", "Spectrum, divided by its largest value"),
        ArrayKey("similarity", "Cosine similarity of features, samples in the order of a clustering", clustered=True),
    )
    cost = "0.03 s (`weights`)"

    def __init__(
        self,
        every: Schedule = 1,
        layers: list[str] | None = None,
        of: Literal["weights", "gram"] = "weights",
        kernel: Kernel = "cosine",
        split: Split = "val",
        samples: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(every, layers, name)
        if of == "gram":
            self.watch(split, samples)
        self.of, self.split, self.samples = of, split, samples
        self.kernel: Kernel = kernel
        self._grams: dict[str, GramSpectrum] = {}
        self._shown: dict[str, CatMetric] = {}
        self._room = SHOWN
        self._found: dict[str, Tensor] = {}

    def select(self, look: Look) -> Iterable[Call]:
        if self.of == "weights":
            return []
        linear = [c.name for c in look.calls if isinstance(c.module, nn.Linear)][-1:]
        if not linear and self.layers is None:
            raise UserError("Spectrum finds no linear layer: name a layer with layers=[...].")
        return self.watched(look, lambda call: call.name in linear)

    def begin(self, look: Look, calls: Sequence[Call]) -> None:
        sizes = {c.name: math.prod(c.input_shape or ()) for c in calls}
        self._grams = {name: GramSpectrum(size, kernel=self.kernel).to(look.device) for name, size in sizes.items()}
        self._shown = {name: CatMetric(nan_strategy="disable").to(look.device) for name in sizes}
        self._room = -(-SHOWN // look.processes)

    def observe(self, seen: Seen) -> None:
        self._grams[seen.call.name].update(seen.inputs)
        kept = self._shown[seen.call.name]
        room = self._room - sum(len(v) for v in kept.value)
        if room > 0:
            kept.update(seen.inputs[:room].flatten(1))

    def _weights(self, network: nn.Module) -> dict[str, Tensor]:
        """The weights that the layer filter names, as matrices."""
        named = {name: module for name, module in network.named_modules() if self.is_named(name)}
        for name, module in named.items():
            if isinstance(module, nn.Embedding):
                self.say_once(f"{name} (Embedding) is left out: it is a table, not a matrix that is applied.")
        every = {name: _weight(module) for name, module in named.items()}
        found = {name: weight.flatten(1) for name, weight in every.items() if weight is not None}
        if not found:
            raise UserError(f"Spectrum: no module with a weight matrix or kernel matches {self.layers}.")
        return found

    def measure(self, look: Look) -> Iterable[Value]:
        self._found = {}
        if self.of == "weights":
            for layer, weight in self._weights(look.network).items():
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
