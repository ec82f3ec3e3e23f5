"""Does `asv continuous` see a slower kernel, and keep silent where nothing has changed?

    python -m soak check_continuous
    python -m soak check_continuous --times 1 --slow-down 0.5 --bench step.Density

In a clone of this repository two commits are made: one changes nothing that runs, in the other the
kernels of training take that much longer. `asv continuous` compares each with the newest commit,
in turns, in an environment that asv builds; the rounds of both commits take turns too. A row is
printed for each comparison; the exit status is 1 where asv was wrong once.

Needs the package's extra `bench`, and git.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from largesparse.errors import LargeSparseError, check_range, install_command
from largesparse.machine.sizes import parse_size

ROOT = Path(__file__).resolve().parents[1]
BENCH = r"step.Relative.track_step\(10000\)"
SLOWED = "largesparse/training/trainer.py"  # not among the kernels, which are compiled again
PLANTED = '''

def _slow_down(of, name):
    """Let a method take a share more of its time."""
    import time

    method = getattr(of, name)

    def slow(*arguments, **options):
        start = time.perf_counter()
        result = method(*arguments, **options)
        end = start + (1 + {share}) * (time.perf_counter() - start)
        while time.perf_counter() < end:
            pass
        return result

    setattr(of, name, slow)


from ..backends.fused import FusedBackend  # noqa: E402
from .whole_step import WholeStep  # noqa: E402

_slow_down(WholeStep, "run")
for _name in ("forward", "backward"):
    _slow_down(FusedBackend, _name)
'''


def git(folder: Path, *arguments: str) -> str:
    """Return what a git command prints.

    Raises
    ------
    LargeSparseError
        Where it fails.
    """
    command = ["git", "-C", str(folder), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise LargeSparseError(f"{' '.join(command)} failed: {result.stderr.strip()}")
    return result.stdout.strip()


def plant(folder: Path, share: float) -> dict[str, str]:
    """Make a clone with two commits more; return the names of the three."""
    git(ROOT, "clone", "--quiet", "--no-hardlinks", str(ROOT), str(folder))
    git(folder, "config", "user.name", "check_continuous")
    git(folder, "config", "user.email", "check_continuous@localhost")
    commits = {"newest": git(folder, "rev-parse", "HEAD")}
    for name, path, added in (
        ("unchanged", "README.md", "\n"),
        ("slower", SLOWED, PLANTED.replace("{share}", repr(share))),
    ):
        git(folder, "checkout", "--quiet", "-B", name, commits["newest"])
        with open(folder / path, "a", encoding="utf-8") as file:
            file.write(added)
        git(folder, "commit", "--quiet", "--all", "--message", name)
        commits[name] = git(folder, "rev-parse", "HEAD")
    git(folder, "checkout", "--quiet", "-B", "main", commits["newest"])
    return commits


def compare(folder: Path, old: str, new: str, bench: str) -> dict[str, object]:
    """Return what `asv continuous` says of two commits."""
    command = [sys.executable, "-m", "asv", "continuous", "--interleave-rounds", "--bench", bench]
    command += ["--no-only-changed", old, new]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    said = result.stdout + result.stderr
    ratios = [
        float(ratio) for ratio in re.findall(r"\|\s+~?(\d+\.\d+)\s+\|[^|]*\|$", said, re.MULTILINE)
    ]
    if not ratios:
        raise LargeSparseError(f"asv compared nothing:\n{said[-3000:]}")
    return {"ratio": max(ratios), "told": "slower" if "PERFORMANCE DECREASED" in said else "silent"}


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print, and return the exit status."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=parse_size, default=3, help="comparisons of each (3)")
    parser.add_argument("--slow-down", type=float, default=0.3, help="of the kernels (0.3)")
    parser.add_argument("--bench", default=BENCH, help=f"regular expression for asv ({BENCH})")
    options = parser.parse_args(argv)
    check_range("slow-down", options.slow_down, "check_continuous", low=0)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "clone"
        commits = plant(folder, options.slow_down)
        machine = [sys.executable, "-m", "asv", "machine", "--yes"]
        done = subprocess.run(machine, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().rpartition("\n")[2]
            raise LargeSparseError(f"asv cannot be run ({last}): {install_command('bench')}.")
        names = [name for _ in range(options.times) for name in ("slower", "unchanged")]
        for name in tqdm(names, desc="comparisons", disable=None):
            found = compare(folder, commits["newest"], commits[name], options.bench)
            expected = "slower" if name == "slower" else "silent"
            rows.append({"commit": name} | found | {"right": found["told"] == expected})
            tqdm.write(str(rows[-1]))
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    return int(not table["right"].all())
