"""Batch files are read without executing what a pickle may hold."""

import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from lightning_depth.data.base.pickles import read_pickle
from lightning_depth.data.imagenet32 import read_batch
from lightning_depth.errors import UserError
from tests.data.batch_files import Calls, batch, hostile


def python_2(name, pixels, labels):
    """A batch as Python 2 pickled it: protocol 2, with byte strings for keys, names and pixels."""

    def text(value):
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<I", len(value)) + value

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R(K\x01"
        b"M" + struct.pack("<H", pixels.shape[0]) + b"M" + struct.pack("<H", pixels.shape[1]) + b"\x86"
        b"cnumpy\ndtype\n"
        + text(b"u1")
        + b"K\x00K\x01\x87R(K\x03"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tb\x89" + text(pixels.tobytes()) + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + numbers + b"u."


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5, "python 2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_pickles_of_any_protocol_give_what_was_pickled(tmp_path, protocol, order):
    was = batch(labels=[4] * 12)
    was["data"] = np.asarray(was["data"], order=order)
    path = tmp_path / "batch"
    if protocol == "python 2":
        path.write_bytes(python_2("batch", was["data"], was["labels"]))
        assert np.array_equal(pickle.loads(path.read_bytes(), encoding="latin1")["data"], was["data"])
    else:
        path.write_bytes(pickle.dumps({**was, b"bytes": np.float32(1.5), "big": np.arange(3, dtype=">i4")}, protocol))
        got = read_pickle(path)
        assert got["bytes"] == 1.5
        assert got["big"].tolist() == [0, 1, 2]
        assert np.array_equal(got["mean"], was["mean"])
    pixels, numbers = read_batch(path)
    assert np.array_equal(pixels, was["data"])
    assert numbers.tolist() == [3] * 12


@pytest.mark.parametrize("name", hostile("x"))
def test_a_hostile_pickle_is_refused_by_name_and_executes_nothing(tmp_path, name):
    canary = tmp_path / "canary"
    content, named = hostile(canary)[name]
    path = tmp_path / "train_data_batch_1"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"train_data_batch_1 was not read: .*{named}"):
        read_batch(path)
    assert not canary.exists()


def test_the_canary_would_have_been_touched(tmp_path):
    pickle.loads(hostile(tmp_path / "canary")["system"][0])
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("length", [0, 1, 2, 50, 300, -5000, -100, -1])
@pytest.mark.parametrize("format", ["pickle", "npz"])
def test_a_truncated_batch_is_named(tmp_path, format, length):
    path = tmp_path / ("batch.npz" if format == "npz" else "batch")
    if format == "npz":
        np.savez(path, **batch())
    else:
        path.write_bytes(pickle.dumps(batch()))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=r"batch(.npz)? (is corrupt|cannot be read as arrays)"):
        read_batch(path)


def test_random_bytes_are_a_mistake(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "batch"
    good = bytearray(pickle.dumps({"data": np.zeros((1, 4), np.uint8), "labels": [1]}, 4))
    for _ in range(300):
        damaged = bytearray(good)
        damaged[int(rng.integers(len(good)))] = int(rng.integers(256))
        path.write_bytes(damaged)
        with pytest.raises(UserError):  # the shape is wrong even where the damage does not show
            read_batch(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": np.zeros((12, 3071), np.uint8)}, r"data are uint8 \(12, 3071\)"),
        ({"data": np.zeros((12, 3, 32, 32), np.uint8)}, r"data are uint8 \(12, 3, 32, 32\)"),
        ({"data": np.zeros((12, 3072), np.float32)}, r"data are float32 \(12, 3072\)"),
        ({"data": [[0] * 3072] * 12}, "data are a list"),
        ({"labels": [1] * 11}, "labels are not 12 whole numbers"),
        ({"labels": [1.0] * 12}, "labels are not 12 whole numbers"),
        ({"labels": ["1"] * 12}, "labels are not 12 whole numbers"),
        ({"labels": [[1]] * 12}, "labels are not 12 whole numbers"),
        ({"labels": [0] + [1] * 11}, "labels from 0 to 1; ImageNet32 has them from 1 to 1000"),
        ({"labels": [1001] * 12}, "labels from 1001 to 1001"),
    ],
)
def test_a_batch_of_another_format_is_told(tmp_path, change, said):
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps({**batch(), **change}))
    with pytest.raises(UserError, match=said):
        read_batch(path)


@pytest.mark.parametrize(("content", "said"), [([1, 2], "holds a list"), ({"data": 1}, "has no 'labels'")])
def test_a_pickle_without_the_arrays_is_told(tmp_path, content, said):
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=said):
        read_batch(path)


def test_objects_in_npz_are_refused_and_execute_nothing(tmp_path):
    path, canary = tmp_path / "batch.npz", tmp_path / "canary"
    objects = np.array([Calls(os.system, f"touch {canary}")] * 12, dtype=object)
    np.savez(path, data=batch()["data"], labels=objects)
    with pytest.raises(UserError, match=r"batch\.npz cannot be read as arrays: Object arrays cannot be loaded"):
        read_batch(path)
    path.write_bytes(pickle.dumps(Calls(os.system, f"touch {canary}")))  # no archive at all
    with pytest.raises(UserError, match=r"batch\.npz cannot be read as arrays"):
        read_batch(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.npy", b"not an array")
        archive.writestr("labels.npy", pickle.dumps(Calls(os.system, f"touch {canary}")))
    with pytest.raises(UserError, match=r"batch\.npz"):
        read_batch(path)
    assert not canary.exists()
