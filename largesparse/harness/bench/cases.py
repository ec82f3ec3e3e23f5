"""What `largesparse bench` times in its own process: limits, steps, prediction, peers."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ...backends import BACKENDS
from ...backends.limits import arithmetic_peak, gather, sequential_bandwidth
from ...errors import LargeSparseError
from ...machine.threads import available_threads, kernel_threads
from ...training.prediction import Predictor
from ...training.warming import warm_up
from ..noise import reference_kernel
from ..peers import PEERS
from ..peers.ours import Ours
from ..peers.problem import PRESETS, Problem
from .results import Figure

BLOCK_SECONDS = 0.05  # a timing spans at least this, or one call
BANDWIDTH_MIB, BLAS_SIZE = 128, 1024
GATHERED, GATHERS, GATHER_BATCH = 100_000, 500_000, 128  # rows, connections, columns: 49 MiB
PEERS_SHAPE = "fashion"
PREDICTED_ROWS = 2048
CANNOT = (ImportError, LargeSparseError, MemoryError)


@dataclass
class Case:
    """A figure, and how a repeat of it is timed in seconds."""

    figure: Figure
    seconds: Callable[[], float]


def time_of(call: Callable[[], object]) -> float:
    """Return the seconds of a call: the mean of as many as fill a block, after one untimed."""
    call()
    calls, elapsed, started = 0, 0.0, time.perf_counter()
    while elapsed < BLOCK_SECONDS:
        call()
        calls, elapsed = calls + 1, time.perf_counter() - started
    return elapsed / calls


def try_to_make(make: Callable[[], Case]) -> Case | str:
    """Return a case, or why it cannot run here."""
    try:
        return make()
    except CANNOT as error:
        return str(error) or type(error).__name__


def makers_of(threads: int, stack: ExitStack) -> dict[str, Callable[[], Case]]:
    """Return what makes each case, by the name of its figure.

    Parameters
    ----------
    threads : int
        Of every contestant.
    stack : ExitStack
        Ends worker processes as it is left.
    """
    makers: dict[str, Callable[[], Case]] = {}
    for name, limit in LIMITS.items():
        makers[f"limits/{name}"] = partial(limit, threads, f"limits/{name}")
    for backend in BACKENDS:
        for shape in PRESETS:
            name = f"step/{backend}/{shape}"
            makers[name] = partial(_step, name, shape, threads, partial(Ours, backend=backend))
    name = f"step/fused, bfloat16/{PEERS_SHAPE}"
    bfloat16 = partial(Ours, backend="fused", activation_dtype="bfloat16")
    makers[name] = partial(_step, name, PEERS_SHAPE, threads, bfloat16)
    for peer, make in PEERS.items():
        name = f"peers/{peer}/{PEERS_SHAPE}"
        makers[name] = partial(_step, name, PEERS_SHAPE, threads, make)
    for processes in sorted({1, 2, available_threads()}):
        name = f"inference/{processes} process" + "es" * (processes > 1)
        makers[name] = partial(_inference, name, processes, stack)
    return makers


def _step(name: str, shape: str, threads: int, make: Callable[..., Any]) -> Case:
    """Return the time of a training step of a contestant."""
    group, backend, _ = name.split("/")
    if group == "step":
        dtype: Any = "bfloat16" if "bfloat16" in backend else "float32"
        warm_up(backend.partition(",")[0], threads, dtype)  # type: ignore[arg-type]
    problem: Problem = replace(PRESETS[shape], threads=threads)
    contestant = make(problem, problem.batches())
    contestant.step(0)
    figure = Figure(
        name,
        group,
        control=group == "peers",
        work=float(problem.batch_size),
        unit="samples",
        settings={
            "layer_sizes": list(problem.layer_sizes),
            "epsilon": problem.epsilon,
            "connections": int(contestant.connections),
            "threads": threads,
        },
    )
    batches = iter(range(1 << 62))

    def seconds() -> float:
        with threadpool_limits(threads):
            return time_of(lambda: contestant.step(next(batches)))

    return Case(figure, seconds)


def _inference(name: str, processes: int, stack: ExitStack) -> Case:
    """Return the time to predict some rows by worker processes."""
    from ...model.network import SparseMLP

    problem = PRESETS[PEERS_SHAPE]
    warm_up("fused")
    network = SparseMLP(problem.network(), progress=False)
    predictor = stack.enter_context(Predictor(network, processes=processes, backend="fused"))
    shape = (PREDICTED_ROWS, problem.layer_sizes[0])
    X = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    predictor.predict(X)
    settings = {"processes": processes, "layer_sizes": list(problem.layer_sizes)}
    figure = Figure(name, "inference", work=PREDICTED_ROWS, unit="samples", settings=settings)
    return Case(figure, lambda: time_of(lambda: predictor.predict(X)))


def _limit(name: str, work: float, unit: str, threads: int, seconds: Callable[[], float]) -> Case:
    settings = {"threads": threads}
    figure = Figure(name, "limits", control=True, work=work, unit=unit, settings=settings)
    seconds()  # compiles
    return Case(figure, seconds)


def _bandwidth(threads: int, name: str) -> Case:
    nbytes = BANDWIDTH_MIB * 2**20
    call = partial(sequential_bandwidth, threads, BANDWIDTH_MIB)
    return _limit(name, nbytes, "bytes", threads, lambda: nbytes / call())


def _arithmetic(threads: int, name: str) -> Case:
    work = 2 * BLAS_SIZE**3
    return _limit(name, work, "FLOP", threads, lambda: work / arithmetic_peak(threads, BLAS_SIZE))


def _arithmetic_bfloat16(threads: int, name: str) -> Case:
    """A dense product in bfloat16 by PyTorch, since NumPy's BLAS has none."""
    try:
        import torch
    except ImportError as error:
        raise ImportError("NumPy has no product in bfloat16, and torch is not installed") from error
    A = torch.rand(BLAS_SIZE, BLAS_SIZE).to(torch.bfloat16)

    def seconds() -> float:
        torch.set_num_threads(threads)
        return time_of(lambda: A @ A)

    return _limit(name, 2 * BLAS_SIZE**3, "FLOP", threads, seconds)


def _gather(dtype: type, threads: int, name: str) -> Case:
    """Read rows in an order that follows from random connections, and compute nothing."""
    rng = np.random.default_rng(0)
    indices = rng.integers(GATHERED, size=GATHERS, dtype=np.int32)
    indptr = np.linspace(0, GATHERS, GATHERED + 1).astype(np.int32)
    X: Any = np.ones((GATHERED, GATHER_BATCH), dtype=dtype)

    def seconds() -> float:
        with kernel_threads(threads):
            return time_of(lambda: gather(indptr, indices, X, 16))

    nbytes = GATHERS * GATHER_BATCH * X.itemsize
    return _limit(name, nbytes, "bytes", threads, seconds)


def _product(threads: int, name: str) -> Case:
    """SciPy's sparse product on one core, which is the reference kernel for longer."""
    return _limit(name, 1.0, "products", 1, lambda: time_of(reference_kernel()))


LIMITS: dict[str, Callable[[int, str], Case]] = {
    "bandwidth": _bandwidth,
    "gather, float32": partial(_gather, np.float32),
    "gather, bfloat16": partial(_gather, np.uint16),
    "arithmetic, float32": _arithmetic,
    "arithmetic, bfloat16": _arithmetic_bfloat16,
    "sparse product by SciPy": _product,
}
