"""A memory plan: the bytes that a training takes, by what they are for, and its table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ..model.layer import moment_bytes

GIB = 2**30
BASE = 230 * 2**20  # interpreter, libraries and kernels
KEPT = 60 * 2**20  # that the allocator keeps, at most
COMPILING = 220 * 2**20  # that compiling leaves behind, where the cache has no kernels
GENERATING = 120 * 2**20  # likewise scikit-learn, which makes the data


class MicroBatching(NamedTuple):
    """How the activations of a training are computed and kept."""

    micro_batch: int
    keep_every: int = 1
    activation_dtype: str = "float32"
    sparse_inputs: bool = False  # without a buffer of dense inputs, as long as none come

    def settings(self) -> dict[str, Any]:
        """Return the fields that `TrainingConfig` has too."""
        return dict(zip(self._fields[:3], self, strict=False))

    def __str__(self) -> str:
        text = str(self.micro_batch)
        if self.keep_every > 1:
            ending = {2: "nd", 3: "rd"}.get(self.keep_every, "th")
            text += f", every {self.keep_every}{ending} layer's"
        return text if self.activation_dtype == "float32" else f"{text}, {self.activation_dtype}"


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a training is expected to take on a machine, by what they are for.

    Ranks share the machine, and compute in slots (see `parallel.plan`); a process alone has none.
    """

    micro_batching: MicroBatching
    model: int  # weights and moments; with the topology once for each node
    gradients: int  # of all slots, with the weights that they are computed on
    activations: int  # of all slots
    passing: int  # what initialisation, evolution or the parameter server needs, once at a time
    mapped: int = 0  # of memory-mapped data: counted in the peak, but the system can evict it
    base: int = BASE + KEPT
    once: int = 0  # of what is done once on a machine: compiling the kernels, making the data
    on_disk: int = 0  # of arrays in files, or of trained replicas that wait there
    replicas: int = 0  # of phase two, when nothing is passing: those that are trained at a time
    results: int = 0  # of phase two: trained replicas that wait in memory
    growth: int = 0  # what rank 0 computes a gradient in, where connections grow by it
    data: int = 0  # that is not memory-mapped
    transfers: int = 0  # buffers of what comes from and goes to other ranks
    ranks: int = 1  # on this machine
    slots: tuple[int, ...] = ()  # of every node on this machine
    most_slots: int | None = None  # of any node; None is its cores
    moments: tuple[str, ...] = ("velocity",)  # kinds that the optimizer keeps
    note: str = ""  # why it is not the fastest setting with all slots

    @property
    def micro_batch(self) -> int:
        """Samples computed at once."""
        return self.micro_batching.micro_batch

    @property
    def kept(self) -> str:
        """What the optimizer keeps, in words."""
        if self.moments == ("velocity",):
            return "velocities"
        return f"moments of {moment_bytes(self.moments)} bytes"

    @property
    def required(self) -> int:
        """The bytes that must fit."""
        lasting = self.base + self.once + self.growth + self.data + self.model
        computing = self.gradients + self.activations + self.transfers
        return lasting + computing + max(self.passing, self.replicas + self.results)

    @property
    def total(self) -> int:
        """The expected peak, mapped data in the page cache included."""
        return self.required + self.mapped

    def __str__(self) -> str:
        rows, width = (_rows_of_ranks(self), 62) if self.slots else (_rows(self), 58)
        lines = [f"  {name:<{width}}{size / GIB:>9.3f} GiB" for name, size in rows]
        return "\n".join([*lines, *([f"  {self.note}"] if self.note else [])])


def _rows(plan: MemoryPlan) -> list[tuple[str, int]]:
    """Return what is printed of the plan of a process alone."""
    model = "both orders" if not plan.on_disk else "two layers at a time"
    rows = [
        (f"model (weights, {plan.kept}, {model})", plan.model),
        ("gradients", plan.gradients),
        (f"activations of a micro-batch of {plan.micro_batching}", plan.activations),
        ("initialisation or evolution, one layer at a time", plan.passing),
        ("Python and libraries", plan.base),
        ("required", plan.required),
        ("memory-mapped data (can be evicted)", plan.mapped),
        ("peak", plan.total),
    ]
    if plan.once:
        rows.insert(5, ("compiling kernels or making data, once", plan.once))
    if plan.on_disk:
        rows.append(("in files: model, gradients, activations", plan.on_disk))
    return rows


def _rows_of_ranks(plan: MemoryPlan) -> list[tuple[str, int]]:
    count, nodes = sum(plan.slots), len(plan.slots)
    slots, where = counted(count, "slot"), "a node" if nodes == 1 else f"{nodes} nodes"
    computing = plan.gradients + plan.activations
    rows = [
        (f"topology, weights, {plan.kept}, once for {where}", plan.model),
        (f"{slots}: snapshot, gradient, activations of {plan.micro_batching}", computing),
        ("phase one: what the server needs beside", plan.passing),
        (f"phase two: {counted(count, 'replica')} at a time", plan.replicas),
        ("phase two: trained replicas in memory", plan.results),
        (f"Python and libraries of {counted(plan.ranks, 'rank')}", plan.base),
        ("data that is not in a mapped file", plan.data),
        ("required (the larger of the two phases)", plan.required),
        ("memory-mapped data (can be evicted)", plan.mapped),
        ("peak", plan.total),
        ("on disk: trained replicas", plan.on_disk),
    ]
    if plan.growth:
        rows.insert(5, ("gradient growth: what rank 0 computes its gradient in", plan.growth))
    return rows


def base_bytes(backend: str | None, passing: int) -> int:
    """Return what Python, libraries and kernels take, with what allocators keep of the passing.

    MKL keeps memory of its own; the allocator of the other backends keeps what has passed.
    """
    return BASE + (KEPT if backend in (None, "mkl") else min(KEPT, passing))


def counted(number: int, name: str) -> str:
    return f"{number} {name}{'s' * (number != 1)}"
