"""A first layer of sparse inputs: what `Backend` has for dense ones, the same for all backends."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .operands import (
    NO_DROPOUT,
    NO_STATE,
    Connections,
    Dropout,
    Float32,
    Int32,
    SparseBatch,
    UInt32,
    read_only,
)


def forward_sparse(
    connections: Connections,  # in input order
    bias: Float32,
    batch: SparseBatch,
    *,
    slope: float,
    out: Float32,
    state: UInt32 | None = None,
    dropout: Dropout = NO_DROPOUT,
) -> None:
    """Compute a layer's activations: see `Backend.forward`."""
    from .kernels import activate
    from .sparse_input_kernels import multiply, shift_bias

    if state is None:
        state, dropout = NO_STATE, NO_DROPOUT
    sums = np.empty(out.shape, np.float32) if out.dtype == np.uint16 else out
    connections, bias = Connections(*map(read_only, connections)), read_only(bias)
    multiply(batch, connections, sums)
    if len(batch.shift):
        bias = read_only(shift_bias(batch.shift, connections, bias))
    activate(sums, bias, np.float32(slope), dropout.for_kernels(), state)
    if out.dtype == np.uint16:
        out[...] = _to_bfloat16(sums)


def add_sddmm(indptr: Int32, indices: Int32, batch: SparseBatch, D: Float32, out: Float32) -> None:
    """Add `kernels.sddmm` of the batch to `out`; D is float32 or bfloat16."""
    from . import sparse_input_kernels as kernels

    if D.dtype == np.uint16:
        D = (D.astype(np.uint32) << 16).view(np.float32)
    transposed = kernels.transpose(D)
    kernels.add_sddmm(batch, indptr, indices, transposed, out)
    if len(batch.shift):
        sums = transposed.sum(axis=0, dtype=np.float64).astype(np.float32)
        kernels.subtract_shift(batch.shift, indptr, indices, sums, out)


def _to_bfloat16(values: Float32) -> NDArray[np.uint16]:
    """Return float32 as bfloat16, rounded to nearest, ties to even."""
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    upper: NDArray[np.uint16] = np.where(np.isnan(values), bits >> 16 | 1, rounded).astype(
        np.uint16
    )
    return upper
