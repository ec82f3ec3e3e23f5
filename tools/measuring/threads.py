"""What can run the threads of the kernels, on an idle machine and on a busy one."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd

from largesparse.backends import BACKENDS
from largesparse.harness.peers.ours import Ours
from largesparse.harness.peers.problem import PRESETS, Problem
from largesparse.harness.presets import hidden_sizes, nearest_row
from largesparse.harness.uncertainty import ratio_of
from largesparse.machine.sizes import parse_size
from largesparse.machine.threads import usable_cores

from . import PROGRAM, add_figure

ENVIRONMENTS = {
    "default": {},
    "1": {},
    "tbb": {"NUMBA_THREADING_LAYER": "tbb"},
    "omp": {"NUMBA_THREADING_LAYER": "omp", "GOMP_SPINCOUNT": "300000"},
    "passive": {"NUMBA_THREADING_LAYER": "omp", "OMP_WAIT_POLICY": "PASSIVE"},
    "short": {"NUMBA_THREADING_LAYER": "omp"},
    "workqueue": {"NUMBA_THREADING_LAYER": "workqueue"},
}
REFERENCES = ("1", "omp")  # contestants that the others' steps are compared with
FEATURES = 1000  # of the data of a network named by its neurons


def threading(options: argparse.Namespace) -> None:
    """Compare what can run the threads of the kernels, on an idle machine and on a busy one.

    Each contestant trains in a process of its own. In turns, each trains for a moment, first alone,
    then beside processes that keep every core busy. It prints a step's median, tenth and ninetieth
    percentile in milliseconds, and the median over the rounds of the ratio to one thread and to
    OpenMP as it is by default.

    Contestants: `default` is what largesparse chooses; `tbb`, `omp` and `workqueue` are numba's
    layers by name, `passive` is `omp` with OMP_WAIT_POLICY=PASSIVE, `1` is one thread.
    """
    if options.serve:
        serve(options.serve[0], options.serve[1], int(options.serve[2]))
        return
    contestants = [
        Contestant(name, options.net, options.backend, 1 if name == "1" else options.threads)
        for name in options.layers
    ]
    try:
        table = measure(contestants, options.rounds, options.seconds, options.busy)
    finally:
        for each in contestants:
            each.end()
    print(table.round(2).to_string(index=False))


def problem(net: str, threads: int) -> Problem:
    """Return a preset of `compare_peers`, or Table 4's network of so many neurons."""
    if net in PRESETS:
        sizes, options = PRESETS[net].layer_sizes, vars(PRESETS[net])
        return Problem(**{**options, "layer_sizes": sizes, "threads": threads})
    neurons = parse_size(net)
    row = nearest_row(neurons)
    sizes = (FEATURES, *hidden_sizes(neurons, row.hidden_layers), 2)
    return Problem(sizes, epsilon=row.epsilon, batch_size=128, threads=threads, recipe="width")


class Contestant:
    """A process that trains when it is asked to, and tells how long its steps took."""

    def __init__(self, name: str, net: str, backend: str, threads: int) -> None:
        self.name = name
        command = [*PROGRAM, "threading", "--serve", net, backend, str(threads)]
        environment = {**os.environ, **ENVIRONMENTS[name]}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def train(self, seconds: float) -> list[float]:
        """Train for so long, three steps at least, and return each step's seconds."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(seconds, file=self.process.stdin, flush=True)
        steps: list[float] = json.loads(self.process.stdout.readline())
        return steps

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


def serve(net: str, backend: str, threads: int) -> None:
    """Train for as many seconds as each line of standard input says."""
    task = problem(net, threads)
    ours = Ours(task, task.batches(), backend)
    for _ in range(3):
        ours.step(0)
    for line in sys.stdin:
        end, steps = time.perf_counter() + float(line), []
        while len(steps) < 3 or time.perf_counter() < end:
            start = time.perf_counter()
            ours.step(len(steps))
            steps.append(time.perf_counter() - start)
        print(json.dumps(steps), flush=True)


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Keep `count` cores busy with other processes."""
    busy = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(busy) for _ in range(count)]
    try:
        if processes:
            time.sleep(1)  # until they are all busy
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(
    contestants: Sequence[Contestant], rounds: int, seconds: float, busy: int
) -> pd.DataFrame:
    """Let all train in turns; return a row for each, on an idle and on a busy machine."""
    rows = []
    for count in (0, busy):
        steps: dict[str, list[list[float]]] = {each.name: [] for each in contestants}
        with neighbours(count):
            for _ in range(rounds):
                for each in contestants:
                    steps[each.name].append(each.train(seconds))
        for name, found in steps.items():
            milliseconds = 1e3 * np.concatenate(found)
            row = {
                "neighbours": count,
                "threads run by": name,
                "median ms": np.median(milliseconds),
                "10 %": np.quantile(milliseconds, 0.1),
                "90 %": np.quantile(milliseconds, 0.9),
            }
            for other in REFERENCES:
                if other in steps:
                    turns = [
                        [float(np.median(turn)) for turn in steps[who]] for who in (name, other)
                    ]
                    row[f"of {other}"] = str(ratio_of(*turns))
            rows.append(row)
    return pd.DataFrame(rows)


def names_of(text: str) -> list[str]:
    """Return the contestants of a list with commas."""
    names = text.split(",")
    if unknown := [name for name in names if name not in ENVIRONMENTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(ENVIRONMENTS)}")
    return names


def add_figures(figures: Any) -> None:
    """Add threading."""
    add = add_figure(figures, "threading", threading).add_argument
    add("--net", default="fashion", help=f"{', '.join(PRESETS)}, or neurons such as 1M")
    add("--backend", default="fused", choices=BACKENDS)
    add("--threads", type=int, default=usable_cores())
    add("--layers", type=names_of, default="default,omp,passive,1", help="separated by commas")
    add("--rounds", type=int, default=25)
    add("--seconds", type=float, default=0.3, help="of one turn")
    add("--busy", type=int, default=usable_cores(), help="busy neighbours")
    add("--serve", nargs=3, help=argparse.SUPPRESS)
