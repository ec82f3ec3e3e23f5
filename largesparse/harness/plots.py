"""Scaling plots from run records, with the points of the paper's Table 4 beside them.

A table has a row for each size of each *series*: runs that differ in nothing but their size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..training.memory import GIB
from .noise import STEAL, is_heavy
from .pages import log_axes
from .presets import TABLE_4
from .records import median_of, record_rows
from .series import PAPER, colour_of, features_of, marker_of, series_of, split
from .uncertainty import Ratio, fitted_exponent

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAN = float("nan")
TRAIN_SAMPLES, TEST_SAMPLES = 7000, 3000  # of an epoch and of inference in Table 4
PHASES = {  # column -> title
    "init_s": "initialisation",
    "epoch_s": f"epoch of {TRAIN_SAMPLES} samples",
    "inference_s": f"inference of {TEST_SAMPLES} samples",
    "evolution_s": "evolution",
}
EXPONENTS = {  # column -> what grows
    "init_s": "initialisation",
    "epoch_s": "epoch",
    "inference_s": "inference",
    "evolution_s": "evolution",
    "peak_bytes": "memory",
}
RUN_FIELDS = (
    *("features", "layers", "epsilon", "batch_size", "backend", "algorithm", "ranks", "threads"),
    *("activation_dtype", "commit", "cpu", "noise"),
)
COLUMNS = ("series", "neurons", "connections", *PHASES, "cost_s", "planned_bytes", "peak_bytes")


def scaling_table(records: pd.DataFrame) -> pd.DataFrame:
    """Return the newest run of every series and size, the smallest size first.

    Parameters
    ----------
    records : DataFrame
        From `records.read_records`. Runs of drivers other than bigmodel are left out, and those
        that do not tell their neurons and connections.

    Returns
    -------
    DataFrame
        With `series` (see `series.series_of`; runs by other numbers of threads or on another
        processor are another series), `neurons`, `connections`; `init_s`, `epoch_s`,
        `inference_s` and `evolution_s`, medians in seconds, an epoch's for 7000 samples and
        inference's for 3000; `cost_s`, an epoch's seconds for each connection and sample;
        `planned_bytes` and `peak_bytes` of the node; `samples`, on which an epoch was measured;
        `timestamp`; `noise`; and the other fields `RUN_FIELDS` of the record. NaN or None where it
        has none.

    Raises
    ------
    DataError
        If there is no run of bigmodel.
    """
    table = run_table(records)
    if table.empty:
        raise DataError("There are no records of bigmodel to plot: run `largesparse scaling`.")
    table = table.drop_duplicates(["series", "neurons"], keep="last")
    return table.sort_values(["series", "neurons"]).reset_index(drop=True)


def run_table(records: pd.DataFrame) -> pd.DataFrame:
    """Return all runs of bigmodel in the order of time, with the columns of `scaling_table`."""
    import pandas as pd

    kept = records[(records["kind"] == "bigmodel") & records["connections"].notna()]
    kept = kept[kept["neurons"].astype(float) > 0].sort_values(
        "timestamp", na_position="first", kind="stable"
    )
    table = pd.DataFrame([_row(record) for record in record_rows(kept)])
    for more, rows in split(table, ("threads", "cpu")) if len(table) else ():
        table.loc[rows.index, "series"] += f", {more}" if more else ""
    return table


def paper_table() -> pd.DataFrame:
    """Return Table 4 as `scaling_table` has runs; its parameters stand for the connections."""
    import pandas as pd

    rows = []
    for row in TABLE_4:
        minutes = (row.init_min, row.epoch_min, row.inference_min, row.evolution_min)
        times = dict(zip(PHASES, (60 * value for value in minutes), strict=True))
        cost = times["epoch_s"] / (row.parameters * TRAIN_SAMPLES)
        rows.append(
            {"series": PAPER, "neurons": row.neurons, "connections": round(row.parameters)}
            | times
            | {"cost_s": cost, "planned_bytes": None, "peak_bytes": None, "samples": TRAIN_SAMPLES}
        )
    return pd.DataFrame(rows)


def scaling_figures(table: pd.DataFrame) -> dict[str, Figure]:
    """Return the plots against neurons, log-log: a phase each, `memory` and `cost`.

    Parameters
    ----------
    table : DataFrame
        From `scaling_table`; the paper's points are added. The name of a line has the exponent of
        time or memory in the number of connections, see `exponent_table`.
    """
    paper = paper_table()
    styles = _styles(table)
    figures = {}
    for column, title in PHASES.items():
        figures[column.removesuffix("_s")], axes = log_axes(title, "neurons", "seconds")
        _draw(axes, [paper, table], column, styles)
    figures["memory"], axes = log_axes("memory, of one node", "neurons", "GiB")
    _draw(axes, [table], "peak_bytes", styles, scale=GIB)
    planned = {"linestyle": ":", "fillstyle": "none"}
    hollow = {series: style | planned for series, style in styles.items()}
    _draw(axes, [table], "planned_bytes", hollow, scale=GIB, suffix=", planned")
    figures["cost"], axes = log_axes("cost of training", "neurons", "ns a connection and sample")
    _draw(axes, [paper, table], "cost_s", styles, scale=1e-9)
    if disturbed := [run for run in table.to_dict("records") if is_heavy(run["noise"])]:
        worst = max(run["noise"][STEAL] for run in disturbed)
        for figure in figures.values():
            figure.text(0, 0, f"heavy steal, up to {worst:.0%}", color="crimson", fontsize="small")
    return figures


def exponent_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return how time and memory grow with the connections: b of a·connectionsᵇ, by least squares.

    Parameters
    ----------
    table : DataFrame
        From `scaling_table`.

    Returns
    -------
    DataFrame
        A row for every series of two sizes or more: `series`, `sizes`, and for each phase and for
        `memory` the exponent with its 95 % interval as text; two sizes give no interval.
    """
    import pandas as pd

    rows = []
    for series, runs in table.groupby("series"):
        if runs["connections"].nunique() < 2:
            continue
        row = {"series": series, "sizes": len(runs)}
        for column, name in EXPONENTS.items():
            row[name] = str(_exponent(runs, column))
        rows.append(row)
    return pd.DataFrame(rows, columns=["series", "sizes", *EXPONENTS.values()])


