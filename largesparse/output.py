"""Output of the commands: characters that cannot be printed, and files that cannot be written.

Standard output that is redirected on Windows, for one, cannot hold every character.
"""

from __future__ import annotations

import codecs
import os
import sys
from io import TextIOWrapper
from pathlib import Path

from .errors import ParameterError

HANDLER = "largesparse"
# What the commands print beyond ASCII, of which names and labels of the user's are escaped.
PLAIN = str.maketrans(
    dict(zip("▁▂▃▄▅▆▇█", "._-~=+*#", strict=True))
    | {"²": "^2", "±": "+-", "×": "x", "…": "...", "–": "-", "’": "'"}
    | {"α": "alpha", "ε": "epsilon", "ζ": "zeta", "η": "eta", "λ": "lambda", "τ": "tau"}
)


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace characters that cannot be encoded: a handler of `codecs.register_error`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    bad = error.object[error.start : error.end]
    return bad.translate(PLAIN).encode("ascii", "backslashreplace").decode("ascii"), error.end


def print_anything() -> None:
    """Make `print` replace what standard output cannot encode, where it would raise an error."""
    codecs.register_error(HANDLER, _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # None where it is closed, another one in a notebook
            stream.reconfigure(errors=HANDLER)


def check_printable(texts: list[str], encoding: str, where: str, remedy: str) -> None:
    """Verify that data, which must not be changed on the way, can be written as text.

    Raises
    ------
    ParameterError
        If one of the texts cannot be encoded.
    """
    for text in texts:
        try:
            text.encode(encoding)
        except UnicodeEncodeError as error:
            raise ParameterError(
                f"{where} is {encoding}, which cannot hold the text {text!a:.50}. {remedy}"
            ) from error


def check_writable(path: str, flag: str) -> None:
    """Raise a ParameterError where a file cannot be written, before work starts."""
    place = Path(path)
    folder = place.resolve().parent
    if not folder.is_dir():
        raise ParameterError(f"{flag} {path}: there is no such folder. Make it first.")
    if place.is_dir():
        raise ParameterError(f"{flag} {path} is a folder. Name a file.")
    if not os.access(place if place.exists() else folder, os.W_OK):
        raise ParameterError(f"{flag} {path} cannot be written. Change its permissions.")
