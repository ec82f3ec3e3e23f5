"""Ranks as threads of this process: a communicator for what a pipeline uses of MPI's."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from typing import Any

import numpy as np


class _Board:
    """What has been sent and not received, and what collective calls have brought."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.lock = threading.RLock()
        self.messages: dict[Any, deque] = defaultdict(deque)
        self.calls: dict[int, dict[int, Any]] = defaultdict(dict)


class _Request:
    """Complete when `attempt(status)` says so."""

    def __init__(self, attempt) -> None:
        self._attempt, self._is_done = attempt, False

    def Test(self, status=None) -> bool:
        self._is_done = self._is_done or self._attempt(status)
        return self._is_done


class ThreadRank:
    """A rank's end of a communicator between threads."""

    def __init__(self, board: _Board, rank: int) -> None:
        self._board, self.rank, self.size, self._call = board, rank, board.size, 0

    def Isend(self, spec, rank, tag):
        chunk = spec[0]

        def attempt(_):  # as a large message: it is there when it has been received
            return message.is_taken

        message = _Message(chunk)
        with self._board.lock:
            self._board.messages[self.rank, rank, tag].append(message)
        return _Request(attempt)

    def Irecv(self, spec, rank, tag):
        from mpi4py import MPI

        chunk, key = spec[0], (rank, self.rank, tag)
        waiting = _Waiting()
        with self._board.lock:
            self._board.messages["waiting", *key].append(waiting)

        def attempt(status):
            with self._board.lock:
                line, sent = self._board.messages["waiting", *key], self._board.messages[key]
                if line[0] is not waiting or not sent:
                    return False
                line.popleft()
                message = sent.popleft()
                chunk[: len(message.data)] = message.data
                message.is_taken = True
                if status is not None:
                    status.Set_elements(MPI.BYTE, len(message.data))
                return True

        return _Request(attempt)

    def _collective(self, value, finish):
        with self._board.lock:
            number, self._call = self._call, self._call + 1
            found = self._board.calls[number]
            found[self.rank] = value

        def attempt(_):
            return finish(found)

        return _Request(attempt)

    def Ibarrier(self):
        return self._collective(None, lambda found: len(found) == self.size)

    def Ibcast(self, buffer, root):
        def finish(found):
            if root not in found:
                return False
            _bytes(buffer)[:] = found[root]
            return True

        return self._collective(_bytes(buffer).copy() if self.rank == root else None, finish)

    def Igather(self, mine, everyone, root):
        return self._gather(mine, everyone, root)

    def Igatherv(self, mine, spec, root):
        return self._gather(mine, None if spec is None else spec[0], root)

    def _gather(self, mine, everyone, root):
        def finish(found):
            if self.rank != root:
                return True
            if len(found) < self.size:
                return False
            _bytes(everyone)[:] = np.concatenate([found[rank] for rank in range(self.size)])
            return True

        return self._collective(_bytes(mine).copy(), finish)


class _Waiting:
    """A receive that has been posted."""


class _Message:
    def __init__(self, data) -> None:
        self.data, self.is_taken = data, False


def _bytes(buffer) -> np.ndarray:
    return np.frombuffer(buffer, dtype=np.uint8)


def run_ranks(size: int, function) -> list[Any]:
    """Return what `function(comm)` returns on every rank; the first error is raised."""
    board, results, errors = _Board(size), [None] * size, []

    def work(rank: int) -> None:
        try:
            results[rank] = function(ThreadRank(board, rank))
        except BaseException as error:  # raised below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive() and not errors:
            thread.join(0.05)
    if errors:
        raise errors[0]
    return results
