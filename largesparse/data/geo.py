"""Series matrices of the Gene Expression Omnibus (GEO): expression values and classes of samples.

A series matrix is text, plain or gzipped: lines `!Sample_...` with one quoted value a sample,
several of them `!Sample_characteristics_ch1` with values `"field: value"`, then a table of one
line a probe between `!series_matrix_table_begin` and `!series_matrix_table_end`.
"""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..machine.environment import expand_user
from .files import open_text, reading

CHARACTERISTICS = "!Sample_characteristics_ch1"
BEGIN, END = "!series_matrix_table_begin", "!series_matrix_table_end"
CLASS_FIELD = "leukemia class"  # of GSE13159
AGAIN = "Get it again from GEO."


class SeriesMatrix(NamedTuple):
    """X (n_samples, n_probes) float32, with a class label and an accession a sample."""

    X: NDArray[np.float32]
    labels: NDArray[np.str_] | None
    samples: list[str]
    probes: list[str]


def read_series_matrix(
    path: str | os.PathLike[str], class_field: str | None = CLASS_FIELD
) -> SeriesMatrix:
    """Read a GEO series matrix line by line; the peak is twice the result.

    Parameters
    ----------
    path : path
        Of a `*_series_matrix.txt` or `.txt.gz`.
    class_field : str or None
        Which characteristic holds the class, of every sample one: what stands before the colon,
        in any case. Or the name of another sample line: "title" or "source_name_ch1", say. By
        default that of GSE13159, the paper's Leukemia: 2096 samples, 54675 probes, 18 classes.
        None: without labels.
    """
    path = expand_user(path)
    with reading(path, "", AGAIN), open_text(path, "utf-8", errors="replace") as file:
        sample_lines = _read_sample_lines(file, path)
        samples = _fields(file.readline())[1:]
        if not samples:
            raise DataError(f"{path} has a table without samples. {AGAIN}")
        labels = None
        if class_field is not None:
            labels = np.array(_classes(sample_lines, len(samples), class_field, path))
        values, probes = bytearray(), []
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # NumPy's sign of other text
            for probe, row in _rows(file, samples, path):
                values += row.tobytes()
                probes.append(probe)
    table = np.frombuffer(values, np.float32).reshape(len(probes), len(samples))
    return SeriesMatrix(np.ascontiguousarray(table.T), labels, samples, probes)


def _fields(line: str) -> list[str]:
    """Return the fields of a line; its name stands first."""
    return next(csv.reader([line.rstrip("\r\n")], delimiter="\t"), [])


def _read_sample_lines(file: TextIO, path: Path) -> list[list[str]]:
    """Read up to the table, and return the fields of the lines about samples."""
    lines: list[list[str]] = []
    for line in file:
        if line.startswith(BEGIN):
            return lines
        if line.startswith("!Sample_"):
            lines.append(_fields(line))
    raise DataError(
        f"{path} is no GEO series matrix, or is cut off: it has no line {BEGIN}. {AGAIN}"
    )


def _classes(lines: list[list[str]], n_samples: int, class_field: str, path: Path) -> list[str]:
    classes: list[str | None] = [None] * n_samples
    known = set()
    for name, *values in lines:
        for sample, value in enumerate(values[:n_samples]):
            if name == CHARACTERISTICS:  # a line may hold other fields for other samples
                field, _, value = (part.strip() for part in value.partition(":"))
            else:
                field = name.removeprefix("!Sample_")
            known.add(field)
            if field.lower() == class_field.strip().lower() and value:
                if classes[sample] not in (None, value):
                    raise DataError(
                        f"{path} has {field!r} twice for sample {sample + 1}: {classes[sample]!r} "
                        f"and {value!r}. Remove one, or pass another class_field (--target)."
                    )
                classes[sample] = value
    found = [value for value in classes if value is not None]
    if not found:
        other = f", not {class_field!r}" if class_field else ""
        raise DataError(
            f"{path} has the fields {', '.join(sorted(known - {''}))}{other}. Pass one of them "
            "as the target (class_field=…; --target on the command line)."
        )
    if len(found) < n_samples:
        raise DataError(
            f"{path} has no {class_field!r} for sample {classes.index(None) + 1}, nor for "
            f"{n_samples - len(found) - 1} others. Pass another class_field (--target)."
        )
    return found


def _rows(
    file: TextIO, samples: list[str], path: Path
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Read the table from its first probe to its end."""
    for line in file:
        if line.startswith(END):
            return
        probe, _, text = line.rstrip("\r\n").partition("\t")
        try:
            row = np.fromstring(text, np.float32, sep="\t")
        except (DeprecationWarning, ValueError):
            row = np.empty(0, np.float32)
        if len(row) != len(samples) or not np.isfinite(row).all():
            _refuse_row(probe, text, samples, path)
        yield probe.strip('"'), row
    raise DataError(f"{path} is cut off: it has no line {END}. {AGAIN}")


def _refuse_row(probe: str, text: str, samples: list[str], path: Path) -> None:
    values = text.split("\t")
    if len(values) != len(samples):
        raise DataError(
            f"{path} is damaged: the probe {probe} has {len(values)} values for {len(samples)} "
            f"samples. {AGAIN}"
        )
    for sample, value in zip(samples, values, strict=True):
        try:
            good = np.isfinite(np.float32(value))
        except ValueError:
            good = False
        if not good:
            raise DataError(
                f"{path}: the probe {probe} of the sample {sample} is {value!r}, not a number. "
                "Remove the probe's line, or fill in a value."
            )
