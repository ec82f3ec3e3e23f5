"""What sparse inputs take, next to the same inputs made dense by mini-batches."""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array, random_array
from sklearn.metrics import roc_auc_score

from largesparse import NetworkConfig, SparseMLP, SparseMLPClassifier, TrainingConfig, load_dataset
from largesparse.data import standardizer
from largesparse.harness.uncertainty import ratio_of
from largesparse.training.memory import GIB
from largesparse.training.stepping import Stepper

from . import add_figure, seconds_in_turns

SHARES = (0.001, 0.003, 0.01, 0.02, 0.03, 0.05, 0.1)
WORDS = 5  # of a row that its class tells


def make_text(rows: int, features: int, per_row: int, seed: int) -> tuple[csr_array, np.ndarray]:
    """Return rows of words of a power law, and two classes that a few words tell."""
    rng = np.random.default_rng(seed)
    y = rng.integers(2, size=rows)
    words = (features * rng.random((rows, per_row)) ** 3).astype(np.int64)
    words[:, :WORDS] = 2 * rng.integers(500, size=(rows, WORDS)) + y[:, None]
    indptr = per_row * np.arange(rows + 1)
    X = csr_array((np.ones(words.size, np.float32), words.ravel(), indptr), (rows, features))
    X.sum_duplicates()
    return X, y


def compute_as(kind: str) -> None:
    """Have all CSR inputs computed as "sparse" or "dense"."""
    standardizer.SPARSE = 1.0 if kind == "sparse" else -1.0


def wide_inputs(options: argparse.Namespace) -> None:
    """Fit SparseMLPClassifier, by default settings and one thread, to wide sparse rows.

    That is a data set, such as dorothea, or made-up text. A fifth of the rows is held out. With
    --dense the rows are also made dense by mini-batches, in turns; these have all features centred.
    """
    if options.data:
        data = load_dataset(options.data, test_fraction=0.2)
        X, y, X_test, y_test = data[:4]
    else:
        count = options.rows // 5
        rows = make_text(options.rows + count, options.features, options.per_row, options.seed)
        (X, X_test), (y, y_test) = ((part[:-count], part[-count:]) for part in rows)
    kinds = ["sparse", "dense"][: 1 + options.dense]
    small = partial(SparseMLPClassifier, random_state=options.seed, n_jobs=1)
    for kind in kinds:  # compiles
        compute_as(kind)
        small(max_epochs=2).fit(X[:256], y[:256]).predict(X_test[:9])
    print(f"{X.shape[0]:,} x {X.shape[1]:,}, {X.nnz / X.shape[0]:.0f} nonzeros a row")
    for kind in kinds * options.repeats:
        compute_as(kind)
        started = time.process_time()
        model = small().fit(X, y)
        fitted = time.process_time()
        scores = model.predict_proba(X_test)[:, 1]
        predicted = time.process_time()
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB
        print(
            f"{kind}: fit {fitted - started:.2f} s of CPU, {model.n_iter_} epochs of "
            f"{(fitted - started) / model.n_iter_:.3f} s, predict {predicted - fitted:.2f} s, AUC "
            f"{roc_auc_score(y_test, scores):.3f}, peak {peak:.2f} GiB so far",
            flush=True,
        )


def crossover(options: argparse.Namespace) -> None:
    """Time a step on sparse inputs by their share of nonzeros, relative to dense ones.

    Both take turns, in one process, with the fused backend and one thread.
    """
    sizes = options.features, 400, 400, 2
    network = SparseMLP(NetworkConfig(sizes, epsilon=options.epsilon, recipe="width"))
    settings = TrainingConfig(batch_size=128, learning_rate=1e-4, backend="fused", threads=1)
    steppers = {kind: Stepper(network, settings) for kind in ("sparse", "dense")}
    rng = np.random.default_rng(0)
    print(f"{'nonzeros':>9}{'sparse, ms':>12}{'dense, ms':>12}{'ratio':>8}")
    for share in options.shares:
        shape = 128 * 8, options.features
        X = random_array(shape, density=share, format="csr", dtype=np.float32, rng=rng)
        y = rng.integers(2, size=len(X.indptr) - 1).astype(np.int32)

        def step(kind: str, X: csr_array = X, y: np.ndarray = y) -> None:
            compute_as(kind)
            steppers[kind].step(X, y, rng.integers(len(y), size=128))

        turns = {kind: partial(step, kind) for kind in steppers}
        times = seconds_in_turns(turns, options.repeats, warm_ups=2)
        sparse, dense = (1e3 * statistics.median(times[kind]) for kind in ("sparse", "dense"))
        ratio = ratio_of(times["sparse"], times["dense"])
        print(f"{share:>9.1%}{sparse:>12.2f}{dense:>12.2f}{ratio:>8.2f}", flush=True)


