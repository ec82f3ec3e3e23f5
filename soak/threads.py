"""Predict from threads and forked processes for long, and count what goes wrong.

    python -m soak threads --rounds 1000
    python -m soak threads --backends fused --parts "forked pool" --rounds 100

Every part is a process of its own, for each backend that can be loaded here:

    estimator       two threads predict by one fitted estimator
    predictor       two threads predict by one Predictor
    processes       two threads predict by one Predictor with two worker processes
    trainer         two threads evaluate by one Trainer
    forked pool     after a `fit` and a prediction in the parent, a pool of two forked processes
                    predicts; a new pool every round

A round is right where every prediction equals that of one thread alone. A table has a row for each
part: the rounds that were completed, the wrong ones, and how it ended: "ok", "hang" where a round
took longer than the time-out, or "crash" with the exit status. A child of a pool that is killed is
a hang of its pool, as `multiprocessing.Pool` waits for it. The exit status is 1 unless all is ok.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import make_classification

from largesparse import Predictor, SparseMLPClassifier, Trainer, TrainingConfig
from largesparse.backends import BACKENDS, get_backend
from largesparse.errors import BackendError
from largesparse.machine.sizes import parse_size
from soak import program

ROWS = 400
Call = Callable[[Any], Any]  # from some rows to their predictions


class Outcome(NamedTuple):
    """What a part has come to."""

    rounds: int
    wrong: int
    end: str
    error: str = ""  # the last line on standard error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool with the arguments `argv`."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rounds", type=parse_size, default=1000, metavar="N", help="default %(default)s")
    add("--timeout", type=float, default=60.0, metavar="S", help="of a round (default %(default)s)")
    add("--threads", type=parse_size, help="of each prediction (default: all cores)")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    add("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS), metavar="NAME")
    add("--alone", action="store_true", help="one part in this process, as the tool calls itself")
    options = parser.parse_args(argv)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends what was started
    try:
        return work(options) if options.alone else soak(options)
    finally:
        signal.signal(signal.SIGTERM, before)


def soak(options: Any) -> int:
    """Run all parts, and print the table; return 1 if anything went wrong."""
    failed = 0
    print(f"{'backend':<9}{'part':<13}{'rounds':>7}{'wrong':>7}{'seconds':>9}  end", flush=True)
    for backend in options.backends:
        try:
            get_backend(backend)
        except BackendError as error:
            print(f"{backend:<9}left out: {error}")
            continue
        for part in options.parts:
            started = time.monotonic()
            found = run(part, backend, options)
            failed += found.wrong > 0 or found.end != "ok"
            seconds = time.monotonic() - started
            line = f"{backend:<9}{part:<13}{found.rounds:>7}{found.wrong:>7}{seconds:>9.1f}"
            print(f"{line}  {found.end} {found.error}".rstrip(), flush=True)
    return 1 if failed else 0


def run(part: str, backend: str, options: Any) -> Outcome:
    """Run a part in a process of its own, which has to go on, and say what it came to."""
    command = [*program("threads"), "--alone", "--parts", part, "--backends", backend]
    command += ["--rounds", str(options.rounds)]
    if options.threads is not None:
        command += ["--threads", str(options.threads)]
    with tempfile.TemporaryDirectory() as folder:
        done, errors = Path(folder) / "done", Path(folder) / "errors"
        with open(done, "w") as stdout, open(errors, "w") as stderr:
            child = subprocess.Popen(
                command, stdout=stdout, stderr=stderr, start_new_session=hasattr(os, "setsid")
            )
        size, last = 0, time.monotonic()
        try:
            while child.poll() is None:
                time.sleep(0.05)
                if done.stat().st_size != size:
                    size, last = done.stat().st_size, time.monotonic()
                if time.monotonic() - last > (options.timeout if size else 10 * options.timeout):
                    break  # before the first round kernels may be compiled
            is_hanging = child.poll() is None
        finally:
            end_all(child)
        lines = done.read_text().split()
        told = errors.read_text(errors="replace").strip().splitlines()
    status = child.returncode
    end = "hang" if is_hanging else "ok" if status == 0 else f"crash ({status})"
    error = told[-1] if told and end != "ok" else ""
    return Outcome(len(lines), sum(int(line) > 0 for line in lines), end, error)


def end_all(child: subprocess.Popen[bytes]) -> None:
    """End a process and what it has started."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()
    child.wait()


