"""How arrays pass between a stage and its neighbours while it computes, and in which order.

Transfers advance when the stage looks at them: between two layers, and while it waits. A rank that
waits sleeps.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from numpy.typing import NDArray

from ..comm.transfer import CHUNK_BYTES, Transfer, start_receive, start_send

ACTIVATIONS, DELTAS, BIASES, ORDERS, MARKS, SUMS, GRADIENTS, OUTPUTS = range(11, 19)  # tags
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


class Passage:
    """Arrays that are to pass to or from another rank, once those before them are on their way."""

    def __init__(self, begin: Callable[[], Transfer]) -> None:
        self._begin = begin
        self._transfer: Transfer | None = None

    @property
    def is_posted(self) -> bool:
        """Whether the next passage of the same kind may begin."""
        return self._transfer is not None and self._transfer.is_posted

    def done(self) -> bool:
        """Return whether it is complete, and advance it if it has begun."""
        return self._transfer is not None and self._transfer.done()

    def advance(self) -> bool:
        """Begin or advance it; return whether it is complete."""
        if self._transfer is None:
            self._transfer = self._begin()
        return self._transfer.done()


class Links:
    """A rank's transfers with others, which advance together."""

    def __init__(self, comm: Any, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.comm, self.chunk_bytes = comm, chunk_bytes
        self.waiting_s = 0.0  # in `wait`
        self.bytes_sent = 0
        # by direction, rank and tag: both ends take them in the same order
        self._open: defaultdict[tuple[bool, int, int], list[Passage]] = defaultdict(list)

    def send(self, arrays: Arrays, rank: int, tag: int) -> Passage:
        """Begin to send arrays: see `start_send`."""
        self.bytes_sent += sum(array.nbytes for array in arrays)
        return self._begin(start_send, arrays, rank, tag)

    def receive(self, arrays: Arrays, rank: int, tag: int) -> Passage:
        """Begin to receive arrays: see `start_receive`."""
        return self._begin(start_receive, arrays, rank, tag)

    def _begin(
        self, start: Callable[..., Transfer], arrays: Arrays, rank: int, tag: int
    ) -> Passage:
        options: dict[str, Any] = {"tag": tag, "chunk_bytes": self.chunk_bytes}
        passage = Passage(lambda: start(self.comm, arrays, rank, **options))
        line = self._open[start is start_send, rank, tag]
        line.append(passage)
        self._advance(line)
        return passage

    def advance(self, *_: Any) -> None:
        """Let all transfers go on, as far as they can without waiting."""
        for line in self._open.values():
            if line:
                self._advance(line)

    @staticmethod
    def _advance(line: list[Passage]) -> None:
        """Go on with the passages of a kind, each when all of the one before is posted."""
        for passage in list(line):
            if passage.advance():
                line.remove(passage)
            elif not passage.is_posted:
                return

    def wait(self, passage: Passage) -> None:
        """Return when arrays have passed; others go on meanwhile, and the rank sleeps."""
        self.advance()
        if passage.done():
            return
        started = time.perf_counter()
        while not passage.done():
            waited = time.perf_counter() - started
            time.sleep(min(LONGEST_SLEEP, max(SHORTEST_SLEEP, SLEEP_SHARE * waited)))
            self.advance()
        self.waiting_s += time.perf_counter() - started


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
        self._posted: dict[int, Passage] = {}
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
        self._posted: dict[int, Passage] = {}

    def send(self, number: int, arrays: Arrays) -> None:
        """Begin to send what a micro-batch has."""
        self._posted[number] = self._links.send(arrays, *self._place)

    def finish(self, number: int | None = None) -> None:
        """Return when the arrays of a micro-batch, or of all (None), may be written again."""
        for each in list(self._posted) if number is None else [number]:
            if (transfer := self._posted.pop(each, None)) is not None:
                self._links.wait(transfer)
