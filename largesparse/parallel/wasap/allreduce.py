"""Synchronous training without a server between nodes: every node updates weights of its own.

On a node its first rank, the *representative*, sums the gradients in the slots. The sums are added
over the nodes by an all-reduce, and every representative makes the same update.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...model.network import SparseMLP
from ...model.workspace import Gradients
from ..comm.nodes import Nodes


def split_representatives(comm: Any, nodes: Nodes) -> Any:
    """Return the communicator of the nodes' first ranks; of no use on other ranks."""
    own = nodes.leader(nodes.node[comm.rank]) == comm.rank
    return comm.Split(0 if own else 1)


def add_(total: Gradients, part: Gradients, *, is_first: bool) -> None:
    """Add a gradient to a sum, or begin with it, whatever the sum was."""
    for own, other in zip(total.arrays(), part.arrays(), strict=True):
        np.copyto(own, other) if is_first else np.add(own, other, out=own)


class Representative:
    """A node's part in an all-reduce, of at most `chunk_bytes` at a time."""

    def __init__(self, representatives: Any, chunk_bytes: int) -> None:
        self._comm = representatives
        self._chunk = max(1, chunk_bytes // 4)  # float32
        self._total: Gradients | None = None

    def sum(self, network: SparseMLP, gradients: Sequence[Gradients]) -> Gradients:
        """Return the sum of the gradients of the network on all nodes; here there may be none."""
        total = self._total = self._total or Gradients(network.layers)
        total.resize_(network.layer_connections)
        if not gradients:
            for array in total.arrays():
                array[...] = 0
        for number, part in enumerate(gradients):
            add_(total, part, is_first=number == 0)
        for array in total.arrays():
            self._add_over_nodes(array.reshape(-1))
        return total

    def _add_over_nodes(self, array: NDArray[np.float32]) -> None:
        from mpi4py import MPI

        for start in range(0, len(array), self._chunk):
            part = array[start : start + self._chunk]
            request = self._comm.Iallreduce(MPI.IN_PLACE, [part, MPI.FLOAT], MPI.SUM)
            while not request.Test():  # the others are at it
                pass
