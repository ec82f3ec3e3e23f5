"""The command `train`: from a table to a saved model."""

from __future__ import annotations

import argparse
import dataclasses
import time
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

from ..backends.choice import BACKEND_HELP
from ..data.targets import RULE, TASKS
from ..errors import CheckpointError, ParameterError, check_range
from ..harness.setting_flags import (
    NETWORK,
    SETTINGS,
    TRAINING,
    add_settings,
    check_settings,
    flag_of,
    given_settings,
)
from ..machine.sizes import parse_size, parse_sizes, show_seconds
from ..model.given import EVOLUTIONS, GivenTopology
from .files import READ, add_file_options, file_options
from .learning_curve import HeldOutScores, check_plot, plot_curve, text_curve
from .scores import cross_validate, describe_score

if TYPE_CHECKING:
    from ..data.samples import Samples

# The estimators' parameters whose flags have other names.
RENAMED = {
    "hidden": "hidden_layer_sizes",
    "epochs": "max_epochs",
    "threads": "n_jobs",
    "seed": "random_state",
}
EPSILON = 20.0  # where no density is given either


def add_train(subparsers: Any) -> None:
    """Add the command `train`."""
    parser = subparsers.add_parser(
        "train",
        help="train a model on a table and save it",
        description="Train a sparse classifier or regressor on a file or on a data set by its "
        "name, and save it to a folder. A part of the rows is held out and only used to tell how "
        "good the model is.",
        epilog="example: largesparse train --data patients.csv --target diagnosis --out model",
    )
    add = parser.add_argument
    add(
        "--data", required=True, metavar="FILE|NAME", help=f"a table ({READ}), or a data set's name"
    )
    add("--test", metavar="FILE", help="a table of rows that are only tested on")
    add("--target", help="the column to predict (tables with columns)")
    add_file_options(parser)
    add("--categorical", nargs="*", metavar="COLUMN",
        help="encode these columns, or all of text (auto): a feature a category")  # fmt: skip
    add("--log", action="store_true", help="log(1 + x) of all features, for counts")
    add("--out", required=True, metavar="MODEL", help="folder that receives the model")
    add("--task", choices=TASKS, default="auto", help=RULE)
    add("--test-fraction", type=float,
        help="share held out, where the data has no test part (0.2; 0: none); of a class with few "
        "rows one at least is trained on")  # fmt: skip
    add("--folds", type=parse_size, metavar="K",
        help="cross-validate by K folds, then train on all of these rows")  # fmt: skip
    add("--hidden", type=parse_sizes,
        help="sizes of the hidden layers (400,400; 1000,400 for several labels)")  # fmt: skip
    add("--topology", nargs="+", metavar="FILE",
        help="connections of the first hidden layer, and of those above it, by names: "
        "source,target[,weight], or gene sets (.gmt)")  # fmt: skip
    add("--topology-evolution", choices=EVOLUTIONS,
        help="whether these connections stay, evolve freely, or evolve within those of the files, "
        "of which half are drawn first (frozen)")  # fmt: skip
    add("--activation", default="all_relu",
        help="all_relu, relu, leaky_relu, srelu, prelu (%(default)s)")  # fmt: skip
    add("--alpha", type=number_or_auto, help="slope of the negative side, or auto")
    add("--epochs", type=parse_size, help="passes over the rows (by default by their number)")
    add("--batch-size", type=parse_size, help="samples per update (by default by the rows)")
    add("--balanced", action="store_true", 
        help="weigh classes by one over their frequency (classification)")  # fmt: skip
    add("--backend", help=BACKEND_HELP)
    add("--threads", type=parse_size, help="threads (all cores)")
    add("--seed", type=int, default=0, help="of everything random (%(default)s)")
    add("--plot", metavar="FILE",
        help="learning curve as a picture, with the rows held out (needs matplotlib)")  # fmt: skip
    add("--quiet", action="store_true", help="no progress bar")
    add_settings(parser, epsilon=f"{EPSILON:g}", schedule="cosine", dropout="chosen")
    parser.set_defaults(run=_train)


