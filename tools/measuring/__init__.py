"""The figures of measure.py, by what they are about, and what they share."""

from __future__ import annotations

import argparse
import inspect
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from largesparse.backends import BACKENDS
from largesparse.machine.sizes import parse_size

PROGRAM = [sys.executable, str(Path(__file__).parents[1] / "measure.py")]  # of child processes
Name = TypeVar("Name", bound=Hashable)


def add_figure(
    figures: Any, name: str, run: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    """Add a figure, which `run` measures and explains; return the parser of its flags."""
    about = inspect.getdoc(run) or ""
    figure: argparse.ArgumentParser = figures.add_parser(
        name,
        help=about.partition("\n")[0],
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    figure.set_defaults(run=run)
    return figure


def add_common(figure: argparse.ArgumentParser, backend: str | None = None) -> None:
    """Add the flags of what trains or predicts in this process."""
    add = figure.add_argument
    add("--backend", choices=BACKENDS, default=backend, help=f"default: {backend or 'mkl'}")
    add("--threads", type=parse_size, default=1, help="default %(default)s")
    add("--seed", type=int, default=0, help="default %(default)s")


def seconds_in_turns(
    contestants: Mapping[Name, Callable[[], object]],
    repeats: int,
    *,
    warm_ups: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, list[float]]:
    """Return the seconds of every call, where all contestants take turns in every repeat.

    What else the machine does then hits all alike. The first `warm_ups` turns are not timed.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in contestants}
    for repeat in range(repeats + warm_ups):
        for name, run in contestants.items():
            started = clock()
            run()
            if repeat >= warm_ups:
                seconds[name].append(clock() - started)
    return seconds
