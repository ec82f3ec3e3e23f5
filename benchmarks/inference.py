"""Prediction of one batch in one process."""

from __future__ import annotations

import functools

from largesparse import Predictor
from largesparse.backends import BACKENDS

from .common import BATCH_SIZE, SIZES, THREADS, make_batch, make_network, warm_up


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
        warm_up(backend)
        self.predictor = make_predictor(neurons, backend)
        self.X = make_batch()[0]

    def time_predict(self, neurons, backend):
        self.predictor.predict(self.X)
