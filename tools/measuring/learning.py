"""What trainings reach on real data and on scaled-down twins of the extreme networks."""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from typing import Any

import numpy as np
import pandas as pd

from largesparse import History, NetworkConfig, SparseMLP, Trainer, TrainingConfig, load_dataset
from largesparse.data.skewness import alpha_from_skewness
from largesparse.data.synthetic import make_large_classification
from largesparse.harness.presets import (
    FEATURES,
    HYPERPARAMETERS,
    default_batch_size,
    default_learning_rate,
    hidden_sizes,
)
from largesparse.machine.sizes import parse_size
from largesparse.model.config import COVERAGE, REGROWTH
from largesparse.model.optimizer import OPTIMIZERS
from largesparse.model.rules import DROPS, GROWTHS
from largesparse.model.workspace import ACTIVATION_DTYPES

from . import add_common, add_figure

# name -> data set, sizes, ε, α, initialisation and batch size, after Table 7
TABLE_7 = {
    "fashion": ("fashion_mnist", (784, 1000, 1000, 1000, 10), 20, 0.6, "he_uniform", 128),
    "madelon": ("madelon", (500, 400, 100, 400, 2), 10, 0.5, "normal", 32),
    "higgs": ("higgs", (28, 1000, 1000, 1000, 2), 10, 0.05, "xavier", 128),
}
SLOPE_EPOCHS = {"fashion": 5, "madelon": 100, "higgs": 10}


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
        drop=options.drop,
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


