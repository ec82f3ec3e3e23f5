"""What `verbose` says where a progress bar cannot be shown: in logs and notebooks."""

from __future__ import annotations

import sys
import time

from ..machine.sizes import show_seconds
from ..training.history import EpochRecord
from ..training.trainer import Callback, Trainer

LINES, SECONDS = 10, 30  # of a training, about; and the longest silence that epochs allow


class EpochLines:
    """A callback that prints a line on standard error for every tenth of the epochs."""

    def __init__(self, ends: Callback | None = None) -> None:
        self.ends = ends  # says whether the training ends before its last epoch
        self.begun = self.told = time.perf_counter()

    def __call__(self, trainer: Trainer, record: EpochRecord) -> None:
        """Print the loss, the validation score and the time, where a line is due."""
        epochs, now = trainer.config.epochs, time.perf_counter()
        due = record.epoch * LINES // epochs > (record.epoch - 1) * LINES // epochs
        over = trainer.is_over or (self.ends is not None and self.ends(trainer, record))
        if not (due or over or now - self.told >= SECONDS):
            return
        self.told = now
        loss = record.running_loss if record.loss is None else record.loss
        line = f"epoch {record.epoch} of {epochs}: loss {loss:.4f}"
        if record.validation_accuracy is not None:
            line += f", validation score {record.validation_accuracy:.4f}"
        print(f"{line}, {show_seconds(now - self.begun)}", file=sys.stderr, flush=True)
