"""What networks take, made, compacted, pruned and predicted with."""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import psutil

from largesparse import (
    NetworkConfig,
    Predictor,
    SparseMLP,
    Trainer,
    TrainingConfig,
    active_neurons,
    load_dataset,
)
from largesparse.backends import get_backend
from largesparse.data.batches import load_batch
from largesparse.harness.presets import hidden_sizes, nearest_row
from largesparse.harness.uncertainty import ratio_of
from largesparse.machine.sizes import parse_size
from largesparse.machine.usage import peak_rss_bytes, start_peak_rss
from largesparse.model.config import COVERAGE
from largesparse.model.evolution import evolve
from largesparse.model.importance import compact, prune_neurons
from largesparse.model.initializers import uniform
from largesparse.model.layer import LayerConfig, SparseLayer
from largesparse.model.topology import connection_probability, erdos_renyi
from largesparse.model.workspace import Workspace
from largesparse.randomness import seed_sequence, stream
from largesparse.training.warming import warm_up

from . import add_common, add_figure, seconds_in_turns
from .learning import TABLE_7

MIB = 2**20
FORWARD_PASSES = 50  # between two readings of the clock


def compaction(options: argparse.Namespace) -> None:
    """Prune a trained FashionMNIST network, and compare it with its compact form."""
    name, sizes, epsilon, alpha, initializer, batch_size = TABLE_7["fashion"]
    data = load_dataset(name)
    config = NetworkConfig(sizes, epsilon=epsilon, alpha=alpha, initializer=initializer)
    settings = {"backend": options.backend, "threads": options.threads, "batch_size": batch_size}
    trainer = Trainer(SparseMLP(config), TrainingConfig(epochs=options.epochs, **settings))
    trainer.fit(data.X_train, data.y_train)
    whole = compact(trainer.network)  # nothing is dead yet: a copy
    prune_neurons(trainer.network, options.percentile)
    networks = {"whole": whole, "pruned": trainer.network, "compact": compact(trainer.network)}
    found: dict[str, np.ndarray] = {}
    calls: dict[tuple[str, str], Callable[[], None]] = {}
    for key, network in networks.items():
        calls["predict", key] = predicting(key, network, data.X_test, options, found)
        calls["layers", key] = forward(network, batch_size, data.X_test, options)
    seconds = seconds_in_turns(calls, options.repeats)
    rows = {}
    for key, network in networks.items():
        rows[key] = {
            "neurons": "-".join(str(size) for size in network.config.layer_sizes[1:-1]),
            "connections": network.connections,
            "MiB": network.nbytes / MIB,
            "accuracy": np.mean(found[key].argmax(axis=1) == data.y_test),
            "predict, ms": 1e3 * statistics.median(seconds["predict", key]),
            "compact is faster by": str(
                ratio_of(seconds["predict", key], seconds["predict", "compact"])
            ),
            "layers alone, ms": 1e3 * statistics.median(seconds["layers", key]) / FORWARD_PASSES,
            "by": str(ratio_of(seconds["layers", key], seconds["layers", "compact"])),
        }
    print(pd.DataFrame(rows).T.to_string(float_format="{:.4g}".format))
    print(
        f"predict: {len(data.X_test)} rows, read and standardised; layers alone: the forward pass "
        f"of {batch_size} rows"
    )
    difference = np.abs(found["pruned"] - found["compact"]).max()
    print(f"compact beside pruned: largest difference of a probability {difference:.1e}")


def predicting(
    key: str, network: SparseMLP, X: Any, options: argparse.Namespace, found: dict[str, np.ndarray]
) -> Callable[[], None]:
    """Return a function that predicts rows, and keeps the probabilities."""
    predictor = Predictor(network, threads=options.threads, backend=options.backend)

    def run() -> None:
        found[key] = predictor.predict_proba(X)

    return run


def forward(
    network: SparseMLP, batch_size: int, X: Any, options: argparse.Namespace
) -> Callable[[], None]:
    """Return a function that makes `FORWARD_PASSES` of a batch."""
    backend = get_backend(options.backend)
    workspace = Workspace(network.layers, batch_size, training=False)
    shown = np.arange(batch_size) % len(X)
    load_batch(X, shown, network.preprocessing, out=workspace.inputs(batch_size))

    def run() -> None:
        with backend.threads(options.threads):
            for _ in range(FORWARD_PASSES):
                network.forward(workspace, batch_size, backend)

    return run


