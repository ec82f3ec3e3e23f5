"""Momentum SGD (eq. 1), Nesterov's, Adam and AdamW, and learning-rate schedules."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..backends import operands
from ..backends.operands import SGD, Float32
from ..errors import ParameterError, check_range
from .layer import PARAMETERS, LayerArrays, Parameter, SparseLayer, moment_name

StepCounts = Literal["connection", "global"]
MOST_UPDATES = 2**16 - 1  # that are counted

# name -> factor of the learning rate after `progress` epochs (fractional)
SCHEDULES: dict[str, Callable[[float, ScheduleConfig], float]] = {
    "constant": lambda progress, config: 1.0,
    "step": lambda progress, config: config.decay_factor ** (progress // config.decay_every),
    "cosine": lambda progress, config: (
        0.5 * (1 + math.cos(math.pi * min(1.0, progress / config.epochs)))
    ),
}


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate changes over a training."""

    schedule: str = "constant"  # constant | step | cosine
    epochs: int = 1  # length of the training; cosine ends there at 0
    warmup_epochs: float = 0.0  # the rate rises linearly from 0 over these epochs
    decay_every: float = 100.0  # epochs; step: the rate is multiplied after each of these
    decay_factor: float = 0.5  # step: by this

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, str) or self.schedule not in SCHEDULES:
            raise ParameterError(
                f"The 'schedule' parameter must be one of {sorted(SCHEDULES)}. "
                f"Got {self.schedule!r} instead."
            )
        owner = "the learning-rate schedule"
        check_range("warmup_epochs", self.warmup_epochs, owner, low=0)
        check_range("decay_every", self.decay_every, owner, low=0, low_open=True)
        check_range("decay_factor", self.decay_factor, owner, low=0, high=1, low_open=True)

    def factor(self, progress: float) -> float:
        """Return the factor of the learning rate after `progress` epochs."""
        warm = min(1.0, progress / self.warmup_epochs) if self.warmup_epochs else 1.0
        return warm * SCHEDULES[self.schedule](progress, self)


@dataclass(frozen=True)
class Optimizer:
    """What updates a layer by its gradients; see its kinds in `OPTIMIZERS`."""

    momentum: float = 0.9
    weight_decay: float = 0.0
    clip_norm: float | None = None  # of all gradients together, at the most: see `clip_`

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]  # of the moments that it needs: see `layer.MOMENTS`
    default_rate: ClassVar[float]
    default_decay: ClassVar[float]
    decay_is_scheduled: ClassVar[bool] = False  # whether a schedule scales the decay by itself
    largest_decay: ClassVar[float] = math.inf

    def __post_init__(self) -> None:
        check_range("momentum", self.momentum, self.name, low=0, high=1, high_open=True)
        high = self.largest_decay
        check_range(
            "weight_decay", self.weight_decay, self.name, low=0, high=high, high_open=high > 1
        )
        if self.clip_norm is not None:
            check_range("clip_norm", self.clip_norm, self.name, low=0, high=1e38, low_open=True)

    def update_(
        self,
        layer: SparseLayer,
        gradients: LayerArrays,
        learning_rate: float,
        *,
        both_orders: bool = True,
    ) -> None:
        """Update what is trained of a layer by the mean gradients of a mini-batch, in place.

        Weights and biases decay; the activation's parameters do not: 0 is not their middle. With
        `both_orders` the copy of the weights in output order is renewed too.
        """
        update, update_reorder = self._kernels()
        given = {
            name: self._arguments(layer, PARAMETERS[name], learning_rate) for name in gradients
        }
        for name, gradient in gradients.items():
            moments = (getattr(layer, moment_name(name, kind)) for kind in self.kinds)
            arrays = getattr(layer, name), *moments, gradient
            if PARAMETERS[name].of_connections and both_orders:
                copy = layer.topology.to_output_order, layer.values_by_output
                update_reorder(*arrays, *given[name], *copy)
                continue
            for part in _trained_parts(layer, name):
                update(*(array[part] for array in arrays), *given[name])

    def _kernels(self) -> tuple[Callable[..., None], Callable[..., None]]:
        """Return what updates a parameter, and what renews the output order too."""
        raise NotImplementedError

    def _arguments(
        self, layer: SparseLayer, parameter: Parameter, learning_rate: float
    ) -> tuple[Any, ...]:
        """Return the numbers of an update of one of the layer's parameters, for the kernels."""
        raise NotImplementedError

    def _rate_and_decay(
        self, layer: SparseLayer, parameter: Parameter, learning_rate: float
    ) -> tuple[float, float]:
        scale = layer.config.rate_scale if parameter.of_connections else 1.0
        return learning_rate * scale, self.weight_decay if parameter.decays else 0.0


