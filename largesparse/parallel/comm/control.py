"""Control messages between rank 0 and every other rank: small objects, over TCP.

A rank that waits sleeps in the kernel and costs nothing; the death of a rank shows at once as the
end of its connection. Arrays do not go this way.
"""

from __future__ import annotations

import contextlib
import pickle
import select
import selectors
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, overload

from ...errors import ParallelError
from . import leaving
from .connecting import Peer, connect_all
from .watcher import KILLED, LAST_WORDS
from .watching import Watch

GRACE = 10.0  # seconds that a rank which has failed leaves rank 0 to end the job
Message = Any  # a picklable object, a tuple or dict as a rule


class RootLost(ParallelError):
    """Rank 0 has gone; whoever notices leaves without a word."""


class RankFailed(ParallelError):
    """Another rank has told an error."""

    told = ""  # all that it wants to be written, with a traceback where there is one


class _Goodbye:
    """What either end sends when it closes: nothing more will come."""


class _Release:
    """What rank 0 sends when every rank has closed its end."""


class _Channel:
    """What both ends have: messages, and the time that was spent waiting for them."""

    def __init__(self, peers: dict[int, Peer]) -> None:
        self._peers = peers
        self.idle_s = 0.0  # spent waiting in `receive`
        self.idle_cpu_s = 0.0  # processor time of the whole process in the meantime
        self._closed = False

    @property
    def ranks(self) -> list[int]:
        """The ranks at the other end, ascending."""
        return sorted(self._peers)

    @property
    def is_closed(self) -> bool:
        """Whether both ends have been closed."""
        return self._closed

    def _send(self, peer: Peer, message: Message) -> None:
        peer.connection.send_bytes(pickle.dumps(message))

    def _receive(self, peer: Peer) -> Message:
        data = peer.connection.recv_bytes()
        if data.startswith(LAST_WORDS):
            told = data.removeprefix(LAST_WORDS).decode()
            error = RankFailed(told.splitlines()[-1].removeprefix("largesparse: error: "))
            error.told = told
            raise error
        return pickle.loads(data)

    @contextlib.contextmanager
    def _idling(self) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.idle_s += time.perf_counter() - wall
            self.idle_cpu_s += time.process_time() - cpu


class RootChannel(_Channel):
    """Rank 0's end: a connection to every other rank."""

    def __init__(self, peers: dict[int, Peer]) -> None:
        super().__init__(peers)
        self._selector = selectors.DefaultSelector()
        for peer in peers.values():
            self._selector.register(peer.connection, selectors.EVENT_READ, peer)
        self._ready: deque[Peer] = deque()
        self._left: set[int] = set()  # ranks that have closed their end
        self._watch = Watch(peers)

    def send(self, rank: int, message: Message) -> None:
        """Send a message to a rank; `ParallelError` if it has ended."""
        try:
            self._send(self._peers[rank], message)
        except OSError:
            while True:  # until the error that it may have told, or the end
                self._read(self._peers[rank])

    @overload
    def receive(self) -> tuple[int, Message]: ...

    @overload
    def receive(self, timeout: float) -> tuple[int, Message] | None: ...

    def receive(self, timeout: float | None = None) -> tuple[int, Message] | None:
        """Wait for a message and return it with the rank that sent it.

        Messages of one rank come in order, and the ranks that have sent something take turns. None
        after so many seconds as `timeout`; 0 looks only. `ParallelError` if a rank has failed or
        ended, or if nobody is left who could send anything.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while timeout is not None or len(self._left) < len(self._peers):
            peer = self._turn(None if end is None else max(0.0, end - time.monotonic()))
            if peer is None:
                return None
            message = self._read(peer)
            if not isinstance(message, _Goodbye):
                return peer.rank, message
        raise ParallelError("All other ranks have left, while rank 0 waits for a message.")

    def answers(self, ranks: Iterable[int]) -> dict[int, Message]:
        """Return the next message of each of the ranks; no others are due."""
        missing = set(ranks)
        found = {}
        while missing:
            rank, found[rank] = self.receive()
            missing.remove(rank)
        return found

    def tell(self, text: str) -> None:
        """Write the job's last message to standard error; empty where it has been told."""
        if not self._watch.tell(text):
            sys.stderr.write(text)

    def close(self) -> None:
        """Wait until every rank closes its end, and close the connections.

        Messages that have not been received are lost. `ParallelError` if a rank has failed or ended
        without closing its end.
        """
        if self._closed:
            return
        self._send_all(_Goodbye())
        while len(self._left) < len(self._peers):
            if peer := self._turn(None):
                self._read(peer)
        self._closed = True
        self._watch.tell("")
        self._send_all(_Release())
        self._selector.close()
        for peer in self._peers.values():
            peer.connection.close()

    def _send_all(self, message: Message) -> None:
        for peer in self._peers.values():
            with contextlib.suppress(OSError):  # one that has ended shows when it is read
                self._send(peer, message)

    def _turn(self, timeout: float | None) -> Peer | None:
        """Return the rank whose turn it is among those that have sent something."""
        if not self._ready:
            with self._idling():
                self._ready.extend(key.data for key, _ in self._selector.select(timeout))
        return self._ready.popleft() if self._ready else None

    def _read(self, peer: Peer) -> Message:
        try:
            message = self._receive(peer)
        except TimeoutError:
            raise ParallelError(
                f"{peer} cannot be reached any more: is the network down?"
            ) from None
        except (EOFError, OSError):
            raise ParallelError(f"{peer} {KILLED}") from None
        if isinstance(message, _Goodbye):
            self._left.add(peer.rank)
        return message


