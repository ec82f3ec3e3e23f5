"""Activation functions. Most are z for z > 0 and slope·z for z <= 0; they differ in the slope.

SReLU and PReLU have parameters of every neuron that are trained: see `backends.srelu_kernels`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

# name -> left slope, given alpha and the layer's number as the paper counts (the input is 1)
ACTIVATIONS: dict[str, Callable[[float, int], float]] = {
    "all_relu": lambda alpha, number: -alpha if number % 2 == 0 else alpha,  # eq. 3
    "relu": lambda alpha, number: 0.0,
    "leaky_relu": lambda alpha, number: alpha,
    "linear": lambda alpha, number: 1.0,
    "srelu": lambda alpha, number: 1.0,  # its shape comes after the product
    "prelu": lambda alpha, number: 1.0,
}

# name -> which of t_l, a_l, t_r, a_r are trained
TRAINED = {"srelu": (True, True, True, True), "prelu": (False, True, False, False)}


def left_slope(activation: str, alpha: float, number: int) -> float:
    """Return the slope for z <= 0 of layer `number`.

    Examples
    --------
    >>> left_slope("all_relu", 0.6, 2), left_slope("all_relu", 0.6, 3)
    (-0.6, 0.6)
    """
    return ACTIVATIONS[activation](alpha, number)


def initial_shape(activation: str, alpha: float, n: int) -> NDArray[np.float32]:
    """Return the first parameters of n neurons, float32 (4, n); the activation is of `TRAINED`.

    SReLU begins as a leaky ReLU with slope alpha that is the identity from 0 on; t_r = 1.
    """
    first = [0.0, alpha, 1.0 if activation == "srelu" else 0.0, 1.0]
    return np.repeat(np.array(first, dtype=np.float32)[:, None], n, axis=1)


def activate(
    z: NDArray[np.float32], slope: float, srelu: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """Return f(z), float32 (..., n_out), as z.

    `srelu` is the shape of every neuron where that is trained, float32 (4, n_out): t_l, a_l, t_r
    and a_r. The left slope is 1 then.
    """
    if srelu is None:
        return np.where(z > 0, z, np.float32(slope) * z)
    t_left, a_left, t_right, a_right = srelu
    right = np.where(z >= t_right, t_right + a_right * (z - t_right), z)
    return np.where(z <= t_left, t_left + a_left * (z - t_left), right)
