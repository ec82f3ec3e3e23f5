"""How far a training is: all that goes on from a checkpoint, the network and its settings apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..model.config import TrainingConfig
from ..model.layer import LayerArrays
from ..model.network import SparseMLP
from .history import EpochPart, EpochRecord, History


@dataclass(frozen=True)
class Snapshot:
    """The weights of a network after an epoch, which further training does not change."""

    layers: list[LayerArrays]  # see `SparseLayer.snapshot`
    epoch: int
    score: float  # on the validation part

    def restore_(self, network: SparseMLP) -> None:
        """Give the network a copy of the weights, with moments that begin."""
        for layer, arrays in zip(network.layers, self.layers, strict=True):
            layer.restore_(arrays)


@dataclass
class TrainingState:
    """How far a training is. What is drawn follows from seed, epoch and step: it has no state."""

    epoch: int = 0  # complete ones
    step: int = 0  # updates made
    part: EpochPart | None = None  # of the next epoch, where it has begun
    history: History = field(default_factory=History)
    rows: int | None = None  # of the data set, the validation part included
    parallel: dict[str, Any] | None = None  # what a training by several ranks needs beside
    notes: dict[str, Any] = field(default_factory=dict)  # of the program that trains: JSON's types
    best: Snapshot | None = None  # weights of the epoch with the best validation score
    average_since: int = 0  # updates before the average of the weights began
    patience_since: int = 0  # epoch from which the patience counts at the earliest
    epochs_before: int = 0  # by other trainers, so that no epoch's draws are drawn twice; not saved
    folder: Path | None = None  # the checkpoint that it was read from or saved to
    saved_step: int = -1  # of the last checkpoint that this process has written
    is_unsaved: bool = False  # whether the last one could not be written

    @property
    def samples(self) -> int:
        """Samples of the next epoch that have been trained on."""
        return 0 if self.part is None else self.part.samples

    @property
    def present_epoch(self) -> int:
        """Number of the epoch that has begun, or of the last one."""
        return self.epoch + (self.part is not None)

    def begin_part_(self) -> EpochPart:
        """Return the part of the next epoch, which begins now if it has not."""
        self.part = self.part or EpochPart()
        return self.part

    def watch_(self, network: SparseMLP, record: EpochRecord) -> None:
        """Keep the network's weights if the epoch has the best validation score so far."""
        score = record.validation_accuracy
        if score is not None and (self.best is None or score > self.best.score):
            layers = [layer.snapshot() for layer in network.layers]
            self.best = Snapshot(layers, record.epoch, score)

    def watch_anew_(self, before: TrainingConfig, now: TrainingConfig) -> None:
        """Let early stopping begin here, if its settings have become others."""
        if (now.validation_fraction, now.seed) != (before.validation_fraction, before.seed):
            self.best = None  # its score is that of other rows
            self.patience_since = self.epoch
        elif before.patience is None and now.patience is not None:
            self.patience_since = self.epoch

    def is_over(self, config: TrainingConfig, since: int = 0) -> bool:
        """Return whether nothing is left to train: all epochs, or the patience, are at an end.

        The patience counts from the epoch `since` at the earliest.
        """
        if self.part is not None:
            return False
        best = 0 if self.best is None else self.best.epoch
        waited = self.epoch - max(best, self.patience_since, since)
        patience = config.patience if config.validation_fraction > 0 else None
        return self.epoch >= config.epochs or (patience is not None and waited >= patience)

    def as_dict(self) -> dict[str, Any]:
        """Return what a manifest has of it."""
        best = self.best
        return {
            "epoch": self.epoch,
            "part": None if self.part is None else dataclasses.asdict(self.part),
            "step": self.step,
            "history": self.history.epochs,
            "rows": self.rows,
            "parallel": self.parallel,
            "notes": self.notes,
            "best": None if best is None else {"epoch": best.epoch, "score": best.score},
            "patience_since": self.patience_since,
            "average_since": self.average_since,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any], best: Sequence[LayerArrays] | None) -> TrainingState:
        """Return the state that `as_dict` was given, if it can be; `best` has the best weights."""
        part = values.get("part")
        state = cls(
            epoch=int(values["epoch"]),
            step=int(values["step"]),
            part=None if part is None else EpochPart.from_dict(part),
            history=History.from_list(values["history"]),
            rows=None if values["rows"] is None else int(values["rows"]),
            parallel=values.get("parallel"),
            notes=dict(values.get("notes") or {}),
            patience_since=int(values.get("patience_since", 0)),
            average_since=int(values.get("average_since", 0)),
        )
        if best is not None:
            found = values.get("best")
            if found is None:  # older checkpoints leave it to the history
                watched = [r for r in state.history.epochs[1:] if r.validation_accuracy is not None]
                record = max(watched, key=lambda record: record.validation_accuracy or 0.0)
                found = {"epoch": record.epoch, "score": record.validation_accuracy}
            state.best = Snapshot(list(best), int(found["epoch"]), float(found["score"]))
        return state
