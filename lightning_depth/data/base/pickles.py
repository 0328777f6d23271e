"""Pickles read as data: arrays of numbers in plain containers, and nothing that a pickle could execute."""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from lightning_depth.errors import UserError


def read_pickle(path: Path) -> dict[str, Any]:
    """A pickled dictionary of arrays, numbers, strings and plain containers, of Python 2 or 3.

    The few names by which numpy's arrays are pickled stand for inert objects here: numpy's own (C) reconstruction never
    sees the file, nothing is imported, and no name outside `ALLOWED` is looked up. Strings of Python 2 are read as
    latin-1; keys in bytes become strings. Raises a UserError where the file names anything else (it says what), is
    truncated, or holds no dictionary.
    """
    try:
        with path.open("rb") as file:
            content = _Reader(file, encoding="latin1").load()
    except OSError:
        raise
    except _Refused as refused:
        rule = "a data file may hold only arrays of numbers and plain containers"
        raise UserError(f"{path} was not read: {refused}, and {rule}.\nReplace it by the published file.") from None
    except Exception as error:  # broken bytes raise almost any: `pickle` names some, "not necessarily limited to" them
        raise UserError(f"{path} is corrupt or truncated: {error or type(error).__name__}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} where a dictionary of arrays was expected.")
    return {
        key.decode("latin1") if isinstance(key, bytes) else str(key): (
            value.array if isinstance(value, _Array) and value.array is not None else value
        )
        for key, value in content.items()
    }


class _Refused(Exception):
    """A pickle asks for what no data file needs."""


class _Reader(pickle.Unpickler):
    """An unpickler that knows the names by which numpy pickles arrays, and no other."""

    def find_class(self, module: str, name: str) -> Any:
        modules, make = ALLOWED.get(name, ((), None))
        if module not in modules or make is None:
            raise _Refused(f"it asks for {module}.{name}")
        return _Maker(make)

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _Refused("it refers to an object outside itself")


class _Maker:
    """What stands for a function or class of numpy: it can be called, and not be changed by the pickle."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setstate__(self, state: object) -> NoReturn:
        raise _Refused("it alters a function of numpy")


class _Dtype:
    """A numpy dtype of booleans, integers or floating-point numbers, in the making."""

    def __init__(self, code: str, *_: object) -> None:
        if not isinstance(code, str) or code[:1] not in ("b", "i", "u", "f") or not code[1:].isdecimal():
            raise _Refused(f"it holds an array of type {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, *fields = state
        if order not in ("<", ">", "|", "=") or any(fields[:3]):
            raise _Refused("it holds an array of a compound type")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """A numpy array in the making."""

    array: Shaped[np.ndarray, "..."] | None = None

    def __init__(self, *_: object) -> None:
        """Take what numpy's take."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        shape, dtype, fortran, raw = state[-4:]
        self.array = _filled(raw, dtype, shape, "F" if fortran else "C")


def _filled(raw: Any, dtype: Any, shape: Any, order: str) -> Shaped[np.ndarray, "..."]:
    if not isinstance(dtype, _Dtype):
        raise _Refused("it holds an array of an unknown type")
    if isinstance(raw, str):  # bytes of Python 2
        raw = raw.encode("latin1")
    if not isinstance(raw, (bytes, bytearray)):
        raise _Refused(f"it holds an array whose content is a {type(raw).__name__}")
    return np.frombuffer(raw, dtype.dtype).reshape(tuple(map(int, shape)), order="F" if order == "F" else "C")


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: str) -> _Array:
    """An array as protocol 5 pickles it."""
    made = _Array()
    made.array = _filled(raw, dtype, shape, order)
    return made


def _scalar(dtype: Any, raw: Any) -> Any:
    return _filled(raw, dtype, (), "C").item()


def _latin1(text: Any, encoding: Any) -> bytes:
    """The bytes of Python 3 as protocols 0 to 2 pickle them."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused("it asks for _codecs.encode on something other than bytes")
    return text.encode("latin1")


MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
ALLOWED: dict[str, tuple[tuple[str, ...], Callable[..., Any]]] = {
    "_reconstruct": (MULTIARRAY, _Array),
    "scalar": (MULTIARRAY, _scalar),
    "_frombuffer": (("numpy.core.numeric", "numpy._core.numeric"), _from_buffer),
    "ndarray": (("numpy",), _Array),
    "dtype": (("numpy",), _Dtype),
    "encode": (("_codecs",), _latin1),
}
"""Name -> the modules in which it is known, and what stands for it here."""


def from_planes(batches: Sequence[UInt8[np.ndarray, "n 3072"]]) -> UInt8[Tensor, "N 32 32 3"]:
    """The images of batches whose rows are 32 x 32 pixels of red, then green, then blue, as CIFAR's are."""
    images = np.empty((sum(map(len, batches)), 32, 32, 3), np.uint8)
    np.concatenate([batch.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for batch in batches], out=images)
    return torch.from_numpy(images)
