"""What a network that no machine here can hold would take on a cluster: bytes, messages, hours.

The bytes are those of the memory plan. The times follow from measured costs a connection and
sample, and assume what is given for cores, links and efficiency; nothing here has been run.

Training is data parallel: every node has the whole topology. Where that does not fit into a node,
the plan divides the layers over as many nodes as it takes (`stages`). **That is arithmetic only**:
the library cannot train so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import ParameterError
from ..machine.mapped_memory import Arena
from ..machine.sizes import show_seconds
from ..model.config import NetworkConfig
from ..model.topology import MAX_CONNECTIONS
from ..parallel.comm.nodes import Nodes
from ..parallel.comm.transfer import CHUNK_BYTES
from ..parallel.plan import FIRST_BASE, Workload, plan_parallel
from ..parallel.shared.slots import slot_sizes
from ..parallel.shared.weights import Shape, SharedTopology, shared_size
from ..training.layer_terms import expected_connections, itemsize
from ..training.memory import GIB, HEADROOM, MicroBatching
from .ladder import GUESS, Costs
from .presets import hidden_sizes

ACTIVATION_DTYPE = "bfloat16"  # as wide layers are trained
MICRO_BATCHES = (64, 32, 16, 8, 4, 2, 1)
DIVIDED = 8  # micro-batch where layers are divided over nodes
LEAST_LAYERS = 10


@dataclass(frozen=True)
class Cluster:
    """The machines, all alike."""

    nodes: int = 8
    cores: int = 64  # of a node
    memory: int = 512 * GIB  # bytes of a node
    link: float = 12.5e9  # bytes a second of a node's link
    efficiency: float = 0.5  # of all cores together, beside those that were measured


@dataclass(frozen=True)
class ClusterPlan:
    """What a training would take. Bytes are of one node; times are seconds of an epoch."""

    config: NetworkConfig
    cluster: Cluster
    connections: int
    micro_batch: int
    stages: int  # nodes that hold the model together; more than 1 is not implemented
    replicas: int  # groups of `stages` nodes that compute gradients
    first_bytes: int  # of a node of the server's group
    other_bytes: int
    updates: int  # of an epoch
    update_bytes: int  # weights to, and a gradient from, another group
    update_messages: int
    stage_bytes: int  # activations and their gradients between stages, of an update
    init_s: float
    compute_s: float
    transfer_s: float  # through the link of the server's group, or between stages

    @property
    def epoch_s(self) -> float:
        """Seconds of an epoch: transfers are hidden behind computing, or the other way round."""
        return max(self.compute_s, self.transfer_s)

    def __str__(self) -> str:
        config, cluster = self.config, self.cluster
        sizes, hidden = config.layer_sizes, config.layer_sizes[1:-1]
        ranks = self.replicas * self.stages + 1
        rows = [
            ("neurons", f"{config.neurons:,}"),
            ("layers x width", f"{len(hidden)} x {max(hidden):,}"),
            ("connections", f"{self.connections:,}"),
            ("largest layer's connections", f"{max(expected_connections(config)):,}"),
            ("of the most an int32 can count", f"{self._share_of_int32():.0%}"),
            ("features", f"{sizes[0]:,}"),
            ("nodes", f"{self.replicas * self.stages} of {cluster.cores} cores"),
            ("ranks", f"{ranks}: a server, and a worker a node"),
            ("micro-batch", str(self.micro_batch)),
            ("bytes of the server's node", f"{self.first_bytes / GIB:,.0f} GiB"),
            ("bytes of every other node", f"{self.other_bytes / GIB:,.0f} GiB"),
            ("updates an epoch", f"{self.updates:,}"),
            ("bytes an update, to and fro", f"{self.update_bytes / 1e9:,.1f} GB"),
            ("messages an update", f"{self.update_messages:,}"),
            ("initialisation", _duration(self.init_s)),
            ("computing, an epoch", _duration(self.compute_s)),
            ("transfers, an epoch", _duration(self.transfer_s)),
            ("an epoch", _duration(self.epoch_s)),
        ]
        if self.stages > 1:
            rows[7:7] = [
                ("nodes that share the layers", f"{self.stages}: NOT IMPLEMENTED"),
                ("bytes between stages, an update", f"{self.stage_bytes / 1e9:,.1f} GB"),
            ]
        return "\n".join(f"  {name:<36}{value:>36}" for name, value in rows)

    def _share_of_int32(self) -> float:
        return max(expected_connections(self.config)) / MAX_CONNECTIONS


def least_layers(neurons: int, epsilon: float) -> int:
    """Return the fewest equal layers whose connections an int32 can count.

    A layer between two of n neurons has about 2·ε·n connections, and at most 2**31 - 1.
    """
    layers = max(1, math.floor(2 * epsilon * neurons / MAX_CONNECTIONS))
    while _most(2 * epsilon * -(-neurons // layers)) > MAX_CONNECTIONS:
        layers += 1
    return layers


def plan_cluster(
    neurons: int,
    cluster: Cluster,
    *,
    costs: Costs = GUESS,
    layers: int | None = None,
    epsilon: float = 1.0,
    features: int = 65536,
    samples: int = 7000,
    batch_size: int = 128,
    chunk_bytes: int = CHUNK_BYTES,
) -> ClusterPlan:
    """Return what a training by WASAP would take.

    Parameters
    ----------
    neurons : int
    cluster : Cluster
    costs : Costs
        Seconds a connection (and sample) of **one** core.
    layers : int, optional
        By default 10, or more where int32 asks for it.
    epsilon : float
    features, samples, batch_size, chunk_bytes : int
        Rows are of an epoch and of an update, bytes of a message at most.

    Raises
    ------
    ParameterError
        Where a layer would have more connections than int32 can count.
    """
    config = _network(neurons, layers, epsilon, features)
    counts, sizes = expected_connections(config), config.layer_sizes
    connections = sum(counts)
    micro_batch, stages, first, other = _division(config, cluster)
    replicas = max(1, cluster.nodes // stages)
    arrays = [4 * size for size in (*counts, *sizes[1:])]
    messages, update_bytes = sum(-(-size // chunk_bytes) for size in arrays), 2 * sum(arrays)
    updates, steps = -(-samples // batch_size), -(-batch_size // micro_batch)
    between = 2 * itemsize(ACTIVATION_DTYPE) * batch_size * max(sizes[1:-1])  # at each boundary
    cores = replicas * stages * cluster.cores * cluster.efficiency
    away = updates * (replicas - 1) / replicas
    through = away * update_bytes / stages + (updates / replicas) * between * (stages > 1)
    return ClusterPlan(
        config,
        cluster,
        connections,
        micro_batch,
        stages,
        replicas,
        first,
        other,
        updates,
        update_bytes,
        2 * messages,
        between * (stages - 1),
        costs.init * connections / (cluster.cores * cluster.efficiency),
        costs.training * connections * samples / (cores * _busy_share(steps, stages)),
        through / cluster.link,
    )


def _network(neurons: int, layers: int | None, epsilon: float, features: int) -> NetworkConfig:
    """Return the network, of as many layers as int32 asks for."""
    needed = least_layers(neurons, epsilon)
    layers = max(LEAST_LAYERS, needed) if layers is None else layers
    if layers < needed:
        raise ParameterError(
            f"The 'layers' parameter of plan_cluster must be at least {needed}: a layer's "
            f"connections are counted by int32, up to {MAX_CONNECTIONS}. Got {layers} instead."
        )
    return NetworkConfig((features, *hidden_sizes(neurons, layers), 2), epsilon=epsilon)


def _division(config: NetworkConfig, cluster: Cluster) -> tuple[int, int, int, int]:
    """Return micro-batch, stages, and the bytes of the server's node and of another."""
    budget = HEADROOM * cluster.memory
    for micro_batch in MICRO_BATCHES:
        first, other = _node_bytes(config, cluster, micro_batch)
        if first <= budget:
            return micro_batch, 1, first, other
    first, other = _node_bytes(config, cluster, DIVIDED)
    stages = math.ceil(first / budget)
    return DIVIDED, stages, -(-first // stages), -(-other // stages)


def _busy_share(steps: int, stages: int) -> float:
    """Return how much of the time the stages of a pipeline work: it is filled every update."""
    return steps / (steps + stages - 1)


def _node_bytes(config: NetworkConfig, cluster: Cluster, micro_batch: int) -> tuple[int, int]:
    """Return the bytes of the server's node and of another, with a slot each."""
    setting = MicroBatching(micro_batch, activation_dtype=ACTIVATION_DTYPE)
    shape = Shape(config, expected_connections(config), setting)
    nodes = Nodes([0, 0, 1], [cluster.cores] * 2, ["first", "second"])
    first = plan_parallel(shape, nodes, [1, 1], Workload()).required
    topology = shared_size(SharedTopology, shape)
    slot = sum(slot_sizes(shape, SharedTopology(shape, Arena())))
    return first, FIRST_BASE + topology + slot


def _most(expected: float) -> float:
    return expected + 6 * math.sqrt(expected)


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return show_seconds(seconds)
