"""A product beside what the machine can do at best: measured in one process, alternating."""

from __future__ import annotations

import functools
import math
import statistics
from timeit import timeit

import numpy as np

from largesparse.backends import get_backend

from .common import BATCH_SIZE, SOME, THREADS, find, make_network, warm_up

try:
    Connections = find("backends.operands.Connections", "backends.base.Connections")
except ImportError:  # an older commit, whose backends take the arrays one by one
    Connections = None
PREFETCH_BYTES = find("backends.operands.PREFETCH_BYTES", "backends.base.PREFETCH_BYTES")
kernel_threads = find("machine.threads.kernel_threads")
best_distance, gather = find("backends.limits.best_distance"), find("backends.limits.gather")
sequential_bandwidth = find("backends.limits.sequential_bandwidth")
arithmetic_peak = find("backends.limits.arithmetic_peak")

REPEATS = 5


class Product:
    """The forward product of the layer between the first two hidden layers, backend fused.

    Its limit is the time to read the rows of the input that it gathers from memory, in the same
    order and without any arithmetic. Rows that lie in a cache bound nothing: at 10,000 neurons
    the reading alone took between 0.5 and 1.5 of the product's time, by where the rows lay and what
    the core did besides. So no share is told there; elsewhere it is the median over pairs of calls,
    which the machine's state changes alike.
    """

    params = (SOME,)
    param_names = ("neurons",)

    def setup_cache(self):
        warm_up("fused")
        return {neurons: self.measure(neurons) for neurons in SOME}

    def track_gigaflops(self, measured, neurons):
        return measured[neurons]["gigaflops"]

    def track_gigabytes(self, measured, neurons):
        return measured[neurons]["gigabytes"]

    def track_share_of_the_limit(self, measured, neurons):
        return measured[neurons]["share_of_the_limit"]

    track_gigaflops.unit = "GFLOP/s"
    track_gigaflops.pretty_name = "Product of a layer, arithmetic"
    track_gigabytes.unit = "GB/s"
    track_gigabytes.pretty_name = "Product of a layer, bandwidth"
    track_share_of_the_limit.unit = "%"
    track_share_of_the_limit.pretty_name = "Product of a layer, share of the machine's limit"

    def measure(self, neurons: int) -> dict[str, float]:
        """Return the three figures of one size."""
        layer = make_network(neurons).layers[1]
        X = np.ones((layer.n_in, BATCH_SIZE), dtype=np.float32)
        out = np.empty((layer.n_out, BATCH_SIZE), dtype=np.float32)
        topology = layer.topology
        connections = topology.indptr_by_output, topology.indices_by_output
        backend = get_backend("fused")
        distance = best_distance(*connections, X)
        matrix = *connections, layer.values_by_output
        operands = *((Connections(*matrix),) if Connections else matrix), layer.bias, X
        forward = functools.partial(backend.forward, *operands, slope=layer.slope, out=out)
        reading = functools.partial(gather, *connections, X, distance)
        forward()
        with kernel_threads(THREADS):
            rounds = [
                (timeit(forward, number=1), timeit(reading, number=1)) for _ in range(REPEATS)
            ]
        far = X.nbytes > PREFETCH_BYTES  # as the backend sees it
        product = statistics.median(product for product, _ in rounds)
        share = statistics.median(limit / product for product, limit in rounds)
        return {
            "gigaflops": 2 * layer.nnz * BATCH_SIZE / product / 1e9,
            "gigabytes": 4 * (layer.nnz + layer.n_out) * BATCH_SIZE / product / 1e9,
            "share_of_the_limit": 100 * share if far else math.nan,
        }


class Machine:
    """What this machine can do at best: the roofs of a roofline."""

    def track_bandwidth(self):
        warm_up("fused")
        return sequential_bandwidth(THREADS) / 1e9

    def track_arithmetic(self):
        return arithmetic_peak(THREADS) / 1e9

    track_bandwidth.unit = "GB/s"
    track_bandwidth.pretty_name = "Machine, bandwidth of memory"
    track_arithmetic.unit = "GFLOP/s"
    track_arithmetic.pretty_name = "Machine, peak of arithmetic"
