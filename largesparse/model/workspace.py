"""The buffers of a training step or of prediction: allocated once, reused by every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from ..backends.operands import SparseBatch, count_parts
from ..data.batches import load_batch, load_sparse_batch
from ..errors import ParameterError
from ..machine.mapped_memory import Allocate, aligned_zeros
from .activations import TRAINED
from .layer import PARAMETERS, Float32, Forward, LayerArrays, SparseLayer

if TYPE_CHECKING:
    from ..backends.base import Backend
    from ..data.standardizer import Standardizer

# How activations of hidden layers and their gradients are kept; a bfloat16 is the upper half of a
# float32, which NumPy sees as uint16.
ACTIVATION_DTYPES: dict[str, type] = {"float32": np.float32, "bfloat16": np.uint16}


class Gradients:
    """Buffers for the gradients of a mini-batch.

    `by_layer` has those of each layer's parameters, by their names in `layer.PARAMETERS`, and
    `input_sums` the sums of the output layer's inputs over the mini-batch, and behind them of its
    samples: float32 (n_in + 1,), empty if the layer is not centred.
    """

    def __init__(
        self, layers: Sequence[SparseLayer], *, allocate: Allocate = aligned_zeros
    ) -> None:
        self._room: list[LayerArrays] = [
            {name: allocate(array.shape) for name, array in layer.parameters.items()}
            for layer in layers
        ]
        self.by_layer = [room.copy() for room in self._room]
        is_centered = layers[-1].config.centered
        self.input_sums: Float32 = allocate(layers[-1].n_in + 1 if is_centered else 0)

    @property
    def gradients(self) -> list[Float32]:
        """Those of every layer's weights, float32 (nnz,)."""
        return [arrays["values"] for arrays in self.by_layer]

    @property
    def bias_gradients(self) -> list[Float32]:
        """Those of every layer's biases, float32 (n_out,)."""
        return [arrays["bias"] for arrays in self.by_layer]

    def resize_(self, connections: Sequence[int]) -> None:
        """Make the gradients so long for every layer; those that are already, are kept."""
        for room, arrays, nnz in zip(self._room, self.by_layer, connections, strict=True):
            for name in arrays:
                if PARAMETERS[name].of_connections and len(arrays[name]) != nnz:
                    if len(room[name]) < nnz:
                        room[name] = aligned_zeros(nnz)
                    arrays[name] = room[name][:nnz]

    def arrays(self) -> list[Float32]:
        """Return all gradients, and the sums behind their centring."""
        return [array for arrays in self.by_layer for array in arrays.values()] + [self.input_sums]


