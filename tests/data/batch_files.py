"""Batch files as arrays, and pickles that call functions."""

import builtins
import os
import pickle

import numpy as np


def batch(n=12, labels=None, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)
    return {"data": pixels, "labels": labels or [1 + i % 4 for i in range(n)], "mean": pixels.mean(0)}


class Calls:
    """Pickles as the call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def hostile(canary):
    """Pickles that would write `canary`, and what the refusal names."""
    command, code = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    by_hand = b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c" + bytes([len(command)]) + command.encode() + b"\x85R."
    inherited = b"\x80\x04\x8c\x15numpy.core.multiarray\x8c\x0f__loader__.load\x93."
    return {
        "system": (pickle.dumps(Calls(os.system, command)), r"posix\.system"),
        "by hand": (by_hand, r"posix\.system"),
        "eval": (pickle.dumps(Calls(builtins.eval, code)), r"builtins\.eval"),
        "exec, old protocol": (pickle.dumps(Calls(builtins.exec, code), 0), r"exec"),
        "nested": (pickle.dumps({"data": [{"deep": (1, Calls(os.system, command))}]}), r"posix\.system"),
        "as labels": (pickle.dumps({**batch(), "labels": Calls(builtins.eval, code)}), r"builtins\.eval"),
        "in an object array": (
            pickle.dumps({"data": np.array([Calls(os.system, command)], dtype=object)}, 4),
            r"array of type 'O8'",
        ),
        "in an object array, protocol 5": (
            pickle.dumps({"data": np.array([Calls(os.system, command)], dtype=object)}, 5),
            r"array of type 'O8'",
        ),
        "attribute": (inherited, r"__loader__"),
        "getattr": (b"cbuiltins\ngetattr\n.", r"builtins\.getattr"),
        "numpy's own": (b"cnumpy\nload\n.", r"numpy\.load"),
        "another dtype": (b"cos\ndtype\n.", r"os\.dtype"),
        "altered": (b"\x80\x02cnumpy\ndtype\n}X\x05\x00\x00\x00_makeK\x01sb.", r"alters a function of numpy"),
        "codec": (b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.", r"_codecs\.encode"),
        "structured": (pickle.dumps({"data": np.zeros(2, [("a", "u1")])}, 4), r"array of type 'V1'"),
        "persistent": (b"Pname\n.", r"outside itself"),
    }
