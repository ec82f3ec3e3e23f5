"""What a layer of hundreds of thousands of labels takes, and what it learns in some minutes."""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from typing import Any

import numpy as np

from largesparse import (
    NetworkConfig,
    SparseMLP,
    Trainer,
    TrainingConfig,
    make_extreme_classification,
    precision_at_k,
    predict_top,
)
from largesparse.data.label_sets import LabelSets, check_label_sets
from largesparse.estimators.label_defaults import one_scale
from largesparse.harness.uncertainty import ratio_of
from largesparse.machine.sizes import parse_size
from largesparse.machine.usage import peak_rss_bytes
from largesparse.training.memory_plan import GIB
from largesparse.training.prepared import start_at_frequencies_

from . import add_common, add_figure, seconds_in_turns

TOP = 5
CORES = 10  # of the estimate
EPOCH = 490_449  # rows of Amazon-670K to train on


def extreme_labels(options: argparse.Namespace) -> None:
    """Train a wide sparse layer and a sparse layer of labels for some time, and test it.

    The task is `make_extreme_classification`, by default of Amazon-670K's shape. The time is that
    of training steps alone; the learning rate falls to 0 in it, as a cosine. An epoch that ends is
    followed by an evolution, also of the output layer. What ten cores would need is Amdahl's law on
    steps with one and with all threads, in turns: an estimate, and none on a busy machine.
    """
    n_rows = options.rows + options.test_rows
    data = make_extreme_classification(
        n_rows,
        options.features,
        options.labels,
        exponent=options.exponent,
        test_fraction=options.test_rows / n_rows,
        random_state=options.seed,
    )
    X, y = data.X_train, check_label_sets(data.y_train)
    trainer = trainer_of(options, X, y)
    print(f"{data.name}: {trainer.network}", flush=True)
    seconds, trained = train(trainer, X, y, options.seconds)
    size = trainer.config.batch_size
    print(f"{len(seconds)} steps timed, {trained:,} rows; with {trainer.threads} threads:")
    print_speed(statistics.median(seconds), size)
    started = time.perf_counter()
    found, _ = predict_top(trainer.network, data.X_test, TOP, threads=options.threads)
    predicted = time.perf_counter() - started
    frequent = np.argsort(-y.counts(), kind="stable")[:TOP]
    answers = {"network": found, "most frequent labels": np.tile(frequent, (len(found), 1))}
    for name, labels in answers.items():
        scores = (100 * precision_at_k(data.y_test, labels, k) for k in (1, 3, 5))
        print(f"{name:>22}: P@1, 3, 5 " + ", ".join(f"{score:.2f}" for score in scores))
    print(f"prediction, with loading kernels: {1e3 * predicted / len(found):.2f} ms a row")
    print(f"peak {peak_rss_bytes() / GIB:.2f} GiB")
    estimate(trainer, X, y)


def trainer_of(options: argparse.Namespace, X: Any, y: LabelSets) -> Trainer:
    """Return the trainer of a new network for the rows."""
    config = NetworkConfig(
        (options.features, options.wide, options.labels),
        density=min(1.0, options.per_feature / options.wide),
        output_density=min(1.0, options.per_label / options.wide),
        output_minimum=4,
        activation="relu",
        recipe="width",
        loss="binary_cross_entropy",
        seed=options.seed,
    )
    network = SparseMLP(config, threads=options.threads)
    network.preprocessing = one_scale(X)
    start_at_frequencies_(network, y, np.arange(len(y)))
    training = TrainingConfig(
        epochs=1,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        schedule="cosine",
        warmup_epochs=0.05,
        dropout=options.dropout,
        weight_decay=0.0,
        evolve_output=True,
        backend=options.backend,
        threads=options.threads,
        seed=options.seed,
    )
    return Trainer(network, training)


def print_speed(step: float, size: int) -> None:
    """Print what a step takes a row, and an epoch of Amazon-670K."""
    row = step / size
    print(
        f"  {step:.3f} s a step, {1e3 * row:.2f} ms a row, {EPOCH * row:.0f} s for {EPOCH:,} rows"
    )


def estimate(trainer: Trainer, X: Any, y: LabelSets) -> None:
    """Print what steps would take on ten cores, by what one thread and all of them take."""
    threads, size = trainer.threads, trainer.config.batch_size
    if threads == 1:
        return

    def step(count: int) -> None:
        trainer.threads = count
        trainer.step(X, y, np.arange(size), progress=1)  # at a rate of 0

    turns = {count: partial(step, count) for count in (1, threads)}
    times = seconds_in_turns(turns, 3, warm_ups=1)
    trainer.threads = threads
    alone = statistics.median(times[1])
    ratio = ratio_of(times[threads], times[1]).value
    shared = min(1.0, max(0.0, (1 - ratio) / (1 - 1 / threads)))
    print(f"one thread: {alone:.3f} s a step, {shared:.0%} of it in parallel")
    print(f"estimate for {CORES} such cores:")
    print_speed(alone * (1 - shared + shared / CORES), size)


def train(trainer: Trainer, X: Any, y: LabelSets, seconds: float) -> tuple[list[float], int]:
    """Train for so many seconds; return the seconds of all steps but the first, and the rows."""
    rng = np.random.default_rng(trainer.config.seed)
    size, used, taken, trained, shown = trainer.config.batch_size, 0.0, [], 0, 0.0
    while used < seconds:
        order = rng.permutation(len(y))
        for first in range(0, len(y) - size + 1, size):
            started = time.perf_counter()
            loss = trainer.step(X, y, order[first : first + size], progress=used / seconds)
            taken.append(time.perf_counter() - started)
            trained += size
            used += taken[-1] if len(taken) > 1 else 0  # the first one loads kernels
            if used >= shown:
                print(f"{used:5.0f} s: {trained:,} rows, loss {loss:.2f}", flush=True)
                shown += seconds / 10
            if used >= seconds:
                break
        else:
            started = time.perf_counter()
            trainer.evolve(keep_maps=False)
            trainer.epoch += 1
            print(f"evolution {time.perf_counter() - started:.1f} s", flush=True)
    return taken[1:], trained


def add_figures(figures: Any) -> None:
    """Add extreme_labels."""
    figure = add_figure(figures, "extreme_labels", extreme_labels)
    add_common(figure, "fused")
    add = figure.add_argument
    add("--rows", type=parse_size, default=100_000, help="to train on; default %(default)s")
    add("--test-rows", type=parse_size, default=2_000, help="default %(default)s")
    add("--features", type=parse_size, default=135_909, help="default %(default)s")
    add("--labels", type=parse_size, default=670_091, help="default %(default)s")
    add(
        "--exponent", type=float, default=0.75, help="of the labels' power law; default %(default)s"
    )
    add("--wide", type=parse_size, default=4096, help="neurons; default %(default)s")
    add("--per-feature", type=float, default=256, help="connections; default %(default)s")
    add("--per-label", type=float, default=32, help="connections; default %(default)s")
    add("--batch-size", type=parse_size, default=128, help="default %(default)s")
    add("--learning-rate", type=float, default=5.0, help="default %(default)s")
    add("--dropout", type=float, default=0.0, help="default %(default)s")
    add("--seconds", type=float, default=600, help="of training; default %(default)s")
