"""How many bytes a training takes, planned before anything is allocated.

The plan counts, for a layer with nnz connections, n_in inputs and n_out neurons::

    model        24·nnz (indices and weights in both orders, permutation, velocity)
                 + 4·(n_in + n_out + 2) row pointers + 8·n_out (biases and their velocities)
    gradients    4·nnz + 4·n_out
    activations  for every sample of a micro-batch: 4 bytes (bfloat16: 2) and 2 bits a neuron, the
                 inputs, and a buffer of the widest hidden layer (two where that takes less);
                 with keep_every k the bytes are those of every k-th hidden layer and of k - 1
                 others, and two buffers
    passing      what initialisation, evolution or a checkpoint needs beside, once at a time
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import psutil

from ..backends import get_backend
from ..errors import MemoryPlanError
from ..machine.control_groups import free_memory
from ..machine.environment import expand_user
from ..model.activations import TRAINED
from ..model.config import NetworkConfig
from ..model.workspace import ACTIVATION_DTYPES, activation_buffers, delta_buffers

GIB = 2**30
UNITS = (("M", 10**6), ("k", 10**3), ("", 1))
BASE = 300 * 2**20  # interpreter, libraries, kernels, and what the allocator keeps
HEADROOM = 0.9  # share of the available memory that a plan may use
WIDE = 1_000_000  # neurons of a layer from which larger micro-batches gain nothing
BFLOAT16_WIDE = 100_000  # neurons of a layer from which activations in bfloat16 are faster
WIDE_MICRO_BATCH = {"float32": 32, "bfloat16": 64}
USEFUL = 32  # micro-batch up to which a larger one is faster than to keep all activations
USEFUL_SLOT = {"float32": 32, "bfloat16": 64}  # micro-batch up to which it beats a further slot
KEEP_EVERY = (1, 2, 3)  # what is tried, the fastest first: more saves hardly any memory
EVOLUTION = 36  # bytes a connection that evolving a layer takes beside the layer
CANDIDATE = 33  # bytes that growth by the gradient takes for every cell that it looks at
INITIALIZATION = 24  # bytes a connection that sampling a layer takes beside the layer
PREDICTION_BYTES = 512 * 2**20  # what the buffers of prediction may take by default

Choice = TypeVar("Choice")


class MicroBatching(NamedTuple):
    """How the activations of a training are computed and kept."""

    micro_batch: int
    keep_every: int = 1
    activation_dtype: str = "float32"

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
    model: int  # weights and velocities; with the topology once for each node
    gradients: int  # of all slots, with the weights that they are computed on
    activations: int  # of all slots
    passing: int  # what initialisation, evolution or the parameter server needs, once at a time
    mapped: int = 0  # of memory-mapped data: counted in the peak, but the system can evict it
    base: int = BASE
    on_disk: int = 0  # of arrays in files, or of trained replicas that wait there
    replicas: int = 0  # of phase two, when nothing is passing: those that are trained at a time
    results: int = 0  # of phase two: trained replicas that wait in memory
    growth: int = 0  # what rank 0 computes a gradient in, where connections grow by it
    data: int = 0  # that is not memory-mapped
    ranks: int = 1  # on this machine
    slots: tuple[int, ...] = ()  # of every node on this machine
    most_slots: int | None = None  # of any node; None is its cores
    note: str = ""  # why it is not the fastest setting with all slots

    @property
    def micro_batch(self) -> int:
        """Samples computed at once."""
        return self.micro_batching.micro_batch

    @property
    def required(self) -> int:
        """The bytes that must fit."""
        lasting = self.base + self.growth + self.data + self.model
        computing = self.gradients + self.activations
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
        (f"model (weights, velocities, {model})", plan.model),
        ("gradients", plan.gradients),
        (f"activations of a micro-batch of {plan.micro_batching}", plan.activations),
        ("initialisation or evolution, one layer at a time", plan.passing),
        ("Python and libraries", plan.base),
        ("required", plan.required),
        ("memory-mapped data (can be evicted)", plan.mapped),
        ("peak", plan.total),
    ]
    if plan.on_disk:
        rows.append(("in files: model, gradients, activations", plan.on_disk))
    return rows


def _rows_of_ranks(plan: MemoryPlan) -> list[tuple[str, int]]:
    count, nodes = sum(plan.slots), len(plan.slots)
    slots, where = _count(count, "slot"), "a node" if nodes == 1 else f"{nodes} nodes"
    computing = plan.gradients + plan.activations
    rows = [
        (f"topology, weights, velocities, once for {where}", plan.model),
        (f"{slots}: snapshot, gradient, activations of {plan.micro_batching}", computing),
        ("phase one: what the server needs beside", plan.passing),
        (f"phase two: {_count(count, 'replica')} at a time", plan.replicas),
        ("phase two: trained replicas in memory", plan.results),
        (f"Python and libraries of {_count(plan.ranks, 'rank')}", plan.base),
        ("data that is not in a mapped file", plan.data),
        ("required (the larger of the two phases)", plan.required),
        ("memory-mapped data (can be evicted)", plan.mapped),
        ("peak", plan.total),
        ("on disk: trained replicas", plan.on_disk),
    ]
    if plan.growth:
        rows.insert(5, ("gradient growth: what rank 0 computes its gradient in", plan.growth))
    return rows


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'s' * (number != 1)}"


def plan_training(
    config: NetworkConfig,
    micro_batch: int,
    keep_every: int = 1,
    activation_dtype: str = "float32",
    *,
    mapped: int = 0,
    stored: bool = False,
) -> MemoryPlan:
    """Return the bytes of a training.

    Parameters
    ----------
    config : NetworkConfig
    micro_batch : int
    keep_every : int
        Of how many hidden layers one's activations are kept.
    activation_dtype : str
        As in `TrainingConfig`.
    mapped : int
        Bytes of memory-mapped data.
    stored : bool
        Whether the arrays lie in files: see `storage.Storage`. What is in use of them at a time
        should fit: two layers, and the activations of three.
    """
    models, gradients, passing = [], [], 0
    sizes = config.layer_sizes
    connections = expected_connections(config)
    for (n_in, n_out), nnz in zip(itertools.pairwise(sizes), connections, strict=True):
        models.append(24 * nnz + 4 * (n_in + n_out + 2) + 8 * n_out)
        gradients.append(4 * nnz + 4 * n_out)
        pointers = 8 * (n_in + n_out)
        passing = max(passing, max(EVOLUTION, INITIALIZATION) * nnz + pointers)
    model, gradient = sum(models), sum(gradients)
    activations = activation_bytes(
        sizes, micro_batch, keep_every, activation_dtype, trained=config.activation in TRAINED
    )
    on_disk = 0
    if stored:
        on_disk = model + gradient + activations
        widest = max(sizes) * micro_batch * itemsize(activation_dtype)
        model, gradient = 2 * max(models), max(gradients)
        activations = min(activations, 3 * widest)
    used = model, gradient, activations, passing, mapped
    setting = MicroBatching(micro_batch, keep_every, activation_dtype)
    return MemoryPlan(setting, *used, on_disk=on_disk)


def expected_connections(config: NetworkConfig) -> tuple[int, ...]:
    """Return the connections that each layer will hardly have more of."""
    found = []
    for (n_in, n_out), probability in zip(
        itertools.pairwise(config.layer_sizes), config.probabilities(), strict=True
    ):
        expected = probability * n_in * n_out
        found.append(math.ceil(expected + 3 * math.sqrt(expected * (1 - probability))))
    return tuple(found)


def itemsize(activation_dtype: str) -> int:
    """Return the bytes of an activation."""
    return np.dtype(ACTIVATION_DTYPES[activation_dtype]).itemsize


def activation_bytes(
    layer_sizes: Sequence[int],
    micro_batch: int,
    keep_every: int = 1,
    activation_dtype: str = "float32",
    *,
    trained: bool = False,
) -> int:
    """Return the bytes of a training workspace, its gradients apart.

    Where the activation's shape is trained (`trained`), z is kept beside the activation.
    """
    hidden = layer_sizes[1:-1]
    words = -(-micro_batch // 32)
    buffers = sum(delta_buffers(hidden, keep_every))
    kept = sum(activation_buffers(hidden, keep_every))
    floats = layer_sizes[0] + layer_sizes[-1] + (sum(hidden) if trained else 0)
    numbers = 4 * floats + itemsize(activation_dtype) * (kept + buffers)
    return numbers * micro_batch + 8 * words * sum(hidden)


def available_memory() -> int:
    """Return the bytes that this process may still take."""
    available = free_memory()
    try:
        import resource

        soft = resource.getrlimit(resource.RLIMIT_AS)[0]
        if soft != resource.RLIM_INFINITY:
            available = min(available, soft - psutil.Process().memory_info().vms)
    except ImportError:  # Windows has no such limits
        pass
    return max(0, available)


class Budget(NamedTuple):
    """What a plan may take."""

    available: int  # bytes of memory
    folder: str | Path | None = None  # of arrays in files
    disk: float = math.inf  # bytes that it has free

    @property
    def usable(self) -> int:
        """The bytes of memory that a plan may use."""
        return int(HEADROOM * self.available)

    def holds(self, plan: MemoryPlan) -> bool:
        """Return whether a plan fits."""
        return plan.required <= self.usable and plan.on_disk <= self.disk


def choose_plan(
    config: NetworkConfig,
    batch_size: int,
    *,
    micro_batch: int | None = None,
    keep_every: int | None = None,
    activation_dtype: str = "float32",
    mapped: int = 0,
    available: int | None = None,
    storage: str | Path | None = None,
) -> MemoryPlan:
    """Return the fastest plan that fits.

    Parameters
    ----------
    config : NetworkConfig
    batch_size : int
    micro_batch : int, optional
        Given, it is taken; at most the batch size.
    keep_every : int, optional
        Given, it is taken.
    activation_dtype : str
        As in `TrainingConfig`; `useful_dtype` has the fastest.
    mapped : int
        Bytes of memory-mapped data.
    available : int, optional
        Bytes that may be used; by default what the machine has free.
    storage : path, optional
        Folder of the files that the arrays lie in.

    Raises
    ------
    MemoryPlanError
        Where no micro-batch fits; the message says what would.
    """
    stored = storage is not None
    disk = math.inf if storage is None else shutil.disk_usage(expand_user(storage)).free
    budget = Budget(available_memory() if available is None else available, storage, disk)

    def plan(config: NetworkConfig, choice: MicroBatching) -> MemoryPlan:
        return plan_training(config, *choice, mapped=mapped, stored=stored)

    found = micro_batchings(config, batch_size, micro_batch, keep_every, activation_dtype)
    return first_fitting(config, budget, found, plan)


def first_fitting(
    config: NetworkConfig,
    budget: Budget,
    choices: Iterable[Choice],
    plan: Callable[[NetworkConfig, Choice], MemoryPlan],
) -> MemoryPlan:
    """Return the plan of the first choice that fits; if others come before, with a note why.

    Parameters
    ----------
    config : NetworkConfig
    budget : Budget
    choices : iterable
        At least one, the fastest first.
    plan : callable
        plan(config, choice) returns the plan of a network.

    Raises
    ------
    MemoryPlanError
        Where none fits; the message says what would.
    """
    first = None
    for choice in choices:
        found = plan(config, choice)
        if budget.holds(found):
            note = "" if first is None else _explain(first, found, budget)
            return dataclasses.replace(found, note=note)
        first = first or found
    fitting = fitting_neurons(config, lambda smaller: budget.holds(plan(smaller, choice)))
    smaller = f"about {fitting} neurons would fit" if fitting else ""
    raise MemoryPlanError(_refusal(found, config, budget, smaller))


def check_fits(plan: MemoryPlan, config: NetworkConfig, available: int) -> None:
    """Raise `MemoryPlanError` where a plan does not fit into the bytes available."""
    budget = Budget(available)
    if not budget.holds(plan):
        raise MemoryPlanError(_refusal(plan, config, budget))


def _refusal(plan: MemoryPlan, config: NetworkConfig, budget: Budget, smaller: str = "") -> str:
    """Return what is said of a plan that does not fit; `smaller` is what would."""
    advice = ["a smaller micro-batch"] if plan.micro_batch > 1 else []
    what = f"{config.neurons} neurons with a micro-batch of {plan.micro_batch}"
    can_be_used = (
        f"{budget.usable / GIB:.1f} GiB can be used ({HEADROOM:.0%} of the "
        f"{budget.available / GIB:.1f} GiB available)"
    )
    if plan.slots:
        advice[:0] = ["fewer slots"] * (sum(plan.slots) > len(plan.slots))
        advice.append(smaller or "fewer ranks")
        ranks = f"{_count(plan.ranks, 'rank')} with {_count(sum(plan.slots), 'slot')}"
        return (
            f"{what} on {ranks} need about {plan.required / GIB:.1f} GiB on the machine of rank 0, "
            f"and {can_be_used}: {', or '.join(advice)}."
        )
    advice.insert(0, smaller or "not even a small network fits")
    ending = "at this depth and epsilon."
    if plan.on_disk > budget.disk:
        return (
            f"{what} need about {plan.on_disk / GIB:.1f} GiB in files, and {budget.folder} has "
            f"{budget.disk / GIB:.1f} GiB free: {', or '.join(advice)} {ending}"
        )
    if budget.folder is None:
        advice.append("arrays in files ('storage')")
    needed = f"{plan.required / GIB:.1f} GiB"
    return f"{what} need about {needed}, and {can_be_used}: {', or '.join(advice)} {ending}"


def _explain(faster: MemoryPlan, chosen: MemoryPlan, budget: Budget) -> str:
    """Return why a faster plan was not chosen."""
    needed, there = float(faster.required), float(budget.usable)
    if chosen.slots:
        what = f"{_count(sum(chosen.slots), 'slot')} and a micro-batch of {chosen.micro_batching}"
        return f"{what}: more do not fit into {there / GIB:.1f} GiB"
    if needed <= there:
        needed, there = faster.on_disk, budget.disk
    return (
        f"a micro-batch of {faster.micro_batching} would need {needed / GIB:.1f} GiB, and "
        f"{there / GIB:.1f} GiB can be used"
    )


def fitting_neurons(config: NetworkConfig, fits: Callable[[NetworkConfig], bool]) -> str | None:
    """Return the largest size with two digits that fits, as the command line takes it."""
    for exponent in range(len(str(config.neurons)), 0, -1):
        for digits in range(99, 9, -1):
            neurons = digits * 10**exponent // 10
            if neurons >= config.neurons or neurons < len(config.layer_sizes) - 2:
                continue
            smaller = dataclasses.replace(config, layer_sizes=_scaled(config, neurons))
            if fits(smaller):
                unit, size = next(
                    (unit, size) for unit, size in UNITS if neurons >= size or size == 1
                )
                return f"{neurons / size:g}{unit}"
    return None


def _scaled(config: NetworkConfig, neurons: int) -> tuple[int, ...]:
    """Return layer sizes with about this number of neurons, in the same proportions."""
    inputs, *hidden, outputs = config.layer_sizes
    return (inputs, *(max(1, -(-size * neurons // config.neurons)) for size in hidden), outputs)


def prediction_batch(layer_sizes: Sequence[int]) -> int:
    """Return how many samples to predict at once: at most 1024, within 512 MiB of buffers."""
    hidden = layer_sizes[1:-1]
    floats = layer_sizes[0] + 2 * max(hidden, default=0) + layer_sizes[-1]
    return max(1, min(1024, PREDICTION_BYTES // (4 * floats)))


def useful_dtype(config: NetworkConfig, backend: str | None) -> str:
    """Return the fastest dtype of activations: see `TrainingConfig`.

    Where layers are so wide that memory bounds the passes, bfloat16 halves what they move.
    """
    widest = max(config.layer_sizes[1:-1], default=0)
    possible = get_backend(backend).takes_bfloat16 and config.activation not in TRAINED
    return "bfloat16" if possible and widest >= BFLOAT16_WIDE else "float32"


def micro_batchings(
    config: NetworkConfig,
    batch_size: int,
    micro_batch: int | None,
    keep_every: int | None,
    activation_dtype: str = "float32",
) -> list[MicroBatching]:
    """Return useful settings, the fastest first.

    Below a micro-batch of 32, half of it costs more than to compute activations twice.
    """
    sizes = micro_batches(config, batch_size, activation_dtype)
    if micro_batch:
        sizes = [min(micro_batch, batch_size)]
    kept = [keep_every] if keep_every else []
    hidden = config.layer_sizes[1:-1]
    buffers = [sum(activation_buffers(hidden, k) + delta_buffers(hidden, k)) for k in KEEP_EVERY]
    for place, k in enumerate(KEEP_EVERY if not keep_every else ()):
        if place == 0 or buffers[place] < min(buffers[:place]):
            kept.append(k)
    large = [size for size in sizes if size > USEFUL]
    found = [(size, kept[0]) for size in large]
    found += [(size, k) for size in sizes if size not in large for k in kept]
    return [MicroBatching(size, k, activation_dtype) for size, k in found]


def micro_batches(config: NetworkConfig, batch_size: int, activation_dtype: str) -> list[int]:
    """Return useful micro-batches, largest first."""
    widest = max(config.layer_sizes[1:-1], default=0)
    largest = min(batch_size, WIDE_MICRO_BATCH[activation_dtype]) if widest >= WIDE else batch_size
    powers = [2**k for k in range(largest.bit_length() - 1, -1, -1) if 2**k < largest]
    return [largest, *powers]
