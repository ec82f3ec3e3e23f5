"""The tables: what the records have reached, beside what the paper has."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..harness.records import record_rows
from ..training.memory import GIB
from . import reported as paper
from .recording import KIND
from .trainings import Row, Training, key_of

if TYPE_CHECKING:
    import pandas as pd

NOTHING = "-"
NOT_MEASURED = "not measured yet"
MB = 1e6
Run = dict[str, Any]


class Runs:
    """The newest record of every training.

    Parameters
    ----------
    records : DataFrame
        From `records.read_records`. A record without settings, accuracies or connections is none.
    """

    def __init__(self, records: pd.DataFrame) -> None:
        self._by_key: dict[str, Run] = {
            key_of(record["settings"]): record
            for record in record_rows(records[records["kind"] == KIND])
            if record["settings"] and record["accuracy"] and any(record["nnz"] or ())
        }

    def __contains__(self, training: Training) -> bool:
        return training.key in self._by_key

    def of(self, row: Row) -> list[Run]:
        """Return the records of a row, one of every seed that has been run."""
        return [self._by_key[one.key] for one in row.trainings if one in self]


class Column(NamedTuple):
    """A column of Table 2, 3 or 5: its head, and a cell from a row's runs and the paper's row."""

    head: str
    ours: Callable[[Run], float | None] | None  # the mean over the runs is shown
    paper: Callable[[paper.Result], float | None] | None
    show: str = "{:.2f}"


def best(run: Run) -> float | None:
    """Return the best test accuracy over the epochs in per cent, the paper's protocol."""
    found = [value for value in run["accuracy"][1:] if value is not None]
    return 100 * max(found) if found else None


def last(run: Run) -> float | None:
    """Return the test accuracy after the last epoch, in per cent."""
    value = run["accuracy"][-1]
    return None if value is None else 100 * value


def diverged(run: Run) -> bool:
    """Say whether a training has ended before its last epoch, the loss being infinite."""
    return last(run) is None


def _counts(run: Run) -> list[int]:
    return [nnz for nnz in run["nnz"] if nnz is not None]


def _left(found: paper.Result) -> float | None:
    return 100 * found.end / found.start if found.end and found.start else None


def _scaled(name: str, scale: float) -> Callable[[Run], float | None]:
    def get(run: Run) -> float | None:
        value = run[name]
        return None if value is None else scale * value

    return get


def _memory(run: Run) -> float | None:
    several = (run["ranks"] or 1) > 1
    return _scaled("node_pss_bytes" if several else "peak_rss_bytes", 1 / GIB)(run)


COLUMNS = (
    Column("best %", best, None),
    Column("paper %", None, lambda found: found.accuracy),
    Column("last %", last, None),
    Column("selected %", _scaled("selected_accuracy", 100), None),
    Column("connections", lambda run: _counts(run)[0], None, "{:,.0f}"),
    Column("at the end", lambda run: _counts(run)[-1], None, "{:,.0f}"),
    Column("left %", lambda run: 100 * _counts(run)[-1] / _counts(run)[0], None, "{:.1f}"),
    Column("paper left %", None, _left, "{:.1f}"),
    Column("minutes", _scaled("train_s", 1 / 60), None, "{:.3g}"),
    Column("paper minutes", None, lambda found: found.minutes, "{:.4g}"),
    Column("CPU s", lambda run: sum(run["cpu_s"]) if run["cpu_s"] else None, None, "{:.0f}"),
    Column("energy kJ", _scaled("energy_j", 1e-3), None, "{:.3g}"),
    Column("GiB", _memory, None),
    Column(
        "paper GiB",
        None,
        lambda found: None if found.memory_mb is None else found.memory_mb * MB / GIB,
    ),
)


def results_table(
    rows: Sequence[Row], runs: Runs, *, beside: bool = True
) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of Table 2, 3 or 5; columns that say nothing are left out.

    So are the paper's, unless ours are to stand `beside` them.

    Where there are several seeds, a cell is their mean, and an accuracy has ± the standard
    deviation. Of a training that diverged the best accuracy is that before.
    """
    lines = []
    for row in rows:
        found = runs.of(row)
        line = [row.name, str(len(found)) if row.trainings else NOTHING]
        for column in COLUMNS:
            if column.ours is not None:
                line.append(_mean(found, column) if found else NOTHING)
            else:
                assert column.paper is not None
                value = column.paper(row.paper) if beside and row.paper else None
                line.append(_cell(value, column.show))
        if row.trainings and not found:
            line[2] = NOT_MEASURED
        if count := sum(map(diverged, found)):
            line[2] += f" ({count} diverged)"
        lines.append(line)
    head = ["", "seeds", *(column.head for column in COLUMNS)]
    kept = [k for k in range(len(head)) if k < 3 or any(line[k] != NOTHING for line in lines)]
    return [head[k] for k in kept], [[line[k] for k in kept] for line in lines]


def pruning_table(
    row: Row, runs: Runs, *, beside: bool = True
) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of Table 6: networks that are pruned once, after their training.

    `beside`: whether the paper's columns are wanted.
    """
    head = ["percentile", "seeds", "accuracy %", "lost", "connections", "left %"]
    head += ["paper %", "lost", "connections", "left %"]
    reported = paper.TABLE_6[row.trainings[0].dataset]
    found = [run["pruned"] for run in runs.of(row) if len(run["pruned"] or ()) == len(reported)]
    lines = []
    for k, percentile in enumerate(reported):
        line = [str(percentile), str(len(found)), NOT_MEASURED, NOTHING, NOTHING, NOTHING]
        if found:
            accuracies = [100 * pruned[k]["accuracy"] for pruned in found]
            lost = [100 * (pruned[0]["accuracy"] - pruned[k]["accuracy"]) for pruned in found]
            count = statistics.mean(pruned[k]["connections"] for pruned in found)
            whole = statistics.mean(pruned[0]["connections"] for pruned in found)
            line[2:] = [_spread(accuracies), f"{statistics.mean(lost):.2f}"]
            line += [f"{count:,.0f}", f"{100 * count / whole:.1f}"]
        theirs, unpruned = reported[percentile], reported[0]
        line += [f"{theirs.accuracy:.2f}", f"{unpruned.accuracy - theirs.accuracy:.2f}"]
        line += [
            f"{theirs.connections:,}",
            f"{100 * theirs.connections / unpruned.connections:.1f}",
        ]
        lines.append(line)
    kept = len(head) if beside else -4
    return head[:kept], [line[:kept] for line in lines]


def keras_rows(dataset: str) -> list[Row]:
    """Return the rows of Table 3 that the paper ran with Keras, which have no trainings here."""
    return [
        Row(found.variant, (), found)
        for found in paper.TABLE_3
        if found.dataset == dataset and found.variant.startswith("keras")
    ]


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, aligned, so that it can be read as it is."""
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in (head, rule, *lines)
    )


def _mean(found: Sequence[Run], column: Column) -> str:
    assert column.ours is not None
    values = [value for run in found if (value := column.ours(run)) is not None]
    if not values:
        return NOTHING
    if column.head.endswith("%") and column.head != "left %":
        return _spread(values)
    return column.show.format(statistics.mean(values))


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def _cell(value: float | None, show: str) -> str:
    return NOTHING if value is None else show.format(value)
