"""Initial values of connections, as functions of a layer's fan-in and fan-out."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Sampler = Callable[[np.random.Generator, int], NDArray[np.float32]]


def uniform(limit: float) -> Sampler:
    """Return a sampler of U(-limit, limit)."""

    return functools.partial(_draw_uniform, limit)


def gaussian(standard_deviation: float) -> Sampler:
    """Return a sampler of N(0, standard_deviation²)."""

    return functools.partial(_draw_gaussian, standard_deviation)


def _draw_uniform(limit: float, rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    values = rng.random(size, dtype=np.float32)
    values *= np.float32(2 * limit)
    values -= np.float32(limit)
    return values


def _draw_gaussian(
    standard_deviation: float, rng: np.random.Generator, size: int
) -> NDArray[np.float32]:
    values = rng.standard_normal(size, dtype=np.float32)
    values *= np.float32(standard_deviation)
    return values


# name -> function of (fan_in, fan_out) that returns a sampler (paper, Table 7)
INITIALIZERS: dict[str, Callable[[float, float], Sampler]] = {
    "he_uniform": lambda fan_in, fan_out: uniform(math.sqrt(6 / fan_in)),
    "xavier": lambda fan_in, fan_out: uniform(math.sqrt(6 / (fan_in + fan_out))),
    "normal": lambda fan_in, fan_out: gaussian(0.1),
}
