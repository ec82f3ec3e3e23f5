"""Measure what the engine is expected to reach, one figure at a time.

    python tools/measure.py fashion            784-1000-1000-1000-10, Table 7's settings
    python tools/measure.py madelon            500-400-100-400-2, Table 7's settings
    python tools/measure.py madelon --epochs 500 --weight-decay 6e-4 --pruning
                                               the same with Importance Pruning
    python tools/measure.py slopes             a grid of slopes of All-ReLU beside alpha="auto"
    python tools/measure.py compaction         a pruned network beside its compact form
    python tools/measure.py twins              20k-wide networks of 2 and 10 layers, width recipe
    python tools/measure.py active             neurons on a path from an input to an output, by ε
    python tools/measure.py layer              initialise and evolve one layer: time and peak memory
    python tools/measure.py prediction         one process beside two, one thread each

Each prints a table; `--help` after a name lists its settings.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import psutil

from largesparse import (
    History,
    NetworkConfig,
    Predictor,
    SparseMLP,
    Trainer,
    TrainingConfig,
    active_neurons,
    load_dataset,
)
from largesparse.backends import BACKENDS, get_backend
from largesparse.batches import load_batch
from largesparse.cli import parse_size, run_command
from largesparse.config import COVERAGE, GROWTH, REGROWTH
from largesparse.evolution import evolve
from largesparse.importance import compact, prune_neurons
from largesparse.initializers import uniform
from largesparse.layer import LayerConfig, SparseLayer
from largesparse.presets import hidden_sizes, nearest_row
from largesparse.randomness import seed_sequence, stream
from largesparse.skewness import alpha_from_skewness
from largesparse.topology import connection_probability, erdos_renyi
from largesparse.usage import peak_rss_bytes, start_peak_rss
from largesparse.warming import warm_up
from largesparse.workspace import ACTIVATION_DTYPES, Workspace

MIB = 2**20
FORWARD_PASSES = 50  # between two readings of the clock


def print_history(history: History) -> None:
    """Print the learning curve, 25 epochs of it at most, and the best and last accuracy."""
    table = history.to_frame().drop(columns=["nnz", "validation_accuracy"])
    table = table.iloc[:: max(1, -(-len(table) // 25))]
    print(table.round(4).to_string())
    print(
        f"test accuracy: best {history.best_test_accuracy:.4f}, "
        f"last {history['test_accuracy'][-1]:.4f}; "
        f"{sum(history['epoch_s'][1:]):.0f} s of training"
    )


# name -> data set, sizes, ε, α, initialisation and batch size, after Table 7
TABLE_7 = {
    "fashion": ("fashion_mnist", (784, 1000, 1000, 1000, 10), 20, 0.6, "he_uniform", 128),
    "madelon": ("madelon", (500, 400, 100, 400, 2), 10, 0.5, "normal", 32),
    "higgs": ("higgs", (28, 1000, 1000, 1000, 2), 10, 0.05, "xavier", 128),
}


SLOPE_EPOCHS = {"fashion": 5, "madelon": 100, "higgs": 10}


def table_7(options: argparse.Namespace) -> None:
    """Train on a real data set with the settings of the paper's Table 7."""
    name, sizes, epsilon, alpha, initializer, batch_size = TABLE_7[options.figure]
    data = load_dataset(name)
    config = NetworkConfig(
        sizes,
        epsilon=epsilon,
        alpha=alpha,
        initializer=initializer,
        regrowth=options.regrowth,
        seed=options.seed,
    )
    training = TrainingConfig(
        epochs=options.epochs,
        batch_size=batch_size,
        learning_rate=options.learning_rate,
        dropout=options.dropout,
        weight_decay=options.weight_decay,
        zeta_decay=options.zeta_decay,
        pruning_start=options.pruning_start if options.pruning else None,
        pruning_every=options.pruning_every,
        pruning_percentile=options.pruning_percentile,
        growth=options.growth,
        seed=options.seed,
        backend=options.backend,
        threads=options.threads,
    )
    trainer = Trainer(SparseMLP(config), training)
    history = trainer.fit(data.X_train, data.y_train, test=(data.X_test, data.y_test))
    print_history(history)
    first, last = (sum(nnz[:-1]) for nnz in (history["nnz"][0], history["nnz"][-1]))
    print(
        f"connections, those of the output layer left out: {first} -> {last} ({last / first:.1%})"
    )
    living = [layer.n_living for layer in trainer.network.layers[:-1]]
    print(f"neurons: {'-'.join(map(str, sizes[1:-1]))} -> {'-'.join(map(str, living))}")


