"""Making a network: topology in both orders, and initial weights."""

from __future__ import annotations

from largesparse import SparseMLP
from largesparse.records import peak_rss_bytes, start_peak_rss

from .common import SIZES, THREADS, in_fresh_process, make_network, network_config, warm_up


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
    """How large the networks are that all benchmarks use, and the memory to make them."""

    params = (SIZES,)
    param_names = ("neurons",)

    def track_connections(self, neurons):
        return make_network(neurons).connections

    def track_peak_bytes(self, neurons):
        return in_fresh_process(peak_of_making, neurons)

    track_connections.unit = "connections"
    track_peak_bytes.unit = "bytes"


def peak_of_making(neurons: int) -> int:
    """Return the most bytes that making a network adds to a process that is warm."""
    warm_up()
    start_peak_rss()
    before = peak_rss_bytes()
    make_network(neurons)
    return peak_rss_bytes() - before
