"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import numba
import pytest
from helpers import ROOT, child_path
from hypothesis import settings

from largesparse.backends.compiling import _source_digest
from largesparse.environment import cache_folder
from largesparse.threads import available_threads

# Tests and child processes that name a cache of their own share the compiled kernels all the same.
if not os.environ.get("NUMBA_CACHE_DIR"):
    numba.config.CACHE_DIR = str(cache_folder() / "kernels" / _source_digest())
    os.environ["NUMBA_CACHE_DIR"] = numba.config.CACHE_DIR

os.environ["PYTHONPATH"] = child_path()

# Threads would only wait for each other over small arrays; tests of threads ask for them.
numba.set_num_threads(1)

settings.register_profile("largesparse", deadline=None)  # kernels compile; machines are shared
settings.load_profile("largesparse")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores: many tests wait for processes that they start."""
    return min(4, available_threads() + 1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the real data sets; tests that use it are skipped where there is none."""
    named = os.environ.get("LARGESPARSE_DATA")
    beside = ROOT.parent / "shared" / "data"
    folder = Path(named).expanduser() if named else beside
    if not (folder / "madelon.npz").is_file():
        pytest.skip(f"no data sets in {folder}: set LARGESPARSE_DATA to the folder that holds them")
    return folder
