"""Momentum SGD (eq. 1) and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..backends.operands import SGD
from ..errors import ParameterError, check_range
from .layer import PARAMETERS, LayerArrays, Parameter, SparseLayer, moment_name

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
class MomentumSGD:
    """Momentum SGD with decay per step, not scaled by the learning rate:

    v = momentum·v - learning_rate·g
    w = w + v - weight_decay·w

    A schedule scales both (`TrainingConfig.optimizer`), as in Loshchilov & Hutter (2019), algorithm
    1: a decay that stays while the rate goes to 0 would take the weights with it.
    """

    momentum: float = 0.9
    weight_decay: float = 2e-4

    def __post_init__(self) -> None:
        check_range("momentum", self.momentum, "momentum SGD", low=0, high=1, high_open=True)
        check_range("weight_decay", self.weight_decay, "momentum SGD", low=0, high=1)

    def numbers(self, layer: SparseLayer, parameter: Parameter, learning_rate: float) -> SGD:
        """Return the numbers of an update of one of the layer's parameters."""
        scale = layer.config.rate_scale if parameter.of_connections else 1.0
        decay = self.weight_decay if parameter.decays else 0.0
        return SGD(*map(np.float32, (learning_rate * scale, self.momentum, decay)))

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
        from ..backends.kernels import momentum_update, momentum_update_reorder

        for name, gradient in gradients.items():
            parameter = PARAMETERS[name]
            array = getattr(layer, name)
            velocity = getattr(layer, moment_name(name, "velocity"))
            sgd = self.numbers(layer, parameter, learning_rate)
            if parameter.of_connections and both_orders:
                copy = layer.topology.to_output_order, layer.values_by_output
                momentum_update_reorder(array, velocity, gradient, sgd, *copy)
                continue
            rows = [row for row, trained in enumerate(layer.config.shape_trained) if trained]
            for part in rows if parameter.rows else [...]:
                momentum_update(array[part], velocity[part], gradient[part], sgd)
