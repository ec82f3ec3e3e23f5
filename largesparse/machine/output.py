"""What is said to the user: once, and in characters that the output can hold."""

from __future__ import annotations

import codecs
import hashlib
import logging
import multiprocessing
import os
import sys
import time
from io import TextIOWrapper
from typing import Any

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


def is_terminal() -> bool:
    """Return whether standard error is a terminal, where tqdm shows its bar."""
    return bool(getattr(sys.stderr, "isatty", lambda: False)())


def speaks() -> bool:
    """Return whether this process warns for its job: no worker process, and of ranks the first."""
    return multiprocessing.parent_process() is None and launched_ranks()[0] == 0


def tell_once(logger: logging.Logger, text: str) -> None:
    """Warn once a job: its worker processes, its other ranks and what it starts meet the same."""
    key = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    told = os.environ.get(TOLD, "").split()
    if key in told or not speaks():
        return
    os.environ[TOLD] = " ".join([*told, key])  # child processes inherit it
    logger.warning(text)


class LogLines:
    """Stands for a bar of tqdm where no terminal shows one: work that takes minutes says how far.

    Parameters
    ----------
    desc, total, unit, initial
        As tqdm has them.
    """

    SECONDS = 60.0  # between two lines, at least

    def __init__(self, desc: str, total: int, unit: str, initial: int = 0) -> None:
        self.desc, self.total, self.unit = desc, total, unit
        self.n = self.initial = initial
        self.begun = self.told = time.monotonic()
        self.first: tuple[float, int] | None = None  # when work was first done, and n after it
        self.results: dict[str, Any] = {}

    def update(self, n: int = 1) -> None:
        """Count n more, and print a line where one is due."""
        self.n += n
        now = time.monotonic()
        since, done = self.first = self.first or (now, self.n)
        if now - self.told < self.SECONDS or not speaks():
            return
        self.told = now
        times = f"{(now - self.begun) / 60:.0f} minutes"
        if self.n > done:  # what came before the first of it, an evaluation, tells nothing
            left = (now - since) * (self.total - self.n) / (self.n - done)
            times += f", about {left / 60:.0f} left"
        given = {name: value for name, value in self.results.items() if value is not None}
        numbers = {name: f"{value:.4f}" for name, value in given.items() if type(value) is float}
        shown = [f"{name} {value}" for name, value in (given | numbers).items()]
        line = f"{self.desc}: {self.n:,} of {self.total:,}{self.unit}, {times}"
        print(", ".join([line, *shown]), file=sys.stderr, flush=True)

    def set_postfix(self, **results: Any) -> None:
        """Set what the next lines end with."""
        self.results = results

    def __enter__(self) -> LogLines:
        return self

    def __exit__(self, *exception: object) -> None:
        pass