def slopes(options: argparse.Namespace) -> None:
    """Train with a grid of slopes of All-ReLU, ReLU, and the slope that the skewness gives."""
    rows = []
    for figure in options.data:
        name, sizes, epsilon, _, initializer, batch_size = TABLE_7[figure]
        data = load_dataset(name)
        auto = alpha_from_skewness(data.X_train)
        for alpha, seed in itertools.product(sorted({*options.grid, auto}), range(options.seeds)):
            config = NetworkConfig(
                sizes, epsilon=epsilon, alpha=alpha, initializer=initializer, seed=seed
            )
            training = TrainingConfig(
                epochs=options.epochs or SLOPE_EPOCHS[figure],
                batch_size=batch_size,
                seed=seed,
                backend=options.backend,
                threads=options.threads,
            )
            trainer = Trainer(SparseMLP(config), training)
            test = data.X_test, data.y_test
            history = trainer.fit(data.X_train, data.y_train, test=test)
            shown = f"{alpha:.2f} (auto)" if alpha == auto else f"{alpha:.2f}"
            rows.append((figure, shown, history.best_test_accuracy, history["test_accuracy"][-1]))
    table = pd.DataFrame(rows, columns=["data", "alpha", "best accuracy", "last accuracy"])
    means = table.groupby(["data", "alpha"], sort=False).mean()
    print(means.round(4).to_string())


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
    predicting: dict[str, list[float]] = {key: [] for key in networks}
    forward: dict[str, list[float]] = {key: [] for key in networks}
    backend = get_backend(options.backend)
    predictors, workspaces = {}, {}
    shown = np.arange(batch_size) % len(data.X_test)
    for key, network in networks.items():
        predictors[key] = Predictor(network, threads=options.threads, backend=options.backend)
        workspaces[key] = Workspace(network.layers, batch_size, training=False)
        inputs = workspaces[key].inputs(batch_size)
        load_batch(data.X_test, shown, network.preprocessing, out=inputs)
    for _ in range(options.repeats):
        for key, network in networks.items():
            started = time.perf_counter()
            found[key] = predictors[key].predict_proba(data.X_test)
            predicting[key].append(time.perf_counter() - started)
            with backend.threads(options.threads):
                started = time.perf_counter()
                for _ in range(FORWARD_PASSES):
                    network.forward(workspaces[key], batch_size, backend)
                forward[key].append((time.perf_counter() - started) / FORWARD_PASSES)
    rows = {}
    for key, network in networks.items():
        rows[key] = {
            "neurons": "-".join(str(size) for size in network.config.layer_sizes[1:-1]),
            "connections": network.connections,
            "MiB": network.nbytes / MIB,
            "accuracy": np.mean(found[key].argmax(axis=1) == data.y_test),
            "predict, ms": statistics.median(predicting[key]) * 1e3,
            "compact is faster by": median_ratio(predicting[key], predicting["compact"]),
            "layers alone, ms": statistics.median(forward[key]) * 1e3,
            "by": median_ratio(forward[key], forward["compact"]),
        }
    print(pd.DataFrame(rows).T.to_string(float_format="{:.4g}".format))
    print(
        f"predict: {len(data.X_test)} rows, read and standardised; layers alone: the forward pass "
        f"of {batch_size} rows"
    )
    difference = np.abs(found["pruned"] - found["compact"]).max()
    print(f"compact beside pruned: largest difference of a probability {difference:.1e}")


