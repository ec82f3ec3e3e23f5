"""Prediction by all ranks of an MPI job.

Every rank predicts a contiguous share of the rows, rank 0 too. The ranks of a node share one copy
of the layers and of the node's rows. The shares consist of the batches that a single process
would predict, because products may depend on the width of a batch in their last bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse

from ..backends import get_backend
from ..data.checks import check_X
from ..data.frames import align_frame
from ..errors import ParameterError, check_range
from ..machine.mapped_memory import (
    Arrays,
    Segment,
    Shapes,
    SharedArray,
    arrays_of,
    forget_names,
    make_arrays,
    places_in,
    shapes_of,
    share,
)
from ..machine.threads import resolve_threads
from ..model.network import SparseMLP
from ..training import prediction as inference
from ..training.memory import prediction_batch
from ..training.outputs import (
    Digest,
    Outputs,
    Top,
    check_outputs,
    check_top,
    join_likely_labels,
    likely_labels,
    top_labels,
)
from ..training.prediction import Engine, Predictor, batches, check_batch_size
from .comm.control import RankChannel, RootChannel, connect
from .comm.guard import guard
from .comm.nodes import Nodes
from .comm.ranks import agree, get_communicator, together
from .comm.transfer import CHUNK_BYTES, check_chunk_bytes, start_receive, start_send
from .shared.data import give_arrays, take_arrays

SERVER = 0
Float32 = NDArray[np.float32]


def predict_proba(
    network: SparseMLP | None,
    X: Any = None,
    *,
    comm: Any = None,
    ranks_per_node: int | None = None,
    threads: int | None = None,
    batch_size: int | None = None,
    backend: str | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Float32 | None:
    """Return class probabilities, computed by all ranks of an MPI job; all ranks call this.

    Parameters
    ----------
    network : SparseMLP or None
        It counts on rank 0, and may be None on the others, as X may.
    X : array-like or CSR of shape (n_samples, n_features)
        Should be a memory-mapped file where it is large: it is not copied then on rank 0's node.
        Other nodes get the rows that they predict.
    comm : mpi4py.MPI.Comm, optional
        By default COMM_WORLD.
    ranks_per_node : int, optional
        Splits a machine into simulated nodes, between which arrays go by MPI.
    threads : int, optional
        Of each rank; by default the cores of its node divided by its ranks.
    batch_size : int, optional
        Samples computed at once; by default at most 1024, fewer for wide networks. A rank
        predicts whole batches: where there are fewer batches than ranks, some have none.
    backend : str, optional
    chunk_bytes : int
        Largest message of a transfer between nodes.

    Returns
    -------
    probabilities : float32 (n_samples, n_classes) or None
        On rank 0, the same to the bit as those of `largesparse.predict_proba` with this batch
        size and backend; None on the others.

    Raises
    ------
    LargeSparseError
        On all ranks, where something given cannot be used: `DataError` for X, `ParameterError`
        for the rest and where the network predicts numbers. Where nobody catches it, rank 0 tells
        it. `NumericalError` on rank 0 where what it computes is not finite. Where a rank fails
        later, the whole job ends with one message.
    """
    options = _Options(threads, batch_size, backend, ranks_per_node, chunk_bytes)
    found: Float32 | None = _predict(network, X, comm, options, "predict_proba")
    return found


def predict(
    network: SparseMLP | None,
    X: Any = None,
    *,
    comm: Any = None,
    ranks_per_node: int | None = None,
    threads: int | None = None,
    batch_size: int | None = None,
    backend: str | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> NDArray[Any] | None:
    """Return class labels (n_samples,), or predicted numbers, computed by all ranks.

    Numbers, and the indicator of several labels a row, are as `Predictor.predict` returns them; of
    the latter no rank has all probabilities. Ranks other than 0 return None. For parameters and
    errors see `predict_proba`.
    """
    options = _Options(threads, batch_size, backend, ranks_per_node, chunk_bytes)
    return _predict(network, X, comm, options, "predict")


def predict_top(
    network: SparseMLP | None,
    X: Any,
    k: int,
    *,
    comm: Any = None,
    ranks_per_node: int | None = None,
    threads: int | None = None,
    batch_size: int | None = None,
    backend: str | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Top | None:
    """Return the k most probable labels of every row, and their probabilities: (n_samples, k).

    Computed by all ranks, of which none has more than k numbers a row; None on others than rank 0.
    For parameters and errors see `predict_proba`, for the rest `Predictor.predict_top`.
    """
    options = _Options(threads, batch_size, backend, ranks_per_node, chunk_bytes)
    found: Top | None = _predict(network, X, comm, options, "predict_top", k)
    return found


class _Options(NamedTuple):
    """The same on all ranks."""

    threads: int | None
    batch_size: int | None
    backend: str | None
    ranks_per_node: int | None
    chunk_bytes: int

    def check(self) -> None:
        if self.threads is not None:
            resolve_threads(self.threads, "prediction")
        check_batch_size(self.batch_size)
        get_backend(self.backend)
        if self.ranks_per_node is not None:
            check_range("ranks_per_node", self.ranks_per_node, "prediction", low=1, integer=True)
        check_chunk_bytes(self.chunk_bytes)


# --------------------------------------------------------------------------- messages of rank 0's
class TakeArrays(NamedTuple):
    """To the first rank of another node: receive arrays of these shapes, and say where they are."""

    shapes: Shapes


class Share(NamedTuple):
    """To every rank that has rows: predict them."""

    model_and_X: bytes  # what they are but for their arrays; X has the rows of the node
    arrays: list[SharedArray]
    start: int  # among the rows of the node
    stop: int
    settings: tuple[int, int, str, str]  # of the engine
    outputs: tuple[str, Shapes] | None  # a segment to write to; None is to send them
    first: int  # row of X that the rows of the node begin with
    digest: Digest | None  # what is kept of a batch, and comes with the message "done"


class SendOutputs:
    """To a rank on another node: send the outputs."""


class Finish:
    """To every rank: all is done."""


# --------------------------------------------------------------------------- rank 0
def _predict(
    network: SparseMLP | None, X: Any, comm: Any, options: _Options, asked: str, *numbers: int
) -> Any:
    """Return on rank 0 what the method `asked` of a `Predictor` does."""
    comm = get_communicator(comm)

    def prepare() -> Any:
        options.check()
        if comm.rank != SERVER:
            return None
        if network is None:
            raise ParameterError(
                "The 'network' parameter of parallel prediction must be a SparseMLP on rank 0. "
                "Got None instead."
            )
        if comm.size == 1:
            own: dict[str, Any] = {"threads": options.threads, "backend": options.backend}
            with Predictor(network, batch_size=options.batch_size, **own) as predictor:
                return getattr(predictor, asked)(X, *numbers)
        outputs, sizes = Outputs.of(network), network.config.layer_sizes
        if asked != "predict":
            outputs.check_classes()
        for k in numbers:
            check_top(k, sizes[-1])
        return check_X(align_frame(X, network.feature_names), sizes[0]), outputs

    prepared = together(comm, prepare)
    if comm.size == 1:
        return prepared
    agree(comm, {"the options of prediction": (options, asked, numbers)})
    nodes = Nodes.of(comm, options.ranks_per_node)
    channel = connect(comm)
    out: Any = None
    with guard(comm):
        if isinstance(channel, RankChannel):
            _follow(comm, channel, options.chunk_bytes)
        else:
            assert network is not None
            digest: Digest | None = partial(top_labels, k=numbers[0]) if numbers else None
            if asked == "predict" and prepared[1].is_multilabel:
                digest = likely_labels
            out = _Leader(comm, channel, nodes, network, prepared[0], options, digest).run()

    def finish() -> Any:
        if out is None:
            return None
        if asked == "predict_top":
            return prepared[1].to_top(*map(np.concatenate, zip(*out, strict=True)))
        if isinstance(out, list):
            return join_likely_labels(out)
        outputs = check_outputs(out)
        return prepared[1].to_predictions(outputs) if asked == "predict" else outputs

    return together(comm, finish)


class _Leader:
    """Rank 0: deals out the rows, predicts its own, and collects what the others have found."""

    def __init__(
        self,
        comm: Any,
        channel: RootChannel,
        nodes: Nodes,
        network: SparseMLP,
        X: Any,
        options: _Options,
        digest: Digest | None,
    ) -> None:
        self._comm, self._channel, self._nodes = comm, channel, nodes
        self._X, self._digest = X, digest
        self._chunk_bytes = options.chunk_bytes
        self._threads = [
            options.threads or max(1, cores // len(nodes.ranks(node)))
            for node, cores in enumerate(nodes.cores)
        ]
        sizes = network.config.layer_sizes
        self._batch_size = options.batch_size or prediction_batch(sizes)
        self._backend = get_backend(options.backend, sizes, max(network.layer_connections)).name
        self._loss = network.config.loss
        # node by node, so that the rows of a node are consecutive
        order = [rank for node in range(len(nodes)) for rank in nodes.ranks(node)]
        weights = [self._threads[nodes.node[rank]] for rank in order]
        shares = split_rows(X.shape[0], self._batch_size, weights)
        self._shares = {rank: part for rank, part in zip(order, shares, strict=True) if part}
        self._model = inference.from_arrays(*inference.to_arrays(network))
        self._segments: list[Segment] = []
        self._done: deque[int] = deque()  # ranks whose outputs have not been received
        self._found: dict[int, list[Any]] = {}  # by rank: what is kept of its batches
        self._out = np.empty((0 if digest else X.shape[0], sizes[-1]), np.float32)

    def run(self) -> Any:
        """Return the outputs of all rows, float32 (n_samples, n_outputs), or what is kept of them.

        The latter is a list over batches.
        """
        for node in range(len(self._nodes)):
            self._begin(node)
        own = self._shares[SERVER]
        layers, preprocessing = self._model
        engine = Engine(layers, preprocessing, *self._settings(0))
        room: Any = [] if self._digest else self._out[own.start : own.stop]
        compute(engine, self._X, own, room, self._look, self._digest)
        for _ in range(len(self._shares) - 1):
            rank = self._done.popleft() if self._done else self._take(*self._channel.receive())
            if self._nodes.node[rank] > 0 and self._digest is None:
                part = self._shares[rank]
                self._channel.send(rank, SendOutputs())
                into, size = [self._out[part.start : part.stop]], self._chunk_bytes
                start_receive(self._comm, into, rank, chunk_bytes=size).wait()
        for rank in self._channel.ranks:
            self._channel.send(rank, Finish())
        for segment in self._segments:
            segment.close()
        if self._digest is None:
            return self._out
        self._found[SERVER] = room
        return [each for rank in self._shares for each in self._found[rank]]

    def _take(self, rank: int, message: Any) -> int:
        """Keep what a rank that is done has found, if that comes with its message."""
        if isinstance(message, list):
            self._found[rank] = message
        return rank

    def _begin(self, node: int) -> None:
        """Let the ranks of a node have their rows."""
        ranks = [rank for rank in self._nodes.ranks(node) if rank in self._shares]
        others = [rank for rank in ranks if rank != SERVER]
        if not others:
            return
        start, stop = self._shares[ranks[0]].start, self._shares[ranks[-1]].stop
        rest, arrays = take_arrays((self._model, rows_of(self._X, start, stop)))
        outputs = None
        if node == 0:
            places, segment = share(arrays)
            shapes = shapes_of([self._out])
            room, [self._out] = make_arrays(shapes)
            self._segments += [segment, room]
            outputs = room.path, shapes
        else:
            places = self._send(self._nodes.leader(node), arrays)
        for rank in others:
            part = self._shares[rank]
            rows = part.start - start, part.stop - start
            settings = self._settings(node)
            share_of = Share(rest, places, *rows, settings, outputs, start, self._digest)
            self._channel.send(rank, share_of)

    def _send(self, leader: int, arrays: Arrays) -> list[SharedArray]:
        """Send arrays to another node; return where its ranks find them."""
        arrays = [np.ascontiguousarray(array) for array in arrays]
        self._channel.send(leader, TakeArrays(shapes_of(arrays)))
        self._answer(leader)
        start_send(self._comm, arrays, leader, chunk_bytes=self._chunk_bytes).wait()
        return self._answer(leader)

    def _settings(self, node: int) -> tuple[int, int, str, str]:
        return self._batch_size, self._threads[node], self._backend, self._loss

    def _look(self) -> None:
        """Learn of ranks that are done, or have failed."""
        while (message := self._channel.receive(timeout=0)) is not None:
            self._done.append(self._take(*message))

    def _answer(self, leader: int) -> Any:
        """Return the next message of a node's first rank; others may be done meanwhile."""
        while True:
            rank, message = self._channel.receive()
            if rank == leader:
                return message
            self._done.append(self._take(rank, message))