def work(options: Any) -> int:
    """Do one part; print for every round how many of its predictions are wrong."""
    X, y = make_classification(ROWS, 20, n_informative=8, n_classes=4, random_state=0)
    X = X.astype(np.float32)
    classifier = SparseMLPClassifier(
        (60, 60), max_epochs=3, random_state=0, backend=options.backends[0], n_jobs=options.threads
    ).fit(X, y)
    half = [X[: ROWS // 2], X[ROWS // 2 :]]
    expected = [classifier.predict_proba(rows) for rows in half]  # by this thread alone
    with PARTS[options.parts[0]](classifier, half, expected) as one_round:
        for _ in range(options.rounds):
            print(one_round(), flush=True)
    return 0


Rows = list[Any]
Round = Callable[[], int]


def in_threads(call: Call, half: Rows, expected: Rows) -> int:
    """Call from two threads at once; return how many predictions are not as expected."""
    found: list[Any] = [None, None]

    def predict(k: int) -> None:
        found[k] = call(half[k])

    threads = [threading.Thread(target=predict, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return count_wrong(found, expected)


def count_wrong(found: Rows, expected: Rows) -> int:
    """Return how many rows are not as expected; all, where a prediction failed."""
    wrong = 0
    for one, right in zip(found, expected, strict=True):
        is_wrong = np.ones(len(right), bool) if one is None else (one != right).any(axis=1)
        wrong += int(is_wrong.sum())
    return wrong


@contextmanager
def estimator(classifier: Any, half: Rows, expected: Rows) -> Iterator[Round]:
    """Two threads, one estimator."""
    yield lambda: in_threads(classifier.predict_proba, half, expected)


@contextmanager
def predictor(classifier: Any, half: Rows, expected: Rows, processes: int = 1) -> Iterator[Round]:
    """Two threads, one predictor, in batches that are small beside the rows."""
    options = {"backend": classifier.backend, "threads": classifier.n_jobs, "batch_size": 16}
    with Predictor(classifier.network_, processes=processes, **options) as shared:
        right = [shared.predict_proba(rows) for rows in half]
        assert all(map(np.allclose, right, expected))  # a batch of another size, other sums
        yield lambda: in_threads(shared.predict_proba, half, right)


@contextmanager
def processes(classifier: Any, half: Rows, expected: Rows) -> Iterator[Round]:
    """Two threads, one predictor with worker processes."""
    with predictor(classifier, half, expected, processes=2) as one_round:
        yield one_round


@contextmanager
def trainer(classifier: Any, half: Rows, expected: Rows) -> Iterator[Round]:
    """Two threads, one trainer that evaluates; a row's score stands for its predictions."""
    config = TrainingConfig(batch_size=16, backend=classifier.backend, threads=classifier.n_jobs)
    shared = Trainer(classifier.network_, config)
    labels = [probabilities.argmax(axis=1).astype(np.int32) for probabilities in expected]

    def evaluate(k: int) -> Any:
        return np.array([shared.evaluate(half[k], labels[k])])

    right = [evaluate(k) for k in range(2)]
    yield lambda: in_threads(evaluate, [0, 1], right)


@contextmanager
def forked_pool(classifier: Any, half: Rows, expected: Rows) -> Iterator[Round]:
    """A pool of processes that are forks of this one, which has fitted and predicted."""
    context = multiprocessing.get_context("fork")
    # This tool's handler of SIGTERM, by which a pool ends, would wait for Python's main thread.
    plainly = {"initializer": signal.signal, "initargs": (signal.SIGTERM, signal.SIG_DFL)}

    def one_round() -> int:
        with context.Pool(2, **plainly) as pool:
            return count_wrong(pool.map(classifier.predict_proba, half), expected)

    yield one_round


PARTS: dict[str, Any] = {
    "estimator": estimator,
    "predictor": predictor,
    "processes": processes,
    "trainer": trainer,
    "forked pool": forked_pool,
}
