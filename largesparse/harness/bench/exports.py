"""Results in the formats of others: pytest-benchmark's JSON and Bencher's metric format (BMF).

Of a file of `largesparse bench`, or of the newest results that lie in a folder of asv's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ..measurements import CONDITIONS, COUNTS, read_measurements
from ..series import told
from .results import read_bench

PYTEST_BENCHMARK = "5.1.0"  # whose files these are as
NANOSECONDS = 1e9  # that Bencher's measure "latency" is in


@dataclass
class Result:
    """A figure of either source."""

    name: str
    group: str
    values: list[float]
    unit: str  # "s", or another, whose values are measures of their own
    interval: tuple[float, float] | None = None  # asv's own, 99 %
    settings: dict[str, Any] = field(default_factory=dict)
    rate: float | None = None  # of work a second


@dataclass
class Source:
    """Results, and where and when they were measured."""

    results: list[Result]
    machine: dict[str, Any]
    commit: str | None
    date: str | None


def read_source(path: str | Path) -> Source:
    """Return what a file of `bench` has, or the newest results of a folder of asv's.

    Raises
    ------
    DataError
        Where there is no result, or it cannot be read.
    """
    return _of_asv(Path(path)) if Path(path).is_dir() else _of_bench(path)


def to_pytest_benchmark(source: Source) -> dict[str, Any]:
    """Return results as `pytest --benchmark-json` writes them, for what compares such files.

    Figures in other units than seconds are left out, since the format has times alone.
    """
    timed = [one for one in source.results if one.unit == "s"]
    return {
        "machine_info": source.machine,
        "commit_info": {"id": source.commit or "unversioned", "time": source.date, "dirty": False},
        "benchmarks": [
            {
                "group": one.group,
                "name": one.name,
                "fullname": one.name,
                "params": None,
                "param": None,
                "extra_info": one.settings,
                "options": {},
                "stats": _stats(np.array(one.values)),
            }
            for one in timed
        ],
        "datetime": source.date,
        "version": PYTEST_BENCHMARK,
    }


def to_bencher(source: Source) -> dict[str, dict[str, dict[str, float]]]:
    """Return results in Bencher's metric format, for `bencher run --adapter json`.

    Times are of the measure "latency", in nanoseconds: medians, between the quartiles of the
    repeats, or between the ends of asv's interval. A rate is a "throughput", in its units of work a
    second. Figures in other units have a measure that is called as the unit is.
    """
    found = {}
    for one in source.results:
        low, median, high = np.quantile(one.values, (0.25, 0.5, 0.75))
        if one.interval is not None:
            low, high = one.interval
        measure, scale = ("latency", NANOSECONDS) if one.unit == "s" else (_slug(one.unit), 1.0)
        ends = {"lower_value": scale * float(low), "upper_value": scale * float(high)}
        metrics = {measure: {"value": scale * float(median)}}
        if one.interval is not None or len(one.values) > 1:
            metrics[measure] |= ends
        if one.rate is not None:
            metrics["throughput"] = {"value": one.rate}
        found[one.name] = metrics
    return found


FORMATS: dict[str, Callable[[Source], dict[str, Any]]] = {
    "pytest-benchmark": to_pytest_benchmark,
    "bencher": to_bencher,
}


def _of_bench(path: str | Path) -> Source:
    bench = read_bench(path)
    results = [
        Result(one.name, one.group, one.times_s, "s", settings=one.settings)
        for one in bench.figures
    ]
    for result, one in zip(results, bench.figures, strict=True):
        result.rate = one.work and one.work / float(np.median(one.times_s))
    machine = {"cpu": {"brand_raw": bench.cpu, "count": bench.cores}, "noise": bench.noise}
    return Source(results, machine | (bench.versions or {}), bench.commit, bench.timestamp)


def _of_asv(folder: Path) -> Source:
    from ..report import newest_results

    rows = newest_results(read_measurements(asv=folder))
    if rows.empty:
        raise DataError(f"The folder {str(folder)!r} has no result of asv: run `asv run`.")
    names = (*CONDITIONS, *COUNTS)
    results = []
    for row in rows.to_dict("records"):
        chosen = {name: row[name] for name in names if row[name] == row[name] and row[name]}
        label = ", ".join(told(name, value) for name, value in chosen.items())
        figure = str(row["figure"])
        results.append(
            Result(
                f"{figure} ({label})" if label else figure,
                figure.partition(".")[0],
                [float(row["value"])],
                str(row["unit"]),
                _interval(row["low"], row["high"]),
                {name: _plain(value) for name, value in chosen.items()},
            )
        )
    last = rows.iloc[-1]
    date = None if last["date"] != last["date"] else last["date"].isoformat()
    return Source(results, {"node": str(last["machine"])}, str(last["commit"]), date)


def _interval(low: Any, high: Any) -> tuple[float, float] | None:
    ends = (low, high)
    return None if any(end is None or end != end for end in ends) else (float(low), float(high))


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _slug(unit: str) -> str:
    """Return a unit as a name of a measure: GB/s as gb-s."""
    return re.sub(r"[^a-z0-9]+", "-", unit.lower()).strip("-") or "value"


def _stats(values: np.ndarray) -> dict[str, Any]:
    """Return the statistics that pytest-benchmark keeps of rounds in seconds."""
    q1, median, q3 = (float(value) for value in np.quantile(values, (0.25, 0.5, 0.75)))
    mean = float(values.mean())
    stddev = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    fence = 1.5 * (q3 - q1)
    inner = values[(values >= q1 - fence) & (values <= q3 + fence)]
    far = int((abs(values - mean) > stddev).sum()) if stddev else 0
    return {
        "min": float(values.min()),
        "max": float(values.max()),
        "mean": mean,
        "stddev": stddev,
        "rounds": len(values),
        "median": median,
        "iqr": q3 - q1,
        "q1": q1,
        "q3": q3,
        "iqr_outliers": len(values) - len(inner),
        "stddev_outliers": far,
        "outliers": f"{far};{len(values) - len(inner)}",
        "ld15iqr": float(inner.min()),
        "hd15iqr": float(inner.max()),
        "ops": 1 / mean,
        "total": float(values.sum()),
        "data": values.tolist(),
        "iterations": 1,
    }
