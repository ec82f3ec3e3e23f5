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
import re
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ..errors import ParameterError
from ..machine.environment import expand_user
from ..machine.hardware import cpu_model
from ..machine.versions import versions
from ..training.memory import GIB
from . import pages
from .curves import curve_figures, curve_table
from .measurements import CONDITIONS, COUNTS, read_measurements
from .pages import Line, log_axes, new_figure, speedup_figure
from .plots import TRAIN_SAMPLES, scaling_figures, scaling_table
from .records import read_records
from .series import colour_of, marker_of, short, split, told
from .uncertainty import Ratio, ratio_of_intervals

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ASV_RESULTS = Path(".asv/results")
HISTORY = "step.Step.time_step"
UNITS = {"init_s": "init s", "epoch_s": "epoch s", "inference_s": "inference s"}
UNITS |= {"evolution_s": "evolution s", "peak_bytes": "peak GiB"}  # of runs, as they are told
THREADS = "step.Threads.track_step"
WEAK_THREADS = "step.WeakThreads.track_rate"
RANKS = "ranks.Ranks.track_rate"
WEAK_RANKS = "ranks.WeakRanks.track_rate"
PROCESSES = "inference.Processes.time_predict"
PRODUCT = "limits.Product.track_gigaflops"
TRAFFIC = "limits.Product.track_gigabytes"
BANDWIDTH = "limits.Machine.track_bandwidth"
ARITHMETIC = "limits.Machine.track_arithmetic"
MEMORY = {"making a network": "initialization.Size.track_peak_bytes"}
MEMORY |= {"a process that trains": "step.Rate.track_peak_bytes"}
ASV_TO_95 = 1.960 / 2.576  # of the width of a 99 % interval, of a normal error
PLACE = ("machine", "threads")  # where a figure was measured


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
        drawn = scaling_figures(runs) | curve_figures(curve_table(read_records(*options.records)))
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
    used = ", ".join(f"{name} {found}" for name, found in versions().items() if found)
    machines = ", ".join(map(str, table["machine"].dropna().unique())) or "unknown"
    lines = [f"Machines: {machines}."]
    if len(dates := table["date"].dropna()):
        # asv dates a result by its commit, a run by its end
        lines.append(f"Dates from {dates.min():%Y-%m-%d} to {dates.max():%Y-%m-%d}.")
    lines.append(f"The page was made with {used}, on {cpu_model()}.")
    return pages.paragraph(" ".join(lines))


def runs_section(table: pd.DataFrame) -> str:
    """Return a table of the runs of bigmodel, a line a run, the smallest network first."""
    runs = table[table["source"] == "bigmodel"].copy()
    runs["value"] = runs["value"].where(runs["figure"] != "peak_bytes", runs["value"] / GIB)
    runs["figure"] = runs["figure"].map(UNITS)
    settings = [name for name in (*CONDITIONS, *COUNTS) if name != "neurons"]
    keys = ["neurons", "connections", *settings, "date", "commit", "machine", "noise"]
    values = runs.groupby([*keys, "figure"], dropna=False)["value"].last()
    wide = values.unstack("figure").reset_index()
    measured = [name for name in UNITS.values() if name in wide]
    told = ["neurons", *measured, "connections", *settings, "date", "commit", "machine", "noise"]
    return frame(wide[told].sort_values(keys))


def benchmarks_section(table: pd.DataFrame) -> str:
    """Return a table of asv's newest results, with the interval that asv gives."""
    settings = [*CONDITIONS, *COUNTS]
    rows = newest_results(table).sort_values(["figure", *settings, "machine"])
    rows["settings"] = [
        ", ".join(told(*pair) for pair in zip(settings, row, strict=True) if pair[1] == pair[1])
        for row in rows[settings].to_numpy(object)
    ]
    return frame(rows[["figure", "value", "unit", "settings", "low", "high", "commit", "machine"]])


def frame(table: pd.DataFrame) -> str:
    """Return a table for readers: names in words, commits shortened."""
    if "commit" in table:
        table = table.assign(commit=table["commit"].map(lambda name: name[:8], na_action="ignore"))
    return pages.table(table.rename(columns=lambda name: name.replace("_", " ")))


