"""The forward pass of a list of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..backends.base import Backend
from ..backends.operands import (
    NO_DROPOUT,
    NO_STATE,
    Dropout,
    Float32,
    SparseBatch,
    read_only,
)
from .layer import Forward, SparseLayer
from .normalization import BatchShares, normalise_
from .workspace import Workspace

Prefetch = Callable[[Forward], None]


def forward(
    layers: Sequence[Forward],
    workspace: Workspace,
    batch: int,
    backend: Backend,
    *,
    training: bool = False,
    dropout: Dropout = NO_DROPOUT,
    prefetch: Prefetch | None = None,
    numbers: range | None = None,
    weights: Float32 | None = None,
) -> Float32:
    """Return the logits, float32 (n_classes, batch), of the inputs in the workspace.

    Parameters
    ----------
    layers, workspace, batch, backend
        The workspace's first `batch` input columns are read. Unless `training`, no layer is
        normalised: see `fold_layers`.
    training : bool
        Whether to keep what the backward pass needs, and to drop neurons.
    dropout : Dropout
        Its layer is filled in for each hidden layer.
    prefetch : callable, optional
        Called with the layer that comes next.
    numbers : range, optional
        Of the layers to compute, 0 the first hidden one; the last one's activations are returned.
    weights : float32 (batch,), optional
        What samples count where layers are normalised.
    """
    from ..backends.sparse_inputs import forward_sparse
    from ..backends.srelu_kernels import activate_srelu

    if numbers is None:
        numbers = range(len(layers))
        workspace.segment = (len(layers) - 2) // workspace.keep_every
    first = numbers[0]
    X = workspace.below(first, batch)
    for k in numbers:
        layer = layers[k]
        if prefetch is not None and k < numbers[-1]:
            prefetch(layers[k + 1])
        out = workspace.activations(k, batch)
        hidden = training and k < len(layers) - 1
        shape = layer.srelu
        state = workspace.state(k, batch) if hidden else None
        options: dict[str, Any] = {"out": out, "state": state}
        options["dropout"] = dropout._replace(layer=layer.number) if hidden else NO_DROPOUT
        multiply: Callable[..., None]
        if isinstance(X, SparseBatch):
            multiply = partial(forward_sparse, layer.by_input)
        else:
            multiply = partial(backend.forward, layer.by_output)
        if training and isinstance(layer, SparseLayer) and layer.config.normalised:
            Z, samples = workspace.sums(k, batch), BatchShares.of(weights, batch)
            multiply(np.zeros_like(layer.bias), X, slope=1.0, out=Z)
            normalise_(layer, Z, samples, found=workspace.found[k], **options)
        else:
            if shape is not None and training:
                options["out"] = workspace.sums(k, batch)
            multiply(layer.bias, X, slope=layer.slope, **options)
        if shape is not None:
            keep_share = dropout.keep_share if hidden else np.float32(1)
            bits = NO_STATE if state is None else state
            activate_srelu(options["out"], read_only(shape), keep_share, bits, out)
        X = out
    return out
