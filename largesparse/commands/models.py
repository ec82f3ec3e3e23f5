"""The commands that use saved models: predict, evaluate, inspect."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backends.choice import BACKEND_HELP
from ..data.frames import some_of
from ..data.targets import match_labels
from ..errors import DataError, ParameterError
from ..machine.environment import expand_user
from ..machine.output import check_printable
from ..machine.sizes import parse_size
from ..model.losses import LOSSES
from .files import READ, add_file_options, file_options
from .scores import RANKS, accuracy, precisions

if TYPE_CHECKING:
    from pathlib import Path

    from ..model.config import NetworkConfig
    from ..model.network import SparseMLP


def add_predict(subparsers: Any) -> None:
    """Add the command `predict`."""
    parser = subparsers.add_parser(
        "predict",
        help="predict with a saved model",
        description="Predict for the rows of a file. Columns are found by their names, in any "
        "order; further columns are ignored. The model's own scaling is applied.",
    )
    _add_model_and_data(parser, labels=False)
    parser.add_argument("--out", metavar="FILE.csv", help="receives the predictions (the screen)")
    parser.add_argument("--proba", action="store_true", help="add the probability of every class")
    parser.add_argument("--top", type=parse_size, metavar="K",
        help="the K most probable labels (5, where rows have several)")  # fmt: skip
    parser.set_defaults(run=_predict)


def add_evaluate(subparsers: Any) -> None:
    """Add the command `evaluate`."""
    parser = subparsers.add_parser(
        "evaluate",
        help="compare a saved model's predictions with known values",
        description="Print accuracy and a table of the classes, or R² and errors of a regression.",
    )
    _add_model_and_data(parser, labels=True)
    parser.add_argument("--target", help="the column with the known values")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=_evaluate)


def add_inspect(subparsers: Any) -> None:
    """Add the command `inspect`."""
    parser = subparsers.add_parser(
        "inspect",
        help="show what a saved model is",
        description="Print a model's layers, size, classes and strongest features.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a model or checkpoint")
    parser.add_argument("--features", type=parse_size, default=10,
                        help="how many of the strongest to show (%(default)s)")  # fmt: skip
    parser.add_argument("--importance", metavar="FILE.csv",
        help="receives the importance of every named neuron, or hidden neuron")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of a listing")
    parser.set_defaults(run=_inspect)


def _add_model_and_data(parser: argparse.ArgumentParser, *, labels: bool) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder of a model or checkpoint")
    add("--data", required=True, metavar="FILE", help=f"a table ({READ})")
    add_file_options(parser, labels=labels)
    add("--part", choices=("train", "test"),
        help="of an archive with x_train and x_test (test, where it is there)")  # fmt: skip
    add("--processes", type=parse_size, default=1, help="worker processes (%(default)s)")
    add("--threads", type=parse_size, help="threads of each (all cores)")
    add("--backend", help=BACKEND_HELP)


def _read_for(network: SparseMLP, arguments: argparse.Namespace, target: str | None) -> Any:
    """Read a table as a model takes it; of an archive with parts, tell which was taken."""
    from ..data.formats import parts_of
    from ..data.tables import read_table_for

    parts = parts_of(expand_user(arguments.data), arguments.format)
    part = arguments.part or (parts[-1] if parts else None)
    options = file_options(arguments)
    table = read_table_for(network, arguments.data, target, part=part, **options)
    if len(parts) == 2:
        other = parts[parts[0] == part]
        print(
            f"largesparse: of {arguments.data} the {part} part is taken, {table.X.shape[0]} rows; "
            f"--part {other} takes the other",
            file=sys.stderr,
        )
    for note in table.notes:
        print(f"largesparse: {note}", file=sys.stderr)
    return table


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in ("processes", "threads", "backend")}


def _predict(arguments: argparse.Namespace) -> int:
    import pandas as pd

    from ..training.checkpoint import load_model
    from ..training.prediction import Predictor

    network = load_model(arguments.model)
    loss = LOSSES[network.config.loss]
    for flag in ("proba", "top"):
        if getattr(arguments, flag) and loss.task == "regression":
            raise ParameterError(f"--{flag} needs a classifier, and this model predicts numbers.")
    n_outputs = network.config.layer_sizes[-1]
    if arguments.proba and (loss.is_multilabel or arguments.top):
        raise ParameterError(f"--proba would write {n_outputs} columns. Say --top {n_outputs}.")
    top = arguments.top or (min(5, n_outputs) if loss.is_multilabel else None)
    if arguments.missing == "drop":
        raise ParameterError(
            "--missing drop would leave rows without a prediction. Say --missing mean, which takes "
            "the means of the training."
        )
    out = _check_output(network, arguments)
    table = _read_for(network, arguments, None)
    with Predictor(network, **_options(arguments)) as predictor:
        if top:
            labels, scores = predictor.predict_top(table.X, top)
            columns: dict[str, Any] = {}
            for k in range(top):
                columns |= {f"label {k + 1}": labels[:, k], f"probability {k + 1}": scores[:, k]}
        elif network.classes is not None:
            probabilities = predictor.predict_proba(table.X)
            columns = {"prediction": network.classes[probabilities.argmax(axis=1)]}
            if arguments.proba:
                named = zip(network.classes.tolist(), probabilities.T, strict=True)
                columns |= {f"probability of {name}": share for name, share in named}
        else:
            found = predictor.predict(table.X)
            if found.ndim == 1:
                columns = {"prediction": found}
            else:
                columns = {f"prediction {k}": column for k, column in enumerate(found.T)}
    if table.ids is not None:
        columns = {table.layout.id or "sample": table.ids} | columns
    try:
        pd.DataFrame(columns).to_csv(out or sys.stdout, index=False)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise ParameterError(f"Cannot write {arguments.out}: {error}.") from error
    if arguments.out:
        print(f"{table.X.shape[0]} predictions: {arguments.out}")
    return 0


def _check_output(network: SparseMLP, arguments: argparse.Namespace) -> Path | None:
    """Verify, before work starts, that predictions can be written; return where."""
    from ..harness.records import check_output

    classes = [] if network.classes is None else list(map(str, network.classes.tolist()))
    if not arguments.out:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        remedy = "Pass --out FILE.csv, or set PYTHONIOENCODING=utf-8."
        check_printable(classes, encoding, "The encoding of the standard output", remedy)
        return None
    check_printable(classes, "utf-8", "The encoding of a CSV file", "Train with other labels.")
    data, out = expand_user(arguments.data), check_output(arguments.out)
    if data.exists() and out.exists() and out.samefile(data):
        raise ParameterError(f"--out {out} is the file of --data. Name another.")
    return out


def _evaluate(arguments: argparse.Namespace) -> int:
    import json

    from sklearn import metrics

    from ..data.checks import check_targets, encode_labels
    from ..training.checkpoint import load_model
    from ..training.prediction import predict

    network = load_model(arguments.model)
    if arguments.target is not None and arguments.target in (network.feature_names or []):
        raise ParameterError(
            f"--target {arguments.target} is one of the features that the model predicts from. "
            "Name the column that it predicts."
        )
    table = _read_for(network, arguments, arguments.target)
    if table.y is None:
        raise DataError(
            f"{arguments.data} has no known values"
            + (f" in its {arguments.part} part" if arguments.part else "")
            + ". Name their column by --target."
        )
    if LOSSES[network.config.loss].is_multilabel:
        return _evaluate_labels(network, table, arguments)
    if network.classes is not None:
        truth = match_labels(table.y, network.classes)
        encode_labels(truth, network.classes)  # a class that the model does not know is an error
        found = predict(network, table.X, **_options(arguments))
        truth = truth.astype(network.classes.dtype)
        report, share = metrics.classification_report, accuracy(found == truth, truth)
        if arguments.json:
            result = report(truth, found, output_dict=True, zero_division=0)
            result["95 % interval of the accuracy"] = [share.low, share.high]
            result["always the most frequent class"] = share.baseline
            print(json.dumps(result, indent=2))
        else:
            head, _, more = str(share).partition(" ")
            print(f"accuracy {head} of {len(truth)} rows {more}\n")
            print(report(truth, found, digits=4, zero_division=0))
        return 0
    truth = check_targets(table.y, network.config.layer_sizes[-1])
    found = predict(network, table.X, **_options(arguments)).reshape(truth.shape)
    scores = {
        "R²": float(metrics.r2_score(truth, found)) if len(truth) > 1 else None,
        "mean absolute error": float(metrics.mean_absolute_error(truth, found)),
        "root mean squared error": float(metrics.root_mean_squared_error(truth, found)),
        "rows": len(truth),
    }
    if arguments.json:
        print(json.dumps(scores, indent=2))
    else:
        for name, value in scores.items():
            print(f"{name:<25}" + ("one row has none" if value is None else f"{value:.6g}"))
    return 0


def _evaluate_labels(network: SparseMLP, table: Any, arguments: argparse.Namespace) -> int:
    """Print how many of the most probable labels are right."""
    import json

    from ..data.ranking import ndcg_at_k
    from ..data.samples import same_labels
    from ..training.prediction import predict_top

    n_labels = network.config.layer_sizes[-1]
    truth = same_labels(table.y, n_labels)
    most = min(RANKS[-1], n_labels)
    labels, _ = predict_top(network, table.X, most, **_options(arguments))
    scores: dict[str, float] = precisions(truth, labels)
    scores |= {f"nDCG@{k}": ndcg_at_k(truth, labels, k) for k in RANKS if k <= most}
    scores |= {"rows": len(labels)}
    if arguments.json:
        print(json.dumps(scores, indent=2))
    else:
        for name, value in scores.items():
            print(f"{name:<8}{value:.6g}")
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    import json

    from ..harness.records import check_output
    from ..model.importance import importance_table
    from ..training.checkpoint import load_model

    network = load_model(arguments.model)
    if arguments.importance:
        out = check_output(arguments.importance)
        try:
            importance_table(network).to_csv(out, index=False)
        except OSError as error:
            raise ParameterError(f"Cannot write {out}: {error}.") from error
    found = describe(network, arguments.features)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return 0
    for name, value in found.items():
        if name == "layers":
            widths = {"number": 7, "inputs": 12, "neurons": 12, "active": 12, "connections": 14}
            titles = ["layer", *list(widths)[1:]]
            print("".join(map("{:>{}}".format, titles, widths.values())) + "   density  explored")
            given = any("topology" in layer for layer in value)
            for layer in value:
                counts = (layer[key] for key in widths)
                line = "".join(map("{:>{}}".format, counts, widths.values()))
                ever = "-" if layer["explored"] is None else f"{layer['explored']:.2%}"
                topology = f"   {layer.get('topology', 'drawn')}" if given else ""
                print(f"{line}{layer['density']:>10.2%}{ever:>10}{topology}")
        elif name == "most important neurons":
            for number, neurons in value.items():
                print(f"most important neurons of layer {number} (sum of |incoming weights|)")
                print("\n".join(f"  {each:<40}{size:.4g}" for each, size in neurons.items()))
        elif name == "strongest features":
            print("strongest features (product of |weights|, summed over all paths)")
            print(
                "\n".join(f"  {feature:<40}{strength:.4g}" for feature, strength in value.items())
            )
        else:
            shown = some_of([str(item) for item in value]) if isinstance(value, list) else value
            print(f"{name:<22}{shown}")
    return 0


def describe(network: SparseMLP, features: int) -> dict[str, Any]:
    """Return what a model is, as plain values."""
    from ..model.exploration import explored_share
    from ..model.importance import active_neurons, importance_table, input_strength

    active = [*active_neurons(network), network.layers[-1].n_out]
    config, used = network.config, network.trained_with
    n_features = config.layer_sizes[0]
    strength = input_strength(network, paths=True)
    positions = network.file_layout and network.file_layout.columns
    names = network.feature_names or [f"feature {k}" for k in positions or range(n_features)]
    strongest = np.argsort(-strength, kind="stable")[:features]
    dense = sum(layer.n_in * layer.n_out for layer in network.layers)
    important: dict[int, dict[str, float]] = {}
    for number in sorted(network.neuron_names):
        best = importance_table(network, number)[:features]
        important[number] = dict(zip(best["name"], map(float, best["importance"]), strict=True))
    return {
        "task": LOSSES[config.loss].task,
        "classes": None if network.classes is None else network.classes.tolist(),
        "features": n_features,
        "activation": f"{config.activation}, alpha {config.alpha:g}",
        "backend": None if used is None else f"{used.name}: {used.reason}",
        "standardised inputs": network.preprocessing is not None,
        "hidden neurons": network.neurons,
        "active neurons": sum(active[:-1]),
        "connections": network.connections,
        "of a dense network": f"{network.connections / dense:.2%}",
        "layers": [
            {
                "number": layer.number,
                "inputs": layer.n_in,
                "neurons": layer.n_out,
                "active": count,
                "connections": layer.nnz,
                "density": layer.topology.density,
                "explored": explored_share([layer]),  # were there at some time in training
                **topology_of(config, k),
            }
            for k, (layer, count) in enumerate(zip(network.layers, active, strict=True))
        ],
        **({"most important neurons": important} if important else {}),
        "strongest features": {names[k]: float(strength[k]) for k in strongest},
    }


def topology_of(config: NetworkConfig, k: int) -> dict[str, str]:
    """Return what is said of layer k's topology, if it was given."""
    given = config.given_layer(k)
    if given is None:
        return {}
    within = f" {given.candidates} candidates" if given.candidates else ""
    return {"topology": f"given, {given.evolution}{within}"}
