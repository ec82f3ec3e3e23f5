"""Which mini-batches of phase one are whose, which have been applied, and who computes where.

An epoch's order of the rows is that of sequential training. Its mini-batches are dealt to the
workers in turn: every sample is used, and a worker reads its own part only. Where workers take
turns, since there are fewer slots, as many that follow each other are dealt as a turn has, and the
next epoch begins with the worker whose turn it is: in one slot they are computed in the order of
sequential training.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

LEASE = 16  # mini-batches that a worker is given at a time, at most
LEASES = 8  # that are computed in a slot in an epoch, at least


class Batch(NamedTuple):
    """The rows from `start` to `stop` of an epoch's order."""

    epoch: int
    start: int
    stop: int
    step: int  # of the update, counted over all epochs: dropout is a function of it


def epochs_of(samples: int, rows: int) -> float:
    """Return the epochs that so many samples are."""
    epoch, start = divmod(samples, rows)
    return epoch + start / rows


def samples(batches: Iterable[Batch]) -> int:
    """Return the number of samples of mini-batches."""
    return sum(batch.stop - batch.start for batch in batches)


class Deal:
    """The mini-batches of phase one.

    Of an epoch's `rows`, `batch_size` are a mini-batch of one of the workers 1 to `workers`. With
    `joined`, the mini-batches of all workers are parts of one. So many compute `at_a_time`, by
    default all: where these are fewer, they take turns. `first_epoch` epochs are complete,
    and `epochs` will be at the end. `state` is what `state` returned when a checkpoint was written,
    which is not at an epoch's border exactly; the number of workers may be another one.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        workers: int,
        epochs: int,
        *,
        first_epoch: int = 0,
        joined: bool = False,
        at_a_time: int | None = None,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.rows, self.batch_size, self.workers, self.epochs = rows, batch_size, workers, epochs
        batches, at_a_time = -(-rows // batch_size), at_a_time or workers
        self._turn = max(1, min(LEASE, batches // at_a_time // LEASES))
        self._dealt, self._takes_turns = 1, at_a_time < workers and not joined
        if self._takes_turns:
            turns = -(-batches // (workers * self._turn))  # of every worker
            self._turn = self._dealt = -(-batches // (workers * turns))
        self._step_rows = batch_size * (workers if joined else 1)
        self._missing: dict[int, set[int]] = {}  # epoch -> starts of what was not applied
        if state is not None and state["batch_size"] == batch_size:
            self._missing = {int(epoch): set(starts) for epoch, starts in state["missing"].items()}
        first = min([first_epoch, *self._missing])
        for epoch in range(first, max([first_epoch, *(e + 1 for e in self._missing)])):
            self._missing.setdefault(epoch, set())
        self._first = first
        self._left = {epoch: sorted(starts) for epoch, starts in self._missing.items()}
        self.samples_applied = (first + len(self._missing)) * rows - sum(
            self._samples(start) for starts in self._missing.values() for start in starts
        )
        self._shares: list[Iterator[Batch]] = [self._share(worker) for worker in range(workers)]
        self._next = [next(share, None) for share in self._shares]

    @property
    def progress(self) -> float:
        """Epochs that have been trained on, with a fraction."""
        return epochs_of(self.samples_applied, self.rows)

    @property
    def is_done(self) -> bool:
        """Whether everything has been applied."""
        return self.samples_applied >= self.epochs * self.rows

    def has_more(self, worker: int) -> bool:
        """Return whether there is a mini-batch left for a worker (1, 2, ...)."""
        return self._next[worker - 1] is not None

    def next(self, worker: int) -> Batch:
        """Return the next mini-batch of a worker."""
        batch = self._next[worker - 1]
        assert batch is not None
        self._next[worker - 1] = next(self._shares[worker - 1], None)
        return batch

    def lease(self, worker: int) -> list[Batch]:
        """Return the next mini-batches of a worker: at most 16, and an eighth of a slot's epoch.

        A turn in a slot costs the worker's activations in new pages, so one for every mini-batch
        would be slow.
        """
        found = [self.next(worker)]
        while len(found) < self._turn and (following := self._next[worker - 1]) is not None:
            if self._dealt > 1 and following.step != found[-1].step + 1:
                break
            found.append(self.next(worker))
        return found

    def give_back(self, worker: int, batches: Sequence[Batch]) -> None:
        """Deal mini-batches to a worker again, as its next, that it did not come to."""
        if batches:
            following = self._next[worker - 1]
            more = [] if following is None else [following]
            self._next[worker - 1] = batches[0]
            self._shares[worker - 1] = chain(batches[1:], more, self._shares[worker - 1])

    def next_joined(self) -> list[Batch]:
        """Return the parts of the next joined mini-batch, of worker 1, 2, ..."""
        epoch = min(batch.epoch for batch in self._next if batch is not None)
        due = [batch is not None and batch.epoch == epoch for batch in self._next]
        return [self.next(worker) for worker, is_due in enumerate(due, start=1) if is_due]

    def apply(self, batch: Batch) -> None:
        """Count a mini-batch as applied."""
        for epoch in range(self._first + len(self._missing), batch.epoch + 1):
            self._missing[epoch] = set(range(0, self.rows, self.batch_size))
        self._missing[batch.epoch].remove(batch.start)
        self.samples_applied += batch.stop - batch.start

    def state(self, epoch: int) -> dict[str, Any]:
        """Return what JSON can hold, to go on from in another run, after so many epochs."""
        low = min([epoch, *(e for e, starts in self._missing.items() if starts)])
        kept = {e: sorted(starts) for e, starts in self._missing.items() if e >= low}
        return {"batch_size": self.batch_size, "missing": kept}

    def _share(self, worker: int) -> Iterator[Batch]:
        steps, dealt = -(-self.rows // self._step_rows), self._dealt
        begins = 0  # the worker with whom an epoch begins
        for epoch in range(self._first, self.epochs):
            starts = self._left.get(epoch, range(0, self.rows, self.batch_size))
            first_turn = (worker - begins) % self.workers
            for first in range(first_turn * dealt, len(starts), self.workers * dealt):
                for start in starts[first : first + dealt]:
                    step = epoch * steps + start // self._step_rows
                    yield Batch(epoch, start, start + self._samples(start), step)
            if self._takes_turns:
                begins += -(-len(starts) // dealt)

    def _samples(self, start: int) -> int:
        return min(self.batch_size, self.rows - start)


class Dispatcher:
    """Which worker may compute in which slot: first come, first served, on every node.

    `nodes` has the node of every rank, of which rank 0 does not work, and `slots` the number of
    every node. With `prefetch` a worker is given its next task before it has done the one before,
    where its node has two slots for every worker.
    """

    def __init__(
        self, nodes: Sequence[int], slots: Sequence[int], *, prefetch: bool = False
    ) -> None:
        self._nodes = list(nodes)
        self._free = [deque(range(count)) for count in slots]
        self._waiting: list[deque[int]] = [deque() for _ in slots]
        for rank in range(1, len(nodes)):
            self._waiting[nodes[rank]].append(rank)
        # workers that compute at a time
        self.at_a_time = sum(map(min, map(len, self._waiting), slots))
        for waiting, count in zip(self._waiting, slots, strict=True):
            if prefetch and count >= 2 * len(waiting):
                waiting.extend(list(waiting))
        self.slots = sum(slots)
        self.workers = len(nodes) - 1

    def begin(self, worker: int, slot: int) -> None:
        """Take a worker and a slot of its node."""
        node = self._nodes[worker]
        self._waiting[node].remove(worker)
        self._free[node].remove(slot)

    def end(self, worker: int, slot: int, *, is_next: bool = False) -> None:
        """Give a worker and a slot back; it waits behind the others, or is the next."""
        node = self._nodes[worker]
        waiting = self._waiting[node]
        waiting.insert(0 if is_next else len(waiting), worker)
        self._free[node].append(slot)

    def pairs(self, can_work: Callable[[int], bool]) -> Iterator[tuple[int, int]]:
        """Yield (worker, slot) for those that can begin, the longest waiting first.

        Whoever takes a pair calls `begin` before asking for the next.
        """
        for node, waiting in enumerate(self._waiting):
            for worker in list(waiting):
                if not self._free[node]:
                    break
                if can_work(worker):
                    yield worker, self._free[node][0]
