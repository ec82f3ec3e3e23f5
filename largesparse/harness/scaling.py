"""Run the paper's Table 4 and beyond, one size after another, and draw the scaling plots.

    largesparse scaling --minutes 90 --backend fused
    largesparse scaling --minutes 20 --neurons 100k 1M --features 4096 --backend fused
    largesparse scaling --plot-only
    largesparse scaling --cluster 1B --nodes 8

Each size is a bigmodel process of its own, so that its peak memory is its own. Before each, its
time is predicted from the sizes before; one that does not fit into the minutes that are left runs
fewer epochs or samples (its record says how many) or is left out. A size whose record with the same
settings is in the output file is not run again. All other flags go to bigmodel as they are.

With --cluster nothing is run: bytes, messages and hours are computed for a network that needs many
machines, from the costs in the records.
"""

from __future__ import annotations

import argparse
import itertools
import math
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import DataError, LargeSparseError
from ..machine.environment import expand_user
from ..machine.launching import start_ranks
from ..machine.sizes import parse_size, show_seconds
from ..machine.threads import available_threads
from ..training.memory import GIB
from . import pages
from .cluster import Cluster, plan_cluster
from .curves import curve_figures, curve_table, ladder_table
from .ladder import (
    FIELDS,
    GUESS,
    RUNGS,
    TABLE_4_SAMPLES,
    Costs,
    Length,
    choose_length,
    extrapolate,
    measured_costs,
    predicted_seconds,
)
from .noise import describe_noise
from .plots import PHASES, exponent_table, paper_table, scaling_figures, scaling_table
from .presets import BATCH_SIZE, LEAST_BATCH
from .records import check_output, read_records, record_rows
from .series import split_command

BIGMODEL = [sys.executable, "-m", "largesparse", "bigmodel"]
ENTRIES = ("largesparse", "__main__.py")  # which the command line is started by
LENGTH_FLAGS = ("--samples", "--epochs", "--out")  # that the same settings may differ in
EXPONENTS_ARE = (
    "Exponents of time and memory in the number of connections, fitted to the sizes of a line, "
    "with 95 % intervals: 1 is linear."
)
CONNECTIONS = re.compile(r"([\d,]+) connections expected")
TOO_LARGE = re.compile(r"error: (.*need about .* GiB.*)")


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of the flags that are not bigmodel's."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_ladder_flags(parser)
    add_cluster_flags(parser)
    return parser


def add_ladder_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags about what is run and where it is kept."""
    ladder = parser.add_argument_group("ladder")
    ladder.add_argument(
        "--neurons",
        type=parse_size,
        nargs="+",
        default=list(RUNGS),
        metavar="N",
        help="sizes (default 1M 5M 10M 20M 50M 100M 125.8M)",
    )
    ladder.add_argument(
        "--minutes", type=float, default=60.0, help="time limit of all (default %(default)s)"
    )
    ladder.add_argument(
        "--samples",
        type=parse_size,
        default=TABLE_4_SAMPLES,
        metavar="N",
        help="training and test rows where time permits (default %(default)s)",
    )
    ladder.add_argument(
        "--epochs", type=parse_size, default=2, metavar="N", help="likewise (default %(default)s)"
    )
    ladder.add_argument("--test-fraction", type=float, default=0.3, help="default %(default)s")
    ladder.add_argument(
        "--batch-size",
        type=parse_size,
        nargs="+",
        default=[BATCH_SIZE, LEAST_BATCH],
        metavar="N",
        help=f"samples per update; every size is run with each (default: {BATCH_SIZE}, of which "
        f"the paper's epoch is, and {LEAST_BATCH}, with which extreme networks learn)",
    )
    ladder.add_argument(
        "--ranks", type=parse_size, default=1, metavar="K", help="start with mpiexec -n K"
    )
    ladder.add_argument("--again", action="store_true", help="run also what has been run")
    files = parser.add_argument_group("files")
    files.add_argument(
        "--out", default="scaling.jsonl", metavar="FILE", help="records (default %(default)s)"
    )
    files.add_argument(
        "--plots",
        default="scaling",
        metavar="DIR",
        help="folder of the PNGs and index.html (default %(default)s)",
    )
    files.add_argument("--plot-only", action="store_true", help="draw the records, run nothing")


def add_cluster_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `--cluster`."""
    cluster = parser.add_argument_group("plan for a cluster")
    cluster.add_argument("--cluster", type=parse_size, metavar="N", help="neurons: 1B, 80B")
    cluster.add_argument("--nodes", type=parse_size, default=8, help="default %(default)s")
    cluster.add_argument("--cores", type=parse_size, default=64, help="default %(default)s")
    cluster.add_argument(
        "--node-memory", type=float, default=512.0, metavar="GIB", help="default %(default)s"
    )
    cluster.add_argument(
        "--link", type=float, default=12.5, metavar="GB/S", help="default %(default)s"
    )
    cluster.add_argument(
        "--latency", type=float, default=20.0, metavar="US", help="of a message (%(default)s)"
    )
    cluster.add_argument(
        "--efficiency",
        type=float,
        default=0.5,
        help="of all cores together, beside those measured (default %(default)s)",
    )
    cluster.add_argument("--layers", type=parse_size, help="default: 10, or more for int32's sake")


