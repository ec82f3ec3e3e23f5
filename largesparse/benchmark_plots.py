"""Plots of a table of measurements: scaling over threads and ranks, roofline, memory, history."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .memory import GIB
from .plots import TRAIN_SAMPLES, log_axes, new_figure

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

    Each line is a figure with its settings, divided by its first value: below 1 is less.
    """
    rows = table[(table["source"] == "asv") & table["figure"].str.contains(re.escape(pattern))]
    if rows.empty:
        return None
    figure, (axes,) = new_figure()
    settings = [name for name in ("neurons", "backend", "threads") if rows[name].notna().any()]
    lines = rows.groupby(["machine", "figure", *settings], dropna=False)
    commits = list(rows.sort_values("date")["commit"].drop_duplicates())
    for (_, _, *chosen), line in lines:
        line = line.drop_duplicates("commit", keep="last").sort_values("date")
        places = [commits.index(commit) for commit in line["commit"]]
        pairs = zip(settings, chosen, strict=True)
        told = (f"{name} {_short(value)}" for name, value in pairs if value == value)  # not NaN
        axes.plot(places, line["value"] / line["value"].iloc[0], "o-", label=", ".join(told))
    axes.set(title=f"{pattern}, over commits", ylabel="of the first commit's value")
    axes.set_xticks(range(len(commits)), [commit[:8] for commit in commits], rotation=60)
    axes.set_ylim(0, 1.1 * axes.dataLim.ymax)
    axes.legend(fontsize="small")
    return figure


def _strong(rows: pd.DataFrame, figure: str, of: str, title: str) -> Figure | None:
    """Return speed-up over threads or processes."""
    chosen = rows[rows["figure"] == figure]
    points = {int(row[of]): 1 / row["value"] for _, row in chosen.iterrows()}
    return _speedup(title, of, {"measured": points}) if len(points) > 1 else None


def _weak(rows: pd.DataFrame) -> Figure | None:
    chosen = rows[rows["figure"] == WEAK_THREADS]
    points = {int(row["threads"]): row["value"] for _, row in chosen.iterrows()}
    title = "a step, 128 samples a thread: weak scaling"
    return _speedup(title, "threads", {"measured": points}) if len(points) > 1 else None


def _ranks(rows: pd.DataFrame) -> Figure | None:
    """Return speed-up over workers, of the same rows and of the same rows a worker."""
    lines: dict[str, dict[int, float]] = {}
    for name, told in ((RANKS, "same rows"), (WEAK_RANKS, "same rows a worker")):
        for _, row in rows[rows["figure"] == name].iterrows():
            algorithm = row["algorithm"] if name == RANKS else "wasap"
            line = lines.setdefault(f"{algorithm}, {told}", {})
            line[int(row["ranks"]) - 1] = row["value"]
    lines = {label: points for label, points in lines.items() if len(points) > 1}
    return _speedup("training: strong and weak scaling", "workers", lines) if lines else None


def _speedup(title: str, unit: str, lines: dict[str, dict[int, float]]) -> Figure:
    """Return speeds against counts, of each line divided by that of its smallest count."""
    figure, (axes,) = new_figure()
    for label, speeds in lines.items():
        points = sorted(speeds)
        axes.plot(points, [speeds[n] / speeds[points[0]] for n in points], "o-", label=label)
    counts = sorted(set().union(*lines.values()))
    axes.plot(counts, [count / counts[0] for count in counts], "k:", label="linear")
    axes.set(title=title, xlabel=unit, ylabel=f"speed, {counts[0]} is 1")
    axes.set_xticks(counts)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    return figure


def _roofline(rows: pd.DataFrame) -> Figure | None:
    values = {
        name: rows[rows["figure"] == name].drop_duplicates("neurons", keep="last")
        for name in (PRODUCT, TRAFFIC, BANDWIDTH, ARITHMETIC)
    }
    if any(found.empty for found in values.values()):
        return None
    bandwidth, peak = (values[name]["value"].iloc[-1] for name in (BANDWIDTH, ARITHMETIC))
    figure, axes = log_axes("forward product, roofline", "operations a byte", "GFLOP/s")
    ridge = peak / bandwidth
    axes.plot([0.1, ridge, 10 * ridge], [0.1 * bandwidth, peak, peak], "k-", label="the machine")
    points = values[PRODUCT].merge(values[TRAFFIC], on="neurons", suffixes=("", "_bytes"))
    for _, row in points.iterrows():
        label = f"{_short(row['neurons'])} neurons"
        axes.plot(row["value"] / row["value_bytes"], row["value"], "o", label=label)
    axes.legend(fontsize="small")
    return figure


def _memory(rows: pd.DataFrame) -> Figure | None:
    lines = {label: rows[rows["figure"] == name] for label, name in MEMORY.items()}
    if all(line.empty for line in lines.values()):
        return None
    figure, axes = log_axes("memory at its peak", "neurons", "GiB")
    for label, line in lines.items():
        line = line.sort_values("neurons")
        axes.plot(line["neurons"], line["value"] / GIB, "o-", label=label)
    axes.legend(fontsize="small")
    return figure


def strong_scaling(runs: pd.DataFrame) -> pd.DataFrame:
    """Return runs of one size by one rank and by several, with samples a second of each.

    Parameters
    ----------
    runs : DataFrame
        From `measurements.read_measurements`.

    Returns
    -------
    DataFrame
        `neurons`, `backend`, `ranks`, `samples_per_s` of the newest run of each, where a size
        has several numbers of ranks.
    """
    rows = runs[(runs["source"] == "bigmodel") & (runs["figure"] == "epoch_s")].sort_values("date")
    rows = rows.drop_duplicates(["neurons", "backend", "ranks"], keep="last")
    several = rows.groupby(["neurons", "backend"])["ranks"].transform("nunique") > 1
    found = rows[several].assign(samples_per_s=TRAIN_SAMPLES / rows[several]["value"])
    return found[["neurons", "backend", "ranks", "samples_per_s"]].reset_index(drop=True)


def _short(value: object) -> str:
    if not isinstance(value, (int, float)):
        return str(value)
    for unit, size in (("M", 10**6), ("k", 10**3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
