"""How a gradient becomes an update of the shared weights, on rank 0 and by workers of its node."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ...model.config import TrainingConfig
from ...model.layer import PARAMETERS, Float32
from ...model.network import SparseMLP
from ...model.optimizer import Optimizer
from ...model.workspace import Gradients
from ..options import ParallelOptions
from ..shared.slots import Slot
from ..shared.weights import SharedTopology, SharedWeights
from .deal import epochs_of


class Updater:
    """Updates the shared weights by gradients, one at a time whoever does it.

    The topology counts versions and samples; `workers` and `rows` are those of the training.
    """

    def __init__(
        self,
        topology: SharedTopology,
        weights: SharedWeights,
        config: TrainingConfig,
        options: ParallelOptions,
        workers: int,
        rows: int,
    ) -> None:
        self._topology, self._weights = topology, weights
        self._options, self._workers, self._rows = options, workers, rows
        self._config, self._rates = config, config.rates()

    def _next_update(self, staleness: int) -> tuple[Optimizer, float]:
        """Return optimizer and learning rate of the next update."""
        progress = epochs_of(self._topology.samples, self._rows)
        factor = self._rates.factor(progress)
        rate = self._config.learning_rate * factor
        rate *= self._options.rate_factor(progress, staleness, self._workers)
        return self._config.optimizer_at(factor), rate

    def update(
        self,
        network: SparseMLP,
        gradients: Gradients,
        samples: int,
        *,
        version: int | None = None,
        snapshot: Sequence[Float32] | None = None,
        slot: Slot | None = None,
        limit: float = math.inf,
    ) -> int | None:
        """Update the weights by a gradient of the present topology; return its staleness.

        It was computed on so many samples, and on a version of the weights, by default the present
        one; their snapshot is for the compensation of the delay, which changes `gradients`. A slot
        that has the gradient takes the weights after the update with it. After `limit` samples the
        epoch is over: nothing is done, and None returned.
        """
        topology = self._topology
        with self._weights.writing():
            if topology.samples >= limit:
                return None
            staleness = 0 if version is None else topology.version - version
            if snapshot is not None and self._options.delay_compensation > 0:
                self._compensate(gradients, snapshot)
            how = self._next_update(staleness)
            network.update_(gradients, *how, both_orders=slot is not None)
            topology.version += 1
            topology.samples += samples
            if slot is not None:
                slot.renew(self._weights)
        return staleness

    def _compensate(self, gradients: Gradients, snapshot: Sequence[Float32]) -> None:
        """Add λ·g²·(w - w_then) to the gradients, in place."""
        strength = np.float32(self._options.delay_compensation)
        now = self._weights.snapshot(self._topology.connections)
        flat = [pair for arrays in gradients.by_layer for pair in arrays.items()]
        for (name, gradient), weights, then in zip(flat, now, snapshot, strict=True):
            if PARAMETERS[name].is_trained:
                gradient += strength * gradient * gradient * (weights - then)