def command_of(
    options: argparse.Namespace, neurons: int, length: Length, batch_size: int
) -> list[str]:
    """Return the command of a size."""
    flags = {
        "neurons": neurons,
        "samples": length.samples,
        "epochs": length.epochs,
        "test-fraction": options.test_fraction,
        "batch-size": batch_size,
        "out": options.out,
    }
    if options.layers:
        flags["layers"] = options.layers
    given = [f"--{name}={value}" for name, value in flags.items()]
    return [*start_ranks(options.ranks), *BIGMODEL, *given, *options.rest]


def settings_of(command: Sequence[str]) -> list[str]:
    """Return the flags of a bigmodel command, those of its length and its output left out."""
    names = [Path(word).stem for word in command]  # bigmodel, or as a script bigmodel.py
    flags = command[names.index("bigmodel") + 1 :] if "bigmodel" in names else []
    return [flag for flag in flags if flag.partition("=")[0] not in LENGTH_FLAGS]


def runs_like(records: pd.DataFrame, command: Sequence[str], ranks: int) -> list[dict[str, Any]]:
    """Return the records whose settings are a command's, the oldest first."""
    wanted = settings_of(command)
    rows = record_rows(records[(records["kind"] == "bigmodel") & records["connections"].notna()])
    return [
        row
        for row in rows
        if (row["ranks"] or 1) == ranks and settings_of(split_command(row["command"])) == wanted
    ]


