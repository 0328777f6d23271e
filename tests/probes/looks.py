"""One look of each probe at a network, and what it read and said."""

import warnings

from lightning_depth import callbacks as shelf
from tests.probes.foreign import autoencoder, convnet, loaders, readings, trainer

# Those that ship with the package. What any file on the shelf is held to is in test_conformance.py.
NAMES = """
ActivationImages EffectiveRank FeatureSimilarity IdentityConstant JacobianNorm LinearOperator
LocalStability NeuralCollapse OperatorNorm RepresentationCollapse Spectrum WeightDistance
"""
PROBES = [getattr(shelf, name) for name in NAMES.split()]
ARGUMENTS = {
    "LocalStability": {"samples": 2, "strengths": [1.0]},
    "JacobianNorm": {"samples": 4},
    "FeatureSimilarity": {"samples": 12},
}
OF_MAPS = ("LinearOperator", "IdentityConstant")
OF_WEIGHTS = ("OperatorNorm", "Spectrum", "WeightDistance")
name_of = {"ids": lambda p: p.__name__ if isinstance(p, type) else str(p)}


def make(probe, **arguments):
    return probe(**{**ARGUMENTS.get(probe.__name__, {}), **arguments})


def suited(probe):
    return (autoencoder if probe.__name__ in OF_MAPS else convnet)()


def fitted(module, probe, batches=None):
    trainer([probe], max_epochs=1).fit(module, *(batches or loaders()))
    return readings(probe)


def said(function, *arguments, **keywords):
    """The warnings of one call, and what it returned."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = function(*arguments, **keywords)
    return found, [str(w.message) for w in caught]


def is_short(error):
    return len(str(error.value)) < 300 and str(error.value).count("\n") < 2
