"""Run records: what a run was, how long it took and what it reached, one JSON object a line.

A file of records is only ever appended to, by any number of processes, and read back as a table.
`measurements.read_measurements` has them in one table with the results of asv.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from ..errors import DataError, LargeSparseError, ParameterError
from ..machine.environment import expand_user
from ..machine.hardware import cpu_model
from ..machine.versions import commit, versions
from .noise import noise_so_far

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

SCHEMA = 7  # goes up whenever there are other fields; those that an older record lacks are null


@dataclass(slots=True)
class RunRecord:
    """One run. What does not apply is None.

    Times are in seconds. Lists of times have an entry per epoch; `loss`, `accuracy`, `nnz`,
    `active_neurons`, `train_accuracy`, `test_loss` and `gradient_flow` have one more, the first
    before training, where that was evaluated.
    """

    schema: int = SCHEMA
    kind: str | None = None  # which driver wrote it, for instance "bigmodel"
    command: str | None = None
    timestamp: str | None = None  # ISO 8601, UTC, when the record was made
    commit: str | None = None
    versions: dict[str, str | None] | None = None
    cpu: str | None = None
    algorithm: str | None = None  # "sequential", "wasap", "wassp", "allreduce", "pipeline"
    neurons: int | None = None  # sum of the hidden layers
    layers: int | None = None  # hidden layers
    epsilon: float | None = None
    parameters: int | None = None  # connections + biases
    connections: int | None = None
    ranks: int | None = None
    threads: int | None = None  # of one rank
    backend: str | None = None
    recipe: str | None = None
    batch_size: int | None = None
    micro_batch: int | None = None
    keep_every: int | None = None  # of how many layers one's activations are kept
    train_samples: int | None = None
    test_samples: int | None = None
    seed: int | None = None
    init_s: float | None = None
    epoch_s: list[float | None] | None = None  # training alone
    inference_s: list[float | None] | None = None
    evolution_s: list[float | None] | None = None
    loss: list[float | None] | None = None  # without dropout, over a fixed set of training rows
    accuracy: list[float | None] | None = None  # over all test rows
    planned_bytes: int | None = None
    peak_rss_bytes: int | None = None  # of the largest rank
    node_pss_bytes: int | None = None  # of all ranks of the largest node
    phase_one_epochs: int | None = None  # the rest has no loss, but for the last
    idle_s: list[float] | None = None  # that every rank has waited
    staleness: Any = None  # of phase one's updates: mean, max, histogram
    bytes_moved: int | None = None  # between nodes; of a pipeline between ranks
    cpu_s: list[float] | None = None  # processor time of every rank
    coverage: str | None = None  # of the initial topology: "random" or "full"
    active_neurons: list[int | None] | None = None  # on a path from an input to an output
    activation_dtype: str | None = None  # of hidden layers: float32 or bfloat16
    dataset: str | None = None
    settings: dict[str, Any] | None = None  # all that a training's result follows from
    nnz: list[int | None] | None = None  # connections, before training and after every epoch
    train_s: float | None = None  # training, evolution and pruning, without evaluation
    train_accuracy: list[float | None] | None = None  # over the rows of the loss
    test_loss: list[float | None] | None = None  # over all test rows
    selected_accuracy: float | None = None  # test accuracy of the epoch that held-out rows choose
    gradient_flow: list[float | None] | None = None  # see monitoring.GradientFlow
    pruned: list[dict[str, float]] | None = (
        None  # after training: percentile, accuracy, connections
    )
    distributions: dict[str, Any] | None = None  # see reproduction.distributions
    energy_j: float | None = None  # of the machine's processors, while it trained
    features: int | None = None
    backend_reason: str | None = None  # why that backend was used
    explored: float | None = None  # share of all cells that were ever connected
    groups: int | None = None  # of a pipeline, which train on different rows
    split: str | None = None  # what its split makes smallest: "time" or "memory"
    stages: list[list[int]] | None = None  # first layer of each, and the one behind the last
    stage_bytes: list[int] | None = None  # peak memory of every rank
    steps_s: list[float] | None = None  # of every rank, in all steps, waiting included
    bubble: list[float] | None = None  # share of its steps that every rank has waited
    least_bubble: float | None = None  # (K - 1) / (M + K - 1)
    steps_bytes: int | None = None  # moved between ranks in all steps
    noise: dict[str, Any] | None = None  # of the machine during the run, see noise.NoiseMeter
    curve: list[dict[str, Any]] | None = None  # within epochs: see `History.curve_frame`
    curve_s: list[float | None] | None = None  # what that took, an epoch; not in epoch_s
    curve_rows: int | None = None  # of the test rows that it is over
    learning_rate: float | None = None
    optimizer: str | None = None
    growth: str | None = None  # rule by which connections grow


FIELDS = tuple(entry.name for entry in fields(RunRecord))
TYPES = get_type_hints(RunRecord)
LARGEST = 2**63  # beyond which a number of a record is damage: tables hold int64


def new_record(kind: str, **values: Any) -> RunRecord:
    """Return a record of this process's run: its command, time, commit, versions, CPU and noise.

    The noise is that of the `noise.NoiseMeter` that is open, if one is.

    Parameters
    ----------
    kind : str
        Which driver the run is of.
    **values
        Further fields of `RunRecord`; they have precedence.

    Raises
    ------
    ParameterError
        Where there is no such field.
    """
    unknown = sorted(set(values) - set(FIELDS))
    if unknown:
        raise ParameterError(
            f"A run record has no field {', '.join(map(repr, unknown))}; "
            f"it has {', '.join(FIELDS)}."
        )
    found = {
        "command": shlex.join(sys.argv),
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": versions(),
        "cpu": cpu_model(),
        "noise": noise_so_far(),
    }
    return RunRecord(kind=kind, **(found | values))


def check_output(path: str | Path) -> Path:
    """Make sure, before any work starts, that records can be appended to `path`.

    A file that does not exist yet is not made.

    Raises
    ------
    ParameterError
        If `path` is a folder, its folder does not exist, or it cannot be written.
    """
    path = expand_user(path)
    if path.is_dir():
        raise ParameterError(f"The output {str(path)!r} is a folder. Name a file in it.")
    if not path.parent.is_dir():
        raise ParameterError(
            f"The folder of the output {str(path)!r} does not exist. "
            f"Create it first: mkdir -p {shlex.quote(str(path.parent))}"
        )
    try:
        if path.exists():
            path.open("ab+").close()
        else:  # another process may make it meanwhile, so it is not made and removed
            tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ParameterError(
            f"The output {str(path)!r} cannot be written ({_reason(error)}). "
            "Name a file that can be."
        ) from error
    return path


def append_record(path: str | Path, record: RunRecord) -> None:
    """Append `record` to the file `path` as one line, all of it or, in a crash, a damaged line.

    Numbers that are not finite become null, which JSON has a word for.

    Raises
    ------
    LargeSparseError
        If the line could not be written; it is logged, so that the run's result is not lost.
    """
    values = {name: getattr(record, name) for name in FIELDS}
    line = json.dumps(_plain(values), allow_nan=False)
    try:
        _append_line(expand_user(path), line.encode())
    except OSError as error:
        logger.error("The record that could not be written: %s", line)
        raise LargeSparseError(
            f"The run's record could not be appended to {str(path)!r} ({_reason(error)})."
        ) from error


def has_record(path: str | Path, **values: Any) -> bool:
    """Return whether a record in a file has these values of fields."""
    if not Path(path).is_file():
        return False
    return any(values.items() <= row.items() for row in _read_lines(Path(path)))


def read_records(*paths: str | Path) -> pd.DataFrame:
    """Return the records of all files as one table with a row per record.

    Columns are the fields of `RunRecord` in their order, then fields that only a newer version
    knows. What a record lacks is null. A line that is no record, or has a value of another type
    than the field's, is skipped and logged.

    Raises
    ------
    DataError
        If a file cannot be read.
    """
    import pandas as pd

    rows = [row for path in paths for row in _read_lines(expand_user(path))]
    newer = dict.fromkeys(name for row in rows for name in row if name not in FIELDS)
    return pd.DataFrame(rows, columns=[*FIELDS, *newer])


def record_rows(records: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table of records, in which what is null is None.

    In the table itself it may be NaN, which is true, compares with nothing and is no integer.
    """
    rows = records.astype(object).to_dict("records")
    return [{str(name): _none_if_nan(value) for name, value in row.items()} for row in rows]


