"""Lightning patches torch's loaders while it asks for data, and leaves them so where that raises."""

from torch.utils.data import BatchSampler, DataLoader


def restore_loaders() -> None:
    """Undo it: or the next network of this process gets loaders that cannot be made again with another sampler."""
    for patched in _with_subclasses(DataLoader) | _with_subclasses(BatchSampler):
        for name in ("__init__", "__setattr__", "__delattr__"):
            if f"__old{name}" in vars(patched):
                setattr(patched, name, getattr(patched, f"__old{name}"))
                delattr(patched, f"__old{name}")


def _with_subclasses(base: type) -> set[type]:
    return {base}.union(*map(_with_subclasses, base.__subclasses__()))
