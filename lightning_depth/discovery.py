"""Plug-ins without a registry: a package's classes are those its files define."""

import pkgutil
from importlib import import_module


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
