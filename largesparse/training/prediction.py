"""Prediction in batches, in this process or in spawned ones that share one copy of the model.

Workers map model and inputs from files in shared memory, which are deleted as soon as every worker
has them mapped: nothing is left behind, whatever happens.
"""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from ..backends import get_backend
from ..data.checks import check_X
from ..data.frames import align_frame
from ..data.label_sets import LabelSets
from ..data.standardizer import Standardizer
from ..errors import ParameterError, WorkerError, check_range
from ..machine.mapped_memory import SharedFiles, X_from_arrays, X_to_arrays
from ..machine.output import LogLines
from ..machine.threads import available_threads, resolve_threads
from ..model.config import ActivationDtype
from ..model.folding import fold_layers
from ..model.forward import forward
from ..model.layer import Forward, ForwardLayer
from ..model.losses import LOSSES
from ..model.network import SparseMLP
from ..model.workspace import Workspace, check_activation_dtype
from .memory import prediction_batch
from .outputs import (
    Digest,
    Outputs,
    Top,
    check_outputs,
    check_top,
    join_likely_labels,
    likely_labels,
    top_labels,
)

MAX_PROCESSES = 1024
FIELDS = [field.name for field in dataclasses.fields(ForwardLayer)]


def predict_proba(network: SparseMLP, X: Any, **options: Any) -> NDArray[np.float32]:
    """Return class probabilities, float32 (n_samples, n_classes); see `Predictor`."""
    with Predictor(network, **options) as predictor:
        return predictor.predict_proba(X)


def predict(network: SparseMLP, X: Any, **options: Any) -> NDArray[Any]:
    """Return class labels (n_samples,), or predicted numbers; see `Predictor`."""
    with Predictor(network, **options) as predictor:
        return predictor.predict(X)


def predict_top(network: SparseMLP, X: Any, k: int, **options: Any) -> Top:
    """Return the k most probable labels of every row, and their probabilities; see `Predictor`."""
    with Predictor(network, **options) as predictor:
        return predictor.predict_top(X, k)


