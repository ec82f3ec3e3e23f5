"""The interface of a backend, and its composition from a sparse-dense product and kernels.

Arrays of activations are feature-major: float32 (neurons, batch), C-contiguous. Where a backend
takes it, those of hidden layers and their gradients may be bfloat16, as uint16; sums are float32.
`state` arrays are described in `kernels`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from ..machine.threads import kernel_threads
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

if TYPE_CHECKING:
    from .choice import BackendName


class Backend(ABC):
    """What a layer computes. A backend supplies `spmm`, and may replace more."""

    name: BackendName
    has_whole_step = False  # whether `step_kernel.train_step` computes what this backend does
    multiply = 0  # address of the function that computes products there; 0 where kernels do
    takes_bfloat16 = False  # whether activations and their gradients may be bfloat16

    @abstractmethod
    def spmm(
        self, indptr: Counts, indices: Int32, values: Float32, X: Float32, *, out: Float32
    ) -> None:
        """out = A·X for a matrix A in CSR form; X (n, batch), out (rows, batch)."""

    def matrix(self, connections: Connections, shape: tuple[int, int]) -> int:
        """Return the address by which the function at `multiply` knows a matrix; 0 is an empty one.

        It is valid as long as the arrays exist, whose values may change.
        """
        return 0

    @contextmanager
    def threads(self, count: int) -> Iterator[None]:
        """Let the calling thread's products and kernels use `count` threads."""
        with kernel_threads(count):
            yield

    def forward(
        self,
        connections: Connections,  # in output order
        bias: Float32,  # (n_out,)
        X: Float32,  # (n_in, batch)
        *,
        slope: float,  # left one of the activation f; 1 is none
        out: Float32,  # (n_out, batch)
        state: UInt32 | None = None,  # (n_out, 2, words): receives what the backward pass needs
        dropout: Dropout = NO_DROPOUT,
    ) -> None:
        """Compute a layer's activations, out = dropout(f(WᵀX + b)).

        Without a state nothing is stored, and nothing is dropped.
        """
        from . import kernels

        self.spmm(*connections, X, out=out)
        if state is None:
            state, dropout = NO_STATE, NO_DROPOUT
        kernels.activate(out, read_only(bias), np.float32(slope), dropout.for_kernels(), state)

    def backward(
        self,
        connections: Connections,  # in input order
        X: Float32,  # (n_in, batch): the activations of the layer below
        delta: Float32,  # (n_out, batch)
        below: Derivative,  # of the layer below
        *,
        out_gradient: Float32,  # (nnz,): receives dL/dW
        out_delta: Float32,  # (n_in, batch): receives dL/dz of the layer below
        out_bias_gradient: Float32,  # (n_in,): receives the row sums of `out_delta`
        accumulate: bool,  # whether to add to what the gradients hold
    ) -> None:
        """Take a layer's delta = dL/dz to its weight gradient and to the layer below's delta."""
        from . import kernels

        indptr, indices, _ = connections
        kernels.sddmm(indptr, indices, X, delta, out_gradient, accumulate)
        self.spmm(*connections, delta, out=out_delta)
        kernels.differentiate(out_delta, below, out_bias_gradient, accumulate)