# --------------------------------------------------------------------------- other ranks
def _follow(comm: Any, channel: RankChannel, chunk_bytes: int) -> None:
    """Be another rank: do what rank 0 asks for, and sleep between."""
    segments: list[Segment] = []
    out: Any = None
    while not isinstance(message := channel.receive(), Finish):
        if isinstance(message, TakeArrays):
            segment, arrays = make_arrays(message.shapes)
            segments.append(segment)
            channel.send("ready")
            start_receive(comm, arrays, SERVER, chunk_bytes=chunk_bytes).wait()
            channel.send(places_in(segment, arrays))
        elif isinstance(message, Share):
            out = _compute_share(message, channel.check)
            channel.send(out if message.digest else "done")
        else:
            start_send(comm, [out], SERVER, chunk_bytes=chunk_bytes).wait()
    for segment in segments:
        segment.close()


def _compute_share(task: Share, look: Callable[[], None]) -> Any:
    """Return the outputs of this rank's share of the rows, or what is kept of them."""
    arrays = [place.open() for place in task.arrays]
    (layers, preprocessing), X = give_arrays(task.model_and_X, arrays)
    rows = range(task.start, task.stop)
    out: Any = []
    if task.digest is not None:
        pass
    elif task.outputs is None:
        out = np.empty((len(rows), layers[-1].n_out), np.float32)
    else:
        path, shapes = task.outputs
        segment = Segment.open(path)
        [out] = arrays_of(segment, shapes)
        out = out[task.start : task.stop]
        segment.close()
    compute(Engine(layers, preprocessing, *task.settings), X, rows, out, look, task.digest)
    if task.digest is not None:  # numbers are those of rows
        return [each + task.first if isinstance(each, int) else each for each in out]
    return out