def benchmark_figures(table: pd.DataFrame) -> dict[str, Figure]:
    """Return the plots that the newest results of a table have data for.

    Parameters
    ----------
    table : DataFrame
        From `measurements.read_measurements`.

    Returns
    -------
    dict
        Of `threads`, `processes`, `weak`, `ranks`, `roofline` and `memory` those that can be drawn.
    """
    newest = newest_results(table)
    figures = {
        "threads": _strong(newest, THREADS, "threads", "a step: strong scaling"),
        "processes": _strong(newest, PROCESSES, "processes", "prediction: strong scaling"),
        "weak": _weak(newest),
        "ranks": _ranks(newest),
        "roofline": _roofline(newest),
        "memory": _memory(newest),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def newest_results(table: pd.DataFrame) -> pd.DataFrame:
    """Return asv's rows of the newest commit on each machine that a figure was measured at."""
    rows = table[table["source"] == "asv"].sort_values("date")
    last = rows.groupby(["machine", "figure"])["commit"].transform("last")
    return rows[rows["commit"] == last]


def history_figure(table: pd.DataFrame, pattern: str) -> Figure | None:
    """Return the values over commits of the figures whose name has `pattern`, in its middle value.

    Each line is a figure with its settings on a machine, divided by its first value: below 1 is
    less. Bars are 95 % intervals, where asv has measured one.
    """
    rows = table[(table["source"] == "asv") & table["figure"].str.contains(re.escape(pattern))]
    if rows.empty:
        return None
    figure, (axes,) = new_figure()
    commits = list(rows.sort_values("date")["commit"].drop_duplicates())
    for number, (label, line) in enumerate(
        split(rows, ("figure", *CONDITIONS, *COUNTS, "machine"))
    ):
        line = line.drop_duplicates("commit", keep="last").sort_values("date")
        places = [commits.index(commit) for commit in line["commit"]]
        found = _intervals(line)
        ratios = [Ratio(1.0, 1.0, 1.0), *(ratio_of_intervals(one, found[0]) for one in found[1:])]
        colour, marker = colour_of(line["backend"].iloc[0]), marker_of(number)
        pages.draw_ratios(axes, places, ratios, color=colour, marker=marker, label=label or pattern)
    axes.set(title=f"{pattern}, over commits", ylabel="of the first commit's value")
    axes.set_xticks(range(len(commits)), [commit[:8] for commit in commits], rotation=60)
    axes.set_ylim(0, 1.1 * axes.dataLim.ymax)
    axes.legend(fontsize="small")
    return figure


def _strong(rows: pd.DataFrame, figure: str, of: str, title: str) -> Figure | None:
    """Return speed-up over threads or processes, from times with the backend fused."""
    lines = [
        Line(
            label or "fused",
            {n: 1 / value for n, value in _by(part, of).items()},
            "fused",
            intervals={
                int(n): time.inverse for n, time in zip(part[of], _intervals(part), strict=True)
            },
        )
        for label, part in split(rows[rows["figure"] == figure], ("machine",))
    ]
    return speedup_figure(title, of, lines)


def _weak(rows: pd.DataFrame) -> Figure | None:
    lines = [
        Line(label or "fused", _by(part, "threads"), "fused")
        for label, part in split(rows[rows["figure"] == WEAK_THREADS], ("machine",))
    ]
    return speedup_figure("a step, 128 samples a thread: weak scaling", "threads", lines)


def _ranks(rows: pd.DataFrame) -> Figure | None:
    """Return speed-up over workers, of the same rows and of the same rows a worker."""
    lines = []
    for figure, what, style in ((RANKS, "same rows", "-"), (WEAK_RANKS, "same rows a worker", ":")):
        chosen = rows[rows["figure"] == figure]
        if figure == WEAK_RANKS:
            chosen = chosen.assign(algorithm="wasap")
        for algorithm, runs in chosen.groupby("algorithm"):
            for machine, part in split(runs, ("machine",)):
                label = ", ".join(filter(None, (str(algorithm), what, machine)))
                speeds = {ranks - 1: value for ranks, value in _by(part, "ranks").items()}
                lines.append(Line(label, speeds, str(algorithm), style))
    return speedup_figure("training: strong and weak scaling", "workers", lines)


def _intervals(rows: pd.DataFrame) -> list[Ratio]:
    """Return the values of asv's rows with 95 % intervals, made of the 99 % ones that asv tells."""
    columns = rows.reindex(columns=["value", "low", "high"]).astype(float)
    return [
        Ratio(value, *(value * (end / value) ** ASV_TO_95 for end in ends))
        if value > 0 and min(ends) > 0
        else Ratio(value)
        for value, *ends in columns.to_numpy().tolist()
    ]


def _by(rows: pd.DataFrame, count: str) -> dict[int, float]:
    """Return values by a count that they were measured with."""
    return {int(n): value for n, value in zip(rows[count], rows["value"], strict=True)}


def _roofline(rows: pd.DataFrame) -> Figure | None:
    """Return the forward product, with the backend fused, under what each machine does at best."""
    names = (PRODUCT, TRAFFIC, BANDWIDTH, ARITHMETIC)
    limits = rows[rows["figure"].isin(names)]
    parts = [
        (place, {name: part[part["figure"] == name] for name in names})
        for place, part in split(limits, PLACE)
    ]
    parts = [(place, values) for place, values in parts if all(map(len, values.values()))]
    if not parts:
        return None
    figure, axes = log_axes("forward product, roofline", "operations a byte", "GFLOP/s")
    axes.xaxis.set_major_formatter("{x:g}")
    for (place, values), style in zip(parts, cycle(("-", "--", "-.", ":")), strict=False):
        bandwidth, peak = (values[name]["value"].iloc[-1] for name in (BANDWIDTH, ARITHMETIC))
        ridge = peak / bandwidth
        roof = [0.1 * bandwidth, peak, peak]
        axes.plot([0.1, ridge, 10 * ridge], roof, "k", linestyle=style, label=place or "machine")
        points = values[PRODUCT].merge(values[TRAFFIC], on="neurons", suffixes=("", "_bytes"))
        points = points.drop_duplicates("neurons", keep="last").sort_values("neurons")
        for number, row in enumerate(points.to_dict("records")):
            label = ", ".join(filter(None, (f"{short(row['neurons'])} neurons", place)))
            point = [row["value"] / row["value_bytes"]], [row["value"]]
            colour, marker = colour_of("fused"), marker_of(number)
            axes.plot(*point, color=colour, marker=marker, linestyle="", label=label)
    axes.legend(fontsize="small")
    return figure


def _memory(rows: pd.DataFrame) -> Figure | None:
    chosen = {label: rows[rows["figure"] == name] for label, name in MEMORY.items()}
    chosen = {label: found for label, found in chosen.items() if len(found)}
    if not chosen:
        return None
    figure, axes = log_axes("memory at its peak", "neurons", "GiB")
    for what, found in chosen.items():
        for number, (place, line) in enumerate(split(found, PLACE)):
            line = line.sort_values("neurons")
            label = ", ".join(filter(None, (what, place)))
            points = line["neurons"], line["value"] / GIB
            axes.plot(*points, color=colour_of(what), marker=marker_of(number), label=label)
    axes.legend(fontsize="small")
    return figure


def strong_scaling(runs: pd.DataFrame) -> pd.DataFrame:
    """Return runs that differ in nothing but how they are spread, with samples a second of each.

    Parameters
    ----------
    runs : DataFrame
        From `measurements.read_measurements`.

    Returns
    -------
    DataFrame
        `neurons`, `samples_per_s`, `ranks`, `threads`, `algorithm`, then the other settings, of
        the newest run of each, where there are runs by several numbers of ranks.
    """
    rows = runs[(runs["source"] == "bigmodel") & (runs["figure"] == "epoch_s")].sort_values("date")
    spread = ["ranks", "threads", "algorithm"]
    alike = [name for name in (*CONDITIONS, "machine") if name not in spread]
    rows = rows.drop_duplicates([*alike, *spread], keep="last")
    several = rows.groupby(alike, dropna=False)["ranks"].transform("nunique") > 1
    found = rows[several].assign(samples_per_s=TRAIN_SAMPLES / rows[several]["value"])
    names = ["neurons", "samples_per_s", *spread, *(name for name in alike if name != "neurons")]
    return found[names].sort_values([*alike, "ranks"], ignore_index=True)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Read the measurements and write the report."""
    options = make_parser(prog).parse_args(argv)
    pages.check_matplotlib()
    print(make_report(options))
    return 0
