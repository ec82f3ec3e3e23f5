"""A product beside what the machine can do at best: measured in one process, alternating."""

from __future__ import annotations

import statistics

import numpy as np

from largesparse import limits
from largesparse.backends import get_backend
from largesparse.threads import kernel_threads

from .common import BATCH_SIZE, LARGEST, MIDDLE, THREADS, make_network, warm_up

REPEATS = 5


class Product:
    """The forward product of the layer between the first two hidden layers, backend fused.

    Its limit is the time to read the rows of the input that it gathers and to write its outputs,
    in the same order and without any arithmetic.
    """

    params = (tuple(sorted({MIDDLE, LARGEST})),)
    param_names = ("neurons",)

    def setup(self, neurons):
        warm_up("fused")
        layer = make_network(neurons).layers[1]
        X = np.ones((layer.n_in, BATCH_SIZE), dtype=np.float32)
        out = np.empty((layer.n_out, BATCH_SIZE), dtype=np.float32)
        topology = layer.topology
        connections = topology.indptr_by_output, topology.indices_by_output
        backend = get_backend("fused")
        distance = limits.best_distance(*connections, X, out)
        self.nnz, self.n_out = layer.nnz, layer.n_out
        operands = *connections, layer.values_by_output, layer.bias, X
        self.product = lambda: backend.forward(*operands, slope=layer.slope, out=out)
        self.limit = lambda: limits.gather(*connections, X, distance, out)

    def track_gigaflops(self, neurons):
        return 2 * self.nnz * BATCH_SIZE / self.seconds()[0] / 1e9

    def track_gigabytes(self, neurons):
        return 4 * (self.nnz + self.n_out) * BATCH_SIZE / self.seconds()[0] / 1e9

    def track_share_of_the_limit(self, neurons):
        product, limit = self.seconds()
        return 100 * limit / product

    track_gigaflops.unit = "GFLOP/s"
    track_gigabytes.unit = "GB/s"
    track_share_of_the_limit.unit = "%"

    def seconds(self) -> tuple[float, float]:
        """Return the seconds of the product and of its limit."""
        with kernel_threads(THREADS):
            rounds = [
                (limits.seconds_of(self.product, 1), limits.seconds_of(self.limit, 1))
                for _ in range(REPEATS)
            ]
        products, bounds = zip(*rounds, strict=True)
        return statistics.median(products), statistics.median(bounds)


class Machine:
    """What this machine can do at best: the roofs of a roofline."""

    def track_bandwidth(self):
        warm_up("fused")
        return limits.sequential_bandwidth(THREADS) / 1e9

    def track_arithmetic(self):
        return limits.arithmetic_peak(THREADS) / 1e9

    track_bandwidth.unit = "GB/s"
    track_arithmetic.unit = "GFLOP/s"
