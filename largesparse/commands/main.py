"""The command line.

A subcommand is a function that adds a parser of its own and sets `run`, a function of the parsed
arguments that returns the exit code; `COMMANDS` lists them. A driver is a module, loaded when it is
called, whose `main` takes the words behind its name; `DRIVERS` lists them.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from .._version import __version__
from ..errors import LargeSparseError
from ..machine.environment import BACKEND, CACHE
from ..machine.exit_codes import run_command
from ..machine.launching import check_alone
from ..machine.output import print_anything
from ..machine.sizes import parse_size, parse_sizes
from .models import add_evaluate, add_inspect, add_predict
from .train import add_train


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`, by default that of the process, and return its exit code."""
    print_anything()  # the help has Greek letters
    return run_command(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    words = sys.argv[1:] if argv is None else list(argv)
    if words and not words[0].startswith("-") and words[0] not in FOR_RANKS:
        check_alone(f"largesparse {words[0]}")
    if words and words[0] in DRIVERS:
        driver = importlib.import_module(DRIVERS[words[0]][0], __package__)
        return int(driver.main(words[1:], f"largesparse {words[0]}"))
    arguments = make_parser().parse_args(argv)
    return int(arguments.run(arguments))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="largesparse",
        description="Truly sparse training of very large multilayer perceptrons on CPUs.",
    )
    parser.add_argument("--version", action="version", version=f"largesparse {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add_command in COMMANDS:
        add_command(subparsers)
    for name, (_, help_text) in DRIVERS.items():
        subparsers.add_parser(name, help=help_text)
    return parser


def _add_info(subparsers) -> None:
    parser = subparsers.add_parser(
        "info", help="print versions, hardware and settings, for a bug report"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a listing")
    parser.set_defaults(run=_info)


def _info(arguments: argparse.Namespace) -> int:
    import json

    from . import info

    found = info.collect()
    print(json.dumps(found, indent=2) if arguments.json else info.format_listing(found))
    return 0


def _add_tune(subparsers) -> None:
    parser = subparsers.add_parser(
        "tune",
        help="measure the backends on this machine",
        description="Time a training step of a small, a wide and an extreme network with the "
        "backends mkl and fused, and keep in the cache folder which is fastest: backend 'auto', "
        "the default, takes it. With --layers, time every backend with every threading layer of "
        "numba that works here, on a network of yours.",
    )
    add = parser.add_argument
    add("--layers", type=parse_sizes, metavar="SIZES",
        help="sizes of your network from features to classes, as 784,1000,1000,10")  # fmt: skip
    add("--epsilon", type=float, default=20.0, help="with --layers: density control (%(default)s)")
    add("--batch-size", type=parse_size, default=128,
        help="with --layers: samples a step (%(default)s)")  # fmt: skip
    add("--threads", type=parse_size, help="threads (all cores)")
    add("--repeats", type=parse_size, default=7,
        help="with --layers: timings of each (%(default)s)")  # fmt: skip
    add("--no-store", action="store_true", help="measure only; what is stored stays")
    add("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=_tune)


def _tune(arguments: argparse.Namespace) -> int:
    from ..backends.choice import machine_file, shape_class, store_choices
    from ..harness.tune import fastest, measure_classes
    from ..machine.threads import resolve_threads

    machine_file()  # where it cannot be found, now
    threads = resolve_threads(arguments.threads, "tune")
    if arguments.layers is None:
        table = measure_classes(threads=threads)
    else:
        table = _tune_network(arguments, threads)
        table.insert(0, "shapes", shape_class(arguments.layers))
    if arguments.json:
        print(table.to_json(orient="records"))
    else:
        print(table.to_string(index=False, float_format="{:.3f}".format))
    best = fastest(table)
    output = sys.stderr if arguments.json else sys.stdout
    print(", ".join(f"{kind} networks: {best[kind]['backend']}" for kind in best), file=output)
    outcome = "not stored"
    if not arguments.no_store:
        try:
            store_choices(best)
        except OSError as error:
            raise LargeSparseError(
                f"Not stored: {error}. Set {CACHE} to a folder that can be written."
            ) from error
        outcome = "stored; these backends will be used"
        if os.environ.get(BACKEND):
            outcome = f"stored; but {BACKEND} is set, and comes first"
    print(outcome, file=output)
    return 0


def _tune_network(arguments: argparse.Namespace, threads: int) -> Any:
    """Compare all backends and threading layers on the network given; return the table."""
    from ..backends.limits import arithmetic_peak, sequential_bandwidth
    from ..harness.tune import compare_backends
    from ..model.config import NetworkConfig
    from ..training.memory import choose_plan

    sizes, size = arguments.layers, arguments.batch_size
    network = NetworkConfig(sizes, epsilon=arguments.epsilon)
    choose_plan(network, size, micro_batch=size, keep_every=1)
    table = compare_backends(network, batch_size=size, threads=threads, repeats=arguments.repeats)
    if not arguments.json:
        connections = network.expected_connections()
        print(
            f"{'-'.join(map(str, sizes))}, about {connections:,.0f} connections, {threads} threads"
        )
        print(f"memory, read in order: {sequential_bandwidth(threads) / 1e9:.1f} GB/s")
        print(f"dense product (BLAS): {arithmetic_peak(threads) / 1e9:.0f} GFLOP/s")
    return table


COMMANDS = (add_train, add_predict, add_evaluate, add_inspect, _add_info, _add_tune)


DRIVERS = {
    "bigmodel": (
        "..harness.bigmodel",
        "train extremely large networks, also by ranks, and time every phase",
    ),
    "scaling": (
        "..harness.scaling",
        "run the paper's Table 4, one size after another, and plot it",
    ),
    "bench": (
        "..harness.bench.command",
        "measure this machine with every part of the library, and compare two such runs",
    ),
    "report": ("..harness.report", "make one HTML page of what asv and these have measured"),
    "paper": (
        "..paper.command",
        "repeat the paper's tables and figures beside its own, and compare rules of evolution",
    ),
}
FOR_RANKS = ("info", "bigmodel")  # info is of use on every node
