"""Default settings on real tables, beside scikit-learn's models: accuracy, seconds, memory.

    python tools/evaluate_tables.py                             # the three tables, all models
    python tools/evaluate_tables.py --tables genes --models sparse mlp --backend fused
    python tools/evaluate_tables.py --tables ../shared/data/panel/*.npz --folds 3 --repeats 2

Every fit runs in a process of its own, one at a time, so that its peak memory is its own.
`fit_mib` is the peak of fit beyond what the process had before. `code_mib` is what a first fit, to
a tiny table, added before that: libraries and kernels, which a process loads once. Tables with a
test part of their own (higgs) are fitted once; the others in stratified folds, the same for all
models, fold after fold. Of several tables a panel is printed at the end: accuracies with their
standard errors, the mean over the tables, and the seconds of a fit.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from largesparse.data.datasets import load_dataset
from largesparse.errors import LargeSparseError
from largesparse.machine.exit_codes import run_command
from largesparse.machine.sizes import parse_size
from largesparse.machine.usage import peak_rss_bytes, start_peak_rss

TABLES = {  # name on the command line -> data set, and whether it is cut into folds
    "genes": ("microarray_nakayama", True),
    "dorothea": ("dorothea", True),
    "higgs": ("higgs", False),
    "madelon": ("madelon", False),
}
FOLDS = 5


class FitError(LargeSparseError):
    """A fit in a process of its own failed."""


def make_model(name: str, options: Namespace, *, is_sparse: bool) -> Any:
    """Return a model with default settings; standardised where that is what users do."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from largesparse import SparseMLPClassifier

    scaler = StandardScaler(with_mean=not is_sparse)
    seed = options.seed
    if name == "sparse":
        return SparseMLPClassifier(
            random_state=seed, backend=options.backend, n_jobs=options.threads
        )
    if name == "mlp":
        return make_pipeline(scaler, MLPClassifier(random_state=seed))
    if name == "logistic":
        return make_pipeline(scaler, LogisticRegression(max_iter=1000))
    return RandomForestClassifier(random_state=seed, n_jobs=options.threads)


MODELS = ("sparse", "mlp", "logistic", "forest")


def fit_once(options: Namespace) -> dict[str, float]:
    """Fit and score one model on one fold, in this process."""
    import warnings

    import psutil
    from scipy.sparse import csr_matrix, vstack
    from sklearn.base import clone
    from sklearn.model_selection import StratifiedKFold

    warnings.filterwarnings("ignore", message=".*did not converge|Maximum iterations")
    data_name, in_folds = TABLES.get(options.tables[0], (options.tables[0], True))
    data = load_dataset(data_name)
    X, y, X_test, y_test = data[:4]
    if in_folds:
        stack = np.concatenate if isinstance(X, np.ndarray) else vstack
        X, y = stack([X, X_test]), np.concatenate([y, y_test])
        if not isinstance(X, np.ndarray):
            X = X.tocsr()
        repeat, fold = divmod(options.fold, options.folds)
        cut = StratifiedKFold(options.folds, shuffle=True, random_state=options.seed + repeat)
        train, test = list(cut.split(np.zeros(len(y)), y))[fold]
        X, y, X_test, y_test = X[train], y[train], X[test], y[test]
    if isinstance(X, np.ndarray):
        X, X_test = X.astype(np.float32), X_test.astype(np.float32)
    model = make_model(options.models[0], options, is_sparse=not isinstance(X, np.ndarray))
    process = psutil.Process()
    give_back_free_memory()
    at_first = process.memory_info().rss
    few = np.random.default_rng(0).standard_normal((64, 8), dtype=np.float32)
    clone(model).fit(few if isinstance(X, np.ndarray) else csr_matrix(few), np.arange(64) % 2)
    give_back_free_memory()
    start_peak_rss()
    before = process.memory_info().rss
    started = time.perf_counter()
    model.fit(X, y)
    seconds = time.perf_counter() - started
    peak = peak_rss_bytes()
    started = time.perf_counter()
    accuracy = model.score(X_test, y_test)
    predicted = time.perf_counter() - started
    return {
        "accuracy": float(accuracy),
        "fit_s": seconds,
        "predict_s": predicted,
        "fit_mib": (peak - before) / 2**20,
        "code_mib": (before - at_first) / 2**20,
    }


