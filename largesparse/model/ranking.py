"""Which of many numbers are the smallest: by counting, in O(n)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

FEW = 1 << 18  # numbers up to which selecting them is faster than counting magnitudes


def survivors(values: NDArray[np.float32], zeta: float) -> NDArray[np.bool_]:
    """Return which connections SET keeps, bool (nnz,): without ⌊ζ·count⌋ of each sign. O(nnz)."""
    negative = int(np.count_nonzero(values < 0))
    members = len(values) - negative, negative
    return without_smallest(values, [math.floor(zeta * count) for count in members])


def without_smallest(values: NDArray[np.float32], going: Sequence[int]) -> NDArray[np.bool_]:
    """Return which numbers stay, bool (n,), where those closest to zero go. O(n).

    going[0] of those that are not negative go, and going[1] of the negative ones; ties fall by
    position. Magnitudes are not sorted but counted, by the upper and then the lower 16 bits.
    """
    from ..backends.pattern_kernels import count_magnitudes, keep_large

    if len(values) <= FEW:
        return _without_few(values, going)
    keep = np.empty(len(values), dtype=bool)
    upper_counts = count_magnitudes(values, 16, np.zeros(2, dtype=np.int64))
    prefixes, rest = _find_counts(upper_counts, going)
    lower_counts = count_magnitudes(values, 0, prefixes)
    lower, rest = _find_counts(lower_counts, rest)

    ties = np.empty((len(lower_counts), 2), dtype=np.int64)
    for sign in (0, 1):
        here = lower_counts[:, sign, lower[sign]]
        before = np.cumsum(here) - here
        ties[:, sign] = np.clip(rest[sign] - before, 0, here)
    thresholds = prefixes << 16 | lower
    thresholds[[count == 0 for count in going]] = -1
    keep_large(values, thresholds, ties, keep)
    return keep


def _without_few(values: NDArray[np.float32], going: Sequence[int]) -> NDArray[np.bool_]:
    """`without_smallest`, where the counters would take longer than the values."""
    keep = np.ones(len(values), dtype=bool)
    negative = values < 0
    for sign, count in zip((~negative, negative), going, strict=True):
        members = np.flatnonzero(sign)
        keep[members[mark_smallest(np.abs(values[members]), count)]] = False
    return keep


def mark_smallest(values: NDArray[np.float32], count: int) -> NDArray[np.bool_]:
    """Return a mask of the `count` smallest values, ties by position: bool, O(n)."""
    if count == 0:
        return np.zeros(len(values), dtype=bool)
    threshold = np.partition(values, count - 1)[count - 1]
    marked = values < threshold
    ties = np.flatnonzero(values == threshold)[: count - np.count_nonzero(marked)]
    marked[ties] = True
    return marked


def _find_counts(counts: NDArray[np.int32], wanted: Sequence[int]) -> tuple[Int64, list[int]]:
    """Return the bins in which the wanted-th magnitudes are, and what is wanted of those bins.

    `counts` is int32 (blocks, 2, bins); `wanted` has how many of the smallest of each sign.
    """
    bins = np.zeros(2, dtype=np.int64)
    rest = [0, 0]
    for sign in (0, 1):
        if wanted[sign]:
            below = np.cumsum(counts[:, sign].sum(axis=0, dtype=np.int64))
            bins[sign] = np.searchsorted(below, wanted[sign])
            rest[sign] = wanted[sign] - (int(below[bins[sign] - 1]) if bins[sign] else 0)
    return bins, rest


def mark_largest(
    values: NDArray[np.float32], count: int, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Return a mask of the `count` largest values: bool, O(n).

    Of those that tie with the last one, some are taken that are evenly spread by position, from a
    random place on.
    """
    if count == 0:
        return np.zeros(len(values), dtype=bool)
    threshold = np.partition(values, len(values) - count)[len(values) - count]
    marked = values > threshold
    ties = np.flatnonzero(values == threshold)
    missing = count - int(np.count_nonzero(marked))
    offset = int(rng.integers(len(ties)))
    marked[ties[(np.arange(missing) * len(ties) + offset) // missing]] = True
    return marked
