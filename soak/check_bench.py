"""Do runs of `largesparse bench` agree where nothing has changed, and differ by a slower kernel?

    python -m soak check_bench --out FOLDER
    python -m soak check_bench --out FOLDER --times 3 --minutes 2 --slow-down 0.3

Runs the benchmark several times, and once from a clone whose kernels take that much longer (see
`check_continuous`). Every two of the unchanged runs are compared, and each with the slowed one. A
row is printed for each comparison: how many figures one cannot tell apart, how many steps of the
backend `fused` are called slower, and what is said of them together. The exit status is 1 where,
over all pairs of unchanged runs, fewer than 95 of 100 figures, or of 100 groups of them, "cannot
tell", or where the steps of the slowed run are not called slower together.

The files are kept in --out; those that are there are not made again, so that more runs can be
added. With the defaults it takes an hour, in which nothing else should run.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from largesparse.errors import LargeSparseError, check_range
from largesparse.harness.bench.compare import OF_CONTROLS, compare_benches, drift_between
from largesparse.harness.bench.results import Bench, read_bench
from largesparse.harness.uncertainty import SLOWER, UNCLEAR, Ratio
from largesparse.machine.sizes import parse_size

from .check_continuous import ROOT, git, plant

STEPS = "step/fused"  # figures of what is slowed
LEAST_ALIKE = 0.95  # of the figures of two unchanged runs


def run_bench(package: Path, minutes: float, out: Path) -> Bench:
    """Return a run of the package that lies in a folder, from its file where that is there.

    Raises
    ------
    LargeSparseError
        Where it fails, with what it said, or where the file is of a run of another length.
    """
    if not out.exists():
        command = [sys.executable, "-m", "largesparse", "bench", "--minutes", str(minutes)]
        environment = os.environ | {"PYTHONPATH": str(package)}
        result = subprocess.run(
            [*command, "--out", str(out.resolve())],
            cwd=out.parent,  # where no package lies that would be imported instead
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise LargeSparseError(f"bench failed: {result.stderr.strip()[-3000:]}")
    bench = read_bench(out)
    if bench.minutes != minutes:
        raise LargeSparseError(
            f"{out} is of {bench.minutes:g} minutes, not of {minutes:g}. Give --minutes "
            f"{bench.minutes:g}, or another folder."
        )
    return bench


def compared(names: tuple[str, str], old: Bench, new: Bench) -> dict[str, object]:
    """Return the counts of the verdicts of two runs, and what was told.

    Raises
    ------
    LargeSparseError
        Where the runs were too short to say anything of the steps together.
    """
    table = compare_benches(old, new)
    single, groups = table[table["figures"] == 1], table[table["figures"] > 1]
    steps = single[single["figure"].str.startswith(STEPS)]
    together = table[table["figure"] == f"{STEPS}/*"]
    if together.empty:
        raise LargeSparseError(
            f"{' and '.join(names)} have fewer than two figures {STEPS}/* of five repeats or more: "
            "give more --minutes, and another folder."
        )
    told = table[table["verdict"] != UNCLEAR]
    return {
        "old": names[0],
        "new": names[1],
        "noise": drift_between(old, new).noise(),
        "figures": len(single),
        "alike": int((single["verdict"] == UNCLEAR).sum()),
        "groups": len(groups),
        "groups alike": int((groups["verdict"] == UNCLEAR).sum()),
        "slower steps": f"{(steps['verdict'] == SLOWER).sum()} of {len(steps)}",
        "steps together": str(Ratio(*together.iloc[0][OF_CONTROLS])),
        "are": together.iloc[0]["verdict"],
        "told": ", ".join(
            f"{name} {ratio:.2f}"
            for name, ratio in zip(told["figure"], told["by_controls"], strict=True)
        ),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run, compare, print, and return the exit status."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=parse_size, default=5, help="unchanged runs (%(default)s)")
    parser.add_argument("--minutes", type=float, default=10.0, help="of a run (%(default)g)")
    parser.add_argument(
        "--slow-down", type=float, default=0.15, help="of the kernels (%(default)g); 0: no such run"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for the files")
    options = parser.parse_args(argv)
    check_range("times", options.times, "check_bench", low=2)
    check_range("slow-down", options.slow_down, "check_bench", low=0)
    options.out.mkdir(parents=True, exist_ok=True)
    runs: dict[str, Bench] = {}
    with tempfile.TemporaryDirectory() as scratch:
        packages = {f"run{k + 1}": ROOT for k in range(options.times)}
        if options.slow_down:
            clone = Path(scratch) / "clone"
            commits = plant(clone, options.slow_down)
            git(clone, "checkout", "--quiet", commits["slower"])
            packages[f"slowed-{options.slow_down:g}"] = clone
        for name, package in tqdm(packages.items(), desc="runs", disable=None):
            runs[name] = run_bench(package, options.minutes, options.out / f"{name}.json")
    slowed = runs.pop(f"slowed-{options.slow_down:g}", None)
    pairs = [
        compared((old, new), runs[old], runs[new]) for old, new in itertools.combinations(runs, 2)
    ]
    unchanged = pd.DataFrame(pairs)
    shares = {
        name: unchanged[f"{prefix}alike"].sum() / unchanged[name].sum()
        for name, prefix in (("figures", ""), ("groups", "groups "))
    }
    alike = min(shares.values())
    print(unchanged.to_string(index=False))
    for name, share in shares.items():
        print(f"unchanged: {share:.1%} of the {name} of {len(pairs)} pairs cannot be told apart")
    if slowed is None:
        return int(alike < LEAST_ALIKE)
    found = pd.DataFrame([compared((name, "slowed"), run, slowed) for name, run in runs.items()])
    print(found.to_string(index=False))
    seen = int((found["are"] == SLOWER).sum())
    print(f"slowed by {options.slow_down:.0%}: called slower beside {seen} of {len(found)} runs")
    return int(alike < LEAST_ALIKE or seen < len(found))
