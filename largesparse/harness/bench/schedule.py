"""How `largesparse bench` spends its time: repeats in turns, until the time limit is reached."""

from __future__ import annotations

import fnmatch
import shlex
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import psutil
from tqdm.auto import tqdm

from ..._version import __version__
from ...errors import LargeSparseError
from ...machine.signals import Interrupted
from ...machine.threads import available_threads, usable_cores
from ...machine.usage import let_threads_sleep
from ..ladder import RUNGS
from ..noise import NoiseMeter, reference_seconds
from ..records import new_record
from ..series import short
from .cases import Case, makers_of, try_to_make
from .children import PHASES, RANKS_ROWS, run_ranks, run_size
from .results import Bench, Figure

SETUP_SHARE = 0.5  # of the time, after which what is not compiled is left out
SIZES = (100_000, *RUNGS)
FIRST_SIZE_SECONDS, RANKS_SECONDS = 25.0, 20.0  # before any is measured
VISIT_SECONDS = 4.0  # of repeats in a process that has made its network
MOST_WORKERS = 4
NO_TIME = "no time was left: give more --minutes"


class Group(ABC):
    """Figures that share a part of the time."""

    share: float  # of the time
    used = 0.0  # seconds

    def __init__(self, bench: Bench, wanted: Callable[[str], bool]) -> None:
        self.bench, self.wanted = bench, wanted

    @abstractmethod
    def expected(self, left: float) -> float | None:
        """Return the seconds that the next turn is expected to take; None where there is none."""

    @abstractmethod
    def turn(self, left: float) -> None:
        """Measure once more, within the seconds that are left."""

    def add(self, figure: Figure, times: list[float], reference: list[float]) -> None:
        """Add repeats, if there are any, to the figure of that name."""
        if not times:
            return
        known = self.bench.figure(figure.name)
        if known is None:
            self.bench.figures.append(known := figure)
        known.times_s += times
        known.reference_s += reference


class Turns(Group):
    """All that is timed in this process: a turn times every case once, in random order."""

    share = 0.45

    def __init__(self, *given: Any, progress: Callable[[str], None], meter: NoiseMeter) -> None:
        super().__init__(*given)
        self.cases: list[Case] = []
        self.progress, self.meter = progress, meter
        self.rng, self.last = np.random.default_rng(0), 0.0

    def prepare(self, threads: int, stack: ExitStack, end: float) -> None:
        """Make the cases, which compiles their kernels."""
        for name, make in makers_of(threads, stack).items():
            if not self.wanted(name):
                continue
            self.progress(f"preparing {name}")
            case = NO_TIME if time.monotonic() > end else try_to_make(make)
            if isinstance(case, str):
                self.bench.left_out[name] = case
            else:
                self.cases.append(case)

    def expected(self, left: float) -> float | None:
        return 1.1 * self.last if self.cases else None

    def turn(self, left: float) -> None:
        started = time.monotonic()
        self.meter.tick()
        for k in self.rng.permutation(len(self.cases)):
            case = self.cases[k]
            self.progress(case.figure.name)
            let_threads_sleep()
            reference = reference_seconds()
            self.add(case.figure, [case.seconds()], [reference])
        self.last = time.monotonic() - started


class Sizes(Group):
    """The phases of sizes of Table 4: ever larger ones as far as the time goes, then again."""

    share = 0.35

    def __init__(self, *given: Any, threads: int, seconds: float) -> None:
        super().__init__(*given)
        self.threads, self.budget = threads, self.share * seconds
        self.took: dict[int, float] = {}  # neurons -> seconds of the last visit
        self.visits: dict[int, int] = {}
        self.waiting = [n for n in SIZES if self.wanted(f"ladder/{short(n)}/epoch")]

    def _choose(self) -> tuple[int, float] | None:
        """Return the next size and the seconds that it is expected to take."""
        if self.waiting:
            neurons = self.waiting[0]
            seconds = FIRST_SIZE_SECONDS
            if self.took:
                largest = max(self.took)
                seconds = 1.2 * self.took[largest] * neurons / largest
            if seconds <= self.budget - self.used or not self.took:
                return neurons, seconds
        if not self.took:
            return None
        neurons = min(self.took, key=lambda size: (self.visits[size], size))
        return neurons, 1.2 * self.took[neurons]

    def expected(self, left: float) -> float | None:
        chosen = self._choose()
        return None if chosen is None else chosen[1]

    def turn(self, left: float) -> None:
        chosen = self._choose()
        assert chosen is not None
        neurons, started = chosen[0], time.monotonic()
        if neurons in self.waiting:
            self.waiting.remove(neurons)
        try:
            found = run_size(neurons, self.threads, VISIT_SECONDS, left)
        except LargeSparseError as error:
            self.bench.left_out[f"ladder/{short(neurons)}"] = str(error)
            if neurons not in self.took:  # what is larger does not fit either
                self.waiting.clear()
            self.took.pop(neurons, None)
            return
        settings = {"neurons": neurons, "connections": found["connections"]}
        settings["threads"] = self.threads
        for phase in PHASES:
            figure = Figure(f"ladder/{short(neurons)}/{phase}", "ladder", settings=settings)
            figure.peak_bytes = found["peak_bytes"] if phase == "epoch" else None
            self.add(figure, found["times"][phase], found["reference"][phase])
        self.took[neurons] = time.monotonic() - started
        self.visits[neurons] = self.visits.get(neurons, 0) + 1

    def finish(self) -> None:
        """Say which sizes were not reached."""
        for neurons in self.waiting:
            self.bench.left_out[f"ladder/{short(neurons)}"] = NO_TIME


