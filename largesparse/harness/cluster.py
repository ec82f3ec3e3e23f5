"""What a network that no machine here can hold would take on a cluster: bytes, messages, hours.

The bytes are those of the memory plans. The times follow from measured costs a connection and
sample, and assume what is given for cores, links and efficiency.

Where a node can hold the whole network and a slot, training is data parallel (`train_wasap`).
Where it cannot, the layers are divided over as many nodes as it takes, and as many groups of them
as there are nodes for train on different rows (`train_pipeline`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..backends.operands import MOST_INT32
from ..errors import MemoryPlanError
from ..machine.mapped_memory import Arena
from ..machine.sizes import show_seconds
from ..model.config import NetworkConfig, TrainingConfig
from ..parallel.comm.nodes import Nodes
from ..parallel.comm.transfer import CHUNK_BYTES
from ..parallel.pipeline.choice import find_plan, sample_cost
from ..parallel.pipeline.costs import PASSES, stage_passes
from ..parallel.pipeline.plan import Machine, PipelinePlan, Request
from ..parallel.plan import FIRST_BASE, Workload, plan_parallel
from ..parallel.shared.slots import slot_sizes
from ..parallel.shared.weights import Shape, SharedTopology, shared_size
from ..training.layer_terms import expected_connections
from ..training.memory import GIB, HEADROOM, MicroBatching, plan_training
from .ladder import GUESS, Costs
from .presets import HYPERPARAMETERS, hidden_sizes

ACTIVATION_DTYPE = "bfloat16"  # as wide layers are trained
MICRO_BATCHES = (64, 32, 16, 8, 4, 2, 1)
LEAST_LAYERS = 10
TRAINING = TrainingConfig(  # of which the memory is, as `bigmodel` trains
    optimizer=HYPERPARAMETERS["width"].optimizer, growth=HYPERPARAMETERS["width"].growth
)


@dataclass(frozen=True)
class Cluster:
    """The machines, all alike."""

    nodes: int = 8
    cores: int = 64  # of a node
    memory: int = 512 * GIB  # bytes of a node
    link: float = 12.5e9  # bytes a second of a node's link
    latency: float = 20e-6  # seconds of a message
    efficiency: float = 0.5  # of all cores together, beside those that were measured
    pipeline_efficiency: float = 1.0  # of a pipeline, next to (M + K - 1) micro-batches' time


@dataclass(frozen=True)
class ClusterPlan:
    """What a training would take. Bytes are of one node; times are seconds of an epoch."""

    config: NetworkConfig
    cluster: Cluster
    connections: int
    micro_batch: int
    stages: int  # nodes that hold the model together
    replicas: int  # groups of `stages` nodes that compute gradients
    first_bytes: int  # of a node of the server's group, or of the fullest of a pipeline
    other_bytes: int  # of another, or of the emptiest
    rows: int  # of an update
    updates: int  # of an epoch
    update_bytes: int  # weights to, and a gradient from, another group; or what groups sum
    update_messages: int
    stage_bytes: int  # activations and their gradients between stages, of an update
    bubble: float  # share of a step in which a stage waits
    init_s: float
    compute_s: float  # the bubble included
    transfer_s: float  # through the link of the server's group, or of a stage
    waiting_s: float = 0.0  # for sums over groups and for messages, when nothing is computed

    @property
    def epoch_s(self) -> float:
        """Seconds of an epoch: transfers are hidden behind computing, or the other way round."""
        return max(self.compute_s, self.transfer_s) + self.waiting_s

    def __str__(self) -> str:
        config, cluster = self.config, self.cluster
        sizes, hidden = config.layer_sizes, config.layer_sizes[1:-1]
        rows = [
            ("neurons", f"{config.neurons:,}"),
            ("layers x width", f"{len(hidden)} x {max(hidden):,}"),
            ("connections", f"{self.connections:,}"),
            ("largest layer's connections", f"{max(expected_connections(config)):,}"),
            ("of the most an int32 can count", f"{self._share_of_int32():.0%}"),
            ("features", f"{sizes[0]:,}"),
            ("nodes", f"{self.replicas * self.stages} of {cluster.cores} cores"),
            *(self._of_server() if self.stages == 1 else self._of_pipeline()),
            ("initialisation", _duration(self.init_s)),
            ("computing, an epoch", _duration(self.compute_s)),
            ("transfers, an epoch", _duration(self.transfer_s)),
            ("an epoch", _duration(self.epoch_s)),
        ]
        return "\n".join(f"  {name:<36}{value:>36}" for name, value in rows)

    def _of_server(self) -> list[tuple[str, str]]:
        return [
            ("algorithm", "wasap, data parallel"),
            ("ranks", f"{self.replicas + 1}: a server, and a worker a node"),
            ("micro-batch", str(self.micro_batch)),
            ("bytes of the server's node", f"{self.first_bytes / GIB:,.0f} GiB"),
            ("bytes of every other node", f"{self.other_bytes / GIB:,.0f} GiB"),
            ("rows an update", f"{self.rows:,}"),
            ("updates an epoch", f"{self.updates:,}"),
            ("bytes an update, to and fro", f"{self.update_bytes / 1e9:,.1f} GB"),
            ("messages an update", f"{self.update_messages:,}"),
        ]

    def _of_pipeline(self) -> list[tuple[str, str]]:
        return [
            ("algorithm", "pipeline"),
            ("nodes that share the layers", str(self.stages)),
            ("groups of them, on different rows", str(self.replicas)),
            ("micro-batch", str(self.micro_batch)),
            ("bytes of the fullest node", f"{self.first_bytes / GIB:,.0f} GiB"),
            ("bytes of the emptiest node", f"{self.other_bytes / GIB:,.0f} GiB"),
            ("rows an update", f"{self.rows:,}"),
            ("updates an epoch", f"{self.updates:,}"),
            ("a node waits for others (bubble)", f"{self.bubble:.0%}"),
            ("bytes between stages, an update", f"{self.stage_bytes / 1e9:,.1f} GB"),
            ("bytes a node sums, an update", f"{self.update_bytes / 1e9:,.1f} GB"),
            ("messages an update", f"{self.update_messages:,}"),
            ("sums and latencies, an epoch", _duration(self.waiting_s)),
        ]

    def _share_of_int32(self) -> float:
        return max(expected_connections(self.config)) / MOST_INT32


def least_layers(neurons: int, epsilon: float) -> int:
    """Return the fewest equal layers whose connections an int32 can count.

    A layer between two of n neurons has about 2·ε·n connections. With more than 2**31 - 1 it takes
    4 bytes more for each.
    """
    layers = max(1, math.floor(2 * epsilon * neurons / MOST_INT32))
    while _most(2 * epsilon * -(-neurons // layers)) > MOST_INT32:
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
    """Return what a training would take: by WASAP, or by a pipeline where a node is too small.

    Parameters
    ----------
    neurons : int
    cluster : Cluster
    costs : Costs
        Seconds a connection (and sample) of **one** core.
    layers : int, optional
        By default 10, or as many more as it takes for int32 to count a layer's connections.
    epsilon : float
    features, samples, batch_size, chunk_bytes : int
        Rows are of an epoch and of an update, bytes of a message at most.

    Raises
    ------
    ParameterError
        Where a layer would have more neurons than int32 can number.
    """
    config = _network(neurons, layers, epsilon, features)
    budget = HEADROOM * cluster.memory
    # WASAP counts connections by int32
    is_shared = max(expected_connections(config)) <= MOST_INT32
    for micro_batch in MICRO_BATCHES if is_shared else ():
        first, other = _node_bytes(config, cluster, micro_batch)
        if first <= budget:
            length = samples, batch_size, chunk_bytes
            return _by_server(config, cluster, costs, length, (micro_batch, first, other))
    plans = _pipelines(config, cluster, batch_size)
    found = (_by_pipeline(plan, cluster, costs, samples, chunk_bytes) for plan in plans)
    return min(found, key=lambda each: each.epoch_s)


def _by_server(
    config: NetworkConfig,
    cluster: Cluster,
    costs: Costs,
    length: tuple[int, int, int],
    node: tuple[int, int, int],
) -> ClusterPlan:
    """Return the plan of WASAP, of rows of an epoch and of an update, and bytes of a message.

    `node` has the micro-batch, and the bytes of the server's node and of another.
    """
    samples, batch_size, chunk_bytes = length
    counts, sizes = expected_connections(config), config.layer_sizes
    arrays = [4 * size for size in (*counts, *sizes[1:])]
    messages, update_bytes = _messages(arrays, chunk_bytes), 2 * sum(arrays)
    updates, connections = -(-samples // batch_size), sum(counts)
    away = updates * (cluster.nodes - 1) / cluster.nodes
    cores = cluster.nodes * cluster.cores * cluster.efficiency
    return ClusterPlan(
        config,
        cluster,
        connections,
        node[0],
        1,
        cluster.nodes,
        *node[1:],
        batch_size,
        updates,
        update_bytes,
        2 * messages,
        0,
        0.0,
        costs.init * connections / (cluster.cores * cluster.efficiency),
        costs.training * connections * samples / cores,
        away * update_bytes / cluster.link,
    )


def _by_pipeline(
    plan: PipelinePlan, cluster: Cluster, costs: Costs, samples: int, chunk_bytes: int
) -> ClusterPlan:
    """Return the plan of a pipeline, of as many groups as there are nodes for."""
    config, stages = plan.request.config, plan.stages
    counts, sizes = expected_connections(config), config.layer_sizes
    groups, rows = plan.request.groups, plan.request.batch_size
    updates = -(-samples // rows)
    own = [[4 * n for k in s.layers for n in (counts[k], sizes[k + 1])] for s in stages]
    largest = max(map(sum, own))
    summed = 2 * largest * (groups - 1) // groups  # to and from a node, by an all-reduce
    node = cluster.cores * cluster.efficiency
    # of a micro-batch in the slowest stage, forward and backward
    samples_of = plan.micro_batch * sample_cost(plan.micro_batch)
    each = costs.training * max(stage_passes(config, stages)) / PASSES * samples_of / node
    steps = plan.micro_batches + len(stages) - 1
    boundaries = groups * (len(stages) - 1)
    through = 2 * plan.step_bytes / boundaries  # an inner stage has two
    boundary = plan.step_bytes // (2 * boundaries * plan.micro_batches)
    between = 2 * boundaries * plan.micro_batches * -(-boundary // chunk_bytes)
    sums = 2 * max(_messages(arrays, chunk_bytes) for arrays in own) * (groups > 1)
    waiting = summed / cluster.link + 2 * (len(stages) - 1) * cluster.latency
    required = [own_plan.required for own_plan in plan.plans]
    return ClusterPlan(
        config,
        cluster,
        sum(counts),
        plan.micro_batch,
        len(stages),
        groups,
        max(required),
        min(required),
        rows,
        updates,
        summed,
        between + sums,
        plan.step_bytes,
        plan.bubble,
        costs.init * max(sum(counts[a:b]) for a, b in stages) / node,
        updates * steps * each / cluster.pipeline_efficiency,
        updates * through / cluster.link,
        updates * waiting,
    )


def _pipelines(config: NetworkConfig, cluster: Cluster, batch_size: int) -> list[PipelinePlan]:
    """Return the plans that fit with the most rows a mini-batch, by how many nodes a group has.

    A group keeps the activations of most of its rows of a mini-batch: where those are too many, a
    half of them is tried.

    Raises
    ------
    MemoryPlanError
        Where no number of nodes, up to all, can hold the network together.
    """
    layers = len(config.layer_sizes) - 1
    whole = plan_training(config, 1, activation_dtype=ACTIVATION_DTYPE, moments=TRAINING.moments)
    least = math.ceil((whole.model + whole.gradients) / (HEADROOM * cluster.memory))
    rows = batch_size
    while rows:
        found = []
        for ranks in range(max(2, least), min(layers, cluster.nodes) + 1):
            groups = min(rows, cluster.nodes // ranks)
            machines = tuple(Machine((rank,), cluster.memory) for rank in range(groups * ranks))
            request = Request(
                *(config, rows, machines, groups, "time", TRAINING.moments, "fused"),
                candidates=TRAINING.candidates_per_connection,
                frees_buffers=not TRAINING.rules.needs_gradient,
            )
            found.append(find_plan(request, activation_dtype=ACTIVATION_DTYPE))
        if fitting := [plan for plan in found if plan.fits]:
            return fitting
        rows //= 2
    raise MemoryPlanError(
        f"{config.neurons} neurons in {layers - 1} hidden layers do not fit into {cluster.nodes} "
        f"nodes of {cluster.memory / GIB:.0f} GiB, not even with a row a mini-batch: give more "
        "--nodes (as many as layers can be of use to a group), more --layers, which are smaller "
        "each, or nodes with more memory."
    )


def _messages(arrays: list[int], chunk_bytes: int) -> int:
    """Return the messages that arrays of so many bytes take."""
    return sum(-(-size // chunk_bytes) for size in arrays)


def _network(neurons: int, layers: int | None, epsilon: float, features: int) -> NetworkConfig:
    """Return the network, by default of as many layers as int32 asks for."""
    layers = max(LEAST_LAYERS, least_layers(neurons, epsilon)) if layers is None else layers
    return NetworkConfig((features, *hidden_sizes(neurons, layers), 2), epsilon=epsilon)


def _node_bytes(config: NetworkConfig, cluster: Cluster, micro_batch: int) -> tuple[int, int]:
    """Return the bytes of the server's node and of another, with a slot each."""
    setting = MicroBatching(micro_batch, activation_dtype=ACTIVATION_DTYPE)
    shape = Shape(config, expected_connections(config), setting, TRAINING.moments)
    nodes = Nodes([0, 0, 1], [cluster.cores] * 2, ["first", "second"])
    work = Workload(
        candidates=TRAINING.candidates_per_connection,
        needs_gradient=TRAINING.rules.needs_gradient,
    )
    first = plan_parallel(shape, nodes, [1, 1], work).required
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
