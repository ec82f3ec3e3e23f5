"""The parts of the backward pass of a list of layers, of which each needs at most two of them.

`k` is the place of a layer in its workspace, 0 the first hidden one. Who has consecutive layers of
a network alone goes through them by these (see `parallel.pipeline`), as `SparseMLP.backward` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backends.base import Backend
from ..backends.operands import Derivative, Dropout, Float32, SparseBatch
from .layer import SparseLayer
from .losses import NO_WEIGHTS
from .normalization import BatchShares, differentiate_
from .workspace import Workspace

Samples = tuple[Float32 | None, float]  # weights of samples in the loss, share of the mini-batch


def begin_backward(
    layers: Sequence[SparseLayer],
    workspace: Workspace,
    delta: Float32,
    accumulate: bool,
    weights: Float32 | None,
) -> None:
    """Compute what follows from dL/dz of the outputs, (n_outputs, batch), alone.

    That are the gradient of the outputs' biases, and the sums behind the centring of gradients.
    """
    from ..backends import kernels
    from ..backends import sparse_input_kernels as sparse

    kernels.sum_rows(delta, workspace.by_layer[-1]["bias"], accumulate)
    if layers[-1].config.centered:
        X = workspace.below(len(layers) - 1, delta.shape[1])
        each = NO_WEIGHTS if weights is None else weights
        sum_inputs = sparse.sum_inputs if isinstance(X, SparseBatch) else kernels.sum_inputs
        sum_inputs(X, each, workspace.input_sums, accumulate)


def backward_layer(
    layer: SparseLayer,
    below: Any,
    k: int,
    workspace: Workspace,
    delta: Float32,
    backend: Backend,
    dropout: Dropout,
    accumulate: bool,
) -> Float32:
    """Compute the gradients of layer k's weights and of the biases of layer k - 1, `below`.

    Return dL/dz of that layer, float32 (n_in, batch), in the workspace, unless its activation's
    shape is trained or it is normalised: then `through_activation_` makes it that. Of `below`
    count the slope and whether it has a shape.
    """
    batch = delta.shape[1]
    out_delta, bias_gradient = workspace.delta(k - 1, batch), workspace.by_layer[k - 1]["bias"]
    given = (
        workspace.activations(k - 1, batch),
        delta,
        Derivative(np.float32(below.slope), dropout.keep_share, workspace.state(k - 1, batch)),
    )
    is_shaped = below.srelu is not None
    found: dict[str, Any] = {
        "out_gradient": workspace.by_layer[k]["values"],
        "out_delta": out_delta,
        "out_bias_gradient": np.empty_like(bias_gradient) if is_shaped else bias_gradient,
        "accumulate": accumulate,
    }
    if (parts := workspace.parts(k, batch)) is not None:
        from ..backends.many_outputs import backward_by_blocks

        backward_by_blocks(layer.by_input, *given, parts, **found)
    else:
        backend.backward(layer.by_input, *given, **found)
    return out_delta


def through_activation_(
    layer: SparseLayer,
    k: int,
    workspace: Workspace,
    delta: Float32,
    dropout: Dropout,
    accumulate: bool,
    samples: Samples,
) -> None:
    """Turn what `backward_layer` has returned into dL/dz of layer k, in place, where it is not.

    That is where a trained shape or a batch normalisation lies between; their gradients, too, are
    computed. dL/dz of a normalised layer is that of its products Wᵀx.
    """
    from ..backends.srelu_kernels import differentiate_srelu

    batch, gradients = delta.shape[1], workspace.by_layer[k]
    if layer.srelu is not None:
        differentiate_srelu(
            delta,
            workspace.sums(k, batch),
            layer.srelu,
            dropout.keep_share,
            gradients["bias"],
            gradients["srelu"],
            accumulate,
        )
    if layer.config.normalised:
        weights, part = samples
        differentiate_(
            layer,
            delta,
            workspace.sums(k, batch),
            BatchShares.of(weights, batch),
            part,
            found=workspace.found[k],
            gradients=gradients,
            accumulate=accumulate,
        )


def backward_inputs(
    first: SparseLayer,
    workspace: Workspace,
    delta: Float32,
    accumulate: bool,
    touched_only: bool = False,
) -> None:
    """Compute the gradient of the weights of the first layer, which leads from the inputs.

    `touched_only` is as in `SparseMLP.backward`.
    """
    from ..backends import kernels
    from ..backends.sparse_inputs import add_sddmm

    X, pattern = workspace.below(0, delta.shape[1]), first.topology
    out = workspace.by_layer[0]["values"]
    if isinstance(X, SparseBatch):
        if not (accumulate or touched_only):
            out[:] = 0
        add_sddmm(pattern.indptr, pattern.indices, X, delta, out)
    else:
        kernels.sddmm(pattern.indptr, pattern.indices, X, delta, out, accumulate)
