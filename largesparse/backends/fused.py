"""The `fused` backend: a layer's pass in one walk over its connections, by compiled kernels."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .base import Backend
from .operands import (
    NO_DROPOUT,
    NO_STATE,
    Connections,
    Counts,
    Derivative,
    Dropout,
    Float32,
    Int32,
    UInt32,
    read_only,
)


class FusedBackend(Backend):
    """Forward and backward passes as single kernels; the rest by the shared kernels."""

    name = "fused"
    has_whole_step = True
    takes_bfloat16 = True

    def spmm(
        self, indptr: Counts, indices: Int32, values: Float32, X: Float32, *, out: Float32
    ) -> None:
        zero = np.zeros(out.shape[0], dtype=np.float32)
        self.forward(Connections(indptr, indices, values), zero, X, slope=1.0, out=out)

    def forward(
        self,
        connections: Connections,
        bias: Float32,
        X: Float32,
        *,
        slope: float,
        out: Float32,
        state: UInt32 | None = None,
        dropout: Dropout = NO_DROPOUT,
    ) -> None:
        from . import fused_kernels

        if state is None:
            state, dropout = NO_STATE, NO_DROPOUT
        # rows in parts add up in `out`, which bfloat16 is not made for
        by_rows = out.dtype == np.uint16
        kernel = fused_kernels.forward_by_rows if by_rows else fused_kernels.forward
        constant = Connections(*map(read_only, connections)), read_only(bias)
        kernel(*constant, X, np.float32(slope), dropout.for_kernels(), out, state)

    def backward(
        self,
        connections: Connections,
        X: Float32,
        delta: Float32,
        below: Derivative,
        **gradients: Any,  # as in `Backend`, whose names the kernel has
    ) -> None:
        from . import fused_kernels

        fused_kernels.backward(connections, X, delta, below, **gradients)


@functools.cache
def load() -> FusedBackend:
    """Return the backend; it is made once in a process."""
    return FusedBackend()
