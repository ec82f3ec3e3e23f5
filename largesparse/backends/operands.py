"""What backends and kernels take: types of arrays, and the numbers that belong together."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Counts = NDArray[np.signedinteger[Any]]  # int32, or int64: see `count_dtype`
UInt32 = NDArray[np.uint32]

RESOLUTION = 1 << 16  # of the share of neurons that dropout keeps
MOST_INT32 = 2**31 - 1  # connections of a layer that int32 counts
NO_INT64 = (
    "The backend 'mkl' takes layers whose connections int32 counts, at most 2147483647 each, and "
    "a layer has more. Choose 'fused', 'scipy' or 'auto'."
)


def count_dtype(connections: int) -> type[np.int32 | np.int64]:
    """Return the dtype of what counts so many connections, or has their places: int32 or int64.

    Row pointers, the permutation between the two orders and slot maps are of it; the numbers of
    neurons are int32 in every layer.
    """
    return np.int32 if connections <= MOST_INT32 else np.int64


class Connections(NamedTuple):
    """A layer's connections as a CSR matrix: in output order or in input order."""

    indptr: Counts  # (rows + 1,)
    indices: Int32  # (nnz,)
    values: Float32  # (nnz,)


class SparseBatch(NamedTuple):
    """The nonzeros of the inputs of a mini-batch, sample by sample, in blocks of features.

    Entries of sample b in block q, features q·width <= f < (q + 1)·width, are those from
    starts[b, q] to starts[b, q + 1]; in the last block are all others, too. Where there is a
    shift, the inputs are these less the shift of their feature, which the layer's bias takes over.
    """

    starts: NDArray[np.int64]  # (batch, blocks + 1)
    features: Int32  # (entries,), ascending in every sample
    values: Float32  # (entries,)
    shift: Float32  # (n_features,), or empty


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
        keep_below, seed, step, layer, first_row = self  # quicker than `_replace`, at every step
        return Dropout(keep_below, np.uint64(seed), step, layer, first_row)


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
    nesterov: bool = False  # w = w + μv - ηg - λw


class Adam(NamedTuple):
    """The numbers of Adam as kernels take them, all float32: see `rows.adam_range`."""

    rate: np.float32
    decay: np.float32  # share that a weight loses at an update
    coupled: np.float32  # share of the weight that is added to its gradient
    keep_mean: np.float32  # β1
    to_mean: np.float32  # 1 - β1
    keep_square: np.float32  # β2
    to_square: np.float32  # 1 - β2
    epsilon: np.float32


NO_DROPOUT = Dropout(RESOLUTION, 0, 0, 0, 0).for_kernels()
NO_STATE = np.empty((0, 2, 0), dtype=np.uint32)  # stores nothing


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Return a view for kernels that only read, which a map of a file may be: one serves both."""
    view = array.view()
    view.flags.writeable = False
    return view


PREFETCH_BYTES = 16 * 2**20  # of the gathered rows together, above which they are prefetched
PREFETCH_AHEAD = 16  # connections

MANY = 4096  # outputs above which a step is not one compiled call
MOST_PARTS = 32
OUTPUTS_PER_INPUT = 2  # of a part, so that all parts take at most half of delta's memory
FEWEST_PARTS = 8  # below which it is done by input


def count_parts(n_in: int, n_out: int, batch: int) -> int:
    """Return in how many parts `backward_by_blocks` is to go; 0 where by input is faster.

    That is where all of delta would be in the cache, or where a part would not be much larger than
    the gradient of the inputs.
    """
    parts = min(MOST_PARTS, n_out // (OUTPUTS_PER_INPUT * n_in))
    is_large = n_out > MANY and 4 * n_out * batch > PREFETCH_BYTES
    return parts if parts >= FEWEST_PARTS and is_large else 0
