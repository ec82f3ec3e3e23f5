"""One training step: forward with dropout, loss, backward, update."""

from __future__ import annotations

import functools

from largesparse import Trainer, TrainingConfig
from largesparse.backends import BACKENDS

from .common import BATCH_SIZE, SIZES, THREADS, make_batch, make_network, warm_up


@functools.cache
def make_trainer(neurons: int, backend: str) -> Trainer:
    """Return the trainer with the paper's section 2.4 settings; kept for its buffers."""
    config = TrainingConfig(
        batch_size=BATCH_SIZE, learning_rate=0.01, dropout=0.4, backend=backend, threads=THREADS
    )
    return Trainer(make_network(neurons), config)


class Step:
    """The time of a step on one mini-batch."""

    params = (SIZES, BACKENDS)
    param_names = ("neurons", "backend")

    def setup(self, neurons, backend):
        warm_up(backend)
        self.trainer = make_trainer(neurons, backend)
        self.batch = make_batch()

    def time_step(self, neurons, backend):
        self.trainer.step(*self.batch)
