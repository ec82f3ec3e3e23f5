"""A whole training step as one compiled call: no Python between kernels, nor around products.

The network comes as a table with a record for each layer, so that one compiled function serves
every number of layers. `whole_step.WholeStep` makes the table and keeps the arrays alive. Products
are those of the `fused` backend or, where a layer has the address of MKL's function, of MKL.
"""

from __future__ import annotations

import math

import numpy as np
from numba import carray, prange, types
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic

from .compiling import inline, kernel
from .fused_kernels import backward_rows, forward
from .kernels import (
    activate,
    center_gradient,
    differentiate,
    gradient_rows,
    mean_squared_error,
    momentum_update,
    momentum_update_reorder,
    softmax_cross_entropy,
    sum_inputs,
    sum_rows,
)
from .lanes import F32, I32, as_pointer
from .loops import ROWS, divide_evenly, divide_loop
from .mkl_kernels import multiply
from .operands import RESOLUTION, SGD, Connections, Derivative, Dropout
from .philox import share_kept
from .rows import reorder_range, update_range
from .tiles import emitted

NUMBERS = ["n_in", "n_out", "nnz", "number", "centered"]
ADDRESSES = [
    *("indptr", "indices", "values", "velocity"),
    *("indptr_by_output", "indices_by_output", "values_by_output", "to_output_order"),
    *("bias", "bias_velocity", "activations", "state", "delta", "gradient", "bias_gradient"),
    *("multiply", "matrix", "matrix_by_output"),  # MKL's function and descriptions, or 0
]
LAYER = np.dtype(
    [(name, np.int64) for name in NUMBERS + ADDRESSES]
    + [("slope", np.float32), ("rate_scale", np.float64)]
)


@emitted(types.CPointer(types.float32))
def floats(builder, address):
    """Return an address as a pointer."""
    return as_pointer(builder, address, F32)


@emitted(types.CPointer(types.int32))
def ints(builder, address):
    return as_pointer(builder, address, I32)


@emitted(types.CPointer(types.uint32))
def words(builder, address):
    return as_pointer(builder, address, I32)


@intrinsic
def only_read(typing, array):
    """`operands.read_only` in a kernel."""

    def generate(context, builder, signature, arguments):
        return impl_ret_borrowed(context, builder, signature.return_type, arguments[0])

    return array.copy(readonly=True)(array), generate


@inline
def by_output(layer):
    """Return a layer's connections in output order."""
    return Connections(
        only_read(carray(ints(layer.indptr_by_output), (layer.n_out + 1,))),
        only_read(carray(ints(layer.indices_by_output), (layer.nnz,))),
        only_read(carray(floats(layer.values_by_output), (layer.nnz,))),
    )


@inline
def by_input(layer):
    """Return a layer's connections in input order."""
    return Connections(
        carray(ints(layer.indptr), (layer.n_in + 1,)),
        carray(ints(layer.indices), (layer.nnz,)),
        carray(floats(layer.values), (layer.nnz,)),
    )


