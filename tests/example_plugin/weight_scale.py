"""A probe that lives outside lightning_depth."""

from collections.abc import Iterable

from torch import nn

from lightning_depth.probes import AbstractProbe, Key, Look, Value


class WeightScale(AbstractProbe):
    """The root mean square of every linear layer's weights."""

    keys = (
        Key(
            "rms",
            title="Scale of each layer's weights",
            title_one="Scale of the weights of {layer}",
            unit="rms",
            definition="root mean square of the weights of each linear layer",
        ),
    )
    cost = "0.01 s"

    def measure(self, look: Look) -> Iterable[Value]:
        for call in self.chosen(look, lambda call: isinstance(call.module, nn.Linear)):
            yield call.name, "rms", float(call.module.weight.square().mean().sqrt())
