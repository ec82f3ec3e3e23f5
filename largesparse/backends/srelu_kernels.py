"""Compiled kernels of activations whose shape is trained: SReLU, and PReLU as a case of it.

f(z) = t_l + a_l (z - t_l) for z <= t_l, else t_r + a_r (z - t_r) for z >= t_r, else z, with
parameters of every neuron: float32 (4, n), rows t_l, a_l, t_r, a_r (Jin et al., "Deep learning
with S-shaped rectified linear activation units", 2016). State arrays are as in `kernels`.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .compiling import kernel


@kernel(reorder=True)
def activate_srelu(Z, parameters, keep_share, state, out):
    """Turn Z = z / keep_share, (n, batch), into out = f(z) / keep_share, which may be Z.

    Both are 0 where dropout has dropped: the state's bits say where. Without words, all are kept.
    """
    n, batch = Z.shape
    words = state.shape[2]
    inverse = np.float32(1) / keep_share
    for j in prange(n):
        t_left, a_left = parameters[0, j], parameters[1, j]
        t_right, a_right = parameters[2, j], parameters[3, j]
        for b in range(batch):
            z = Z[j, b] * keep_share
            if z <= t_left:
                a = t_left + a_left * (z - t_left)
            elif z >= t_right:
                a = t_right + a_right * (z - t_right)
            else:
                a = z
            if words > 0:
                word, bit = b // 32, np.uint32(b % 32)
                kept = (state[j, 0, word] | state[j, 1, word]) >> bit & np.uint32(1)
                out[j, b] = a * inverse if kept else np.float32(0)
            else:
                out[j, b] = a * inverse


@kernel(reorder=True)
def differentiate_srelu(
    D, Z, parameters, keep_share, bias_gradient, parameter_gradient, accumulate
):
    """Turn D, (n, batch), from dL/df into dL/dz, in place; sum what bias and parameters get.

    If `accumulate`, their gradients are added to. For Z see `activate_srelu`; D is 0 where
    dropped.
    """
    n, batch = D.shape
    for j in prange(n):
        t_left, a_left = parameters[0, j], parameters[1, j]
        t_right, a_right = parameters[2, j], parameters[3, j]
        zero = np.float32(0)
        total, of_t_left, of_a_left, of_t_right, of_a_right = zero, zero, zero, zero, zero
        for b in range(batch):
            z = Z[j, b] * keep_share
            d = D[j, b]
            if z <= t_left:
                of_t_left += d
                of_a_left += d * (z - t_left)
                d *= a_left
            elif z >= t_right:
                of_t_right += d
                of_a_right += d * (z - t_right)
                d *= a_right
            D[j, b] = d
            total += d
        if not accumulate:
            bias_gradient[j] = zero
            for row in range(4):
                parameter_gradient[row, j] = zero
        bias_gradient[j] += total
        parameter_gradient[0, j] += of_t_left * (np.float32(1) - a_left)
        parameter_gradient[1, j] += of_a_left
        parameter_gradient[2, j] += of_t_right * (np.float32(1) - a_right)
        parameter_gradient[3, j] += of_a_right
