"""How many bytes a parallel training takes on the machine of rank 0, planned before it begins.

Each node of the machine has the topology and its slots once; the server's node has the weights and
velocities too. Beside these there is either what the server needs in phase one, or what the
replicas need that are trained at a time in phase two.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import NetworkConfig
from ..control_groups import free_memory
from ..errors import MemoryPlanError
from ..memory import (
    CANDIDATE,
    EVOLUTION,
    GIB,
    HEADROOM,
    USEFUL_SLOT,
    Setting,
    expected_connections,
    fitting_neurons,
    plan_training,
    settings,
)
from ..sharing import find_mapped
from ..training import Trainer
from ..training_data import TrainingData
from ..usage import pss_bytes
from .data import to_arrays
from .nodes import Nodes
from .options import ParallelOptions
from .phase_two import RESULTS_SHARE, result_bytes
from .ranks import gather, together
from .segments import KEPT, Arena
from .shared import Shape, SharedTopology, SharedWeights, shared_size
from .slots import slot_sizes

FIRST_BASE = 230 * 2**20  # interpreter, libraries and kernels of one rank
RANK_BASE = 90 * 2**20  # of every further one, which shares the pages of libraries


@dataclass(frozen=True)
class ParallelPlan:
    """Bytes that a parallel training is expected to take on the machine of rank 0."""

    setting: Setting
    ranks: int  # on this machine
    slots: tuple[int, ...]  # of every node on this machine
    model: int  # topology, weights and velocities
    slot: int  # one slot
    server: int  # beside these in phase one
    replicas: int  # beside these in phase two: the replicas that are trained at a time
    results: int  # trained replicas that wait in memory
    base: int
    growth: int = 0  # what rank 0 computes a gradient in, where connections grow by it
    data: int = 0  # that is not memory-mapped
    mapped: int = 0  # counted in the peak, but the system can evict it
    on_disk: int = 0  # trained replicas that wait in files
    most_slots: int | None = None  # of any node; None is its cores
    note: str = ""  # why it is not the largest micro-batch with all slots

    @property
    def required(self) -> int:
        """The bytes that must fit."""
        beside = max(self.server, self.replicas + self.results)
        lasting = self.base + self.growth + self.data + self.model
        return lasting + sum(self.slots) * self.slot + beside

    @property
    def micro_batch(self) -> int:
        """Samples that a slot computes at once."""
        return self.setting.micro_batch

    @property
    def total(self) -> int:
        """The expected peak, mapped data in the page cache included."""
        return self.required + self.mapped

    def __str__(self) -> str:
        count, nodes = sum(self.slots), len(self.slots)
        slots = _count(count, "slot")
        where = "a node" if nodes == 1 else f"{nodes} nodes"
        rows = [
            (f"topology, weights, velocities, once for {where}", self.model),
            (f"{slots}: snapshot, gradient, activations of {self.setting}", count * self.slot),
            ("phase one: what the server needs beside", self.server),
            (f"phase two: {_count(count, 'replica')} at a time", self.replicas),
            ("phase two: trained replicas in memory", self.results),
            (f"Python and libraries of {_count(self.ranks, 'rank')}", self.base),
            ("data that is not in a mapped file", self.data),
            ("required (the larger of the two phases)", self.required),
            ("memory-mapped data (can be evicted)", self.mapped),
            ("peak", self.total),
            ("on disk: trained replicas", self.on_disk),
        ]
        if self.growth:
            rows.insert(5, ("gradient growth: what rank 0 computes its gradient in", self.growth))
        lines = [f"  {name:<62}{size / GIB:>9.3f} GiB" for name, size in rows]
        return "\n".join([*lines, *([f"  {self.note}"] if self.note else [])])


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'s' * (number != 1)}"


def slots_of_nodes(nodes: Nodes, most: int | None = None, *, each: int = 1) -> list[int]:
    """Return how many gradients every node computes at a time.

    Parameters
    ----------
    nodes : Nodes
    most : int, optional
        By default the cores of the node.
    each : int
        How many a worker on another node can use. There are so many for each, or at most one.
    """
    workers = [sum(rank > 0 for rank in nodes.ranks(node)) for node in range(len(nodes))]
    found = []
    for node, (busy, cores) in enumerate(zip(workers, nodes.cores, strict=True)):
        wanted, useful = most or cores, busy * (each if node else 1)
        found.append(useful if wanted >= useful else min(busy, wanted))
    return found


def plan_parallel(
    shape: Shape,
    nodes: Nodes,
    slots: Sequence[int],
    *,
    algorithm: str = "wasap",
    replicas: int = 0,
    evolving: bool = True,
    candidates: float = 0.0,
    data: int = 0,
    mapped: int = 0,
    available: int | None = None,
) -> ParallelPlan:
    """Return the bytes of a parallel training.

    Parameters
    ----------
    shape : Shape
        Of the network, with the connections that it has or is expected to have.
    nodes : Nodes
    slots : sequence of int
        Of every node.
    algorithm : str
        As in `ParallelOptions`.
    replicas : int
        Of phase two; 0 where there is none.
    evolving : bool
        Whether the replicas evolve: those of a phase two of one epoch do not.
    candidates : float
        Cells that growth by the gradient looks at for every connection; 0 where it is random.
    data, mapped : int
        Bytes of the data in rank 0's memory, and in memory-mapped files.
    available : int, optional
        Bytes that the training may use: they decide where trained replicas wait.
    """
    here = nodes.beside(0)
    topology = SharedTopology(shape, Arena())
    one_topology = shared_size(SharedTopology, shape)
    shared, activations = slot_sizes(shape, topology)
    slot = shared + activations
    model = len(here) * one_topology
    model += (len(here) if algorithm == "allreduce" else 1) * shared_size(SharedWeights, shape)
    counts = tuple(slots[node] for node in here)
    ranks = sum(len(nodes.ranks(node)) for node in here)
    connections, sizes = sum(shape.room), shape.config.layer_sizes
    neurons = sum(sizes[1:])
    values = 4 * (connections + neurons)  # of one float32 array of each kind
    passing = int(max(EVOLUTION, CANDIDATE * candidates) * max(shape.room)) + 8 * 2 * max(sizes)
    # slot maps, a gradient that is made valid; the sum of gradients; what goes to and from nodes
    server = passing + 2 * values + (0 if algorithm == "wasap" else values)
    server += 2 * values if len(nodes) > 1 else 0
    base = FIRST_BASE + (ranks - 1) * RANK_BASE
    if activations <= KEPT:  # by ranks that have no slot at the moment
        base += max(0, ranks - 1 - sum(counts)) * activations
    data = 2 * data + (data + mapped) * (len(here) - 1)  # it is copied; other nodes have their own
    at_a_time = min(sum(counts), replicas)
    # weights and velocities, the weights in the other order, an own topology after an evolution
    private = 12 * connections + 8 * neurons + (one_topology + passing if evolving else 0)
    here_trained = -(-replicas * sum(counts) // max(1, sum(slots)))
    results = here_trained * result_bytes(connections, shape.config)
    left = (available or 2**62) - base - data - model - sum(counts) * slot
    on_disk = results > RESULTS_SHARE * left
    # the union of the replicas, which is one topology where they have not evolved; layers that
    # other nodes send
    copies = (replicas if evolving else 1) + (replicas if len(nodes) > 1 else 0)
    averaging = copies * 8 * max(shape.room) + passing
    return ParallelPlan(
        shape.setting,
        ranks,
        counts,
        model,
        slot,
        server,
        max(at_a_time * private, averaging if replicas else 0),
        0 if on_disk else results,
        base,
        slot if candidates else 0,
        data,
        mapped,
        results if on_disk else 0,
    )


def choose_parallel_plan(
    config: NetworkConfig,
    batch_size: int,
    nodes: Nodes,
    *,
    micro_batch: int | None = None,
    keep_every: int | None = None,
    activation_dtype: str = "float32",
    slots: int | None = None,
    available: int,
    **options: Any,
) -> ParallelPlan:
    """Return the plan that fits with the most slots, and with the fastest useful settings.

    Fewer slots come before micro-batches under 32 (64 with bfloat16), and before activations that
    are computed twice: a node's cores then work on fewer gradients.

    Parameters
    ----------
    config : NetworkConfig
    batch_size : int
        Of a worker.
    nodes : Nodes
    micro_batch, keep_every, slots : int, optional
        Given, they are taken; the micro-batch is at most the batch size.
    activation_dtype : str
        As in `TrainingConfig`.
    available : int
        Bytes that the training may use on the machine of rank 0: see `memory_of_ranks`.
    **options
        Of `plan_parallel`.

    Raises
    ------
    MemoryPlanError
        Where nothing fits; the message says what would.
    """
    budget = int(HEADROOM * available)
    plan = None
    found = settings(config, batch_size, micro_batch, keep_every, activation_dtype)
    for tried, (count, setting) in enumerate(_slots_and(found, nodes, slots)):
        counts = slots_of_nodes(nodes, count)
        plan = _plan(config, setting, nodes, counts, available=budget, **options)
        if plan.required <= budget:
            note = _explain(plan, budget) if tried else ""
            return dataclasses.replace(plan, most_slots=count if tried else slots, note=note)
    assert plan is not None

    def fits(smaller: NetworkConfig) -> bool:
        small = _plan(smaller, plan.setting, nodes, counts, available=budget, **options)
        return small.required <= budget

    check_fits(plan, config, available, fitting_neurons(config, fits))
    return plan


def check_fits(
    plan: ParallelPlan, config: NetworkConfig, available: int, fitting: str | None = None
) -> None:
    """Raise `MemoryPlanError` where a plan does not fit into the memory available.

    Parameters
    ----------
    plan : ParallelPlan
    config : NetworkConfig
    available : int
        Bytes that the training may use on this machine: see `memory_of_ranks`.
    fitting : str, optional
        The number of neurons that would fit.
    """
    if plan.required <= HEADROOM * available:
        return
    advice = []
    if sum(plan.slots) > len(plan.slots):
        advice.append("fewer slots")
    if plan.micro_batch > 1:
        advice.append("a smaller micro-batch")
    advice.append("fewer ranks" if fitting is None else f"about {fitting} neurons would fit")
    raise MemoryPlanError(
        f"{config.neurons} neurons with a micro-batch of {plan.micro_batch} on "
        f"{_count(plan.ranks, 'rank')} with {_count(sum(plan.slots), 'slot')} need about "
        f"{plan.required / GIB:.1f} GiB on the machine of rank 0, and "
        f"{HEADROOM * available / GIB:.1f} GiB can be used ({HEADROOM:.0%} of the "
        f"{available / GIB:.1f} GiB available): {', or '.join(advice)}."
    )


def check_disk(plan: ParallelPlan) -> None:
    """Raise `MemoryPlanError` where trained replicas have not enough room on the disk."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if plan.on_disk > free:
        raise MemoryPlanError(
            f"The trained replicas need {plan.on_disk / GIB:.1f} GiB on the disk, and {folder} has "
            f"{free / GIB:.1f} GiB free: set TMPDIR to a folder with more, or start fewer ranks."
        )


