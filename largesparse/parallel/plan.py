"""How many bytes a parallel training takes on the machine of rank 0, planned before it begins.

Each node of the machine has the topology and its slots once; the server's node has the weights and
moments too. Beside these there is either what the server needs in phase one, or what the
replicas need that are trained at a time in phase two.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.batches import is_sparse
from ..errors import MemoryPlanError
from ..machine.control_groups import free_memory
from ..machine.mapped_memory import KEPT, Arena, find_mapped
from ..machine.usage import pss_bytes
from ..model.config import NetworkConfig
from ..model.layer import moment_bytes
from ..model.topology import check_count
from ..training.layer_terms import (
    FOLDED,
    WITHIN,
    evolution_bytes,
    expected_connections,
)
from ..training.memory import (
    GIB,
    USEFUL_SLOT,
    Budget,
    MemoryPlan,
    MicroBatching,
    check_fits,
    first_fitting,
    micro_batchings,
    plan_training,
)
from ..training.prepared import TrainingData
from ..training.trainer import Trainer
from .comm.collectives import gather
from .comm.nodes import Nodes
from .comm.ranks import together
from .options import ParallelOptions
from .shared.data import take_arrays
from .shared.slots import slot_sizes
from .shared.weights import Shape, SharedTopology, SharedWeights, shared_size
from .wasap.phase_two import RESULTS_SHARE, result_bytes

FIRST_BASE = 230 * 2**20  # interpreter, libraries and kernels of one rank
RANK_BASE = 90 * 2**20  # of every further one, which shares the pages of libraries


@dataclass(frozen=True)
class Workload:
    """What a parallel training does, as far as its memory follows from it."""

    algorithm: str = "wasap"  # as in `ParallelOptions`
    replicas: int = 0  # of phase two; 0 where there is none
    evolving: bool = True  # replicas evolve: those of a phase two of one epoch do not
    candidates: float = 0.0  # cells that growth looks at for a connection; 0: random
    needs_gradient: bool = False  # whether rules of evolution do
    data: int = 0  # bytes in rank 0's memory
    mapped: int = 0  # bytes of data in memory-mapped files


def slots_of_nodes(nodes: Nodes, most: int | None = None, *, each: int = 1) -> list[int]:
    """Return how many gradients every node computes at a time.

    At most `most`, by default the cores of the node. A worker on another node can use `each`: there
    are so many for each, or at most one.
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
    work: Workload,
    available: int | None = None,
) -> MemoryPlan:
    """Return the bytes of a parallel training, with so many `slots` on every node.

    The shape has the connections that the network has or is expected to have. The bytes `available`
    decide where trained replicas wait. `ParameterError` where int32 does not count a layer's
    connections: those algorithms have no other counters.
    """
    sizes = itertools.pairwise(shape.config.layer_sizes)
    for (n_in, n_out), connections in zip(sizes, shape.room, strict=True):
        check_count(n_in, n_out, connections, "a training whose ranks share all layers")
    here = nodes.beside(0)
    counts = tuple(slots[node] for node in here)
    topology = shared_size(SharedTopology, shape)
    weights = shared_size(SharedWeights, shape)
    gradient, activations = slot_sizes(shape, SharedTopology(shape, Arena()))
    values = 4 * (sum(shape.room) + sum(shape.config.layer_sizes[1:]))  # of all parameters
    # slot maps, a gradient that is made valid; the sum of gradients; what goes to and from nodes
    passing = _evolution_bytes(shape, work) + 2 * values
    if shape.config.batch_norm:  # evaluated by folded weights
        passing = max(passing, sum(counts) * FOLDED * sum(shape.room))
    passing += (0 if work.algorithm == "wasap" else values) + (2 * values if len(nodes) > 1 else 0)
    ranks = sum(len(nodes.ranks(node)) for node in here)
    base = FIRST_BASE + (ranks - 1) * RANK_BASE
    if activations <= KEPT:  # by ranks that have no slot at the moment
        base += max(0, ranks - 1 - sum(counts)) * activations
    plan = MemoryPlan(
        shape.micro_batching,
        len(here) * topology + (len(here) if work.algorithm == "allreduce" else 1) * weights,
        sum(counts) * gradient,
        sum(counts) * activations,
        passing,
        work.mapped,
        base,
        growth=gradient + activations if work.needs_gradient else 0,
        # it is copied; other nodes have their own
        data=2 * work.data + (work.data + work.mapped) * (len(here) - 1),
        ranks=ranks,
        slots=counts,
        moments=shape.moments,
    )
    if not work.replicas:
        return plan
    here_trained = -(-work.replicas * sum(counts) // max(1, sum(slots)))
    results = here_trained * result_bytes(sum(shape.room), shape.config)
    left = (available or 2**62) - plan.required + plan.passing + plan.growth
    on_disk = results if results > RESULTS_SHARE * left else 0
    replicas = _replica_bytes(shape, work, sum(counts), len(nodes))
    return dataclasses.replace(plan, replicas=replicas, results=results - on_disk, on_disk=on_disk)


def _evolution_bytes(shape: Shape, work: Workload) -> int:
    """Return what evolving a layer takes besides the layer."""
    each = evolution_bytes(shape.moments, work.candidates)
    within = WITHIN * max((given.candidates for given in shape.config.given if given), default=0)
    return within + int(each * max(shape.room)) + 8 * 2 * max(shape.config.layer_sizes)


def _replica_bytes(shape: Shape, work: Workload, slots: int, nodes: int) -> int:
    """Return what the replicas take that are trained at a time, or the averaging of a layer."""
    passing = _evolution_bytes(shape, work)
    # weights and moments, the weights in the other order, an own topology after an evolution
    kept = moment_bytes(shape.moments)
    private = (8 + kept) * sum(shape.room) + (4 + kept) * sum(shape.config.layer_sizes[1:])
    private += shared_size(SharedTopology, shape) + passing if work.evolving else 0
    # the union of the replicas, which is one topology where they have not evolved; layers that
    # other nodes send
    copies = (work.replicas if work.evolving else 1) + (work.replicas if nodes > 1 else 0)
    return max(min(slots, work.replicas) * private, copies * 8 * max(shape.room) + passing)


def choose_parallel_plan(
    config: NetworkConfig,
    batch_size: int,
    nodes: Nodes,
    *,
    micro_batch: int | None = None,
    keep_every: int | None = None,
    activation_dtype: str = "float32",
    slots: int | None = None,
    at_most: int | None = None,
    available: int,
    moments: tuple[str, ...] = ("velocity",),
    **work: Any,
) -> MemoryPlan:
    """Return the plan that fits with the most slots, and with the fastest useful settings.

    Fewer slots come before micro-batches under 32 (64 with bfloat16), and before activations that
    are computed twice: a node's cores then work on fewer gradients. `slots`, a micro-batch and
    `keep_every` that are given are taken; without `slots` a node has `at_most` so many, by default
    as many as cores. `available` are the bytes of `memory_of_ranks`,
    `moments` the kinds that the optimizer keeps, and `work` the fields of `Workload`. Where nothing
    fits, a `MemoryPlanError` says what would.
    """
    budget, workload = Budget(available), Workload(**work)

    def plan(config: NetworkConfig, choice: tuple[int, MicroBatching]) -> MemoryPlan:
        count, setting = choice
        shape = Shape(config, expected_connections(config), setting, moments)
        counts = slots_of_nodes(nodes, count)
        found = plan_parallel(shape, nodes, counts, workload, budget.usable)
        alone = plan_training(config, *setting, moments=moments)  # rank 0 makes the network alone
        passing = max(found.passing, alone.model + alone.passing - found.model)
        return dataclasses.replace(found, passing=passing, most_slots=count)

    found = micro_batchings(config, batch_size, micro_batch, keep_every, activation_dtype)
    tried = _slots_and(found, nodes, slots or at_most, fixed=slots is not None)
    chosen = first_fitting(config, budget, tried, plan)
    if chosen.note:
        return chosen
    binds = at_most is not None and at_most < max(slots_of_nodes(nodes))
    return dataclasses.replace(chosen, most_slots=slots or (at_most if binds else None))


def micro_batching_of(trainer: Trainer, data: TrainingData) -> MicroBatching:
    """Return how the activations of a training on this data are kept."""
    sparse = is_sparse(data.X, trainer.network.preprocessing)
    return trainer.micro_batching._replace(sparse_inputs=sparse)


def check_disk(plan: MemoryPlan) -> None:
    """Raise `MemoryPlanError` where trained replicas have not enough room on the disk."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if plan.on_disk > free:
        raise MemoryPlanError(
            f"The trained replicas need {plan.on_disk / GIB:.1f} GiB on the disk, and {folder} has "
            f"{free / GIB:.1f} GiB free: set TMPDIR to a folder with more, or start fewer ranks."
        )


def memory_of_ranks(comm: Any, nodes: Nodes) -> int:
    """Return the bytes that the ranks on rank 0's machine may have together, theirs included.

    All ranks call it; others than 0 return 0.
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
        network, config = trainer.network, trainer.config
        _, arrays = take_arrays((data, network.preprocessing))
        mapped = sum(array.nbytes for array in arrays if find_mapped(array) is not None)
        work = Workload(
            algorithm=options.algorithm,
            replicas=comm.size - 1 if options.phase_one_epochs < config.epochs else 0,
            evolving=config.epochs - options.phase_one_epochs > 1,
            candidates=config.candidates_per_connection,
            needs_gradient=config.rules.needs_gradient,
            data=sum(array.nbytes for array in arrays) - mapped,
            mapped=mapped,
        )
        slots = slots_of_nodes(nodes, options.most_slots, each=options.slots_each)
        shape = Shape.of(network, micro_batching_of(trainer, data))
        plan = plan_parallel(shape, nodes, slots, work, available)
        check_fits(plan, network.config, available)
        check_disk(plan)

    together(comm, check)


def _slots_and(
    found: list[MicroBatching], nodes: Nodes, slots: int | None, *, fixed: bool
) -> Iterator[tuple[int, MicroBatching]]:
    """Yield what to try, the best first: slots of a node, with how activations are kept."""
    most = max(slots_of_nodes(nodes, slots))
    counts = [most] if fixed else range(most, 0, -1)
    kept = found[0].keep_every
    large = [
        each
        for each in found
        if each.micro_batch >= USEFUL_SLOT[each.activation_dtype] and each.keep_every == kept
    ]
    large = large or found[:1]
    yield from ((count, setting) for count in counts for setting in large)
    yield from ((counts[-1], setting) for setting in found if setting not in large)