def make_categories(rows: int, columns: int, kinds: int, seed: int) -> pd.DataFrame:
    """Return columns of text of evenly distributed kinds, and y, of which each kind tells a bit.

    The log odds of y are the sum of a standard normal number for each of a row's kinds.
    """
    rng = np.random.default_rng(seed)
    codes = rng.integers(kinds, size=(rows, columns))
    effects = rng.standard_normal((columns, kinds))
    odds = effects[np.arange(columns), codes].sum(axis=1)
    table = pd.DataFrame({f"column {k}": codes[:, k] for k in range(columns)})
    y = rng.random(rows) < 1 / (1 + np.exp(-odds))
    return ("kind " + table.astype(str)).assign(y=np.where(y, "yes", "no"))


def categories(options: argparse.Namespace) -> None:
    """Compare `largesparse train --categorical` with one-hot codes and logistic regression.

    The table is made up: columns of text of many kinds. A fifth of the rows is held out. Memory is
    the peak of a process, and of one that trains on 200 of the rows.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    print(
        f"{'seed':>4}{'logistic':>10}{'ours':>8}{'s':>7}{'MiB':>7}{'of 200 rows':>13}{'dense':>7}"
    )
    for seed in range(options.seed, options.seed + options.repeats):
        table = make_categories(options.rows, options.columns, options.kinds, seed)
        n_train = len(table) - len(table) // 5
        train, test = table[:n_train], table[n_train:]
        X = train.drop(columns="y")
        logistic = make_pipeline(
            OneHotEncoder(handle_unknown="ignore"), LogisticRegression(max_iter=1000)
        )
        reached = logistic.fit(X, train["y"]).score(test[X.columns], test["y"])
        peaks = []
        with tempfile.TemporaryDirectory() as folder:
            paths = [str(Path(folder) / name) for name in ("train.csv", "test.csv", "model")]
            test.to_csv(paths[1], index=False)
            for part in (train[:200], train):
                part.to_csv(paths[0], index=False)
                command = ["train", "--data", paths[0], "--target", "y", "--categorical"]
                command += ["--test-fraction", "0", "--threads", "1", "--quiet", "--out", paths[2]]
                started = time.perf_counter()
                peaks.append(run_command(command)[1])
                seconds = time.perf_counter() - started
            known = ["--data", paths[1], "--target", "y", "--json"]
            found = json.loads(run_command(["evaluate", paths[2], *known])[0])["accuracy"]
        dense = 4 * len(train) * sum(X.nunique()) / 2**20
        print(
            f"{seed:>4}{reached:>10.4f}{found:>8.4f}{seconds:>7.1f}{peaks[1]:>7.0f}{peaks[0]:>13.0f}"
            f"{dense:>7.0f}",
            flush=True,
        )


def run_command(arguments: list[str]) -> tuple[str, float]:
    """Run `largesparse` in a process of its own; return what it prints, and its peak in MiB."""
    command = [sys.executable, "-m", "largesparse", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(process.returncode)
    return printed, usage.ru_maxrss / 1024


def add_figures(figures: Any) -> None:
    """Add wide_inputs, crossover and categories."""
    add = add_figure(figures, "wide_inputs", wide_inputs).add_argument
    add("--data", help="a data set; default: made-up text")
    add("--rows", type=int, default=20_000, help="of text; default %(default)s")
    add("--features", type=int, default=1_300_000, help="of text; default %(default)s")
    add("--per-row", type=int, default=100, help="words of a row; default %(default)s")
    add("--repeats", type=int, default=1, help="default %(default)s")
    add("--dense", action="store_true", help="also make mini-batches dense")
    add("--seed", type=int, default=0, help="default %(default)s")
    add = add_figure(figures, "categories", categories).add_argument
    add("--rows", type=int, default=20_000, help="default %(default)s")
    add("--columns", type=int, default=5, help="default %(default)s")
    add("--kinds", type=int, default=1000, help="of a column; default %(default)s")
    add("--repeats", type=int, default=3, help="tables; default %(default)s")
    add("--seed", type=int, default=0, help="of the first; default %(default)s")
    add = add_figure(figures, "crossover", crossover).add_argument
    add("--features", type=int, default=20_000, help="default %(default)s")
    add("--epsilon", type=float, default=20.0, help="default %(default)s")
    add("--shares", type=float, nargs="+", default=SHARES, help="default %(default)s")
    add("--repeats", type=int, default=21, help="default %(default)s")
