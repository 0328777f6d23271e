"""The operator norm of every layer, as the layer is really applied."""

from collections.abc import Iterable, Sequence
from typing import Any, final

from torch import Tensor, nn

from lightning_depth.measures.lanczos import operator_norm
from lightning_depth.measures.operators import UnsupportedLayer, layer_operator
from lightning_depth.probes import AbstractProbe, Schedule
from lightning_depth.probes.calls import Call


@final
class OperatorNorm(AbstractProbe):
    """The largest singular value of the linear map of every convolution and linear layer.

    With the layer's real input size, padding, stride, dilation and groups (see `measures.lanczos.operator_norm`), by
    Lanczos iteration that starts from the vectors of the last look. The bias does not count.

    Reads `operator_norm/<layer>/norm` and `.../residual` (the relative residual of the singular pair).

    Args:
        every: look after every so many epochs, or `geometric`, or `last`.
        layers: shell patterns on module names; None: every layer with a weight matrix or kernel.
        rtol: relative error of the norm at which the iteration stops.
    """

    def __init__(self, every: Schedule = 1, layers: list[str] | None = None, rtol: float = 1e-4) -> None:
        super().__init__(every, layers)
        self.rtol = rtol
        self._selected: list[Call] = []
        self._starts: dict[str, Tensor] = {}

    def select(self, calls: Sequence[Call]) -> Iterable[Call]:
        self._selected = self.chosen(calls, _has_kernel)
        return []

    def measure(self) -> Iterable[tuple[str, str, float]]:
        for call in self._selected:
            try:
                operator = layer_operator(call.module, call.input_shape or ())
            except UnsupportedLayer as error:
                self.say_once(f"{call.name} is left out: {error}")
                continue
            except ValueError as error:
                raise ValueError(f"{call.name}: {error}") from error
            estimate = operator_norm(operator, start=self._starts.get(call.name), rtol=self.rtol)
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
