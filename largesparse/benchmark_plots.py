"""Plots of a table of measurements: scaling over threads and ranks, roofline, memory, history."""

from __future__ import annotations

import re
from itertools import cycle
from typing import TYPE_CHECKING, NamedTuple

from .measurements import COUNTS, SETTINGS
from .memory import GIB
from .plots import TRAIN_SAMPLES, log_axes, new_figure
from .series import colour_of, marker_of, short, split

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

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
PLACE = ("machine", "threads")  # where a figure was measured


class Line(NamedTuple):
    """Speeds by the number of threads, processes or workers, and how they are drawn."""

    label: str
    speeds: dict[int, float]
    colour: str
    style: str = "-"


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
    less.
    """
    rows = table[(table["source"] == "asv") & table["figure"].str.contains(re.escape(pattern))]
    if rows.empty:
        return None
    figure, (axes,) = new_figure()
    commits = list(rows.sort_values("date")["commit"].drop_duplicates())
    for number, (label, line) in enumerate(split(rows, ("figure", *SETTINGS, *COUNTS, "machine"))):
        line = line.drop_duplicates("commit", keep="last").sort_values("date")
        places = [commits.index(commit) for commit in line["commit"]]
        values = line["value"] / line["value"].iloc[0]
        colour, marker = colour_of(line["backend"].iloc[0]), marker_of(number)
        axes.plot(places, values, color=colour, marker=marker, label=label or pattern)
    axes.set(title=f"{pattern}, over commits", ylabel="of the first commit's value")
    axes.set_xticks(range(len(commits)), [commit[:8] for commit in commits], rotation=60)
    axes.set_ylim(0, 1.1 * axes.dataLim.ymax)
    axes.legend(fontsize="small")
    return figure


def _strong(rows: pd.DataFrame, figure: str, of: str, title: str) -> Figure | None:
    """Return speed-up over threads or processes, from times with the backend fused."""
    lines = [
        Line(label or "fused", {n: 1 / value for n, value in _by(part, of).items()}, "fused")
        for label, part in split(rows[rows["figure"] == figure], ("machine",))
    ]
    return _speedup(title, of, lines)


def _weak(rows: pd.DataFrame) -> Figure | None:
    lines = [
        Line(label or "fused", _by(part, "threads"), "fused")
        for label, part in split(rows[rows["figure"] == WEAK_THREADS], ("machine",))
    ]
    return _speedup("a step, 128 samples a thread: weak scaling", "threads", lines)


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
    return _speedup("training: strong and weak scaling", "workers", lines)


def _by(rows: pd.DataFrame, count: str) -> dict[int, float]:
    """Return values by a count that they were measured with."""
    return {int(n): value for n, value in zip(rows[count], rows["value"], strict=True)}


def _speedup(title: str, unit: str, lines: list[Line]) -> Figure | None:
    """Return speeds against counts, of each line divided by that of its smallest count."""
    lines = [line for line in lines if len(line.speeds) > 1]
    if not lines:
        return None
    figure, (axes,) = new_figure()
    for number, (label, speeds, colour, style) in enumerate(lines):
        points = sorted(speeds)
        values = [speeds[n] / speeds[points[0]] for n in points]
        marker = marker_of(number)
        axes.plot(
            points, values, color=colour_of(colour), linestyle=style, marker=marker, label=label
        )
    counts = sorted(set().union(*(line.speeds for line in lines)))
    axes.plot(counts, [count / counts[0] for count in counts], "k--", linewidth=1, label="linear")
    axes.set(title=title, xlabel=unit, ylabel=f"speed, {counts[0]} is 1")
    axes.set_xticks(counts)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    return figure


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
    alike = [name for name in (*SETTINGS, "machine") if name not in spread]
    rows = rows.drop_duplicates([*alike, *spread], keep="last")
    several = rows.groupby(alike, dropna=False)["ranks"].transform("nunique") > 1
    found = rows[several].assign(samples_per_s=TRAIN_SAMPLES / rows[several]["value"])
    names = ["neurons", "samples_per_s", *spread, *(name for name in alike if name != "neurons")]
    return found[names].sort_values([*alike, "ranks"], ignore_index=True)
