"""The weights of the epoch with the best validation score."""

from __future__ import annotations

from dataclasses import dataclass

from ..model.layer import LayerArrays
from ..model.network import SparseMLP
from .history import EpochRecord, History


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


def best_record(history: History) -> EpochRecord:
    """Return the first record of the best validation score."""
    scored = [record for record in history.epochs[1:] if record.validation_accuracy is not None]
    return max(scored, key=lambda record: record.validation_accuracy or 0.0)
