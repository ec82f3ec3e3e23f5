"""What rank 0 and the workers tell each other. Arrays go by shared memory or by `transfer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...machine.mapped_memory import Shapes, SharedArray
from ...machine.usage import cpu_seconds, peak_rss_bytes, pss_bytes
from ...model.config import TrainingConfig
from ...model.losses import ScoreSums
from ...training.history import EpochRecord, History
from ..comm.control import RankChannel, RootChannel
from ..options import ParallelOptions
from ..shared.weights import Shape
from .deal import Batch


class NodeSegments(NamedTuple):
    """Where a node's ranks find what they share."""

    paths: list[str]  # of the segments, as `create_segments` returns them
    has_weights: bool  # on the server's node, or where every node has its own
    data: list[SharedArray]


# --------------------------------------------------------------------------- to the workers
class SetUpNode(NamedTuple):
    """To the first rank of another node: make the node's segments, and receive the data."""

    shape: Shape
    slots: int
    has_weights: bool
    shapes: Shapes  # of the arrays of the data
    chunk_bytes: int


class Join(NamedTuple):
    """To every worker: what the node has, and what the training is."""

    shape: Shape
    segments: NodeSegments
    data: bytes  # what it is but for its arrays, with the standardisation
    config: TrainingConfig
    options: ParallelOptions


class Weights(NamedTuple):
    """Which weights a slot needs. Another node receives them, unless the slot has them."""

    version: int
    generation: int
    sent: bool


class Compute(NamedTuple):
    """Compute the gradient of a mini-batch, or of a part of a joined one."""

    slot: int
    weights: Weights
    batch: Batch
    first_row: int = 0  # of the batch in a joined mini-batch
    joined: int | None = None  # rows of that


class Lease(NamedTuple):
    """To a worker on rank 0's node: train on mini-batches, and update the weights yourself."""

    slot: int
    batches: list[Batch]
    limit: int  # samples at which the epoch is over, and with it the lease


class Evaluate(NamedTuple):
    """Sum loss and scores over rows of the training or the test data."""

    slot: int
    weights: Weights
    part: str  # "train" | "test"
    start: int
    stop: int


class SendGradient(NamedTuple):
    """The server is ready for the gradient in a slot."""

    slot: int
    connections: list[int]  # of every layer, when it was computed
    with_snapshot: bool


class Reduce(NamedTuple):
    """To the first rank of another node: sum gradients over all nodes, and update."""

    slots: list[int]
    samples: int  # that the weights have been trained on
    joined: int  # samples of the gradients


class NewTopology(NamedTuple):
    """To the first rank of another node: receive topology (and weights) after an evolution."""

    generation: int
    connections: list[int]


class TrainReplica(NamedTuple):
    """Train a replica alone, from the server's weights to the end."""

    slot: int
    replica: int
    replicas: int
    epoch: int  # epochs trained so far
    step: int  # updates made so far
    classes: Any
    on_disk: bool  # where the result goes
    checkpoint: str | None  # folder


class SendReplicaLayer(NamedTuple):
    """Send a layer of a replica that was trained here."""

    replica: int
    layer: int


class Count:
    """Tell what was used so far: the training is over."""


class Finish(NamedTuple):
    """Leave; this is what the training recorded."""

    history: History


# --------------------------------------------------------------------------- to rank 0
class Done:
    """What was asked for has been done."""


@dataclass
class Push:
    """A gradient is ready in a slot."""

    worker: int
    task: Compute
    loss: float
    version: int  # of the weights it was computed on
    connections: list[int]  # of every layer, at the time

    # Filled in at rank 0:
    gradients: Any = None  # Gradients
    snapshot: Any = None  # list of arrays: the weights it was computed on
    keeps_snapshot: bool = True  # until its slot is used to evaluate


class Leased(NamedTuple):
    """Answer to `Lease`: the epoch is over, or all has been trained on."""

    worker: int
    task: Lease
    updates: list[tuple[float, int]]  # loss and staleness of the first mini-batches
    push: Push | None  # the gradient of the next, if it came too late for the epoch


class Evaluated(NamedTuple):
    """Answer to `Evaluate`."""

    worker: int
    task: Evaluate
    loss: float
    sums: ScoreSums


class Progress(NamedTuple):
    """A replica has trained an epoch."""

    replica: int
    record: EpochRecord
    resumed: bool  # it is of the checkpoint that the replica went on from


class ReplicaTrained(NamedTuple):
    """A replica is ready."""

    worker: int
    task: TrainReplica
    path: str  # of its segment
    connections: list[int]
    explored: list[NDArray[np.uint8] | None]  # see `exploration`


class Report(NamedTuple):
    """What a rank has used."""

    idle_s: float
    idle_cpu_s: float
    cpu_s: float
    pss_bytes: int  # in the end
    slot_bytes: int  # beside that, of its own, while it had a slot
    rss_bytes: int  # at its peak

    @classmethod
    def of(cls, channel: RootChannel | RankChannel, slot_bytes: int = 0) -> Report:
        """Return what this rank has used, with its waiting for messages."""
        idle = channel.idle_s, channel.idle_cpu_s
        return cls(*idle, cpu_seconds(), pss_bytes(), slot_bytes, peak_rss_bytes())
