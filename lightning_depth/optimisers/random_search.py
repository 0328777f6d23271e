"""Random search: draw the network again and again, and keep the best one (huh2021 3.2)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_depth.errors import UserError
from lightning_depth.optimisers.derivative_free import AbstractDerivativeFree
from lightning_depth.seeds import generator


class RandomSearch(AbstractDerivativeFree):
    """Draws initial weights `samples` times a step and keeps those with the lowest loss.

    huh2021 Fig. 4 draws 100,000 and does not claim zero training error: in 32 dimensions it never fits.

    The network is drawn anew by `redraw`, which a family gives to `begin`. Without it each tensor is drawn as
    independent normal numbers with the mean and the standard deviation of its own entries. Raises a UserError where
    `samples` is below 1.

    Args:
        params: of the network.
        samples: draws in each step.
        seed: None: that of the run.
    """

    def __init__(self, params: Any, samples: int = 100, seed: int | None = None) -> None:
        if samples < 1:
            raise UserError(f"RandomSearch draws at least 1 sample a step, not {samples}.")
        super().__init__(params, seed)
        self.samples, self.drawn = samples, 0
        self._moments = [(float(w.detach().mean()), float(w.detach().std(correction=0))) for w in self.weights]

    def search(self, evaluate: Callable[[Sequence[Tensor]], float], loss: float) -> list[Tensor]:
        best = [weight.detach().clone() for weight in self.weights]
        for _ in range(self.samples):
            self.drawn += 1
            candidate = self._normal(self.drawn) if self.redraw is None else list(self.redraw(self.drawn))
            found = evaluate(candidate)
            if not loss <= found:
                best, loss = candidate, found
        return best

    def _normal(self, number: int) -> list[Tensor]:
        stream = generator(self.effective_seed, "random_search", number)
        drawn = [torch.randn(weight.shape, generator=stream) for weight in self.weights]
        return [d * std + mean for d, (mean, std) in zip(drawn, self._moments, strict=True)]

    def search_state(self) -> dict[str, Any]:
        """How many were drawn, and the moments of the first weights."""
        return {"drawn": self.drawn, "moments": self._moments}

    def load_search_state(self, state: dict[str, Any]) -> None:
        """Go on after the last draw."""
        self.drawn, self._moments = state["drawn"], state["moments"]