class RankChannel(_Channel):
    """Another rank's end: its connection to rank 0."""

    def __init__(self, rank: int, peers: dict[int, Peer]) -> None:
        super().__init__(peers)
        self.rank = rank
        self._peer = peers[0]
        self._end = select.poll()
        self._end.register(self._peer.connection, getattr(select, "POLLRDHUP", select.POLLHUP))

    def send(self, message: Message) -> None:
        """Send a message to rank 0; `RootLost` if it has ended."""
        try:
            self._send(self._peer, message)
        except OSError:
            raise RootLost(f"{self._peer} {KILLED}") from None

    def receive(self) -> Message:
        """Wait for a message of rank 0's; `ParallelError` if it has closed its end, or ended."""
        message = self._read()
        if isinstance(message, _Goodbye):
            raise ParallelError(
                f"Rank {self.rank} waits for a message, but rank 0 has left: did its script end?"
            )
        return message

    def check(self) -> None:
        """Raise `RootLost` if rank 0 has ended; a microsecond, for ranks that work long alone."""
        if self._end.poll(0):
            raise RootLost(f"{self._peer} {KILLED}")

    def tell(self, text: str) -> None:
        """Hand rank 0 the job's last message, and give it some seconds to end the job."""
        end = time.monotonic() + GRACE
        with contextlib.suppress(OSError, RootLost):
            self._peer.connection.send_bytes(LAST_WORDS + text.encode())
            while self._peer.connection.poll(max(0.0, end - time.monotonic())):
                self._read()

    def close(self) -> None:
        """Wait until rank 0 closes its end, and close the connection; `RootLost` if it ends."""
        if self._closed:
            return
        self.send(_Goodbye())
        while not isinstance(self._read(), _Release):
            pass
        self._closed = True
        self._peer.connection.close()

    def _read(self) -> Message:
        try:
            with self._idling():
                return self._receive(self._peer)
        except (EOFError, OSError):
            raise RootLost(f"{self._peer} {KILLED}") from None


def connect(comm: Any) -> RootChannel | RankChannel:
    """Connect every rank to rank 0, and return this rank's end; every rank calls it.

    The connections are closed at the end of the process or by the next call, not before: they show
    whether the others live. `ParallelError` if a rank cannot reach rank 0.
    """
    if comm.size == 1:
        return RootChannel({})
    peers = connect_all(comm)
    channel = RootChannel(peers) if comm.rank == 0 else RankChannel(comm.rank, peers)
    leaving.keep(channel)
    return channel
