"""Compare settings on rows held out from the training part of a data set: how the rule was chosen.

    python tools/choose_settings.py --dataset fashionmnist --rows 20k --epochs 50 --prior 0 4 12
    python tools/choose_settings.py --dataset madelon --folds 5 --prior 8 12 --seeds 3
    python tools/choose_settings.py --dataset higgs --epochs 60 --settings rule paper tuned

A candidate is the rule of `largesparse.paper.settings` with other numbers; several values
of a flag make a grid. Every candidate trains the sparse network with All-ReLU of Table 2 on
`--rows` of the training part, and is scored on a fold of it, which is another for every seed. The
test part is not looked at. --settings adds those of `tools/paper_tables.py`.

Records are appended to --out, and a training that is there is not run again. "best" is the best
validation accuracy over the epochs, "last" and the losses are those of the last epoch. Trainings
run one after the other, with one thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from largesparse import read_records
from largesparse.backends import BACKENDS
from largesparse.data.datasets import Dataset
from largesparse.errors import ParameterError
from largesparse.harness.records import append_record, check_output
from largesparse.machine.exit_codes import run_command
from largesparse.machine.sizes import parse_size
from largesparse.paper import reported as paper
from largesparse.paper.run import load, run_sequential
from largesparse.paper.settings import SETTINGS, Rule
from largesparse.paper.trainings import Protocol, Training, key_of, rows_of

NUMBERS = tuple(field.name for field in dataclasses.fields(Rule))
KIND = "choose_settings"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--dataset",
        type=paper.parse_dataset,
        required=True,
        metavar="NAME",
        help=", ".join(paper.TASKS),
    )
    add("--rows", type=parse_size, metavar="N", help="to train on (default: all that are left)")
    add("--folds", type=parse_size, default=6, help="of the training part (default %(default)s)")
    add("--seeds", type=parse_size, default=1, metavar="N", help="a fold each (default 1)")
    add("--epochs", type=parse_size, default=paper.EPOCHS, help="default %(default)s")
    add("--settings", nargs="+", choices=SETTINGS, default=[], help="to run too")
    of_rule = parser.add_argument_group("the rule's, one value or several")
    for name in NUMBERS:
        flag, default = "--" + name.replace("_", "-"), getattr(Rule(), name)
        of_rule.add_argument(flag, type=float, nargs="+", metavar="X", help=f"default {default:g}")
    add("--backend", choices=BACKENDS, default=Protocol().backend, help="default %(default)s")
    add("--out", default="choice.jsonl", metavar="FILE", help="default %(default)s")
    return parser


def candidates(options: argparse.Namespace) -> dict[str, Any]:
    """Return functions of (data set, rows, epochs), by what they are called."""
    grid = {name: getattr(options, name) for name in NUMBERS if getattr(options, name)}
    found: dict[str, Any] = {name: SETTINGS[name] for name in options.settings}
    if grid or not found:
        for values in itertools.product(*grid.values()):
            changes = dict(zip(grid, values, strict=True))
            shown = ", ".join(f"{name} {value:g}" for name, value in changes.items())
            found[shown or "rule"] = Rule(**changes)
    return found


def hold_out(data: Dataset, fold: int, folds: int, rows: int | None) -> Dataset:
    """Return training rows of a data set, and a fold of the others as its test part."""
    order = np.random.default_rng(0).permutation(len(data.y_train))
    parts = np.array_split(order, folds)
    held = np.sort(parts.pop(fold))
    left = np.concatenate(parts)
    if rows is not None and rows > len(left):
        raise ParameterError(
            f"The number of rows must be at most {len(left)}, which {folds} folds leave of the "
            f"training part. Got {rows} instead."
        )
    kept = np.sort(left[:rows])
    X, y = data.X_train, data.y_train
    name = f"{data.name}, fold {fold} of {folds}"
    return Dataset(X[kept], y[kept], X[held], y[held], name)


def trainings(options: argparse.Namespace, rows: int) -> Iterator[tuple[str, int, Training]]:
    """Yield what is to be run: the candidate's name, the fold, the training."""
    for name, settings in candidates(options).items():
        chosen = settings(options.dataset, rows, options.epochs)
        seeds = tuple(range(options.seeds))
        shared = {"epochs": options.epochs, "seeds": seeds, "backend": options.backend}
        protocol = Protocol(**shared, **dataclasses.asdict(chosen))
        (row,) = rows_of(2, options.dataset, protocol, only=["all_relu"])
        for fold, training in enumerate(row.trainings):
            yield name, fold, training


def summary(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the means over the records of a candidate, accuracies in per cent."""
    curves = [[a for a in one["accuracy"][1:] if a is not None] for one in records]
    return {
        "seeds": len(records),
        "best %": 100 * float(np.mean([max(curve, default=0.0) for curve in curves])),
        "last %": 100 * float(np.mean([one["accuracy"][-1] or np.nan for one in records])),
        "loss": float(np.mean([one["test_loss"][-1] or np.nan for one in records])),
        "training loss": float(np.mean([one["loss"][-1] or np.nan for one in records])),
        "CPU s": float(np.mean([one["cpu_s"][0] for one in records])),
    }


def read_known(path: str) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Return the records of a file, which need not exist, by settings, fold and rows."""
    if not Path(path).exists():
        return {}
    records = read_records(path)
    return {
        (key_of(one["settings"]), one["dataset"], int(one["train_samples"])): dict(one)
        for one in records[records["kind"] == KIND].to_dict("records")
    }


def show(rows: dict[str, dict[str, float]]) -> None:
    """Print the table."""
    table = pd.DataFrame.from_dict(rows, orient="index")
    digits = {"best %": 2, "last %": 2, "loss": 4, "training loss": 4, "CPU s": 0}
    print(table.round(digits).to_string())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the candidates that have not been run, and print a table of all of them."""
    parser = make_parser()
    options = parser.parse_args(argv)
    if options.folds < 2 or not 1 <= options.seeds <= options.folds:
        parser.error("--folds must be 2 or more, and --seeds from 1 to that")
    command = shlex.join(
        ["python", "tools/choose_settings.py", *(sys.argv[1:] if argv is None else argv)]
    )
    (row,) = rows_of(2, options.dataset, Protocol(epochs=options.epochs), only=["all_relu"])
    whole = load(row.trainings[0])
    parts = [hold_out(whole, fold, options.folds, options.rows) for fold in range(options.seeds)]
    known = read_known(options.out)
    wanted = list(trainings(options, len(parts[0].y_train)))
    check_output(options.out)
    found: dict[str, list[dict[str, Any]]] = {}
    with tqdm(total=len(wanted) * options.epochs, unit=" epochs", disable=None) as bar:
        for name, fold, training in wanted:
            data = parts[fold]
            key = key_of(training.settings), data.name, len(data.y_train)
            if key not in known:
                record = run_sequential(training, data, lambda *_: bar.update())
                record.kind, record.command, record.dataset = KIND, command, data.name
                append_record(options.out, record)
                known[key] = dataclasses.asdict(record)
            else:
                bar.update(options.epochs)
            found.setdefault(name, []).append(known[key])
    print(f"{options.dataset}, {len(parts[0].y_train):,} training rows, {options.epochs} epochs")
    show({name: summary(records) for name, records in found.items()})
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
