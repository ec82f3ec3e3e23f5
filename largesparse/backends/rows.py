"""What kernels do to one row: an output's sum, an input's gradients, activation and derivative.

Columns go in tiles of fixed widths (see `vectors`), so a row's result depends on its numbers and
on the batch alone, whichever kernel or thread computes it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .compiling import inline
from .philox import keep_word
from .vectors import (
    CACHE_LINE,
    WORD,
    activate_word,
    differentiate_word,
    make_backward,
    make_gather,
    prefetch_line,
)

gather_128, gather_64, gather_32, gather_16, gather_8 = map(make_gather, (128, 64, 32, 16, 8))
gather_rest = make_gather(8, masked=True)


@inline
def gather_row(indices, values, start, stop, X, init, out):
    """out[b] = init + sum over start <= k < stop of values[k] X[indices[k], b].

    Parameters
    ----------
    indices : int32 (nnz,)
    values : float32 (nnz,)
    start, stop : int64
    X : float32 (n, batch), C-contiguous
    init : float32
    out : float32 (batch,)
    """
    batch = X.shape[1]
    size = 4 * batch
    i, v, x, o = indices.ctypes.data, values.ctypes.data, X.ctypes.data, out.ctypes.data
    b = 0
    while b < batch:
        rest = batch - b
        at = 4 * b
        if rest >= 128:
            gather_128(i, v, start, stop, x + at, size, init, o + at, 128)
            b += 128
        elif rest >= 64:
            gather_64(i, v, start, stop, x + at, size, init, o + at, 64)
            b += 64
        elif rest >= 32:
            gather_32(i, v, start, stop, x + at, size, init, o + at, 32)
            b += 32
        elif rest >= 16:
            gather_16(i, v, start, stop, x + at, size, init, o + at, 16)
            b += 16
        elif rest >= 8:
            gather_8(i, v, start, stop, x + at, size, init, o + at, 8)
            b += 8
        else:
            gather_rest(i, v, start, stop, x + at, size, init, o + at, rest)
            b = batch


def _make_backward_row(*, delta: bool) -> Any:
    tile_64 = make_backward(64, delta=delta)
    tile_32 = make_backward(32, delta=delta)
    tile_16 = make_backward(16, delta=delta)
    tile_8 = make_backward(8, delta=delta)
    tile_rest = make_backward(8, masked=True, delta=delta)

    @inline
    def backward_row(indices, values, start, stop, D, x, gradient, accumulate, out):
        batch = D.shape[1]
        size = 4 * batch
        i, v, d, y = indices.ctypes.data, values.ctypes.data, D.ctypes.data, x.ctypes.data
        g, o = gradient.ctypes.data, out.ctypes.data
        add = accumulate
        b = 0
        while b < batch:
            rest = batch - b
            at = 4 * b
            if rest >= 64:
                tile_64(i, v, start, stop, d + at, size, y + at, g, add, o + at, 64)
                b += 64
            elif rest >= 32:
                tile_32(i, v, start, stop, d + at, size, y + at, g, add, o + at, 32)
                b += 32
            elif rest >= 16:
                tile_16(i, v, start, stop, d + at, size, y + at, g, add, o + at, 16)
                b += 16
            elif rest >= 8:
                tile_8(i, v, start, stop, d + at, size, y + at, g, add, o + at, 8)
                b += 8
            else:
                tile_rest(i, v, start, stop, d + at, size, y + at, g, add, o + at, rest)
                b = batch
            add = True  # the tiles of a row add up

    return backward_row


# backward_row(indices, values, start, stop, D, x, gradient, accumulate, out):
#     gradient[k] = x·D[indices[k]] for start <= k < stop, added to what is there if `accumulate`;
#     out = sum over k of values[k] D[indices[k]]. x and out are float32 (batch,).
# gradient_row: the same without `out` and `values`, which are not read.
backward_row = _make_backward_row(delta=True)
gradient_row = _make_backward_row(delta=False)


@inline
def activate_row(row, slope, keep_share, keep_bytes, lane, shift, state):
    """Activation and inverted dropout of a row of sums z, in place.

    Parameters
    ----------
    row : float32 (batch,)
    slope, keep_share : float32
        Left slope of the activation; share of the neurons that dropout keeps.
    keep_bytes : uint8 (4 words + 1, rows)
        The dropout decisions of a chunk of rows (see `philox.draw_keep_bytes`).
    lane : int
        This row's place in the chunk.
    shift : int
        The bit of the first byte that decides on column 0.
    state : uint32 (2, words)
        Receives what the derivative needs: see `kernels`.
    """
    right = np.float32(1) / keep_share
    left = slope * right
    for word in range(state.shape[1]):
        start = word * WORD
        count = min(WORD, len(row) - start)
        keep = keep_word(keep_bytes, lane, word, shift)
        keep &= np.uint32(0xFFFFFFFF) >> np.uint32(WORD - count)
        positive = activate_word(row.ctypes.data + 4 * start, count, left, right, keep)
        state[0, word] = keep & ~positive
        state[1, word] = keep & positive


@inline
def activate_plainly(row, slope):
    """Activation of a row of sums z, in place; nothing is dropped or stored."""
    if slope != 1:
        for b in range(len(row)):
            z = row[b]
            row[b] = z if z > 0 else slope * z


@inline
def differentiate_row(row, slope, keep_share, state):
    """Multiply a row of dL/da by the derivative of the activation, in place; return its sum.

    `row`, float32 (batch,), becomes dL/dz; `state` is as `activate_row` wrote it.
    """
    right = np.float32(1) / keep_share
    left = slope * right
    total = np.float32(0)
    for word in range(state.shape[1]):
        start = word * WORD
        count = min(WORD, len(row) - start)
        low, high = state[0, word], state[1, word]
        address = row.ctypes.data + 4 * start
        total += differentiate_word(address, count, left, right, low, high)
    return total


@inline
def prefetch_rows(X, indices, start, stop):
    """Ask for the rows indices[start:stop] of a C-contiguous float32 array, to be read soon."""
    size = 4 * X.shape[1]
    for k in range(min(start, len(indices)), min(stop, len(indices))):
        address = X.ctypes.data + np.int64(indices[k]) * size
        for offset in range(0, size, CACHE_LINE):
            prefetch_line(address + offset)
