"""Batch normalisation of hidden layers (Ioffe and Szegedy, 2015), and the weights it folds into.

z = γ (Wᵀx - m) / √(v + 1e-5) + β, where m and v are mean and variance over the micro-batch of each
neuron (a "ghost batch": Hoffer et al., 2017). β is the layer's bias, γ its `scale`. Samples count
by their weights: with shares p_b of the sum of the weights, m = Σ p_b z_b and v = Σ p_b (z_b - m)².

Each mini-batch moves the layer's `running` statistics towards its own by `RATE`: (3, n_out), sums
of means, of unbiased variances, and of ones, all of which begin at 0; so mean and variance are the
first two divided by the third. Of several micro-batches it is the mean of theirs. A micro-batch of
which but one sample counts is normalised by the running statistics, and leaves them as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..backends.operands import NO_STATE, Dropout, Float32, UInt32, read_only

if TYPE_CHECKING:
    from .layer import SparseLayer

Float64 = NDArray[np.float64]

RATE = 0.1  # of the running statistics
LEAST_SPREAD = 1e-3  # 1 - Σ p², below which a micro-batch is as one sample


class BatchShares(NamedTuple):
    """What the samples of a micro-batch count in its statistics."""

    shares: Float64  # (batch,), of the sum of their weights
    unbias: float  # factor of unbiased variances, 1 / (1 - Σ p²); 0 where one sample is all

    @classmethod
    def of(cls, weights: Float32 | None, batch: int) -> BatchShares:
        """Return those of so many samples, or of samples with weights."""
        each = np.ones(batch) if weights is None else np.asarray(weights, dtype=np.float64)
        shares = each / max(float(each.sum()), np.finfo(float).tiny)
        spread = float(shares.sum() - shares @ shares)
        return cls(shares, 1 / spread if spread > LEAST_SPREAD else 0.0)


def normalise_(
    layer: SparseLayer,
    Z: Float32,
    samples: BatchShares,
    *,
    found: Float64,
    out: Float32,
    state: UInt32 | None,
    dropout: Dropout,
) -> None:
    """Turn Z = Wᵀx, (n_out, batch), into its normalised values, and these into activations.

    `found`, float64 (4, n_out), is for `differentiate_`; the rest is as in `Backend.forward`.
    """
    from ..backends.normalization_kernels import normalise

    assert layer.scale is not None and layer.running is not None
    given = read_only(layer.running), read_only(layer.scale), read_only(layer.bias)
    slope = np.float32(layer.slope)
    bits = NO_STATE if state is None else state
    normalise(Z, samples, *given, slope, dropout.for_kernels(), found, bits, out)


def differentiate_(
    layer: SparseLayer,
    D: Float32,
    Z: Float32,
    samples: BatchShares,
    part: float,
    *,
    found: Float64,
    gradients: dict[str, Any],
    accumulate: bool,
) -> None:
    """Turn dL/dz of a layer, (n_out, batch), into the gradient of its products Wᵀx, in place.

    Z and `found` are what `normalise_` has left. `gradients` receive those of γ, and the statistics
    of the mini-batch, of which the micro-batch is so large a `part`.
    """
    from ..backends.normalization_kernels import differentiate_normalised

    assert layer.scale is not None
    given = read_only(layer.scale), found, gradients["scale"], gradients["running"]
    differentiate_normalised(D, Z, samples, part, *given, accumulate)


def gain_and_shift(parameters: dict[str, NDArray[Any]]) -> tuple[Float32, Float32]:
    """Return what weights are multiplied by, and the bias, where a layer is folded: (n_out,) each.

    z = gain·Wᵀx + shift with the running statistics; before the first update m = 0 and v = 1.
    """
    from ..backends.normalization_kernels import EPSILON

    means, variances, seen = parameters["running"].astype(np.float64)
    known = seen > 0
    seen = np.where(known, seen, 1)
    gain = parameters["scale"] / np.sqrt(np.where(known, variances / seen, 1) + EPSILON)
    shift = parameters["bias"] - gain * means / seen
    return gain.astype(np.float32), shift.astype(np.float32)


def move_(array: Float32, target: Float32, share: float) -> None:
    """Move an array so large a share of the way towards another one, in place."""
    from ..backends.normalization_kernels import move_towards

    move_towards(array.reshape(-1), target.reshape(-1), np.float32(share))