def climb(options: argparse.Namespace) -> None:
    """Run the sizes, the smallest first, until the time is over."""
    check_output(options.out)
    pages.make_folder(options.plots)  # before what would be drawn takes hours
    end = time.monotonic() + 60 * options.minutes
    wanted = Length(options.samples, options.epochs)
    costs: dict[int, list[Costs]] = {batch_size: [] for batch_size in options.batch_size}
    for neurons, batch_size in itertools.product(sorted(set(options.neurons)), costs):
        command = command_of(options, neurons, wanted, batch_size)
        found = [] if options.again else runs_like(records_of(options.out), command, options.ranks)
        if found:
            print(f"{neurons:,} neurons: in {options.out} already", flush=True)
            costs[batch_size].append(measured_costs(found[-1]))
            continue
        connections = plan(command)
        if isinstance(connections, str):
            print(f"{neurons:,} neurons: refused. {connections}", flush=True)
            continue
        left = end - time.monotonic()
        expected = extrapolate(costs[batch_size], connections)
        length = choose_length(
            expected,
            wanted,
            left,
            batch_size=batch_size,
            test_fraction=options.test_fraction,
        )
        size = f"{neurons:,} neurons, {connections:,} connections, mini-batches of {batch_size}"
        if length is None:
            print(f"{size}: left out, does not fit into the {left / 60:.1f} minutes left")
            continue
        seconds = predicted_seconds(expected, length, options.test_fraction)
        print(
            f"{size}: about {seconds / 60:.1f} of {left / 60:.1f} minutes for {length.epochs} "
            f"epochs with {length.samples} samples{'' if length == wanted else ', shortened'}",
            flush=True,
        )
        command = command_of(options, neurons, length, batch_size)
        started = time.monotonic()
        try:
            done = subprocess.run(command, check=False, timeout=max(1.0, left))
        except subprocess.TimeoutExpired:
            print(f"{size}: stopped, the {options.minutes:g} minutes are over")
            return
        if done.returncode:
            raise LargeSparseError(f"{shlex.join(command)} failed with {done.returncode}.")
        print(f"{size}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
        newest = runs_like(records_of(options.out), command, options.ranks)[-1]
        costs[batch_size].append(measured_costs(newest))


def plan(command: Sequence[str]) -> int | str:
    """Return the connections that a size is expected to have, or why its memory plan is refused.

    Raises
    ------
    LargeSparseError
        Where bigmodel refuses it for another reason.
    """
    done = subprocess.run([*command, "--plan"], check=False, capture_output=True, text=True)
    if (match := CONNECTIONS.search(done.stdout)) and done.returncode == 0:
        return int(match[1].replace(",", ""))
    if match := TOO_LARGE.search(done.stderr):
        return match[1]
    last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
    raise LargeSparseError(f"bigmodel does not take these flags: {last}")


def records_of(path: str) -> pd.DataFrame:
    """Return the records of a file, which need not exist."""
    return read_records(path) if expand_user(path).exists() else read_records()


def shown_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of texts: the runs, with the paper's row under each size it has."""
    header = ["run", "neurons", "connections", *PHASES.values(), "ns / connection / sample"]
    header += ["planned GiB", "peak GiB", "measured on", "noise"]
    both = pd.concat([table, paper_table()], ignore_index=True).sort_values(
        "neurons", kind="stable"
    )
    rows = []
    for row in both.to_dict("records"):
        cells = [row["series"], f"{row['neurons']:,}", f"{row['connections']:,}"]
        cells += [_seconds(row[name]) for name in PHASES]
        cells.append("-" if math.isnan(row["cost_s"]) else f"{1e9 * row['cost_s']:.2f}")
        cells += [_gib(row[name]) for name in ("planned_bytes", "peak_bytes")]
        rows.append([*cells, _rows(row["samples"]), describe_noise(row["noise"])])
    return pd.DataFrame(rows, columns=header)


def draw(options: argparse.Namespace) -> None:
    """Print the table, and write the plots and the page."""
    records = records_of(options.out)
    table = scaling_table(records)
    shown = shown_table(table)
    lines = [list(shown), *shown.to_numpy()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    exponents = exponent_table(table)
    if len(exponents):
        print(f"\n{EXPONENTS_ARE}\n{exponents.to_string(index=False)}\n")
    folder = pages.make_folder(options.plots)
    curves = curve_table(records)
    figures = scaling_figures(table) | curve_figures(curves)
    if len(ladder := ladder_table(curves)):
        print(f"\nafter the same number of updates\n{ladder.round(3).to_string(index=False)}")
    pages.save_figures(figures, folder, "scaling")
    page = make_page(records, shown, exponents, figures)
    (folder / "index.html").write_text(page, encoding="utf-8")
    print(f"plots in {folder}/, all of them and the table in {folder / 'index.html'}")


def make_page(
    records: pd.DataFrame, shown: pd.DataFrame, exponents: pd.DataFrame, figures: Mapping[str, Any]
) -> str:
    """Return the page of the plots and the tables."""
    processors = ", ".join(sorted(set(records["cpu"].dropna()))) or "an unknown processor"
    commands = sorted({_short(words) for words in map(split_command, records["command"]) if words})
    about = (
        "An epoch's time is given for 7000 samples and inference's for 3000, as the paper's are; "
        "the last column says on how many samples of an epoch it was measured. The paper's "
        "connections are the parameters it states."
    )
    return pages.page(
        "Scaling of largesparse",
        [
            pages.paragraph(f"Measured on: {processors}. {about}"),
            pages.plots(dict(figures)),
            pages.paragraph(EXPONENTS_ARE, heading="Growth"),
            pages.table(exponents),
            pages.paragraph("Medians over the epochs.", heading="All runs"),
            pages.table(shown),
            pages.paragraph("", heading="Commands"),
            pages.code(commands),
        ],
    )


def pipeline_efficiency(records: pd.DataFrame) -> float:
    """Return how much of the bound the largest pipeline recorded reached; 1 where there is none.

    The bound is that its ranks wait for no more than the pipeline to fill and to empty. Groups of
    one rank each fill nothing.
    """
    runs = records[(records["kind"] == "bigmodel") & (records["algorithm"] == "pipeline")]
    runs = runs.sort_values("connections", kind="stable")
    rows = [row for row in record_rows(runs) if row["bubble"] and row["least_bubble"]]
    if not rows:
        print("pipeline: none recorded; it is taken to wait only while it fills and empties")
        return 1.0
    last = rows[-1]
    measured = statistics.fmean(last["bubble"])
    print(
        f"pipeline: its {last['ranks']:.0f} ranks waited {measured:.0%} of a step, at the least "
        f"{last['least_bubble']:.0%}"
    )
    return min(1.0, (1 - measured) / (1 - last["least_bubble"]))


def show_cluster(options: argparse.Namespace) -> None:
    """Print what a network takes on a cluster, from the costs of the largest run recorded."""
    records = records_of(options.out)
    runs = records[(records["kind"] == "bigmodel") & records["connections"].notna()]
    if runs.empty:
        costs = GUESS
        print(f"costs: guesses, since {options.out} has no runs")
    else:
        run = record_rows(runs.sort_values("connections", kind="stable"))[-1]
        costs = measured_costs(run)
        cores = min(available_threads(), int((run["threads"] or 1) * (run["ranks"] or 1)))
        one_core = {
            name: cores * getattr(costs, name)
            for field, name in FIELDS.items()
            if run[field] is not None  # else it is the guess, which is of one core
        }
        if run["bubble"]:  # what the ranks of a pipeline waited is another figure
            one_core["training"] *= 1 - statistics.fmean(run["bubble"])
        costs = costs._replace(**one_core)
        print(f"costs: of the run with {run['connections']:,.0f} connections, {cores} cores")
    print(f"training: {1e9 * costs.training:.2f} ns a connection, sample and core")
    cluster = Cluster(
        options.nodes,
        options.cores,
        int(options.node_memory * GIB),
        1e9 * options.link,
        1e-6 * options.latency,
        options.efficiency,
        pipeline_efficiency(records),
    )
    print(
        plan_cluster(
            options.cluster,
            cluster,
            costs=costs,
            layers=options.layers,
            batch_size=options.batch_size[0],
            samples=Length(options.samples, 1).parts(options.test_fraction)[0],
        )
    )


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Do what the command line asks for."""
    options, rest = make_parser(prog).parse_known_args(argv)
    options.rest = rest
    if options.cluster:
        show_cluster(options)
        return 0
    pages.check_matplotlib()
    if not options.plot_only:
        climb(options)
    try:
        draw(options)
    except DataError:
        if options.plot_only:
            raise
        print("Nothing has been run: there is nothing to draw.")
    return 0


def _short(words: Sequence[str]) -> str:
    """Return a command as a reader would type it."""
    name = Path(words[0]).name
    program = ["largesparse"] if name in ENTRIES else ["python", f"tools/{name}"]
    return shlex.join([*program, *words[1:]])


def _seconds(value: float) -> str:
    if math.isnan(value) or value < 0.1:
        return "-" if math.isnan(value) else show_seconds(value)
    return f"{value:.3g} s" if value < 100 else f"{value:.0f} s"


def _rows(samples: float | None) -> str:
    return "-" if samples is None or math.isnan(samples) else f"{samples:,.0f} samples"


def _gib(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value / GIB:.2f}"
