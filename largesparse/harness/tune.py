"""Which backend is fastest on this machine, for the shapes that matter to its user."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from ..backends import BACKENDS
from ..backends.choice import TYPICAL_SIZES, BackendName, ShapeClass
from ..errors import BackendError, LargeSparseError, WorkerError
from ..machine.threading_layers import VARIABLE, threading_layer
from ..model.config import NetworkConfig, TrainingConfig

THREADING_LAYERS = ("tbb", "omp", "workqueue")  # numba's
BLOCK_STEPS, BLOCK_SECONDS = 3, 0.05  # a timing spans at least these
CLASS_REPEATS = 5

# A network and a mini-batch of each class of shapes.
TYPICAL: dict[ShapeClass, tuple[NetworkConfig, int]] = {
    kind: (NetworkConfig(sizes, epsilon=10), 32) for kind, sizes in TYPICAL_SIZES.items()
}


def measure_classes(*, threads: int, progress: bool | None = None) -> pd.DataFrame:
    """Time a training step of a typical network of each class of shapes, with mkl and fused.

    Backend scipy is a reference, and numba's threading layer the present one.

    Returns
    -------
    DataFrame
        Columns as those of `compare_backends`, after "shapes"; the fastest of a class first.
    """
    hide = None if progress is None else not progress
    tables = []
    for kind, (network, batch_size) in tqdm(
        TYPICAL.items(), desc="shapes", leave=False, disable=hide
    ):
        table = compare_backends(
            network,
            batch_size=batch_size,
            threads=threads,
            backends=("mkl", "fused"),
            layers=(threading_layer().name,),
            repeats=CLASS_REPEATS,
            until_clear=True,
            progress=False,
        )
        table.insert(0, "shapes", kind)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def fastest(table: pd.DataFrame) -> dict[ShapeClass, dict[str, Any]]:
    """Return what `choice.store_choices` keeps of timings that have a column "shapes"."""
    found: dict[ShapeClass, dict[str, Any]] = {}
    for kind in TYPICAL_SIZES:
        rows = table[table["shapes"] == kind]
        if rows.empty:
            continue
        times = rows.groupby("backend")["median_ms"].min().sort_values()
        found[kind] = {"backend": times.index[0], "median_ms": times.round(4).to_dict()}
    return found


def compare_backends(
    network: NetworkConfig,
    *,
    batch_size: int,
    threads: int,
    backends: Sequence[BackendName] = BACKENDS,
    layers: Sequence[str] = THREADING_LAYERS,
    repeats: int = 7,
    until_clear: bool = False,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Time a training step with every backend and every threading layer that works here.

    A threading layer is chosen when numba is loaded, so each has a process of its own; a repeat
    visits all of them, and within each the backends in turn, so that noise hits all alike. Repeats
    end `until_clear` once the fastest was so in each of two or more of them.

    Returns
    -------
    DataFrame
        A row for each backend and layer, the fastest first: median, first and third quartile in
        milliseconds.

    Raises
    ------
    LargeSparseError
        Where nothing works.
    WorkerError, MemoryError
        Where a process died, or the shapes do not fit in the memory.
    """
    times: dict[tuple[str, str], list[float]] = {}
    hide = None if progress is None else not progress
    try:
        with _processes(layers, (network, batch_size, threads, tuple(backends))) as pools:
            for _ in tqdm(range(repeats), desc="repeats", leave=False, disable=hide):
                for layer, pool in pools.items():
                    for backend, milliseconds in pool.submit(_measure).result().items():
                        times.setdefault((backend, layer), []).append(milliseconds)
                if until_clear and is_clear(list(times.values())):
                    break
    except BrokenProcessPool as error:
        raise WorkerError(
            "A process that measures a backend died; out of memory is the usual cause. Make the "
            "layers or the batch smaller."
        ) from error
    if not times:
        raise LargeSparseError(
            f"None of numba's threading layers {', '.join(layers)} works here. "
            "Install one, for instance with 'pip install tbb'."
        )
    rows = [
        {"backend": backend, "threading layer": layer, "median_ms": median, "q25_ms": q25}
        | {"q75_ms": q75}
        for (backend, layer), found in times.items()
        for q25, median, q75 in [np.percentile(found, (25, 50, 75))]
    ]
    return pd.DataFrame(rows).sort_values("median_ms", ignore_index=True)


def is_clear(times: list[list[float]]) -> bool:
    """Return whether the same contestant was the fastest in every repeat, of at least two.

    Examples
    --------
    >>> is_clear([[1.0, 1.1], [2.0, 1.2]]), is_clear([[1.0, 1.3], [2.0, 1.2]]), is_clear([[1.0]])
    (True, False, False)
    """
    repeats = list(zip(*times, strict=True))
    return len(repeats) > 1 and len({repeat.index(min(repeat)) for repeat in repeats}) == 1


@contextmanager
def _processes(
    layers: Sequence[str], settings: tuple[Any, ...]
) -> Iterator[dict[str, ProcessPoolExecutor]]:
    """Start a process for each threading layer that works here, prepared with `settings`."""
    context = multiprocessing.get_context("spawn")
    pools: dict[str, ProcessPoolExecutor] = {}
    before = os.environ.get(VARIABLE)
    try:
        for layer in layers:
            os.environ[VARIABLE] = layer
            pool = pools[layer] = ProcessPoolExecutor(1, context)
            if not pool.submit(_prepare, *settings).result():
                pools.pop(layer).shutdown()
        yield pools
    finally:
        for pool in pools.values():
            pool.shutdown()
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before


_steps: dict[str, Any] = {}  # in a worker process: backend -> a function that makes a step


def _prepare(
    network: NetworkConfig, batch_size: int, threads: int, backends: Sequence[BackendName]
) -> bool:
    """Make a trainer for every backend that can be loaded, and a step with each; are there any?"""
    from ..model.network import SparseMLP
    from ..training.trainer import Trainer

    if threading_layer().name != os.environ[VARIABLE]:
        return False  # it is not there, and another was taken
    rng = np.random.default_rng(0)
    n_features, *_, n_classes = network.layer_sizes
    X = rng.standard_normal((batch_size, n_features), dtype=np.float32)
    y = rng.integers(n_classes, size=batch_size).astype(np.int32)
    for backend in backends:
        config = TrainingConfig(backend=backend, threads=threads, batch_size=batch_size)
        try:
            trainer = Trainer(SparseMLP(network, progress=False), config)
            trainer.step(X, y)
        except BackendError:
            continue
        _steps[backend] = lambda trainer=trainer: trainer.step(X, y)
    return bool(_steps)


def _measure() -> dict[str, float]:
    """Return the milliseconds of a step with every backend."""
    times = {}
    for backend, step in _steps.items():
        step()  # fills the caches again
        calls, elapsed, start = 0, 0.0, time.perf_counter()
        while calls < BLOCK_STEPS or elapsed < BLOCK_SECONDS:
            step()
            calls, elapsed = calls + 1, time.perf_counter() - start
        times[backend] = 1000 * elapsed / calls
    return times