def number_or_auto(text: str) -> float | str:
    return text if text == "auto" else float(text)


def _train(arguments: argparse.Namespace) -> int:
    from ..data.samples import read_samples
    from ..training.saving import check_model_folder
    from ..training.warming import warm_up_once

    fraction = arguments.test_fraction
    if fraction is not None:
        check_range("--test-fraction", fraction, "train", low=0, high=1, high_open=True)
    check_range("--seed", arguments.seed, "train", low=0, high=2**32 - 1, integer=True)
    _check_hyperparameters(arguments)
    check_model_folder(arguments.out)
    if arguments.plot:
        check_plot(arguments.plot)
    evolution = arguments.topology_evolution
    if evolution is not None and arguments.topology is None:
        raise ParameterError("--topology-evolution is of the layers of --topology. Give both.")
    given = [GivenTopology.read(path, evolution=evolution) for path in arguments.topology or ()]
    if arguments.folds is not None:
        check_range("--folds", arguments.folds, "train", low=2, integer=True)
        if arguments.test is not None:
            raise ParameterError("--folds and --test exclude each other. Leave one of them out.")
    samples = read_samples(
        arguments.data,
        test=arguments.test,
        target=arguments.target,
        task=arguments.task,
        test_fraction=fraction,
        held_out_by_default=arguments.folds is None,
        seed=arguments.seed,
        **file_options(arguments),
    )
    for flag in ("balanced", "folds", "label_smoothing"):
        if samples.task == "multilabel" and getattr(arguments, flag):
            raise ParameterError(
                f"{flag_of(flag)} is for one label a row, and {samples.target} has several. Leave "
                "it out."
            )
    arguments.topology = given or None
    estimator = _make_estimator(arguments, samples)
    tested = samples.X_test is not None
    n_rows = samples.X.shape[0]
    counts = (
        f"{n_rows} row{'s' if n_rows != 1 else ''} of {samples.X.shape[1]} features to train on"
    )
    print(counts + (f", {samples.X_test.shape[0]} held out" if tested else ""))
    print("\n".join([describe_task(samples, arguments.task), *samples.notes]))
    warm_up_once(arguments.backend)
    with warnings.catch_warnings():
        # Of many classes: who says --task classification has chosen them.
        many = "The number of unique classes|y has .* different whole numbers"
        warnings.filterwarnings("ignore", many, UserWarning)
        if arguments.folds is not None:
            make = partial(_make_estimator, arguments, samples)
            print(cross_validate(make, samples.X, samples.y, arguments.folds, arguments.seed))
            print("the model saved is trained on all of these rows", flush=True)
        if tested and arguments.plot:
            estimator._callbacks = (HeldOutScores(estimator, samples.X_test, samples.y_test),)
        started = time.perf_counter()
        estimator.fit(samples.X, samples.y)
        seconds = time.perf_counter() - started
    estimator.network_.file_layout = samples.layout
    place, failure = _save(estimator, arguments.out)

    _tell(arguments, estimator, samples, seconds)
    print(f"saved: {place}")
    if failure is not None:
        raise failure
    return 0


def _tell(arguments: argparse.Namespace, estimator: Any, samples: Any, seconds: float) -> None:
    """Print what has been trained, and its scores."""
    network = estimator.network_
    dense = sum(layer.n_in * layer.n_out for layer in network.layers)
    share = network.connections / dense
    explored = estimator.history_["explored"][-1]
    ever = "" if explored is None else f"; {explored:.1%} were there at some time"
    print(f"{network.connections} connections, {share:.1%} of a dense network's {dense}{ever}")
    begun = ""
    if estimator._began_linearly:
        begun = f"{'ridge' if samples.task == 'regression' else 'logistic'} regression and "
    epochs = f"{estimator.n_iter_} epoch{'s' if estimator.n_iter_ != 1 else ''}"
    print(f"{begun}{epochs} in {show_seconds(seconds)}")
    print_score("on the rows trained on:", estimator, samples.X, samples.y)
    if samples.X_test is not None:
        print_score("on the rows held out:   ", estimator, samples.X_test, samples.y_test)
    print(text_curve(estimator.loss_curve_))
    if arguments.plot:
        plot_curve(estimator.history_, arguments.plot)
        print(f"learning curve: {arguments.plot}")


