"""The memory plan of a pipeline: which rank has which layers, and what each of them takes."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...machine.control_groups import free_memory
from ...machine.usage import pss_bytes
from ...model.config import NetworkConfig
from ...training.layer_terms import LayerTerms, expected_connections, layer_terms
from ...training.memory import HEADROOM, MemoryPlan, MicroBatching
from ...training.memory_plan import BASE, GIB, counted
from ..comm.collectives import gather
from ..comm.nodes import Nodes
from ..plan import RANK_BASE
from .costs import (
    Held,
    bubble_share,
    layer_passes,
    plan_stage,
    stage_passes,
    step_bytes,
    summed_bytes,
)
from .split import Stage, split_layers, split_stages

SPLITS = ("auto", "time", "memory")
LONGER = 1.05  # of the shortest longest step, which "auto" takes where that saves memory


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
    split: str = "auto"  # "time" or "memory", whichever is to be smallest, or both
    moments: tuple[str, ...] = ("velocity",)
    backend: str | None = None
    mapped: int = 0  # bytes of memory-mapped data
    once: int = 0  # bytes of `bytes_once`
    candidates: float = 0.0  # cells that growth looks at for a connection; 0: random
    frees_buffers: bool = True  # of a step, to evolve: where no rule asks for gradients

    @property
    def stages(self) -> int:
        """The ranks of a group."""
        return sum(len(machine.ranks) for machine in self.machines) // self.groups

    def costs(self) -> tuple[list[LayerTerms], list[int]]:
        """Return the bytes of every layer, and the passes over its connections."""
        return self.terms, layer_passes(self.config)

    @property
    def terms(self) -> list[LayerTerms]:
        """What every layer takes."""
        return layer_terms(self.config, self.moments, self.candidates)

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
    split: str  # what is smallest: "time" of the longest step, the largest "memory", or "auto"
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
        terms = self.request.terms
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

    @property
    def by(self) -> str:
        """What the layers are split by, in words."""
        return "time and memory" if self.split == "auto" else self.split

    def __str__(self) -> str:
        request, stages = self.request, len(self.stages)
        what = {
            "time": "the longest step is smallest, {} of the mean",
            "memory": "the largest memory is smallest; the longest step is {} of the mean",
            "auto": "the largest memory is smallest, where the longest step, {} of the mean, is "
            "about the shortest",
        }
        split = what[self.split].format(f"{self.imbalance:.2f}")
        lines = [
            f"  pipeline of {counted(stages, 'rank')}, {counted(request.groups, 'group')}; split "
            f"by {self.by}: {split}",
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
    """Return the plan with this micro-batch, split by "time", by "memory", or by both ("auto").

    By both, the longest step is at most `LONGER` than the shortest, and of those splits it is the
    one whose largest memory is smallest.

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
            held=Held.by(rank, ranks, count),
            groups=request.groups,
            mapped=request.mapped,
            once=request.once if rank == 0 else 0,
            backend=request.backend,
            moments=request.moments,
            frees_buffers=request.frees_buffers,
        )

    if stages is None:
        stages, limit = split_layers(passes, ranks), math.inf
        if split == "auto":
            limit = LONGER * max(stage_passes(config, stages))

        @functools.cache
        def required(rank: int, first: int, last: int) -> float:
            is_long = sum(passes[first:last]) > limit
            return math.inf if is_long else plan(rank, first, last).required

        if split != "time":
            stages = split_stages(required, len(terms), ranks)
    plans = tuple(plan(rank, *stage) for rank, stage in enumerate(stages))
    return PipelinePlan(request, setting, split, stages, plans)


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