def twins(options: argparse.Namespace) -> None:
    """Train scaled-down twins of the extreme networks, beside logistic regression.

    With the settings of `bigmodel`, unless a flag says otherwise: its optimizer, learning rate,
    mini-batch, schedule, coverage and evolution.
    """
    from sklearn.datasets import make_classification
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    preset = HYPERPARAMETERS["width"]
    optimizer = options.optimizer or preset.optimizer
    print(f"{'':>24}" + "".join(f"{'seed ' + str(s):>9}" for s in range(3)) + f"{'mean':>9}")
    columns: dict[str, list[float]] = {}
    for seed in range(3):
        X, y = make_classification(3500, 2000, n_informative=32, n_redundant=32, random_state=seed)
        split = train_test_split(X.astype(np.float32), y, test_size=0.3, random_state=0)
        X_train, X_test, y_train, y_test = split
        if options.validation:  # settings are chosen on rows that are not reported
            split = train_test_split(X_train, y_train, test_size=600, random_state=1)
            X_train, X_test, y_train, y_test = split
        batch_size = default_batch_size("width", len(y_train))
        if options.batch_size is not None:
            batch_size = options.batch_size
        steps = options.epochs * -(-len(y_train) // batch_size)
        linear = LogisticRegression(max_iter=1000).fit(X_train, y_train)
        columns.setdefault("logistic regression", []).append(linear.score(X_test, y_test))
        for layers, epsilon in ((2, 10), (10, 1)):
            hidden = hidden_sizes(options.width * layers, layers)
            config = NetworkConfig(
                (2000, *hidden, 2),
                epsilon=epsilon,
                alpha=options.alpha,
                recipe="width",
                coverage=options.coverage,
                seed=options.seed,
            )
            rate = options.learning_rate
            if rate is None:
                rate = default_learning_rate(
                    "width", hidden, steps, optimizer=optimizer, batch_size=batch_size
                )
            training = TrainingConfig(
                epochs=options.epochs,
                batch_size=batch_size,
                optimizer=optimizer,
                learning_rate=rate,
                schedule=preset.schedule,
                warmup_epochs=preset.warmup_epochs,
                dropout=options.dropout,
                weight_decay=options.weight_decay,
                zeta=options.zeta,
                growth=options.growth,
                growth_candidates=options.growth_candidates,
                keep_active=options.keep_active,
                pruning_start=options.pruning_start,
                pruning_every=1,
                activation_dtype=options.activation_dtype,
                seed=options.seed,
                backend=options.backend,
                threads=options.threads,
            )
            name = f"{layers} layers, epsilon {epsilon}"
            trainer = Trainer(SparseMLP(config, progress=False), training)
            history = trainer.fit(X_train, y_train, test=(X_test, y_test))
            columns.setdefault(name, []).append(history["test_accuracy"][-1])
            active = history["active_neurons"][-1] / config.neurons
            curve = np.round(history["test_accuracy"], 3).tolist()
            print(name, "seed", seed, curve, f"active {active:.1%}", flush=True)
    for name, values in columns.items():
        row = [*values, statistics.mean(values)]
        print(f"{name:>24}" + "".join(f"{value:>9.3f}" for value in row))


def linear(options: argparse.Namespace) -> None:
    """Fit logistic regression to the rows that `bigmodel` trains on, and test it on the others."""
    from sklearn.linear_model import LogisticRegression

    sizes = {"n_samples": options.samples, "n_features": options.features}
    for seed in options.seeds:
        data = make_large_classification(**sizes, random_state=seed)
        begin = time.perf_counter()
        fitted = LogisticRegression(max_iter=1000).fit(data.X_train, data.y_train)
        seconds = time.perf_counter() - begin
        accuracy = fitted.score(data.X_test, data.y_test)
        error = math.sqrt(accuracy * (1 - accuracy) / len(data.y_test))
        print(f"seed {seed}: {accuracy:.3f} ± {error:.3f}, {seconds:.1f} s", flush=True)


def add_figures(figures: Any) -> None:
    """Add fashion, madelon, slopes, twins and linear."""
    # Table 7 leaves λ, ζ's decay and the values of new connections open.
    add_table_7(add_figure(figures, "fashion", table_7), 20, 0.0, 0.92, "zero")
    add_table_7(add_figure(figures, "madelon", table_7), 100, 2e-4, 1.0, "initial")
    grid = add_figure(figures, "slopes", slopes)
    add_common(grid, "fused")
    grid.add_argument("--data", nargs="+", choices=TABLE_7, default=list(TABLE_7))
    grid.add_argument("--epochs", type=parse_size, help=f"default: {SLOPE_EPOCHS}")
    grid.add_argument("--grid", type=float, nargs="+", default=[0.0, 0.05, 0.25, 0.5, 0.6, 0.75])
    grid.add_argument("--seeds", type=parse_size, default=2, help="default %(default)s")
    add_twins(add_figure(figures, "twins", twins))
    add = add_figure(figures, "linear", linear).add_argument
    add("--samples", type=parse_size, default=10_000, help="default %(default)s")
    add("--features", type=parse_size, default=FEATURES, help="default %(default)s")
    add("--seeds", type=int, nargs="+", default=[0, 1], help="default %(default)s")


def add_table_7(
    figure: argparse.ArgumentParser, epochs: int, decay: float, zeta_decay: float, regrowth: str
) -> None:
    """Add the flags of a data set of Table 7."""
    add_common(figure, "fused")
    add = figure.add_argument
    add("--epochs", type=parse_size, default=epochs, help="default %(default)s")
    add("--learning-rate", type=float, default=0.01, help="default %(default)s")
    add("--dropout", type=float, default=0.3, help="default %(default)s")
    add("--weight-decay", type=float, default=decay, help="default %(default)s")
    add("--zeta-decay", type=float, default=zeta_decay, help="default %(default)s")
    text = "values of new connections (default %(default)s)"
    add("--regrowth", choices=REGROWTH, default=regrowth, help=text)
    add("--drop", choices=list(DROPS), default="set", help="default %(default)s")
    add("--growth", choices=list(GROWTHS), default="random", help="default %(default)s")
    add("--pruning", action="store_true", help="prune neurons by importance")
    for option, kind, value, text in (
        ("--pruning-start", parse_size, 300, "first epoch of it"),
        ("--pruning-every", parse_size, 40, "epochs between prunings"),
        ("--pruning-percentile", float, 31.0, "of a layer's living neurons that die"),
    ):
        add(option, type=kind, default=value, help=f"{text} (default {value})")


def add_twins(figure: argparse.ArgumentParser) -> None:
    """Add the flags of `twins`."""
    preset = HYPERPARAMETERS["width"]
    add_common(figure, "fused")
    add = figure.add_argument
    add("--epochs", type=parse_size, default=12)
    add("--width", type=parse_size, default=20000, help="default %(default)s")
    add("--alpha", type=float, default=preset.alpha, help="default %(default)s")
    add("--optimizer", choices=list(OPTIMIZERS), help="default: that of bigmodel")
    add("--learning-rate", type=float, help="default: that of bigmodel")
    add("--dropout", type=float, default=preset.dropout, help="default %(default)s")
    add("--zeta", type=float, default=0.3, help="default %(default)s")
    add("--batch-size", type=parse_size, help="default: that of bigmodel")
    add("--weight-decay", type=float, help="default: the optimizer's")
    add("--growth", choices=list(GROWTHS), default=preset.growth, help="default %(default)s")
    add("--growth-candidates", type=float, default=4.0, help="default %(default)s")
    add(
        "--keep-active",
        action=argparse.BooleanOptionalAction,
        default=preset.keep_active,
        help="evolution leaves neurons their last connection (default: yes)",
    )
    add(
        "--pruning-start",
        type=parse_size,
        metavar="E",
        help="prune 5 %% of the neurons after every epoch from this one on (default: never)",
    )
    add("--activation-dtype", choices=sorted(ACTIVATION_DTYPES), default="float32")
    add("--coverage", choices=COVERAGE, default=preset.coverage, help="default %(default)s")
    add(
        "--validation",
        action="store_true",
        help="train on 1,850 rows of the 2,450, and report the other 600",
    )
