"""The memory plan of a pipeline: which rank has which layers, and what each of them takes."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...errors import MemoryPlanError, ParameterError, check_range
from ...machine.control_groups import free_memory
from ...machine.usage import pss_bytes
from ...model.config import NetworkConfig
from ...training.layer_terms import LayerTerms, expected_connections, layer_terms
from ...training.memory import HEADROOM, USEFUL, MemoryPlan, MicroBatching, micro_batchings
from ...training.memory_plan import BASE, GIB, counted
from ..comm.collectives import gather
from ..comm.nodes import Nodes
from ..plan import RANK_BASE
from .costs import (
    bubble_share,
    in_flight,
    layer_passes,
    plan_stage,
    stage_passes,
    step_bytes,
    summed_bytes,
)
from .split import Stage, split_layers, split_stages

SPLITS = ("auto", "time", "memory")
FASTEST = 64  # rows of a micro-batch, from which more gain nothing
SLOWER = 1.2  # what a sample takes in micro-batches of 32, next to larger ones


class Machine(NamedTuple):
    """Ranks that share memory, and the bytes of it that they may have together."""

    ranks: tuple[int, ...]
    available: int


class Request(NamedTuple):
    """What the plan of a pipeline is made for."""

    config: NetworkConfig
    batch_size: int  # rows of a mini-batch, which the groups divide
    machines: tuple[Machine, ...]
    groups: int = 1
    split: str = "auto"  # or what is to be smallest: "time", "memory"
    moments: tuple[str, ...] = ("velocity",)
    backend: str | None = None
    mapped: int = 0  # bytes of memory-mapped data
    once: int = 0  # bytes of `bytes_once`

    @property
    def stages(self) -> int:
        """The ranks of a group."""
        return sum(len(machine.ranks) for machine in self.machines) // self.groups

    def costs(self) -> tuple[list[LayerTerms], list[int]]:
        """Return the bytes of every layer, and the passes over its connections."""
        return layer_terms(self.config, self.moments), layer_passes(self.config)

    @property
    def rows(self) -> int:
        """The rows of a mini-batch that a group has, at the most."""
        return -(-self.batch_size // self.groups)

    def micro_batches(self, micro_batch: int) -> int:
        """The micro-batches of so many rows that a group has of a mini-batch."""
        return -(-self.rows // micro_batch)


@dataclass(frozen=True)
class PipelinePlan:
    """What a training by a pipeline takes. Rank r has stage r % K, where there are K stages."""

    request: Request
    micro_batching: MicroBatching
    split: str  # what is smallest: "time" of the longest step, or the largest "memory"
    stages: tuple[Stage, ...]
    plans: tuple[MemoryPlan, ...]  # of the rank of each stage
    note: str = ""  # why it is not the fastest

    # What a plan of one process has too; a pipeline has no slots, and no files.
    slots = ()
    most_slots = None
    on_disk = 0

    @property
    def micro_batch(self) -> int:
        """Samples computed at once."""
        return self.micro_batching.micro_batch

    @property
    def ranks(self) -> int:
        """Number of ranks, of all groups."""
        return len(self.stages) * self.request.groups

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a mini-batch, in each group."""
        return self.request.micro_batches(self.micro_batch)

    @property
    def bubble(self) -> float:
        """Share of a step in which a rank waits for the pipeline to fill and to empty."""
        return bubble_share(len(self.stages), self.micro_batches)

    @property
    def imbalance(self) -> float:
        """The longest step of a stage, relative to the mean of all."""
        passes = stage_passes(self.request.config, self.stages)
        return max(passes) * len(passes) / sum(passes)

    @property
    def step_bytes(self) -> int:
        """Bytes that a step moves between the stages of all groups."""
        return self.bytes_between(self.request.batch_size)

    def bytes_between(self, total: int) -> int:
        """Return the bytes that a step on so many rows moves between the stages of all groups."""
        groups = self.request.groups
        rows = (total * (g + 1) // groups - total * g // groups for g in range(groups))
        given = self.request.config, self.stages, self.micro_batching
        return sum(step_bytes(*given, count) for count in rows)

    @property
    def summed_bytes(self) -> int:
        """Bytes that a step moves between groups, which sum their gradients; about."""
        terms = layer_terms(self.request.config, self.request.moments)
        return summed_bytes(terms, self.request.groups)

    @property
    def _moved(self) -> str:
        text = f"{self.step_bytes / 1e9:.3g}"
        return text if self.request.groups == 1 else f"{text} and {self.summed_bytes / 1e9:.3g}"

    @property
    def fullest(self) -> Machine:
        """The machine whose ranks need the largest share of its memory."""
        machines = self.request.machines
        return max(machines, key=lambda each: self.needed(each) / max(1, each.available))

    @property
    def required(self) -> int:
        """The bytes that must fit on the fullest machine."""
        return self.needed(self.fullest)

    @property
    def total(self) -> int:
        """The expected peak of its ranks together, mapped data in the page cache included."""
        plans = self.plans_on(self.fullest)
        return self.required + max(plan.mapped for plan in plans)

    def plans_on(self, machine: Machine) -> list[MemoryPlan]:
        """Return the plans of the ranks of a machine."""
        return [self.plans[rank % len(self.stages)] for rank in machine.ranks]

    def needed(self, machine: Machine) -> int:
        """Return the bytes of the ranks of a machine, which share the pages of libraries."""
        plans = self.plans_on(machine)
        once = sum(plan.once for plan in plans[1:])
        return sum(plan.required for plan in plans) - (len(plans) - 1) * (BASE - RANK_BASE) - once

    @property
    def fits(self) -> bool:
        """Whether the ranks of every machine fit into what they may have of it."""
        return all(self.needed(each) <= usable(each) for each in self.request.machines)

    def __str__(self) -> str:
        request, stages = self.request, len(self.stages)
        split = (
            f"the longest step is smallest, {self.imbalance:.2f} of the mean"
            if self.split == "time"
            else f"the largest memory is smallest; the longest step is {self.imbalance:.2f} of the "
            "mean"
        )
        lines = [
            f"  pipeline of {counted(stages, 'rank')}, {counted(request.groups, 'group')}; split "
            f"by {self.split}: {split}",
            f"  micro-batches of {self.micro_batching}, {self.micro_batches} a step: a rank waits "
            f"{self.bubble:.0%} of it or more; {self._moved} GB a step between ranks",
            *_table(self),
        ]
        lines += [f"  {name:<62}{size / GIB:>9.3f} GiB" for name, size in _rows(self)]
        return "\n".join([*lines, *([f"  {self.note}"] if self.note else [])])


def usable(machine: Machine) -> int:
    """Return the bytes that a plan may use of a machine."""
    return int(HEADROOM * machine.available)


def _table(plan: PipelinePlan) -> list[str]:
    """Return a line for every stage: its layers, and what its rank takes in GiB."""
    config, connections = plan.request.config, expected_connections(plan.request.config)
    head = f"  {'rank':>6} {'layers':>9} {'neurons':>13} {'connections':>14}"
    names = ("model", "gradients", "activations", "transfers", "passing", "Python", "GiB")
    lines = [head + "".join(f"{name:>12}" for name in names)]
    for rank, (stage, own) in enumerate(zip(plan.stages, plan.plans, strict=True)):
        layers = f"{stage.first + 2}-{stage.last + 1}"  # the input layer is layer 1
        neurons = sum(config.layer_sizes[stage.first + 1 : stage.last + 1])
        nnz = sum(connections[stage.first : stage.last])
        sizes = (own.model, own.gradients, own.activations, own.transfers, own.passing, own.base)
        cells = "".join(f"{size / GIB:>12.3f}" for size in (*sizes, own.required))
        lines.append(f"  {rank:>6} {layers:>9} {neurons:>13,} {nnz:>14,}{cells}")
    return lines


def _rows(plan: PipelinePlan) -> list[tuple[str, int]]:
    """Return what is printed of the fullest machine."""
    ranks = counted(len(plan.fullest.ranks), "rank")
    rows = [
        ("largest rank", max(own.required for own in plan.plans)),
        (f"required by {ranks} on a machine, libraries shared", plan.required),
        ("memory-mapped data (can be evicted)", plan.total - plan.required),
        ("peak", plan.total),
    ]
    if once := plan.plans[0].once:
        rows.insert(1, ("compiling kernels or making data, once", once))
    return rows


def make_plan(
    request: Request,
    setting: MicroBatching,
    split: str,
    costs: tuple[list[LayerTerms], list[int]] | None = None,
    stages: tuple[Stage, ...] | None = None,
) -> PipelinePlan:
    """Return the plan with this micro-batch, split by "time" or by "memory".

    `costs` are the request's `costs`, where they are at hand, and `stages` others than those of the
    split.
    """
    config, ranks = request.config, request.stages
    terms, passes = costs or request.costs()
    count = request.micro_batches(setting.micro_batch)

    def plan(rank: int, first: int, last: int) -> MemoryPlan:
        return plan_stage(
            config,
            Stage(first, last),
            setting,
            terms,
            held=in_flight(rank, ranks, count),
            groups=request.groups,
            mapped=request.mapped,
            once=request.once if rank == 0 else 0,
            backend=request.backend,
            moments=request.moments,
        )

    if stages is None and split == "time":
        stages = split_layers(passes, ranks)
    elif stages is None:
        required = functools.cache(lambda *where: plan(*where).required)
        stages = split_stages(required, len(terms), ranks)
    plans = tuple(plan(rank, *stage) for rank, stage in enumerate(stages))
    return PipelinePlan(request, setting, split, stages, plans)


def choose_pipeline_plan(
    request: Request, *, micro_batch: int | None = None, activation_dtype: str = "float32"
) -> PipelinePlan:
    """Return the fastest plan that fits; a micro-batch that is given is taken.

    Larger micro-batches compute faster, and smaller ones keep the ranks busier. Each is split by
    time first, and by memory where that does not fit, unless the request says which.

    Raises
    ------
    ParameterError
        Where the ranks cannot be divided into the groups, or are more than the layers.
    MemoryPlanError
        Where nothing fits; the message says how many ranks, or which epsilon, would do.
    """
    check_request(request)
    plan = find_plan(request, micro_batch=micro_batch, activation_dtype=activation_dtype)
    if not plan.fits:
        raise MemoryPlanError(_refusal(plan))
    return plan


def check_stages(request: Request, setting: MicroBatching, stages: tuple[Stage, ...]) -> None:
    """Raise `MemoryPlanError` where stages that have been chosen do not fit into memory."""
    plan = make_plan(request, setting, "time", stages=stages)
    if not plan.fits:
        raise MemoryPlanError(_refusal(plan))


def find_plan(
    request: Request, *, micro_batch: int | None = None, activation_dtype: str = "float32"
) -> PipelinePlan:
    """Return the fastest plan that fits, or the last one that was tried where none does."""
    found = micro_batchings(request.config, request.rows, micro_batch, 1, activation_dtype)
    found.sort(key=lambda setting: _expected_time(request, setting))
    splits = SPLITS[1:] if request.split == "auto" else (request.split,)
    first, costs = None, request.costs()
    for setting in found:
        for split in splits:
            plan = make_plan(request, setting, split, costs)
            if plan.fits:
                return dataclasses.replace(plan, note=_explain(first, plan))
            first = first or plan
    return plan


def check_request(request: Request) -> None:
    """Verify that the ranks form groups, and that every rank of a group has a layer."""
    ranks = sum(len(machine.ranks) for machine in request.machines)
    check_range("groups", request.groups, "a pipeline", low=1, high=ranks, integer=True)
    if ranks % request.groups:
        raise ParameterError(
            f"The 'groups' parameter of a pipeline must divide the number of ranks, {ranks}. Got "
            f"{request.groups} instead."
        )
    if request.batch_size < request.groups:
        raise ParameterError(
            f"The 'batch_size' parameter of a pipeline must be at least the number of groups, "
            f"{request.groups}, which divide it. Got {request.batch_size} instead."
        )
    if request.split not in SPLITS:
        raise ParameterError(
            f"The 'split' parameter of a pipeline must be one of {', '.join(SPLITS)}. Got "
            f"{request.split!r} instead."
        )
    split_layers(layer_passes(request.config), request.stages)


def _expected_time(request: Request, setting: MicroBatching) -> float:
    """Return what a sample is expected to take, by rows of a micro-batch and the bubble."""
    rows = setting.micro_batch
    count = request.micro_batches(rows)
    return sample_cost(rows) * (count + request.stages - 1) / count


def sample_cost(rows: int) -> float:
    """Return what a sample takes in micro-batches of so many rows, next to those of 64.

    Below 32 a connection takes as long whatever the rows: it waits for a cache line.
    """
    return 1.0 if rows >= FASTEST else SLOWER * max(1.0, USEFUL / rows)


def _explain(faster: PipelinePlan | None, chosen: PipelinePlan) -> str:
    """Return why a faster plan was not chosen."""
    if faster is None:
        return ""
    there = usable(faster.fullest)
    return (
        f"a micro-batch of {faster.micro_batching}, split by {faster.split}, would need "
        f"{faster.required / GIB:.1f} GiB, and {there / GIB:.1f} GiB can be used"
    )


def _refusal(plan: PipelinePlan) -> str:
    """Return what is said where the smallest plan does not fit, and what would."""
    request, machine = plan.request, plan.fullest
    config, connections = request.config, expected_connections(request.config)
    ranks, here = counted(plan.ranks, "rank"), counted(len(machine.ranks), "rank")
    can_be_used = f"{usable(machine) / GIB:.1f} GiB can be used there"
    micro = plan.micro_batch
    text = (
        f"{config.neurons} neurons on {ranks} with a micro-batch of {micro} need about "
        f"{plan.required / GIB:.1f} GiB on the machine of {here}, and {can_be_used}"
    )
    least, layer = _largest_alone(plan)
    each = usable(machine) // len(machine.ranks)
    if least > each:
        n_in, n_out = config.layer_sizes[layer : layer + 2]
        text += (
            f". Layer {layer + 2} alone, {n_in} x {n_out} with {connections[layer]} connections, "
            f"needs {least / GIB:.1f} GiB, whatever the number of ranks"
        )
    advice = []
    of_groups = f" in each of {request.groups} groups" if request.groups > 1 else ""
    if more := _enough_ranks(plan, each):
        advice.append(f"{more} ranks{of_groups}, with {each / GIB:.1f} GiB for each, would do")
    elif alone := _enough_ranks(plan, usable(machine), least=request.stages):
        advice.append(f"{alone} ranks{of_groups}, each on a machine like this of its own, would do")
    if epsilon := _fitting_epsilon(plan):
        advice.append(f"epsilon {epsilon:g} would fit")
    advice.append("more hidden layers, which are smaller each")
    return f"{text}: {', or '.join(advice)}."


def _largest_alone(plan: PipelinePlan) -> tuple[int, int]:
    """Return the bytes of a rank with the largest layer alone, at the least, and that layer."""
    config, request = plan.request.config, plan.request
    terms = layer_terms(config, request.moments)
    alone = [
        plan_stage(
            config, Stage(k, k + 1), plan.micro_batching, terms, held=1, backend=request.backend
        ).required
        for k in range(len(terms))
    ]
    return max((size, k) for k, size in enumerate(alone))


def _enough_ranks(plan: PipelinePlan, each: int, least: int | None = None) -> int:
    """Return the fewest ranks of a group that fit into so many bytes each; 0 where none do."""
    request = plan.request
    layers = len(request.config.layer_sizes) - 1
    for ranks in range(least or request.stages + 1, layers + 1):
        machines = (Machine(tuple(range(ranks)), 2**62),)
        wider = request._replace(machines=machines, groups=1)
        found = make_plan(wider, plan.micro_batching, "memory")
        if max(own.required for own in found.plans) <= each:
            return ranks
    return 0


def _fitting_epsilon(plan: PipelinePlan) -> float:
    """Return the largest epsilon, of two digits, below the present one that fits; 0 for none."""
    request, epsilon = plan.request, plan.request.config.epsilon
    if epsilon is None:
        return 0.0

    def fits(smaller: float) -> bool:
        config = dataclasses.replace(request.config, epsilon=smaller)
        return make_plan(request._replace(config=config), plan.micro_batching, "memory").fits

    low, high = 0, 100  # of epsilon, in hundredths
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(epsilon * middle / 100) else (low, middle)
    return _two_digits(epsilon * low / 100)


def _two_digits(value: float) -> float:
    """Return a number rounded down to two digits."""
    if value <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.floor(value / unit + 1e-9) * unit


def memory_of_machines(comm: Any, nodes: Nodes) -> tuple[Machine, ...]:
    """Return the machines of a job, with the bytes that their ranks may have together.

    What the ranks hold already is theirs. All ranks call it; others than 0 return nothing.
    """
    found = gather(comm, (free_memory(), pss_bytes()))
    if found is None:
        return ()
    ranks_of: dict[tuple[int, ...], list[int]] = {}
    for rank, node in enumerate(nodes.node):
        ranks_of.setdefault(tuple(nodes.beside(node)), []).append(rank)
    return tuple(
        Machine(tuple(ranks), found[ranks[0]][0] + sum(found[rank][1] for rank in ranks))
        for ranks in ranks_of.values()
    )
