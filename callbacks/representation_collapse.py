"""How much of the classes a simple vote can still read off each stage's representation."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal, final

from lightning_depth.errors import UserError
from lightning_depth.measures.collapse import CollapseClassifier
from lightning_depth.measures.neighbours import NearestMeanClassifier, NearestNeighbours
from lightning_depth.probes import AbstractProbe, Key, Look, Schedule, Seen, Value
from lightning_depth.probes.calls import INPUT, Call, stages

Classifier = CollapseClassifier | NearestMeanClassifier | NearestNeighbours
# The training representations of a layer that are kept for its nearest neighbours, in float32.
NEIGHBOUR_BYTES = 256 * 2**20


@final
class RepresentationCollapse(AbstractProbe):
    """The error of the correlation vote at the input and after each stage (zhang2019 3.4).

    Each evaluated sample x is given the class argmax_c mean_j corr(h(x), h(x_j)) 1[y_j = c], over training samples x_j
    and with h the representation at that stage. The error at the input is the baseline; chance means collapse.

    Args:
        every: look after every so many epochs, or `geometric`, or `last`.
        layers: shell patterns on module names, whose outputs are then looked at; None: as `at` says.
        at: `stages` (the trunk's children) or `layers` (every module with a weight matrix or kernel).
        train_samples: number of training samples that vote, a fixed seeded choice.
        samples: number of evaluated samples that are classified; None: all.
        nearest_mean: whether to classify by the nearest class mean, too.
        neighbours: classify by so many nearest neighbours, too; it keeps the training representations, and a stage
            where these exceed 256 MiB is left out with a warning.
        name: what it is called in readings and logs; None: `representation_collapse`.
    """

    keys = (
        Key(
            "error",
            title="Collapse: error of the correlation vote at each stage (%)",
            title_one="Collapse: error of the correlation vote at {layer} (%)",
            unit="error (%)",
            factor=100.0,
            from_zero=True,
            chance="classes",
            definition="share of held-out x for which argmax_c mean_j corr(h(x), h(x_j)) 1[y_j = c] is wrong; votes "
            "from `train_samples` (1,000) training samples; ties count as their expected error",
            source="zhang2019 3.4",
        ),
        Key(
            "balanced_error",
            definition="the same, votes divided by the number of voters of their class in place of all",
        ),
        Key("nearest_mean_error", definition="on request: error of the nearest class mean, Euclidean"),
        Key("neighbours_error", definition="on request: error of k nearest neighbours by cosine"),
    )
    cost = "1.4 s"

    def __init__(
        self,
        every: Schedule = 1,
        layers: list[str] | None = None,
        at: Literal["stages", "layers"] = "stages",
        train_samples: int = 1000,
        samples: int | None = None,
        nearest_mean: bool = False,
        neighbours: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(every, layers, name)
        if train_samples < 1:
            raise UserError(f"RepresentationCollapse: train_samples must be at least 1, not {train_samples}.")
        if neighbours is not None and not 1 <= neighbours <= train_samples:
            raise UserError(f"RepresentationCollapse: neighbours must be 1 to train_samples, not {neighbours}.")
        self.watch("val", samples)
        self.at, self.train_samples = at, train_samples
        self.nearest_mean, self.neighbours = nearest_mean, neighbours
        self._classifiers: dict[str, dict[str, Classifier]] = {}

    def select(self, look: Look) -> Iterable[Call]:
        trunk = stages(look.calls)

        def default(call: Call) -> bool:
            if call.module_name == INPUT or self.at == "stages":
                return call.module_name in (INPUT, *trunk)
            return any(p.dim() >= 2 for p in call.module.parameters(recurse=False))

        return self.watched(look, default)

    def begin(self, look: Look, calls: Sequence[Call]) -> None:
        self._classifiers = {call.name: self._classifiers_of(call, look) for call in calls}

    def _classifiers_of(self, call: Call, look: Look) -> dict[str, Classifier]:
        """By the key of their reading."""
        shape = call.output_shape or ()
        made: dict[str, Classifier] = {"error": CollapseClassifier(look.classes, shape)}
        if self.nearest_mean:
            made["nearest_mean_error"] = NearestMeanClassifier(look.classes, shape)
        if self.neighbours is not None:
            if self.train_samples * math.prod(shape) * 4 > NEIGHBOUR_BYTES:
                self.say_once(f"no neighbours at {call.name}: its training representations exceed 256 MiB.")
            else:
                most = 2 * NEIGHBOUR_BYTES
                made["neighbours_error"] = NearestNeighbours(self.neighbours, look.classes, shape, max_bytes=most)
        return {key: classifier.to(look.device) for key, classifier in made.items()}

    def observe(self, seen: Seen) -> None:
        if seen.targets.is_floating_point() or seen.targets.dim() != 1:
            raise UserError("RepresentationCollapse needs one integer class label a sample.")
        for classifier in self._classifiers[seen.call.name].values():
            if seen.split == "train":
                classifier.update_prototypes(seen.output, seen.targets)
                continue
            if (largest := int(seen.targets.max())) >= classifier.num_classes:
                few = f"the training samples show {classifier.num_classes} classes"
                advice = "take more train_samples, or give the data module `num_classes`"
                raise UserError(f"RepresentationCollapse: a held-out sample has label {largest}, but {few}: {advice}.")
            classifier.update(seen.output, seen.targets)

    def between_splits(self) -> None:
        for of_layer in self._classifiers.values():
            for classifier in of_layer.values():
                classifier.sync_prototypes()

    def measure(self, look: Look) -> Iterable[Value]:
        for layer, of_layer in self._classifiers.items():
            for key, classifier in of_layer.items():
                yield layer, key, float(classifier.compute())
                if isinstance(classifier, CollapseClassifier):
                    yield layer, "balanced_error", float(classifier.compute_balanced())
