"""One training step: forward with dropout, loss, backward, update. An epoch is so many of them."""

from __future__ import annotations

import functools

import numpy as np

from largesparse import Trainer, TrainingConfig
from largesparse.backends import BACKENDS

from .common import (
    BATCH_SIZE,
    COUNTS,
    MIDDLE,
    SIZES,
    THREADS,
    beside_scipy,
    find,
    in_fresh_process,
    make_batch,
    make_network,
    only_up_to_the_middle,
    peak_rss_bytes,
    warm_up,
)

seconds_of = find("backends.limits.seconds_of")


@functools.cache
def make_trainer(
    neurons: int,
    backend: str = "fused",
    *,
    batch_size: int = BATCH_SIZE,
    epsilon: float | None = None,
    threads: int = THREADS,
) -> Trainer:
    """Return the trainer with the paper's section 2.4 settings; kept for its buffers."""
    config = TrainingConfig(
        batch_size=batch_size, learning_rate=0.01, dropout=0.4, backend=backend, threads=threads
    )
    return Trainer(make_network(neurons, epsilon), config)


class Step:
    """The time of a step on one mini-batch."""

    params = (SIZES, BACKENDS)
    param_names = ("neurons", "backend")

    def setup(self, neurons, backend):
        only_up_to_the_middle(neurons, backend)
        warm_up(backend)
        self.trainer = make_trainer(neurons, backend)
        self.batch = make_batch()

    def time_step(self, neurons, backend):
        self.trainer.step(*self.batch)

    time_step.pretty_name = "Training step, time"


class Density:
    """The time of a step at another ε."""

    params = ((1, 20),)
    param_names = ("epsilon",)

    def setup(self, epsilon):
        warm_up("fused")
        self.trainer = make_trainer(MIDDLE, epsilon=epsilon)
        self.batch = make_batch()

    def time_step(self, epsilon):
        self.trainer.step(*self.batch)

    time_step.pretty_name = "Training step by ε, time"


class Batch:
    """The time of a step on a mini-batch of another size."""

    params = ((32, 512),)
    param_names = ("batch_size",)

    def setup(self, batch_size):
        warm_up("fused")
        self.trainer = make_trainer(MIDDLE, batch_size=batch_size)
        self.batch = make_batch(batch_size)

    def time_step(self, batch_size):
        self.trainer.step(*self.batch)

    time_step.pretty_name = "Training step by size of the mini-batch, time"


class Threads:
    """The time of a step by several threads."""

    params = (COUNTS,)
    param_names = ("threads",)

    def track_step(self, threads):
        return in_fresh_process(seconds_of_a_step, MIDDLE, threads)

    track_step.unit = "s"
    track_step.pretty_name = "Training step by threads, strong scaling"


class WeakThreads:
    """Samples a second where every thread has as many: a mini-batch of 128 for each."""

    params = (COUNTS,)
    param_names = ("threads",)

    def track_rate(self, threads):
        return in_fresh_process(samples_a_second, MIDDLE, threads)

    track_rate.unit = "samples/s"
    track_rate.pretty_name = "Training by threads, weak scaling"


def seconds_of_a_step(neurons: int) -> float:
    """Return the median of 3 steps."""
    warm_up("fused")
    trainer, batch = make_trainer(neurons), make_batch()
    return seconds_of(lambda: trainer.step(*batch), repeats=3)


def samples_a_second(neurons: int) -> float:
    """Return the rate of 5 steps with 128 samples for every thread."""
    warm_up("fused")
    rows = THREADS * BATCH_SIZE
    trainer, batch = make_trainer(neurons, batch_size=rows), make_batch(rows)
    return rows / seconds_of(lambda: trainer.step(*batch), repeats=5)


class Relative:
    """The time of a step over that of a product by SciPy, in turns.

    A core that becomes slower for minutes, because of a neighbour or of its clock, slows both. So
    two commits can be told apart on a machine where their times alone cannot.
    """

    params = (SIZES[:1],)
    param_names = ("neurons",)

    def track_step(self, neurons):
        warm_up("fused")
        trainer, batch = make_trainer(neurons), make_batch()
        layer = trainer.network.layers[1]
        step, product = beside_scipy(lambda: trainer.step(*batch), layer)
        return float(np.median(step / product))

    track_step.unit = "x SciPy's product"
    track_step.pretty_name = "Training step over SciPy's product"


class Rate:
    """Connections times samples in a second of training, and the memory that it takes."""

    params = (SIZES,)
    param_names = ("neurons",)

    def setup_cache(self):
        return {neurons: in_fresh_process(rate_and_peak, neurons) for neurons in SIZES}

    def track_rate(self, measured, neurons):
        return measured[neurons]["rate"]

    def track_peak_bytes(self, measured, neurons):
        return measured[neurons]["peak_bytes"]

    track_rate.unit = "connections x samples/s"
    track_rate.pretty_name = "Training, connections × samples a second"
    track_peak_bytes.unit = "bytes"
    track_peak_bytes.pretty_name = "Training, peak memory"


def rate_and_peak(neurons: int) -> dict[str, float]:
    """Return connections times samples in a second, and the most bytes that the process had.

    The rate is that of the median of 3 steps, of 1 if it is long; one before it is not timed.
    """
    warm_up("fused")
    trainer, batch = make_trainer(neurons), make_batch()
    repeats = 3 if neurons <= MIDDLE else 1
    seconds = seconds_of(lambda: trainer.step(*batch), repeats)
    rate = trainer.network.connections * BATCH_SIZE / seconds
    return {"rate": rate, "peak_bytes": peak_rss_bytes()}
