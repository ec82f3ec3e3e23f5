"""What learns rows of several labels: largesparse, and what one would use instead.

Every contestant trains and predicts in a process of its own, on the same arrays, and is asked for
the five most probable labels of every test row.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array

from ...data.extreme import make_extreme_classification
from ...data.ranking import precision_at_k
from ...errors import DataError, LargeSparseError
from ...machine.environment import expand_user

TOP = 5
MADE_UP = "extreme"  # the name of a task that is made, of a size that takes seconds
Top = NDArray[np.integer]
Predict = Callable[[csr_array], Top]


@dataclass(frozen=True)
class LabelTask:
    """Rows to train on and rows to test on; those of X have the length 1."""

    name: str
    X: csr_array
    Y: csr_array
    X_test: csr_array
    Y_test: csr_array


def read_task(source: str) -> LabelTask:
    """Return the task of an archive, or the one that is made up.

    The archive has the arrays `data`, `indices`, `indptr` and `shape` of four CSR matrices, after
    `train_X_`, `train_Y_`, `test_X_` and `test_Y_`.
    """
    from sklearn.preprocessing import normalize

    if source == MADE_UP:
        made = make_extreme_classification(4000, 2000, 300, labels_per_row=3)
        return LabelTask(made.name, made.X_train, made.y_train, made.X_test, made.y_test)
    path = expand_user(source)
    if not path.is_file():
        raise DataError(f"There is no file {path}. Name one by --data, or say --data {MADE_UP}.")
    with np.load(path) as arrays:
        parts = []
        for name in ("train_X", "train_Y", "test_X", "test_Y"):
            try:
                found = {part: arrays[f"{name}_{part}"] for part in ("data", "indices", "indptr")}
                shape = tuple(arrays[f"{name}_shape"].tolist())
            except KeyError as error:
                raise DataError(f"{path} has no array {error}.") from error
            parts.append(csr_array(tuple(found.values()), shape=shape))
    X, Y, X_test, Y_test = parts
    rows = (csr_array(normalize(part.astype(np.float32))) for part in (X, X_test))
    X, X_test = rows
    return LabelTask(path.stem, X, Y, X_test, Y_test)


def train_ours(X: csr_array, Y: csr_array, threads: int) -> tuple[Predict, int]:
    """Train `SparseMLPClassifier` with its defaults."""
    from ...estimators.classifier import SparseMLPClassifier

    model = SparseMLPClassifier(random_state=0, n_jobs=threads).fit(X, Y)
    return lambda rows: model.predict_top(rows, TOP)[0], model.network_.nbytes // 3


def train_sklearn(X: csr_array, Y: csr_array, threads: int) -> tuple[Predict, int]:
    """Train `MLPClassifier` with 400 hidden neurons, otherwise with its defaults."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = MLPClassifier((400,), random_state=0)
        # in float32 it ends earlier, and is worse; in int8 it confuses more than 127 labels
        model.fit(X.astype(np.float64), Y.toarray().astype(np.int64))

    def predict(rows: csr_array) -> Top:
        return np.argsort(-model.predict_proba(rows.astype(np.float64)), axis=1)[:, :TOP]

    return predict, sum(array.nbytes for array in (*model.coefs_, *model.intercepts_))


def train_omikuji(X: csr_array, Y: csr_array, threads: int) -> tuple[Predict, int]:
    """Train Omikuji's Parabel-like trees with their defaults."""
    import omikuji

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "train.txt"
        write_extreme(data, X, Y)
        options = omikuji.Model.default_hyper_param()
        model = omikuji.Model.train_on_data(str(data), options, n_threads=threads)
        model.save(folder + "/model")
        nbytes = folder_bytes(Path(folder) / "model")

    def predict(rows: csr_array) -> Top:
        found = np.zeros((rows.shape[0], TOP), dtype=np.int64)
        for i in range(rows.shape[0]):
            part = slice(rows.indptr[i], rows.indptr[i + 1])
            pairs = list(zip(rows.indices[part].tolist(), rows.data[part].tolist(), strict=True))
            top = model.predict(pairs, top_k=TOP)
            found[i, : len(top)] = [label for label, _ in top]
        return found

    return predict, nbytes


def train_napkinxc(X: csr_array, Y: csr_array, threads: int) -> tuple[Predict, int]:
    """Train napkinXC's probabilistic label tree with its defaults."""
    from napkinxc.models import PLT
    from scipy.sparse import csr_matrix

    with tempfile.TemporaryDirectory() as folder:
        model = PLT(folder, threads=threads)
        labels = [Y.indices[a:b].tolist() for a, b in zip(Y.indptr, Y.indptr[1:], strict=False)]
        model.fit(csr_matrix(X), labels)
        model.load()
        nbytes = folder_bytes(Path(folder))

    def predict(rows: csr_array) -> Top:
        found = np.zeros((rows.shape[0], TOP), dtype=np.int64)
        for i, top in enumerate(model.predict(csr_matrix(rows), top_k=TOP)):
            found[i, : len(top)] = top
        return found

    return predict, nbytes


LABEL_PEERS = {
    "ours": train_ours,
    "sklearn": train_sklearn,
    "omikuji": train_omikuji,
    "napkinxc": train_napkinxc,
}


def write_extreme(path: Path, X: csr_array, Y: csr_array) -> None:
    """Write rows as text of extreme classification."""
    with open(path, "w", encoding="ascii") as file:
        file.write(f"{X.shape[0]} {X.shape[1]} {Y.shape[1]}\n")
        for i in range(X.shape[0]):
            labels = ",".join(map(str, Y.indices[Y.indptr[i] : Y.indptr[i + 1]]))
            part = slice(X.indptr[i], X.indptr[i + 1])
            pairs = zip(X.indices[part], X.data[part], strict=True)
            file.write(f"{labels} {' '.join(f'{j}:{value:.6g}' for j, value in pairs)}\n")


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def compare_labels(task: LabelTask, names: list[str], threads: int) -> pd.DataFrame:
    """Return precisions, seconds and bytes of the contestants that can run here."""
    rows = []
    context = multiprocessing.get_context("spawn")
    for name in names:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_measure, args=(sender, task, name, threads))
        process.start()
        sender.close()
        try:
            found = receiver.recv()
        except EOFError:
            found = "its process died"
        process.join()
        if isinstance(found, str):
            print(f"{name} is skipped: {found}", flush=True)
        else:
            rows.append({"contestant": name, **found})
    if not rows:
        raise LargeSparseError("None of the contestants can run here.")
    return pd.DataFrame(rows)


def _measure(sender: Any, task: LabelTask, name: str, threads: int) -> None:
    """Train and test a contestant in this process, and send what was found."""
    try:
        few = slice(0, 64)
        LABEL_PEERS[name](task.X[few], task.Y[few], threads)  # loads and compiles what is needed
    except ImportError as error:
        sender.send(f"{error}")
        return
    before = peak()
    started = time.perf_counter()
    predict, nbytes = LABEL_PEERS[name](task.X, task.Y, threads)
    trained = time.perf_counter()
    labels = predict(task.X_test)
    found: dict[str, float] = {
        f"P@{k}": 100 * precision_at_k(task.Y_test, labels, k) for k in (1, 3, 5)
    }
    found |= {"fit_s": trained - started, "predict_s": time.perf_counter() - trained}
    found |= {"memory_MiB": (peak() - before) / 2**20, "model_MiB": nbytes / 2**20}
    sender.send(found)


def peak() -> int:
    """Return the bytes that this process has had at most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
