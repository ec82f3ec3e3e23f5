"""Make one HTML page and PNG plots of what asv and the drivers have measured.

    asv run && largesparse report
    largesparse report scaling.jsonl runs.jsonl --history step
    largesparse report scaling.jsonl --no-asv --out docs/report

The page holds its plots and tables in itself and asks for nothing from anywhere: it can be mailed.
Records are what bigmodel and scaling write with --out; asv's results are those of the newest
commit that each figure was measured at, and --history draws a figure over all commits.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from .. import info, pages
from ..benchmark_plots import (
    benchmark_figures,
    history_figure,
    newest_results,
    strong_scaling,
)
from ..environment import expand_user
from ..errors import ParameterError
from ..measurements import COUNTS, SETTINGS, read_measurements
from ..memory import GIB
from ..plots import scaling_figures, scaling_table
from ..records import read_records
from ..series import told

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ASV_RESULTS = Path(".asv/results")
HISTORY = "step.Step.time_step"
UNITS = {"init_s": "init s", "epoch_s": "epoch s", "inference_s": "inference s"}
UNITS |= {"evolution_s": "evolution s", "peak_bytes": "peak GiB"}  # of runs, as they are told


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", nargs="*", type=Path, help="files of run records")
    parser.add_argument(
        "--asv", type=Path, default=ASV_RESULTS, help="asv's results (default %(default)s)"
    )
    parser.add_argument("--no-asv", action="store_true", help="without asv's results")
    parser.add_argument(
        "--history",
        nargs="*",
        metavar="NAME",
        help="figures to draw over commits, by a part of their names (default "
        f"{HISTORY}, where it was measured)",
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
        for name in [HISTORY] if options.history is None else options.history:
            if (figure := history_figure(table, name)) is None:
                if options.history is None:
                    continue  # only a part of the suite was run
                raise ParameterError(
                    f"No figure of asv has {name!r} in its name. There are: "
                    + ", ".join(sorted(set(table[table["source"] == "asv"]["figure"])))
                )
            drawn[f"history-{name}"] = figures[f"history-{name}"] = figure
        sections += [pages.paragraph("", heading="The benchmark suite"), pages.plots(drawn)]
        sections += [benchmarks_section(table)]
    pages.make_folder(options.out)
    pages.save_figures(figures, options.out, "report")
    path: Path = options.out / "index.html"
    path.write_text(pages.page("largesparse: benchmark report", sections), encoding="utf-8")
    return path


def machine_section(table: pd.DataFrame) -> str:
    """Return where, when and with what the figures were measured."""
    versions = ", ".join(f"{name} {found}" for name, found in info.versions().items() if found)
    machines = ", ".join(map(str, table["machine"].dropna().unique())) or "unknown"
    lines = [f"Machines: {machines}."]
    if len(dates := table["date"].dropna()):
        # asv dates a result by its commit, a run by its end
        lines.append(f"Dates from {dates.min():%Y-%m-%d} to {dates.max():%Y-%m-%d}.")
    lines.append(f"The page was made with {versions}, on {info.cpu_model()}.")
    return pages.paragraph(" ".join(lines))


def runs_section(table: pd.DataFrame) -> str:
    """Return a table of the runs of bigmodel, a line a run, the smallest network first."""
    runs = table[table["source"] == "bigmodel"].copy()
    runs["value"] = runs["value"].where(runs["figure"] != "peak_bytes", runs["value"] / GIB)
    runs["figure"] = runs["figure"].map(UNITS)
    settings = [name for name in (*SETTINGS, *COUNTS) if name != "neurons"]
    keys = ["neurons", "connections", *settings, "date", "commit", "machine"]
    values = runs.groupby([*keys, "figure"], dropna=False)["value"].last()
    wide = values.unstack("figure").reset_index()
    measured = [name for name in UNITS.values() if name in wide]
    told = ["neurons", *measured, "connections", *settings, "date", "commit", "machine"]
    return frame(wide[told].sort_values(keys))


def benchmarks_section(table: pd.DataFrame) -> str:
    """Return a table of asv's newest results, with the interval that asv gives."""
    settings = [*SETTINGS, *COUNTS]
    rows = newest_results(table).sort_values(["figure", *settings, "machine"])
    rows["settings"] = [
        ", ".join(told(*pair) for pair in zip(settings, row, strict=True) if pair[1] == pair[1])
        for row in rows[settings].to_numpy(object)
    ]
    return frame(rows[["figure", "value", "unit", "settings", "low", "high", "commit", "machine"]])


def frame(table: pd.DataFrame) -> str:
    """Return a table for readers: three digits, and nothing where there is nothing."""
    if "commit" in table:
        table = table.assign(commit=table["commit"].map(lambda name: name[:8], na_action="ignore"))
    head = [name.replace("_", " ") for name in table]
    return pages.table(head, [[text(cell) for cell in row] for row in table.to_numpy(object)])


def text(cell: object) -> str:
    """Return a cell of a table: numbers in three digits, large whole ones with commas."""
    if cell is None or cell != cell:
        return ""
    if isinstance(cell, pd.Timestamp):
        return f"{cell:%Y-%m-%d %H:%M}"
    if isinstance(cell, (int, float)):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    return str(cell)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Read the measurements and write the report."""
    print(make_report(make_parser(prog).parse_args(argv)))
    return 0
