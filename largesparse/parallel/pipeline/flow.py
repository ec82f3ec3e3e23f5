"""How arrays pass between a stage and its neighbours while it computes, and in which order.

Transfers advance when the stage looks at them: between two layers, and while it waits. A rank that
waits sleeps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from numpy.typing import NDArray

from ..comm.transfer import CHUNK_BYTES, Transfer, start_receive, start_send

ACTIVATIONS, DELTAS, BIASES, ORDERS, MARKS, SUMS, GRADIENTS = range(11, 18)  # tags
FORWARD, BACKWARD = "forward", "backward"

SHORTEST_SLEEP, LONGEST_SLEEP = 2e-5, 5e-3  # seconds between two looks
SLEEP_SHARE = 0.1  # of the time that has been waited

Arrays = Sequence[NDArray[Any]]


def one_forward_one_backward(
    stage: int, stages: int, micro_batches: int
) -> Iterator[tuple[str, int]]:
    """Yield what a stage does with the micro-batches of a mini-batch, one after another.

    Stages before the last begin with as many forward passes as there are stages behind them; then
    a forward and a backward pass take turns (Narayanan et al., "PipeDream", 2019). So a stage keeps
    the activations of at most `stages - stage` micro-batches, and of all stages the longest works
    without a break but for (stages - 1) / (micro_batches + stages - 1) of the time.

    Examples
    --------
    >>> [pass_[0] + str(number) for pass_, number in one_forward_one_backward(0, 2, 3)]
    ['f0', 'f1', 'b0', 'f2', 'b1', 'b2']
    """
    ahead = min(stages - 1 - stage, micro_batches)
    for number in range(ahead):
        yield FORWARD, number
    for number in range(micro_batches):
        if number + ahead < micro_batches:
            yield FORWARD, number + ahead
        yield BACKWARD, number


def least_bubble(stages: int, micro_batches: int) -> float:
    """Return the share of a step in which a stage waits, where all are as long."""
    return (stages - 1) / (micro_batches + stages - 1)


class Links:
    """A rank's transfers with others, which advance together."""

    def __init__(self, comm: Any, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.comm, self.chunk_bytes = comm, chunk_bytes
        self.waiting_s = 0.0  # in `wait`
        self.bytes_sent = 0
        self._open: list[Transfer] = []

    def send(self, arrays: Arrays, rank: int, tag: int) -> Transfer:
        """Begin to send arrays: see `start_send`."""
        self.bytes_sent += sum(array.nbytes for array in arrays)
        return self._begin(start_send, arrays, rank, tag)

    def receive(self, arrays: Arrays, rank: int, tag: int) -> Transfer:
        """Begin to receive arrays: see `start_receive`."""
        return self._begin(start_receive, arrays, rank, tag)

    def _begin(self, start: Callable[..., Transfer], *given: Any) -> Transfer:
        arrays, rank, tag = given
        transfer = start(self.comm, arrays, rank, tag=tag, chunk_bytes=self.chunk_bytes)
        self._open.append(transfer)
        return transfer

    def advance(self, *_: Any) -> None:
        """Let all transfers go on, as far as they can without waiting."""
        self._open = [transfer for transfer in self._open if not transfer.done()]

    def wait(self, transfer: Transfer) -> None:
        """Return when a transfer is complete; the others go on meanwhile, and the rank sleeps."""
        self.advance()
        if transfer.done():
            return
        started = time.perf_counter()
        while not transfer.done():
            waited = time.perf_counter() - started
            time.sleep(min(LONGEST_SLEEP, max(SHORTEST_SLEEP, SLEEP_SHARE * waited)))
            self.advance()
        self.waiting_s += time.perf_counter() - started

    def pass_(self, arrays: Arrays, source: int | None, target: int | None, tag: int) -> None:
        """Receive arrays from a rank, where there is one, then send them to another."""
        if source is not None:
            self.wait(self.receive(arrays, source, tag))
        if target is not None:
            self.wait(self.send(arrays, target, tag))


class Incoming:
    """What arrives from a neighbour, one micro-batch after another, into buffers used in turn.

    `buffers(number)` are those of a micro-batch; there are `ahead` of them.
    """

    def __init__(
        self,
        links: Links,
        place: tuple[int, int],
        buffers: Callable[[int], Arrays],
        ahead: int,
        count: int,
    ) -> None:
        self._links, self._place = links, place  # rank, tag
        self._buffers, self._count = buffers, count
        self._posted: dict[int, Transfer] = {}
        self._next = 0
        for _ in range(ahead):
            self.release()

    def take(self, number: int) -> None:
        """Return when a micro-batch is there."""
        self._links.wait(self._posted.pop(number))

    def release(self) -> None:
        """Let the next micro-batch come: the buffers of one are free."""
        if self._next < self._count:
            arrays = self._buffers(self._next)
            self._posted[self._next] = self._links.receive(arrays, *self._place)
            self._next += 1


class Outgoing:
    """What is sent to a neighbour, one micro-batch after another."""

    def __init__(self, links: Links, place: tuple[int, int]) -> None:
        self._links, self._place = links, place  # rank, tag
        self._posted: dict[int, Transfer] = {}

    def send(self, number: int, arrays: Arrays) -> None:
        """Begin to send what a micro-batch has."""
        self._posted[number] = self._links.send(arrays, *self._place)

    def finish(self, number: int | None = None) -> None:
        """Return when the arrays of a micro-batch, or of all (None), may be written again."""
        for each in list(self._posted) if number is None else [number]:
            if (transfer := self._posted.pop(each, None)) is not None:
                self._links.wait(transfer)
