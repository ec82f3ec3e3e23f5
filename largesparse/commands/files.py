"""The flags that say how a file is read, of `train`, `predict` and `evaluate`."""

from __future__ import annotations

import argparse
from typing import Any

from ..data.formats import FORMATS
from ..data.layout import DECIMALS, MISSING_CHOICES

READ = "CSV, .data, .txt, parquet, ARFF, svmlight, XC text, npz, npy, MATLAB, GEO, h5ad"
DELIMITERS = {"tab": "\t", r"\t": "\t", "space": " ", "comma": ",", "semicolon": ";"}


def add_file_options(parser: argparse.ArgumentParser, *, labels: bool = True) -> None:
    """Add what a file does not say itself."""
    add = parser.add_argument
    add("--format", choices=FORMATS, help="what the file is (by its suffix)")
    add("--header", choices=("yes", "no"),
        help="whether the first line of text names the columns (found by its text)")  # fmt: skip
    add("--no-header", dest="header", action="store_const", const="no",
        help="as --header no; columns are then called by their positions, from 0")  # fmt: skip
    add("--delimiter", metavar="CHAR",
        help="what separates the fields of text: a character, tab or space (found)")  # fmt: skip
    add(
        "--decimal",
        choices=DECIMALS,
        metavar="SIGN",
        help="decimal sign of text, . or , (.; or as trained)",
    )
    add("--index-base", type=int, choices=(0, 1),
        help="first index of svmlight (0 if there is one, else 1; or as trained)")  # fmt: skip
    add("--drop", nargs="+", metavar="COLUMN", default=[], help="columns to leave out")
    add("--id", metavar="COLUMN",
        help="the column that names the rows: no feature; predict writes it")  # fmt: skip
    add("--missing", choices=MISSING_CHOICES,
        help="empty fields, ? and NA: the mean of the column (indicator: and a feature that says "
        "where), or leave such rows out")  # fmt: skip
    add("--transpose", action="store_true",
        help="rows of text are features and columns samples, as in tables of genes")  # fmt: skip
    if labels:
        add("--labels", metavar="FILE",
            help="labels, one a line, or beside the names of the samples")  # fmt: skip


def file_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what was said by `add_file_options`, for `read_table`."""
    header, base, delimiter = arguments.header, arguments.index_base, arguments.delimiter
    options: dict[str, Any] = {
        "format": arguments.format,
        "header": None if header is None else header == "yes",
        "delimiter": DELIMITERS.get(delimiter, delimiter),
        "decimal": arguments.decimal,
        "zero_based": None if base is None else base == 0,
        "drop": tuple(arguments.drop),
        "id": arguments.id,
        "missing": arguments.missing,
        "transpose": arguments.transpose,
    }
    if getattr(arguments, "labels", None) is not None:
        options["labels"] = arguments.labels
    if getattr(arguments, "categorical", None) is not None:
        named = tuple(arguments.categorical)
        options["categorical"] = () if named == ("auto",) else named
    if getattr(arguments, "log", False):
        options["log"] = True
    return options
