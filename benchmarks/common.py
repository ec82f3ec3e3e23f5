"""What the benchmarks share: sizes, networks, data and warm kernels, made once in a process.

asv runs every benchmark with every size in a process of its own, and repeats `setup` before every
timing. So what is expensive to make is kept, and `setup` is cheap from the second time on.
"""

from __future__ import annotations

import functools
import os

import numpy as np
from numpy.typing import NDArray

import largesparse.warming
from largesparse import NetworkConfig, SparseMLP
from largesparse.backends import get_backend
from largesparse.cli import parse_size
from largesparse.environment import BENCH_MAX
from largesparse.errors import BackendError
from largesparse.presets import hidden_sizes, nearest_row

N_FEATURES = 1024
BATCH_SIZE = 128  # as in the paper's section 2.4
THREADS = int(os.environ.get("NUMBA_NUM_THREADS") or 1)  # asv.conf.json sets it

LADDER = (10_000, 100_000, 1_000_000)  # neurons
DEFAULT_MAX = "1M"


def sizes_up_to(limit: str) -> tuple[int, ...]:
    """Return the sizes of `LADDER` up to a limit such as "100k", but at least the smallest."""
    largest = parse_size(limit)
    return tuple(neurons for neurons in LADDER if neurons <= largest) or LADDER[:1]


SIZES = sizes_up_to(os.environ.get(BENCH_MAX) or DEFAULT_MAX)


def network_config(neurons: int) -> NetworkConfig:
    """Return a network with the depth and ε of the nearest row of Table 4, and two classes."""
    row = nearest_row(neurons)
    sizes = (N_FEATURES, *hidden_sizes(neurons, row.hidden_layers), 2)
    return NetworkConfig(sizes, epsilon=row.epsilon, recipe="width")


@functools.cache
def make_network(neurons: int) -> SparseMLP:
    """Return the network of `network_config`; the same object at every call."""
    return SparseMLP(network_config(neurons), threads=THREADS, progress=False)


@functools.cache
def make_batch() -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return standard normal X (BATCH_SIZE, N_FEATURES), and class indices y that are random."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((BATCH_SIZE, N_FEATURES), dtype=np.float32)
    X.flags.writeable = False  # as memory maps are, and what warm_up compiles for
    return X, rng.integers(2, size=BATCH_SIZE, dtype=np.int32)


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
    largesparse.warming.warm_up(name, THREADS)