@inline
def state_of(layer, batch):
    """Return the state of a hidden layer."""
    return carray(words(layer.state), (layer.n_out, 2, (batch + 31) // 32))


@kernel()
def backward_and_update(table, k, X, D, keep_share, out_delta, sgd, updates):
    """Backward pass of layer k and, if it `updates`, of its weights, a chunk of rows at a time.

    The update finds gradients, weights and indices in the cache. X has the layer's inputs, D its
    dL/dz; `out_delta` receives that of the layer below, if there is one, unless MKL computes it.
    """
    layer = table[k]
    below = table[max(k - 1, 0)]
    n, batch = X.shape
    connections = by_input(layer)
    indptr, indices, values = connections
    velocity = carray(floats(layer.velocity), (layer.nnz,))
    gradient = carray(floats(layer.gradient), (layer.nnz,))
    places = carray(ints(layer.to_output_order), (layer.nnz,))
    copy = carray(floats(layer.values_by_output), (layer.nnz,))
    # tuples and numbers, not records, can pass into a parallel loop
    derivative = Derivative(below.slope, keep_share, state_of(below, batch))
    gradient_only = k == 0 or layer.multiply != 0
    sampled = Connections(indptr, indices, gradient)
    outputs = gradient, out_delta, carray(floats(below.bias_gradient), (below.n_out,))
    adds = np.bool_(False)  # a literal would have the functions of rows compiled once more
    chunks = (n + ROWS - 1) // ROWS
    divide_loop(chunks)
    for chunk in prange(chunks):
        if gradient_only:
            gradient_rows(np.int64(chunk), sampled, X, D, adds)
        else:
            backward_rows(np.int64(chunk), connections, X, D, derivative, outputs, adds)
        if updates:
            start = np.int64(indptr[chunk * ROWS])
            stop = np.int64(indptr[min(n, (chunk + 1) * ROWS)])
            update_range(values, velocity, gradient, start, stop, sgd)
            reorder_range(values, start, stop, places, copy)
    divide_evenly()


@inline
def center_and_update(layer, X, weights, input_sums, sgd, updates):
    """Centre the weight gradient of a layer (see `center_gradient`); if it `updates`, update."""
    indptr, indices, values = by_input(layer)
    gradient = carray(floats(layer.gradient), (layer.nnz,))
    bias_gradient = carray(floats(layer.bias_gradient), (layer.n_out,))
    sum_inputs(X, weights, input_sums, np.bool_(False))
    center_gradient(indptr, indices, input_sums, layer.rate_scale, bias_gradient, gradient)
    if updates:
        velocity = carray(floats(layer.velocity), (layer.nnz,))
        places = carray(ints(layer.to_output_order), (layer.nnz,))
        copy = carray(floats(layer.values_by_output), (layer.nnz,))
        momentum_update_reorder(values, velocity, gradient, sgd, places, copy)


@inline
def forward_all(table, inputs, dropout):
    """Compute the activations of all layers; return the last one's."""
    batch = inputs.shape[1]
    X = inputs
    for k in range(len(table)):
        layer = table[k]
        hidden = k < len(table) - 1
        keep_below = dropout.keep_below if hidden else RESOLUTION
        out = carray(floats(layer.activations), (layer.n_out, batch))
        bias = only_read(carray(floats(layer.bias), (layer.n_out,)))
        own = Dropout(keep_below, dropout.seed, dropout.step, layer.number, 0)
        n_words = (batch + 31) // 32 if hidden else 0
        state = carray(words(layer.state), (layer.n_out, 2, n_words))
        if layer.multiply != 0:
            multiply(layer.multiply, layer.matrix_by_output, X, out)
            activate(out, bias, layer.slope, own, state)
        else:
            forward(by_output(layer), bias, X, layer.slope, own, out, state)
        X = out
    return X


@kernel(parallel=False)
def train_step(
    table, inputs, offsets, y, weights, smoothing, delta, input_sums, dropout, sgd, updates
):
    """Make one update from a mini-batch, and return its summed loss, with dropout.

    Where the loss is not finite, nothing is updated. The gradient is computed in any case.

    Parameters
    ----------
    table : LAYER (n_layers,)
    inputs : float32 (n_features, batch)
    offsets : float32 (n_classes, batch)
        Added to the outputs; without rows, nothing is.
    y : int32 (batch,) and float32 (batch, n_targets)
        Classes, and targets of the mean squared error; one of the two is empty.
    weights : float32 (batch,)
        Of the samples in the loss; without any, all count 1.
    smoothing : float32
        Of the labels: see `softmax_cross_entropy`.
    delta : float32 (n_classes, batch)
        Receives the gradient with respect to the outputs.
    input_sums : float32 (n_in of the output layer + 1,)
        Room, where the output layer is centred.
    dropout : Dropout
        Its layer and first row are filled in.
    sgd : SGD
        Its rate is float64.
    updates : bool
        Whether the weights are updated.
    """
    batch = inputs.shape[1]
    last = len(table) - 1
    outputs = forward_all(table, inputs, dropout)
    for c in range(len(offsets)):
        for b in range(batch):
            outputs[c, b] += offsets[c, b]
    labels, targets = y
    if len(labels):
        loss = softmax_cross_entropy(outputs, labels, weights, batch, smoothing, delta)
    else:
        loss = mean_squared_error(outputs, targets, weights, batch, delta)
    if not math.isfinite(loss):
        return loss

    D = delta
    sum_rows(D, carray(floats(table[last].bias_gradient), (table[last].n_out,)), np.bool_(False))
    for k in range(last, -1, -1):
        layer = table[k]
        X = inputs
        out_delta = inputs
        if k > 0:
            below = table[k - 1]
            X = carray(floats(below.activations), (below.n_out, batch))
            out_delta = carray(floats(below.delta), (below.n_out, batch))
        rate = np.float32(sgd.rate * layer.rate_scale)
        scaled = SGD(rate, sgd.momentum, sgd.decay, sgd.nesterov)
        plain = updates and not layer.centered
        if k > 0 and layer.multiply != 0:
            below = table[k - 1]
            multiply(layer.multiply, layer.matrix, D, out_delta)
            derivative = Derivative(below.slope, share_kept(dropout), state_of(below, batch))
            sums = carray(floats(below.bias_gradient), (below.n_out,))
            differentiate(out_delta, derivative, sums, np.bool_(False))
        backward_and_update(table, k, X, D, share_kept(dropout), out_delta, scaled, plain)
        if layer.centered:
            center_and_update(layer, X, weights, input_sums, scaled, updates)
        if updates:
            momentum_update(
                carray(floats(layer.bias), (layer.n_out,)),
                carray(floats(layer.bias_velocity), (layer.n_out,)),
                carray(floats(layer.bias_gradient), (layer.n_out,)),
                SGD(np.float32(sgd.rate), sgd.momentum, sgd.decay, sgd.nesterov),
            )
        D = out_delta
    return loss
