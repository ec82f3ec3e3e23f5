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


class Dropout(NamedTuple):
    """What the dropout bits of a layer are a function of, beside neuron and row."""

    keep_below: int  # a neuron is kept where 16 random bits are below this
    seed: int  # 64 bits
    step: int  # updates since the start of the training
    layer: int  # the layer's number
    first_row: int  # row of the mini-batch that the micro-batch begins with

    @property
    def keep_share(self) -> np.float32:
        """Share of the neurons that are kept."""
        return np.float32(self.keep_below / RESOLUTION)


NO_DROPOUT = Dropout(RESOLUTION, 0, 0, 0, 0)

PREFETCH_BYTES = 16 * 2**20  # of the gathered rows together, above which they are prefetched
PREFETCH_AHEAD = 16  # connections


def prefetch_distance(gathered: Float32) -> int:
    """Return how many connections ahead rows are prefetched: none where the cache holds them."""
    return PREFETCH_AHEAD if gathered.nbytes > PREFETCH_BYTES else 0


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
        """Compute a layer's activations: dropout(f(WᵀX + b)).

        Parameters
        ----------
        indptr_by_output, indices_by_output, values_by_output
            The connections in output order.
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

        self.spmm(indptr_by_output, indices_by_output, values_by_output, X, out=out)
        if state is None:
            if slope == 1:
                kernels.add_bias(out, bias)
                return
            state = np.empty((0, 0, 0), dtype=np.uint32)
        kernels.activate(
            out,
            bias,
            np.float32(slope),
            dropout.keep_share,
            np.uint32(dropout.keep_below),
            np.uint64(dropout.seed),
            dropout.step,
            dropout.layer,
            dropout.first_row,
            state,
        )

    def activate_srelu(
        self,
        Z: Float32,
        parameters: Float32,
        keep_share: np.float32,
        state: UInt32 | None,
        *,
        out: Float32,
    ) -> None:
        """Apply a trained activation to what `forward` gave with slope 1: see `srelu_kernels`."""
        from . import srelu_kernels

        state = np.empty((0, 2, 0), dtype=np.uint32) if state is None else state
        srelu_kernels.activate_srelu(Z, parameters, keep_share, state, out)

    def differentiate_srelu(
        self,
        delta: Float32,
        Z: Float32,
        parameters: Float32,
        keep_share: np.float32,
        *,
        out_bias_gradient: Float32,
        out_gradient: Float32,
        accumulate: bool,
    ) -> None:
        """Take what `backward` gave with slope 1 to dL/dz, in place, and to the gradients."""
        from . import srelu_kernels

        srelu_kernels.differentiate_srelu(
            delta, Z, parameters, keep_share, out_bias_gradient, out_gradient, accumulate
        )

    def weight_gradient(
        self,
        indptr: Int32,
        indices: Int32,
        X: Float32,
        delta: Float32,
        *,
        out: Float32,
        accumulate: bool,
    ) -> None:
        """Compute dL/dW for the connections that exist, from X and delta = dL/dz.

        Parameters
        ----------
        indptr, indices
            The connections in input order.
        X : float32 (n_in, batch)
        delta : float32 (n_out, batch)
        out : float32 (nnz,)
        accumulate : bool
            Whether to add to what `out` holds.
        """
        from . import kernels

        kernels.sddmm(indptr, indices, X, delta, prefetch_distance(delta), out, accumulate)

    def sum_rows(self, X: Float32, *, out: Float32, accumulate: bool) -> None:
        """Sum the rows of X (n, batch) into `out`, float32 (n,), or add them to what it holds."""
        from . import kernels

        kernels.sum_rows(X, out, accumulate)

    def sum_inputs(
        self, X: Float32, weights: Float32 | None, *, out: Float32, accumulate: bool
    ) -> None:
        """Sum the rows of X (n, batch) for `center_gradient`, without samples of weight 0.

        Parameters
        ----------
        X : float32 (n, batch)
        weights : float32 (batch,) or None
            A sample counts its weight, but at most 1: where a few samples have much of the weight,
            their mean is not one to centre by. None is 1 for every sample.
        out : float32 (n + 1,)
            Receives the sums, and behind them how much all samples count.
        accumulate : bool
            Whether to add to what `out` holds.
        """
        from . import kernels

        weights = np.empty(0, np.float32) if weights is None else weights
        kernels.sum_inputs(X, weights, out, accumulate)

    def center_gradient(
        self,
        indptr: Int32,
        indices: Int32,
        input_sums: Float32,
        *,
        rate_scale: float,
        bias_gradient: Float32,
        gradient: Float32,
    ) -> None:
        """Precondition a layer's gradients as if its inputs had a mean of zero, in place.

        With the mean m over the mini-batch, z = Wᵀ(x - m) + c has c = b + Wᵀm in place of the
        bias. Its gradients are G - m gᵀ and g, where G and g are those of W and b; a step along
        them changes b by c's step less that of Wᵀm.

        Parameters
        ----------
        indptr, indices
            The connections in input order.
        input_sums : float32 (n_in + 1,)
            Sums of the inputs over the mini-batch, and of its samples: see `sum_inputs`.
        rate_scale : float
            Factor of the learning rate of the weights, beside that of the bias.
        bias_gradient : float32 (n_out,)
        gradient : float32 (nnz,)
        """
        from . import kernels

        kernels.center_gradient(indptr, indices, input_sums, rate_scale, bias_gradient, gradient)

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
        """Take a layer's delta = dL/dz to its weight gradient and to the layer below's delta.

        Parameters
        ----------
        indptr, indices, values
            The connections in input order.
        X : float32 (n_in, batch)
            The activations of the layer below.
        delta : float32 (n_out, batch)
        out_gradient : float32 (nnz,)
            Receives dL/dW.
        out_delta : float32 (n_in, batch)
            Receives dL/dz of the layer below.
        slope_below, state_below, keep_share_below
            Left slope, state and share kept of the layer below.
        out_bias_gradient_below : float32 (n_in,)
            Receives the row sums of `out_delta`.
        accumulate : bool
            Whether to add to what the gradients hold.
        """
        from . import kernels

        self.weight_gradient(indptr, indices, X, delta, out=out_gradient, accumulate=accumulate)
        self.spmm(indptr, indices, values, delta, out=out_delta)
        kernels.differentiate(
            out_delta,
            np.float32(slope_below),
            keep_share_below,
            state_below,
            out_bias_gradient_below,
            accumulate,
        )

    def update(
        self,
        values: Float32,
        velocity: Float32,
        gradient: Float32,
        *,
        rate: float,
        momentum: float,
        decay: float,
        places: Int32 | None = None,
        out: Float32 | None = None,
    ) -> None:
        """Momentum SGD on flat arrays, in place (eq. 1): v = μv - ηg; w = w + v - λw.

        Parameters
        ----------
        values, velocity, gradient : float32 (n,)
        rate, momentum, decay : float
            η, μ and λ.
        places : int32 (n,), optional
            With `out`: the places of the values in another order.
        out : float32 (n,), optional
            Receives the new values in that order: out[places[k]] = values[k].
        """
        from . import kernels

        numbers = np.float32(rate), np.float32(momentum), np.float32(decay)
        if places is None:
            kernels.momentum_update(values, velocity, gradient, *numbers)
        else:
            kernels.momentum_update_reorder(values, velocity, gradient, *numbers, places, out)
