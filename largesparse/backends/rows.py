"""What kernels do to one row: an output's sum, an input's gradients, activation and derivative.

Columns go in tiles of fixed widths (see `vectors`), so a row's result depends on its numbers and
on the batch alone, whichever kernel or thread computes it. Arrays come as addresses where a view
of a row would cost a reference count, which is as much as ten connections.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .compiling import inline
from .vectors import (
    CACHE_LINE,
    LANES,
    WORD,
    itemsize,
    make_activate_word,
    make_backward,
    make_differentiate_word,
    make_forward,
    make_update,
    prefetch_line,
)

forward_128, forward_64, forward_32, forward_8 = map(make_forward, (128, 64, 32, 8))
forward_rest = make_forward(8, masked=True)
activate_word, activate_rest = make_activate_word(), make_activate_word(masked=True)
differentiate_word = make_differentiate_word()
differentiate_rest = make_differentiate_word(masked=True)

update, update_rest = make_update(), make_update(masked=True)

EVERYONE = np.uint32(0xFFFFFFFF)


@inline
def forward_row(
    indices,
    values,
    start,
    stop,
    X,
    batch,
    init,
    out,
    left,
    right,
    stored,
    keep,
    low,
    high,
    kind,
    out_kind,
):
    """Sum the gathered rows of X, and apply activation and dropout: see `vectors.make_forward`.

    Parameters
    ----------
    indices, values, X, out : int64
        Addresses of int32 (nnz,), float32 (nnz,), (n, batch) and (batch,).
    start, stop, batch : int64
    init, left, right : float32
    stored : bool
    keep, low, high : int64
        Addresses of bits, uint32 (words,).
    kind, out_kind : dtype
        Of X and of `out`: float32, or uint16 for bfloat16.
    """
    size = itemsize(kind) * batch
    b = 0
    while b < batch:
        rest = batch - b
        x = X + itemsize(kind) * b
        o = out + itemsize(out_kind) * b
        kept = keep + b // 8
        lo = low + b // 8
        hi = high + b // 8
        if rest >= 128:
            forward_128(
                indices,
                values,
                start,
                stop,
                x,
                size,
                init,
                o,
                left,
                right,
                stored,
                kept,
                lo,
                hi,
                128,
                kind,
                out_kind,
            )
            b += 128
        elif rest >= 64:
            forward_64(
                indices,
                values,
                start,
                stop,
                x,
                size,
                init,
                o,
                left,
                right,
                stored,
                kept,
                lo,
                hi,
                64,
                kind,
                out_kind,
            )
            b += 64
        elif rest >= 32:
            forward_32(
                indices,
                values,
                start,
                stop,
                x,
                size,
                init,
                o,
                left,
                right,
                stored,
                kept,
                lo,
                hi,
                32,
                kind,
                out_kind,
            )
            b += 32
        elif rest >= 8:
            forward_8(
                indices,
                values,
                start,
                stop,
                x,
                size,
                init,
                o,
                left,
                right,
                stored,
                kept,
                lo,
                hi,
                8,
                kind,
                out_kind,
            )
            b += 8
        else:
            forward_rest(
                indices,
                values,
                start,
                stop,
                x,
                size,
                init,
                o,
                left,
                right,
                stored,
                kept,
                lo,
                hi,
                rest,
                kind,
                out_kind,
            )
            b = batch


def _make_backward_row(*, delta: bool) -> Any:
    tile_64 = make_backward(64, delta=delta)
    tile_32 = make_backward(32, delta=delta)
    tile_8 = make_backward(8, delta=delta)
    tile_rest = make_backward(8, masked=True, delta=delta)

    @inline
    def backward_row(
        indices,
        values,
        start,
        stop,
        D,
        batch,
        x,
        gradient,
        accumulate,
        out,
        left,
        right,
        low,
        high,
        kind,
        x_kind,
    ):
        size = itemsize(kind) * batch
        add = accumulate
        total = np.float32(0)
        b = 0
        while b < batch:
            rest = batch - b
            d = D + itemsize(kind) * b
            y = x + itemsize(x_kind) * b
            o = out + itemsize(x_kind) * b
            lo = low + b // 8
            hi = high + b // 8
            if rest >= 64:
                total += tile_64(
                    indices,
                    values,
                    start,
                    stop,
                    d,
                    size,
                    y,
                    gradient,
                    add,
                    o,
                    left,
                    right,
                    lo,
                    hi,
                    64,
                    kind,
                    x_kind,
                )
                b += 64
            elif rest >= 32:
                total += tile_32(
                    indices,
                    values,
                    start,
                    stop,
                    d,
                    size,
                    y,
                    gradient,
                    add,
                    o,
                    left,
                    right,
                    lo,
                    hi,
                    32,
                    kind,
                    x_kind,
                )
                b += 32
            elif rest >= 8:
                total += tile_8(
                    indices,
                    values,
                    start,
                    stop,
                    d,
                    size,
                    y,
                    gradient,
                    add,
                    o,
                    left,
                    right,
                    lo,
                    hi,
                    8,
                    kind,
                    x_kind,
                )
                b += 8
            else:
                total += tile_rest(
                    indices,
                    values,
                    start,
                    stop,
                    d,
                    size,
                    y,
                    gradient,
                    add,
                    o,
                    left,
                    right,
                    lo,
                    hi,
                    rest,
                    kind,
                    x_kind,
                )
                b = batch
            add = True  # the tiles of a row add up
        return total

    return backward_row


# backward_row(...): the weight gradient and the delta of an input, see `vectors.make_backward`.
#     All arrays as addresses: indices, values, D and gradient whole; x, out and bits of the row.
#     D is of the dtype `kind`, x and out are of `x_kind`.
# gradient_row(...): the weight gradient alone; values, out and bits are not read or written.
backward_row = _make_backward_row(delta=True)
gradient_row = _make_backward_row(delta=False)


@inline
def activate_row(row, batch, slope, keep_share, keep, state, j):
    """Activation and inverted dropout of a row of sums z, in place.

    Parameters
    ----------
    row : int64
        Address of float32 (batch,).
    batch : int64
    slope, keep_share : float32
        Left slope of the activation; share of the neurons that dropout keeps.
    keep : uint32 (words,)
        The dropout decisions: see `philox.draw_keep_words`.
    state : uint32 (n, 2, words)
        state[j] receives what the derivative needs: see `kernels`.
    """
    right = np.float32(1) / keep_share
    left = slope * right
    for word in range(state.shape[2]):
        rest = batch - word * WORD
        place = row + 4 * WORD * word
        kept = keep[word]
        if rest >= WORD:
            positive = activate_word(place, EVERYONE, left, right, kept)
        else:
            valid = EVERYONE >> np.uint32(WORD - rest)
            kept &= valid
            positive = activate_rest(place, valid, left, right, kept)
        state[j, 0, word] = kept & ~positive
        state[j, 1, word] = kept & positive


@inline
def activate_plainly(row, batch, slope):
    """Activation of a row of sums z, in place, where nothing is dropped or stored."""
    if slope == 1:
        return
    one = np.float32(1)
    for start in range(0, batch, WORD):
        rest = batch - start
        if rest >= WORD:
            activate_word(row + 4 * start, EVERYONE, slope, one, EVERYONE)
        else:
            valid = EVERYONE >> np.uint32(WORD - rest)
            activate_rest(row + 4 * start, valid, slope, one, EVERYONE)


@inline
def differentiate_row(row, batch, slope, keep_share, state, j):
    """Multiply a row of dL/da by the derivative of the activation, in place; return its sum.

    The row, float32 (batch,) at an address, becomes dL/dz; state[j] is as `activate_row` wrote
    it.
    """
    right = np.float32(1) / keep_share
    left = slope * right
    total = np.float32(0)
    for word in range(state.shape[2]):
        rest = batch - word * WORD
        place = row + 4 * WORD * word
        low, high = state[j, 0, word], state[j, 1, word]
        if rest >= WORD:
            total += differentiate_word(place, EVERYONE, left, right, low, high)
        else:
            valid = EVERYONE >> np.uint32(WORD - rest)
            total += differentiate_rest(place, valid, left, right, low, high)
    return total


@inline
def update_range(values, velocity, gradient, start, stop, rate, momentum, decay):
    """Momentum SGD (eq. 1) on start <= k < stop: v = momentum·v - rate·g; w = w + v - decay·w.

    A velocity below the smallest normal float32 is set to zero: that of an idle connection would
    become subnormal within 900 steps, and subnormal arithmetic is up to 8 times slower. The
    arrays, float32 (nnz,), come as addresses; rate, momentum and decay are float32.
    """
    for k in range(start, stop, LANES):
        at = 4 * k
        w, v, g = values + at, velocity + at, gradient + at
        if stop - k >= LANES:
            update(w, v, g, rate, momentum, decay, LANES)
        else:
            update_rest(w, v, g, rate, momentum, decay, stop - k)


@inline
def reorder_range(values, start, stop, places, out):
    """out[places[k]] = values[k] for start <= k < stop."""
    new = values[start:stop]
    to = places[start:stop]
    for k in range(len(new)):
        out[np.uint32(to[k])] = new[k]


@inline
def prefetch_rows(X, size, indices, start, stop):
    """Ask for the rows indices[start:stop] of an array at an address, of `size` bytes a row."""
    for k in range(min(start, len(indices)), min(stop, len(indices))):
        address = X + np.int64(indices[k]) * size
        for offset in range(0, size, CACHE_LINE):
            prefetch_line(address + offset)