def active(options: argparse.Namespace) -> None:
    """Count the neurons on a path from an input to an output, by ε and coverage."""
    sizes = (4096, *hidden_sizes(options.width * options.layers, options.layers), 2)
    print(f"{'epsilon':>8}{'coverage':>10}{'connections':>13}{'active':>9}  of every layer")
    for epsilon, coverage in itertools.product((1, 2, 5, 10), COVERAGE):
        config = NetworkConfig(sizes, epsilon=epsilon, coverage=coverage, seed=options.seed)
        network = SparseMLP(config, threads=options.threads)
        counts = active_neurons(network)
        shown = f"{network.connections:>13,}{sum(counts) / network.neurons:>9.2%}"
        shares = " ".join(f"{count / options.width:.3f}" for count in counts)
        print(f"{epsilon:>8}{coverage:>10}{shown}  {shares}")


def layer(options: argparse.Namespace) -> None:
    """Initialise a layer in both orders, and evolve it."""
    warm_up(options.backend, threads=options.threads)
    n = options.width
    probability = connection_probability(n, n, epsilon=options.epsilon)

    def initialise() -> SparseLayer:
        seed = seed_sequence(options.seed, "topology", 0)
        cover = options.coverage == "full"
        topology = erdos_renyi(n, n, probability, seed, cover=cover, threads=options.threads)
        values = uniform(1.0)(stream(options.seed, "values", 0), topology.nnz)
        bias = np.zeros(n, dtype=np.float32)
        return SparseLayer(
            2,
            topology,
            {"values": values, "bias": bias},
            LayerConfig(0.6, regrowth=uniform(1.0)),
        )

    made, seconds, peak = timed(initialise)
    print(f"{n} x {n}, {made.nnz:,} connections: {made.nbytes / MIB:.0f} MiB")
    print(f"initialisation {seconds:.2f} s, peak {peak / made.nbytes:.2f} x the layer")
    for repeat in range(3):
        rng = stream(options.seed, "evolution", repeat)
        _, seconds, peak = timed(lambda rng=rng: evolve(made, 0.3, rng))
        total = (peak + made.nbytes) / made.nbytes
        print(f"evolution {seconds:.2f} s, peak {total:.2f} x the layer (itself included)")


def timed(function: Callable[[], SparseLayer]) -> tuple[SparseLayer, float, int]:
    """Return the result, the seconds, and the bytes of memory beyond those before at the peak."""
    start_peak_rss()
    before = psutil.Process().memory_info().rss
    started = time.perf_counter()
    result = function()
    seconds = time.perf_counter() - started
    return result, seconds, peak_rss_bytes() - before


def prediction(options: argparse.Namespace) -> None:
    """Predict with one process and with two, one thread each, alternating."""
    row = nearest_row(options.neurons)
    sizes = (4096, *hidden_sizes(options.neurons, row.hidden_layers), 2)
    network = SparseMLP(NetworkConfig(sizes, epsilon=row.epsilon, recipe="width"), threads=2)
    X = np.random.default_rng(0).standard_normal((options.samples, sizes[0]), dtype=np.float32)
    shared = {"threads": 1, "backend": options.backend, "batch_size": options.batch_size}
    with (
        Predictor(network, processes=1, **shared) as one,
        Predictor(network, processes=2, **shared) as two,
    ):
        expected = one.predict_proba(X[: 4 * options.batch_size])
        if not np.array_equal(expected, two.predict_proba(X[: 4 * options.batch_size])):
            print("the results differ")
        calls = {each: partial(each.predict_proba, X) for each in (one, two)}
        seconds = seconds_in_turns(calls, options.repeats)
    for alone, both in zip(seconds[one], seconds[two], strict=True):
        print(f"one process {alone:.2f} s, two {both:.2f} s: {alone / both:.2f} x")
    print(f"median speed-up {ratio_of(seconds[one], seconds[two]):.2f}")


def add_figures(figures: Any) -> None:
    """Add compaction, active, layer and prediction."""
    compacted = add_figure(figures, "compaction", compaction)
    add_common(compacted, "fused")
    add = compacted.add_argument
    add("--epochs", type=parse_size, default=3, help="default %(default)s")
    add("--percentile", type=float, default=60.0, help="of every layer")
    add("--repeats", type=parse_size, default=9, help="default %(default)s")
    counted = add_figure(figures, "active", active)
    add_common(counted)
    counted.add_argument("--width", type=parse_size, default=20000, help="default %(default)s")
    counted.add_argument("--layers", type=parse_size, default=10, help="default %(default)s")
    one = add_figure(figures, "layer", layer)
    add_common(one)
    one.add_argument("--width", type=parse_size, default=5_000_000, help="default %(default)s")
    one.add_argument("--epsilon", type=float, default=1.0, help="default %(default)s")
    one.add_argument("--coverage", choices=COVERAGE, default="random")
    predict = add_figure(figures, "prediction", prediction)
    add_common(predict)
    predict.add_argument("--neurons", type=parse_size, default=1_000_000)
    predict.add_argument("--samples", type=parse_size, default=1024)
    predict.add_argument("--batch-size", type=parse_size, default=64)
    predict.add_argument("--repeats", type=parse_size, default=5)
