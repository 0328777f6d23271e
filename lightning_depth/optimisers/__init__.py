"""Optimisers that need no gradient, as `torch.optim` has none: `class_path: lightning_depth.optimisers.CMAES`."""

from lightning_depth.optimisers.cma_es import CMAES
from lightning_depth.optimisers.random_search import RandomSearch

__all__ = ["CMAES", "RandomSearch"]
