"""Compiled kernels: cached on disk, and told of when they are compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
import sys
import numpy as np
from largesparse.backends.pattern_kernels import reorder

values = np.arange(5, dtype=np.float32)
out = np.empty_like(values)
reorder(values, np.arange(5, dtype=np.int32)[::-1].copy(), out)
assert out.tolist() == [4, 3, 2, 1, 0]
hits = sum(reorder.stats.cache_hits.values())
print(hits)
"""


def start(cache: Path) -> subprocess.Popen:
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_CACHE_DIR"}
    environment |= {"LARGESPARSE_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_kernel_is_compiled_once_and_that_is_told(tmp_path):
    for hits, told in (("0", 1), ("1", 0)):
        process = start(tmp_path)
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert output.strip() == hits
        assert errors.count("Compiling the kernels") == told


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
def test_processes_that_start_together_compile_once(tmp_path):
    processes = [start(tmp_path) for _ in range(4)]
    results = [process.communicate(timeout=300) for process in processes]
    assert sorted(output.strip() for output, _ in results) == ["0", "1", "1", "1"]
    assert sum(errors.count("Compiling the kernels") for _, errors in results) == 1


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_cache_that_cannot_be_written(tmp_path):
    file = tmp_path / "file"
    file.write_text("not a folder")
    process = start(file)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert file.read_text() == "not a folder"
