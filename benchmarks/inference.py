"""Prediction, in one process and in several."""

from __future__ import annotations

import functools

from largesparse import Predictor
from largesparse.backends import BACKENDS

from .common import (
    BATCH_SIZE,
    COUNTS,
    MIDDLE,
    SIZES,
    THREADS,
    make_batch,
    make_network,
    only_up_to_the_middle,
    warm_up,
)

BATCHES = 8  # for several processes


@functools.cache
def make_predictor(neurons: int, backend: str) -> Predictor:
    """Return a predictor in this process; kept for its buffers."""
    network = make_network(neurons)
    return Predictor(network, threads=THREADS, batch_size=BATCH_SIZE, backend=backend)


class Inference:
    """The time to predict the labels of one batch."""

    params = (SIZES, BACKENDS)
    param_names = ("neurons", "backend")

    def setup(self, neurons, backend):
        only_up_to_the_middle(neurons, backend)
        warm_up(backend)
        self.predictor = make_predictor(neurons, backend)
        self.X = make_batch()[0]

    def time_predict(self, neurons, backend):
        self.predictor.predict(self.X)

    time_predict.pretty_name = "Prediction of a batch, time"


class Processes:
    """The time to predict the labels of 8 batches by worker processes of one thread each.

    They are started beforehand.
    """

    params = (COUNTS,)
    param_names = ("processes",)

    def setup(self, processes):
        warm_up("fused")
        self.X = make_batch(BATCHES * BATCH_SIZE)[0]
        self.predictor = Predictor(
            make_network(MIDDLE),
            processes=processes,
            threads=1,
            batch_size=BATCH_SIZE,
            backend="fused",
        )
        self.predictor.predict(self.X)

    def time_predict(self, processes):
        self.predictor.predict(self.X)

    time_predict.pretty_name = "Prediction of 8 batches by processes, time"

    def teardown(self, processes):
        self.predictor.close()
