"""How much of the classes a simple vote can still read off each stage's representation."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal, final

from torch import Tensor

from lightning_depth.errors import UserError
from lightning_depth.measures.collapse import CollapseClassifier
from lightning_depth.measures.neighbours import NearestMeanClassifier, NearestNeighbours
from lightning_depth.probes import AbstractProbe, Schedule
from lightning_depth.probes.calls import INPUT, Call, stages
from lightning_depth.probes.samples import Split

Classifier = CollapseClassifier | NearestMeanClassifier | NearestNeighbours
# The training representations of a layer that are kept for its nearest neighbours, in float32.
NEIGHBOUR_BYTES = 256 * 2**20


@final
class RepresentationCollapse(AbstractProbe):
    """The error of the correlation vote at the input and after each stage (zhang2019 3.4).

    Each validation sample x is given the class argmax_c mean_j corr(h(x), h(x_j)) 1[y_j = c], over training samples x_j
    and with h the representation at that stage. The error at the input is the baseline; chance means collapse.

    Reads `representation_collapse/<stage>/error` (share of validation samples, 0 to 1) and `balanced_error`, that of
    votes divided by the number of training samples of their class. If asked for, `nearest_mean_error` (nearest class
    mean, Euclidean) and `neighbours_error` (k nearest neighbours by cosine) on the same representations.

    Args:
        every: look after every so many epochs, or `geometric`, or `last`.
        layers: shell patterns on module names, whose outputs are then looked at; None: as `at` says.
        at: `stages` (the trunk's children) or `layers` (every module with a weight matrix or kernel).
        train_samples: number of training samples that vote, a fixed seeded choice.
        samples: number of held-out samples that are classified; None: all.
        nearest_mean: whether to classify by the nearest class mean, too.
        neighbours: classify by so many nearest neighbours, too; it keeps the training representations, and a stage
            where these exceed 256 MiB is left out with a warning.
    """

    def __init__(
        self,
        every: Schedule = 1,
        layers: list[str] | None = None,
        at: Literal["stages", "layers"] = "stages",
        train_samples: int = 1000,
        samples: int | None = None,
        nearest_mean: bool = False,
        neighbours: int | None = None,
    ) -> None:
        super().__init__(every, layers)
        if train_samples < 1:
            raise UserError(f"RepresentationCollapse: train_samples must be at least 1, not {train_samples}.")
        if neighbours is not None and not 1 <= neighbours <= train_samples:
            raise UserError(f"RepresentationCollapse: neighbours must be 1 to train_samples, not {neighbours}.")
        self.at = at
        self.watch("held_out", samples)
        self.train_samples = train_samples
        self.nearest_mean = nearest_mean
        self.neighbours = neighbours
        self._classifiers: dict[str, dict[str, Classifier]] = {}

    def select(self, calls: Sequence[Call]) -> Iterable[Call]:
        trunk = stages(calls)

        def default(call: Call) -> bool:
            name = call.name.split("#")[0]
            if self.at == "stages":
                return name == INPUT or name in trunk
            return name == INPUT or any(p.dim() >= 2 for p in call.module.parameters(recurse=False))

        watched = self.watched(calls, default)
        self._classifiers = {call.name: self._classifiers_of(call) for call in watched}
        return watched

    def _classifiers_of(self, call: Call) -> dict[str, Classifier]:
        """By the key of their reading."""
        shape = call.output_shape or ()
        made: dict[str, Classifier] = {"error": CollapseClassifier(self.num_classes, shape)}
        if self.nearest_mean:
            made["nearest_mean_error"] = NearestMeanClassifier(self.num_classes, shape)
        if self.neighbours is not None:
            if self.train_samples * math.prod(shape) * 4 > NEIGHBOUR_BYTES:
                self.say_once(f"no neighbours at {call.name}: its training representations exceed 256 MiB.")
            else:
                made["neighbours_error"] = NearestNeighbours(
                    self.neighbours, self.num_classes, shape, max_bytes=2 * NEIGHBOUR_BYTES
                )
        return {key: classifier.to(self.network.device) for key, classifier in made.items()}

    def observe(
        self, split: Split, layer: str, inputs: Tensor, output: Tensor, targets: Tensor, num_classes: int
    ) -> None:
        if targets.is_floating_point() or targets.dim() != 1:
            raise UserError("RepresentationCollapse needs one integer class label a sample.")
        if split == "held_out" and (largest := int(targets.max())) >= num_classes:
            raise UserError(
                f"RepresentationCollapse: a held-out sample has label {largest}, but the training samples show "
                f"{num_classes} classes: take more train_samples, or give the data module `num_classes`."
            )
        for classifier in self._classifiers[layer].values():
            if split == "train":
                classifier.update_prototypes(output, targets)
            else:
                classifier.update(output, targets)

    def between_splits(self) -> None:
        for of_layer in self._classifiers.values():
            for classifier in of_layer.values():
                classifier.sync_prototypes()

    def measure(self) -> Iterable[tuple[str, str, float]]:
        for layer, of_layer in self._classifiers.items():
            for key, classifier in of_layer.items():
                yield layer, key, float(classifier.compute())
                if isinstance(classifier, CollapseClassifier):
                    yield layer, "balanced_error", float(classifier.compute_balanced())
