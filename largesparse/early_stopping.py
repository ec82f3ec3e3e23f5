"""Early stopping on a validation part, with the best weights restored."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .history import EpochRecord, History
from .layer import SparseLayer
from .network import SparseMLP, layer_settings


@dataclass(frozen=True)
class Snapshot:
    """The layers of a network as they were after an epoch, without velocities."""

    layers: list[SparseLayer]

    @classmethod
    def of(cls, network: SparseMLP) -> Snapshot:
        """Copy the weights; topologies are never changed in place, and are shared."""
        layers = []
        for k, layer in enumerate(network.layers):
            weights = layer.values.copy(), layer.bias.copy()
            settings = layer_settings(network.config, k) | {"dead": layer.dead}
            if layer.srelu is not None:
                settings["srelu"] = layer.srelu.copy()
            layers.append(SparseLayer(layer.number, layer.topology, *weights, **settings))
        return cls(layers)

    def restore_(self, network: SparseMLP) -> None:
        """Give the network the weights of the snapshot, with zero velocities."""
        network.layers[:] = self.layers


class EarlyStopping:
    """Keeps the weights of the best validation accuracy, and says when to stop.

    Parameters
    ----------
    patience : int or None
        Epochs without an improvement before stopping; None never stops.
    """

    def __init__(self, patience: int | None) -> None:
        self.patience = patience
        self.best: Snapshot | None = None
        self._best_accuracy = -math.inf
        self._best_epoch = 0

    def resume(self, history: History, best: Snapshot) -> None:
        """Go on after the epochs of a history."""
        self.best = best
        for record in history.epochs[1:]:
            self._improves(record)

    def update(self, network: SparseMLP, record: EpochRecord) -> bool:
        """Look at an epoch; return whether to stop."""
        if self._improves(record):
            self.best = Snapshot.of(network)
        return self.is_over(record.epoch)

    def is_over(self, epoch: int) -> bool:
        """Return whether the patience is exhausted after an epoch."""
        return self.patience is not None and epoch - self._best_epoch >= self.patience

    def _improves(self, record: EpochRecord) -> bool:
        accuracy = record.validation_accuracy
        if accuracy is None or accuracy <= self._best_accuracy:
            return False
        self._best_accuracy, self._best_epoch = accuracy, record.epoch
        return True
