"""Phase two at a worker: a replica is trained alone and kept until it is averaged."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..config import NetworkConfig, TrainingConfig
from ..environment import expand_user
from ..errors import CheckpointError
from ..history import EpochRecord, History
from ..layer import SparseLayer
from ..mapped_memory import Allocate, Arena, Segment
from ..network import SparseMLP, layer_settings
from ..randomness import seed_sequence
from ..resumed_settings import load_checkpoint
from ..state import TrainingState
from ..training import Trainer, save_checkpoint
from ..training_data import Augment, Rows, TrainingData
from ..workspace import Workspace
from .averaging import LayerArrays
from .messages import TrainReplica
from .shared import SharedTopology, parameter_arrays

logger = logging.getLogger(__name__)


def replica_seed(seed: int, replica: int) -> int:
    """Return the seed of a replica's training; the first one goes on with the training's own."""
    if replica == 0:
        return seed
    return int(seed_sequence(seed, "replica", replica).generate_state(1, np.uint64)[0])


def share_of_replica(order: Rows, batch_size: int, replica: int, replicas: int) -> list[Rows]:
    """Return a replica's mini-batches of an epoch: every `replicas`-th of the epoch's order."""
    starts = range(replica * batch_size, len(order), replicas * batch_size)
    return [order[start : start + batch_size] for start in starts]


def start_replica(
    task: TrainReplica,
    network_config: NetworkConfig,
    config: TrainingConfig,
    topology: SharedTopology,
    workspace: Workspace,
    fill: Callable[[list[NDArray]], None],
) -> Trainer:
    """Return the trainer of a replica, as the server's network is or as its checkpoint is.

    Parameters
    ----------
    task : TrainReplica
    network_config : NetworkConfig
    config : TrainingConfig
        Of the whole training.
    topology : SharedTopology
        Its arrays are used, and never changed: evolution replaces them.
    workspace : Workspace
        Of the slot.
    fill : callable
        fill(arrays) copies the server's weights and velocities into arrays.
    """
    own = dataclasses.replace(config, seed=replica_seed(config.seed, task.replica))
    if task.checkpoint is not None:
        with suppress(CheckpointError):
            found = load_checkpoint(_folder(task), threads=config.threads)
            if found.config.seed == own.seed and found.config.epochs == own.epochs:
                return Trainer(found.network, own, workspace=workspace, state=found.state)
    sizes, connections = network_config.layer_sizes, topology.connections
    parameters = parameter_arrays(network_config, connections, np.empty)
    velocities = parameter_arrays(network_config, connections, np.empty)
    fill([array for layer in parameters + velocities for array in layer])
    layers = []
    for k in range(len(sizes) - 1):
        settings = layer_settings(network_config, k) | {"dead": topology.dead(k)}
        values, bias, srelu = parameters[k]
        velocity, bias_velocity, srelu_velocity = velocities[k]
        if settings["srelu"] is not None:
            settings |= {"srelu": srelu, "srelu_velocity": srelu_velocity}
        settings |= {"velocity": velocity, "bias_velocity": bias_velocity}
        layers.append(SparseLayer(k + 2, topology.topology(k), values, bias, **settings))
    network = SparseMLP.from_layers(network_config, layers)
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
                trainer.evolve_if_due(data, keep_maps=False)
            if task.checkpoint is not None:
                try:
                    save_checkpoint(trainer, _folder(task))
                except CheckpointError as error:
                    logger.error("%s The one before, if there is one, is intact.", error)
            yield record


def _folder(task: TrainReplica) -> Path:
    assert task.checkpoint is not None
    return expand_user(task.checkpoint) / f"replica-{task.replica + 1:03d}"


class StoredReplica:
    """The result of a replica: its layers, in a segment that the server can open."""

    def __init__(self, config: NetworkConfig, connections: list[int], segment: Segment) -> None:
        self.segment = segment
        self.layers = _layer_arrays(config, connections, Arena(segment.buffer))

    @classmethod
    def store(cls, network: SparseMLP, *, on_disk: bool) -> StoredReplica:
        """Copy a network's layers into a new segment."""
        connections = [layer.nnz for layer in network.layers]
        count = Arena()
        _layer_arrays(network.config, connections, count)
        stored = cls(network.config, connections, Segment.create(count.nbytes, on_disk=on_disk))
        for layer, place in zip(network.layers, stored.layers, strict=True):
            place.indptr[...] = layer.topology.indptr
            place.indices[...] = layer.topology.indices
            place.values[...] = layer.values
            place.bias[...] = layer.bias
            if place.dead is not None and layer.dead is not None:
                place.dead[...] = layer.dead
            if place.srelu is not None and layer.srelu is not None:
                place.srelu[...] = layer.srelu
        if on_disk:
            stored.segment.unload()  # the system can evict them, and the node's memory is not these
        return stored


def layer_arrays(
    config: NetworkConfig, k: int, connections: int, allocate: Allocate
) -> LayerArrays:
    """Return room for layer k of a replica with so many connections."""
    n_in, n_out = config.layer_sizes[k : k + 2]
    shaped = layer_settings(config, k)["srelu"] is not None
    return LayerArrays(
        allocate(n_in + 1, np.int32),
        allocate(connections, np.int32),
        allocate(connections),
        allocate(n_out),
        allocate(n_out, np.bool_),
        allocate((4, n_out)) if shaped else None,
    )


def _layer_arrays(
    config: NetworkConfig, connections: list[int], allocate: Allocate
) -> list[LayerArrays]:
    return [layer_arrays(config, k, nnz, allocate) for k, nnz in enumerate(connections)]
