"""The `fused` backend: a layer's pass in one walk over its connections, by compiled kernels."""

from __future__ import annotations

import functools

import numpy as np

from .base import NO_DROPOUT, Backend, Dropout, Float32, Int32, UInt32, prefetch_distance

NO_STATE = np.empty((0, 2, 0), dtype=np.uint32)


class FusedBackend(Backend):
    """Forward and backward passes as single kernels; the rest by the shared kernels."""

    name = "fused"
    has_whole_step = True
    takes_bfloat16 = True

    def spmm(
        self, indptr: Int32, indices: Int32, values: Float32, X: Float32, *, out: Float32
    ) -> None:
        zero = np.zeros(out.shape[0], dtype=np.float32)
        self.forward(indptr, indices, values, zero, X, slope=1.0, out=out)

    def forward(
        self,
        indptr_by_output: Int32,
        indices_by_output: Int32,
        values_by_output: Float32,
        bias: Float32,
        X: Float32,
        *,
        slope: float,
        out: Float32,
        state: UInt32 | None = None,
        dropout: Dropout = NO_DROPOUT,
    ) -> None:
        from . import fused_kernels

        # rows in parts add up in `out`, which bfloat16 is not made for
        by_rows = out.dtype == np.uint16
        kernel = fused_kernels.forward_by_rows if by_rows else fused_kernels.forward
        kernel(
            indptr_by_output,
            indices_by_output,
            values_by_output,
            bias,
            X,
            np.float32(slope),
            prefetch_distance(X),
            dropout.keep_share,
            np.uint32(dropout.keep_below),
            np.uint64(dropout.seed),
            dropout.step,
            dropout.layer,
            dropout.first_row,
            out,
            NO_STATE if state is None else state,
        )

    def backward(
        self,
        indptr: Int32,
        indices: Int32,
        values: Float32,
        X: Float32,
        delta: Float32,
        *,
        out_gradient: Float32,
        out_delta: Float32,
        slope_below: float,
        state_below: UInt32,
        keep_share_below: np.float32,
        out_bias_gradient_below: Float32,
        accumulate: bool,
    ) -> None:
        from . import fused_kernels

        fused_kernels.backward(
            indptr,
            indices,
            values,
            X,
            delta,
            np.float32(slope_below),
            keep_share_below,
            state_below,
            prefetch_distance(delta),
            accumulate,
            out_gradient,
            out_delta,
            out_bias_gradient_below,
        )


@functools.cache
def load() -> FusedBackend:
    """Return the backend; it is made once in a process."""
    return FusedBackend()
