"""Text that may be gzipped, and one error for all that a damaged file makes readers raise."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import DataError

DAMAGE = (OSError, EOFError, zlib.error, csv.Error, ValueError, OverflowError)


def open_text(path: Path, encoding: str = "utf-8-sig", errors: str = "strict") -> Any:
    """Open plain or gzipped text for the module `csv`."""
    opener: Any = gzip.open if path.suffix.lower() == ".gz" else open
    return opener(path, "rt", encoding=encoding, errors=errors, newline="")


@contextmanager
def reading(
    path: Path | str, kind: str, remedy: str, *, damage: tuple[type[Exception], ...] = DAMAGE
) -> Iterator[None]:
    """Replace errors of reading a file by a DataError, "PATH cannot be read KIND: ... REMEDY"."""
    try:
        yield
    except DataError:
        raise
    except damage as error:
        found, told = f"{path} cannot be read {kind}".rstrip(), str(error).strip().rstrip(".")
        raise DataError(f"{found}: {told}. {remedy}") from error