class Predictor:
    """Predicts by batches, with the same result for any number of processes and threads.

    Several Python threads may use it at once: each has buffers of its own meanwhile, or, with
    worker processes, waits for the others.

    Parameters
    ----------
    network : SparseMLP
        Changes that are made to it later are not seen by worker processes, nor where layers are
        normalised or have an average: see `fold`.
    processes : int
        1 predicts in this process; more start that many worker processes, which stay until
        `close`. A script that uses them needs the `if __name__ == "__main__":` guard.
    threads : int, optional
        Threads of each process; by default the cores divided by the processes.
    batch_size : int, optional
        Samples computed at once; by default at most 1024, fewer for wide networks.
    backend : str, optional
    activation_dtype : str
        How activations are kept: "float32", or "bfloat16", which is faster in very wide networks
        and has 8 bits of precision (backend "fused" only).

    Examples
    --------
    >>> with Predictor(network, processes=4) as predictor:  # doctest: +SKIP
    ...     labels = predictor.predict(X)
    """

    def __init__(
        self,
        network: SparseMLP,
        *,
        processes: int = 1,
        threads: int | None = None,
        batch_size: int | None = None,
        backend: str | None = None,
        activation_dtype: ActivationDtype = "float32",
    ) -> None:
        check_range("processes", processes, "prediction", low=1, high=MAX_PROCESSES, integer=True)
        if threads is None:
            threads = max(1, available_threads() // processes)
        threads = resolve_threads(threads, "prediction")
        self._sizes = network.config.layer_sizes
        self._batch_size = check_batch_size(batch_size) or prediction_batch(self._sizes)
        self._outputs = Outputs.of(network)
        self._feature_names = network.feature_names
        self._workers: list[_Worker] = []
        self._engine: Engine | None = None
        # of the workers' connections; without them a predictor can be pickled
        self._lock: Any = threading.RLock() if processes > 1 else nullcontext()
        self._owner = os.getpid()
        used = get_backend(backend, self._sizes, max(network.layer_connections))
        activation = network.config.activation
        check_activation_dtype(activation_dtype, used, activation, "prediction")
        loss = network.config.loss
        settings = self._batch_size, threads, used.name, loss, activation_dtype
        if processes == 1:
            self._engine = Engine(fold_layers(network.layers), network.preprocessing, *settings)
            return
        files = SharedFiles()
        try:
            layout, arrays = to_arrays(network)
            places = [files.share(array) for array in arrays]
            self._workers = [_Worker((layout, places, settings)) for _ in range(processes)]
            for worker in self._workers:
                worker.receive()  # it has mapped the model
        except BaseException:
            self.close()
            raise
        finally:
            files.delete()

    def predict(self, X: Any) -> NDArray[Any]:
        """Return class labels (n_samples,) of X (n_samples, n_features), dense or CSR.

        Of a data frame the columns are taken that the network was trained on, by their names. A
        regression returns numbers, (n_samples,) or, for several targets, (n_samples, n_targets):
        float64 where the network has the mean and the scale of its targets, else float32. Where
        rows have any number of labels it is an indicator, csr_array int64 (n_samples, n_labels),
        of those with a probability of a half or more. For errors see `predict_proba`.
        """
        X = self._check(X)
        if not self._outputs.is_multilabel:
            return self._outputs.to_predictions(self.compute(X))
        parts: dict[int, LabelSets | int] = {}
        self._visit(X, likely_labels, lambda start, _, found: parts.__setitem__(start, found))
        return join_likely_labels([parts[start] for start in sorted(parts)])

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Return probabilities of classes or labels, float32 (n_samples, n_outputs).

        Raises
        ------
        ParameterError
            Where the network predicts numbers.
        DataError
            Where X cannot be used.
        NumericalError
            Where what the network computes is not finite.
        WorkerError
            Where a worker process failed; the predictor is closed then.
        """
        self._outputs.check_classes()
        return self.compute(self._check(X))

    def predict_top(self, X: Any, k: int) -> Top:
        """Return the k most probable labels or classes of every row, and their probabilities.

        Both are (n_samples, k), the most probable first; labels are those of `network.classes`, or
        numbers of outputs, int32. Only k numbers a row are kept. Errors are those of
        `predict_proba`.
        """
        self._outputs.check_classes()
        check_top(k, self._sizes[-1])
        X = self._check(X)
        places = np.empty((X.shape[0], k), dtype=np.int32)
        scores = np.empty((X.shape[0], k), dtype=np.float32)

        def take(start: int, stop: int, found: Any) -> None:
            places[start:stop], scores[start:stop] = found

        self._visit(X, partial(top_labels, k=k), take)
        return self._outputs.to_top(places, scores)

    def _check(self, X: Any) -> Any:
        return check_X(align_frame(X, self._feature_names), self._sizes[0])

    def compute(self, X: Any) -> NDArray[np.float32]:
        """Return probabilities or numbers, float32 (n_samples, n_outputs), of X from `check_X`."""
        out = np.empty((X.shape[0], self._sizes[-1]), dtype=np.float32)
        self._visit(X, None, lambda start, stop, found: out.__setitem__(slice(start, stop), found))
        return check_outputs(out)

    def _visit(self, X: Any, digest: Digest | None, take: Callable[[int, int, Any], None]) -> None:
        """Call take(start, stop, what `Engine.outputs` returns) for every batch, in any order."""
        parts = list(batches(0, X.shape[0], self._batch_size))
        lines = LogLines("prediction", X.shape[0], " rows")
        if (engine := self._engine) is not None:
            for start, stop in parts:
                take(start, stop, engine.outputs(X, start, stop, digest))
                lines.update(stop - start)
            return
        if self._workers and self._owner != os.getpid():
            raise ParameterError(
                "The worker processes of a predictor belong to the process that made it, and this "
                "one is a fork of it: make a new one here."
            )
        with self._lock:
            if not self._workers:
                raise ParameterError("The predictor is closed: make a new one.")
            try:
                self._distribute(X, parts, digest, take, lines)
            except BaseException:
                self.close()
                raise

    def _distribute(
        self,
        X: Any,
        parts: list[tuple[int, int]],
        digest: Digest | None,
        take: Callable[[int, int, Any], None],
        lines: LogLines,
    ) -> None:
        files = SharedFiles()
        try:
            places = [files.share(array) for array in X_to_arrays(X)]
            data = (X.shape if issparse(X) else None, digest), places
            for worker in self._workers:
                worker.send(data)
            for worker in self._workers:
                worker.receive()  # it has mapped the data
        finally:
            files.delete()
        waiting, idle = list(reversed(parts)), list(self._workers)
        busy: dict[Any, _Worker] = {}
        while waiting or busy:
            while waiting and idle:
                worker = idle.pop()
                worker.send(waiting.pop())
                busy[worker.connection] = worker
            for connection in wait(list(busy)):
                worker = busy.pop(connection)
                start, stop, outputs = worker.receive()
                take(start, stop, outputs)
                lines.update(stop - start)
                idle.append(worker)

    def close(self) -> None:
        """End the worker processes."""
        self._engine = None
        if self._owner != os.getpid():  # a fork: the workers are its parent's
            return
        with self._lock:
            for worker in self._workers:
                worker.connection.close()
            for worker in self._workers:
                worker.end()
            self._workers = []

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


ForwardLayout = list[list[Any]]  # the fields of each layer, and mean and scale; ... is an array


def to_arrays(network: SparseMLP) -> tuple[ForwardLayout, list[NDArray[Any]]]:
    """Return all that predicting needs of a network as arrays; `from_arrays` goes back."""
    scaling = network.preprocessing
    parts = [[getattr(layer, name) for name in FIELDS] for layer in fold_layers(network.layers)]
    parts.append([] if scaling is None else [scaling.mean, scaling.scale])
    arrays = [value for part in parts for value in part if isinstance(value, np.ndarray)]
    return [[... if isinstance(v, np.ndarray) else v for v in part] for part in parts], arrays


def from_arrays(
    layout: ForwardLayout, arrays: Iterable[NDArray[Any]]
) -> tuple[list[ForwardLayer], Standardizer | None]:
    """Return the layers and the standardisation of the network that `to_arrays` was given."""
    rest = iter(arrays)
    parts: ForwardLayout = [[next(rest) if v is ... else v for v in part] for part in layout]
    layers, scaling = [ForwardLayer(*part) for part in parts[:-1]], parts[-1]
    return layers, Standardizer(*scaling) if scaling else None


def check_batch_size(batch_size: int | None) -> int | None:
    """Return the batch size of a prediction if it is None or at least 1, or raise."""
    if batch_size is not None:
        check_range("batch_size", batch_size, "prediction", low=1, integer=True)
    return batch_size


def batches(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Return the first row of every batch of rows [start, stop), and the row after its last."""
    for first in range(start, stop, size):
        yield first, min(first + size, stop)


@dataclass(eq=False)
class Engine:
    """Computes the probabilities (or numbers) of a range of rows, in one process."""

    layers: Sequence[Forward]
    preprocessing: Standardizer | None
    batch_size: int
    threads: int
    backend: str
    loss: str  # which says what outputs mean
    activation_dtype: ActivationDtype = "float32"

    def __post_init__(self) -> None:
        self._backend = get_backend(self.backend)
        # A workspace for each thread at work: none waits, and a fork meets no lock that is held.
        self._idle = [self._new_workspace()]  # pop and append are atomic

    def _new_workspace(self) -> Workspace:
        return Workspace(
            self.layers,
            self.batch_size,
            training=False,
            activation_dtype=self.activation_dtype,
            sparse_inputs=True,
        )

    def outputs(self, X: Any, start: int, stop: int, digest: Digest | None = None) -> Any:
        """Return those of rows [start, stop), at most a batch: float32 (rows, n_outputs).

        Or what `digest` makes of the logits, float32 (n_outputs, rows), and the loss.
        """
        rows = np.arange(start, stop)
        try:
            workspace = self._idle.pop()
        except IndexError:
            workspace = self._new_workspace()
        try:
            with self._backend.threads(self.threads):
                workspace.load_(X, rows, self.preprocessing)
                logits = forward(self.layers, workspace, stop - start, self._backend)
                if digest is not None:
                    return digest(logits, self.loss, start)
                found = LOSSES[self.loss].to_outputs(logits)
                # a transposed view costs nothing, but the buffer is used again
                return found.T.copy() if np.may_share_memory(found, logits) else found.T
        finally:
            if len(self._idle) < available_threads():  # more would not compute at once
                self._idle.append(workspace)


class _Worker:
    """A worker process, as its parent sees it."""

    def __init__(self, model: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, model), daemon=True)
        self.process.start()
        theirs.close()  # so that the death of the worker is seen as the end of its messages

    def send(self, request: Any) -> None:
        try:
            self.connection.send(request)
        except OSError as error:
            raise self._death() from error

    def receive(self) -> Any:
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._death() from error
        if kind == "failed":
            raise WorkerError(f"A worker process of prediction failed: {content}")
        return content

    def _death(self) -> WorkerError:
        self.process.join(5)
        return WorkerError(
            f"A worker process of prediction died (exit code {self.process.exitcode}); out "
            "of memory is the usual cause. Use fewer processes or a smaller batch_size."
        )

    def end(self) -> None:
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _work(connection: Connection, model: Any) -> None:
    """Run a worker: map the model, then answer requests until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    logging.getLogger("largesparse").setLevel(logging.ERROR)  # the parent has said it already
    try:
        layout, places, settings = model
        layers, preprocessing = from_arrays(layout, [place.open() for place in places])
        engine = Engine(layers, preprocessing, *settings)
        engine.outputs(np.zeros((1, layers[0].n_in), dtype=np.float32), 0, 1)  # load kernels
        connection.send(("ready", None))
        X: Any = None
        digest: Digest | None = None
        while True:
            first, second = connection.recv()
            if isinstance(second, list):  # new data: its shape, what is asked, its arrays' places
                shape, digest = first
                X = X_from_arrays(shape, (place.open() for place in second))
                connection.send(("ready", None))
            else:
                outputs = engine.outputs(X, first, second, digest)
                if digest is None:
                    outputs = np.ascontiguousarray(outputs)
                connection.send(("done", (first, second, outputs)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent closed the predictor, or is gone
    except Exception as error:
        connection.send(("failed", f"{type(error).__name__}: {error}"))
