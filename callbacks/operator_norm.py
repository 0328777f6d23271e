"""The operator norm of every layer, as the layer is really applied."""

from collections.abc import Iterable
from typing import Any, final

from torch import Tensor, nn

from lightning_depth.measures.lanczos import operator_norm
from lightning_depth.measures.operators import UnsupportedLayer, layer_operator
from lightning_depth.probes import AbstractProbe, Key, Look, Schedule, Value
from lightning_depth.probes.calls import Call


@final
class OperatorNorm(AbstractProbe):
    """The largest singular value of the linear map of every convolution and linear layer.

    With the layer's real input size, padding, stride, dilation and groups (see `measures.lanczos.operator_norm`), by
    Lanczos iteration that starts from the vectors of the last look. The bias does not count.

    Args:
        every: look after every so many epochs, or `geometric`, or `last`.
        layers: shell patterns on module names; None: every layer with a weight matrix or kernel.
        rtol: relative error of the norm at which the iteration stops.
        name: what it is called in readings and logs; None: `operator_norm`.
    """

    keys = (
        Key(
            "norm",
            title="Operator norm of each layer (largest singular value)",
            title_one="Operator norm of {layer} (largest singular value)",
            unit="largest singular value",
            definition="largest σ of the layer's linear map, bias aside, with its real input size, padding, stride, "
            "dilation and groups; Lanczos to `rtol` 1e-4, exact where the smaller side has at most 256 entries",
            source="nichani2020 4; Golub and Kahan 1965",
        ),
        Key(
            "residual",
            definition="‖Aᵀu − σv‖ / σ where the iteration stopped (Av = σu): some singular value lies within half "
            "of it",
        ),
    )
    cost = "0.3 s"

    def __init__(
        self, every: Schedule = 1, layers: list[str] | None = None, rtol: float = 1e-4, name: str | None = None
    ) -> None:
        super().__init__(every, layers, name)
        self.rtol = rtol
        self._starts: dict[str, Tensor] = {}

    def measure(self, look: Look) -> Iterable[Value]:
        for call in self.chosen(look, _has_kernel):
            try:
                operator = layer_operator(call.module, call.input_shape or ())
            except UnsupportedLayer as error:
                self.say_once(f"{call.name} is left out: {error}")
                continue
            except ValueError as error:
                raise ValueError(f"{call.name}: {error}") from error
            start = self._starts.get(call.name)
            if start is not None and start.shape != operator.input_shape:
                start = None  # of images of another size
            estimate = operator_norm(operator, start=start, rtol=self.rtol)
            self._starts[call.name] = estimate.start
            yield call.name, "norm", estimate.value
            yield call.name, "residual", estimate.residual

    def state_dict(self) -> dict[str, Any]:
        """Where the iterations start, so that a resumed run reads what an uninterrupted one does."""
        return {"starts": self._starts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._starts = state_dict["starts"]


def _has_kernel(call: Call) -> bool:
    if isinstance(call.module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return True  # also where a parametrisation owns the weight
    own = {name for name, p in call.module.named_parameters(recurse=False) if p.dim() >= 2}
    is_leaf = next(call.module.children(), None) is None  # others hold tokens and embeddings, which are no maps
    return bool(own if is_leaf else own & {"weight", "in_proj_weight"})
