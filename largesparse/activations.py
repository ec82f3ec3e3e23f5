"""Activation functions. Each is z for z > 0 and slope·z for z <= 0; they differ in the slope."""

from __future__ import annotations

from collections.abc import Callable

# name -> left slope, given alpha and the layer's number as the paper counts (the input is 1)
ACTIVATIONS: dict[str, Callable[[float, int], float]] = {
    "all_relu": lambda alpha, number: -alpha if number % 2 == 0 else alpha,  # eq. 3
    "relu": lambda alpha, number: 0.0,
    "leaky_relu": lambda alpha, number: alpha,
    "linear": lambda alpha, number: 1.0,
}


def left_slope(activation: str, alpha: float, number: int) -> float:
    """Return the slope for z <= 0 of layer `number`.

    Examples
    --------
    >>> left_slope("all_relu", 0.6, 2), left_slope("all_relu", 0.6, 3)
    (-0.6, 0.6)
    """
    return ACTIVATIONS[activation](alpha, number)
