"""Time a gradient by the micro-batch, and by which activations are kept, and how.

    python tools/measure_micro_batch.py --neurons 20M --layers 4
    python tools/measure_micro_batch.py --settings 32 64/1/bfloat16 32/2/bfloat16

The settings take turns, in one process and on one network; medians per sample, relative to the
first setting, with the bytes of the activations. `memory.micro_batchings` orders by this.
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
from largesparse.memory import GIB, MicroBatching, activation_bytes
from largesparse.presets import hidden_sizes
from largesparse.stepping import Stepper
from largesparse.warming import warm_up
from largesparse.workspace import ACTIVATION_DTYPES

DEFAULT = "64 64/3 32 32/3 16 64/1/bfloat16 32/1/bfloat16 32/2/bfloat16"


def setting(text: str) -> MicroBatching:
    """Return the setting of a text such as 64, 64/2 or 64/1/bfloat16."""
    size, every, dtype, *rest = [*text.split("/"), *MicroBatching(0)[text.count("/") + 1 :]]
    if rest or dtype not in ACTIVATION_DTYPES:
        raise argparse.ArgumentTypeError(f"{text!r} is not M[/K[/DTYPE]], such as 64/2/bfloat16")
    return MicroBatching(parse_size(size), parse_size(str(every)), str(dtype))


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
        default=[setting(text) for text in DEFAULT.split()],
        metavar="M[/K[/DTYPE]]",
        help=f"micro-batch, keep every K-th layer, float32 or bfloat16 (default {DEFAULT})",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for every setting."""
    options = make_parser().parse_args(argv)
    sizes = (options.features, *hidden_sizes(options.neurons, options.layers), 2)
    network = SparseMLP(NetworkConfig(sizes, epsilon=options.epsilon, recipe="width"))
    largest = max(each.micro_batch for each in options.settings)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((largest, options.features), dtype=np.float32)
    y = rng.integers(0, 2, largest).astype(np.int32)
    warm_up(options.backend)
    seconds: dict[MicroBatching, list[float]] = {each: [] for each in options.settings}
    for repeat in range(options.repeats + 1):
        for each in options.settings:
            size = each.micro_batch
            config = TrainingConfig(
                **each._asdict(),
                batch_size=size,
                dropout=0.0,
                backend=options.backend,
                threads=options.threads,
            )
            stepper = Stepper(network, config)
            rows = np.arange(size)
            with stepper.backend.threads(stepper.threads):
                stepper.gradient(X, y, rows, plain=True)  # touches the memory
                started = time.perf_counter()
                stepper.gradient(X, y, rows, plain=True)
            if repeat:
                seconds[each].append((time.perf_counter() - started) / size)
            del stepper
    first = statistics.median(seconds[options.settings[0]])
    print(f"{network.neurons:,} neurons, {network.connections:,} connections, {options.backend}")
    print(f"{'micro-batch':<34}{'ms a sample':>13}{'ratio':>8}{'GiB':>8}")
    for each in options.settings:
        found = statistics.median(seconds[each])
        taken = activation_bytes(sizes, *each) / GIB
        print(f"{each!s:<34}{found * 1e3:>13.1f}{found / first:>8.2f}{taken:>8.2f}")


if __name__ == "__main__":
    sys.exit(run_command(main))
