"""What a layer of hundreds of thousands of labels takes, and what it learns in some minutes."""

from __future__ import annotations

import argparse
import statistics
import time
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
from largesparse.data.label_sets import check_label_sets
from largesparse.estimators.label_defaults import one_scale
from largesparse.machine.sizes import parse_size
from largesparse.machine.usage import peak_rss_bytes
from largesparse.training.memory_plan import GIB
from largesparse.training.prepared import start_at_frequencies_

from . import add_common, add_figure

TOP = 5
TEN = 10  # cores of the estimate


def extreme_labels(options: argparse.Namespace) -> None:
    """Train a wide sparse layer and a sparse layer of labels for some time, and test it.

    The task is `make_extreme_classification`; by default it has Amazon-670K's shape, and the
    frequency of its most frequent label. The time is that of training steps alone; the learning
    rate falls to 0 in it, as a cosine. An epoch that ends is followed by an evolution, also of the
    output layer.
    """
    data = make_extreme_classification(
        options.rows + options.test_rows,
        options.features,
        options.labels,
        exponent=options.exponent,
        test_fraction=options.test_rows / (options.rows + options.test_rows),
        random_state=options.seed,
    )
    X, y = data.X_train, check_label_sets(data.y_train)
    config = NetworkConfig(
        (options.features, options.wide, options.labels),
        density=options.per_feature / options.wide,
        output_density=options.per_label / options.wide,
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
    trainer = Trainer(network, training)
    print(f"{data.name}: {network}, {y.counts().max() / len(y):.2%} of rows have the first label")
    seconds, trained = train(trainer, X, y, options.seconds)
    step = statistics.median(seconds)
    print(
        f"{len(seconds)} steps, {trained:,} rows; median {step:.3f} s a step, "
        f"{1e3 * step / options.batch_size:.2f} ms a row, with {options.threads} threads; "
        f"490,449 rows: {490_449 * step / options.batch_size:.0f} s"
    )
    started = time.perf_counter()
    found, _ = predict_top(network, data.X_test, TOP, threads=options.threads)
    seconds_of_test = time.perf_counter() - started
    frequent = np.argsort(-y.counts(), kind="stable")[:TOP]
    for name, labels in {
        "network": found,
        "most frequent labels": np.tile(frequent, (len(found), 1)),
    }.items():
        scores = (100 * precision_at_k(data.y_test, labels, k) for k in (1, 3, 5))
        print(f"{name:>22}: P@1, 3, 5 " + ", ".join(f"{score:.2f}" for score in scores))
    print(f"prediction {1e3 * seconds_of_test / len(found):.2f} ms a row")
    print(f"peak {peak_rss_bytes() / GIB:.2f} GiB")


def train(trainer: Trainer, X: Any, y: Any, seconds: float) -> tuple[list[float], int]:
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
    add("--exponent", type=float, default=0.5, help="of the labels' power law; default %(default)s")
    add("--wide", type=parse_size, default=4096, help="neurons; default %(default)s")
    add("--per-feature", type=float, default=32, help="connections; default %(default)s")
    add("--per-label", type=float, default=32, help="connections; default %(default)s")
    add("--batch-size", type=parse_size, default=128, help="default %(default)s")
    add("--learning-rate", type=float, default=2.0, help="default %(default)s")
    add("--dropout", type=float, default=0.0, help="default %(default)s")
    add("--seconds", type=float, default=600, help="of training; default %(default)s")
