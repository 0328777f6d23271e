"""How much of the classes a simple vote can still read off each stage's representation."""

from collections.abc import Iterable, Sequence
from typing import Literal, final

from torch import Tensor

from lightning_depth.calls import INPUT, Call, stages
from lightning_depth.measures.collapse import CollapseClassifier
from lightning_depth.mistakes import Mistake
from lightning_depth.probes import AbstractProbe, Schedule
from lightning_depth.samples import Split


@final
class RepresentationCollapse(AbstractProbe):
    """The error of the correlation vote at the input and after each stage (zhang2019 3.4).

    Each validation sample x is given the class argmax_c mean_j corr(h(x), h(x_j)) 1[y_j = c], over training samples x_j
    and with h the representation at that stage. The error at the input is the baseline; chance means collapse.

    Reads `representation_collapse/<stage>/error` (share of validation samples, 0 to 1).

    Args:
        every: look after every so many epochs, or `geometric`, or `last`.
        layers: shell patterns on module names, whose outputs are then looked at; None: as `at` says.
        at: `stages` (the trunk's children) or `layers` (every module with a weight matrix or kernel).
        train_samples: number of training samples that vote, a fixed seeded choice.
        samples: number of held-out samples that are classified; None: all.
    """

    def __init__(
        self,
        every: Schedule = 1,
        layers: list[str] | None = None,
        at: Literal["stages", "layers"] = "stages",
        train_samples: int = 1000,
        samples: int | None = None,
    ) -> None:
        super().__init__(every, layers)
        if train_samples < 1:
            raise Mistake(f"RepresentationCollapse: train_samples must be at least 1, not {train_samples}.")
        self.at = at
        self.watch("held_out", samples)
        self.train_samples = train_samples
        self._classifiers: dict[str, CollapseClassifier] = {}

    def select(self, calls: Sequence[Call]) -> Iterable[Call]:
        trunk = stages(calls)

        def default(call: Call) -> bool:
            name = call.name.split("#")[0]
            if self.at == "stages":
                return name == INPUT or name in trunk
            return name == INPUT or any(p.dim() >= 2 for p in call.module.parameters(recurse=False))

        watched = self.watched(calls, default)
        self._classifiers = {
            call.name: CollapseClassifier(self.num_classes, call.output_shape or ()).to(self.network.device)
            for call in watched
        }
        return watched

    def observe(
        self, split: Split, layer: str, inputs: Tensor, output: Tensor, targets: Tensor, num_classes: int
    ) -> None:
        if targets.is_floating_point() or targets.dim() != 1:
            raise Mistake("RepresentationCollapse needs one integer class label a sample.")
        if split == "train":
            self._classifiers[layer].update_prototypes(output, targets)
        else:
            self._classifiers[layer].update(output, targets)

    def between_splits(self) -> None:
        for classifier in self._classifiers.values():
            classifier.sync_prototypes()

    def measure(self) -> Iterable[tuple[str, str, float]]:
        for layer, classifier in self._classifiers.items():
            yield layer, "error", float(classifier.compute())
