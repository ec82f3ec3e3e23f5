"""What the benchmarks share: sizes, networks, data and warm kernels, made once in a process.

asv runs every benchmark with every size in a process of its own, and repeats `setup` before every
timing. So what is expensive to make is kept, and `setup` is cheap from the second time on.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from largesparse import NetworkConfig, SparseMLP
from largesparse.backends import get_backend
from largesparse.errors import BackendError


def find(path: str, old: str = "") -> Any:
    """Return a name of the package that is not public, also where asv runs an older commit.

    Parameters
    ----------
    path : str
        What follows "largesparse.", such as "model.evolution.evolve".
    old : str, optional
        Its path before; by default that without the room, which is the first word.
    """
    for candidate in (path, old or path.partition(".")[2]):
        module, _, name = candidate.rpartition(".")
        try:
            return getattr(importlib.import_module(f"largesparse.{module}"), name)
        except (AttributeError, ModuleNotFoundError):
            continue
    raise ImportError(f"largesparse has no {path}")


parse_size = find("machine.sizes.parse_size")
BENCH_MAX = find("machine.environment.BENCH_MAX")
find_mpiexec = find("machine.environment.find_mpiexec")
hidden_sizes = find("harness.presets.hidden_sizes")
nearest_row = find("harness.presets.nearest_row")
available_threads = find("machine.threads.available_threads")
peak_rss_bytes = find("machine.usage.peak_rss_bytes", "records.peak_rss_bytes")
compile_kernels = find("training.warming.warm_up")

seconds_of = find("backends.limits.seconds_of")

N_FEATURES = 1024
BATCH_SIZE = 128  # as in the paper's section 2.4
THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
THREADS = int(os.environ.get("NUMBA_NUM_THREADS") or 1)  # asv.conf.json sets it

LADDER = (10_000, 100_000, 1_000_000, 5_000_000, 10_000_000, 20_000_000, 50_000_000)  # neurons
DEFAULT_MAX = "1M"
PAIRS, SECONDS = 15, 3  # at least, of what is compared in turns
CHILD_SECONDS = 300  # after which a process that a benchmark starts has failed


def sizes_up_to(limit: str) -> tuple[int, ...]:
    """Return the sizes of `LADDER` up to a limit such as "100k", but at least the smallest."""
    largest = parse_size(limit)
    return tuple(neurons for neurons in LADDER if neurons <= largest) or LADDER[:1]


SIZES = sizes_up_to(os.environ.get(BENCH_MAX) or DEFAULT_MAX)
MIDDLE = SIZES[min(1, len(SIZES) - 1)]  # for what is measured at one size: 100k
LARGEST = min(SIZES[-1], 1_000_000)
SOME = tuple(sorted({MIDDLE, LARGEST}))  # for what would take too long at all sizes
CORES = available_threads()
COUNTS = tuple(sorted({1, 2, CORES}))  # of threads, of processes


def network_config(neurons: int, epsilon: float | None = None) -> NetworkConfig:
    """Return a network with the depth and ε of the nearest row of Table 4, and two classes."""
    row = nearest_row(neurons)
    sizes = (N_FEATURES, *hidden_sizes(neurons, row.hidden_layers), 2)
    return NetworkConfig(sizes, epsilon=epsilon or row.epsilon, recipe="width")


@functools.cache
def make_network(neurons: int, epsilon: float | None = None) -> SparseMLP:
    """Return the network of `network_config`; the same object at every call."""
    return SparseMLP(network_config(neurons, epsilon), threads=THREADS, progress=False)


@functools.cache
def connections_of(layer: Any) -> tuple[Any, ...]:
    """Return what `SparseLayer.replace` takes, so that a layer can become what it is now."""
    kinds = getattr(layer, "kinds", None)  # older commits have a velocity alone
    moments = layer.velocity if kinds is None else {kind: getattr(layer, kind) for kind in kinds}
    return layer.topology, layer.values, moments


def make_batch(rows: int = BATCH_SIZE) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return standard normal X (rows, N_FEATURES), and class indices y that are random."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, N_FEATURES), dtype=np.float32)
    return X, rng.integers(2, size=rows, dtype=np.int32)


@functools.cache
def warm_up(backend: str | None = None) -> None:
    """Compile the kernels, so that no timing includes that.

    Raises
    ------
    NotImplementedError
        Where the backend cannot be loaded here: asv skips the benchmark then.
    """
    try:
        name = get_backend(backend).name
    except BackendError as error:
        raise NotImplementedError(str(error)) from error
    compile_kernels(name, THREADS)


def beside_scipy(
    call: Callable[[], object], layer: Any, *, seconds: float | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the times of calls, and those of a layer's product by SciPy, in turns.

    A core that becomes slower for minutes, because of a neighbour or of its clock, slows both. It
    goes on for `seconds`, by default SECONDS.
    """
    topology = layer.topology
    connections = topology.indices_by_output, topology.indptr_by_output
    weights = sp.csr_array((layer.values_by_output, *connections), shape=(layer.n_out, layer.n_in))
    X = np.ones((layer.n_in, BATCH_SIZE), dtype=np.float32)
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + (SECONDS if seconds is None else seconds)
    while len(times) < PAIRS or time.perf_counter() < end:
        times.append((seconds_of(call, repeats=1), seconds_of(lambda: weights @ X, repeats=1)))
    ours, theirs = np.array(times).T
    return ours, theirs


def only_up_to_the_middle(neurons: int, backend: str) -> None:
    """Leave out backends other than fused for large networks, which they take long for.

    Raises
    ------
    NotImplementedError
        asv skips the benchmark then.
    """
    if neurons > MIDDLE and backend != "fused":
        raise NotImplementedError(f"{backend} is measured up to {MIDDLE:,} neurons")


def in_fresh_process(function: Callable[[int], Any], neurons: int, threads: int = THREADS) -> Any:
    """Return what a function of a benchmark returns in a process that has done nothing else.

    Its peak of memory is then its own: asv's `peakmem_*` counts from what the parent had. And it
    can have more threads than `asv.conf.json` gives to this one.
    """
    module, name = function.__module__, function.__name__
    code = f"import json, {module}; print(json.dumps({module}.{name}({neurons})))"
    command = [sys.executable, "-c", code]
    return _answer(command, os.environ | dict.fromkeys(THREAD_LIMITS, str(threads)))


def run_mpi(module: str, ranks: int, *arguments: Any) -> float:
    """Return the number that `python -m benchmarks.<module>` prints as a job of MPI.

    Raises
    ------
    NotImplementedError
        Where there is no mpiexec.
    """
    mpiexec = find_mpiexec()
    if mpiexec is None:
        raise NotImplementedError("there is no mpiexec: pip install '.[mpi]'")
    command = [mpiexec, "-n", str(ranks), sys.executable, "-m", f"benchmarks.{module}"]
    return _answer([*command, *map(str, arguments)])


def _answer(command: list[str], environment: dict[str, str] | None = None) -> Any:
    """Return what is in the line of JSON that a command prints last."""
    root = Path(__file__).parent.parent
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": CHILD_SECONDS}
    options["env"] = environment
    result = subprocess.run(command, cwd=root, check=False, **options)
    if result.returncode:
        raise RuntimeError(result.stderr or result.stdout)
    return json.loads(result.stdout.splitlines()[-1])
