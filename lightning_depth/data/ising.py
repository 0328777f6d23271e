"""Spin configurations of the one-dimensional Ising model, to be told apart by temperature (mori2020 Appendix C)."""

from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_depth.data.base.tensors import ROWS, AbstractTensorData
from lightning_depth.errors import UserError
from lightning_depth.results import Split


def sample_ising(betas: Float[Tensor, " n"], sites: int, stream: torch.Generator) -> Float[Tensor, "n sites"]:
    """One exact sample of the Ising ring at each inverse temperature: spins -1 and +1.

    P(s) is proportional to exp(-beta H(s)), H = sum_i s_i s_{i+1} with s_{d+1} = s_1 (mori2020 Equations 18 and 19 as
    printed: neighbours differ where beta > 0; a negative beta is the ferromagnet). The bonds s_i s_{i+1} are drawn
    independently, again until their product is +1 as on any ring (at most twice on average), and multiplied up.
    An odd ring is a `UserError`, here and in the functions below.
    """
    _check_even(sites)
    # P(s s' = +1) = e^{-beta} / (2 cosh beta)
    equal = torch.sigmoid(-2 * betas.double()).float()[:, None]
    differ = torch.zeros(len(betas), sites, dtype=torch.bool)
    left = torch.arange(len(betas))
    while len(left):
        differ[left] = torch.rand(len(left), sites, generator=stream) >= equal[left]
        left = left[differ[left].sum(dim=1) % 2 == 1]
    first = torch.randint(2, (len(betas), 1), generator=stream)
    # s_{j+1} = s_j (s_j s_{j+1})
    down = torch.cat([first, differ[:, :-1].long()], dim=1).cumsum(dim=1) % 2
    return (1 - 2 * down).float()


def energy_log_probabilities(
    sites: int, betas: Sequence[float]
) -> tuple[Float[Tensor, " m"], Float[Tensor, "betas m"]]:
    """The energies an even ring can have, ascending, and the log probability of each at each beta; float64, exact.

    Of the d bonds an even number 2 j are -1, so H = d - 4 j, in 2 (d choose 2 j) configurations.

    >>> energies, logs = energy_log_probabilities(4, [0.0])
    >>> energies.tolist(), [round(p, 3) for p in logs.exp()[0].tolist()]
    ([-4.0, 0.0, 4.0], [0.125, 0.75, 0.125])
    """
    _check_even(sites)
    d = torch.tensor(sites, dtype=torch.float64)
    unlike = torch.arange(sites, -1, -2, dtype=torch.float64)
    energies = d - 2 * unlike
    ways = torch.lgamma(d + 1) - torch.lgamma(unlike + 1) - torch.lgamma(d - unlike + 1)
    # P(H) = (d choose j) e^{-beta H} / Z
    weights = ways - torch.tensor(betas, dtype=torch.float64)[:, None] * energies
    return energies, weights - weights.logsumexp(dim=1, keepdim=True)


def bayes_error(sites: int, betas: Sequence[float]) -> float:
    """The smallest possible error in telling from a configuration which of equally likely betas it was drawn at.

    The energy says all that there is to know (mori2020 Appendix C), so 1 - (1/K) sum_H max_k P_k(H), exactly.

    >>> round(bayes_error(10, [0.2, 0.2]), 4), round(bayes_error(500, [0.1, 0.3]), 4)
    (0.5, 0.0141)
    """
    chances = energy_log_probabilities(sites, betas)[1].exp()
    # Summed as what is lost at each energy: a small error keeps its digits.
    return float(chances.sort(dim=0).values[:-1].sum() / len(betas))


@final
class Ising(AbstractTensorData):
    """Which inverse temperature was it? Configurations of the Ising ring, +-1 (d,), each class one beta (mori2020 C).

    The relevant feature is the energy, a 2-global quantity. The classes are equally likely; `bayes_error(sites, betas)`
    is the error of the best classifier. The paper samples by Markov chains, here samples are exact and independent
    (`sample_ising`). The Hamiltonian has the antiferromagnet's sign; on an even ring, flipping every other spin makes
    it the ferromagnet, so for a fully connected network nothing changes. Raises a UserError where the ring is odd (it
    could not satisfy all its bonds, and the two signs of H would differ), or there are fewer than two betas.

    Args:
        sites: d, even. The paper has 500.
        betas: the inverse temperatures of the classes, in units of the coupling. None: the paper's 0.1 and 0.3.
        tensors: the arguments of `AbstractTensorData`. The paper has batches of 50 and 100,000 test samples.
    """

    def __init__(self, sites: int = 500, betas: list[float] | None = None, **tensors: Any) -> None:
        super().__init__(**tensors)
        _check_even(sites)
        self.sites, self.betas = sites, [0.1, 0.3] if betas is None else betas
        self.label_count = len(self.betas)
        if len(set(self.betas)) < 2:
            raise UserError(f"{betas=}: give at least two different inverse temperatures to be told apart.")

    def make(self, split: Split, samples: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        spins, labels = torch.empty(samples, self.sites), torch.empty(samples, dtype=torch.int64)
        betas = torch.tensor(self.betas)
        for start in range(0, samples, ROWS):  # whole blocks: a larger set begins with the smaller one
            drawn = torch.randint(len(betas), (ROWS,), generator=stream)
            here = slice(start, start + ROWS)
            spins[here] = sample_ising(betas[drawn], self.sites, stream)[: samples - start]
            labels[here] = drawn[: samples - start]
        return spins, labels


def _check_even(sites: int) -> None:
    if sites < 2 or sites % 2:
        why = "On an odd ring not all neighbours can differ, and the sign of the Hamiltonian matters."
        raise UserError(f"{sites=}: the ring must have an even number of spins, 2 or more.\n{why}")