def _trained_parts(layer: SparseLayer, name: str) -> Iterator[Any]:
    """Yield the indices of what is trained of a parameter."""
    if not PARAMETERS[name].rows:
        return iter([...])
    return (row for row, trained in enumerate(layer.config.shape_trained) if trained)


@dataclass(frozen=True)
class MomentumSGD(Optimizer):
    """Momentum SGD with decay per step, not scaled by the learning rate:

    v = momentum·v - learning_rate·g
    w = w + v - weight_decay·w

    A schedule scales both (`TrainingConfig.optimizer_at`), as in Loshchilov & Hutter (2019),
    algorithm 1: a decay that stays while the rate goes to 0 would take the weights with it.
    """

    weight_decay: float = 2e-4

    name = "momentum SGD"
    kinds = ("velocity",)
    default_rate, default_decay = 0.01, 2e-4
    decay_is_scheduled, largest_decay = True, 1.0
    looks_ahead: ClassVar[bool] = False

    def numbers(self, layer: SparseLayer, parameter: Parameter, learning_rate: float) -> SGD:
        """Return the numbers of an update of one of the layer's parameters."""
        rate, decay = self._rate_and_decay(layer, parameter, learning_rate)
        numbers = np.float32(rate), np.float32(self.momentum), np.float32(decay)
        return SGD(*numbers, self.looks_ahead)

    def _kernels(self) -> tuple[Callable[..., None], Callable[..., None]]:
        from ..backends.kernels import momentum_update, momentum_update_reorder

        return momentum_update, momentum_update_reorder

    def _arguments(
        self, layer: SparseLayer, parameter: Parameter, learning_rate: float
    ) -> tuple[Any, ...]:
        return (self.numbers(layer, parameter, learning_rate),)


