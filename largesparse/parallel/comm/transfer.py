"""Arrays sent between two ranks, in chunks, into buffers that exist, while both may compute."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ParameterError, WorkerError, check_range

if TYPE_CHECKING:
    from mpi4py.MPI import Comm, Request

Bytes = NDArray[np.uint8]

CHUNK_BYTES = 2**28  # of a message
MAX_CHUNK_BYTES = 2**30  # MPI's counts are int32
IN_FLIGHT = 4  # messages of a transfer at a time


def start_send(
    comm: Comm,
    arrays: Sequence[NDArray[Any]],
    rank: int,
    *,
    tag: int = 1,
    chunk_bytes: int = CHUNK_BYTES,
) -> Transfer:
    """Begin to send C-contiguous arrays to a rank, whose `start_receive` names as large ones.

    Transfers that share a tag, between two ranks in one direction, start in the same order on both.
    Messages have at most `chunk_bytes`, the same on both, in [1, 2**30].
    """
    return Transfer(comm, arrays, rank, tag, chunk_bytes, receives=False)


def start_receive(
    comm: Comm,
    arrays: Sequence[NDArray[Any]],
    rank: int,
    *,
    tag: int = 1,
    chunk_bytes: int = CHUNK_BYTES,
) -> Transfer:
    """Begin to receive into arrays what a rank sends with `start_send`; see there."""
    for number, array in enumerate(arrays):
        if not array.flags.writeable:
            raise ParameterError(f"Array {number} of a transfer is received, but read-only.")
    return Transfer(comm, arrays, rank, tag, chunk_bytes, receives=True)


class Transfer:
    """Arrays on their way to or from another rank.

    It advances in `done` and `wait` alone. Until it is done, arrays that are sent must not be
    changed, nor those that are received be read.
    """

    def __init__(
        self,
        comm: Comm,
        arrays: Sequence[NDArray[Any]],
        rank: int,
        tag: int,
        chunk_bytes: int,
        *,
        receives: bool,
    ) -> None:
        self._chunks = deque(_cut(_as_bytes(arrays), check_chunk_bytes(chunk_bytes)))
        self.nbytes = sum(array.nbytes for array in arrays)
        self._receives, self._place = receives, (rank, tag)
        self._post = comm.Irecv if receives else comm.Isend
        self._posted: deque[tuple[Request, int]] = deque()  # with their bytes, the oldest first
        self._post_more()

    @property
    def is_posted(self) -> bool:
        """Whether no message is left to post: another transfer by the same tag may begin."""
        return not self._chunks

    def done(self) -> bool:
        """Advance the transfer without waiting, and return whether it is complete.

        `WorkerError` where a message is smaller than this rank expects.
        """
        from mpi4py import MPI

        status = MPI.Status()
        while self._posted:
            request, expected = self._posted[0]
            if not request.Test(status):
                return False
            self._posted.popleft()
            if self._receives and status.Get_count(MPI.BYTE) != expected:
                raise WorkerError(
                    f"Rank {status.Get_source()} sent a chunk of {status.Get_count(MPI.BYTE)} "
                    f"bytes where {expected} were expected. Both ranks must name arrays of the "
                    "same sizes and the same 'chunk_bytes'."
                )
            self._post_more()
        return True

    def wait(self) -> None:
        """Advance the transfer until it is complete, without sleeping."""
        while not self.done():
            pass

    def _post_more(self) -> None:
        from mpi4py import MPI

        while self._chunks and len(self._posted) < IN_FLIGHT:
            chunk = self._chunks.popleft()
            request = self._post([chunk, chunk.nbytes, MPI.BYTE], *self._place)
            self._posted.append((request, chunk.nbytes))


def check_chunk_bytes(chunk_bytes: int) -> int:
    """Return the size of a chunk, if it is in the range [1, 2**30]."""
    interval = {"low": 1, "high": MAX_CHUNK_BYTES, "integer": True}
    remedy = "Messages of 4 MB and more are fast; the default is 2**28."
    return int(check_range("chunk_bytes", chunk_bytes, "a transfer", **interval, remedy=remedy))


def _as_bytes(arrays: Sequence[NDArray[Any]]) -> list[Bytes]:
    """Return the arrays' memory as flat arrays of bytes."""
    for number, array in enumerate(arrays):
        if not array.flags.c_contiguous or array.dtype.hasobject:
            raise ParameterError(
                f"Array {number} of a transfer must be C-contiguous and of a dtype without "
                f"Python objects. Got {array.dtype} of shape {array.shape} with strides "
                f"{array.strides} instead. Use numpy.ascontiguousarray."
            )
    return [array.reshape(-1).view(np.uint8) for array in arrays]


def _cut(arrays: Sequence[Bytes], chunk_bytes: int) -> Iterator[Bytes]:
    for array in arrays:
        for start in range(0, len(array), chunk_bytes):
            yield array[start : start + chunk_bytes]
