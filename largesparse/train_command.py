"""The command `train`: from a table to a saved model."""

from __future__ import annotations

import argparse
import time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .environment import expand_user
from .errors import CheckpointError, DataError, ParameterError, check_range
from .learning_curve import check_plot, plot_curve, text_curve
from .sizes import parse_size


class Samples(NamedTuple):
    """Rows to train on, and rows to test on (none where X_test is None)."""

    X: Any
    y: NDArray[Any]
    X_test: Any
    y_test: NDArray[Any] | None
    feature_names: list[str] | None


def add_train(subparsers: Any) -> None:
    """Add the command `train`."""
    parser = subparsers.add_parser(
        "train",
        help="train a model on a table and save it",
        description="Train a sparse classifier or regressor on a file (CSV, parquet, svmlight, "
        "npz) or on a data set by its name, and save it to a folder. A part of the rows is held "
        "out and only used to tell how good the model is.",
        epilog="example: largesparse train --data patients.csv --target diagnosis --out model",
    )
    add = parser.add_argument
    add("--data", required=True, metavar="FILE|NAME", help="a table, or a data set's name")
    add("--target", help="the column to predict (tables with columns)")
    add("--out", required=True, metavar="MODEL", help="folder that receives the model")
    add("--task", choices=("auto", "classification", "regression"), default="auto",
        help="auto: regression where the target is numbers that are not all whole")  # fmt: skip
    add("--test-fraction", type=float, default=0.2,
        help="share held out, where the data has no test part (%(default)s; 0: none)")  # fmt: skip
    add("--hidden", default="400,400", help="sizes of the hidden layers (%(default)s)")
    add("--epsilon", type=float, default=20.0, help="density control ε (%(default)s)")
    add("--activation", default="all_relu",
        help="all_relu, relu, leaky_relu, srelu, prelu (%(default)s)")  # fmt: skip
    add("--alpha", type=_number_or_auto, help="slope of the negative side, or auto")
    add("--zeta", type=float, help="share of the connections that evolution replaces")
    add("--dropout", type=float, help="share of the hidden neurons dropped")
    add("--learning-rate", type=float, help="η (by default chosen, and lowered if it diverges)")
    add("--epochs", type=parse_size, help="passes over the rows (by default by their number)")
    add("--batch-size", type=parse_size, help="samples per update (by default by the rows)")
    add("--balanced", action="store_true", help="weigh classes by one over their frequency")
    add("--backend", help="mkl, fused or scipy (LARGESPARSE_BACKEND, else mkl)")
    add("--threads", type=parse_size, help="threads (all cores)")
    add("--seed", type=int, default=0, help="of everything random (%(default)s)")
    add("--plot", metavar="FILE", help="learning curve as a picture (needs matplotlib)")
    add("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=_train)


def _number_or_auto(text: str) -> float | str:
    return text if text == "auto" else float(text)


def _train(arguments: argparse.Namespace) -> int:
    from .saving import check_model_folder

    check_range("--test-fraction", arguments.test_fraction, "train", low=0, high=1, high_open=True)
    check_model_folder(arguments.out)
    if arguments.plot:
        check_plot(arguments.plot)
    samples = _read_samples(arguments)
    estimator = _make_estimator(arguments, samples)
    _check_held_out(samples, estimator)
    tested = samples.y_test is not None
    counts = f"{samples.X.shape[0]} rows of {samples.X.shape[1]} features to train on"
    print(counts + (f", {samples.X_test.shape[0]} held out" if tested else ""))
    started = time.perf_counter()
    estimator.fit(samples.X, samples.y)
    seconds = time.perf_counter() - started
    estimator.network_.feature_names = samples.feature_names
    place, failure = _save(estimator, arguments.out)

    network = estimator.network_
    dense = sum(layer.n_in * layer.n_out for layer in network.layers)
    share = network.connections / dense
    print(f"{network.connections} connections, {share:.1%} of a dense network's {dense}")
    print(f"{estimator.n_iter_} epochs in {seconds:.1f} s")
    name = "accuracy" if hasattr(estimator, "classes_") else "R²"
    print(f"{name} on the rows trained on: {estimator.score(samples.X, samples.y):.4f}")
    if tested:
        score = estimator.score(samples.X_test, samples.y_test)
        print(f"{name} on the rows held out:    {score:.4f}")
    print(text_curve(estimator.loss_curve_))
    if arguments.plot:
        plot_curve(estimator.history_, arguments.plot)
        print(f"learning curve: {arguments.plot}")
    print(f"saved: {place}")
    if failure is not None:
        raise failure
    return 0


def _save(estimator: Any, out: str) -> tuple[Any, CheckpointError | None]:
    """Save a model; where that fails, elsewhere. Return where, and the error that told."""
    from .saving import save_elsewhere

    try:
        estimator.save(out)
    except CheckpointError as error:
        place = save_elsewhere(estimator.save, out)
        if place is None:
            raise
        return place, CheckpointError(f"{error} The model is in {place}.")
    return out, None


def _check_held_out(samples: Samples, estimator: Any) -> None:
    """Verify, before training, that the rows held out can be predicted and compared."""
    from .preprocessing import check_labels, check_lengths, check_targets, check_X
    from .regressor import SparseMLPRegressor

    if samples.y_test is None:
        return
    try:
        check_X(samples.X_test, samples.X.shape[1])
        if isinstance(estimator, SparseMLPRegressor):
            check_targets(samples.y_test, 1)
        else:
            kinds = [check_labels(y).dtype.kind in "US" for y in (samples.y, samples.y_test)]
            if kinds[0] != kinds[1]:
                raise DataError("labels are text in one part and numbers in the other.")
        check_lengths(samples.X_test, samples.y_test)
    except DataError as error:
        raise DataError(f"In the rows to test on: {error}") from error


def _make_estimator(arguments: argparse.Namespace, samples: Samples) -> Any:

    from sklearn.utils.multiclass import type_of_target

    from .classifier import SparseMLPClassifier
    from .regressor import SparseMLPRegressor

    task = arguments.task
    if task == "auto":
        numbers = type_of_target(samples.y).startswith("continuous")
        task = "regression" if numbers else "classification"
    given = {
        "alpha": arguments.alpha,
        "zeta": arguments.zeta,
        "dropout": arguments.dropout,
        "learning_rate": arguments.learning_rate,
        "max_epochs": arguments.epochs,
        "batch_size": arguments.batch_size,
    }
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    options |= {
        "hidden_layer_sizes": tuple(parse_size(size) for size in arguments.hidden.split(",")),
        "epsilon": arguments.epsilon,
        "activation": arguments.activation,
        "backend": arguments.backend,
        "n_jobs": arguments.threads,
        "random_state": arguments.seed,
        "verbose": not arguments.quiet,
    }
    if task == "regression":
        return SparseMLPRegressor(**options)
    return SparseMLPClassifier(**options, class_weight="balanced" if arguments.balanced else None)


def _read_samples(arguments: argparse.Namespace) -> Samples:
    """Read a table or a data set, and hold rows out where it has no test part."""
    from sklearn.model_selection import train_test_split

    from .archives import read_archive
    from .datasets import load_dataset
    from .tables import read_table, table_format

    path = expand_user(arguments.data)
    if table_format(path) is None and not path.is_file():
        data = load_dataset(arguments.data, seed=arguments.seed)
        return Samples(data.X_train, data.y_train, data.X_test, data.y_test, None)
    table = read_table(path, arguments.target)
    if table.y is None:
        raise DataError(
            f"{path} has no values to predict. Name their column by --target"
            + (f"; its columns are {some_of(table.feature_names)}." if table.feature_names else ".")
        )
    if table_format(path) == "npz" and "x_test" in read_archive(path):
        test = read_table(path, arguments.target, part="test")
        return Samples(table.X, table.y, test.X, test.y, table.feature_names)
    if arguments.test_fraction == 0:
        return Samples(table.X, table.y, None, None, table.feature_names)
    options = {"test_size": arguments.test_fraction, "random_state": arguments.seed}
    _, counts = np.unique(table.y, return_counts=True)
    held_out = int(np.ceil(arguments.test_fraction * len(table.y)))
    few = len(counts) > min(held_out, len(table.y) - held_out) or counts.min() < 2
    try:
        X, X_test, y, y_test = train_test_split(
            table.X, table.y, stratify=None if few else table.y, **options
        )
    except ValueError as error:
        raise ParameterError(f"--test-fraction {arguments.test_fraction}: {error}") from error
    return Samples(X, y, X_test, y_test, table.feature_names)


def some_of(names: list[str], count: int = 8) -> str:
    return ", ".join(map(repr, names[:count])) + (", …" if len(names) > count else "")
