"""Does a training become slower when nothing has happened to its connections for long?

    python tools/idle_steps.py
    python tools/idle_steps.py --steps 20k --backends fused

Two equal networks of FashionMNIST's shape are trained for a few steps. One of them then makes
--steps more at learning rate 0, of which each multiplies the velocities by the momentum, 0.9:
without a remedy they were subnormal numbers after about 900, and arithmetic with those is up to 8
times slower. Then steps of both, still at rate 0, are timed in turns.

Printed are, for each backend, the median times, the median of their ratios with its quartiles, and
how many velocities are subnormal numbers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
from tqdm import trange

from largesparse import NetworkConfig, SparseMLP, Trainer, TrainingConfig
from largesparse.backends import BACKENDS
from largesparse.cli import parse_size, run_command
from largesparse.errors import check_range
from largesparse.limits import seconds_of

LAYER_SIZES = (784, 1000, 1000, 1000, 10)
BATCH_SIZE = 128
ROUNDS = 31
TINY = np.finfo(np.float32).tiny


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every backend that was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--steps", type=parse_size, default=5000, metavar="N", help="idle (default %(default)s)")
    add("--backends", nargs="+", choices=BACKENDS, default=BACKENDS, help="default: all")
    options = parser.parse_args(argv)
    check_range("--steps", options.steps, "idle_steps", low=1)
    rows = [measure(backend, options.steps) for backend in options.backends]
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3g}".format))


def measure(backend: str, steps: int) -> dict[str, object]:
    """Return a row of the table for one backend."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((BATCH_SIZE, LAYER_SIZES[0]), dtype=np.float32)
    y = rng.integers(LAYER_SIZES[-1], size=BATCH_SIZE)
    fresh, idle = (trained(backend, X, y) for _ in range(2))
    for _ in trange(steps, desc=backend, leave=False, disable=None):
        idle.step(X, y)
    times = [
        [seconds_of(partial(trainer.step, X, y), repeats=1) for trainer in (fresh, idle)]
        for _ in range(ROUNDS)
    ]
    fresh_s, idle_s = np.array(times).T
    lower, ratio, upper = np.quantile(idle_s / fresh_s, (0.25, 0.5, 0.75))
    velocities = np.concatenate([layer.velocity for layer in idle.network.layers])
    return {
        "backend": backend,
        "fresh, ms": 1e3 * np.median(fresh_s),
        f"after {steps}, ms": 1e3 * np.median(idle_s),
        "ratio": ratio,
        "quartiles": f"{lower:.2f} to {upper:.2f}",
        "subnormal": int(((velocities != 0) & (abs(velocities) < TINY)).sum()),
    }


def trained(backend: str, X: np.ndarray, y: np.ndarray) -> Trainer:
    """Return a trainer at learning rate 0 whose network another one has trained for 10 steps."""
    network = SparseMLP(NetworkConfig(LAYER_SIZES), threads=1, progress=False)
    settings = {"batch_size": BATCH_SIZE, "backend": backend, "threads": 1}
    trainer = Trainer(network, TrainingConfig(learning_rate=0.01, **settings))
    for _ in range(10):
        trainer.step(X, y)
    return Trainer(network, TrainingConfig(learning_rate=0, **settings))


if __name__ == "__main__":
    sys.exit(run_command(main))
