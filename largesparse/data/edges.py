"""Lists of connections between named neurons, as text: a line each, or a line a gene set."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError
from ..machine.environment import expand_user
from .files import open_text, reading
from .headers import is_number, numbered_rows, read_first_rows

COLUMNS = ("source", "target", "weight")
LARGEST = 3.4028234e38  # of float32
FORM = "A line is source,target or source,target,weight; a first line may name these columns."

GENE_SETS = "A line is a set, a description, and its genes, separated by tabs."


class Edges(NamedTuple):
    """Connections in the order of a file, by the names of what they lead from and to."""

    sources: list[str]
    targets: list[str]
    weights: list[float] | None = None


def read_edges(path: str | Path) -> Edges:
    """Read a list of connections: text with separators, plain or gzipped, or gene sets (.gmt).

    Of text the columns are source, target and, if there is a third one, weight. Where the first
    line has the names "source" and "target", it says which column is which, and others are left
    out. Fields may be quoted; blank lines, and spaces around fields, do not count. A line of
    GMT is the set, a description and its genes, separated by tabs.

    Raises
    ------
    DataError
        Where the file cannot be read, or a line is no connection.
    """
    path = expand_user(path)
    with reading(path, "as a list of connections", FORM):
        if ".gmt" in map(str.lower, path.suffixes[-2:]):
            return _read_gene_sets(path)
        first, separator = read_first_rows(path)
        heads = [field.strip().lower() for field in first[0]]
        named = {"source", "target"} <= set(heads)
        if named:
            columns = [heads.index(name) for name in COLUMNS if name in heads]
        elif len(heads) in (2, 3):
            columns = list(range(len(heads)))
        else:
            raise ValueError(f"the first line has {len(heads)} fields")
        with open_text(path) as file:
            rows = list(itertools.islice(numbered_rows(file, separator), int(named), None))
    rows = [(number, row) for number, row in rows if any(map(str.strip, row))]
    found: list[list[str]] = [[], [], []]
    for number, row in rows:
        fields = [row[k].strip() if k < len(row) else "" for k in columns]
        if not all(fields[:2]) or (not named and len(row) > len(columns)):
            raise DataError(f"{path}: line {number}, {row}, is no connection. {FORM}")
        if len(fields) == 3 and not (is_number(fields[2]) and abs(float(fields[2])) <= LARGEST):
            raise DataError(
                f"{path}: line {number} has the weight {fields[2]!r}, no number of float32. {FORM}"
            )
        for column, field in zip(found, fields, strict=False):
            column.append(field)
    if not rows:
        raise DataError(f"{path} has no connection. {FORM}")
    weights = list(map(float, found[2])) if len(columns) == 3 else None
    return Edges(found[0], found[1], weights)


def _read_gene_sets(path: Path) -> Edges:
    edges = Edges([], [])
    with open_text(path) as file:
        reader = csv.reader(file, "excel-tab", quoting=csv.QUOTE_NONE)
        for name, *genes in filter(any, reader):
            if not genes or not name.strip():
                raise DataError(f"{path}: line {reader.line_num} is no gene set. {GENE_SETS}")
            genes = [gene.strip() for gene in genes[1:] if gene.strip()]
            edges.sources.extend(genes)
            edges.targets.extend([name.strip()] * len(genes))
    if not edges.sources:
        raise DataError(f"{path} has no gene sets. {GENE_SETS}")
    return edges
