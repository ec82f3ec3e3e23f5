"""Show where the time of a training step goes: in which kernels, and outside of them.

    python tools/profile_step.py                          # the FashionMNIST net, fused backend
    python tools/profile_step.py --preset madelon
    python tools/profile_step.py --layers 65536,500k,500k,2 --epsilon 10 --threads 2

Every call of a compiled kernel and of a backend's product is timed; what is left of a step is
Python, NumPy and what they wait for. Printed are medians over the steps, in milliseconds. Timing
costs about a microsecond a call, which counts as outside.

--counters adds the processor's counters of every kernel, where Linux lets them be read: cycles,
instructions, misses of the last cache (and the bytes that these read) and of the TLB, of the thread
that calls: so for one thread alone. Where they cannot be read, a line says why.
"""

from __future__ import annotations

import statistics
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

import pandas as pd
from compare_peers import PRESETS, Problem
from numba.core.registry import CPUDispatcher

from largesparse import SparseMLP, Trainer, TrainingConfig
from largesparse.backends import BACKENDS, fused_kernels, get_backend, kernels, step_kernel
from largesparse.errors import ParameterError
from largesparse.machine.counters import Counters
from largesparse.machine.exit_codes import run_command
from largesparse.machine.sizes import parse_size
from largesparse.training.warming import warm_up


class Counting:
    """Counts of events by kernel, over all its calls."""

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self.found: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))

    def add(self, name: str, before: dict[str, int]) -> None:
        for event, count in self.counters.since(before).items():
            self.found[name][event] += count

    def table(self, steps: int) -> str:
        """Return the mean counts of a step, and instructions a cycle."""
        frame = pd.DataFrame(self.found).T / steps
        if {"cycles", "instructions"} <= set(frame):
            frame["instructions / cycle"] = frame["instructions"] / frame["cycles"]
        return frame.to_string(float_format="{:,.4g}".format)


@contextmanager
def timed_kernels(
    owners: Sequence[Any], seconds: dict[str, float], counting: Counting | None = None
) -> Iterator[None]:
    """Add the time of every kernel of some modules, and of every `spmm`, to `seconds`."""
    replaced: list[tuple[Any, str, Any]] = []
    for owner in owners:
        names = vars(owner) if isinstance(owner, ModuleType) else ["spmm"]
        for name in list(names):
            function = getattr(owner, name)
            if name == "spmm" or (
                isinstance(function, CPUDispatcher) and function.__module__ == owner.__name__
            ):
                replaced.append((owner, name, function))
                setattr(owner, name, timed(function, name, seconds, counting))
    try:
        yield
    finally:
        for owner, name, function in replaced:
            if isinstance(owner, ModuleType):
                setattr(owner, name, function)
            else:
                delattr(owner, name)


def timed(
    function: Callable[..., Any],
    name: str,
    seconds: dict[str, float],
    counting: Counting | None = None,
) -> Callable[..., Any]:
    """Return a function that adds its time to seconds[name], and its counts to `counting`."""

    def run(*arguments: Any, **named: Any) -> Any:
        before = counting.counters.read() if counting else {}
        started = time.perf_counter()
        result = function(*arguments, **named)
        seconds[name] += time.perf_counter() - started
        if counting:
            counting.add(name, before)
        return result

    return run


def profile(problem: Problem, options: Any) -> tuple[pd.DataFrame, float]:
    """Return milliseconds and share of every kernel, and the milliseconds of a step."""
    warm_up(options.backend, threads=problem.threads)
    backend = get_backend(options.backend)
    network = SparseMLP(problem.network(), threads=problem.threads)
    config = TrainingConfig(
        backend=options.backend,
        batch_size=problem.batch_size,
        micro_batch=options.micro_batch,
        threads=problem.threads,
        dropout=options.dropout,
    )
    trainer = Trainer(network, config)
    batches = problem.batches()
    owners = [kernels, fused_kernels, step_kernel] + (
        [backend] if options.backend != "fused" else []
    )
    rows, totals, plain = [], [], []
    counting = start_counting(options)
    for step in range(options.steps + 2):
        X, y = batches[step % len(batches)]
        started = time.perf_counter()
        trainer.step(X, y)
        unhindered = time.perf_counter() - started
        seconds: dict[str, float] = defaultdict(float)
        with timed_kernels(owners, seconds, counting if step >= 2 else None):
            started = time.perf_counter()
            trainer.step(X, y)
            total = time.perf_counter() - started
        if step >= 2:
            rows.append({**seconds, "outside kernels": total - sum(seconds.values())})
            totals.append(total)
            plain.append(unhindered)
    table = pd.DataFrame(rows).fillna(0).median().sort_values(ascending=False).to_frame("ms") * 1e3
    table["share"] = table["ms"] / (statistics.median(totals) * 1e3)
    if counting:
        print(f"counts a step, by kernel:\n{counting.table(options.steps)}\n")
        counting.counters.close()
    return table, statistics.median(plain) * 1e3


def start_counting(options: Any) -> Counting | None:
    """Return what counts events of this thread, or say why there is nothing."""
    if not options.counters:
        return None
    if options.threads != 1:
        raise ParameterError(
            "The 'counters' are of the thread that calls the kernels: --threads must be 1. "
            f"Got {options.threads} instead."
        )
    counters = Counters()
    if counters.why:
        print(f"no hardware counters: {counters.why}")
        return None
    return Counting(counters)


def make_parser() -> ArgumentParser:
    """Return the parser of the command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="fashion", help=f"one of {', '.join(PRESETS)}")
    parser.add_argument("--layers", help="sizes from features to classes, in place of a preset")
    parser.add_argument("--epsilon", type=float, default=20.0, help="with --layers (%(default)s)")
    parser.add_argument("--batch-size", type=parse_size, default=128, help="with --layers")
    parser.add_argument("--micro-batch", type=parse_size, help="default: the whole batch")
    parser.add_argument("--recipe", default="paper", help="paper or width")
    parser.add_argument("--dropout", type=float, default=0.3, help="default %(default)s")
    parser.add_argument("--backend", choices=BACKENDS, default="fused", help="default %(default)s")
    parser.add_argument("--threads", type=parse_size, default=1, help="default %(default)s")
    parser.add_argument("--steps", type=parse_size, default=51, help="default %(default)s")
    parser.add_argument("--counters", action="store_true", help="cycles, misses, ... by kernel")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Profile the step that was asked for."""
    options = make_parser().parse_args(argv)
    if options.layers:
        sizes = tuple(parse_size(size) for size in options.layers.split(","))
        problem = Problem(sizes, options.epsilon, options.batch_size)
    elif options.preset in PRESETS:
        problem = PRESETS[options.preset]
    else:
        raise ParameterError(
            f"--preset must be one of {', '.join(PRESETS)}. Got {options.preset!r} instead."
        )
    problem = replace(problem, threads=options.threads, recipe=options.recipe)
    table, step = profile(problem, options)
    print(table.to_string(formatters={"ms": "{:.3f}".format, "share": "{:.1%}".format}))
    print(f"a step without this timing: {step:.3f} ms")


if __name__ == "__main__":
    sys.exit(run_command(main))