def give_back_free_memory() -> None:
    """Return to the system what was freed (glibc), so that nothing is hidden in it later."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def in_its_own_process(table: str, model: str, fold: int, options: Namespace) -> dict[str, float]:
    """Run `fit_once` in a new process, and return its result."""
    command = [sys.executable, __file__, "--tables", table, "--models", model]
    command += ["--fold", str(fold), "--folds", str(options.folds), "--seed", str(options.seed)]
    command += ["--threads", str(options.threads)]
    command += ["--backend", options.backend] if options.backend else []
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    threads = {name: str(options.threads) for name in names}
    result = subprocess.run(
        command, env={**os.environ, **threads}, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise FitError(f"{model} on {table} failed: {result.stderr.strip()[-500:]}")
    found: dict[str, float] = json.loads(result.stdout.strip().splitlines()[-1])
    return found


def make_parser() -> ArgumentParser:
    """Return the parser of the command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--tables", nargs="+", default=["genes", "dorothea", "higgs"], metavar="TABLE",
        help=f"{', '.join(TABLES)}, or files")  # fmt: skip
    add("--models", nargs="+", choices=MODELS, default=list(MODELS))
    add("--backend", help="of the sparse model (LARGESPARSE_BACKEND, else mkl)")
    add("--threads", type=parse_size, default=1, help="of every model (%(default)s)")
    add("--seed", type=int, default=0, help="of folds and models (%(default)s)")
    add("--folds", type=parse_size, default=FOLDS, help="of a table (%(default)s)")
    add("--repeats", type=parse_size, default=1, help="divisions into folds (%(default)s)")
    add("--fold", type=int, help="fit this fold in this process, and print JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Fit all models to all tables, and print a table of each."""
    options = make_parser().parse_args(argv)
    if options.fold is not None:
        print(json.dumps(fit_once(options)))
        return
    panel = []
    for table in options.tables:
        rows = []
        folds = range(options.folds * options.repeats if TABLES.get(table, ("", True))[1] else 1)
        jobs = [(model, fold) for fold in folds for model in options.models]
        for model, fold in tqdm(jobs, desc=table, leave=False, disable=None):
            rows.append({"model": model, **in_its_own_process(table, model, fold, options)})
        groups = pd.DataFrame(rows).groupby("model", sort=False)
        summary = groups.median()
        summary["accuracy"] = groups["accuracy"].mean()
        summary.insert(1, "standard_error", groups["accuracy"].sem())
        print(f"\n{table}: mean accuracy of {len(folds)} folds, medians of the rest, "
              f"{options.threads} threads")  # fmt: skip
        print(summary.round({"accuracy": 4, "standard_error": 4, "fit_s": 2, "predict_s": 3,
                             "fit_mib": 0, "code_mib": 0}).to_string(), flush=True)  # fmt: skip
        panel.append(summary.assign(table=Path(table).stem))
    if len(panel) > 1:
        print_panel(pd.concat(panel).reset_index())


def print_panel(summaries: pd.DataFrame) -> None:
    """Print the accuracy and the seconds of all tables, a column for each model."""
    models = list(dict.fromkeys(summaries["model"]))

    def column(name: str) -> pd.DataFrame:
        return summaries.pivot(index="table", columns="model", values=name)[models]

    accuracy, error, seconds = map(column, ("accuracy", "standard_error", "fit_s"))
    shown = accuracy.map("{:.3f}".format) + error.map(" ± {:.3f}".format)
    mean_error = (error**2).sum() ** 0.5 / len(error)
    shown.loc["mean"] = [f"{accuracy[m].mean():.3f} ± {mean_error[m]:.3f}" for m in models]
    print(f"\naccuracy\n{shown.to_string()}\n\nseconds of a fit\n{seconds.round(3).to_string()}")


if __name__ == "__main__":
    sys.exit(run_command(main))
