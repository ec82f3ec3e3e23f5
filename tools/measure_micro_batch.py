"""Time a gradient by the micro-batch and by how many layers keep their activations.

    python tools/measure_micro_batch.py --neurons 20M --layers 4

The settings take turns, in one process and on one network; medians per sample, relative to the
first setting, with the bytes of the activations. `memory.settings` orders its choices by this.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np

from largesparse import NetworkConfig, SparseMLP, TrainingConfig
from largesparse.backends import BACKENDS
from largesparse.cli import parse_size, run_command
from largesparse.memory import GIB, activation_bytes
from largesparse.presets import hidden_sizes
from largesparse.stepping import Stepper
from largesparse.warming import warm_up
from largesparse.workspace import Workspace


def setting(text: str) -> tuple[int, int]:
    """Return (micro-batch, keep_every) of a text such as 64 or 64/2."""
    size, _, every = text.partition("/")
    return parse_size(size), parse_size(every or "1")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--neurons", type=parse_size, default=20_000_000, metavar="N", help="default %(default)s")
    add("--layers", type=parse_size, default=4, metavar="N", help="default %(default)s")
    add("--epsilon", type=float, default=1.0, help="default %(default)s")
    add("--features", type=parse_size, default=4096, metavar="N", help="default %(default)s")
    add("--backend", choices=BACKENDS, default="fused", help="default %(default)s")
    add("--threads", type=parse_size, metavar="N", help="default: all cores")
    add("--repeats", type=parse_size, default=3, metavar="N", help="default %(default)s")
    add(
        "--settings",
        type=setting,
        nargs="+",
        default=[(64, 1), (64, 3), (32, 1), (32, 3), (16, 1)],
        metavar="M[/K]",
        help="micro-batch, and keep every K-th layer (default 64 64/3 32 32/3 16)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for every setting."""
    options = make_parser().parse_args(argv)
    sizes = (options.features, *hidden_sizes(options.neurons, options.layers), 2)
    network = SparseMLP(NetworkConfig(sizes, epsilon=options.epsilon, recipe="width"))
    largest = max(size for size, _ in options.settings)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((largest, options.features), dtype=np.float32)
    y = rng.integers(0, 2, largest).astype(np.int32)
    warm_up(options.backend)
    seconds: dict[tuple[int, int], list[float]] = {each: [] for each in options.settings}
    for repeat in range(options.repeats + 1):
        for size, every in options.settings:
            config = TrainingConfig(
                batch_size=size,
                keep_every=every,
                dropout=0.0,
                backend=options.backend,
                threads=options.threads,
            )
            workspace = Workspace(network.layers, size, keep_every=every)
            stepper = Stepper(network, config, workspace=workspace)
            rows = np.arange(size)
            with stepper.backend.threads(stepper.threads):
                stepper.gradient(X, y, rows, plain=True)  # touches the memory
                started = time.perf_counter()
                stepper.gradient(X, y, rows, plain=True)
            if repeat:
                seconds[size, every].append((time.perf_counter() - started) / size)
            del workspace, stepper
    first = statistics.median(seconds[options.settings[0]])
    print(f"{network.neurons:,} neurons, {network.connections:,} connections, {options.backend}")
    print(f"{'micro-batch':>12}{'keep every':>12}{'ms a sample':>13}{'ratio':>8}{'GiB':>8}")
    for size, every in options.settings:
        found = statistics.median(seconds[size, every])
        taken = activation_bytes(sizes, size, every) / GIB
        print(f"{size:>12}{every:>12}{found * 1e3:>13.1f}{found / first:>8.2f}{taken:>8.2f}")


if __name__ == "__main__":
    sys.exit(run_command(main))
