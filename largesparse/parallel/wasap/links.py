"""Rank 0's side of the nodes: their segments, and what goes to them and comes from them."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...machine.mapped_memory import Arena, Arrays, shapes_of, share
from ...model.config import TrainingConfig
from ...model.network import SparseMLP
from ...model.workspace import Gradients
from ...training.prepared import TrainingData
from ..comm.control import RootChannel
from ..comm.nodes import Nodes
from ..comm.transfer import Transfer, start_receive, start_send
from ..options import ParallelOptions
from ..shared.data import take_arrays
from ..shared.slots import Slot, create_segments
from ..shared.weights import (
    ServerLayer,
    Shape,
    SharedTopology,
    SharedWeights,
    cut,
    parameter_arrays,
)
from . import messages
from .allreduce import Representative

POLL = 1e-4  # seconds between looks at a transfer while there are no messages
PAUSE = 0.5  # seconds without messages after which rank 0 looks whether it is to stop


class Links:
    """Gives tasks to workers on all nodes and takes their gradients.

    On this node gradients and weights stay in shared memory: the layers of `network` are replaced
    by shared ones. Workers on other nodes are sent the weights and send gradients; both go on while
    rank 0 does other things. Every node has a number of `slots`.
    """

    def __init__(
        self,
        comm: Any,
        channel: RootChannel,
        nodes: Nodes,
        network: SparseMLP,
        shape: Shape,
        slots: Sequence[int],
        options: ParallelOptions,
    ) -> None:
        self._comm, self._channel, self._nodes = comm, channel, nodes
        self._shape, self._counts, self._options = shape, list(slots), options
        self._chunk_bytes = options.chunk_bytes
        # whether gradients come with the weights that they were computed on
        self._keep_snapshots = options.delay_compensation > 0
        # whether every node has weights of its own, so that gradients stay on their node
        self._replicated = options.algorithm == "allreduce"
        self.bytes_moved = 0  # between nodes
        self._segments = create_segments(shape, slots[0], has_weights=True)
        topology, weights, *slot_segments = self._segments
        self.topology = SharedTopology(shape, Arena(topology.buffer))
        self.weights = SharedWeights(shape, Arena(weights.buffer), weights)
        for k, layer in enumerate(network.layers):
            network.layers[k] = ServerLayer(layer, k, self.topology, self.weights)
        self.network = network
        self.slots = [  # of this node
            Slot(shape, self.topology, Arena(segment.buffer), Arena())  # it computes none itself
            for segment in slot_segments
        ]
        self._held: dict[tuple[int, int], tuple[int, int]] = {}  # versions in other nodes' slots
        self._sending: Transfer | None = None
        self._outbox: Arrays = []
        self._inbox = Gradients(network.layers) if len(nodes) > 1 else None
        self._inbox_user: messages.Push | None = None
        self._receiving: Transfer | None = None
        self._offers: deque[messages.Push] = deque()
        self.computing = 0  # gradients that are being computed

    def close(self) -> None:
        """Let go of the segments, when all workers have done with them."""
        for segment in self._segments:
            segment.close()

    # ------------------------------------------------------------------ joining
    def join(self, data: TrainingData, config: TrainingConfig, threads: Sequence[int]) -> None:
        """Let every worker have what its node shares; return when all are ready.

        `threads` has the threads of a worker of every node.
        """
        rest, arrays = take_arrays((data, self.network.preprocessing))
        places, data_segment = share(arrays)
        paths = [segment.path for segment in self._segments]
        hosting = [messages.NodeSegments(paths, True, places)]
        self._segments.append(data_segment)
        for node, leader in self._leaders:
            count, size = self._counts[node], self._chunk_bytes
            host = messages.SetUpNode(self._shape, count, self._replicated, shapes_of(arrays), size)
            self._channel.send(leader, host)
            self._send(leader, [np.ascontiguousarray(array) for array in arrays])
            hosting.append(self._channel.answers([leader])[leader])
        for rank in self._channel.ranks:
            node = self._nodes.node[rank]
            own = dataclasses.replace(config, threads=threads[node])
            join = messages.Join(self._shape, hosting[node], rest, own, self._options)
            self._channel.send(rank, join)
        self._channel.answers(self._channel.ranks)
        self.send_topology()

    @property
    def _leaders(self) -> list[tuple[int, int]]:
        """The other nodes, with the first rank of each."""
        return [(node, self._nodes.leader(node)) for node in range(1, len(self._nodes))]

    def send_topology(self) -> None:
        """Let the other nodes have the topology as it is now; nobody computes meanwhile."""
        topology = self.topology
        for _, leader in self._leaders:
            message = messages.NewTopology(topology.generation, topology.connections)
            self._channel.send(leader, message)
            self._send(leader, topology.arrays())
            if self._replicated:
                self._send(leader, self.weights.arrays(topology.connections))
            self._channel.answers([leader])

    # ------------------------------------------------------------------ tasks
    def can_begin(self, worker: int) -> bool:
        """Return whether a task can be given to a worker now."""
        return self.is_here(worker) or self._sending is None

    def begin(
        self, worker: int, kind: type[messages.Compute | messages.Evaluate], slot: int, *what: Any
    ) -> None:
        """Give a worker a task in a slot, and the weights where it needs them."""
        version, generation = self.topology.version, self.topology.generation
        node = self._nodes.node[worker]
        elsewhere = node > 0 and not self._replicated
        needed = elsewhere and self._held.get((node, slot)) != (version, generation)
        weights = messages.Weights(version, generation, needed)
        self._channel.send(worker, kind(slot, weights, *what))
        self.computing += kind is messages.Compute
        if needed:
            self._held[node, slot] = version, generation
            now = self.weights.snapshot(self.topology.connections)
            if [len(array) for array in self._outbox] != [len(array) for array in now]:
                self._outbox = [np.empty_like(array) for array in now]
            for own, array in zip(self._outbox, now, strict=True):
                own[...] = array
            self._sending = self._start_send(worker, self._outbox)

    def lease(self, worker: int, lease: messages.Lease) -> None:
        """Let a worker on this node train on mini-batches."""
        self._channel.send(worker, lease)
        self.computing += 1

    def begin_replica(self, worker: int, task: messages.TrainReplica) -> None:
        """Let a worker train a replica; it gets weights and moments."""
        self._channel.send(worker, task)
        if not self.is_here(worker) and not self._replicated:
            self._send(worker, self.weights.arrays(self.topology.connections))

    def is_here(self, worker: int) -> bool:
        """Return whether a worker is on this node."""
        return self._nodes.node[worker] == 0

    # ------------------------------------------------------------------ gradients
    def next(self, wanted: Callable[[messages.Push], bool] | None = None) -> Any:
        """Wait for the next message, or for something else that changes what can be done.

        `wanted(push)` tells which of the gradients on other nodes is received now; any by default.
        Returns a message, in which a Push has its gradients, as has that of a Leased; or None, too
        where nothing has happened for a while.
        """
        if self._sending is not None and self._sending.done():
            self.bytes_moved += self._sending.nbytes
            self._sending = None
            return None
        if self._receiving is not None and self._receiving.done():
            self.bytes_moved += self._receiving.nbytes
            self._receiving = None
            return self._inbox_user
        self._start_receiving(wanted)
        busy = self._sending is not None or self._receiving is not None
        found = self._channel.receive(POLL if busy else PAUSE)
        if found is None:
            return None
        _, message = found
        self.computing -= isinstance(message, (messages.Push, messages.Leased))
        push = message.push if isinstance(message, messages.Leased) else message
        if not isinstance(push, messages.Push) or self._replicated:
            return message
        if not self.is_here(push.worker):
            self._offers.append(push)
            return None
        slot = self.slots[push.task.slot]
        push.gradients = slot.workspace
        push.gradients.resize_(push.connections)
        if self._keep_snapshots:
            push.snapshot = cut(slot.parameters, push.connections)
        return message

    def _start_receiving(self, wanted: Callable[[messages.Push], bool] | None) -> None:
        """Let the next worker send its gradient, if there is room for it."""
        push = next((push for push in self._offers if wanted is None or wanted(push)), None)
        if push is None or self._inbox is None or self._inbox_user is not None:
            return
        self._offers.remove(push)
        with_snapshot = self._keep_snapshots and push.keeps_snapshot
        task = messages.SendGradient(push.task.slot, push.connections, with_snapshot)
        self._channel.send(push.worker, task)
        push.gradients = self._inbox
        self._inbox.resize_(push.connections)
        arrays = self._inbox.arrays()
        if with_snapshot:
            room = parameter_arrays(self._shape.config, push.connections, np.empty)
            push.snapshot = cut(room, push.connections)
            arrays += push.snapshot
        self._inbox_user = push
        self._receiving = self._start_receive(push.worker, arrays)

    def reduce(
        self,
        representative: Representative,
        pushes: Sequence[messages.Push],
        joined: int,
        update: Callable[[Gradients, int], None],
    ) -> None:
        """Update the weights on every node by the sum of gradients in all slots, in their order.

        They are of `joined` samples; `update(total, joined)` makes the update of this node.
        """
        slots: list[list[int]] = [[] for _ in self._counts]
        for push in pushes:
            slots[self._nodes.node[push.worker]].append(push.task.slot)
        for node, leader in self._leaders:
            message = messages.Reduce(slots[node], self.topology.samples, joined)
            self._channel.send(leader, message)
        own = [self.slots[slot].workspace for slot in slots[0]]
        for workspace in own:
            workspace.resize_(self.topology.connections)
        update(representative.sum(self.network, own), joined)
        self.bytes_moved += 4 * self.network.connections * len(self._leaders)
        self._channel.answers(leader for _, leader in self._leaders)

    @property
    def waiting(self) -> list[messages.Push]:
        """The gradients on other nodes that have not been applied."""
        return [*self._offers, *([self._inbox_user] if self._inbox_user else [])]

    def release(self, push: messages.Push) -> None:
        """Let go of the memory that a gradient was received in."""
        if push is self._inbox_user:
            self._inbox_user = None

    def receive_layer(self, worker: int, arrays: Arrays, message: Any) -> None:
        """Ask a worker on another node for a layer of a replica, and receive it."""
        self._channel.send(worker, message)
        self._complete(self._start_receive(worker, arrays))

    def finish(self) -> None:
        """Complete what is on its way, so that its worker goes on."""
        for transfer in (self._sending, self._receiving):
            if transfer is not None:
                self._complete(transfer)
        self._sending = self._receiving = None

    def _complete(self, transfer: Transfer) -> None:
        """Wait for the end of a transfer, while others go on: its worker may be busy with them."""
        while not transfer.done():
            for other in (self._sending, self._receiving):
                if other is not None:
                    other.done()
        self.bytes_moved += transfer.nbytes

    def _send(self, rank: int, arrays: Sequence[NDArray[Any]]) -> None:
        self._complete(self._start_send(rank, arrays))

    def _start_send(self, rank: int, arrays: Sequence[NDArray[Any]]) -> Transfer:
        return start_send(self._comm, arrays, rank, chunk_bytes=self._chunk_bytes)

    def _start_receive(self, rank: int, arrays: Sequence[NDArray[Any]]) -> Transfer:
        return start_receive(self._comm, arrays, rank, chunk_bytes=self._chunk_bytes)
