"""What the slow and obvious computations start from: the samples that probes choose, a layer's features, Jacobians."""

import math

import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.probes.foreign import loaders


def samples(split, count, batches=None):
    """Inputs and labels of the fixed random choice that probes make."""
    x, y = (batches or loaders())[split == "val"].dataset.tensors
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:count]
    return x[chosen], y[chosen]


def features(module, layer, x, number=0):
    """The inputs and outputs of a call of a layer."""
    if layer == "input":
        return x, x
    seen = []
    handle = module.get_submodule(layer).register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    with torch.no_grad():
        module.eval()(x)
    handle.remove()
    return seen[number]


def jacobians(function, x):
    """One matrix a sample."""
    return [torch.func.jacrev(lambda s: function(s[None])[0])(s).reshape(-1, s.numel()).double() for s in x]


def ranks_and_norms(sigma, eigenvalues):
    shares = sigma / sigma.sum()
    return {
        "effective_rank": -sum(s * math.log(s) for s in shares if s > 0),
        "stable_rank": (sigma**2).sum() / sigma.max() ** 2,
        "threshold_rank_auc": sigma.sum() / sigma.max(),
        "participation_ratio": eigenvalues.sum() ** 2 / (eigenvalues**2).sum(),
        "nuclear_norm": sigma.sum(),
        "frobenius_norm": math.sqrt((sigma**2).sum()),
        "spectral_norm": sigma.max(),
    }


def with_targets(targets):
    """The loaders, with targets made from the inputs and labels."""
    made = []
    for loader in loaders():
        x, y = loader.dataset.tensors
        made.append(DataLoader(TensorDataset(x, targets(x, y)), 16))
    return made
