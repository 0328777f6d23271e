"""A test that hangs is a test that fails, once and by name: also in C, where no signal is heeded."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HANGS = """
import ctypes
import pytest

@pytest.mark.parametrize("number", range(6))
def test_some(number):
    if number == 2:
        library = ctypes.{library}(None)
        mutex = ctypes.create_string_buffer(128)
        library.pthread_mutex_lock(mutex)
        library.pthread_mutex_lock(mutex)
"""


@pytest.mark.parametrize("library", ["CDLL", "PyDLL"])  # the second keeps Python's lock
def test_a_test_that_hangs_fails_once_by_name_and_the_others_run(tmp_path, library):
    (tmp_path / "test_it.py").write_text(HANGS.format(library=library))
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    options = ["-n", "2", "--dist", "loadgroup", "-p", "no:cacheprovider", "--timeout", "1", "--rootdir", tmp_path]
    overrides = ["-o", "testpaths=", "-o", "faulthandler_timeout=3"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", *options, *overrides, tmp_path / "test_it.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 1
    assert "crashed while running 'test_it.py::test_some[2]'" in ended.stdout
    assert "1 failed, 5 passed" in ended.stdout, ended.stdout
