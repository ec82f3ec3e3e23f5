"""Ratios with their intervals: how often these hold, beside SciPy, and what is said of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from largesparse.errors import ParameterError
from largesparse.harness.uncertainty import (
    UNCLEAR,
    Ratio,
    fitted_exponent,
    mean_ratio,
    ratio_of,
    ratio_of_intervals,
    ratios_to,
)

times = st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=12)


@given(times, st.floats(1e-3, 1e3))
def test_a_multiple_is_found_and_the_inverse_is_the_inverse(values, factor):
    scaled = [factor * value for value in values]
    ratio = ratio_of(scaled, values)
    assert ratio.value == pytest.approx(factor)
    assert ratio.known == (len(values) >= 5)
    if ratio.known:
        assert ratio.low == pytest.approx(factor) == ratio.high
        assert ratio_of(values, scaled).low == pytest.approx(ratio.inverse.low)
    one = ratio_of(values, values[::-1], paired=False)
    assert one.value == pytest.approx(1)
    assert not one.known or one.low <= 1 <= one.high


def test_the_interval_holds_as_often_as_it_says():
    """Of 300 samples of equal times 95 % have 1 in theirs, within three standard errors."""
    rng = np.random.default_rng(1)
    for repeats, paired in ((5, False), (8, True), (20, False)):
        draws = rng.lognormal(0, 0.1, (300, 2, repeats))
        found = [ratio_of(one, other, paired=paired) for one, other in draws]
        held = np.mean([ratio.low <= 1 <= ratio.high for ratio in found])
        assert held > 0.95 - 3 * math.sqrt(0.05 * 0.95 / 300)
    wide = np.median([ratio.high / ratio.low for ratio in found])
    assert wide < 1.3  # of 20 repeats: ±1.96·1.25·0.1·√(2/20) is 1.17


def test_turns_that_share_their_noise_are_told_apart():
    rng = np.random.default_rng(0)
    drift = rng.lognormal(0, 0.5, 15)
    slow = 1.1 * drift * rng.lognormal(0, 0.01, 15)
    assert ratio_of(slow, drift).verdict() == "slower"
    assert ratio_of(drift, slow).verdict() == "faster"
    assert ratio_of(slow, drift, paired=False).verdict() == UNCLEAR
    assert ratio_of(slow, drift).verdict(("less", "more")) == "more"
    assert ratio_of(slow[:4], drift[:4]).verdict() == UNCLEAR  # of too few repeats
    found = ratios_to({"a": drift, "b": slow}, "a")
    assert found["a"] == (1, 1, 1) and found["b"] == ratio_of(slow, drift)


def test_it_agrees_with_scipys_bootstrap():
    rng = np.random.default_rng(3)
    one, other = rng.lognormal(0.2, 0.1, 200), rng.lognormal(0, 0.1, 200)
    theirs = scipy.stats.bootstrap(
        (np.log(one), np.log(other)),
        lambda a, b, axis=-1: np.median(a, axis=axis) - np.median(b, axis=axis),
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    ours = ratio_of(one, other, paired=False)
    assert (ours.low, ours.high) == pytest.approx(np.exp([theirs.low, theirs.high]), rel=0.01)


def test_an_exponent_and_its_interval_are_those_of_a_least_squares_line():
    sizes = np.array([1e5, 1e6, 1e7, 1e8])
    values = 3 * sizes**1.1
    assert fitted_exponent(sizes, values) == pytest.approx((1.1, 1.1, 1.1))
    noisy = values * [1.1, 0.9, 1.05, 1]
    found = fitted_exponent(sizes, noisy)
    x, y = np.log10(sizes), np.log10(noisy)
    slope, intercept = np.polyfit(x, y, 1)
    error = np.sqrt(((y - slope * x - intercept) ** 2).sum() / 2 / ((x - x.mean()) ** 2).sum())
    half = 4.302652730 * error  # of Student's t with two degrees of freedom, 97.5 %
    assert found == pytest.approx((slope, slope - half, slope + half))
    assert not fitted_exponent(sizes[:2], values[:2]).known
    assert math.isnan(fitted_exponent([1e5, 1e5], [1, 2]).value)
    with_gaps = [np.nan, *noisy, 0, 4]
    assert fitted_exponent([7, *sizes, 7, np.nan], with_gaps) == found


def test_what_is_printed():
    assert f"{Ratio(2, 1.5, 2.5):>8.1f}" == "     2.0 (1.5 to 2.5)"
    assert str(Ratio(float("nan"))) == "-" and float(Ratio(2)) == 2
    wide = Ratio(2, 1.9, 2.1).widened(0.3)
    assert wide.low < 2 * math.exp(-0.3) < 2 * math.exp(0.3) < wide.high
    assert Ratio(2, 1.9, 2.1).widened(0) == pytest.approx((2, 1.9, 2.1))
    assert not Ratio(2).widened(0.1).known
    both = ratio_of_intervals(Ratio(4, 3.9, 4.1), Ratio(2, 2, 2))
    assert both == pytest.approx((2, 1.95, 2.05))
    assert not ratio_of_intervals(Ratio(4), Ratio(2, 1, 3)).known


@pytest.mark.parametrize("wrong", [[], [0.0], [-1], [float("nan")], [float("inf")]])
def test_times_that_are_none_are_refused(wrong):
    with pytest.raises(ParameterError, match="'others'"):
        ratio_of([1.0], wrong)
    with pytest.raises(ParameterError, match="2 and 1"):
        ratio_of([1.0, 2.0], [1.0])


def test_the_mean_of_ratios_has_their_errors_over_their_number():
    ratios = [Ratio(2.0, 2 / 1.3, 2 * 1.2), Ratio(0.5, 0.5 / 1.4, 0.5 * 1.1)]
    found = mean_ratio(ratios)
    assert found.value == pytest.approx(1.0)
    below, above = (np.hypot(np.log(a), np.log(b)) / 2 for a, b in ((1.3, 1.4), (1.2, 1.1)))
    assert found.low == pytest.approx(np.exp(-below)) and found.high == pytest.approx(np.exp(above))
    assert mean_ratio(ratios[:1]) == pytest.approx(ratios[0])
    assert not mean_ratio([ratios[0], Ratio(3.0)]).known
