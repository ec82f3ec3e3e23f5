"""Phase two at a worker: a replica is trained alone and kept until it is averaged."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ...errors import CheckpointError
from ...machine.environment import expand_user
from ...machine.mapped_memory import Arena, Segment
from ...model.config import NetworkConfig, TrainingConfig
from ...model.exploration import begin_exploring_
from ...model.layer import LayerArrays
from ...model.network import SparseMLP
from ...model.workspace import Workspace
from ...randomness import seed_sequence
from ...training.history import EpochRecord, History
from ...training.prepared import Augment, Rows, TrainingData
from ...training.resumed_settings import load_checkpoint
from ...training.state import TrainingState
from ...training.trainer import Trainer, save_checkpoint
from ..shared.weights import SharedTopology, SharedWeights, parameter_room
from .messages import TrainReplica

logger = logging.getLogger(__name__)

RECOVERY_UPDATES = 64  # of a replica after an evolution; with fewer the average loses by it


def replica_seed(seed: int, replica: int) -> int:
    """Return the seed of a replica's training; the first one goes on with the training's own."""
    if replica == 0:
        return seed
    return int(seed_sequence(seed, "replica", replica).generate_state(1, np.uint64)[0])


def share_of_replica(order: Rows, batch_size: int, replica: int, replicas: int) -> list[Rows]:
    """Return a replica's mini-batches of an epoch: every `replicas`-th of the epoch's order."""
    starts = range(replica * batch_size, len(order), replicas * batch_size)
    return [order[start : start + batch_size] for start in starts]


def exchanges_connections(epoch: int, config: TrainingConfig, rows: int, replicas: int) -> bool:
    """Return whether replicas may exchange connections after so many epochs, of so many rows.

    Between two evolutions, and from the last one until the end, a replica makes the updates by
    which it recovers. One replica alone trains as one process does.
    """
    if replicas == 1:
        return True
    updates = max(1, -(-rows // config.batch_size) // replicas)  # of an epoch, at least
    recovery = max(1, math.ceil(RECOVERY_UPDATES / updates))  # epochs
    interval = config.evolution_interval
    every = interval * math.ceil(recovery / interval)
    return epoch % every == 0 and config.epochs - epoch >= recovery


def start_replica(
    task: TrainReplica,
    config: TrainingConfig,
    topology: SharedTopology,
    workspace: Workspace,
    fill: Callable[[list[NDArray]], None],
) -> Trainer:
    """Return the trainer of a replica, as the server's network is or as its checkpoint is.

    `config` is that of the whole training, and `workspace` the slot's. The topology's arrays are
    used, and never changed: evolution replaces them. `fill(arrays)` copies the server's weights and
    moments into arrays.
    """
    own = dataclasses.replace(config, seed=replica_seed(config.seed, task.replica))
    if task.replica:  # the learning curve is the first one's: it is the dearer the more there are
        own = dataclasses.replace(own, curve_points=0)
    if task.checkpoint is not None:
        with suppress(CheckpointError):
            found = load_checkpoint(_folder(task), threads=config.threads)
            if found.config.seed == own.seed and found.config.epochs == own.epochs:
                return Trainer(found.network, own, workspace=workspace, state=found.state)
    connections = topology.connections
    weights = SharedWeights(topology.shape._replace(room=tuple(connections)), np.empty)
    fill(weights.arrays(connections))
    network = weights.network(topology, [None] * len(connections))
    begin_exploring_(network.layers)
    history = History([EpochRecord(task.epoch, None, None, nnz=connections)])
    state = TrainingState(task.epoch, task.step, history=history)
    return Trainer(network, own, workspace=workspace, state=state)


def train_replica(
    trainer: Trainer,
    task: TrainReplica,
    data: TrainingData,
    order: Callable[[int], Rows],
    augment: Augment | None,
) -> Iterator[EpochRecord]:
    """Train a replica to the end, by its share of every epoch's order; yield a record an epoch.

    The first records are those of epochs that its checkpoint has.
    """
    config = trainer.config
    yield from (record for record in trainer.history if record.epoch > task.epoch)
    with tqdm(disable=True) as bar:
        while trainer.epoch < config.epochs:
            share = order(trainer.epoch), config.batch_size, task.replica, task.replicas
            trainer.run_epoch(data, share_of_replica(*share), bar, augment)
            record = trainer.complete_epoch(loss=None, train_accuracy=None)
            if trainer.epoch < config.epochs:  # averaging follows the last one
                rows = len(data.train_rows)
                exchange = exchanges_connections(trainer.epoch, config, rows, task.replicas)
                trainer.evolve_if_due(data, keep_maps=False, exchange=exchange)
            if task.checkpoint is not None:
                try:
                    save_checkpoint(trainer, _folder(task))
                except CheckpointError as error:
                    logger.error("%s The one before, if there is one, is intact.", error)
            yield record


def _folder(task: TrainReplica) -> Path:
    assert task.checkpoint is not None
    return expand_user(task.checkpoint) / f"replica-{task.replica + 1:03d}"


def store(network: SparseMLP, *, on_disk: bool) -> tuple[Segment, list[LayerArrays]]:
    """Copy a network's layers into a new segment, which the server can open; return both."""
    shape, count = (network.config, network.layer_connections), Arena()
    rooms(*shape, count)
    segment = Segment.create(count.nbytes, on_disk=on_disk)
    layers = rooms(*shape, Arena(segment.buffer))
    for layer, room in zip(network.layers, layers, strict=True):
        arrays = layer.arrays()
        for name in arrays.keys() & room.keys():  # the server has the candidates
            room[name][...] = arrays[name]
    if on_disk:
        segment.unload()  # the system can evict them, and the node's memory is not these
    return segment, layers


def layer_room(
    config: NetworkConfig, k: int, nnz: int, allocate: Callable[..., NDArray]
) -> LayerArrays:
    """Return room for what `SparseLayer.arrays` has of layer k with so many connections."""
    n_in, n_out = config.layer_sizes[k : k + 2]
    return {
        "indptr": allocate(n_in + 1, np.int32),
        "indices": allocate(nnz, np.int32),
        **parameter_room(config, k, nnz, allocate),
        "dead": allocate(n_out, np.bool_),
    }


def rooms(config: NetworkConfig, connections: list[int], arena: Arena) -> list[LayerArrays]:
    """Return room for all layers."""
    return [layer_room(config, k, nnz, arena) for k, nnz in enumerate(connections)]