class Jobs(Group):
    """A small training by one process, and by ranks where there is `mpiexec`, in turns."""

    share = 0.2

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        workers = min(MOST_WORKERS, max(2, available_threads()))
        self.jobs = {"ranks/sequential": (1, "sequential")}
        for algorithm in ("wasap", "wassp"):
            self.jobs[f"ranks/{algorithm}, {workers} workers"] = (workers + 1, algorithm)
        self.jobs = {name: job for name, job in self.jobs.items() if self.wanted(name)}
        self.took = dict.fromkeys(self.jobs, RANKS_SECONDS)
        self.turns = 0

    def _choose(self) -> str:
        return list(self.jobs)[self.turns % len(self.jobs)]

    def expected(self, left: float) -> float | None:
        return 1.1 * self.took[self._choose()] if self.jobs else None

    def turn(self, left: float) -> None:
        name, started = self._choose(), time.monotonic()
        ranks, algorithm = self.jobs[name]
        reference = reference_seconds()
        try:
            times = run_ranks(ranks, algorithm, left)
        except LargeSparseError as error:
            self.bench.left_out[name] = str(error)
            del self.jobs[name]
            return
        settings = {"ranks": ranks, "algorithm": algorithm}
        figure = Figure(name, "ranks", work=RANKS_ROWS, unit="samples", settings=settings)
        self.add(figure, times, [reference] * len(times))
        self.took[name] = time.monotonic() - started
        self.turns += 1

    def finish(self) -> None:
        """Say which jobs had no turn."""
        for name in self.jobs:
            if self.bench.figure(name) is None:
                self.bench.left_out[name] = NO_TIME


def run_bench(
    *, minutes: float, threads: int, only: str = "*", progress: bool | None = None
) -> Bench:
    """Measure until the time is over, or Ctrl-C: what was measured until then is returned.

    Parameters
    ----------
    minutes : float
        The time limit; compiling counts.
    threads : int
        Of every contestant but the ranks, which have one each.
    only : str
        A pattern of figures' names, as the shell's: "step/*".
    progress : bool, optional
        Whether to show a bar; by default on terminals.
    """
    started = time.monotonic()
    end = started + 60 * minutes
    bench = _new_bench(minutes, threads)
    hide = None if progress is None else not progress
    form = "{l_bar}{bar}| {n:.0f} of {total:.0f} s, {postfix}"
    with (
        NoiseMeter() as meter,
        ExitStack() as stack,
        tqdm(total=60 * minutes, bar_format=form, leave=False, disable=hide) as bar,
    ):

        def show(name: str) -> None:
            bar.n = min(bar.total, time.monotonic() - started)
            bar.set_postfix_str(name)

        given = bench, lambda name: fnmatch.fnmatch(name, only)
        turns = Turns(*given, progress=show, meter=meter)
        sizes, jobs = Sizes(*given, threads=threads, seconds=60 * minutes), Jobs(*given)
        try:
            turns.prepare(threads, stack, started + SETUP_SHARE * 60 * minutes)
            if turns.cases:
                turns.turn(0.0)  # however long it took to compile
            _take_turns([turns, sizes, jobs], end, show)
            bench.complete = True
        except (KeyboardInterrupt, Interrupted):
            pass
        sizes.finish()
        jobs.finish()
    bench.noise = meter.result()
    bench.seconds = time.monotonic() - started
    bench.figures.sort(key=lambda figure: figure.name)
    return bench


def _take_turns(groups: list[Group], end: float, show: Callable[[str], None]) -> None:
    """Give the turns to the group that has had the least of its share, while one fits."""
    while True:
        left = end - time.monotonic()
        fitting = []
        for group in groups:
            expected = group.expected(left)
            if expected is not None and expected <= left:
                fitting.append(group)
        if not fitting:
            return
        group = min(fitting, key=lambda one: one.used / one.share)
        show(type(group).__name__.lower())
        started = time.monotonic()
        group.turn(left)
        group.used += time.monotonic() - started


def _new_bench(minutes: float, threads: int) -> Bench:
    """Return a run without figures: where and with what it is made."""
    record = new_record("bench")
    names = ("commit", "timestamp", "versions", "cpu")
    return Bench(
        [],
        version=__version__,
        cores=usable_cores(),
        memory_bytes=psutil.virtual_memory().total,
        threads=threads,
        minutes=minutes,
        command=shlex.join(["largesparse", *sys.argv[1:]]),
        **{name: getattr(record, name) for name in names},
    )
