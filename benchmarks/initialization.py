"""Making a network: topology in both orders, and initial weights."""

from __future__ import annotations

from largesparse import SparseMLP

from .common import (
    SIZES,
    THREADS,
    find,
    in_fresh_process,
    make_network,
    network_config,
    peak_rss_bytes,
    warm_up,
)

start_peak_rss = find("machine.usage.start_peak_rss", "records.start_peak_rss")


class Initialization:
    """The time to make a network."""

    params = (SIZES,)
    param_names = ("neurons",)

    def setup(self, neurons):
        warm_up()
        self.config = network_config(neurons)

    def time_network(self, neurons):
        SparseMLP(self.config, threads=THREADS, progress=False)

    time_network.pretty_name = "Making a network, time"


class Size:
    """How large the networks are that all benchmarks use, and the memory to make them."""

    params = (SIZES,)
    param_names = ("neurons",)

    def setup_cache(self):
        return {neurons: in_fresh_process(connections_and_peak, neurons) for neurons in SIZES}

    def track_connections(self, made, neurons):
        return made[neurons]["connections"]

    def track_peak_bytes(self, made, neurons):
        return made[neurons]["peak_bytes"]

    track_connections.unit = "connections"
    track_connections.pretty_name = "Size of a network"
    track_peak_bytes.unit = "bytes"
    track_peak_bytes.pretty_name = "Making a network, peak memory"


def connections_and_peak(neurons: int) -> dict[str, int]:
    """Return what a network has, and the most bytes that making it adds to a warm process."""
    warm_up()
    start_peak_rss()
    before = peak_rss_bytes()
    connections = make_network(neurons).connections
    return {"connections": connections, "peak_bytes": peak_rss_bytes() - before}
