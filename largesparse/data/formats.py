"""The formats of tables: what a suffix says, and what each format has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import DataError, ParameterError
from .archives import array_names
from .label_files import kind_of_text

SUFFIXES = {  # a further .gz may follow those of text
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".tab": "csv",
    ".data": "csv",
    ".parquet": "parquet",
    ".arff": "arff",
    ".npz": "npz",
    ".npy": "npy",
    ".mat": "mat",
    ".svm": "svmlight",
    ".libsvm": "svmlight",
    ".svmlight": "svmlight",
    ".h5ad": "h5ad",
}
SERIES = "series_matrix.txt"
FORMATS = (*dict.fromkeys(SUFFIXES.values()), "extreme", "series")
TEXT = ("csv", "svmlight", "arff", "series")
COLUMNS = ("csv", "parquet", "arff", "npy")  # formats whose columns are chosen one by one
# How what is not read becomes a file that is. {0} is the file, {1} its name without the suffix.
PANDAS = "python -c \"import pandas; pandas.read_{}('{{0}}').to_csv('{{1}}.csv', index=False)\""
R = "Rscript -e \"write.csv({}, '{{1}}.csv', row.names=FALSE)\""
CONVERSIONS = {
    ".xlsx": PANDAS.format("excel") + " (needs openpyxl), or save it as CSV in the spreadsheet",
    ".xls": PANDAS.format("excel") + " (needs xlrd), or save it as CSV in the spreadsheet",
    ".ods": PANDAS.format("excel") + " (needs odfpy), or save it as CSV in the spreadsheet",
    ".feather": PANDAS.format("feather"),
    ".json": PANDAS.format("json"),
    ".dta": PANDAS.format("stata"),
    ".sas7bdat": PANDAS.format("sas"),
    ".xpt": PANDAS.format("sas"),
    ".sav": PANDAS.format("spss") + " (needs pyreadstat)",
    ".pkl": PANDAS.format("pickle") + ", if you trust the file",
    ".rds": R.format("readRDS('{0}')"),
    ".rdata": R.format("get(load('{0}'))"),
    ".rda": R.format("get(load('{0}'))"),
    ".zip": "unzip {0}",
}
# What a parameter of `read_table` is for, where that is not every format.
FITTING = {
    "header": ("csv",),
    "delimiter": ("csv",),
    "decimal": ("csv",),
    "transpose": ("csv",),
    "zero_based": ("svmlight",),
    "drop": COLUMNS,
    "id": COLUMNS,
    "categorical": ("csv", "parquet", "arff"),
}


def parts_of(path: Path, format: str | None = None) -> list[str]:
    """Return which of the parts "train" and "test" of an archive have features.

    There are none in an archive with `X` or CSR arrays, and in any other file.
    """
    names = array_names(path) if (format or table_format(path)) == "npz" else set()
    return [] if "X" in names else [part for part in ("train", "test") if f"x_{part}" in names]


def table_format(path: Path) -> str | None:
    """Return the one of `FORMATS` that the suffix of `path` says, or the text; or None."""
    name = path.name.lower()
    if name.endswith((SERIES, f"{SERIES}.gz")):
        return "series"
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        kind = SUFFIXES.get(suffixes[-2]) if len(suffixes) > 1 else None
        kind = kind if kind in TEXT else None
    else:
        kind = SUFFIXES.get(suffixes[-1]) if suffixes else None
    if kind == "csv" and path.is_file():
        kind = kind_of_text(path) or kind
    return kind


def check_file(path: Path, part: str | None, format: str | None, given: dict[str, Any]) -> None:
    """Raise where a file is not there, or what is asked for does not fit it."""
    if part not in (None, "train", "test"):
        raise ParameterError(
            f"The 'part' parameter of read_table must be 'train' or 'test'. Got {part!r} instead."
        )
    if format not in (None, *FORMATS):
        raise ParameterError(
            f"The 'format' parameter of read_table must be one of {', '.join(FORMATS)}. Got "
            f"{format!r} instead."
        )
    kind = format or table_format(path)
    if path.is_dir():
        raise DataError(f"{path} is a folder. Name a file in it.")
    if kind is None:
        raise DataError(_say_how_to_convert(path))
    for name, value in given.items():
        if value is not None and kind not in (fitting := FITTING[name]):
            raise ParameterError(
                f"The {name!r} parameter of read_table is for {', '.join(fitting)} files, and "
                f"{path} is {kind}. Leave it out."
            )
    if not path.is_file():
        raise DataError(f"There is no file {path}. Check the path.")
    if not path.stat().st_size:
        raise DataError(f"{path} is empty. Get or write it again.")
    if part is not None and not parts_of(path, format):
        raise ParameterError(
            f"{path} has no part {part!r}: only archives with arrays x_train and x_test have "
            "parts. Leave the part out."
        )


def _say_how_to_convert(path: Path) -> str:
    if remedy := CONVERSIONS.get(path.suffix.lower()):
        return f"{path} is not read as it is. Convert it: {remedy.format(path.name, path.stem)}"
    return (
        f"{path} has a suffix that no reader knows. Known are {', '.join(SUFFIXES)}, of which "
        "text may also end in .gz. Say what it is by format=… (--format csv, svmlight, …), or "
        "save it as CSV."
    )
