"""A worker rank: it does what rank 0 asks for, in the slot that it is given, and sleeps between."""

from __future__ import annotations

import functools
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
from ...machine.usage import own_bytes
from ...model.layer import LayerArrays
from ...training import warming
from ...training.curve import held_out
from ...training.history import History
from ...training.prepared import Augment, Rows, TrainingData, augmented, epoch_order
from ...training.stepping import Stepper
from ..comm.control import RankChannel
from ..comm.transfer import CHUNK_BYTES, start_receive, start_send
from ..shared.data import give_arrays
from ..shared.slots import Slot, create_segments, slot_sizes
from ..shared.weights import SharedTopology, SharedWeights, cut
from . import messages
from .allreduce import Representative
from .deal import Batch, samples
from .replicas import start_replica, store, train_replica
from .updating import Updater

SERVER = 0
warm_up = functools.cache(warming.warm_up)


class Worker:
    """Serves rank 0 until the training is over; `representatives` are the nodes' first ranks."""

    def __init__(
        self, comm: Any, channel: RankChannel, representatives: Any, augment: Augment | None = None
    ) -> None:
        self._comm = comm
        self._representatives = representatives
        self._channel = channel
        self._augment = augment
        self._segments: list[Segment] = []  # that are open
        self._replicas: dict[int, list[LayerArrays]] = {}  # the layers of those trained here
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
        segments = create_segments(host.shape, host.slots, has_weights=host.has_weights)
        data_segment, data = make_arrays(host.shapes)
        self._segments += [*segments, data_segment]
        self._chunk_bytes = host.chunk_bytes
        self._receive(data)
        paths, places = [segment.path for segment in segments], places_in(data_segment, data)
        self._channel.send(messages.NodeSegments(paths, host.has_weights, places))

    def _join(self, join: messages.Join) -> None:
        """Open what the node has."""
        self._config, self._chunk_bytes = join.config, join.options.chunk_bytes
        topology, *segments = [Segment.open(path) for path in join.segments.paths]
        self._segments += [topology, *segments]  # until the training is over
        self._topology = SharedTopology(join.shape, Arena(topology.buffer))
        arrays = [place.open() for place in join.segments.data]
        self._data: TrainingData
        self._data, scaling = give_arrays(join.data, arrays)
        self._weights = None
        if join.segments.has_weights:
            weights = segments.pop(0)
            self._weights = SharedWeights(join.shape, Arena(weights.buffer), weights)
            shared = self._topology, self._weights
            workers, rows = self._comm.size - 1, len(self._data.train_rows)
            self._updater = Updater(*shared, join.config, join.options, workers, rows)
            self._representative = Representative(self._representatives, self._chunk_bytes)
        self._slots, self._steppers = [], []
        self._activations = PrivateMemory(slot_sizes(join.shape, self._topology)[1])
        for segment in segments:
            own = Arena(self._activations.buffer)  # for all slots: it computes in one at a time
            slot = Slot(join.shape, self._topology, Arena(segment.buffer), own)
            slot.network.preprocessing = scaling
            self._slots.append(slot)
            self._steppers.append(Stepper(slot.network, join.config, workspace=slot.workspace))
        config = join.config
        warm_up(config.backend, threads=config.threads or 1, optimizer=config.optimizer)
        forget_names()
        self._channel.send(messages.Done())

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
        place = {"first_row": task.first_row, "joined": task.joined}
        with stepper.backend.threads(stepper.threads):
            loss = self._gradient(stepper, task.batch, **place)
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
        assert self._weights is not None
        slot, stepper = self._slots[lease.slot], self._steppers[lease.slot]
        updates: list[tuple[float, int]] = []
        late = None
        with stepper.backend.threads(stepper.threads):
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
                    late = self._push(messages.Compute(lease.slot, weights, batch), loss, slot)
                    break
                updates.append((loss, staleness))
        self._leave_slot()
        self._channel.send(messages.Leased(self._comm.rank, lease, updates, late))

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
        gradients = [self._slots[slot].workspace for slot in message.slots]
        for workspace in gradients:
            workspace.resize_(self._topology.connections)
        network = self._weights.network(self._topology)
        total = self._representative.sum(network, gradients)
        self._topology.samples = message.samples
        stepper = self._steppers[0]
        with stepper.backend.threads(stepper.threads):
            network.finish_gradient(total)
            self._updater.update(network, total, message.joined)
        self._channel.send(messages.Done())

    def _evaluate(self, task: messages.Evaluate) -> None:
        _, stepper = self._prepare(task.slot, task.weights)
        data = self._data
        if task.part == "train":
            rows = data.loss_rows[task.start : task.stop]
            loss, sums = stepper.sum_scores(data.X, data.y, rows, data.weights)
        elif task.part == "curve":
            X, y, _, rows = held_out(data, self._config)
            loss, sums = stepper.sum_scores(X, y, rows[task.start : task.stop])
        else:
            assert data.test is not None
            loss, sums = stepper.sum_scores(*data.test, np.arange(task.start, task.stop))
        self._leave_slot()
        self._channel.send(messages.Evaluated(self._comm.rank, task, loss, sums))

    def _order(self, epoch: int) -> Rows:
        """Return the training rows in the order of an epoch, as sequential training has it."""
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = epoch_order(self._data.train_rows, self._config.seed, epoch)
        return self._orders[epoch]

    # ----------------------------------------------------------------------- replicas
    def _train_replica(self, task: messages.TrainReplica) -> None:
        """Train a replica alone on its share of the rows; keep the result in a segment."""
        slot = self._slots[task.slot]
        fill = self._receive if self._weights is None else self._copy_weights
        trainer = start_replica(task, self._config, self._topology, slot.workspace, fill)
        network = trainer.network
        network.preprocessing, network.classes = slot.network.preprocessing, task.classes
        begun = trainer.epoch
        for record in train_replica(trainer, task, self._data, self._order, self._augment):
            self._channel.send(messages.Progress(task.replica, record, record.epoch <= begun))
        self._note_memory()
        self._leave_slot()
        segment, self._replicas[task.replica] = store(network, on_disk=task.on_disk)
        self._segments.append(segment)
        place = segment.path, network.layer_connections
        explored = [layer.explored for layer in network.layers]
        self._channel.send(messages.ReplicaTrained(self._comm.rank, task, *place, explored))

    def _copy_weights(self, arrays: list[NDArray]) -> None:
        assert self._weights is not None
        shared = self._weights.arrays(self._topology.connections)
        for own, theirs in zip(arrays, shared, strict=True):
            own[...] = theirs

    def _send_replica_layer(self, message: messages.SendReplicaLayer) -> None:
        self._send(list(self._replicas[message.replica][message.layer].values()))

    # ----------------------------------------------------------------------- the rest
    def _leave_slot(self) -> None:
        """Give activations back to the system, so that whoever has the slot next has the room."""
        if not self._activations.is_kept:
            self._note_memory()
            self._activations.release()

    def _note_memory(self) -> None:
        self._own_bytes = max(self._own_bytes, own_bytes())

    def _count(self, _: messages.Count) -> None:
        beside = max(0, self._own_bytes - own_bytes())
        self._channel.send(messages.Report.of(self._channel, beside))

    def _send(self, arrays: list[NDArray]) -> None:
        start_send(self._comm, arrays, SERVER, chunk_bytes=self._chunk_bytes).wait()

    def _receive(self, arrays: list[NDArray]) -> None:
        start_receive(self._comm, arrays, SERVER, chunk_bytes=self._chunk_bytes).wait()