def median_ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the ratios of times that were taken in turn."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def twins(options: argparse.Namespace) -> None:
    """Train scaled-down twins of the extreme networks, beside logistic regression."""
    from sklearn.datasets import make_classification
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    print(f"{'':>24}" + "".join(f"{'seed ' + str(s):>9}" for s in range(3)) + f"{'mean':>9}")
    columns: dict[str, list[float]] = {}
    for seed in range(3):
        X, y = make_classification(3500, 2000, n_informative=32, n_redundant=32, random_state=seed)
        split = train_test_split(X.astype(np.float32), y, test_size=0.3, random_state=0)
        X_train, X_test, y_train, y_test = split
        linear = LogisticRegression(max_iter=1000).fit(X_train, y_train)
        columns.setdefault("logistic regression", []).append(linear.score(X_test, y_test))
        for layers, epsilon in ((2, 10), (10, 1)):
            sizes = (2000, *hidden_sizes(options.width * layers, layers), 2)
            config = NetworkConfig(
                sizes,
                epsilon=epsilon,
                alpha=options.alpha,
                recipe="width",
                coverage=options.coverage,
                seed=options.seed,
            )
            training = TrainingConfig(
                epochs=options.epochs,
                learning_rate=options.rate / layers,
                schedule="cosine",
                warmup_epochs=1,
                dropout=options.dropout,
                zeta=options.zeta,
                pruning_start=options.pruning_start,
                pruning_every=1,
                activation_dtype=options.activation_dtype,
                seed=options.seed,
                backend=options.backend,
                threads=options.threads,
            )
            trainer = Trainer(SparseMLP(config), training)
            history = trainer.fit(X_train, y_train, test=(X_test, y_test))
            name = f"{layers} layers, epsilon {epsilon}"
            columns.setdefault(name, []).append(history["test_accuracy"][-1])
            print(name, "seed", seed, np.round(history["test_accuracy"], 3).tolist())
    for name, values in columns.items():
        row = [*values, statistics.mean(values)]
        print(f"{name:>24}" + "".join(f"{value:>9.3f}" for value in row))


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
        ratios = []
        for _ in range(options.repeats):
            seconds = []
            for predictor in (one, two):
                started = time.perf_counter()
                predictor.predict_proba(X)
                seconds.append(time.perf_counter() - started)
            ratios.append(seconds[0] / seconds[1])
            print(f"one process {seconds[0]:.2f} s, two {seconds[1]:.2f} s: {ratios[-1]:.2f} x")
    print(f"median speed-up {statistics.median(ratios):.2f}")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    figures = parser.add_subparsers(dest="figure", metavar="FIGURE", required=True)

    def add(
        name: str, run: Callable[[argparse.Namespace], None], backend: str | None = None
    ) -> argparse.ArgumentParser:
        figure = figures.add_parser(name, help=run.__doc__, description=run.__doc__)
        figure.add_argument(
            "--backend", choices=BACKENDS, default=backend, help=f"default: {backend or 'mkl'}"
        )
        figure.add_argument("--threads", type=parse_size, default=1, help="default %(default)s")
        figure.add_argument("--seed", type=int, default=0, help="default %(default)s")
        figure.set_defaults(run=run)
        return figure

    # Table 7 leaves λ, ζ's decay and the values of new connections open.
    for name, epochs, decay, zeta_decay, regrowth in (
        ("fashion", 20, 0.0, 0.92, "zero"),
        ("madelon", 100, 2e-4, 1.0, "initial"),
    ):
        real = add(name, table_7, "fused")
        real.add_argument("--epochs", type=parse_size, default=epochs, help="default %(default)s")
        real.add_argument("--learning-rate", type=float, default=0.01, help="default %(default)s")
        real.add_argument("--dropout", type=float, default=0.3, help="default %(default)s")
        real.add_argument("--weight-decay", type=float, default=decay, help="default %(default)s")
        real.add_argument(
            "--zeta-decay", type=float, default=zeta_decay, help="default %(default)s"
        )
        real.add_argument(
            "--regrowth",
            choices=REGROWTH,
            default=regrowth,
            help="values of new connections (default %(default)s)",
        )
        real.add_argument("--growth", choices=GROWTH, default="random", help="default %(default)s")
        real.add_argument("--pruning", action="store_true", help="prune neurons by importance")
        for option, kind, value, text in (
            ("--pruning-start", parse_size, 300, "first epoch of it"),
            ("--pruning-every", parse_size, 40, "epochs between prunings"),
            ("--pruning-percentile", float, 31.0, "of a layer's living neurons that die"),
        ):
            real.add_argument(option, type=kind, default=value, help=f"{text} (default {value})")
    grid = add("slopes", slopes, "fused")
    grid.add_argument("--data", nargs="+", choices=TABLE_7, default=list(TABLE_7))
    grid.add_argument("--epochs", type=parse_size, help=f"default: {SLOPE_EPOCHS}")
    grid.add_argument("--grid", type=float, nargs="+", default=[0.0, 0.05, 0.25, 0.5, 0.6, 0.75])
    grid.add_argument("--seeds", type=parse_size, default=2, help="default %(default)s")
    compacted = add("compaction", compaction, "fused")
    compacted.add_argument("--epochs", type=parse_size, default=3, help="default %(default)s")
    compacted.add_argument("--percentile", type=float, default=60.0, help="of every layer")
    compacted.add_argument("--repeats", type=parse_size, default=9, help="default %(default)s")
    twin = add("twins", twins)
    twin.add_argument("--epochs", type=parse_size, default=12)
    twin.add_argument("--width", type=parse_size, default=20000, help="default %(default)s")
    twin.add_argument("--alpha", type=float, default=0.6, help="default %(default)s")
    twin.add_argument("--rate", type=float, default=8.0, help="of all layers (%(default)s)")
    twin.add_argument("--dropout", type=float, default=0.0, help="default %(default)s")
    twin.add_argument("--zeta", type=float, default=0.3, help="default %(default)s")
    twin.add_argument(
        "--pruning-start",
        type=parse_size,
        metavar="E",
        help="prune 5 %% of the neurons after every epoch from this one on (default: never)",
    )
    twin.add_argument("--activation-dtype", choices=sorted(ACTIVATION_DTYPES), default="float32")
    counted = add("active", active)
    counted.add_argument("--width", type=parse_size, default=20000, help="default %(default)s")
    counted.add_argument("--layers", type=parse_size, default=10, help="default %(default)s")
    one = add("layer", layer)
    one.add_argument("--width", type=parse_size, default=5_000_000, help="default %(default)s")
    one.add_argument("--epsilon", type=float, default=1.0, help="default %(default)s")
    for figure in (twin, one):
        figure.add_argument("--coverage", choices=COVERAGE, default="random")
    predict = add("prediction", prediction)
    predict.add_argument("--neurons", type=parse_size, default=1_000_000)
    predict.add_argument("--samples", type=parse_size, default=1024)
    predict.add_argument("--batch-size", type=parse_size, default=64)
    predict.add_argument("--repeats", type=parse_size, default=5)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the figure that was asked for."""
    options = make_parser().parse_args(argv)
    options.run(options)


if __name__ == "__main__":
    sys.exit(run_command(main))
