"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numba
import pytest
from helpers import ROOT, TOOLS, child_path
from hypothesis import settings

from largesparse.backends.compiling import _source_digest
from largesparse.machine.environment import cache_folder
from largesparse.machine.threads import available_threads

# Tests and child processes that name a cache of their own share the compiled kernels all the same.
if not os.environ.get("NUMBA_CACHE_DIR"):
    numba.config.CACHE_DIR = str(cache_folder() / "kernels" / _source_digest())
    os.environ["NUMBA_CACHE_DIR"] = numba.config.CACHE_DIR

os.environ["PYTHONPATH"] = child_path()

# Hundreds of child processes would compile the package's sources, every process the tests' asserts.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Tools and `soak` are imported from the working copy; the package is where it is installed.
sys.path += [str(folder) for folder in (TOOLS, ROOT)]

# Threads would only wait for each other over small arrays; tests of threads ask for them.
numba.set_num_threads(1)

settings.register_profile("largesparse", deadline=None)  # kernels compile; machines are shared
settings.load_profile("largesparse")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores: many tests wait for processes that they start."""
    return min(4, available_threads() + 1)


# A file is run by one process, and the last process is waited for: what takes longest comes first.
# The second and the third need no kernels, while the first has them compiled.
LONGEST = (
    "test_training",  # compiles most kernels
    "test_protocol",
    "test_parallel_control",
    "test_parallel_training",
    "test_benchmarks",
    "test_compiling",
    "test_parallel_failures",
    "test_compare_peers",
    "test_inference",
    "test_estimator",
    "test_tools",
    "test_system_limits",
    "test_bigmodel",
    "test_paper_tables",
    "test_scaling",
    "test_bigmodel_ranks",
    "test_readme",
    "test_two_threads",
    "test_bfloat16",
    "test_stopping",
    "test_kill_ranks",
    "test_two_hosts",
    "test_long_run",
    "test_threads",
    "test_report",
    "test_synthetic",
    "test_platforms",
    "test_tune",
    "test_float64",
    "test_transfer",
    "test_launching",
    "test_topology",
    "test_parallel_prediction",
    "test_estimator_state",
    "test_linear_start",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="session", autouse=True)
def _empty_folder(tmp_path_factory) -> None:
    """Start in an empty folder: in the working copy, `python -c` would import its package."""
    os.chdir(tmp_path_factory.mktemp("empty"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the real data sets; tests that use it are skipped where there is none."""
    named = os.environ.get("LARGESPARSE_DATA")
    beside = ROOT.parent / "shared" / "data"
    folder = Path(named).expanduser() if named else beside
    if not (folder / "madelon.npz").is_file():
        pytest.skip(f"no data sets in {folder}: set LARGESPARSE_DATA to the folder that holds them")
    return folder
