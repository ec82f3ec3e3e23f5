"""Rates of training as layers become wider, or deeper, beside those that Nerva's authors logged.

    python tools/width_ladder.py                                # 1024 … 32768 neurons a layer
    python tools/width_ladder.py --widths 1024 --depths 1 2 4 8 --threads 1

CIFAR10-shaped data (3072 features, 10 classes; standard normal), 3 hidden layers, 1 % of the
connections, mini-batches of 100, as in the Nerva paper (2024), whose logs give these rates for 4
threads. A rate is connections times samples in a second of training steps: forward, backward and
update, without loading of batches. Theirs are from another machine: the cores are in the output.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
from tqdm import tqdm

from largesparse import NetworkConfig, SparseMLP, Trainer, TrainingConfig, info
from largesparse.backends import BACKENDS
from largesparse.cli import parse_size, run_command
from largesparse.threads import resolve_threads
from largesparse.warming import warm_up

NERVA = {1024: 626, 2048: 718, 4096: 650, 8192: 619, 16384: 267, 32768: 252}  # millions
N_FEATURES, N_CLASSES = 3072, 10
DEPTH = 3  # hidden layers


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    sizes = {"type": parse_size, "nargs": "+", "metavar": "N"}
    add("--widths", **sizes, default=list(NERVA), help="default 1024 2048 … 32768")
    add("--depths", **sizes, default=[DEPTH], help="hidden layers (default 3)")
    add("--density", type=float, default=0.01, help="share of connections (default %(default)s)")
    add("--batch-size", type=parse_size, default=100, metavar="N", help="default %(default)s")
    add("--backend", choices=BACKENDS, default="fused", help="default %(default)s")
    add("--threads", type=parse_size, metavar="N", help="default: all cores")
    add("--steps", type=parse_size, default=15, metavar="N", help="default %(default)s")
    return parser


def measure(width: int, depth: int, options: argparse.Namespace) -> dict[str, object]:
    """Return a row of the table."""
    sizes = (N_FEATURES, *[width] * depth, N_CLASSES)
    config = NetworkConfig(sizes, density=options.density, activation="relu")
    network = SparseMLP(config, threads=options.threads, progress=False)
    settings = {"batch_size": options.batch_size, "threads": options.threads}
    trainer = Trainer(network, TrainingConfig(**settings, backend=options.backend))
    rng = np.random.default_rng(0)
    X = rng.standard_normal((options.batch_size, N_FEATURES), dtype=np.float32)
    y = rng.integers(N_CLASSES, size=options.batch_size, dtype=np.int32)
    seconds = []
    for _ in range(options.steps + 1):
        started = time.perf_counter()
        trainer.step(X, y)
        seconds.append(time.perf_counter() - started)
    low, middle, high = np.percentile(seconds[1:], [25, 50, 75])
    work = network.connections * options.batch_size / 1e6
    logged = options.density == 0.01 and options.batch_size == 100 and depth == DEPTH
    return {
        "neurons a layer": width,
        "hidden layers": depth,
        "connections": f"{network.connections:,}",
        "step, ms": round(1000 * statistics.median(seconds[1:]), 2),
        "10^6/s": round(work / middle),
        "25 %": round(work / high),
        "75 %": round(work / low),
        "Nerva, 4 threads": NERVA.get(width, "") if logged else "",
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for every size."""
    options = make_parser().parse_args(argv)
    options.threads = resolve_threads(options.threads, "width_ladder")
    warm_up(options.backend, options.threads)
    cases = [(width, depth) for width in options.widths for depth in options.depths]
    rows = [measure(*case, options) for case in tqdm(cases, unit="network", disable=None)]
    print(f"{info.cpu_model()}, backend {options.backend}, {options.threads} threads")
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    sys.exit(run_command(main))
