"""Early stopping on a validation part, with the best weights restored."""

from __future__ import annotations

from dataclasses import dataclass

from .history import EpochRecord, History
from .layer import LayerArrays
from .network import SparseMLP


@dataclass(frozen=True)
class Snapshot:
    """The weights of a network after an epoch, which further training does not change."""

    layers: list[LayerArrays]  # see `SparseLayer.snapshot`
    epoch: int
    score: float  # on the validation part

    @classmethod
    def of(cls, network: SparseMLP, epoch: int, score: float) -> Snapshot:
        """Copy the weights."""
        return cls([layer.snapshot() for layer in network.layers], epoch, score)

    def restore_(self, network: SparseMLP) -> None:
        """Give the network a copy of the weights, with zero velocities."""
        for layer, arrays in zip(network.layers, self.layers, strict=True):
            layer.restore_(arrays)


class EarlyStopping:
    """Keeps the weights of the best validation score, and says when to stop.

    Parameters
    ----------
    patience : int or None
        Epochs without an improvement before stopping; None never stops.
    best : Snapshot, optional
        Of the epochs so far.
    since : int
        Epoch from which the patience counts, where the best one was not later.
    """

    def __init__(self, patience: int | None, best: Snapshot | None = None, since: int = 0) -> None:
        self.patience = patience
        self.best = best
        self.since = since

    def update(self, network: SparseMLP, record: EpochRecord) -> bool:
        """Look at an epoch; return whether to stop."""
        score = record.validation_accuracy
        if score is not None and (self.best is None or score > self.best.score):
            self.best = Snapshot.of(network, record.epoch, score)
        return self.is_over(record.epoch)

    def is_over(self, epoch: int) -> bool:
        """Return whether the patience is exhausted after an epoch."""
        best = 0 if self.best is None else self.best.epoch
        return self.patience is not None and epoch - max(best, self.since) >= self.patience


def best_record(history: History) -> EpochRecord:
    """Return the first record of the best validation score."""
    scored = [record for record in history.epochs[1:] if record.validation_accuracy is not None]
    return max(scored, key=lambda record: record.validation_accuracy or 0.0)
