"""What optimisers without gradients share: they evaluate candidates, and the best one stays."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lightning_depth.errors import UserError

Redraw = Callable[[int], Sequence[Tensor]]
"""From the number of a draw (1, 2, ...) to new weights of the network, as it draws its initial ones."""


@runtime_checkable
class Redraws(Protocol):
    """An optimizer that draws: a family calls `begin` once, before the first step and before a state is loaded."""

    def begin(self, redraw: Redraw, run_seed: int) -> None:
        """Take the way to draw the network anew, and the run's seed, for an optimizer without one of its own."""


class AbstractDerivativeFree(torch.optim.Optimizer, ABC):
    """An optimizer whose step evaluates the closure's loss at candidate weights and keeps the best weights seen.

    In a step the closure is called at the weights as they are, at each candidate, and at last at the weights that are
    kept. Parameters need no gradient meanwhile, so the closure must not call `backward` on a loss without one (families
    of this package do not). BatchNorm's running statistics see every candidate. The losses of a step are compared with
    one another: they should be of the whole training set, in one batch.
    """

    redraw: Redraw | None = None

    def __init__(self, params: Any, seed: int | None = None) -> None:
        # Schedulers, loggers and the run's record want a rate.
        super().__init__(params, {"lr": 0.0})
        self.seed, self.run_seed = seed, 0
        self.weights: list[Tensor] = [p for group in self.param_groups for p in group["params"]]

    def begin(self, redraw: Redraw, run_seed: int) -> None:
        self.redraw, self.run_seed = redraw, run_seed

    @property
    def effective_seed(self) -> int:
        """The optimizer's own seed, or the run's; 0 where nobody calls `begin`."""
        return self.run_seed if self.seed is None else self.seed

    @abstractmethod
    def search(self, evaluate: Callable[[Sequence[Tensor]], float], loss: float) -> Iterable[Tensor]:
        """Evaluate candidates (tensors like `weights`), and return the best, or the weights as they are.

        `loss` is that of the weights as they are; a loss that is not a number comes as infinity.
        """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns the closure's loss before it."""
        if closure is None:
            raise UserError(f"{type(self).__name__} needs a closure that returns the loss.")

        def evaluate(candidate: Iterable[Tensor]) -> float:
            self._set(candidate)
            loss = float(closure())
            return loss if math.isfinite(loss) else math.inf

        for weight in self.weights:
            weight.requires_grad_(False)
        before = [weight.detach().clone() for weight in self.weights]
        try:
            first = closure()
            before = [tensor.clone() for tensor in self.search(evaluate, float(first))]
            # What is logged last is the loss of the weights that stay, not that of some candidate.
            evaluate(before)
        finally:
            self._set(before)
            for weight in self.weights:
                weight.requires_grad_(True)
        return first

    @torch.no_grad()
    def _set(self, candidate: Iterable[Tensor]) -> None:
        for weight, value in zip(self.weights, candidate, strict=True):
            weight.copy_(value)

    # torch would cast what lies in `self.state` to the parameters' precision.
    def state_dict(self) -> dict[str, Any]:
        """The state, of plain values and tensors."""
        return {**super().state_dict(), "search": self.search_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "search"})
        self.load_search_state(state_dict["search"])

    @abstractmethod
    def search_state(self) -> dict[str, Any]:
        """What the search needs to go on: plain values and tensors."""

    @abstractmethod
    def load_search_state(self, state: dict[str, Any]) -> None:
        """Go on from `search_state`."""
