"""Which worker may compute in which slot: first come, first served, on every node."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence


class Dispatcher:
    """Keeps the slots that are free and the workers that wait, for every node.

    Parameters
    ----------
    nodes : sequence of int
        The node of every rank; rank 0 does not work.
    slots : sequence of int
        The number of slots of every node.
    ahead : bool
        Whether a worker is given its next task before it has done the one before, where its node
        has two slots for every worker.
    """

    def __init__(self, nodes: Sequence[int], slots: Sequence[int], *, ahead: bool = False) -> None:
        self._nodes = list(nodes)
        self._free = [deque(range(count)) for count in slots]
        self._waiting: list[deque[int]] = [deque() for _ in slots]
        for rank in range(1, len(nodes)):
            self._waiting[nodes[rank]].append(rank)
        for waiting, count in zip(self._waiting, slots, strict=True):
            if ahead and count >= 2 * len(waiting):
                waiting.extend(list(waiting))
        self.slots = sum(slots)
        self.workers = len(nodes) - 1

    def node(self, rank: int) -> int:
        """Return the node of a rank."""
        return self._nodes[rank]

    def begin(self, worker: int, slot: int) -> None:
        """Take a worker and a slot of its node."""
        node = self._nodes[worker]
        self._waiting[node].remove(worker)
        self._free[node].remove(slot)

    def end(self, worker: int, slot: int) -> None:
        """Give a worker and a slot back."""
        node = self._nodes[worker]
        self._waiting[node].append(worker)
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
