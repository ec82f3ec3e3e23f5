"""Compare the memory that bigmodel plans with what it takes, for a list of configurations.

    python -m soak check_plan
    python -m soak check_plan --neurons 200k 1M --only fused --tolerance 0.1
    python -m soak check_plan --list

Each configuration is a run of bigmodel, under mpiexec where it has several ranks. All its
processes are watched from outside: their PSS is added up, with pages of libraries as though nothing
else on the machine had them in memory; a single process's peak is VmHWM, which misses nothing.
Pages of memory-mapped data count apart, since the system can evict them. Linux only.

The exit code is 1 where measured divided by planned, of any run, is off 1 by more than the
tolerance. Kernels are compiled and data made beforehand: the first run of all takes about 0.3 GiB
more to compile, and one that makes its data 0.12 GiB.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil

from largesparse import make_large_classification
from largesparse.backends import get_backend
from largesparse.errors import LargeSparseError, ParameterError
from largesparse.harness.scaling import BIGMODEL
from largesparse.machine.launching import start_ranks
from largesparse.machine.sizes import parse_size
from largesparse.training.memory import GIB
from largesparse.training.warming import warm_up

MIB = 2**20
DATA = "/classification-"  # in the path of a mapped data file
PLAN_LINE = re.compile(r"^  (\S.*?) +(\d+\.\d+) GiB$")
HEADER = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ (\d+) *(.*)$")


class Case(NamedTuple):
    """A configuration, and what starts it."""

    name: str
    ranks: int
    flags: tuple[str, ...]

    def command(self, neurons: str, more: Sequence[str]) -> list[str]:
        """Return the command line."""
        run = [*BIGMODEL, f"--neurons={neurons}"]
        return [*start_ranks(self.ranks), *run, *more, *self.flags]


REPLICAS = ("--phase-one-epochs=2", "--epochs=3")  # an evolution in phase one, and none after it
CASES = (
    Case("fused", 1, ("--backend=fused",)),
    Case("fused, 1 thread", 1, ("--backend=fused", "--threads=1")),
    Case("fused, micro-batch 16", 1, ("--backend=fused", "--micro-batch=16")),
    Case("fused, every 2nd layer", 1, ("--backend=fused", "--keep-every=2")),
    Case("fused, bfloat16", 1, ("--backend=fused", "--activation-dtype=bfloat16")),
    Case("fused, sgd", 1, ("--backend=fused", "--optimizer=sgd", "--growth=random")),
    Case("mkl", 1, ("--backend=mkl",)),
    Case("mkl, micro-batch 16", 1, ("--backend=mkl", "--micro-batch=16")),
    Case("fused, 3 ranks", 3, ("--backend=fused",)),
    Case("fused, 3 ranks, 2 slots", 3, ("--backend=fused", "--slots=2")),
    Case("fused, 3 ranks, a phase two", 3, ("--backend=fused", "--slots=2", *REPLICAS)),
    Case(  # with so many updates that they do
        "fused, 3 ranks, replicas evolve",
        3,
        ("--backend=fused", "--epochs=3", "--phase-one-epochs=1", "--batch-size=4"),
    ),
    Case(
        "fused, 3 ranks, bfloat16",
        3,
        ("--backend=fused", "--activation-dtype=bfloat16", *REPLICAS),
    ),
    Case("fused, 5 ranks, 1 slot", 5, ("--backend=fused", "--slots=1", *REPLICAS)),
    Case("mkl, 3 ranks", 3, ("--backend=mkl", *REPLICAS)),
    Case("mkl, 5 ranks, micro-batch 16", 5, ("--backend=mkl", "--micro-batch=16", *REPLICAS)),
    Case("fused, 3 ranks, wassp", 3, ("--backend=fused", "--algorithm=wassp", *REPLICAS)),
    Case("fused, 4 ranks, 2 nodes", 4, ("--backend=fused", "--ranks-per-node=2", *REPLICAS)),
    Case(
        "fused, 4 ranks, 2 nodes, allreduce",
        4,
        ("--backend=fused", "--ranks-per-node=2", "--algorithm=allreduce", *REPLICAS),
    ),
)


class Memory(NamedTuple):
    """Bytes that processes take together."""

    own: int  # that no file stands behind, and libraries
    data: int  # mapped data in the page cache
    pss: int  # as the kernel counts, data included

    def larger(self, other: Memory) -> Memory:
        """Return the larger of each."""
        return Memory(*map(max, self, other))


@dataclass
class Watched:
    """What a run planned and took, in bytes."""

    planned: dict[str, int] = field(default_factory=dict)  # lines of the plan
    phases: dict[str, Memory] = field(default_factory=dict)  # the peak in each, as sampled
    high_water: int = 0  # VmHWM of the largest process

    @property
    def required(self) -> int:
        """Planned bytes, mapped data left out."""
        return next((n for name, n in self.planned.items() if name.startswith("required")), 0)

    def measured(self, ranks: int) -> int:
        """Measured bytes, mapped data left out."""
        peak = max((memory.own for memory in self.phases.values()), default=0)
        if ranks > 1:
            return peak
        mapped = max((memory.data for memory in self.phases.values()), default=0)
        return max(peak, self.high_water - mapped)


def read_plan(lines: Iterable[str]) -> dict[str, int]:
    """Return the bytes of every line of a printed plan."""
    found = (PLAN_LINE.match(line) for line in lines)
    return {match[1]: round(float(match[2]) * GIB) for match in found if match}


def phase_after(line: str, before: str) -> str:
    """Return the phase that begins when bigmodel prints a line."""
    if line.startswith("initialised in"):
        return "before training, epoch 1"
    if match := re.match(r"epoch (\d+)/(\d+):", line):
        last = match[1] == match[2]
        return "after training" if last else f"epoch {int(match[1]) + 1}"
    return before


def add_up(maps: Iterable[str]) -> Memory:
    """Return the memory of processes from the text of their /proc/PID/smaps.

    Memory without a file counts by its PSS; a file's pages count once, as many as the process has
    that has most of them.
    """
    own = pss = 0
    libraries: dict[str, int] = {}
    data: dict[str, int] = {}
    for text in maps:
        files: defaultdict[str, int] = defaultdict(int)
        path, on_disk = "", False
        for line in text.splitlines():
            if line.startswith("Rss:") and on_disk:
                files[path] += 1024 * int(line.split()[1])
            elif line.startswith("Pss:"):
                size = 1024 * int(line.split()[1])
                pss += size
                own += 0 if on_disk else size
            elif match := HEADER.match(line):
                path = match[2]
                on_disk = path.startswith("/") and not path.startswith(("/memfd:", "/dev/"))
        for path, size in files.items():
            known = data if DATA in path else libraries
            known[path] = max(known.get(path, 0), size)
    return Memory(own + sum(libraries.values()), sum(data.values()), pss)


def watch(command: Sequence[str], folder: Path, interval: float) -> Watched:
    """Run bigmodel and return what it planned and took.

    Raises
    ------
    LargeSparseError
        Where it fails.
    """
    out = folder / "output"
    watched, phase, printed = Watched(), "initialisation", 0
    with out.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, text=True)
    try:
        while process.poll() is None:
            lines = out.read_text(errors="replace").splitlines()
            for line in lines[printed:]:
                phase = phase_after(line, phase)
            printed = len(lines)
            pids = [child.pid for child in _family(process.pid)]
            sampled = add_up(filter(None, (_read(pid, "smaps") for pid in pids)))
            watched.phases[phase] = sampled.larger(watched.phases.get(phase, Memory(0, 0, 0)))
            peaks = [_high_water(_read(pid, "status")) for pid in pids]
            watched.high_water = max([watched.high_water, *peaks])
            time.sleep(interval)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    text = out.read_text(errors="replace")
    if process.returncode:
        last = (text.strip().splitlines() or ["no output"])[-1]
        raise LargeSparseError(f"{' '.join(command)} failed: {last}")
    watched.planned = read_plan(text.splitlines())
    return watched


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:  # it has ended
        return ""


def _high_water(status: str) -> int:
    match = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return 1024 * int(match[1]) if match else 0


def describe(case: Case, neurons: str, watched: Watched, tolerance: float) -> list[str]:
    """Return a line about a run, and a line for each of its phases."""
    planned, measured = watched.required, watched.measured(case.ranks)
    ratio = measured / planned
    verdict = "" if abs(ratio - 1) <= tolerance else "  OUTSIDE"
    mib = f"{planned / MIB:>10.0f}{measured / MIB:>10.0f}"
    lines = [f"{case.name:<36}{neurons:>8}{mib}{ratio:>8.2f}{verdict}"]
    for phase, memory in watched.phases.items():
        lines.append(
            f"    {phase:<50}{memory.own / MIB:>12.0f}    data {memory.data / MIB:.0f}, "
            f"PSS with it {memory.pss / MIB:.0f}"
        )
    return lines


def describe_parts(planned: Mapping[str, int]) -> list[str]:
    """Return a line for each part of a plan."""
    return [f"      planned: {name:<58}{size / MIB:>8.0f}" for name, size in planned.items()]


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--neurons", nargs="+", default=["250k"], metavar="N", help="sizes (default 250k)"
    )
    parser.add_argument("--only", metavar="WORD", help="configurations whose name has this word")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.1,
        help="how far measured / planned may be from 1 (default %(default)s)",
    )
    for name, default in (("features", 2048), ("samples", 800)):
        parser.add_argument(
            f"--{name}",
            type=parse_size,
            default=default,
            metavar="N",
            help="default %(default)s",
        )
    parser.add_argument(
        "--interval",
        type=float,
        default=0.1,
        metavar="S",
        help="seconds between two looks (default %(default)s)",
    )
    parser.add_argument("--parts", action="store_true", help="show the parts of the plan as well")
    parser.add_argument("--list", action="store_true", help="print the configurations and stop")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the configurations, print planned beside measured, and return the exit code."""
    options = make_parser().parse_args(argv)
    cases = [case for case in CASES if (options.only or "") in case.name]
    if not cases:
        raise ParameterError(
            f"The 'only' parameter of check_plan must be part of a configuration's name. Got "
            f"{options.only!r} instead. See --list."
        )
    if options.list:
        print("\n".join(f"{case.name:<36}{' '.join(case.flags)}" for case in cases))
        return 0
    if not sys.platform.startswith("linux"):
        raise LargeSparseError("check_plan reads /proc, which only Linux has.")
    for ranks in {case.ranks for case in cases}:
        start_ranks(ranks)  # before minutes of runs: is there an mpiexec?
    for flags in {case.flags[0] for case in cases}:
        backend = get_backend(flags.partition("=")[2])
        dtypes = ("float32", "bfloat16")[: 1 + backend.takes_bfloat16]
        for dtype, whole, rule in itertools.product(dtypes, (True, False), ("sgd", "adamw")):
            warm_up(backend.name, activation_dtype=dtype, whole=whole, optimizer=rule)
    make_large_classification(options.samples, options.features)
    print(f"{'':<36}{'neurons':>8}{'planned':>10}{'measured':>10}   ratio      (MiB)")
    outside = 0
    with tempfile.TemporaryDirectory() as folder:
        for neurons in options.neurons:
            for case in cases:
                more = [f"--features={options.features}", f"--samples={options.samples}"]
                more.append(f"--out={Path(folder) / 'runs.jsonl'}")
                watched = watch(case.command(neurons, more), Path(folder), options.interval)
                print("\n".join(describe(case, neurons, watched, options.tolerance)), flush=True)
                if options.parts:
                    print("\n".join(describe_parts(watched.planned)), flush=True)
                ratio = watched.measured(case.ranks) / watched.required
                outside += abs(ratio - 1) > options.tolerance
    total = len(cases) * len(options.neurons)
    print(f"{total - outside} of {total} within {options.tolerance:.0%}")
    return 1 if outside else 0
