"""Time a training step by two checkouts of the project, in turns, in one run.

    git worktree add ../before HEAD~20
    python tools/compare_checkouts.py ../before .
    python tools/compare_checkouts.py ../before . --nets fashion --threads 1 --backends fused
    python tools/compare_checkouts.py ../before . --nets 5M --rounds 5 --threads 2
    python tools/compare_checkouts.py ../before . --compile      # the first compilation instead

Each checkout has a process of its own, with the same data, and waits while the other one is timed;
who begins changes every round. Only public names are used, so that a checkout may be old. A row has
the median time of a step by each, the median over the rounds of new / old, and the ends of its 95 %
interval (bootstrap over the rounds).

With `--compile` each process starts with an empty cache and compiles the kernels of a training,
which takes a minute or more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

# layer sizes, epsilon, batch size; of `compare_peers.py`, and a net of very wide layers
NETS = {
    "fashion": ((784, 1000, 1000, 1000, 10), 20, 128),
    "cifar": ((3072, 4000, 1000, 4000, 10), 20, 128),
    "madelon": ((500, 400, 100, 400, 2), 10, 32),
    "leukemia-small": ((5000, 2700, 2700, 18), 10, 5),
    "5M": ((5_000_000, 5_000_000, 5_000_000, 2), 1, 32),
}
DISTINCT = 8  # mini-batches


def serve(net: str, backend: str, threads: int) -> None:
    """Answer each line, a number of seconds, with the times of the steps made in them."""
    from largesparse import NetworkConfig, SparseMLP, Trainer, TrainingConfig

    sizes, epsilon, batch_size = NETS[net]
    rng = np.random.default_rng(0)
    distinct = DISTINCT if sizes[0] < 100_000 else 1
    X = rng.standard_normal((distinct, batch_size, sizes[0]), dtype=np.float32)
    y = rng.integers(0, sizes[-1], (distinct, batch_size), dtype=np.int32)
    config = TrainingConfig(batch_size=batch_size, backend=backend, threads=threads)
    trainer = Trainer(SparseMLP(NetworkConfig(sizes, epsilon=epsilon)), config)
    started = time.perf_counter()
    trainer.step(X[0], y[0])
    print(json.dumps([time.perf_counter() - started]), flush=True)
    for line in sys.stdin:
        times: list[float] = []
        while sum(times) < float(line) or len(times) < 3:
            k = len(times) % distinct
            started = time.perf_counter()
            trainer.step(X[k], y[k])
            times.append(time.perf_counter() - started)
        print(json.dumps(times), flush=True)


class Checkout:
    """A process that trains by the code of a checkout."""

    def __init__(self, folder: Path, net: str, backend: str, threads: int, **variables: str):
        command = [sys.executable, __file__, "--serve", net, backend, str(threads)]
        pipe = subprocess.PIPE
        variables = {**os.environ, "PYTHONPATH": str(folder), **variables}
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=variables, cwd=folder
        )
        self.first_step = self.answer()

    def answer(self) -> float:
        """Return the median of the times that the process prints next."""
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            sys.exit(f"error: the process of {self.process.args} ended.")
        return float(np.median(json.loads(line)))

    def time(self, seconds: float) -> float:
        """Return the median time of a step over some seconds."""
        print(seconds, file=self.process.stdin, flush=True)
        return self.answer()

    def __enter__(self) -> Checkout:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def summary(old: Sequence[float], new: Sequence[float]) -> dict[str, object]:
    """Return medians in milliseconds, the median of the turns' ratios, and its 95 % interval."""
    from largesparse.harness.uncertainty import ratio_of

    ratio = ratio_of(new, old)
    row = {"old ms": 1e3 * np.median(old), "new ms": 1e3 * np.median(new)}
    row |= {"new / old": ratio.value, "low": ratio.low, "high": ratio.high}
    return {**row, "new is": ratio.verdict()}


def compare_steps(options: Namespace, net: str, backend: str, threads: int) -> dict[str, object]:
    """Time both checkouts in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    with ExitStack() as stack:
        sides = [
            stack.enter_context(Checkout(folder, net, backend, threads))
            for folder in (options.old, options.new)
        ]
        for round_ in tqdm(range(options.rounds), desc=net, leave=False, disable=None):
            for k in (0, 1) if round_ % 2 else (1, 0):
                times[k].append(sides[k].time(options.seconds))
    return summary(*times)


def compare_compilation(options: Namespace, net: str, backend: str) -> dict[str, object]:
    """Time the first step of processes with empty caches, start and import apart."""
    times: tuple[list[float], list[float]] = ([], [])
    for round_ in tqdm(range(options.rounds), desc="compiling", leave=False, disable=None):
        for k in (0, 1) if round_ % 2 else (1, 0):
            with tempfile.TemporaryDirectory() as cache:
                variables = {"LARGESPARSE_CACHE": cache, "NUMBA_CACHE_DIR": f"{cache}/kernels"}
                folder = (options.old, options.new)[k]
                started = time.perf_counter()
                with Checkout(folder, net, backend, 1, **variables):
                    times[k].append(time.perf_counter() - started)
    return summary(*times)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool with the arguments `argv`."""
    if (argv or sys.argv[1:])[:1] == ["--serve"]:
        net, backend, threads = (argv or sys.argv[1:])[1:]
        serve(net, backend, int(threads))
        return 0
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="folder of a checkout")
    parser.add_argument("new", type=Path, help="folder of another")
    parser.add_argument(
        "--nets", default="fashion,cifar,madelon,leukemia-small", help=", ".join(NETS)
    )
    parser.add_argument("--backends", default="fused,mkl")
    parser.add_argument("--threads", default="1,2", help="separated by commas (%(default)s)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.3, help="of a turn (%(default)s)")
    parser.add_argument("--compile", action="store_true", help="time the first compilation")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    options = parser.parse_args(argv)
    options.old, options.new = options.old.resolve(), options.new.resolve()
    for folder in (options.old, options.new):
        if not (folder / "largesparse/__init__.py").is_file():
            parser.error(f"{folder} is not a checkout: it has no largesparse/__init__.py")
    nets = options.nets.split(",")
    if unknown := sorted(set(nets) - set(NETS)):
        parser.error(f"--nets must be among {', '.join(NETS)}. Got {unknown[0]!r} instead.")
    rows = []
    for net in nets[:1] if options.compile else nets:
        for backend in options.backends.split(","):
            for threads in ["1"] if options.compile else options.threads.split(","):
                row: dict[str, object] = {"net": net, "backend": backend, "threads": threads}
                if options.compile:
                    row |= compare_compilation(options, net, backend)
                else:
                    row |= compare_steps(options, net, backend, int(threads))
                rows.append(row)
    print(pd.DataFrame(rows).round(3).to_string(index=False))
    if options.json:
        pd.DataFrame(rows).to_json(options.json, orient="records", indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
