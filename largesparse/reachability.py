"""Which neurons take part: those on a path of connections from an input to an output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .network import SparseMLP


def active_neurons(network: SparseMLP) -> list[int]:
    """Return how many neurons of every hidden layer are on a path from an input to an output.

    The others cannot matter: without a path from an input a neuron's output is a constant, and
    without a path to an output nothing depends on it. In layers of equal width at ε 1 every
    seventh neuron has no connection that leads to it, and as many have none that leaves.

    One sweep goes up the layers and one down: O(connections) time, a byte a hidden neuron.

    Parameters
    ----------
    network : SparseMLP
        Weights do not matter, zeros count as connections.

    Returns
    -------
    counts : list of int
        The first hidden layer first.

    Examples
    --------
    >>> from largesparse import NetworkConfig, SparseMLP
    >>> sizes = 100, 500, 500, 2
    >>> active_neurons(SparseMLP(NetworkConfig(sizes, epsilon=1, coverage="full")))
    [500, 500]
    >>> sum(active_neurons(SparseMLP(NetworkConfig(sizes, epsilon=1)))) < 700
    True
    """
    from .backends.coverage_kernels import mark_reaching

    topologies = [layer.topology for layer in network.layers]
    fed = [np.ones(topologies[0].n_in, dtype=bool)]  # whether a path from an input leads there
    for topology in topologies[:-1]:
        fed.append(np.empty(topology.n_out, dtype=bool))
        mark_reaching(topology.indptr_by_output, topology.indices_by_output, *fed[-2:])
    counts = []
    active = np.ones(topologies[-1].n_out, dtype=bool)
    for topology in reversed(topologies[1:]):
        reaching = np.empty(topology.n_in, dtype=bool)
        mark_reaching(topology.indptr, topology.indices, active, reaching)
        active = reaching & fed.pop()
        counts.append(int(np.count_nonzero(active)))
    return counts[::-1]
