"""Phase two at rank 0: replicas are trained apart, then averaged layer by layer."""

from __future__ import annotations

import statistics
import time
from collections import deque

import numpy as np

from ...machine.mapped_memory import Arena, Segment
from ...model.config import NetworkConfig
from ...model.layer import LayerArrays
from ...training.history import EpochRecord
from ...training.memory import available_memory
from . import messages
from .averaging import average_frozen, average_layers
from .replicas import layer_room, rooms, share_of_replica
from .server import Server

RESULTS_SHARE = 0.25  # of the available memory that trained replicas may wait in


def train_replicas(server: Server) -> list[messages.ReplicaTrained]:
    """Let the workers train replicas alone, as many at a time as there are slots.

    Returns what was trained, in the order of the replicas.
    """
    links, trainer, state = server.links, server.trainer, server.trainer.state
    replicas = server.replicas
    dispatcher = server.make_dispatcher(False)
    one = result_bytes(trainer.network.connections, trainer.network.config)
    on_disk = replicas * one > RESULTS_SHARE * available_memory()
    rows, batch_size = server.run.data.train_rows, trainer.config.batch_size
    shares = [share_of_replica(rows, batch_size, r, replicas) for r in range(replicas)]
    samples = [sum(map(len, share)) for share in shares]
    resumed_s = 0.0  # of epochs that replicas had trained before, summed over these
    todo = deque(range(replicas))
    trained: dict[int, messages.ReplicaTrained] = {}
    records: dict[int, list[EpochRecord]] = {}
    started = time.perf_counter()
    while len(trained) < replicas:
        for worker, slot in dispatcher.pairs(lambda _: bool(todo)):
            task = messages.TrainReplica(
                slot,
                todo.popleft(),
                replicas,
                state.epoch,
                state.step,
                trainer.network.classes,
                on_disk,
                None if server.run.checkpoint is None else str(server.run.checkpoint),
            )
            dispatcher.begin(worker, slot)
            links.begin_replica(worker, task)
        message = links.next()
        server.run.request.check()
        if isinstance(message, messages.Progress):
            record = message.record
            records.setdefault(record.epoch, []).append(record)
            resumed_s += (record.epoch_s or 0.0) if message.resumed else 0.0
            server.run.bar.update(samples[message.replica])
            told = {"replica": message.replica + 1, "loss": f"{record.running_loss:.4f}"}
            server.run.bar.set_postfix(**told)
        elif isinstance(message, messages.ReplicaTrained):
            trained[message.task.replica] = message
            dispatcher.end(message.worker, message.task.slot)
    server.report.phase_two_s = time.perf_counter() - started
    seconds = server.report.phase_two_s + resumed_s / min(dispatcher.slots, replicas)
    epochs = range(state.epoch + 1, trainer.config.epochs + 1)
    for epoch in epochs:
        summary = _summary(epoch, records.get(epoch, []), seconds / len(epochs))
        state.history.epochs.append(summary)
    state.epoch = trainer.config.epochs
    return [trained[replica] for replica in range(replicas)]


def result_bytes(connections: int, config: NetworkConfig) -> int:
    """Return the bytes of a trained replica with so many connections, until it is averaged."""
    return 8 * connections + 4 * sum(config.layer_sizes[:-1]) + 5 * sum(config.layer_sizes[1:])


def _summary(epoch: int, found: list[EpochRecord], seconds: float) -> EpochRecord:
    """Return the record of an epoch of phase two: the model of it does not exist yet."""
    summary = EpochRecord(epoch, None, None, epoch_s=seconds)
    for first in (each for each in found if each.curve):
        summary.curve = [point | {"replica": 1} for point in first.curve]
        summary.curve_s = first.curve_s
    for name in ("running_loss", "evolution_s"):
        known = [value for each in found if (value := getattr(each, name)) is not None]
        setattr(summary, name, statistics.mean(known) if known else None)
    return summary


def average(server: Server, trained: list[messages.ReplicaTrained]) -> None:
    """Give the server's network the average of the replicas, one layer at a time."""
    links, network = server.links, server.trainer.network
    started = time.perf_counter()
    here: dict[int, list[LayerArrays]] = {}
    for result in trained:
        if links.is_here(result.worker):
            segment = Segment.open(result.path)
            arena = Arena(segment.buffer)
            here[result.task.replica] = rooms(network.config, result.connections, arena)
            segment.close()
    for k, layer in enumerate(network.layers):
        parts = []
        for result in trained:
            replica = result.task.replica
            if replica in here:
                parts.append(here[replica][k])
            else:
                room = layer_room(network.config, k, result.connections[k], np.empty)
                message = messages.SendReplicaLayer(replica, k)
                links.receive_layer(result.worker, list(room.values()), message)
                parts.append(room)
        with server.trainer.backend.threads(server.trainer.threads):
            replicas = [_with_dead(part) for part in parts]
            if layer.config.frozen:
                below = network.layers[k - 1].dead if k else None
                mean = average_frozen(layer.topology, replicas, below)
            else:
                mean = average_layers(layer.n_out, replicas)
            layer.restore_(mean)
        sketches = [layer.explored, *(result.explored[k] for result in trained)]
        layer.explored = np.maximum.reduce([each for each in sketches if each is not None])
        links.topology.store_dead(k, layer.dead)
    links.topology.version += 1
    links.topology.generation += 1
    links.send_topology()
    server.report.averaging_s = time.perf_counter() - started


def _with_dead(part: LayerArrays) -> LayerArrays:
    """Return the layer without `dead` where nobody is."""
    return {name: array for name, array in part.items() if name != "dead" or array.any()}
