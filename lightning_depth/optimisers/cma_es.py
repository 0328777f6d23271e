"""CMA-ES, an evolution strategy, over the package `cma` of its author (Hansen et al. 2003; huh2021 3.2)."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from lightning_depth.errors import UserError
from lightning_depth.optimisers.derivative_free import AbstractDerivativeFree
from lightning_depth.seeds import derive

LARGEST_COVARIANCE = 10_000


class CMAES(AbstractDerivativeFree):
    """Covariance matrix adaptation: candidates are normal around a mean; both learn from which candidates are better.

    The network keeps the best candidate so far. What is recorded as the learning rate is the step size sigma. For n
    weights a generation costs O(n^2) a candidate and every few generations O(n^3): seconds at n = 2,000.

    Its own criteria for stopping (such as a loss that no longer changes) are not followed: the run's are. A resumed run
    goes on exactly: the generations so far are played again from their recorded losses, without evaluating anything.
    Raises a UserError where a number is out of its range, there is one weight only, or too many for their covariance
    matrix.

    Args:
        params: of the network; the search starts there.
        sigma0: initial standard deviation of each weight: about a third of how far off the solution is.
        population: candidates in each generation; None: 4 + 3 ln n, rounded down.
        generations: in each step.
        diagonal: learn variances alone: O(n) memory and time.
        seed: None: that of the run.
    """

    def __init__(
        self,
        params: Any,
        sigma0: float = 0.1,
        population: int | None = None,
        generations: int = 1,
        diagonal: bool = False,
        seed: int | None = None,
    ) -> None:
        if not sigma0 > 0 or generations < 1 or (population is not None and population < 2):
            given = f"{sigma0=}, {generations=}, {population=}"
            raise UserError(f"CMAES needs sigma0 > 0, generations >= 1 and population >= 2, not {given}.")
        super().__init__(params, seed)
        self.sigma0, self.population, self.generations, self.diagonal = sigma0, population, generations, diagonal
        n = sum(weight.numel() for weight in self.weights)
        if n < 2:
            raise UserError("CMAES needs at least 2 weights to search for.")
        if n > LARGEST_COVARIANCE and not diagonal:
            size, limit = f"{8 * n**2 / 2**30:,.0f} GiB", f"the limit without it is {LARGEST_COVARIANCE:,} weights"
            advice = f"diagonal: true learns variances alone; {limit}"
            raise UserError(f"CMAES over {n:,} weights would hold matrices of {size}: {advice}.")
        self._strategy: Any = None
        self._start: Tensor | None = None
        self._losses: list[Tensor] = []

    def _start_at(self, start: Tensor) -> None:
        import cma  # 0.5 s that no other run should pay

        # cma would seed numpy's global generator.
        random = np.random.RandomState(derive(self.effective_seed, "cma_es") % 2**32)
        options = {"verbose": -9, "verb_log": 0, "seed": np.nan, "randn": random.randn, "CMA_diagonal": self.diagonal}
        if self.population is not None:
            options["popsize"] = self.population
        self._start, self._losses = start, []
        self._strategy = cma.CMAEvolutionStrategy(start.numpy(), self.sigma0, options)

    def _candidate(self, point: Any) -> list[Tensor]:
        flat = torch.from_numpy(np.asarray(point))
        sizes = [weight.numel() for weight in self.weights]
        return [part.view(w.shape) for part, w in zip(torch.split(flat, sizes), self.weights, strict=True)]

    def search(self, evaluate: Callable[[Sequence[Tensor]], float], loss: float) -> list[Tensor]:
        """`generations` times: ask for candidates, evaluate them, tell their losses."""
        if self._strategy is None:
            self._start_at(parameters_to_vector(self.weights).detach().double().cpu())
        best = [weight.detach().clone() for weight in self.weights]
        for _ in range(self.generations):
            points = self._strategy.ask()
            losses = []
            for point in points:
                candidate = self._candidate(point)
                losses.append(min(evaluate(candidate), sys.float_info.max))
                if not loss <= losses[-1]:
                    best, loss = candidate, losses[-1]
            self._strategy.tell(points, losses)
            self._losses.append(torch.tensor(losses, dtype=torch.float64))
        for group in self.param_groups:
            group["lr"] = float(self._strategy.sigma)
        return best

    def search_state(self) -> dict[str, Any]:
        """Where the search began, and the losses of all its candidates."""
        return {"start": self._start, "losses": list(self._losses)}

    def load_search_state(self, state: dict[str, Any]) -> None:
        """Play the generations again; their candidates are functions of the seed."""
        self._strategy = None
        if state["start"] is None:
            return
        self._start_at(state["start"].cpu())
        for losses in state["losses"]:
            self._strategy.tell(self._strategy.ask(), losses.tolist())
            self._losses.append(losses.cpu())
