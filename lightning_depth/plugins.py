"""Plug-ins without a registry: a package's classes are those its files define, and entry points name packages."""

import pkgutil
from importlib import import_module
from importlib.metadata import entry_points

from lightning.pytorch.utilities import rank_zero_warn

GROUP = "lightning_depth.plugins"
# Where the classes live that this package offers itself. Imported by name, as those of strangers are.
ROOMS = ("lightning_depth.models", "lightning_depth.data", "lightning_depth.callbacks", "lightning_depth.optimisers")


def classes_in(package: str, path: list[str], base: type) -> dict[str, type]:
    """The public subclasses of `base` defined in the modules of `package` (its `__name__` and `__path__`), by name.

    A package that calls this in its `__init__.py` offers every class that a file beside it defines: adding a plug-in
    is adding a file.
    """
    found: dict[str, type] = {}
    for module_info in pkgutil.iter_modules(path):
        module = import_module(f"{package}.{module_info.name}")
        for name, value in vars(module).items():
            if not (isinstance(value, type) and issubclass(value, base)) or name.startswith(("_", "Abstract")):
                continue
            if value.__module__ == module.__name__:
                found[name] = value
    return found


def built_in() -> dict[str, type]:
    """The classes that this package offers, by their short names."""
    return {
        name: value
        for room in ROOMS
        for name, value in vars(import_module(room)).items()
        if isinstance(value, type) and name[0].isupper()
    }


def load() -> None:
    """Import this package's rooms, and the modules that installed packages name under the entry point group `GROUP`.

    Their classes can then be named in YAML. A class that shares the short name of a built-in would break every YAML
    that uses the short name, so it is reported.
    """
    ours = built_in().keys()
    for entry_point in entry_points(group=GROUP):
        module = entry_point.load()
        own = {n for n, v in vars(module).items() if isinstance(v, type) and v.__module__.startswith(module.__name__)}
        for name in sorted(own & ours):
            rank_zero_warn(f"plug-in {entry_point.value}: its {name} shares a built-in's name; give full class paths.")
