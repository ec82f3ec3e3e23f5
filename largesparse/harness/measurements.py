"""Results of asv and run records as one table: a row for every figure that was measured."""

from __future__ import annotations

import ast
import itertools
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, LargeSparseError, install_command
from ..machine.environment import expand_user
from .noise import describe_noise
from .plots import PHASES, run_table
from .records import read_records

if TYPE_CHECKING:
    import pandas as pd

CONDITIONS = (
    *("neurons", "features", "layers", "epsilon", "batch_size", "chunk_bytes", "backend"),
    *("algorithm", "activation_dtype"),
)
COUNTS = ("threads", "ranks", "processes")
COLUMNS = (
    "source",
    "figure",
    *CONDITIONS,
    *COUNTS,
    "value",
    "low",
    "high",
    "unit",
    "connections",
    "commit",
    "date",
    "machine",
    "noise",
)
THREADS = "NUMBA_NUM_THREADS"  # which asv.conf.json pins
# What a file that is damaged, or is not asv's, may raise while it is read.
NOT_ASV = (ArithmeticError, AttributeError, LookupError, SyntaxError, TypeError, ValueError)

logger = logging.getLogger(__name__)


def read_measurements(*records: str | Path, asv: str | Path | None = None) -> pd.DataFrame:
    """Return what asv and the drivers have measured, as one table.

    Parameters
    ----------
    *records : path
        Files of run records.
    asv : path, optional
        The folder of asv's results, `.asv/results`.

    Returns
    -------
    DataFrame
        `source` is "asv" or the kind of the run; `figure` a benchmark's name or, of a run,
        "init_s", "epoch_s" (for 7000 samples), "inference_s" (for 3000), "evolution_s" or
        "peak_bytes"; then the settings, null where a figure has none; `value` in `unit`, between
        `low` and `high` (asv's 99 % confidence interval, null where there is none);
        `noise` of a run in words, where it has recorded it; `connections` of a run;
        `commit`, `date` (of the commit in asv's rows, of the run in the
        others; UTC) and `machine`.

    Raises
    ------
    DataError
        Where a file or folder cannot be read, or has no result. A file of asv's that is damaged
        is skipped and logged.
    """
    import pandas as pd

    rows = list(_asv_rows(expand_user(asv))) if asv is not None else []
    if records:
        rows += _run_rows(read_records(*records))
    if not rows:
        raise DataError("There are no results: run `asv run`, or a driver with --out.")
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    dates = [pd.to_datetime(date, utc=True, errors="coerce") for date in table["date"]]
    table["date"] = pd.to_datetime(dates, utc=True)
    return table


def _asv_rows(folder: Path) -> Iterator[dict[str, Any]]:
    if not folder.is_dir():
        raise DataError(f"There is no folder {str(folder)!r} of asv's results: run `asv run`.")
    try:
        from asv.results import Results, iter_results_paths
        from asv.util import UserError
    except ImportError as error:
        raise LargeSparseError(
            f"asv's results are read with asv: {install_command('bench')}."
        ) from error
    path = folder / "benchmarks.json"
    try:
        described = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise DataError(f"{str(path)!r} cannot be read: {error}. Run `asv run` again.") from error
    for root, name, machine in iter_results_paths(str(folder)):
        file = str(Path(root) / name)
        try:
            yield from list(_rows_of(Results.load(file, machine_name=machine), described))
        except (OSError, UserError, *NOT_ASV) as error:
            logger.warning("%s: not a result of asv, skipped (%s)", file, error)


def _rows_of(result: Any, described: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return the rows of a file of asv's: an environment's results at a commit."""
    common = {
        "source": "asv",
        "commit": result.commit_hash,
        "date": int(result.date) * 10**6,  # milliseconds since 1970 -> nanoseconds
        "machine": result.params.get("machine"),
    }
    pinned = result.env_vars.get(THREADS)
    for name in result.get_all_result_keys():
        benchmark, params = described.get(name), result.get_result_params(name) or []
        if benchmark is None or len(params) != len(benchmark["param_names"]):
            continue  # it is not in the suite any more, or took other parameters then
        values = result.get_result_value(name, params)
        stats = result.get_result_stats(name, params)
        for k, chosen in enumerate(itertools.product(*params)):
            if not _is_number(values[k]):
                continue
            settings = dict(
                zip(benchmark["param_names"], map(ast.literal_eval, chosen), strict=True)
            )
            if pinned and "ranks" not in settings and "processes" not in settings:
                settings.setdefault("threads", int(pinned))
            interval = (stats[k] if stats else None) or {}
            yield (
                common
                | settings
                | {
                    "figure": name,
                    "value": values[k],
                    "low": _finite(interval.get("ci_99_a")),  # infinite of a single repeat
                    "high": _finite(interval.get("ci_99_b")),
                    "unit": "s" if benchmark["unit"] == "seconds" else benchmark["unit"],
                }
            )


def _run_rows(records: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for run in run_table(records).to_dict("records"):
        common = {name: run[name] for name in ("neurons", "connections", "commit")}
        common |= {name: run[name] for name in (*CONDITIONS, *COUNTS) if name in run}
        common |= {"source": "bigmodel", "date": run["timestamp"], "machine": run["cpu"]}
        common["noise"] = describe_noise(run["noise"]) or None
        for figure in (*PHASES, "peak_bytes"):
            if _is_number(run[figure]):
                unit = "bytes" if figure == "peak_bytes" else "s"
                yield common | {"figure": figure, "value": run[figure], "unit": unit}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _finite(value: Any) -> float | None:
    return value if _is_number(value) else None