def median_of(values: Iterable[float | None] | None) -> float | None:
    """Return the median of what a run measured, None where it measured nothing."""
    measured = [value for value in values or () if value is not None]
    return statistics.median(measured) if measured else None


def _append_line(path: Path, line: bytes) -> None:
    # One write in append mode, so that lines of several processes do not mix.
    with path.open("ab+", buffering=0) as file:
        data = (b"" if _ends_complete(file) else b"\n") + line + b"\n"
        if file.write(data) != len(data):
            raise OSError("the disk is full")
        os.fsync(file.fileno())


def _ends_complete(file: io.FileIO) -> bool:
    """Say whether the file is empty or ends in a newline, as a crash may have prevented.

    Another process's line that is being written looks the same. It is completed before ours
    begins, and an empty line between the two is no harm.
    """
    if file.seek(0, io.SEEK_END) == 0:
        return True
    file.seek(-1, io.SEEK_END)
    return file.read(1) == b"\n"


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"The records {str(path)!r} cannot be read ({_reason(error)}).") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=lambda name: None, parse_float=_parse_float)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            logger.warning("%s, line %d: not a record, skipped", path, number)
        elif damaged := [name for name in FIELDS if not is_of(row.get(name), TYPES[name])]:
            logger.warning("%s, line %d: damaged in %r, skipped", path, number, damaged[0])
        else:
            rows.append(row)
    return rows


def _parse_float(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def is_of(value: Any, hint: Any) -> bool:
    """Say whether a value of JSON is of the type that a field is declared with, or null."""
    inner = get_args(hint)
    if value is None or hint is Any:
        return True
    if get_origin(hint) is UnionType:
        return any(is_of(value, one) for one in inner)
    if get_origin(hint) is list:
        return isinstance(value, list) and all(is_of(entry, inner[0]) for entry in value)
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(is_of(one, inner[1]) for one in value.values())
    if hint in (int, float):
        if type(value) not in (int, float) or abs(value) >= LARGEST:
            return False
        return hint is float or value == int(value)
    return isinstance(value, hint)


def _none_if_nan(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _plain(value: Any) -> Any:
    """Return `value` made of JSON's types alone."""
    if hasattr(value, "tolist"):  # NumPy's arrays and numbers
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
