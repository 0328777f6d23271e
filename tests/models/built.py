"""Networks of a family with weights of one seed, and what is counted and compared of them."""

import torch

SEED = 5


def built(family, shape=(1, 28, 28), **arguments):
    if "target_shape" not in arguments:
        arguments.setdefault("num_classes", 10)
    model = family(input_shape=shape, seed=SEED, **arguments)
    model.configure_model()
    return model


def count(model):
    return sum(p.numel() for p in model.net.parameters())


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.net.parameters()])


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
