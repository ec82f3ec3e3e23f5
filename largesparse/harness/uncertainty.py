"""Ratios of measured times with their 95 % intervals, and exponents that are fitted to sizes.

All drivers and tools that print a ratio take it from here. What was timed in turns is paired: a
neighbour that slows a turn slows both, and their ratio stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ParameterError

LEVEL = 0.95
LEAST_REPEATS = 5  # the range of fewer values covers their median in less than 90 of 100 cases
LEAST_SIZES = 3  # of a fitted exponent: two always lie on a line
DRAWS = 2000
NAN = float("nan")
FASTER, SLOWER, UNCLEAR = "faster", "slower", "cannot tell"


class Ratio(NamedTuple):
    """A ratio or an exponent, and its 95 % interval: NaN where there were too few repeats.

    Examples
    --------
    >>> f"{Ratio(1.234, 1.1, 1.4):.2f}", f"{Ratio(1.234):.2f}"
    ('1.23 (1.10 to 1.40)', '1.23 (no interval)')
    """

    value: float
    low: float = NAN
    high: float = NAN

    def __float__(self) -> float:
        return float(self.value)

    def __str__(self) -> str:
        return format(self)

    def __format__(self, spec: str) -> str:
        """Format the numbers as `spec` says; its width, if any, is that of the ratio alone."""
        spec = spec or ".2f"
        if math.isnan(self.value):
            return "-"
        value = format(self.value, spec)
        if not self.known:
            return f"{value} (no interval)"
        low, high = (format(end, spec).strip() for end in (self.low, self.high))
        return f"{value} ({low} to {high})"

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return not (math.isnan(self.low) or math.isnan(self.high))

    @property
    def inverse(self) -> Ratio:
        """What the other is of the one."""
        return Ratio(1 / self.value, 1 / self.high, 1 / self.low)

    def widened(self, share: float) -> Ratio:
        """Return the ratio with an error beside its own, such as what runs differ by.

        Parameters
        ----------
        share : float
            Half the 95 % interval of the other error's logarithm: about its relative size.
        """
        low, high = (
            self.value * math.exp(sign * math.hypot(math.log(end / self.value), share))
            for sign, end in ((-1, self.low), (1, self.high))
        )
        return Ratio(self.value, low, high)

    def verdict(self, words: tuple[str, str] = (FASTER, SLOWER)) -> str:
        """Say of a ratio of times, new / old, what the new one is; without interval, nothing."""
        below, above = words
        if self.known and self.high < 1:
            return below
        return above if self.known and self.low > 1 else UNCLEAR


def ratio_of(times: ArrayLike, others: ArrayLike, *, paired: bool = True) -> Ratio:
    """Return the ratio of times to others, by medians, with its bootstrapped interval.

    Parameters
    ----------
    times, others : array_like of float
        Positive, a value for each repeat; of the same length where they are paired.
    paired : bool
        Whether they were timed in turns. The ratio is then the median of those of the turns, and
        turns are drawn anew; else it is the ratio of the medians, and both are drawn apart.

    Raises
    ------
    ParameterError
        Where there is no time, one is not positive, or pairs lack their other.
    """
    one, other = _checked("times", times), _checked("others", others)
    if not paired:
        medians = [_drawn_medians(values, seed) for seed, values in enumerate((one, other))]
        found = float(np.median(one) - np.median(other))
        return _interval(found, medians[0] - medians[1], min(len(one), len(other)))
    if len(one) != len(other):
        raise ParameterError(
            f"The 'times' and 'others' of pairs must be as many. Got {len(one)} and {len(other)}: "
            "pass paired=False for what was not timed in turns."
        )
    return _interval(float(np.median(one - other)), _drawn_medians(one - other, 0), len(one))


def mean_ratio(ratios: Sequence[Ratio]) -> Ratio:
    """Return the geometric mean of independent ratios; without interval where one has none."""
    logs = np.log(np.array(ratios, dtype=np.float64))
    middle = float(np.mean(logs[:, 0]))
    below, above = (float(np.linalg.norm(logs[:, 0] - logs[:, k])) / len(logs) for k in (1, 2))
    return Ratio(math.exp(middle), math.exp(middle - below), math.exp(middle + above))


def ratio_of_intervals(one: Ratio, other: Ratio) -> Ratio:
    """Return one / other of two independent values that have intervals already, as asv's have."""
    value = one.value / other.value
    if not (one.known and other.known and min(*one, *other) > 0):
        return Ratio(value)
    low = math.hypot(math.log(one.value / one.low), math.log(other.high / other.value))
    high = math.hypot(math.log(one.high / one.value), math.log(other.value / other.low))
    return Ratio(value, value * math.exp(-low), value * math.exp(high))


def fitted_exponent(sizes: ArrayLike, values: ArrayLike) -> Ratio:
    """Return b of values = a·sizesᵇ by least squares of the logarithms, and its 95 % interval.

    Sizes and values that are not positive numbers are left out. NaN where fewer than two sizes are
    left, and without interval where fewer than three are.
    """
    from scipy import stats

    x, y = (np.asarray(numbers, dtype=np.float64) for numbers in (sizes, values))
    used = (x > 0) & (y > 0) & np.isfinite(x) & np.isfinite(y)
    x, y = np.log(x[used]), np.log(y[used])
    distinct = len(np.unique(x))
    if distinct < 2:
        return Ratio(NAN)
    fit = stats.linregress(x, y)
    if distinct < LEAST_SIZES:
        return Ratio(float(fit.slope))
    error = 0.0 if np.ptp(y) == 0 else fit.stderr  # SciPy divides by the spread of y
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(x) - 2) * error)
    return Ratio(float(fit.slope), float(fit.slope) - half, float(fit.slope) + half)


def _checked(name: str, times: ArrayLike) -> NDArray[np.float64]:
    """Return the logarithms of times."""
    values = np.asarray(times, dtype=np.float64).ravel()
    if not len(values) or not (values > 0).all() or not np.isfinite(values).all():
        raise ParameterError(
            f"The {name!r} of a ratio must be positive numbers, one at least. "
            f"Got {values.tolist()} instead."
        )
    return np.log(values)


def _drawn_medians(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Return the medians of as many values, drawn with replacement."""
    draws = np.random.default_rng(seed).integers(len(values), size=(DRAWS, len(values)))
    return np.asarray(np.median(values[draws], axis=1))


def _interval(found: float, drawn: NDArray[np.float64], repeats: int) -> Ratio:
    """Return exp(found) with the interval of drawn logarithms.

    Quantiles are those of Hesterberg's expanded percentile interval (2015), since the plain one is
    too short for few repeats.
    """
    from scipy import stats

    if repeats < LEAST_REPEATS:
        return Ratio(math.exp(found))
    t = stats.t.ppf((1 + LEVEL) / 2, repeats - 1) * math.sqrt(repeats / (repeats - 1))
    tail = float(stats.norm.cdf(-t))
    low, high = np.exp(np.quantile(drawn, (tail, 1 - tail)))
    return Ratio(math.exp(found), float(low), float(high))


def ratios_to(
    times: dict[str, Sequence[float]], other: str, *, paired: bool = True
) -> dict[str, Ratio]:
    """Return of every contestant's times the ratio to those of one of them."""
    return {name: ratio_of(one, times[other], paired=paired) for name, one in times.items()}
