"""Whether the features of a class shrink to a point, and the classes to a simplex."""

import math
from collections.abc import Iterable, Sequence
from typing import final

from torch import nn

from lightning_depth.errors import UserError
from lightning_depth.measures import neural_collapse
from lightning_depth.probes import AbstractProbe, Key, Look, Schedule, Seen, Value
from lightning_depth.probes.calls import Call
from lightning_depth.probes.probe import TRAIN_SAMPLES


@final
class NeuralCollapse(AbstractProbe):
    """Neural collapse NC1 to NC4 (Papyan, Han and Donoho 2020) and class-distance normalised variance (CDNV).

    Of the inputs of the last linear layer, over a fixed choice of training samples; NC4 compares the decisions of the
    network on the samples that are evaluated with the nearest training class mean. For other layers, only what needs no
    classifier.

    All readings are 0 in full collapse (see `measures.neural_collapse`). Values that are not defined (identical class
    means) are left out with a warning.

    Args:
        every: look after every so many epochs, or `geometric`, or `last`.
        layers: shell patterns on module names, whose *inputs* are then the features; None: the last linear layer.
        train_samples: number of training samples that make the class means, a fixed choice.
        samples: number of evaluated samples for NC4; None: all.
        max_features: largest number of features for which NC1 is read: it takes that squared float64 numbers.
        name: what it is called in readings and logs; None: `neural_collapse`.
    """

    keys = (
        Key(
            "nc1",
            title="NC1: variability within classes",
            unit="tr(Σw Σb⁺) / C",
            definition="tr(Σ_W Σ_B⁺) / C of the inputs of the last linear layer, on training samples",
            source="Papyan, Han and Donoho 2020",
        ),
        Key(
            "nc2_equinorm",
            title="NC2: spread of class means' lengths",
            unit="std / mean",
            definition="std / mean of the lengths of the centred class means",
        ),
        Key(
            "nc2_equiangularity",
            title="NC2: spread of class means' cosines",
            unit="std",
            definition="std of their pairwise cosines",
        ),
        Key("nc2_maximal_angle", definition="mean of abs(cosine + 1/(C−1))"),
        Key(
            "nc3",
            title="NC3: classifier against class means",
            unit="squared distance",
            definition="‖W/‖W‖ − M/‖M‖‖² of classifier W and centred class means M",
        ),
        Key(
            "nc4_held_out",
            title="NC4: disagreement with the nearest class mean",
            unit="held-out samples (%)",
            factor=100.0,
            from_zero=True,
            definition="share of held-out samples that the network does not give to the nearest class mean",
        ),
        Key(
            "cdnv",
            title="CDNV: variance over class distance",
            unit="CDNV",
            definition="mean over pairs of classes of (Var_c + Var_c') / (2 ‖μ_c − μ_c'‖²)",
            source="Galanti, György and Hutter 2021",
        ),
    )
    cost = "0.3 s"

    def __init__(
        self,
        every: Schedule = 1,
        layers: list[str] | None = None,
        train_samples: int = TRAIN_SAMPLES,
        samples: int | None = None,
        max_features: int = 4096,
        name: str | None = None,
    ) -> None:
        super().__init__(every, layers, name)
        if train_samples < 2:
            raise UserError(f"NeuralCollapse: train_samples must be at least 2, not {train_samples}.")
        self.watch("val", samples)
        self.train_samples, self.max_features = train_samples, max_features
        self._metrics: dict[str, neural_collapse.NeuralCollapse] = {}

    def select(self, look: Look) -> Iterable[Call]:
        linear = [c for c in look.calls if isinstance(c.module, nn.Linear)]
        if not linear and self.layers is None:
            raise UserError("NeuralCollapse finds no linear layer: name a layer with layers=[...].")
        last = [c.name for c in linear][-1:]
        return self.watched(look, lambda call: call.name in last)

    def begin(self, look: Look, calls: Sequence[Call]) -> None:
        self._metrics = {call.name: self._metric(call, look.classes).to(look.device) for call in calls}

    def _metric(self, call: Call, classes: int) -> neural_collapse.NeuralCollapse:
        shape = call.input_shape or ()
        size = math.prod(shape)
        if size > self.max_features:
            self.say_once(f"no nc1 at {call.name}: it has {size} features, more than max_features={self.max_features}.")
        weight = call.module.weight if isinstance(call.module, nn.Linear) else None
        decides = weight is not None and tuple(weight.shape) == (classes, size)
        if weight is not None and not decides and self.layers is None:
            outputs = f"it has {len(weight)} outputs for {classes} classes"
            self.say_once(f"no nc3 and no nc4 at {call.name}: {outputs} among the training samples.")
        return neural_collapse.NeuralCollapse(
            classes, shape, weight if decides else None, nc1=size <= self.max_features, max_features=self.max_features
        )

    def observe(self, seen: Seen) -> None:
        if seen.targets.is_floating_point() or seen.targets.dim() != 1:
            raise UserError("NeuralCollapse needs one integer class label a sample.")
        metric = self._metrics[seen.call.name]
        if seen.split == "train":
            metric.update_prototypes(seen.inputs, seen.targets)
        elif metric.weight is not None:
            metric.update(seen.inputs, seen.output)

    def between_splits(self) -> None:
        for layer, metric in self._metrics.items():
            metric.sync_prototypes()
            if metric.classes_seen < metric.num_classes:
                seen = f"{metric.classes_seen} of {metric.num_classes}"
                self.say_once(f"{layer}: {seen} classes have training samples; it is about those.")

    def measure(self, look: Look) -> Iterable[Value]:
        for layer, metric in self._metrics.items():
            for key, value in metric.compute().items():
                if value.isfinite():
                    yield layer, key, float(value)
                else:
                    self.say_once(f"no {key} at {layer}: it is not defined, since class means are identical.")
