"""The passes of layers that follow each other as one compiled call each: no Python between them.

The layers come as a table with a record for each, as in `step_kernel`, but the optimizer is
another's: gradients are returned, and weights come in input order alone. Activations and their
gradients are float32 or bfloat16 (uint16), whatever the inputs are.
"""

from __future__ import annotations

import numpy as np
from numba import carray, prange, types
from numba.extending import intrinsic, overload

from .compiling import inline, kernel
from .fused_kernels import backward, forward, forward_by_rows
from .kernels import differentiate, load_float32, sddmm, sum_rows
from .operands import RESOLUTION, Connections, Derivative, Dropout
from .rows import reorder_range
from .step_kernel import by_input, by_output, floats, ints, only_read, words

BLOCK = 4096  # connections that are brought to output order by one thread
NUMBERS = ["n_in", "n_out", "nnz", "keep_below", "seed"]
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


def _load(rows, columns):
    """Transpose rows to columns, if there are rows; bfloat16 comes as columns."""


@overload(_load)
def _(rows, columns):
    def load(rows, columns):
        if len(rows) > 0:
            load_float32(rows, np.arange(len(rows)), columns)

    return load if columns.dtype == types.float32 else lambda rows, columns: None


@inline
def state_of(layer, batch):
    """Return the bits of a layer's activation, without words where it has none."""
    count = (batch + 31) // 32 if layer.state != 0 else 0
    return carray(words(layer.state), (layer.n_out, 2, count))


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
def forward_chain(table, rows, inputs):
    """Compute the activations of all layers, from inputs (n_in of the first, batch).

    Where there are rows, float32 (batch, n_in), the inputs receive them first.
    """
    _load(rows, inputs)
    X = inputs
    batch = inputs.shape[1]
    for k in range(len(table)):
        layer = table[k]
        to_output_order(table, k)
        out = carray(numbers_like(layer.activations, inputs), (layer.n_out, batch))
        dropout = Dropout(layer.keep_below, np.uint64(layer.seed), 0, 0, 0)
        state = state_of(layer, batch)
        _forward_of(by_output(layer), bias_of(layer), X, layer.slope, dropout, out, state)
        X = out


@inline
def link_gradients(layer, X, D, below):
    """Compute those of a layer's gradients that the table has a place for."""
    goes_on = layer.delta != 0
    of_delta = carray(numbers_like(layer.delta, X), X.shape)
    sums = carray(floats(layer.delta_sums), (layer.n_in,))
    gradient = carray(floats(layer.gradient), (layer.nnz,))
    connections = by_input(layer)
    anew = np.bool_(False)  # nothing is added to what the arrays hold
    if goes_on and layer.gradient != 0:
        backward(connections, X, D, below, gradient, of_delta, sums, anew)
    elif goes_on:
        zero = only_read(np.zeros(layer.n_in, dtype=np.float32))
        everything = Dropout(RESOLUTION, np.uint64(0), 0, 0, 0)
        state = carray(words(0), (layer.n_in, 2, 0))
        _forward_of(read_by_input(layer), zero, D, PASSED, everything, of_delta, state)
        differentiate(of_delta, below, sums, anew)
    elif layer.gradient != 0:
        sddmm(connections.indptr, connections.indices, X, D, gradient, anew)
    return of_delta


@kernel(parallel=False)
def backward_chain(table, inputs, rows, outputs):
    """Compute the gradients of all layers, from that of the last one's activations.

    That one, `outputs` (n_out of the last, batch), receives rows first, if there are any, and is
    made dL/dz in place where the layer has an activation. Below the first layer whose record has no
    `delta`, nothing is computed.
    """
    _load(rows, outputs)
    batch = inputs.shape[1]
    last = len(table) - 1
    D = outputs
    for k in range(last, -1, -1):
        layer = table[k]
        if k == last and layer.bias_gradient != 0:
            sums = carray(floats(layer.bias_gradient), (layer.n_out,))
            if layer.state != 0:
                state = state_of(layer, batch)
                own = Derivative(layer.slope, layer.keep_share, state)
                differentiate(D, own, sums, np.bool_(False))
            else:
                sum_rows(D, sums, np.bool_(False))
        below = table[max(k - 1, 0)]
        X = inputs
        slope, share, state = PASSED, PASSED, carray(words(0), (layer.n_in, 2, 0))
        if k > 0:
            X = carray(numbers_like(below.activations, inputs), (layer.n_in, batch))
            slope, share, state = below.slope, below.keep_share, state_of(below, batch)
        D = link_gradients(layer, X, D, Derivative(slope, share, state))
        if layer.delta == 0:
            break