def _check_hyperparameters(arguments: argparse.Namespace) -> None:
    """Refuse what no training can have before the data is read."""
    from ..backends import get_backend
    from ..machine.threads import resolve_threads
    from ..model.config import NetworkConfig, TrainingConfig
    from ..model.rules import resolve_rule
    from ..training.memory import choose_plan

    check_settings(arguments)
    given = given_settings(arguments, TRAINING)
    slope = {} if arguments.alpha in (None, "auto") else {"alpha": arguments.alpha}
    sizes = (1, *(arguments.hidden or (400, 400)), 2)
    if arguments.epsilon is None and arguments.density is None:
        arguments.epsilon = EPSILON
    known = {"epsilon": arguments.epsilon, "activation": arguments.activation}
    network = NetworkConfig(sizes, **known, **given_settings(arguments, NETWORK), **slope)
    choose_plan(network, 1)  # hidden layers that fit in no case
    resolve_rule("drop", given.get("drop", "set"), "train (--drop-rule)")
    TrainingConfig(**given)
    if slope and arguments.activation in ("relu", "linear"):
        raise ParameterError(
            f"--alpha: the activation {arguments.activation} has no slope to set. Leave it out."
        )
    resolve_threads(arguments.threads, "train")
    get_backend(arguments.backend, sizes)


def print_score(rows: str, estimator: Any, X: Any, y: Any) -> None:
    name = "accuracy" if hasattr(estimator, "classes_") else "R²"
    if y.ndim == 2 and name == "accuracy":
        name = "precision"
    print(f"{name} {rows} {describe_score(estimator, X, y)}")


def describe_task(samples: Samples, asked: str) -> str:
    """Return what is made of the target, and how to choose otherwise."""
    import numpy as np

    if samples.task == "regression":
        return f"{samples.target} is predicted as numbers (regression)"
    if samples.task == "multilabel":
        n_rows, n_labels = samples.y.shape
        return f"{samples.target} has {n_labels} labels, {samples.y.sum() / n_rows:.3g} a row"
    n_classes = len(np.unique(samples.y))
    other = ""
    if asked == "auto" and samples.y.dtype.kind in "iuf" and n_classes > 2:
        other = "; --task regression predicts the numbers"
    return f"{samples.target} has {n_classes} classes (classification{other})"


def _save(estimator: Any, out: str) -> tuple[Any, CheckpointError | None]:
    """Save a model; where that fails, elsewhere. Return where, and the error that told."""
    from ..training.saving import save_elsewhere

    try:
        estimator.save(out)
    except CheckpointError as error:
        place = save_elsewhere(estimator.save, out)
        if place is None:
            raise
        return place, CheckpointError(f"{error} The model is in {place}.")
    return out, None


def _make_estimator(arguments: argparse.Namespace, samples: Samples) -> Any:
    from ..estimators.classifier import SparseMLPClassifier
    from ..estimators.regressor import SparseMLPRegressor

    does = {"balanced": "weighs classes", "label_smoothing": "shares labels among classes"}
    for name, what in does.items():
        if getattr(arguments, name) and samples.task == "regression":
            raise ParameterError(
                f"{flag_of(name)} {what}, and {samples.target} is predicted as numbers. "
                "Leave it out, or say --task classification."
            )
    said = {RENAMED.get(flag, flag): value for flag, value in vars(arguments).items()}
    said |= {"drop": None} | given_settings(arguments, SETTINGS)  # --drop leaves columns out
    known = [field.name for field in dataclasses.fields(SparseMLPRegressor)]
    options = {name: said[name] for name in known if said.get(name) is not None}
    options["verbose"] = not arguments.quiet
    options.setdefault("n_jobs", -1)
    if samples.task == "regression":
        estimator: Any = SparseMLPRegressor(**options)
    else:
        options["class_weight"] = "balanced" if arguments.balanced else None
        estimator = SparseMLPClassifier(**options)
    estimator._column_names = samples.feature_names
    return estimator
