"""How much a network amplifies a small change of its input."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from lightning_depth.errors import UserError
from lightning_depth.measures.jacobians import jacobian_norm
from lightning_depth.probes import AbstractSampleProbe, Key, Look, Schedule, Split, Value
from lightning_depth.probes.calls import Call, outputs_of


@final
class JacobianNorm(AbstractSampleProbe):
    """The local operator norm: the largest singular value of the Jacobian with respect to the input, at samples.

    Of the network's output, or of each named layer's, in evaluation mode (`measures.jacobians`), by an iteration that
    starts from the vectors of the last look.

    Args:
        every: look after every so many epochs, or `geometric`, or `last`.
        layers: shell patterns on module names, whose outputs are then looked at; None: the network's output.
        split: `val` or `train`.
        samples: at how many inputs; a look costs about 10 to 30 forward and backward passes of them for each layer.
        rtol: relative error of the norms at which the iteration stops.
        name: what it is called in readings and logs; None: `jacobian_norm`.
    """

    keys = (
        Key(
            "mean",
            title="Jacobian norm of each layer's output, mean over samples",
            title_one="Jacobian norm of {layer}: mean",
            unit="largest singular value",
            definition="mean over samples of the largest σ of the Jacobian of the network's (or a layer's) output in "
            "its input; Lanczos on jvp and vjp, exact up to 16 outputs",
            source="nichani2020 4, locally",
        ),
        Key(
            "max",
            title="Jacobian norm of each layer's output, largest of the samples",
            title_one="Jacobian norm of {layer}: largest",
            unit="largest singular value",
            definition="the largest of them",
        ),
        Key("residual", definition="the largest relative residual of the iterations"),
    )
    cost = "0.3 s"

    def __init__(
        self,
        every: Schedule = 1,
        layers: list[str] | None = None,
        split: Split = "val",
        samples: int = 32,
        rtol: float = 1e-3,
        name: str | None = None,
    ) -> None:
        super().__init__(every, layers, name, split, samples)
        self.rtol = rtol
        self._starts: dict[str, Tensor] = {}

    def measure(self, look: Look) -> Iterable[Value]:
        def output(x: Tensor, call: Call) -> Tensor:
            return outputs_of(look.network, [call], x)[call.name]

        functions: dict[str, Callable[[Tensor], Tensor]] = {"": look.network}
        if self.layers is not None:
            functions = {c.name: partial(output, call=c) for c in self.watched(look, lambda call: False)}
        inputs, _ = self.fixed_samples(look)
        if not self.is_real("inputs", inputs):
            return
        for layer, function in functions.items():
            start = self._starts.get(layer)
            if start is not None:
                start = start.to(inputs) if start.shape == inputs.shape else None
            try:
                found = jacobian_norm(function, inputs, rtol=self.rtol, start=start)
            except ValueError as error:
                raise ValueError(f"{layer or 'output'}: {error}") from error
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                lacks = f"{layer or 'output'} has no derivative in forward mode, nor a second one"
                raise UserError(f"JacobianNorm: {lacks}: {' '.join(str(error).split())[:150]}") from error
            self._starts[layer] = found.vectors.cpu()
            yield layer, "mean", float(found.values.mean())
            yield layer, "max", float(found.values.max())
            yield layer, "residual", float(found.residuals.max())

    def state_dict(self) -> dict[str, Any]:
        """Where the iterations start, so that a resumed run reads what an uninterrupted one does."""
        return {"starts": self._starts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._starts = state_dict["starts"]
