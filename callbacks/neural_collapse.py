"""Whether the features of a class shrink to a point, and the classes to a simplex."""

import math
from collections.abc import Iterable, Sequence
from typing import final

from torch import Tensor, nn

from lightning_depth.errors import UserError
from lightning_depth.measures import neural_collapse
from lightning_depth.probes.calls import Call
from lightning_depth.probes.probe import TRAIN_SAMPLES, AbstractProbe, Schedule
from lightning_depth.probes.samples import Split


@final
class NeuralCollapse(AbstractProbe):
    """Neural collapse NC1 to NC4 (Papyan, Han and Donoho 2020) and class-distance normalised variance (CDNV).

    Of the inputs of the last linear layer, over a fixed choice of training samples; NC4 compares the decisions of the
    network on the held-out split with the nearest training class mean. For other layers, only what needs no classifier.

    Reads for each layer `nc1`, `nc2_equinorm`, `nc2_equiangularity`, `nc2_maximal_angle`, `nc3`, `nc4_held_out` and
    `cdnv`; all are 0 in full collapse. Definitions: `measures.neural_collapse.NeuralCollapse`. Values that are not
    defined (identical class means) are left out with a warning.

    Args:
        every: look after every so many epochs, or `geometric`, or `last`.
        layers: shell patterns on module names, whose *inputs* are then the features; None: the last linear layer.
        train_samples: number of training samples that make the class means, a fixed choice.
        samples: number of held-out samples for NC4; None: all.
        max_features: largest number of features for which NC1 is read: it takes that squared float64 numbers.
    """

    def __init__(
        self,
        every: Schedule = 1,
        layers: list[str] | None = None,
        train_samples: int = TRAIN_SAMPLES,
        samples: int | None = None,
        max_features: int = 4096,
    ) -> None:
        super().__init__(every, layers)
        if train_samples < 2:
            raise UserError(f"NeuralCollapse: train_samples must be at least 2, not {train_samples}.")
        self.watch("held_out", samples)
        self.train_samples = train_samples
        self.max_features = max_features
        self._metrics: dict[str, neural_collapse.NeuralCollapse] = {}

    def select(self, calls: Sequence[Call]) -> Iterable[Call]:
        linear = [c for c in calls if isinstance(c.module, nn.Linear)]
        if not linear and self.layers is None:
            raise UserError("NeuralCollapse finds no linear layer: name a layer with layers=[...].")
        last = [c.name for c in linear][-1:]
        watched = self.watched(calls, lambda call: call.name in last)
        self._metrics = {call.name: self._metric(call) for call in watched}
        return watched

    def _metric(self, call: Call) -> neural_collapse.NeuralCollapse:
        shape = call.input_shape or ()
        size = math.prod(shape)
        if size > self.max_features:
            self.say_once(f"no nc1 at {call.name}: it has {size} features, more than max_features={self.max_features}.")
        weight = call.module.weight if isinstance(call.module, nn.Linear) else None
        decides = weight is not None and tuple(weight.shape) == (self.num_classes, size)
        if weight is not None and not decides and self.layers is None:
            outputs = f"it has {len(weight)} outputs for {self.num_classes} classes"
            self.say_once(f"no nc3 and no nc4 at {call.name}: {outputs} among the training samples.")
        metric = neural_collapse.NeuralCollapse(
            self.num_classes,
            shape,
            weight if decides else None,
            nc1=size <= self.max_features,
            max_features=self.max_features,
        )
        return metric.to(self.network.device)

    def observe(
        self, split: Split, layer: str, inputs: Tensor, output: Tensor, targets: Tensor, num_classes: int
    ) -> None:
        if targets.is_floating_point() or targets.dim() != 1:
            raise UserError("NeuralCollapse needs one integer class label a sample.")
        if split == "train":
            self._metrics[layer].update_prototypes(inputs, targets)
        elif self._metrics[layer].weight is not None:
            self._metrics[layer].update(inputs, output)

    def between_splits(self) -> None:
        for layer, metric in self._metrics.items():
            metric.sync_prototypes()
            if metric.classes_seen < self.num_classes:
                self.say_once(
                    f"{layer}: {metric.classes_seen} of {self.num_classes} classes have training samples; it is about "
                    "those."
                )

    def measure(self) -> Iterable[tuple[str, str, float]]:
        for layer, metric in self._metrics.items():
            for key, value in metric.compute().items():
                if value.isfinite():
                    yield layer, key, float(value)
                else:
                    self.say_once(f"no {key} at {layer}: it is not defined, since class means are identical.")