class Workspace(Gradients):
    """Buffers for micro-batches of up to `micro_batch` samples.

    A training workspace keeps one number and two bits for every neuron and sample, one or two
    buffers for the backward pass, and the gradients; a second number where the activation's shape
    is trained or layers are normalised. A workspace for prediction has two activation buffers of
    the widest layer, which the layers use in turn.

    With `keep_every` K > 1, training keeps the activations of every K-th hidden layer. The K - 1
    layers below each of these share buffers with those of the other segments, and the backward
    pass, with two buffers of its own, computes them again, a segment at a time (Griewank and
    Walther, "Revolve", 2000).

    Inputs and outputs are float32 whatever `activation_dtype` is. `allocate_activations` gives the
    buffers that nobody needs after a gradient, by default as `allocate`. That of dense inputs is
    one of them, unless `sparse_inputs`: then `allocate_inputs` gives it when the first dense inputs
    come.
    """

    def __init__(
        self,
        layers: Sequence[Forward],
        micro_batch: int,
        *,
        training: bool = True,
        keep_every: int = 1,
        activation_dtype: str = "float32",
        sparse_inputs: bool = False,
        allocate: Allocate = aligned_zeros,
        allocate_activations: Allocate | None = None,
        allocate_inputs: Allocate = aligned_zeros,
    ) -> None:
        allocate_gradients, allocate = allocate, allocate_activations or allocate
        self.micro_batch, self.keep_every = micro_batch, keep_every
        self.activation_dtype = activation_dtype
        dtype = ACTIVATION_DTYPES[activation_dtype]
        # whose activations the shared buffers have: of layers segment·K to segment·K + K - 2
        self.segment = (len(layers) - 2) // keep_every
        self._sizes = [layer.n_out for layer in layers]
        self._n_in = layers[0].n_in
        self.sparse: SparseBatch | None = None  # the present inputs, where few are not zero
        self._inputs: Float32 | None = None
        self._allocate_inputs = allocate_inputs
        if not sparse_inputs:
            self._inputs = allocate(self._n_in * micro_batch)
        hidden = self._sizes[:-1]
        widest = max(hidden, default=0) * micro_batch
        logits = allocate(self._sizes[-1] * micro_batch)
        if not training:
            turns = [allocate(widest, dtype) for _ in range(min(2, len(hidden)))]
            self._activations = [turns[k % 2] for k in range(len(hidden))] + [logits]
            return
        trained = cast(Sequence[SparseLayer], layers)
        buffers = [
            allocate(size * micro_batch, dtype) for size in activation_buffers(hidden, keep_every)
        ]
        used = [buffer_of(k, keep_every) for k in range(len(hidden))]
        self._activations = [buffers[place] for place in used] + [logits]
        self._states = [allocate(size * 2 * _words(micro_batch), np.uint32) for size in hidden]
        self._are_written_above = are_written_above(hidden, keep_every)
        own = delta_buffers(hidden, keep_every)
        self._deltas = [allocate(size * micro_batch, dtype) for size in own]
        self._parts: Float32 | None = None  # see `parts`
        self._sums: list[Float32] = []
        self.found: list[NDArray[np.float64]] = []  # by `normalization.normalise_`, (4, n_out)
        for layer in trained:
            of = layer.config
            has_sums = of.shape_trained or of.normalised
            self._sums.append(allocate(layer.n_out * micro_batch if has_sums else 0))
            self.found.append(allocate((4, layer.n_out if of.normalised else 0), np.float64))
        super().__init__(trained, allocate=allocate_gradients)

    def load_(
        self, X: Any, rows: NDArray[np.int64], preprocessing: Standardizer | None
    ) -> SparseBatch | Float32:
        """Take rows of a data set as inputs, and return them: see `load_batch`."""
        self.sparse = None
        if issparse(X) and X.format == "csr":
            self.sparse = load_sparse_batch(X, rows, preprocessing, self._n_in)
        if self.sparse is not None:
            return self.sparse
        inputs = self.inputs(len(rows))
        load_batch(X, rows, preprocessing, out=inputs)
        return inputs

    def inputs(self, batch: int) -> Float32:
        """Return the buffer of dense inputs, float32 (n_features, batch), as the present ones."""
        self.sparse = None
        if self._inputs is None:
            self._inputs = self._allocate_inputs(self._n_in * self.micro_batch)
        return _columns(self._inputs, self._n_in, batch)

    def below(self, k: int, batch: int) -> Float32 | SparseBatch:
        """Return what layer k (0 is the first hidden one) leads from: activations, or inputs."""
        if k > 0:
            return self.activations(k - 1, batch)
        return self.inputs(batch) if self.sparse is None else self.sparse

    def activations(self, k: int, batch: int) -> Float32:
        """Return the activations of layer k (0 is the first hidden one), (n_out, batch).

        They are of `activation_dtype`; those of the output layer are float32.
        """
        return _columns(self._activations[k], self._sizes[k], batch)

    def state(self, k: int, batch: int) -> NDArray[np.uint32]:
        """Return the state bits of hidden layer k, uint32 (n_out, 2, words)."""
        words = _words(batch)
        size = self._sizes[k]
        return self._states[k][: size * 2 * words].reshape(size, 2, words)

    def sums(self, k: int, batch: int) -> Float32:
        """Return room for z of layer k, float32 (n_out, batch).

        Layers whose activation's shape is trained have it, and those that are normalised.
        """
        return _columns(self._sums[k], self._sizes[k], batch)

    def parts(self, k: int, batch: int) -> Float32 | None:
        """Return the buffer of `backward_by_blocks`, float32 (parts, n_in, batch), for layer k.

        Only an output layer of a certain shape has one, with activations in float32.
        """
        if k + 1 < len(self._sizes) or self.activation_dtype != "float32":
            return None
        n_in = self._sizes[k - 1]
        count = count_parts(n_in, self._sizes[k], batch)
        if not count:
            return None
        if self._parts is None:
            self._parts = aligned_zeros(count * n_in * self.micro_batch)
        return self._parts[: count * n_in * batch].reshape(count, n_in, batch)

    def delta(self, k: int, batch: int) -> Float32:
        """Return the buffer of dL/dz of hidden layer k, (n_out, batch), of `activation_dtype`."""
        above = self._are_written_above and k + 2 < len(self._sizes)
        buffer = self._activations[k + 1] if above else self._deltas[k % len(self._deltas)]
        return _columns(buffer, self._sizes[k], batch)


