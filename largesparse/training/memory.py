"""How many bytes a training takes, planned before anything is allocated.

The plan counts what `layer_terms` has of every layer, and beside it::

    activations  for every sample of a micro-batch: 4 bytes (bfloat16: 2) and 2 bits a neuron, the
                 inputs unless they are sparse, and a buffer of the widest hidden layer (two where
                 that takes less); with keep_every k the bytes are those of every k-th hidden
                 layer and of k - 1 others, and two buffers; the outputs, which losses of many turn
                 into their gradient, and what `backward_by_blocks` adds up

Batch normalisation takes 4 bytes more for a hidden neuron and sample.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil

from ..backends import get_backend
from ..backends.operands import count_parts
from ..errors import MemoryPlanError
from ..machine.control_groups import free_memory
from ..machine.environment import expand_user
from ..model.activations import TRAINED
from ..model.config import NetworkConfig
from ..model.optimizer import OPTIMIZERS
from ..model.workspace import activation_buffers, delta_buffers
from .layer_terms import expected_connections, itemsize, layer_terms, total_of
from .memory_plan import (
    COMPILING,
    GENERATING,
    GIB,
    MemoryPlan,
    MicroBatching,
    base_bytes,
    counted,
)

UNITS = (("M", 10**6), ("k", 10**3), ("", 1))
HEADROOM = 0.9  # share of the available memory that a plan may use
WIDE = 1_000_000  # neurons of a layer from which larger micro-batches gain nothing
BFLOAT16_WIDE = 100_000  # neurons of a layer from which activations in bfloat16 are faster
WIDE_MICRO_BATCH = {"float32": 32, "bfloat16": 64}
USEFUL = 32  # micro-batch up to which a larger one is faster than to keep all activations
USEFUL_SLOT = {"float32": 32, "bfloat16": 64}  # micro-batch up to which it beats a further slot
KEEP_EVERY = (1, 2, 3)  # what is tried, the fastest first: more saves hardly any memory
PREDICTION_BYTES = 512 * 2**20  # what the buffers of prediction may take by default

Choice = TypeVar("Choice")


def plan_training(
    config: NetworkConfig,
    micro_batch: int,
    keep_every: int = 1,
    activation_dtype: str = "float32",
    sparse_inputs: bool = False,
    *,
    mapped: int = 0,
    stored: bool = False,
    backend: str | None = None,
    once: int = 0,
    moments: Sequence[str] = ("velocity",),
    candidates: float = 0.0,
) -> MemoryPlan:
    """Return the bytes of a training: for the parameters see `choose_plan`.

    Where the arrays lie in files (`stored`), what is in use of them at a time should fit: two
    layers, and the activations of three.
    """
    sizes, terms = config.layer_sizes, layer_terms(config, moments, candidates)
    model, gradient, passing = total_of(terms)
    setting = MicroBatching(micro_batch, keep_every, activation_dtype, sparse_inputs)
    activations = activation_bytes(sizes, *setting, trained=has_sums(config))
    on_disk = 0
    if stored:
        on_disk = model + gradient + activations
        widest = max(sizes) * micro_batch * itemsize(activation_dtype)
        model = 2 * max(each.model for each in terms)
        gradient = max(each.gradient for each in terms)
        activations = min(activations, 3 * widest)
    used = model, gradient, activations, passing, mapped
    told: dict[str, Any] = {"on_disk": on_disk, "once": once, "moments": tuple(moments)}
    return MemoryPlan(setting, *used, base=base_bytes(backend, passing), **told)


def has_sums(config: NetworkConfig) -> bool:
    """Return whether hidden layers keep z beside the activation, in float32."""
    return config.activation in TRAINED or config.batch_norm


def activation_bytes(
    layer_sizes: Sequence[int],
    micro_batch: int,
    keep_every: int = 1,
    activation_dtype: str = "float32",
    sparse_inputs: bool = False,
    *,
    trained: bool = False,
) -> int:
    """Return the bytes of a training workspace, its gradients apart.

    Where the activation's shape is trained, or layers are normalised (`trained`), z is kept beside
    the activation.
    """
    hidden = layer_sizes[1:-1]
    words = -(-micro_batch // 32)
    kept = sum(activation_buffers(hidden, keep_every))
    floats = layer_sizes[-1] + (0 if sparse_inputs else layer_sizes[0])
    floats += sum(hidden) if trained else 0
    numbers = 4 * floats + itemsize(activation_dtype) * kept
    once = backward_bytes(layer_sizes, micro_batch, activation_dtype, keep_every)
    return numbers * micro_batch + 8 * words * sum(hidden) + once


def backward_bytes(
    layer_sizes: Sequence[int], micro_batch: int, activation_dtype: str, keep_every: int = 1
) -> int:
    """Return those bytes of a training workspace that only the backward pass needs."""
    hidden, parts = layer_sizes[1:-1], 0
    if hidden and activation_dtype == "float32":
        parts = count_parts(hidden[-1], layer_sizes[-1], micro_batch) * hidden[-1]
    buffers = sum(delta_buffers(hidden, keep_every))
    return (4 * parts + itemsize(activation_dtype) * buffers) * micro_batch


def kind_of_kernels(backend: str, activation_dtype: str, optimizer: str = "sgd") -> str:
    """Return the name of the kernels that trainings of a kind need."""
    updates = OPTIMIZERS[optimizer].kinds
    kind = f"{backend}-{activation_dtype}"
    return kind if updates == OPTIMIZERS["sgd"].kinds else f"{kind}-{'-'.join(updates)}"


def bytes_once(backend: str, activation_dtype: str, is_made: bool, optimizer: str = "sgd") -> int:
    """Return what a process takes to compile kernels and make data that the cache has not got.

    Where it has some kernels, of other trainings, between a tenth and all of it is needed: a half
    is planned.
    """
    from ..backends.compiling import is_cached

    if is_cached(kind_of_kernels(backend, activation_dtype, optimizer)):
        compiling = 0
    else:
        compiling = COMPILING // 2 if is_cached() else COMPILING
    return compiling + GENERATING * (not is_made)


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
    backend: str | None = None,
    once: int = 0,
    moments: Sequence[str] = ("velocity",),
    candidates: float = 0.0,
) -> MemoryPlan:
    """Return the fastest plan that fits.

    A micro-batch (at most the batch size) and a `keep_every` that are given are taken. For
    `activation_dtype` see `TrainingConfig`; `useful_dtype` has the fastest. `mapped` are the bytes
    of memory-mapped data, `available` those that may be used, by default what the machine has free.
    `storage` is the folder of the files that the arrays lie in, if any. `backend` is the one that
    will be used, if that is known, and `once` the bytes of `bytes_once`. `moments` are the kinds
    that the training keeps (`TrainingConfig.moments`), `candidates` the cells that growth looks at
    for a connection (`candidates_per_connection`).

    Raises
    ------
    MemoryPlanError
        Where no micro-batch fits; the message says what would.
    """
    stored = storage is not None
    disk = math.inf if storage is None else shutil.disk_usage(expand_user(storage)).free
    budget = Budget(available_memory() if available is None else available, storage, disk)

    def plan(config: NetworkConfig, choice: MicroBatching) -> MemoryPlan:
        known: dict[str, Any] = {"stored": stored, "backend": backend, "once": once}
        known |= {"moments": moments, "candidates": candidates}
        return plan_training(config, *choice, mapped=mapped, **known)

    found = micro_batchings(config, batch_size, micro_batch, keep_every, activation_dtype)
    return first_fitting(config, budget, found, plan)


def first_fitting(
    config: NetworkConfig,
    budget: Budget,
    choices: Iterable[Choice],
    plan: Callable[[NetworkConfig, Choice], MemoryPlan],
) -> MemoryPlan:
    """Return the plan of the first choice that fits, with a note why where it is not the first.

    There is at least one choice, the fastest first. Where none fits, the MemoryPlanError says what
    would.
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
        ranks = f"{counted(plan.ranks, 'rank')} with {counted(sum(plan.slots), 'slot')}"
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
        what = f"{counted(sum(chosen.slots), 'slot')} and a micro-batch of {chosen.micro_batching}"
        return f"{what}: more do not fit into {there / GIB:.1f} GiB"
    if needed <= there:
        needed, there = faster.on_disk, budget.disk
    return (
        f"a micro-batch of {faster.micro_batching} would need {needed / GIB:.1f} GiB, and "
        f"{there / GIB:.1f} GiB can be used"
    )


