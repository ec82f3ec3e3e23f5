"""A worker rank: it does what rank 0 asks for, in the slot that it is given, and sleeps between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...machine.mapped_memory import (
    Arena,
    PrivateMemory,
    Segment,
    forget_names,
    make_arrays,
    places_in,
)
from ...machine.usage import cpu_seconds, own_bytes, peak_rss_bytes, pss_bytes
from ...training.history import History
from ...training.prepared import Augment, Rows, augmented, epoch_order
from ...training.stepping import Stepper
from ...training.warming import warm_up
from ..comm.control import RankChannel
from ..comm.transfer import CHUNK_BYTES, start_receive, start_send
from ..shared.data import from_arrays
from ..shared.slots import Slot, slot_sizes
from ..shared.weights import SharedTopology, SharedWeights, cut, shared_size
from . import messages
from .allreduce import Representative
from .deal import Batch, samples
from .replicas import StoredReplica, start_replica, train_replica
from .updating import Updater

SERVER = 0


class Worker:
    """Serves rank 0 until the training is over.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    channel : RankChannel
    representatives : mpi4py.MPI.Comm
        Of the first ranks of all nodes.
    augment : callable, optional
        As in `Trainer.fit`.
    """

    def __init__(
        self, comm: Any, channel: RankChannel, representatives: Any, augment: Augment | None = None
    ) -> None:
        self._comm = comm
        self._representatives = representatives
        self._representative: Representative | None = None
        self._channel = channel
        self._augment = augment
        self._segments: list[Segment] = []  # that are open
        self._replicas: dict[int, StoredReplica] = {}
        self._orders: dict[int, Rows] = {}
        self._chunk_bytes = CHUNK_BYTES
        self._own_bytes = 0  # at most, in a slot

    def run(self) -> History:
        """Do what is asked for; return the history that rank 0 sends in the end."""
        answers: dict[type, Callable[[Any], None]] = {
            messages.SetUpNode: self._set_up_node,
            messages.Join: self._join,
            messages.Compute: self._compute,
            messages.Lease: self._train,
            messages.Evaluate: self._evaluate,
            messages.SendGradient: self._send_gradient,
            messages.NewTopology: self._receive_topology,
            messages.Reduce: self._reduce,
            messages.TrainReplica: self._train_replica,
            messages.SendReplicaLayer: self._send_replica_layer,
            messages.Count: self._count,
        }
        while True:
            message = self._channel.receive()
            if isinstance(message, messages.Finish):
                for segment in self._segments:
                    segment.close()
                return message.history
            answers[type(message)](message)

    # ----------------------------------------------------------------------- joining
    def _set_up_node(self, host: messages.SetUpNode) -> None:
        """Make the segments of this node, and receive the topology and the data."""
        topology_segment = Segment.create(shared_size(SharedTopology, host.shape))
        topology = SharedTopology(host.shape, Arena(topology_segment.buffer))
        weights_segment = None
        if host.has_weights:
            weights_segment = Segment.create(shared_size(SharedWeights, host.shape))
            self._segments.append(weights_segment)
        slot_size, _ = slot_sizes(host.shape, topology)
        slots = [Segment.create(slot_size) for _ in range(host.slots)]
        data_segment, data = make_arrays(host.shapes)
        self._segments += [topology_segment, *slots, data_segment]
        self._chunk_bytes = host.chunk_bytes
        self._receive(data)
        paths = [slot.path for slot in slots]
        weights_path = None if weights_segment is None else weights_segment.path
        places = places_in(data_segment, data)
        self._channel.send(
            messages.NodeSegments(topology_segment.path, weights_path, paths, places)
        )

    def _join(self, join: messages.Join) -> None:
        """Open what the node has."""
        self._config, self._chunk_bytes = join.config, join.options.chunk_bytes
        topology = self._open(join.segments.topology)
        self._topology = SharedTopology(join.shape, Arena(topology.buffer))
        self._weights = None
        if join.segments.weights is not None:
            weights = self._open(join.segments.weights)
            self._weights = SharedWeights(join.shape, Arena(weights.buffer), weights)
        arrays = [place.open() for place in join.segments.data]
        self._data, scaling = from_arrays(join.layout, arrays)
        if self._weights is not None:
            shared = self._topology, self._weights, join.config, join.options
            rows = len(self._data.train_rows)
            self._updater = Updater(*shared, self._comm.size - 1, rows)
        self._slots, self._steppers = [], []
        self._activations = PrivateMemory(slot_sizes(join.shape, self._topology)[1])
        for path in join.segments.slots:
            own = Arena(self._activations.buffer)  # for all slots: it computes in one at a time
            slot = Slot(join.shape, self._topology, Arena(self._open(path).buffer), own)
            slot.network.preprocessing = scaling
            self._slots.append(slot)
            self._steppers.append(Stepper(slot.network, join.config, workspace=slot.workspace))
        warm_up(join.config.backend, threads=join.config.threads or 1)
        forget_names()
        self._channel.send(messages.Done())

    def _open(self, path: str) -> Segment:
        """Map a segment of this node until the training is over."""
        segment = Segment.open(path)
        self._segments.append(segment)
        return segment

    def _receive_topology(self, message: messages.NewTopology) -> None:
        """Receive the topology for this node: nobody computes meanwhile."""
        self._topology.connections = message.connections
        self._topology.generation = message.generation
        self._receive(self._topology.arrays())
        if self._weights is not None:
            self._receive(self._weights.arrays(message.connections))
        self._channel.send(messages.Done())

    # ----------------------------------------------------------------------- gradients
    def _prepare(self, number: int, weights: messages.Weights) -> tuple[Slot, Stepper]:
        """Bring the weights of a slot up to date."""
        slot, stepper = self._slots[number], self._steppers[number]
        with stepper.backend.threads(stepper.threads):
            if self._weights is not None:
                slot.take(self._weights)
            else:
                if weights.sent:
                    self._receive(slot.arrays())
                slot.use(weights.version, weights.generation)
        return slot, stepper

    def _compute(self, task: messages.Compute) -> None:
        slot, stepper = self._prepare(task.slot, task.weights)
        joined: dict[str, Any] = {}
        if task.joined is not None:
            joined = {"first_row": task.first_row, "joined": task.joined}
        with stepper.backend.threads(stepper.threads):
            loss = self._gradient(stepper, task.batch, **joined)
        self._leave_slot()
        self._channel.send(self._push(task, loss, slot))

    def _gradient(self, stepper: Stepper, batch: Batch, **joined: Any) -> float:
        """Compute the gradient of a mini-batch; return the loss."""
        epoch, start, stop, step = batch
        rows = self._order(epoch)[start:stop]
        stepper.state.epoch, stepper.state.step = epoch, step
        X, y, weights, chosen = augmented(self._data, rows, epoch, self._augment)
        return stepper.gradient(X, y, chosen, weights, **joined)

    def _push(self, task: messages.Compute, loss: float, slot: Slot) -> messages.Push:
        connections = slot.network.layer_connections
        return messages.Push(self._comm.rank, task, loss, slot.version, connections)

    def _train(self, lease: messages.Lease) -> None:
        """Update the weights by the gradients of mini-batches, until the epoch is over."""
        stepper = self._steppers[lease.slot]
        with stepper.backend.threads(stepper.threads):
            updates, push = self._make_updates(lease)
        self._leave_slot()
        self._channel.send(messages.Leased(self._comm.rank, lease, updates, push))

    def _make_updates(
        self, lease: messages.Lease
    ) -> tuple[list[tuple[float, int]], messages.Push | None]:
        """Return loss and staleness of the updates, and what came too late."""
        assert self._weights is not None
        slot, stepper = self._slots[lease.slot], self._steppers[lease.slot]
        updates: list[tuple[float, int]] = []
        for batch in lease.batches:
            if self._topology.samples >= lease.limit or self._topology.stopping:
                break
            slot.take(self._weights)
            loss = self._gradient(stepper, batch)
            staleness = self._updater.update(
                slot.updated(self._weights),
                slot.workspace,
                samples([batch]),
                version=slot.version,
                snapshot=slot.arrays(),
                slot=slot,
                limit=lease.limit,
            )
            if staleness is None:
                weights = messages.Weights(slot.version, self._topology.generation, False)
                task = messages.Compute(lease.slot, weights, batch)
                return updates, self._push(task, loss, slot)
            updates.append((loss, staleness))
        return updates, None

    def _send_gradient(self, message: messages.SendGradient) -> None:
        slot = self._slots[message.slot]
        slot.workspace.resize_(message.connections)  # neurons may have been pruned since
        arrays = slot.workspace.arrays()
        if message.with_snapshot:
            arrays += cut(slot.parameters, message.connections)
        self._send(arrays)

    def _reduce(self, message: messages.Reduce) -> None:
        """Be this node's part of an all-reduce."""
        assert self._weights is not None
        if self._representative is None:
            self._representative = Representative(
                self._representatives,
                self._topology,
                self._weights,
                self._chunk_bytes,
            )
        gradients = []
        for slot in message.slots:
            workspace = self._slots[slot].workspace
            workspace.resize_(self._topology.connections)
            gradients.append(workspace)
        self._representative.update(
            self._weights.network(self._topology),
            gradients,
            message.optimizer,
            message.rate,
            self._steppers[0].threads,
        )
        self._channel.send(messages.Done())

    def _evaluate(self, task: messages.Evaluate) -> None:
        _, stepper = self._prepare(task.slot, task.weights)
        data = self._data
        if task.part == "train":
            rows = data.loss_rows[task.start : task.stop]
            loss, sums = stepper.sum_scores(data.X, data.y, rows, data.weights)
        else:
            assert data.test is not None
            loss, sums = stepper.sum_scores(*data.test, np.arange(task.start, task.stop))
        self._leave_slot()
        self._channel.send(messages.Evaluated(self._comm.rank, task, loss, sums))

    def _order(self, epoch: int) -> Rows:
        """Return the training rows in the order of an epoch, as sequential training has it."""
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            seed = self._config.seed
            self._orders[epoch] = epoch_order(self._data.train_rows, seed, epoch)
        return self._orders[epoch]

    # ----------------------------------------------------------------------- replicas
    def _train_replica(self, task: messages.TrainReplica) -> None:
        """Train a replica alone on its share of the rows; keep the result in a segment."""
        slot = self._slots[task.slot]
        trainer = start_replica(
            task,
            slot.network.config,
            self._config,
            self._topology,
            slot.workspace,
            self._copy_weights if self._weights is not None else self._receive,
        )
        network = trainer.network
        network.preprocessing, network.classes = slot.network.preprocessing, task.classes
        begun = trainer.epoch
        for record in train_replica(trainer, task, self._data, self._order, self._augment):
            self._channel.send(messages.Progress(task.replica, record, record.epoch <= begun))
        self._note_memory()
        self._leave_slot()
        stored = StoredReplica.store(network, on_disk=task.on_disk)
        self._replicas[task.replica] = stored
        self._segments.append(stored.segment)
        connections = network.layer_connections
        trained = messages.ReplicaTrained(self._comm.rank, task, stored.segment.path, connections)
        self._channel.send(trained)

    def _copy_weights(self, arrays: list[NDArray]) -> None:
        assert self._weights is not None
        for own, theirs in zip(
            arrays, self._weights.arrays(self._topology.connections), strict=True
        ):
            own[...] = theirs

    def _send_replica_layer(self, message: messages.SendReplicaLayer) -> None:
        layer = self._replicas[message.replica].layers[message.layer]
        self._send(list(layer.values()))

    # ----------------------------------------------------------------------- the rest
    def _leave_slot(self) -> None:
        """Give activations back to the system, so that whoever has the slot next has the room."""
        if not self._activations.is_kept:
            self._note_memory()
            self._activations.release()

    def _note_memory(self) -> None:
        self._own_bytes = max(self._own_bytes, own_bytes())

    def _count(self, _: messages.Count) -> None:
        idle = self._channel.idle_s, self._channel.idle_cpu_s
        beside = max(0, self._own_bytes - own_bytes())
        self._channel.send(
            messages.Report(*idle, cpu_seconds(), pss_bytes(), beside, peak_rss_bytes())
        )

    def _send(self, arrays: list[NDArray]) -> None:
        start_send(self._comm, arrays, SERVER, chunk_bytes=self._chunk_bytes).wait()

    def _receive(self, arrays: list[NDArray]) -> None:
        start_receive(self._comm, arrays, SERVER, chunk_bytes=self._chunk_bytes).wait()
