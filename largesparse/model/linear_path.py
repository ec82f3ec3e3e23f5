"""A linear map from inputs to outputs, within a sparse network of the usual activations.

f(z) - f(-z) is (1 + s)·z, where the left slope of the activation f is s. So two neurons of every
hidden layer, which get a sum of inputs with both signs, carry it upwards exactly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, hstack, vstack

from .activations import TRAINED
from .averages import settle_
from .importance import kill_
from .layer import SparseLayer, first_moment
from .network import SparseMLP
from .topology import Topology

MOST_NEURONS = 0.5  # of a hidden layer, that linear paths may take
LEAST_SUM = 0.01  # of the slopes: what is left of z, whose rounding errors grow by its inverse
LEAST_SIZE = 1e-6  # of weights that others are made as large as


def what_is_in_the_way(network: SparseMLP, n_maps: int) -> str | None:
    """Return why a network cannot have so many linear paths; None where it can."""
    config = network.config
    if config.given:
        return "the topology of a layer is given, which it would change"
    if len(config.layer_sizes) < 3:
        return "it needs a hidden layer"
    if config.activation in TRAINED:
        return f"neurons with the activation {config.activation!r} do not add up to a linear one"
    if config.batch_norm:
        return "batch normalisation would rescale what linear paths carry"
    if any(abs(1 + layer.slope) < LEAST_SUM for layer in network.layers[:-1]):
        return "with alpha near 1, neurons are even functions"
    if 2 * n_maps > MOST_NEURONS * min(config.layer_sizes[1:-1]):
        return f"its {2 * n_maps} neurons are more than half of a hidden layer's"
    return None


def reserve_(network: SparseMLP, n_maps: int) -> None:
    """Set the neurons of so many linear paths aside: the last ones of every hidden layer.

    Until `install_` they are as pruned ones are, so that no training connects them. What the other
    neurons send to the outputs begins at 0: it is to be learned, not added to the linear paths.
    """
    dying = [np.zeros(layer.n_out, dtype=bool) for layer in network.layers[:-1]]
    for dead in dying:
        dead[-2 * n_maps :] = True
    kill_(network, dying)
    network.layers[-1].values[:] = 0
    network.layers[-1].refresh()


def install_(network: SparseMLP, weights: NDArray[np.floating], bias: NDArray[np.floating]) -> None:
    """Add X·weights + bias to what a network computes, by the neurons that `reserve_` set aside.

    Parameters
    ----------
    network : SparseMLP
        Changed in place.
    weights : (n_features, n_maps)
        A column for each output; or one, whose halves with both signs are those of two outputs.
    bias : (n_maps,)
    """
    settle_(network.layers)
    n_maps, n_outputs = weights.shape[1], network.config.layer_sizes[-1]
    each = np.eye(n_maps)
    readout = each if n_maps == n_outputs else np.array([[-0.5, 0.5]])
    both_signs = np.array([[1.0, -1.0]])
    # Weights of the size of the others', so that evolution and decay treat all alike later on.
    first = network.layers[0]
    gain = _size(first.values) / _size(weights)
    block = np.kron(gain * weights, both_signs)
    for layer in network.layers[:-1]:
        _add(layer, block)
        assert layer.dead is not None
        layer.dead = layer.dead & (np.arange(layer.n_out) < layer.n_out - 2 * n_maps)
        if not layer.dead.any():
            layer.dead = None
        carried = np.kron(each, both_signs.T / (1 + layer.slope))
        block = carried @ np.kron(each, both_signs)
    _add(network.layers[-1], carried @ readout / gain)
    network.layers[-1].bias += (bias @ readout).astype(np.float32)


def _size(values: NDArray[np.floating]) -> float:
    """Return the root mean square; 1 where that is next to 0, or there are no values."""
    size = np.sqrt(np.sum(np.square(values, dtype=np.float64)) / max(1, values.size))
    return 1.0 if size < LEAST_SIZE else float(size)


def _add(layer: SparseLayer, block: NDArray[np.floating]) -> None:
    """Give a layer the connections of a block, from its last inputs to its last neurons."""
    below = csr_array((layer.n_in - block.shape[0], block.shape[1]), dtype=np.float32)
    added = vstack([below, csr_array(block, dtype=np.float32)], format="csr")
    pattern = layer.topology.indices, layer.topology.indptr
    shape = layer.n_in, layer.n_out - block.shape[1]
    numbers = np.arange(layer.nnz, dtype=np.int64)
    old = [csr_array((array, *pattern), shape=shape) for array in (layer.values, numbers)]
    new = hstack([old[0], added], format="csr")
    is_new = csr_array((np.full(added.nnz, -1), added.indices, added.indptr), shape=added.shape)
    places = hstack([old[1], is_new], format="csr").data
    indices = new.indices.astype(np.int32, copy=False)  # where SciPy has made both arrays int64
    topology = Topology.from_input_order(layer.n_in, layer.n_out, new.indptr, indices)
    moments = {}
    for kind in layer.kinds:
        moments[kind] = first_moment(kind, new.data)
        moments[kind][places >= 0] = getattr(layer, kind)
    layer.replace(topology, new.data, moments)