# --------------------------------------------------------------------------- both
def split_rows(n_rows: int, batch_size: int, weights: Sequence[int]) -> list[range]:
    """Return consecutive ranges of whole batches, as many as there are weights and in proportion.

    The first is never empty.
    """
    n_batches = -(-n_rows // batch_size)
    ends = np.cumsum(weights)
    bounds = [0, *(min(n_rows, batch_size * -int(-n_batches * end // ends[-1])) for end in ends)]
    return [range(start, stop) for start, stop in pairwise(bounds)]


def rows_of(X: Any, start: int, stop: int) -> Any:
    """Return consecutive rows of a dense or CSR X; large arrays are views."""
    if not issparse(X):
        return X[start:stop]
    first, last = X.indptr[start], X.indptr[stop]
    parts = X.data[first:last], X.indices[first:last], X.indptr[start : stop + 1] - first
    return csr_array(parts, shape=(stop - start, X.shape[1]))


def compute(
    engine: Engine,
    X: Any,
    rows: range,
    out: Any,
    look: Callable[[], None],
    digest: Digest | None = None,
) -> None:
    """Write the outputs of consecutive rows of X to `out`; call `look` after every batch.

    With a digest, append what it keeps of every batch.
    """
    for start, stop in batches(rows.start, rows.stop, engine.batch_size):
        found = engine.outputs(X, start, stop, digest)
        if digest is None:
            out[start - rows.start : stop - rows.start] = found
        else:
            out.append(found)
        if start == rows.start:
            forget_names()  # of what the kernels' libraries share
        look()
