"""Deep sparse networks of the shape of RadiX-Net, and inference as the Sparse DNN challenge asks.

The MIT/IEEE/Amazon Sparse Deep Neural Network Graph Challenge (Kepner et al., 2019) multiplies
60,000 sparse rows of inputs by 120 to 1920 layers of 1024 to 65,536 neurons, each of which has 32
connections of weight 1/16 in and out. After every layer a bias is added, and what is below 0 or
above 32 is cut off. The result is which rows are not zero at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from ..backends import get_backend
from ..backends.operands import Connections
from ..errors import ParameterError, check_range
from ..machine.threads import kernel_threads, resolve_threads
from ..model.layer import Float32

FAN_IN = 32
WEIGHT = 1 / 16
CEILING = 32.0
BIASES = {1024: -0.3, 4096: -0.35, 16384: -0.4, 65536: -0.45}
DENSITY = 0.1  # of the challenge's inputs: 0.101 to 0.104
BLOCK_FLOATS = 2**26  # of rows that are dense at a time: 256 MiB


@dataclass(frozen=True)
class RadixNet:
    """Layers of equal size with one bias for all neurons."""

    neurons: int
    bias: float
    layers: list[Connections]

    @property
    def connections(self) -> int:
        """Number of connections of all layers."""
        return sum(len(layer.indices) for layer in self.layers)


class Inference(NamedTuple):
    """What an inference found, and how much it computed."""

    rows: NDArray[np.int64]  # that are not zero at the end, ascending
    edges: int  # connections times rows that were computed: dead rows are skipped


def radix_net(neurons: int, n_layers: int, *, bias: float | None = None) -> RadixNet:
    """Return a network in O(connections).

    Neuron j of a layer takes its inputs from j + d·s (mod neurons), d = 0 … 31, where s is 1, 32,
    32², … up to neurons / 32, a layer each, in turn. So after ⌈log₃₂(neurons)⌉ layers every input
    reaches every neuron by equally many paths, as in RadiX-Net.

    Parameters
    ----------
    neurons : int
        Of every layer, a power of two from 1024 to 2²⁰.
    n_layers : int
    bias : float, optional
        Default: the challenge's, -0.3 for 1024 to -0.45 for 65,536 neurons.

    Raises
    ------
    ParameterError
        Where a value is out of range, or where there is no default for the bias.
    """
    check_range("neurons", neurons, "radix_net", low=1024, high=2**20, integer=True)
    check_range("n_layers", n_layers, "radix_net", low=1, integer=True)
    if neurons & (neurons - 1):
        raise ParameterError(
            f"The 'neurons' parameter of radix_net must be a power of two. Got {neurons} instead."
        )
    if bias is None and neurons not in BIASES:
        raise ParameterError(
            f"The challenge has no bias for {neurons} neurons, only for {sorted(BIASES)}. "
            "Give the 'bias' parameter of radix_net."
        )
    strides = sorted({min(FAN_IN**k, neurons // FAN_IN) for k in range(4) if FAN_IN**k < neurons})
    layers = [_butterfly(neurons, strides[k % len(strides)]) for k in range(n_layers)]
    return RadixNet(neurons, BIASES[neurons] if bias is None else float(bias), layers)


def _butterfly(neurons: int, stride: int) -> Connections:
    columns = np.arange(neurons, dtype=np.int32)[:, None] + stride * np.arange(
        FAN_IN, dtype=np.int32
    )
    columns %= neurons
    columns.sort(axis=1)
    indptr = np.arange(0, FAN_IN * neurons + 1, FAN_IN, dtype=np.int32)
    return Connections(indptr, columns.ravel(), np.full(columns.size, WEIGHT, dtype=np.float32))


def generated_inputs(neurons: int, rows: int, *, seed: int = 0) -> csr_array:
    """Return sparse rows of ones, made up: strokes, as a picture that is read by lines has.

    A row's density is drawn from a log-normal distribution with mean 0.1, as the challenge's inputs
    have, and a standard deviation of 1 in the logarithm, cut at 0.6. The set places come in runs of
    4 to 32. So most rows die out within some layers and a few stay, as in the challenge.

    Returns
    -------
    csr_array of float32, shape (rows, neurons)
    """
    rng = np.random.default_rng(seed)
    length = 18  # the mean of a run
    densities = np.minimum(DENSITY * rng.lognormal(-0.5, 1, rows), 0.6)
    counts = (densities * neurons / length).astype(np.int64) + 1
    owners = np.repeat(np.arange(rows), counts)
    lengths = rng.integers(4, 33, len(owners))
    starts = rng.integers(0, neurons, len(owners))
    places = np.repeat(starts, lengths)
    places += np.arange(len(places)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    columns = np.minimum(places, neurons - 1).astype(np.int32)
    ones = np.ones(len(columns), dtype=np.float32)
    X = csr_array((ones, (np.repeat(owners, lengths), columns)), shape=(rows, neurons))
    X.data[:] = 1  # runs that overlap add up
    return X


def infer(
    network: RadixNet, X: csr_array, *, batch_size: int = 64, threads: int | None = None
) -> Inference:
    """Return which rows are not zero after all layers, computed by the backend `fused`.

    Rows that have become zero stay zero, because the bias is negative. They are dropped after 2,
    4, 8, 16, … layers, and the others close up, so that batches remain full.

    Parameters
    ----------
    network : RadixNet
    X : csr_array of float32, shape (rows, neurons)
    batch_size : int
        Rows that go through some layers together.
    threads : int, optional
        Default: all cores.
    """
    check_range("batch_size", batch_size, "infer", low=1, integer=True)
    if X.shape[1] != network.neurons:
        raise ParameterError(
            f"The 'X' parameter of infer has {X.shape[1]} columns, and the network has "
            f"{network.neurons} neurons. They must be as many."
        )
    bias = np.full(network.neurons, network.bias, dtype=np.float32)
    buffers = np.empty((2, network.neurons * batch_size), dtype=np.float32)
    block = max(batch_size, BLOCK_FLOATS // network.neurons)
    found, edges = [np.empty(0, dtype=np.int64)], 0
    with kernel_threads(resolve_threads(threads, "infer")):
        for start in range(0, X.shape[0], block):
            Y = np.ascontiguousarray(X[start : start + block].toarray().T)
            rows = np.arange(start, start + Y.shape[1])
            for layers in _segments(network.layers):
                edges += sum(len(layer.indices) for layer in layers) * len(rows)
                rows = rows[_pass(layers, Y[:, : len(rows)], bias, buffers, batch_size)]
            found.append(rows)
    return Inference(np.concatenate(found), edges)


def _segments(layers: Sequence[Connections]) -> Iterator[Sequence[Connections]]:
    """Yield the layers up to the 2nd, then up to the 4th, the 8th, and so on."""
    start, stop = 0, 2
    while start < len(layers):
        yield layers[start:stop]
        start, stop = stop, 2 * stop


def _pass(
    layers: Sequence[Connections], Y: Float32, bias: Float32, buffers: Float32, batch_size: int
) -> NDArray[np.bool_]:
    """Compute some layers for the columns of Y, in place; return which of them are not zero.

    Those are the first columns of Y afterwards.
    """
    backend = get_backend("fused")
    n, columns = Y.shape
    alive = np.zeros(columns, dtype=bool)
    place = 0
    for start in range(0, columns, batch_size):
        width = min(batch_size, columns - start)
        source, target = buffers[:, : n * width].reshape(2, n, width)
        source[:] = Y[:, start : start + width]
        for layer in layers:
            backend.forward(layer, bias, source, slope=0.0, out=target)
            np.minimum(target, CEILING, out=target)
            source, target = target, source
        left = source.any(axis=0)
        count = int(np.count_nonzero(left))
        Y[:, place : place + count] = source[:, left]
        alive[start : start + width] = left
        place += count
    return alive
