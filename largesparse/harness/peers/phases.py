"""Every phase of a contestant, each measured in a process that does nothing else."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pandas as pd
import psutil
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from ...errors import MemoryPlanError
from ...machine.usage import peak_rss_bytes, start_peak_rss
from ...training.memory import available_memory
from . import Maker
from .problem import SEED, Batches, Contestant, Problem

LONG_SECONDS = 20.0  # of a phase: what takes longer is measured in part
STEPS = 15  # timed one by one
MIB = 2**20


def run_alone(function: Callable[..., Any], *arguments: Any, seconds: float | None = None) -> Any:
    """Return what a function returns in a fresh process.

    Raises
    ------
    TimeoutError
        Where it takes longer than `seconds`.
    MemoryError
        Where it asked for more memory than was free, or the system ended it.
    RuntimeError
        Where it failed otherwise, with its message.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_report, args=(sender, function, arguments), daemon=True)
    child.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            raise TimeoutError(f"it took longer than {seconds:g} s")
        result = receiver.recv()
    except EOFError as error:
        raise MemoryError("the system ended the process") from error
    finally:
        child.kill()
        child.join()
        receiver.close()
    if isinstance(result, BaseException):
        raise result
    return result


def _report(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Send what a function returns, or why it does not."""
    free = available_memory()
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (free, free))  # before the system ends another
    except ImportError:  # Windows
        pass
    try:
        result = function(*arguments)
    except (ImportError, MemoryPlanError) as error:
        result = error
    except Exception as error:
        kind = MemoryError if "alloc" in str(error) or isinstance(error, MemoryError) else None
        result = (kind or RuntimeError)(f"{type(error).__name__}: {error}")
    sender.send(result)


def make_warm(make: Maker, problem: Problem) -> None:
    """Load and compile everything, on a small net with the same batches."""
    sizes = (problem.layer_sizes[0], *(20 for _ in problem.layer_sizes[1:-1]))
    small = replace(problem, layer_sizes=(*sizes, problem.layer_sizes[-1]), epsilon=2.0)
    batches = small.batches()
    contestant = make(small, batches)
    for index in range(3):
        contestant.step(index)
    try_to_evolve(contestant.evolve)
    contestant.predict(batches[0][0])


def try_to_evolve(evolve: Callable[[], None]) -> float:
    """Return the seconds of an evolution, or NaN where a contestant has none."""
    start = time.perf_counter()
    try:
        evolve()
    except NotImplementedError:
        return float("nan")
    return time.perf_counter() - start


def measure_phases(make: Maker, problem: Problem, rows: int, test_rows: int) -> dict[str, Any]:
    """Return the seconds of every phase of one contestant, and what memory it took.

    An epoch is `rows` rows in random order, taken from an array batch by batch; inference is of
    `test_rows` rows. What would take longer than `LONG_SECONDS` is measured on fewer rows.
    `memory_mib` is the peak of resident memory above that of the warm process.
    """
    threadpool_limits(problem.threads)
    start = time.perf_counter()
    make_warm(make, problem)
    warm_s = time.perf_counter() - start
    rng = np.random.default_rng(SEED)
    features, classes = problem.layer_sizes[0], problem.layer_sizes[-1]
    count = max(rows, test_rows)
    X = rng.standard_normal((count, features), dtype=np.float32)
    y = rng.integers(classes, size=count, dtype=np.int32)
    before, initialisation_s, contestant = initialise(make, problem, problem.batches())
    contestant.step(0)
    steps = [timed(contestant.step, index) for index in within(range(STEPS))]
    step_s = float(np.median(steps))

    order = rng.permutation(rows)
    size = problem.batch_size
    fitting = max(1, int(LONG_SECONDS / step_s))
    blocks = [order[k : k + size] for k in range(0, rows - size + 1, size)][:fitting]
    start = time.perf_counter()
    for block in blocks:
        contestant.train(X[block], y[block])
    epoch_s = (time.perf_counter() - start) * rows / (len(blocks) * size)

    evolution_s = try_to_evolve(contestant.evolve)
    first = min(size, test_rows)
    predicted = max(first, min(test_rows, int(LONG_SECONDS / (step_s / size))))
    contestant.predict(X[:first])
    inference_s = timed(contestant.predict, X[:predicted]) * test_rows / predicted
    return {
        "contestant": contestant.name,
        "connections": contestant.connections,
        "warm_s": warm_s,
        "initialisation_s": initialisation_s,
        "step_ms": 1000 * step_s,
        "epoch_s": epoch_s,
        "evolution_s": evolution_s,
        "inference_s": inference_s,
        "memory_mib": (peak_rss_bytes() - before) / MIB,
    }


def initialise(make: Maker, problem: Problem, batches: Batches) -> tuple[int, float, Contestant]:
    """Return the bytes of this process before, the seconds it took, and the contestant."""
    start_peak_rss()
    before = psutil.Process().memory_info().rss
    start = time.perf_counter()
    contestant = make(problem, batches)
    initialisation_s = time.perf_counter() - start
    threadpool_limits(problem.threads)  # of libraries that have been loaded since
    return before, initialisation_s, contestant


def timed(function: Callable[..., Any], *arguments: Any) -> float:
    """Return the seconds of a call."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def within(values: Sequence[int]) -> Iterator[int]:
    """Yield values, at least three, until `LONG_SECONDS` are over."""
    start = time.perf_counter()
    for place, value in enumerate(values):
        if place >= 3 and time.perf_counter() - start > LONG_SECONDS:
            return
        yield value


def compare_phases(
    problem: Problem, makers: Mapping[str, Maker], repeats: int, rows: int, test_rows: int
) -> pd.DataFrame:
    """Return a row of `measure_phases` for every repeat of every contestant, in random order."""
    found, rng = [], np.random.default_rng(SEED)
    left = dict(makers)
    for _ in tqdm(range(repeats), desc="repeats", leave=False, disable=None):
        for name in rng.permutation(list(left)):
            try:
                found.append(run_alone(measure_phases, left[name], problem, rows, test_rows))
            except (ImportError, MemoryPlanError, MemoryError, RuntimeError) as error:
                tqdm.write(f"{name} is skipped: {error}")
                del left[name]
    return pd.DataFrame(found)


def try_size(make: Maker, problem: Problem) -> dict[str, Any]:
    """Return what one size costs: initialisation, the faster of two steps, evolution, memory."""
    threadpool_limits(problem.threads)
    make_warm(make, problem)
    batches = problem.batches()
    before, initialisation_s, contestant = initialise(make, problem, batches)
    steps = [timed(contestant.step, index) for index in range(2)]
    evolution_s = try_to_evolve(contestant.evolve)
    contestant.predict(batches[0][0])
    return {
        "contestant": contestant.name,
        "neurons": sum(problem.layer_sizes[1:-1]),
        "connections": contestant.connections,
        "initialisation_s": initialisation_s,
        "step_s": min(steps),
        "evolution_s": evolution_s,
        "memory_mib": (peak_rss_bytes() - before) / MIB,
    }


def find_largest(problem: Problem, makers: Mapping[str, Maker], seconds: float) -> pd.DataFrame:
    """Double the hidden layers of every contestant until one does not fit, or takes too long.

    Returns
    -------
    A row for each contestant: its largest size, and in `next` why twice as many neurons failed.
    """
    found = []
    for name, make in tqdm(makers.items(), desc="contestants", leave=False, disable=None):
        last: dict[str, Any] | None = None
        for doubling in itertools.count():
            hidden = (n << doubling for n in problem.layer_sizes[1:-1])
            sizes = (problem.layer_sizes[0], *hidden, problem.layer_sizes[-1])
            try:
                last = run_alone(
                    try_size, make, replace(problem, layer_sizes=sizes), seconds=seconds
                )
            except (ImportError, MemoryPlanError, MemoryError, RuntimeError, TimeoutError) as error:
                reason = str(error)
                break
        if last is None:
            tqdm.write(f"{name} is skipped: {reason}")
        else:
            found.append(last | {"next": reason})
    return pd.DataFrame(found)
