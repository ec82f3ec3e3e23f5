"""Sizes as people write them: 250k, 2.5M, 1B, 1e6; and times as they read them."""

from __future__ import annotations

import argparse
import re
from decimal import Decimal

from ..errors import ParameterError

SIZE_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}

# Two digits of exponent: more would take for ever to write out.
SIZE_PATTERN = re.compile(r"([0-9]+(?:\.[0-9]+)?(?:e\+?[0-9]{1,2})?)([kmgb]?)", re.IGNORECASE)


class SizeError(argparse.ArgumentTypeError, ParameterError):
    """A size that cannot be read. `argparse` shows the message of this kind of error only."""


def parse_size(text: str) -> int:
    """Return the whole number that a size such as "250k" stands for, below 2**63.

    Suffixes are k, M, and G or B (10**3, 10**6, 10**9), in either case; "1e6" works too.

    >>> parse_size("2.5M")
    2500000
    """
    match = SIZE_PATTERN.fullmatch(text.strip())
    value = Decimal(match[1]) * SIZE_SUFFIXES[match[2].lower()] if match else Decimal(0)
    if value != int(value) or not 0 < value < 2**63:
        raise SizeError(
            "A size must be a positive whole number such as 1000, 250k, 2.5M or 1e6. "
            f"Got {text!r} instead."
        )
    return int(value)


def show_seconds(seconds: float, digits: int = 1) -> str:
    """Return a time with its unit, in ms below 0.1 s.

    >>> show_seconds(0.0123), show_seconds(75.04)
    ('12.3 ms', '75.0 s')
    """
    number, unit = (1e3 * seconds, "ms") if 0 < seconds < 0.1 else (seconds, "s")
    return f"{number:,.{digits}f} {unit}"


def parse_sizes(text: str) -> tuple[int, ...]:
    """Return the numbers of a list such as "400,400" or "2.5k,10", each by `parse_size`.

    >>> parse_sizes("2.5k,10")
    (2500, 10)
    """
    return tuple(parse_size(size) for size in text.split(","))
