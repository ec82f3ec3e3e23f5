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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from .activations import TRAINED
from .backends import get_backend
from .config import NetworkConfig
from .control_groups import free_memory
from .environment import expand_user
from .errors import MemoryPlanError
from .workspace import ACTIVATION_DTYPES, activation_buffers, delta_buffers

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


class Setting(NamedTuple):
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
    """Bytes that a training is expected to take, by what they are for."""

    setting: Setting
    model: int
    gradients: int
    activations: int
    passing: int
    mapped: int = 0  # of memory-mapped data: counted in the peak, but the system can evict it
    base: int = BASE
    on_disk: int = 0  # of arrays in files, of which a layer or two are in memory at a time
    note: str = ""  # why it is not the fastest setting

    @property
    def micro_batch(self) -> int:
        """Samples computed at once."""
        return self.setting.micro_batch

    @property
    def required(self) -> int:
        """The bytes that must fit."""
        return self.model + self.gradients + self.activations + self.passing + self.base

    @property
    def total(self) -> int:
        """The expected peak, mapped data in the page cache included."""
        return self.required + self.mapped

    def __str__(self) -> str:
        model = "both orders" if not self.on_disk else "two layers at a time"
        rows = [
            (f"model (weights, velocities, {model})", self.model),
            ("gradients", self.gradients),
            (f"activations of a micro-batch of {self.setting}", self.activations),
            ("initialisation or evolution, one layer at a time", self.passing),
            ("Python and libraries", self.base),
            ("required", self.required),
            ("memory-mapped data (can be evicted)", self.mapped),
            ("peak", self.total),
        ]
        if self.on_disk:
            rows.append(("in files: model, gradients, activations", self.on_disk))
        lines = [f"  {name:<58}{size / GIB:>9.3f} GiB" for name, size in rows]
        return "\n".join([*lines, *([f"  {self.note}"] if self.note else [])])


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
    setting = Setting(micro_batch, keep_every, activation_dtype)
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
    disk = 0 if storage is None else shutil.disk_usage(expand_user(storage)).free
    available = available_memory() if available is None else available
    budget = int(HEADROOM * available)
    first = None
    for setting in settings(config, batch_size, micro_batch, keep_every, activation_dtype):
        plan = plan_training(config, *setting, mapped=mapped, stored=stored)
        if plan.required <= budget and plan.on_disk <= disk:
            note = "" if first is None else _explain(first, budget, disk)
            return dataclasses.replace(plan, note=note)
        first = first or plan

    def fits(smaller: NetworkConfig) -> bool:
        small = plan_training(smaller, *plan.setting, stored=stored)
        return small.required <= budget and small.on_disk <= disk

    fitting = fitting_neurons(config, fits)
    advice = f"about {fitting} neurons would fit" if fitting else "not even a small network fits"
    if micro_batch and micro_batch > 1:
        advice += ", or a smaller micro-batch"
    if plan.on_disk > disk:
        raise MemoryPlanError(
            f"{config.neurons} neurons with a micro-batch of {plan.micro_batch} need about "
            f"{plan.on_disk / GIB:.1f} GiB in files, and {storage} has {disk / GIB:.1f} GiB free: "
            f"{advice} at this depth and epsilon."
        )
    if not stored:
        advice += ", or arrays in files ('storage')"
    raise MemoryPlanError(
        f"{config.neurons} neurons with a micro-batch of {plan.micro_batch} need about "
        f"{plan.required / GIB:.1f} GiB, and {budget / GIB:.1f} GiB can be used "
        f"({HEADROOM:.0%} of the {available / GIB:.1f} GiB available): {advice} at this depth "
        "and epsilon."
    )


def _explain(faster: MemoryPlan, budget: int, disk: int) -> str:
    """Return why a faster plan was not chosen."""
    needed, there = faster.required, budget
    if needed <= budget:
        needed, there = faster.on_disk, disk
    return (
        f"a micro-batch of {faster.setting} would need {needed / GIB:.1f} GiB, and "
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


def settings(
    config: NetworkConfig,
    batch_size: int,
    micro_batch: int | None,
    keep_every: int | None,
    activation_dtype: str = "float32",
) -> list[Setting]:
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
    return [Setting(size, k, activation_dtype) for size, k in found]


def micro_batches(config: NetworkConfig, batch_size: int, activation_dtype: str) -> list[int]:
    """Return useful micro-batches, largest first."""
    widest = max(config.layer_sizes[1:-1], default=0)
    largest = min(batch_size, WIDE_MICRO_BATCH[activation_dtype]) if widest >= WIDE else batch_size
    powers = [2**k for k in range(largest.bit_length() - 1, -1, -1) if 2**k < largest]
    return [largest, *powers]
