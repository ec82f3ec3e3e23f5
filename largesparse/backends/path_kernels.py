"""Compiled kernels that count paths between a layer's neurons, whatever the number of threads."""

from __future__ import annotations

import numpy as np
from numba import prange

from .compiling import inline, kernel
from .pattern_kernels import first_at_least

PARTS = 32  # of the inputs, each with counters of its own, float32 (n_in,)


@inline
def place_of(t, first, last, most):
    """Return the t-th of at most `most` places, evenly spread over first, ..., last - 1."""
    size = np.int64(last) - first
    return first + t if size <= most else first + t * size // most


@inline
def share_of(first, last, most):
    """Return by what a sum over those places is multiplied to stand for the sum over all."""
    return np.float32(max(1.0, (last - first) / most))


@inline
def add_paths(i, by_input, by_output, kept, kept_by_output, f_out, most, adding, strength):
    """Add the paths i - h - g to strength[g]; or set it to 0 again, where not `adding`."""
    indptr, indices = by_input
    indptr_by_output, indices_by_output = by_output
    k0, k1 = indptr[i], indptr[i + 1]
    for t in range(min(most, k1 - k0)):
        k = place_of(t, k0, k1, most)
        if not kept[k]:
            continue
        h = indices[k]
        e0, e1 = indptr_by_output[h], indptr_by_output[h + 1]
        weight = f_out[h] * share_of(k0, k1, most) * share_of(e0, e1, most)
        for u in range(min(most, e1 - e0)):
            e = place_of(u, e0, e1, most)
            if not adding:
                strength[indices_by_output[e]] = 0
            elif kept_by_output[e]:
                strength[indices_by_output[e]] += weight


@kernel()
def score_paths(by_input, by_output, kept, kept_by_output, factors, cells, most, scores):
    """Score cells by the paths of three connections from their input to their output.

    A path i - h - g - j goes by an output h of i and an input g of j that are connected; it counts
    f_in[g]·f_out[h] of `factors`. Of a neuron with more than `most` connections as many are looked
    at, evenly spread over all, and stand for the others.

    `by_input` and `by_output` are (indptr, indices) of both orders, and of their connections those
    `kept` and `kept_by_output`, bool (nnz,), count. `cells` are row-major and ascend.
    """
    indptr_by_output, indices_by_output = by_output
    f_in, f_out = factors
    n_in, n_out = len(by_input[0]) - 1, len(indptr_by_output) - 1
    rows = (n_in + PARTS - 1) // PARTS
    for part in prange(PARTS):
        p = first_at_least(cells, 0, len(cells), np.int64(part) * rows * n_out)
        end = first_at_least(cells, 0, len(cells), np.int64(part + 1) * rows * n_out)
        strength = np.zeros(n_in if p < end else 0, dtype=np.float32)
        while p < end:
            i = cells[p] // n_out
            add_paths(i, by_input, by_output, kept, kept_by_output, f_out, most, True, strength)
            while p < end and cells[p] // n_out == i:
                j = cells[p] - i * n_out
                e0, e1 = indptr_by_output[j], indptr_by_output[j + 1]
                total = np.float32(0)
                for u in range(min(most, e1 - e0)):
                    e = place_of(u, e0, e1, most)
                    if kept_by_output[e]:
                        g = indices_by_output[e]
                        total += strength[g] * f_in[g]
                scores[p] = total * share_of(e0, e1, most)
                p += 1
            add_paths(i, by_input, by_output, kept, kept_by_output, f_out, most, False, strength)
