"""How much a network amplifies a small change of its input."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, final

import torch
from torch import Tensor

from lightning_depth.errors import UserError
from lightning_depth.measures.jacobians import jacobian_norm
from lightning_depth.probes import AbstractSampleProbe, Schedule
from lightning_depth.probes.calls import Call, outputs_of
from lightning_depth.probes.samples import Split

OUTPUT = "output"


@final
class JacobianNorm(AbstractSampleProbe):
    """The local operator norm: the largest singular value of the Jacobian with respect to the input, at samples.

    Of the network's output, or of each named layer's output, by Lanczos iteration on products with the Jacobian and its
    transpose (`measures.jacobians`), in evaluation mode, from the vectors of the last look.

    Reads `jacobian_norm/<layer>/mean` and `.../max` over the samples, and `.../residual`, the largest relative one.

    Args:
        every: look after every so many epochs, or `geometric`, or `last`.
        layers: shell patterns on module names, whose outputs are then looked at; None: the network's output.
        split: `held_out` or `train`.
        samples: at how many inputs; a look costs about 10 to 30 forward and backward passes of them for each layer.
        rtol: relative error of the norms at which the iteration stops.
    """

    def __init__(
        self,
        every: Schedule = 1,
        layers: list[str] | None = None,
        split: Split = "held_out",
        samples: int = 32,
        rtol: float = 1e-3,
    ) -> None:
        super().__init__(every, layers, split, samples)
        self.rtol = rtol
        self._selected: list[str] = []
        self._starts: dict[str, Tensor] = {}

    def select(self, calls: Sequence[Call]) -> Iterable[Call]:
        whole = self.layers is None
        self._selected = [OUTPUT] if whole else [call.name for call in self.watched(calls, lambda call: False)]
        return []

    def look(self, inputs: Tensor, targets: Tensor) -> Iterable[tuple[str, str, float]]:
        if not self.is_real("inputs", inputs):
            return
        for layer in self._selected:
            start = self._starts.get(layer)
            if start is not None:
                start = start.to(inputs) if start.shape == inputs.shape else None
            try:
                found = jacobian_norm(self.output_of(layer), inputs, rtol=self.rtol, start=start)
            except ValueError as error:
                raise ValueError(f"{layer}: {error}") from error
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                said = " ".join(str(error).split())[:150]
                raise UserError(
                    f"JacobianNorm: {layer} has no derivative in forward mode, nor a second one: {said}"
                ) from error
            self._starts[layer] = found.vectors.cpu()
            yield layer, "mean", float(found.values.mean())
            yield layer, "max", float(found.values.max())
            yield layer, "residual", float(found.residuals.max())

    def output_of(self, layer: str) -> Callable[[Tensor], Tensor]:
        """The map from the network's input to what `layer` returns."""
        if layer == OUTPUT:
            return self.network
        return lambda x: outputs_of(self.network, [layer], x)[layer]

    def state_dict(self) -> dict[str, Any]:
        """Where the iterations start, so that a resumed run reads what an uninterrupted one does."""
        return {"starts": self._starts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._starts = state_dict["starts"]