def _exponent(runs: pd.DataFrame, column: str) -> Ratio:
    """Return the exponent of a column of one series in its connections."""
    return fitted_exponent(runs["connections"].astype(float), runs[column].astype(float))


def _row(record: dict[str, Any]) -> dict[str, Any]:
    """Return a row of `run_table`: NaN and None where the record lacks what it takes."""
    ranks = int(record["ranks"] or 1)
    measured = [median_of(record[name]) for name in ("epoch_s", "inference_s", "evolution_s")]
    initial, epoch, inference, evolution = (
        NAN if seconds is None else seconds for seconds in (record["init_s"], *measured)
    )
    train, test = record["train_samples"] or NAN, record["test_samples"] or NAN
    peak = record["node_pss_bytes"] if ranks > 1 else record["peak_rss_bytes"]
    settings = {name: record[name] for name in RUN_FIELDS}
    return settings | {
        "series": series_of(record),
        "features": features_of(record),
        "ranks": ranks,
        "neurons": int(record["neurons"]),
        "connections": int(record["connections"]),
        "init_s": initial,
        "epoch_s": epoch * TRAIN_SAMPLES / train,
        "inference_s": inference * TEST_SAMPLES / test,
        "evolution_s": evolution,
        "timestamp": record["timestamp"],
        "cost_s": epoch / ((record["connections"] or NAN) * train),
        "planned_bytes": record["planned_bytes"],
        "peak_bytes": peak,
        "samples": record["train_samples"],
    }


def _styles(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return how the line of every series looks, in all plots alike; the paper's too."""
    numbers: dict[str, Iterator[int]] = defaultdict(count)
    styles = {PAPER: {"color": colour_of(PAPER), "marker": "s", "linestyle": "--"}}
    for series, rows in table.groupby("series"):
        colour = colour_of(rows["backend"].iloc[0])
        marker = marker_of(next(numbers[colour]))
        styles[str(series)] = {"color": colour, "marker": marker, "linestyle": "-"}
    return styles


def _draw(
    axes: Axes,
    tables: Sequence[pd.DataFrame],
    column: str,
    styles: Mapping[str, Mapping[str, Any]],
    *,
    scale: float = 1,
    suffix: str = "",
) -> None:
    """Draw a column against neurons, a line a series; what is not positive is left out."""
    for table in tables:
        for series, rows in table.groupby("series"):
            drawn = rows[rows[column].astype(float) > 0]
            values = drawn[column].astype(float) / scale
            label = f"{series}{suffix}"
            if column in EXPONENTS and len(drawn) > 1:
                label += f"\n∝ connections ^ {_exponent(drawn, column)}"
            axes.plot(drawn["neurons"], values, **styles[str(series)], label=label)
    axes.legend(fontsize="small")
