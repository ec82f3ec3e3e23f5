"""Making a network: topology in both orders, and initial weights."""

from __future__ import annotations

from largesparse import SparseMLP

from .common import SIZES, THREADS, make_network, network_config, warm_up


class Initialization:
    """The time to make a network."""

    params = (SIZES,)
    param_names = ("neurons",)

    def setup(self, neurons):
        warm_up()
        self.config = network_config(neurons)

    def time_network(self, neurons):
        SparseMLP(self.config, threads=THREADS, progress=False)


class Size:
    """How large the networks are that all benchmarks use."""

    params = (SIZES,)
    param_names = ("neurons",)

    def track_connections(self, neurons):
        return make_network(neurons).connections

    def track_bytes(self, neurons):
        return make_network(neurons).nbytes

    track_connections.unit = "connections"
    track_bytes.unit = "bytes"
