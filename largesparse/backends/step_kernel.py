"""A whole training step of the `fused` backend as one compiled call: no Python between kernels.

The network comes as a table with a record for each layer, so that one compiled function serves
every number of layers. `whole_step.WholeStep` makes the table and keeps the arrays alive.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import carray, prange, types
from numba.extending import intrinsic

from .compiling import kernel
from .fused_kernels import backward, backward_rows, forward
from .kernels import (
    ROWS,
    center_gradient,
    gradient_rows,
    mean_squared_error,
    momentum_update,
    momentum_update_reorder,
    sddmm,
    softmax_cross_entropy,
    sum_inputs,
    sum_rows,
)
from .loops import divide_evenly, divide_loop
from .rows import reorder_range, update_range

NUMBERS = ["n_in", "n_out", "nnz", "number", "forward_ahead", "backward_ahead", "centered"]
ADDRESSES = [
    *("indptr", "indices", "values", "velocity"),
    *("indptr_by_output", "indices_by_output", "values_by_output", "to_output_order"),
    *("bias", "bias_velocity", "activations", "state", "delta", "gradient", "bias_gradient"),
]
LAYER = np.dtype(
    [(name, np.int64) for name in NUMBERS + ADDRESSES]
    + [("slope", np.float32), ("rate_scale", np.float64)]
)


def _make_pointer(dtype):
    @intrinsic
    def pointer(typing, address):
        def generate(context, builder, signature, arguments):
            kind = context.get_value_type(dtype)
            return builder.inttoptr(arguments[0], ir.PointerType(kind))

        return types.CPointer(dtype)(types.int64), generate

    return pointer


floats = _make_pointer(types.float32)
ints = _make_pointer(types.int32)
words = _make_pointer(types.uint32)


@kernel()
def backward_and_update(table, k, X, D, keep_share, out_delta, rate, momentum, decay, updates):
    """Backward pass of layer k and, if it `updates`, of its weights, a chunk of rows at a time.

    The update finds gradients, weights and indices in the cache.

    Parameters
    ----------
    table : LAYER (n_layers,)
    k : int
    X : float32 (n_in, batch)
    D : float32 (n_out, batch)
        dL/dz of the layer.
    keep_share, rate, momentum, decay : float32
    out_delta : float32 (n_in, batch)
        Receives dL/dz of the layer below; not used for the first layer.
    """
    layer = table[k]
    below = table[max(k - 1, 0)]
    n, batch = X.shape
    indptr = carray(ints(layer.indptr), (layer.n_in + 1,))
    indices = carray(ints(layer.indices), (layer.nnz,))
    values = carray(floats(layer.values), (layer.nnz,))
    gradient = carray(floats(layer.gradient), (layer.nnz,))
    places = carray(ints(layer.to_output_order), (layer.nnz,))
    by_output = carray(floats(layer.values_by_output), (layer.nnz,))
    state = carray(words(below.state), (below.n_out, 2, (batch + 31) // 32))
    bias_gradient = carray(floats(below.bias_gradient), (below.n_out,))
    ahead = layer.backward_ahead  # numbers, not records, can pass into a parallel loop
    slope = below.slope
    w, v, g = layer.values, layer.velocity, layer.gradient
    chunks = (n + ROWS - 1) // ROWS
    divide_loop(chunks)
    for chunk in prange(chunks):
        first = chunk * ROWS
        stop = min(n, first + ROWS)
        if k == 0:
            gradient_rows(first, stop, indptr, indices, X, D, ahead, gradient, False)
        else:
            backward_rows(
                first,
                stop,
                indptr,
                indices,
                values,
                X,
                D,
                slope,
                keep_share,
                state,
                ahead,
                False,
                gradient,
                out_delta,
                bias_gradient,
            )
        if updates:
            start = np.int64(indptr[first])
            end = np.int64(indptr[stop])
            update_range(w, v, g, start, end, rate, momentum, decay)
            reorder_range(values, start, end, places, by_output)
    divide_evenly()


@kernel(parallel=False)
def backward_centered_and_update(
    table, k, X, D, weights, keep_share, out_delta, input_sums, rate, momentum, decay, updates
):
    """`backward_and_update` of a layer whose gradient is centred (see `center_gradient`)."""
    layer = table[k]
    below = table[max(k - 1, 0)]
    indptr = carray(ints(layer.indptr), (layer.n_in + 1,))
    indices = carray(ints(layer.indices), (layer.nnz,))
    values = carray(floats(layer.values), (layer.nnz,))
    gradient = carray(floats(layer.gradient), (layer.nnz,))
    own_bias_gradient = carray(floats(layer.bias_gradient), (layer.n_out,))
    if k == 0:
        sddmm(indptr, indices, X, D, layer.backward_ahead, gradient, False)
    else:
        backward(
            indptr,
            indices,
            values,
            X,
            D,
            below.slope,
            keep_share,
            carray(words(below.state), (below.n_out, 2, (X.shape[1] + 31) // 32)),
            layer.backward_ahead,
            False,
            gradient,
            out_delta,
            carray(floats(below.bias_gradient), (below.n_out,)),
        )
    sum_inputs(X, weights, input_sums, False)
    center_gradient(indptr, indices, input_sums, layer.rate_scale, own_bias_gradient, gradient)
    if updates:
        momentum_update_reorder(
            values,
            carray(floats(layer.velocity), (layer.nnz,)),
            gradient,
            rate,
            momentum,
            decay,
            carray(ints(layer.to_output_order), (layer.nnz,)),
            carray(floats(layer.values_by_output), (layer.nnz,)),
        )


@kernel(parallel=False)
def train_step(
    table,
    inputs,
    labels,
    targets,
    weights,
    delta,
    input_sums,
    learning_rate,
    momentum,
    decay,
    keep_below,
    seed,
    step,
    updates,
):
    """Make one update from a mini-batch, and return its summed loss, with dropout.

    Parameters
    ----------
    table : LAYER (n_layers,)
    inputs : float32 (n_features, batch)
    labels : int32 (batch,)
        Classes; without any, the loss is the mean squared error from the targets.
    targets : float32 (batch, n_targets)
    weights : float32 (batch,)
        Of the samples in the loss; without any, all count 1.
    delta : float32 (n_classes, batch)
        Receives the gradient with respect to the outputs.
    input_sums : float32 (n_in of the output layer + 1,)
        Room, where the output layer is centred.
    learning_rate : float
    momentum, decay : float32
    keep_below, seed, step
        See `philox.draw_keep_words`.
    updates : bool
        Whether the weights are updated; the gradient is computed in any case.

    Where the loss is not finite, nothing is updated.
    """
    batch = inputs.shape[1]
    n_words = (batch + 31) // 32
    last = len(table) - 1
    keep_share = np.float32(keep_below / 65536)
    everyone = np.float32(1)

    X = inputs
    for k in range(len(table)):
        layer = table[k]
        out = carray(floats(layer.activations), (layer.n_out, batch))
        hidden = k < last
        forward(
            carray(ints(layer.indptr_by_output), (layer.n_out + 1,)),
            carray(ints(layer.indices_by_output), (layer.nnz,)),
            carray(floats(layer.values_by_output), (layer.nnz,)),
            carray(floats(layer.bias), (layer.n_out,)),
            X,
            layer.slope,
            layer.forward_ahead,
            keep_share if hidden else everyone,
            np.uint32(keep_below if hidden else 65536),
            np.uint64(seed),
            step,
            layer.number,
            0,
            out,
            carray(words(layer.state), (layer.n_out, 2, n_words if hidden else 0)),
        )
        X = out

    if len(labels):
        loss = softmax_cross_entropy(X, labels, weights, batch, delta)
    else:
        loss = mean_squared_error(X, targets, weights, batch, delta)
    if not math.isfinite(loss):
        return loss

    D = delta
    sum_rows(D, carray(floats(table[last].bias_gradient), (table[last].n_out,)), False)
    for k in range(last, -1, -1):
        layer = table[k]
        X = inputs
        out_delta = inputs
        if k > 0:
            below = table[k - 1]
            X = carray(floats(below.activations), (below.n_out, batch))
            out_delta = carray(floats(below.delta), (below.n_out, batch))
        rate = np.float32(learning_rate * layer.rate_scale)
        if layer.centered:
            backward_centered_and_update(
                table,
                k,
                X,
                D,
                weights,
                keep_share,
                out_delta,
                input_sums,
                rate,
                momentum,
                decay,
                updates,
            )
        else:
            backward_and_update(
                table, k, X, D, keep_share, out_delta, rate, momentum, decay, updates
            )
        if updates:
            momentum_update(
                carray(floats(layer.bias), (layer.n_out,)),
                carray(floats(layer.bias_velocity), (layer.n_out,)),
                carray(floats(layer.bias_gradient), (layer.n_out,)),
                np.float32(learning_rate),
                momentum,
                decay,
            )
        D = out_delta
    return loss