def check_activation_dtype(
    dtype: str, backend: Backend, activation: str, owner: str, normalised: bool = False
) -> None:
    """Raise a ParameterError unless a backend and an activation go with a dtype of activations.

    `normalised` says whether layers are, in a training.
    """
    if dtype not in ACTIVATION_DTYPES:
        possible = "one of " + str(sorted(ACTIVATION_DTYPES))
    elif dtype == "float32":
        return
    elif normalised:
        possible = "'float32' with batch normalisation"
    elif backend.takes_bfloat16 and activation not in TRAINED:
        return
    elif activation in TRAINED:
        possible = f"'float32' where the activation's shape is trained ({activation})"
    else:
        possible = f"'float32' with backend {backend.name!r}, or the backend 'fused'"
    raise ParameterError(
        f"The 'activation_dtype' parameter of {owner} must be {possible}. Got {dtype!r} instead."
    )


def activation_buffers(hidden: Sequence[int], keep_every: int) -> list[int]:
    """Return for every activation buffer of training the most neurons of a layer that uses it."""
    if are_written_above(hidden, keep_every):
        return _padded(hidden)
    sizes: dict[int, int] = {}
    for k, size in enumerate(hidden):
        place = buffer_of(k, keep_every)
        sizes[place] = max(size, sizes.get(place, 0))
    return [sizes[place] for place in sorted(sizes)]


def buffer_of(k: int, keep_every: int) -> int:
    """Return which buffer the activations of hidden layer k are in.

    The first `keep_every` - 1 buffers are shared, the others belong to one layer each.
    """
    segment, place = divmod(k, keep_every)
    return place if place < keep_every - 1 else place + segment


def delta_buffers(hidden: Sequence[int], keep_every: int) -> list[int]:
    """Return the neurons of the backward pass's own buffers, which layers use in turn."""
    if are_written_above(hidden, keep_every):
        return [hidden[-1]]
    return [max(hidden)] * min(2, len(hidden)) if hidden else []


def are_written_above(hidden: Sequence[int], keep_every: int) -> bool:
    """Return whether dL/dz of each hidden layer is written over the activations of the next.

    That needs buffers as large as the larger of two layers; it is done where it takes less.
    """
    if keep_every > 1 or not hidden:
        return False
    return sum(_padded(hidden)) + hidden[-1] <= sum(hidden) + min(2, len(hidden)) * max(hidden)


def _padded(hidden: Sequence[int]) -> list[int]:
    """Return the neurons of each hidden layer, or of the one below it if that is larger."""
    return [max(hidden[max(0, k - 1)], size) for k, size in enumerate(hidden)]


def _words(batch: int) -> int:
    return -(-batch // 32)


def _columns(buffer: NDArray[Any], rows: int, batch: int) -> NDArray[Any]:
    """Return the start of a flat buffer as a contiguous (rows, batch) array."""
    if rows * batch > len(buffer):
        raise ParameterError(
            f"A batch of {batch} samples does not fit the workspace, which has room for "
            f"{len(buffer) // max(1, rows)}. Split it, or make a workspace with a larger "
            "'micro_batch'."
        )
    return buffer[: rows * batch].reshape(rows, batch)
