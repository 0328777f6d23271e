"""Plug-ins without a registry: a package's classes are those its files define, and entry points name packages."""

import re
import traceback
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from lightning.pytorch.utilities import rank_zero_warn

from lightning_depth.errors import UserError

GROUP = "lightning_depth.plugins"
# Where the classes live that this package offers itself. Imported by name, as those of strangers are.
SHELVES = ("lightning_depth.models", "lightning_depth.data", "lightning_depth.callbacks")
ROOMS = (*SHELVES, "lightning_depth.optimisers")
STUB = """# Written by `make stubs`, for type checkers, editors and grep: every class that a file here defines.
# At run time a class is found in the file that defines it, when it is asked for; nothing is registered.
"""


def offered(package: str, path: list[str], base: type) -> tuple[Callable[[str], type], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package that offers every class that a file beside it defines.

    Adding a plug-in is adding a file. A name is looked for in the files' text, and the one file that defines it is
    imported; listing them all imports them all. `make stubs` writes the names down for type checkers. The package gives
    its `__name__` and `__path__`; classes must be subclasses of `base`, and names that begin with `Abstract` or an
    underscore are left out.
    """

    @cache
    def defined() -> dict[str, list[str]]:
        modules: dict[str, list[str]] = {}
        for file in sorted(file for folder in path for file in Path(folder).glob("*.py")):
            for name in re.findall(r"^class (\w+)", file.read_text(encoding="utf-8"), re.MULTILINE):
                modules.setdefault(name, []).append(f"{package}.{file.stem}")
        return modules

    def lookup(name: str) -> type | None:
        for module in defined().get(name, ()):
            value = getattr(_imported(module), name)
            if not name.startswith(("_", "Abstract")) and isinstance(value, type) and issubclass(value, base):
                return value
        return None

    def find(name: str) -> type:
        if (found := lookup(name)) is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return found

    return find, lambda: [name for name in sorted(defined()) if lookup(name) is not None]


def _imported(module: str) -> ModuleType:
    """A plug-in's module; a `UserError` that names the file and the line where it is broken."""
    try:
        return import_module(module)
    except UserError:
        raise
    except Exception as error:  # whatever its author has written
        last = traceback.TracebackException.from_exception(error)
        file, line = (last.filename, last.lineno) if isinstance(error, SyntaxError) else last.stack[-1][:2]
        what = " ".join(str(error).split())[:200]
        hint = f"{module} is a plug-in, which is imported to be found by name: mend it or take it away."
        raise UserError(f"{file}, line {line}: {type(error).__name__}: {what}.\n{hint}") from error


def built_in() -> dict[str, type]:
    """The classes that this package offers, by their short names."""
    rooms = [import_module(room) for room in ROOMS]
    found = {name: getattr(room, name) for room in rooms for name in dir(room) if name[0].isupper()}
    return {name: value for name, value in found.items() if isinstance(value, type)}


def load() -> None:
    """Import this package's rooms, and the modules that installed packages name under the entry point group `GROUP`.

    Their classes can then be named in YAML. A class that shares the short name of a built-in would break every YAML
    that uses the short name, so it is reported.
    """
    ours = built_in().keys()
    for entry_point in entry_points(group=GROUP):
        module = _imported(entry_point.module)
        own = {n for n, v in vars(module).items() if isinstance(v, type) and v.__module__.startswith(module.__name__)}
        for name in sorted(own & ours):
            rank_zero_warn(f"plug-in {entry_point.value}: its {name} shares a built-in's name; give full class paths.")


def stubs() -> dict[Path, str]:
    """What `__init__.pyi` of each shelf should say: an import of every class that it offers."""
    found: dict[Path, str] = {}
    for shelf in map(import_module, SHELVES):
        classes = sorted((getattr(shelf, name).__module__, name) for name in dir(shelf))
        lines = [f"from {module} import {name} as {name}\n" for module, name in classes]
        found[Path(shelf.__path__[0]) / "__init__.pyi"] = STUB + "\n" + "".join(lines)
    return found


if __name__ == "__main__":
    for stub, text in stubs().items():
        stub.write_text(text, encoding="utf-8")