def memory_of_ranks(comm: Any, nodes: Nodes) -> int:
    """Return the bytes that the ranks on rank 0's machine may have together; all ranks call it.

    What they have already is part of it. Ranks other than 0 return 0.
    """
    held = gather(comm, pss_bytes())
    if held is None:
        return 0
    ranks = (rank for node in nodes.beside(0) for rank in nodes.ranks(node))
    return free_memory() + sum(held[rank] for rank in ranks)


def check_memory(
    comm: Any,
    nodes: Nodes,
    options: ParallelOptions,
    trainer: Trainer | None,
    data: TrainingData | None,
) -> None:
    """Raise `MemoryPlanError` on rank 0 if its machine has too little memory; all ranks call it.

    `trainer` and `data` count on rank 0.
    """
    available = memory_of_ranks(comm, nodes)

    def check() -> None:
        if trainer is None or data is None:
            return
        network = trainer.network
        arrays = to_arrays(data, network.preprocessing)[1]
        plan = plan_parallel(
            Shape.of(network, trainer.setting),
            nodes,
            slots_of_nodes(nodes, options.most_slots, each=options.slots_each),
            algorithm=options.algorithm,
            replicas=comm.size - 1 if options.phase_one_epochs < trainer.config.epochs else 0,
            evolving=trainer.config.epochs - options.phase_one_epochs > 1,
            candidates=trainer.config.candidates_per_connection,
            data=sum(array.nbytes for array in arrays if find_mapped(array) is None),
            mapped=sum(array.nbytes for array in arrays if find_mapped(array) is not None),
            available=available,
        )
        check_fits(plan, network.config, available)
        check_disk(plan)

    together(comm, check)


