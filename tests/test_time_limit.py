"""A test that hangs is a test that fails, by name: also in C, where no signal is heeded."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HANGS = """
import ctypes

def test_before(): pass

def test_that_hangs_in_c():
    libc = ctypes.CDLL(None)
    mutex = ctypes.create_string_buffer(128)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)

def test_after(): pass
"""


def test_a_test_that_hangs_fails_by_name_and_the_others_run(tmp_path):
    (tmp_path / "test_it.py").write_text(HANGS)
    options = ["-n", "1", "-p", "no:cacheprovider", "--timeout", "1", "--rootdir", tmp_path, "-o", "testpaths="]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", *options, tmp_path / "test_it.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "crashed while running 'test_it.py::test_that_hangs_in_c'" in ended.stdout
    assert "1 failed, 2 passed" in ended.stdout
