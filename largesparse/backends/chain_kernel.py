"""The passes of layers that follow each other as one compiled call each: no Python between them.

The layers come as a table with a record for each, as in `step_kernel`, but the optimizer is
another's: gradients are returned, and weights come in input order alone. Activations and their
gradients are float32 or bfloat16 (uint16), whatever the inputs are. Rows go through all layers in
blocks, which stay in the cache, and through the backward pass likewise.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import carray, prange, types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from .compiling import inline, kernel
from .fused_kernels import backward, forward, forward_by_rows
from .kernels import differentiate, load_dense, load_float32, sddmm, sum_rows
from .operands import RESOLUTION, Connections, Derivative, Dropout
from .rows import reorder_range
from .step_kernel import by_input, by_output, floats, ints, only_read, words

BLOCK = 4096  # connections that are brought to output order by one thread
# The last two are bytes from the activations and the bits of a block to those of the next
NUMBERS = ["n_in", "n_out", "nnz", "keep_below", "seed", "activations_step", "state_step"]
PLACES = [  # addresses; 0 is what there is not
    *("indptr", "indices", "values", "to_output_order"),
    *("indptr_by_output", "indices_by_output", "values_by_output"),
    *("bias", "activations", "state"),
    *("gradient", "bias_gradient", "delta", "delta_sums"),  # the latter two of the layer's inputs
]
LINK = np.dtype(
    [(name, np.int64) for name in NUMBERS + PLACES]
    + [("slope", np.float32), ("keep_share", np.float32)]
)
PASSED = np.float32(1)  # slope and share of no activation


class Matrix(NamedTuple):
    """Inputs or outputs of a chain, or their gradients, as rows or as columns.

    Where there are rows, the columns of one block after the other are a transpose of them.
    """

    columns: NDArray[Any]  # (n, rows of a block), flat
    rows: NDArray[Any]  # (all rows, n), or (0, 0) where the columns are whole, and of one block


@intrinsic
def numbers_like(typing, address, array):
    """Return an address as a pointer to what an array has."""
    kind = types.CPointer(array.dtype)

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(kind))

    return kind(types.int64, array), generate


def _forward_of(connections, bias, X, slope, dropout, out, state):
    """`fused_kernels.forward`, of bfloat16 too: rows in parts add up in `out`, as float32."""


@overload(_forward_of)
def _(connections, bias, X, slope, dropout, out, state):
    run = forward_by_rows if out.dtype == types.uint16 else forward

    def run_forward(connections, bias, X, slope, dropout, out, state):
        run(connections, bias, X, slope, dropout, out, state)

    return run_forward


def _transpose(X, out):
    """Write the transpose of X to `out`; both are float32, or bfloat16."""


@overload(_transpose)
def _(X, out):
    load = load_float32 if X.dtype == types.float32 else load_dense

    def transpose(X, out):
        load(X, np.arange(len(X)), out)

    return transpose


@inline
def columns_of(matrix, n, batch):
    """Return those of a block of so many rows."""
    return matrix.columns[: n * batch].reshape(n, batch)


@inline
def load_block(matrix, n, start, stop):
    """Return the columns of a block of rows."""
    columns = columns_of(matrix, n, stop - start)
    if len(matrix.rows) > 0:
        _transpose(matrix.rows[start:stop], columns)
    return columns


@inline
def store_block(matrix, columns, start, stop):
    """Write the columns of a block to its rows, if there are rows."""
    if len(matrix.rows) > 0:
        _transpose(columns, matrix.rows[start:stop])


@inline
def activations_of(layer, block, batch, like):
    """Return a layer's activations of a block, of the dtype that an array has."""
    place = layer.activations + block * layer.activations_step
    return carray(numbers_like(place, like), (layer.n_out, batch))


@inline
def state_of(layer, block, batch):
    """Return the bits of a layer's activation, without words where it has none."""
    count = (batch + 31) // 32 if layer.state != 0 else 0
    return carray(words(layer.state + block * layer.state_step), (layer.n_out, 2, count))


@inline
def read_by_input(layer):
    """Return a layer's connections in input order, to be read only."""
    indptr, indices, values = by_input(layer)
    return Connections(only_read(indptr), only_read(indices), only_read(values))