def _slots_and(
    found: list[Setting], nodes: Nodes, slots: int | None
) -> Iterator[tuple[int, Setting]]:
    """Yield what to try, the best first: slots of a node, with how activations are kept."""
    most = max(slots_of_nodes(nodes, slots))
    counts = [most] if slots else range(most, 0, -1)
    kept = found[0].keep_every
    large = [
        each
        for each in found
        if each.micro_batch >= USEFUL_SLOT[each.activation_dtype] and each.keep_every == kept
    ]
    large = large or found[:1]
    yield from ((count, setting) for count in counts for setting in large)
    yield from ((counts[-1], setting) for setting in found if setting not in large)


def _explain(plan: ParallelPlan, budget: int) -> str:
    what = f"{_count(sum(plan.slots), 'slot')} and a micro-batch of {plan.setting}"
    return f"{what}: more do not fit into {budget / GIB:.1f} GiB"


def _plan(
    config: NetworkConfig,
    setting: Setting,
    nodes: Nodes,
    slots: Sequence[int],
    **options: Any,
) -> ParallelPlan:
    """Return the plan of a network that does not exist yet."""
    shape = Shape(config, expected_connections(config), setting)
    plan = plan_parallel(shape, nodes, slots, **options)
    sequential = plan_training(config, *setting)  # rank 0 makes the network alone
    least = sequential.model + sequential.passing - plan.model
    return dataclasses.replace(plan, server=max(plan.server, least))
