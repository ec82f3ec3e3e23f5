"""The file that `largesparse bench` writes: its fields, and how it is written, read and checked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from ...errors import DataError
from ..records import check_output, is_of

KIND, SCHEMA = "largesparse bench", 1  # the schema goes up whenever there are other fields


@dataclass(slots=True)
class Figure:
    """What was timed, repeat by repeat. Every figure is seconds; less is better."""

    name: str  # unique in the file: group, contestant, case, joined by "/"
    group: str  # "limits", "step", "ladder", "inference", "ranks" or "peers"
    times_s: list[float] = field(default_factory=list)  # a repeat each
    reference_s: list[float] = field(default_factory=list)  # reference kernel beside each repeat
    control: bool = False  # whether no change of largesparse changes it
    work: float | None = None  # in a repeat, in the units of `unit`
    unit: str | None = None  # of the work: "bytes", "FLOP", "samples"
    settings: dict[str, Any] = field(default_factory=dict)  # sizes, threads, processes, ...
    peak_bytes: int | None = None  # of the process, where it is the figure's own


@dataclass(slots=True)
class Bench:
    """A run of `largesparse bench` on a machine."""

    figures: list[Figure]
    kind: str = KIND
    schema: int = SCHEMA
    version: str | None = None  # of largesparse
    commit: str | None = None  # where it is a clone
    timestamp: str | None = None  # ISO 8601, UTC
    command: str | None = None
    versions: dict[str, str | None] | None = None  # of Python and of the packages
    cpu: str | None = None  # the processor's name
    cores: int | None = None  # that the process may use
    memory_bytes: int | None = None  # of the machine
    threads: int | None = None  # of every contestant
    minutes: float | None = None  # the time limit
    seconds: float | None = None  # that it took
    complete: bool = False  # whether it was not interrupted
    noise: dict[str, Any] | None = None  # see largesparse.harness.noise
    left_out: dict[str, str] = field(default_factory=dict)  # figure -> why it was not measured

    def figure(self, name: str) -> Figure | None:
        """Return the figure of a name, None where it was not measured."""
        return next((one for one in self.figures if one.name == name), None)


Record = TypeVar("Record", Figure, Bench)


def write_bench(path: str | Path, bench: Bench) -> Path:
    """Write a file anew, and return its path.

    Raises
    ------
    ParameterError
        Where it cannot be written.
    """
    file = check_output(path)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps(asdict(bench), indent=1, allow_nan=False), encoding="utf-8")
    partial.replace(file)  # one that is there stays whole if this is interrupted
    return file


def read_bench(path: str | Path) -> Bench:
    """Return what a file says, checked field by field.

    Raises
    ------
    DataError
        Where it cannot be read, is not such a file, is of a newer schema, has a field of another
        type, or a figure twice or without times.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"The file {str(path)!r} cannot be read: {error}.") from error
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise DataError(
            f"The file {str(path)!r} is not of `largesparse bench`. Name what its --out wrote."
        )
    if not isinstance(found.get("schema"), int) or not 1 <= found["schema"] <= SCHEMA:
        raise DataError(
            f"The file {str(path)!r} has schema {found.get('schema')!r}; this version reads 1 to "
            f"{SCHEMA}. Update largesparse, or measure again."
        )
    figures = found.get("figures")
    if not isinstance(figures, list):
        raise DataError(f"The file {str(path)!r} has no list 'figures'. Measure again.")
    measured = [_checked(Figure, entry, path) for entry in figures]
    names = set()
    for one in measured:
        numbers = [*one.times_s, *one.reference_s]
        positive = all(0 < number < math.inf for number in numbers)  # NaN is not
        if not numbers or not positive or len(one.times_s) != len(one.reference_s):
            raise DataError(
                f"The figure {one.name!r} of {str(path)!r} must have as many positive times as "
                "reference times, one at least. Measure again."
            )
        if one.name in names:
            raise DataError(f"The file {str(path)!r} has {one.name!r} twice. Measure again.")
        names.add(one.name)
    return _checked(Bench, found | {"figures": measured}, path)


def _checked(kind: type[Record], found: Any, path: str | Path) -> Record:
    """Return a dataclass of a mapping; what it does not know is left out, as newer files have."""
    hints = get_type_hints(kind)
    values = found if isinstance(found, Mapping) else {}
    for name, hint in hints.items():
        if name != "figures" and not is_of(values.get(name), hint):
            raise DataError(f"The file {str(path)!r} is damaged in {name!r}. Measure again.")
    known = {entry.name: values[entry.name] for entry in fields(kind) if entry.name in values}
    try:
        return kind(**known)
    except TypeError as error:
        raise DataError(f"The file {str(path)!r} lacks a field: {error}.") from error
