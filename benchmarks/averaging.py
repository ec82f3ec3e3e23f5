"""The average of replicas that evolved apart (eq. 2)."""

from __future__ import annotations

import functools

import numpy as np

from largesparse import SparseMLP

from .common import SIZES, THREADS, find, network_config, warm_up

evolve = find("model.evolution.evolve")
average_layers, LayerArrays = (
    find(f"parallel.wasap.averaging.{name}", f"parallel.averaging.{name}")
    for name in ("average_layers", "LayerArrays")
)

REPLICAS = 3
ZETA = 0.3


@functools.cache
def make_replicas(neurons: int) -> tuple[int, list]:
    """Return replicas of the layer between the first two hidden layers, each evolved by itself."""
    layer = SparseMLP(network_config(neurons), threads=THREADS, progress=False).layers[1]
    replicas = []
    for replica in range(REPLICAS):
        evolve(layer, ZETA, np.random.default_rng(replica))
        topology = layer.topology
        arrays = {"indptr": topology.indptr, "indices": topology.indices}
        arrays |= {"values": layer.values.copy(), "bias": layer.bias.copy()}
        replicas.append(LayerArrays(**arrays))
    return layer.n_out, replicas


class Averaging:
    """The time to average 3 replicas of one layer."""

    params = (SIZES,)
    param_names = ("neurons",)

    def setup(self, neurons):
        warm_up()
        self.n_out, self.replicas = make_replicas(neurons)
        average_layers(*make_replicas(SIZES[0]))  # its kernels are compiled

    def time_average_layers(self, neurons):
        average_layers(self.n_out, self.replicas)

    time_average_layers.pretty_name = "Average of 3 replicas of a layer, time"
