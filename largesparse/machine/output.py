"""What is said to the user: once, and in characters that the output can hold."""

from __future__ import annotations

import codecs
import hashlib
import logging
import multiprocessing
import os
import sys
from io import TextIOWrapper

from ..errors import ParameterError
from .environment import TOLD, launched_ranks

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
    """Verify that data, which must not be changed on the way, can be written as text."""
    for text in texts:
        try:
            text.encode(encoding)
        except UnicodeEncodeError as error:
            raise ParameterError(
                f"{where} is {encoding}, which cannot hold the text {text!a:.50}. {remedy}"
            ) from error


def tell_once(logger: logging.Logger, text: str) -> None:
    """Warn once a job: its worker processes, its other ranks and what it starts meet the same."""
    key = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    told = os.environ.get(TOLD, "").split()
    if key in told or multiprocessing.parent_process() is not None or launched_ranks()[0] != 0:
        return
    os.environ[TOLD] = " ".join([*told, key])  # child processes inherit it
    logger.warning(text)