@inline
def bias_of(layer):
    """Return a layer's bias, zero where it has none."""
    if layer.bias != 0:
        return only_read(carray(floats(layer.bias), (layer.n_out,)))
    return only_read(np.zeros(layer.n_out, dtype=np.float32))


@kernel()
def to_output_order(table, k):
    """Bring the weights of layer k to output order."""
    layer = table[k]
    n = layer.nnz
    values = carray(floats(layer.values), (n,))
    places = carray(ints(layer.to_output_order), (n,))
    copy = carray(floats(layer.values_by_output), (n,))
    for block in prange((n + BLOCK - 1) // BLOCK):
        start = block * BLOCK
        reorder_range(values, start, min(n, start + BLOCK), places, copy)


@kernel(parallel=False)
def forward_chain(table, x, out, count, size):
    """Compute the activations of all layers, from x to `out`, for `count` rows in blocks of `size`.

    `out` and the last layer's activations in the table are the same columns.
    """
    for k in range(len(table)):
        to_output_order(table, k)
    for block in range((count + size - 1) // size):
        start, stop = block * size, min(count, (block + 1) * size)
        X = load_block(x, table[0].n_in, start, stop)
        for k in range(len(table)):
            layer = table[k]
            Y = activations_of(layer, block, stop - start, X)
            dropout = Dropout(layer.keep_below, np.uint64(layer.seed), 0, 0, start)
            state = state_of(layer, block, stop - start)
            _forward_of(by_output(layer), bias_of(layer), X, layer.slope, dropout, Y, state)
            X = Y
        store_block(out, X, start, stop)


@inline
def link_gradients(layer, X, D, below, adds):
    """Compute those of a layer's gradients that the table has a place for.

    If it `adds`, those of weights and sums are added to what the arrays hold.
    """
    goes_on = layer.delta != 0
    of_delta = carray(numbers_like(layer.delta, X), X.shape)
    sums = carray(floats(layer.delta_sums), (layer.n_in,))
    gradient = carray(floats(layer.gradient), (layer.nnz,))
    connections = by_input(layer)
    if goes_on and layer.gradient != 0:
        backward(connections, X, D, below, gradient, of_delta, sums, adds)
    elif goes_on:
        zero = only_read(np.zeros(layer.n_in, dtype=np.float32))
        everything = Dropout(RESOLUTION, np.uint64(0), 0, 0, 0)
        state = carray(words(0), (layer.n_in, 2, 0))
        _forward_of(read_by_input(layer), zero, D, PASSED, everything, of_delta, state)
        differentiate(of_delta, below, sums, adds)
    elif layer.gradient != 0:
        sddmm(connections.indptr, connections.indices, X, D, gradient, adds)
    return of_delta


@kernel(parallel=False)
def backward_chain(table, x, gradient, delta, count, size):
    """Compute the gradients of all layers, from that of the last one's activations.

    Rows and blocks are those of the forward pass. The columns of `gradient` are made dL/dz in place
    where the last layer has an activation. `delta` is the gradient of x, with the columns that are
    the first layer's in the table. Below the first layer whose record has no `delta`, nothing is
    computed.
    """
    last = len(table) - 1
    for block in range((count + size - 1) // size):
        start, stop = block * size, min(count, (block + 1) * size)
        batch = stop - start
        inputs = load_block(x, table[0].n_in, start, stop)
        D = load_block(gradient, table[last].n_out, start, stop)
        adds = np.bool_(block > 0)
        for k in range(last, -1, -1):
            layer = table[k]
            if k == last and layer.bias_gradient != 0:
                sums = carray(floats(layer.bias_gradient), (layer.n_out,))
                if layer.state != 0:
                    state = state_of(layer, block, batch)
                    own = Derivative(layer.slope, layer.keep_share, state)
                    differentiate(D, own, sums, adds)
                else:
                    sum_rows(D, sums, adds)
            X = inputs
            slope, share, state = PASSED, PASSED, carray(words(0), (layer.n_in, 2, 0))
            if k > 0:
                below = table[k - 1]
                X = activations_of(below, block, batch, inputs)
                slope, share = below.slope, below.keep_share
                state = state_of(below, block, batch)
            D = link_gradients(layer, X, D, Derivative(slope, share, state), adds)
            if layer.delta == 0:
                break
        if table[0].delta != 0:
            store_block(delta, D, start, stop)
