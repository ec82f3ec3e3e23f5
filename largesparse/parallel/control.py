"""Control messages between rank 0 and every other rank: small objects, over TCP.

A rank that waits sleeps in the kernel and costs nothing; the death of a rank shows at once as the
end of its connection. Arrays do not go this way.
"""

from __future__ import annotations

import contextlib
import pickle
import selectors
import time
import traceback
from collections import deque
from typing import Any

from ..errors import LargeSparseError, ParallelError
from .connecting import Peer, connect_all

Message = Any  # a picklable object, a tuple or dict as a rule


class HubLost(ParallelError):
    """Rank 0 has gone; whoever notices leaves without a word."""


class RankFailed(ParallelError):
    """Another rank has told an error.

    Attributes
    ----------
    trace : str
        Its traceback, empty for an error of the library.
    """

    trace = ""


class _LastWords(tuple):
    """What a rank sends before it ends by an error: its text and traceback."""


class _Channel:
    """What both ends have: counters, and the time that was spent waiting.

    Attributes
    ----------
    messages_sent, messages_received, bytes_sent, bytes_received : int
    idle_s : float
        Seconds spent waiting in `receive`.
    idle_cpu_s : float
        Seconds of processor time that the whole process used in the meantime.
    """

    def __init__(self, peers: dict[int, Peer]) -> None:
        self._peers = peers
        self.messages_sent = self.messages_received = 0
        self.bytes_sent = self.bytes_received = 0
        self.idle_s = self.idle_cpu_s = 0.0

    @property
    def ranks(self) -> list[int]:
        """The ranks at the other end, ascending."""
        return sorted(self._peers)

    def close(self) -> None:
        """Close the connections."""
        for peer in self._peers.values():
            peer.connection.close()

    def _send(self, peer: Peer, message: Message) -> None:
        data = pickle.dumps(message)
        peer.connection.send_bytes(data)
        self.messages_sent += 1
        self.bytes_sent += len(data)

    def _receive(self, peer: Peer) -> Message:
        data = peer.connection.recv_bytes()
        self.messages_received += 1
        self.bytes_received += len(data)
        return pickle.loads(data)

    @contextlib.contextmanager
    def _idling(self):
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.idle_s += time.perf_counter() - wall
            self.idle_cpu_s += time.process_time() - cpu


class Hub(_Channel):
    """Rank 0's end: a connection to every other rank."""

    def __init__(self, peers: dict[int, Peer]) -> None:
        super().__init__(peers)
        self._selector = selectors.DefaultSelector()
        for peer in peers.values():
            self._selector.register(peer.connection, selectors.EVENT_READ, peer)
        self._ready: deque[Peer] = deque()

    def send(self, rank: int, message: Message) -> None:
        """Send a message to a rank.

        Raises
        ------
        ParallelError
            If the rank has ended.
        """
        peer = self._peers[rank]
        try:
            self._send(peer, message)
        except OSError:
            while True:  # it may have told why it ended
                self._take(peer)

    def receive(self, timeout: float | None = None) -> tuple[int, Message] | None:
        """Wait for a message and return it with the rank that sent it.

        Messages of one rank come in order, and the ranks that have sent something take turns.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait, after which None is returned; 0 looks only. Without it, and without
            other ranks, this would wait for ever.

        Raises
        ------
        ParallelError
            If a rank has failed or ended.
        """
        if not self._ready:
            with self._idling():
                found = self._selector.select(timeout)
            self._ready.extend(key.data for key, _ in found)
            if not self._ready:
                return None
        peer = self._ready.popleft()
        return peer.rank, self._take(peer)

    def _take(self, peer: Peer) -> Message:
        try:
            message = self._receive(peer)
        except (EOFError, OSError):
            raise ParallelError(f"{_ended(peer)}") from None
        if isinstance(message, _LastWords):
            text, trace = message
            error = RankFailed(f"rank {peer.rank}: {text}")
            error.trace = trace
            raise error
        return message

    def close(self) -> None:
        """Close the connections."""
        self._selector.close()
        super().close()


class Line(_Channel):
    """Another rank's end: its connection to rank 0."""

    def __init__(self, peers: dict[int, Peer]) -> None:
        super().__init__(peers)
        self._peer = peers[0]

    def send(self, message: Message) -> None:
        """Send a message to rank 0.

        Raises
        ------
        HubLost
            If rank 0 has ended.
        """
        try:
            self._send(self._peer, message)
        except OSError:
            raise HubLost(_ended(self._peer)) from None

    def receive(self) -> Message:
        """Wait for a message of rank 0's and return it.

        Raises
        ------
        HubLost
            If rank 0 has ended.
        """
        try:
            with self._idling():
                return self._receive(self._peer)
        except (EOFError, OSError):
            raise HubLost(_ended(self._peer)) from None

    def fail(self, error: BaseException) -> None:
        """Tell rank 0 the error that ends this rank, as the last message."""
        known = isinstance(error, LargeSparseError | MemoryError)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        trace = "" if known else "".join(traceback.format_exception(error))
        with contextlib.suppress(HubLost):
            self.send(_LastWords((text, trace)))


def connect(comm: Any) -> Hub | Line:
    """Connect every rank to rank 0, and return this rank's end; every rank calls it.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm

    Raises
    ------
    ParallelError
        On rank 0, if a rank cannot reach it; the others raise `SystemExit`.
    """
    peers = connect_all(comm) if comm.size > 1 else {}
    return Hub(peers) if comm.rank == 0 else Line(peers)


def _ended(peer: Peer) -> str:
    return f"{peer} ended without a word. Was it killed, or did its host run out of memory?"
