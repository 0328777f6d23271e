"""Spin chains against all their configurations and against the transfer matrix."""

import itertools
import math

import pytest
import torch

from lightning_depth.data.ising import Ising, bayes_error, energy_log_probabilities, sample_ising
from lightning_depth.errors import UserError
from tests.data.small import stream


def ising_energy(spins):
    """H = sum_i s_i s_{i+1} on a ring (mori2020 Equation 19)."""
    return (spins * spins.roll(-1, dims=1)).sum(dim=1)


def bayes_labels(spins, betas):
    """The most likely of equally likely betas for each configuration, by its energy: `bayes_error` is its error."""
    sites = spins.shape[1]
    chances = energy_log_probabilities(sites, betas)[1]
    return chances.argmax(dim=0)[((ising_energy(spins) + sites) / 4).long()]


def test_the_energy_of_a_ring():
    assert ising_energy(torch.tensor([[1.0, 1.0, 1.0, -1.0]])).tolist() == [0.0]


def configurations(sites):
    return torch.tensor(list(itertools.product([-1.0, 1.0], repeat=sites)))


@pytest.mark.parametrize(("sites", "beta"), [(2, 0.4), (4, 0.7), (6, -0.5), (8, 0.1)])
def test_energy_distribution_is_that_of_all_configurations(sites, beta):
    every = configurations(sites)
    energy = ising_energy(every)
    weights = torch.softmax(-beta * energy.double(), 0)
    energies, logs = energy_log_probabilities(sites, [beta])
    for value, log in zip(energies, logs[0], strict=True):
        assert float(log.exp()) == pytest.approx(float(weights[energy == value].sum()))


@pytest.mark.parametrize("beta", [0.6, -0.6, 0.0])
def test_samples_have_the_gibbs_distribution(beta):
    n, sites = 40_000, 4
    spins = sample_ising(torch.full((n,), beta), sites, stream())
    numbers = ((spins > 0).long() * 2 ** torch.arange(sites - 1, -1, -1)).sum(1)
    counts = torch.bincount(numbers, minlength=2**sites).double()
    expected = n * torch.softmax(-beta * ising_energy(configurations(sites)).double(), 0)
    chi_squared = ((counts - expected).square() / expected).sum()
    assert chi_squared < 37.7  # 15 degrees of freedom: exceeded once in 1,000 seeds


@pytest.mark.parametrize("beta", [0.1, 0.3, -0.8, 1.5])
def test_samples_have_the_transfer_matrix_s_moments(beta):
    n, d = 4000, 30
    spins = sample_ising(torch.full((n,), beta), d, stream()).double()
    assert spins.abs().eq(1).all()
    # Z = (2 cosh b)^d + (-2 sinh b)^d, and <s_0 s_r> = (t^r + t^(d - r)) / (1 + t^d) with t = -tanh b
    t = -math.tanh(beta)
    for r in (1, 2, 7):
        products = (spins * spins.roll(-r, 1)).mean(1)
        exact = (t**r + t ** (d - r)) / (1 + t**d)
        assert abs(float(products.mean()) - exact) < 4 * float(products.std()) / math.sqrt(n)
    energy = ising_energy(spins)
    exact = d * (t + t ** (d - 1)) / (1 + t**d)
    assert abs(float(energy.mean()) - exact) < 4 * float(energy.std()) / math.sqrt(n)
    energies, logs = energy_log_probabilities(d, [beta])
    mean, square = (float((logs[0].exp() * energies**k).sum()) for k in (1, 2))
    assert mean == pytest.approx(exact)
    assert float(energy.var()) == pytest.approx(square - mean**2, rel=0.12)
    assert spins.mean(0).abs().max() < 4.5 / math.sqrt(n)


@pytest.mark.parametrize(("sites", "betas"), [(4, [0.1, 0.9]), (8, [-0.3, 0.2]), (6, [0.0, 0.5, 1.0])])
def test_bayes_error_is_that_of_the_best_labelling_of_all_configurations(sites, betas):
    energy = ising_energy(configurations(sites)).double()
    chances = torch.stack([torch.softmax(-beta * energy, 0) for beta in betas])
    assert bayes_error(sites, betas) == pytest.approx(1 - float(chances.max(0).values.sum()) / len(betas))
    best = bayes_labels(configurations(sites), betas)
    reached = chances[best, torch.arange(len(best))].sum() / len(betas)
    assert 1 - float(reached) == pytest.approx(bayes_error(sites, betas))


def test_the_best_classifier_makes_the_bayes_error():
    data = Ising(sites=40, betas=[0.1, 0.5], train_samples=20_000)
    x, y = data.split("train")
    error = float((bayes_labels(x, data.betas) != y).double().mean())
    exact = bayes_error(40, data.betas)
    assert abs(error - exact) < 4 * math.sqrt(exact * (1 - exact) / len(y))
    assert abs(int(y.sum()) - 10_000) < 4 * math.sqrt(5000)


def test_bayes_error_does_not_depend_on_the_hamiltonian_s_sign():
    assert bayes_error(500, [-0.1, -0.3]) == pytest.approx(bayes_error(500, [0.1, 0.3]))


@pytest.mark.parametrize("arguments", [{"sites": 7}, {"sites": 0}, {"betas": [0.1]}, {"betas": [0.2, 0.2]}])
def test_impossible_rings_are_mistakes(arguments):
    with pytest.raises(UserError, match=r"sites=|betas="):
        Ising(**arguments)
