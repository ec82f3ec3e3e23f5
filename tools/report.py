"""Make one HTML page and PNG plots of what asv and the drivers have measured.

    asv run && python tools/report.py
    python tools/report.py scaling.jsonl runs.jsonl --history step
    python tools/report.py scaling.jsonl --no-asv --out docs/report

The page holds its plots and tables in itself and asks for nothing from anywhere: it can be mailed.
Records are what bigmodel.py and scaling.py write with --out; asv's results are those of the newest
commit that each figure was measured at, and --history draws a figure over all commits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from largesparse import info, pages
from largesparse.benchmark_plots import (
    benchmark_figures,
    history_figure,
    newest_results,
    strong_scaling,
)
from largesparse.cli import run_command
from largesparse.environment import expand_user
from largesparse.errors import ParameterError
from largesparse.measurements import COUNTS, SETTINGS, read_measurements
from largesparse.plots import scaling_figures, scaling_table
from largesparse.records import read_records

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ASV_RESULTS = Path(".asv/results")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of this tool's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", nargs="*", type=Path, help="files of run records")
    parser.add_argument(
        "--asv", type=Path, default=ASV_RESULTS, help="asv's results (default %(default)s)"
    )
    parser.add_argument("--no-asv", action="store_true", help="without asv's results")
    parser.add_argument(
        "--history",
        nargs="*",
        default=["step.Step.time_step"],
        metavar="NAME",
        help="figures to draw over commits, by a part of their names (default %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=expand_user,
        default=Path("report"),
        help="folder to write to (default %(default)s)",
    )
    return parser


def make_report(options: argparse.Namespace) -> Path:
    """Write the page and its plots; return the page's path."""
    asv = None if options.no_asv else options.asv
    if asv == ASV_RESULTS and options.records and not asv.is_dir():
        asv = None  # there are records, and asv has not been run
    table = read_measurements(*options.records, asv=asv)
    figures: dict[str, Figure] = {}
    sections = [machine_section(table)]
    if (table["source"] == "bigmodel").any():
        runs = scaling_table(read_records(*options.records))
        drawn = scaling_figures(runs)
        figures |= {f"scaling-{name}": figure for name, figure in drawn.items()}
        told = (
            "The paper's Table 4 beside these runs. Epochs are scaled to 7000 samples, inference "
            "to 3000."
        )
        sections += [pages.paragraph(told, heading="Phases and memory against neurons")]
        sections += [pages.plots(drawn), runs_section(table)]
        ranks = strong_scaling(table)
        if len(ranks):
            sections += [pages.paragraph("", heading="Strong scaling over ranks"), frame(ranks)]
    if (table["source"] == "asv").any():
        drawn = benchmark_figures(table)
        figures |= drawn
        for name in options.history:
            if (figure := history_figure(table, name)) is None:
                raise ParameterError(
                    f"No figure of asv has {name!r} in its name. There are: "
                    + ", ".join(sorted(set(table[table["source"] == "asv"]["figure"])))
                )
            drawn[f"history-{name}"] = figures[f"history-{name}"] = figure
        sections += [pages.paragraph("", heading="The benchmark suite"), pages.plots(drawn)]
        sections += [benchmarks_section(table)]
    options.out.mkdir(parents=True, exist_ok=True)
    pages.save_figures(figures, options.out, "report")
    path: Path = options.out / "index.html"
    path.write_text(pages.page("largesparse: benchmark report", sections), encoding="utf-8")
    return path


def machine_section(table: pd.DataFrame) -> str:
    """Return where, when and with what the figures were measured."""
    versions = ", ".join(f"{name} {found}" for name, found in info.versions().items() if found)
    machines = ", ".join(map(str, table["machine"].dropna().unique()))
    dates = table["date"]
    lines = [
        f"Machines: {machines}. Commits from {dates.min():%Y-%m-%d} to {dates.max():%Y-%m-%d}.",
        f"The page was made with {versions}, on {info.cpu_model()}.",
    ]
    return pages.paragraph(" ".join(lines))


def runs_section(table: pd.DataFrame) -> str:
    """Return a table of the runs of bigmodel, a line a run."""
    runs = table[table["source"] == "bigmodel"]
    keys = ["date", "neurons", "connections", "epsilon", "batch_size", "backend", "ranks"]
    values = runs.groupby([*keys, "threads", "figure"], dropna=False)["value"].last()
    return frame(values.unstack("figure").reset_index())


def benchmarks_section(table: pd.DataFrame) -> str:
    """Return a table of asv's newest results, with the interval that asv gives."""
    rows = newest_results(table).dropna(axis="columns", how="all").sort_values("figure")
    kept = ["figure", *SETTINGS, *COUNTS, "value", "low", "high", "unit", "commit", "machine"]
    rows = rows[[name for name in kept if name in rows]]
    return frame(rows.assign(commit=rows["commit"].str[:8]))


def frame(table: pd.DataFrame) -> str:
    """Return a table for readers: three digits, and nothing where there is nothing."""
    return pages.table(list(table), [[text(cell) for cell in row] for row in table.to_numpy()])


def text(cell: object) -> str:
    """Return a cell of a table: numbers in three digits, large whole ones with commas."""
    if isinstance(cell, pd.Timestamp):
        return f"{cell:%Y-%m-%d %H:%M}"
    if cell is None or cell != cell:
        return ""
    if isinstance(cell, (int, float)):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    return str(cell)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the measurements and write the report."""
    print(make_report(make_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(run_command(main))