@dataclass(frozen=True)
class Nesterov(MomentumSGD):
    """Nesterov's momentum, as torch.optim.SGD(nesterov=True) has it; decay as `MomentumSGD`:

    v = momentum·v - learning_rate·g
    w = w + momentum·v - learning_rate·g - weight_decay·w
    """

    name = "Nesterov's momentum"
    looks_ahead = True


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma & Ba, 2015) with a step count t for every connection:

    g = g + weight_decay·w
    m = momentum·m + (1 - momentum)·g
    s = beta2·s + (1 - beta2)·g²
    w = w - learning_rate · m / (1 - momentumᵗ) / (√(s / (1 - beta2ᵗ)) + adam_epsilon)

    A connection that grows begins with m = s = t = 0, as all did at first. By the count of the
    training (`step_counts="global"`, as in other libraries) its moments would not be corrected, and
    its first updates be (1 - momentum)/√(1 - beta2) times, with the defaults 3.2 times, too large.
    t ends at 65535; the corrections are 1 by then, unless `beta2` is above 0.9998.
    """

    beta2: float = 0.999
    adam_epsilon: float = 1e-8
    step_counts: StepCounts = "connection"
    connection_warmup: int = 0  # updates over which the rate of a connection rises linearly

    name = "Adam"
    kinds = ("velocity", "square", "updates")
    default_rate, default_decay = 0.001, 0.0
    is_decoupled: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("beta2", self.beta2, self.name, low=0, high=1, high_open=True)
        check_range("adam_epsilon", self.adam_epsilon, self.name, low=1e-37, high=1)
        if self.step_counts not in get_args(StepCounts):
            raise ParameterError(
                f"The 'step_counts' parameter of {self.name} must be one of "
                f"{sorted(get_args(StepCounts))}. Got {self.step_counts!r} instead."
            )
        warmup = self.connection_warmup
        check_range("connection_warmup", warmup, self.name, low=0, high=MOST_UPDATES, integer=True)
        if warmup and self.step_counts == "global":
            raise ParameterError(
                f"The 'connection_warmup' parameter of {self.name} needs a count for every "
                "connection: set step_counts='connection', or connection_warmup=0."
            )

    def _kernels(self) -> tuple[Callable[..., None], Callable[..., None]]:
        from ..backends.kernels import adam_update, adam_update_reorder

        return adam_update, adam_update_reorder

    def _arguments(
        self, layer: SparseLayer, parameter: Parameter, learning_rate: float
    ) -> tuple[Any, ...]:
        rate, decay = self._rate_and_decay(layer, parameter, learning_rate)
        shares = (decay * rate, 0.0) if self.is_decoupled else (0.0, decay)
        betas = self.momentum, 1 - self.momentum, self.beta2, 1 - self.beta2
        numbers = operands.Adam(*map(np.float32, (rate, *shares, *betas, self.adam_epsilon)))
        tables = corrections(self.momentum, self.beta2, self.connection_warmup)
        if self.step_counts == "global":  # that of the biases, which no evolution replaces
            t = min(int(layer.moments["updates"]["bias"].max()) + 1, len(tables[0]) - 1)
            return numbers, (tables[0][t : t + 1], tables[1][t : t + 1])
        return numbers, tables


class AdamW(Adam):
    """`Adam` with decoupled weight decay (Loshchilov & Hutter, 2019), as torch.optim.AdamW has it.

    The decay is not part of the gradient: w = w - learning_rate·weight_decay·w before the update.
    """

    name = "AdamW"
    default_decay = 0.01
    is_decoupled = True


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": MomentumSGD,
    "nesterov": Nesterov,
    "adam": Adam,
    "adamw": AdamW,
}


@functools.lru_cache(maxsize=8)
def corrections(beta1: float, beta2: float, warmup: int = 0) -> tuple[Float32, Float32]:
    """Return what Adam multiplies m and √s by after t updates, float32 (t + 1,) each.

    The first is min(1, t/warmup) / (1 - beta1ᵗ), the second 1/√(1 - beta2ᵗ). Both end where they
    are 1 from there on, or at 65535 updates. Those of t = 0 are not used.
    """
    t = np.maximum(1.0, np.arange(MOST_UPDATES + 1))
    first = np.minimum(1.0, t / max(1, warmup)) / (1 - beta1**t)
    second = 1 / np.sqrt(1 - beta2**t)
    tables = first.astype(np.float32), second.astype(np.float32)
    changing = (tables[0] != 1) | (tables[1] != 1) | (t < warmup)
    end = min(len(t), int(np.flatnonzero(changing)[-1]) + 2 if changing.any() else 2)
    return tables[0][:end].copy(), tables[1][:end].copy()


def clip_(layers: Sequence[SparseLayer], gradients: Sequence[LayerArrays], norm: float) -> float:
    """Scale all gradients so that their Euclidean norm is `norm` at the most; return what it was.

    As torch.nn.utils.clip_grad_norm_: over weights, biases and trained activations together. The
    norm is summed in float64, in an order that threads do not change.
    """
    found = math.sqrt(sum_squares(layers, gradients))
    scale_(layers, gradients, found, norm)
    return found


def sum_squares(
    layers: Sequence[SparseLayer], gradients: Sequence[LayerArrays], begin: float = 0.0
) -> float:
    """Return `begin` and the squares of all gradients, added in the layers' order."""
    from ..backends.kernels import sum_of_squares

    return sum(map(sum_of_squares, _clipped(layers, gradients)), begin)


def scale_(
    layers: Sequence[SparseLayer], gradients: Sequence[LayerArrays], found: float, norm: float
) -> None:
    """Scale gradients, of a Euclidean norm of `found` with all others, so that it is `norm`."""
    if found > norm:
        factor = np.float32(norm / found)
        for part in _clipped(layers, gradients):
            part *= factor


def _clipped(
    layers: Sequence[SparseLayer], gradients: Sequence[LayerArrays]
) -> Iterator[NDArray[Any]]:
    """Yield the gradients that the norm is of."""
    for layer, arrays in zip(layers, gradients, strict=True):
        for name, gradient in arrays.items():
            if PARAMETERS[name].is_trained:
                yield from (gradient[part] for part in _trained_parts(layer, name))
