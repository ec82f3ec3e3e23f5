"""The interface of a backend, and its composition from a sparse-dense product and kernels.

Arrays of activations are feature-major: float32 (neurons, batch), C-contiguous. Where a backend
takes it, those of hidden layers and their gradients may be bfloat16, as uint16; sums are float32.
`state` arrays are described in `kernels`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..threads import kernel_threads

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
UInt32 = NDArray[np.uint32]

RESOLUTION = 1 << 16  # of the share of neurons that dropout keeps


class Connections(NamedTuple):
    """A layer's connections as a CSR matrix: in output order or in input order."""

    indptr: Int32  # (rows + 1,)
    indices: Int32  # (nnz,)
    values: Float32  # (nnz,)


class Dropout(NamedTuple):
    """What the dropout bits of a layer are a function of, beside neuron and row."""

    keep_below: int  # a neuron is kept where 16 random bits are below this
    seed: int | np.uint64  # 64 bits
    step: int  # updates since the start of the training
    layer: int  # the layer's number
    first_row: int  # row of the mini-batch that the micro-batch begins with

    @property
    def keep_share(self) -> np.float32:
        """Share of the neurons that are kept."""
        return np.float32(self.keep_below / RESOLUTION)

    def for_kernels(self) -> Dropout:
        """Return this by the types that kernels are compiled for: a seed may exceed int64."""
        return self._replace(seed=np.uint64(self.seed))


class Derivative(NamedTuple):
    """What the derivative of a hidden layer's activations is a function of."""

    slope: np.float32  # left slope of the activation
    keep_share: np.float32  # share of the neurons that dropout keeps
    state: UInt32  # (n, 2, words): see `kernels`


class SGD(NamedTuple):
    """The numbers of momentum SGD (eq. 1), v = μv - ηg; w = w + v - λw, as kernels take them."""

    rate: np.float32 | np.float64  # η
    momentum: np.float32  # μ
    decay: np.float32  # λ


NO_DROPOUT = Dropout(RESOLUTION, 0, 0, 0, 0).for_kernels()
NO_STATE = np.empty((0, 2, 0), dtype=np.uint32)  # stores nothing

PREFETCH_BYTES = 16 * 2**20  # of the gathered rows together, above which they are prefetched
PREFETCH_AHEAD = 16  # connections


class Backend(ABC):
    """What a layer computes. A backend supplies `spmm`, and may replace more."""

    name: str
    has_whole_step = False  # whether `step_kernel.train_step` computes what this backend does
    takes_bfloat16 = False  # whether activations and their gradients may be bfloat16

    @abstractmethod
    def spmm(
        self, indptr: Int32, indices: Int32, values: Float32, X: Float32, *, out: Float32
    ) -> None:
        """out = A·X for a matrix A in CSR form; X (n, batch), out (rows, batch)."""

    @contextmanager
    def threads(self, count: int) -> Iterator[None]:
        """Let the calling thread's products and kernels use `count` threads."""
        with kernel_threads(count):
            yield

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
        """Compute a layer's activations: dropout(f(WᵀX + b)).

        Parameters
        ----------
        connections : Connections
            In output order.
        bias : float32 (n_out,)
        X : float32 (n_in, batch)
        slope : float
            Left slope of the activation f; 1 is none.
        out : float32 (n_out, batch)
            Receives the activations.
        state : uint32 (n_out, 2, words), optional
            Receives what the backward pass needs; without it nothing is stored, and nothing
            is dropped.
        dropout : Dropout
        """
        from . import kernels

        self.spmm(*connections, X, out=out)
        if state is None:
            state, dropout = NO_STATE, NO_DROPOUT
        kernels.activate(out, bias, np.float32(slope), dropout.for_kernels(), state)

    def backward(
        self,
        connections: Connections,
        X: Float32,
        delta: Float32,
        below: Derivative,
        *,
        out_gradient: Float32,
        out_delta: Float32,
        out_bias_gradient: Float32,
        accumulate: bool,
    ) -> None:
        """Take a layer's delta = dL/dz to its weight gradient and to the layer below's delta.

        Parameters
        ----------
        connections : Connections
            In input order.
        X : float32 (n_in, batch)
            The activations of the layer below.
        delta : float32 (n_out, batch)
        below : Derivative
            Of the layer below.
        out_gradient : float32 (nnz,)
            Receives dL/dW.
        out_delta : float32 (n_in, batch)
            Receives dL/dz of the layer below.
        out_bias_gradient : float32 (n_in,)
            Receives the row sums of `out_delta`.
        accumulate : bool
            Whether to add to what the gradients hold.
        """
        from . import kernels

        indptr, indices, _ = connections
        kernels.sddmm(indptr, indices, X, delta, out_gradient, accumulate)
        self.spmm(*connections, delta, out=out_delta)
        kernels.differentiate(out_delta, below, out_bias_gradient, accumulate)