def fitting_neurons(config: NetworkConfig, fits: Callable[[NetworkConfig], bool]) -> str | None:
    """Return the largest size with two digits that fits, as the command line takes it."""
    inputs, *hidden, outputs = config.layer_sizes
    for exponent in range(len(str(config.neurons)), 0, -1):
        for digits in range(99, 9, -1):
            neurons = digits * 10**exponent // 10
            if neurons >= config.neurons or neurons < len(hidden):
                continue
            scaled = (max(1, -(-size * neurons // config.neurons)) for size in hidden)
            sizes = inputs, *scaled, outputs
            if fits(dataclasses.replace(config, layer_sizes=sizes)):
                unit, size = next((unit, size) for unit, size in UNITS if neurons >= size)
                return f"{neurons / size:g}{unit}"
    return None


def prediction_batch(layer_sizes: Sequence[int], *, sparse_inputs: bool = False) -> int:
    """Return how many samples to predict at once: at most 1024, within 512 MiB of buffers.

    Sparse inputs have none.
    """
    hidden = layer_sizes[1:-1]
    floats = 2 * max(hidden, default=0) + layer_sizes[-1]
    floats += 0 if sparse_inputs else layer_sizes[0]
    return max(1, min(1024, PREDICTION_BYTES // (4 * floats)))


def useful_dtype(config: NetworkConfig, backend: str | None) -> str:
    """Return the fastest dtype of activations: see `TrainingConfig`.

    Where layers are so wide that memory bounds the passes, bfloat16 halves what they move.
    """
    widest = max(config.layer_sizes[1:-1], default=0)
    most = max(expected_connections(config))
    possible = get_backend(backend, config.layer_sizes, most).takes_bfloat16
    possible &= config.activation not in TRAINED and not config.batch_norm
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
    hidden = config.layer_sizes[1:-1]
    if micro_batch:
        sizes = [min(micro_batch, batch_size)]
    else:
        is_wide = max(hidden, default=0) >= WIDE
        largest = min(batch_size, WIDE_MICRO_BATCH[activation_dtype]) if is_wide else batch_size
        powers = (2**k for k in range(largest.bit_length() - 1, -1, -1))
        sizes = [largest, *(size for size in powers if size < largest)]
    kept, least = [keep_every] if keep_every else [], math.inf
    for k in () if keep_every else KEEP_EVERY:
        buffers = sum(activation_buffers(hidden, k) + delta_buffers(hidden, k))
        if buffers < least:
            kept.append(k)
            least = buffers
    found = [(size, k) for size in sizes for k in (kept if size <= USEFUL else kept[:1])]
    return [MicroBatching(size, k, activation_dtype) for size, k in found]
