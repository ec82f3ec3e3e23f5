"""The sequential trainer: momentum SGD by mini-batches, SET evolution between epochs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from .checkpoint import check_folder, save_checkpoint
from .config import TrainingConfig
from .early_stopping import EarlyStopping, Snapshot
from .errors import CheckpointError, DataError, ParameterError
from .growth import Walk, evolve_layers
from .history import EpochRecord, History
from .importance import prune_neurons
from .layer import SparseLayer
from .network import SparseMLP
from .randomness import stream
from .reachability import active_neurons
from .stepping import Stepper
from .training_data import Augment, Rows, TrainingData, augmented, epoch_batches, prepare
from .workspace import Workspace

logger = logging.getLogger(__name__)

Callback = Callable[["Trainer", EpochRecord], bool | None]


class Trainer(Stepper):
    """Trains a network in this process.

    Parameters
    ----------
    network : SparseMLP
        Changed in place.
    config : TrainingConfig
    workspace : Workspace, optional
        The buffers of a step; by default made when they are first needed.

    Attributes
    ----------
    epoch, step_count : int
        Epochs completed, and updates made.
    history : History
    rows : int or None
        Rows of the data set, the validation part included.
    best : Snapshot or None
        Weights of the epoch with the best validation accuracy, where there is a validation part.
    folder : Path or None
        The checkpoint that it was read from.
    parallel : dict or None
        What a parallel training needs beside, to go on from a checkpoint.
    """

    def __init__(
        self,
        network: SparseMLP,
        config: TrainingConfig | None = None,
        *,
        workspace: Workspace | None = None,
    ) -> None:
        super().__init__(network, config, workspace=workspace)
        self.history = History()
        self.rows: int | None = None
        self.best: Snapshot | None = None
        self.folder: Path | None = None
        self.parallel: dict[str, Any] | None = None

    def evolve(
        self, data: TrainingData | None = None, *, keep_maps: bool = True
    ) -> list[NDArray[np.int32]]:
        """Evolve every layer but the output one; return their slot maps, if they are to be kept.

        Where connections grow by the gradient, `data` has the rows of which it takes a
        micro-batch, without dropout.
        """
        config = self.config
        evolution = max(0, self.epoch - 1) // config.evolution_interval
        zeta = config.zeta * config.zeta_decay**evolution
        walk = None
        if config.growth == "gradient":
            if data is None:
                raise ParameterError("Growth by the gradient needs 'data': see `prepare`.")
            size = min(self.workspace.micro_batch, len(data.train_rows))
            rng = stream(config.seed, "growth", self.epoch)
            rows = np.sort(rng.choice(data.train_rows, size, replace=False))
            run = partial(self.gradient, data.X, data.y, rows, data.weights, plain=True)
            walk = Walk(lambda visit: run(visit=visit), config.growth_candidates, self.backend)

        def rng_of(layer: SparseLayer) -> np.random.Generator:
            return stream(config.seed, "evolution", self.epoch, layer.number)

        with self.backend.threads(self.threads):
            layers = self.network.layers[:-1]
            return evolve_layers(layers, zeta, rng_of, walk, keep_maps=keep_maps)

    def prune(self) -> list[NDArray[np.int32]]:
        """Prune neurons by importance, as configured; return the slot maps of all layers."""
        with self.backend.threads(self.threads):
            return prune_neurons(self.network, self.config.pruning_percentile)

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        sample_weight: Any = None,
        test: tuple[Any, Any] | None = None,
        augment: Augment | None = None,
        callbacks: Iterable[Callback] = (),
        checkpoint: str | Path | None = None,
        progress: bool | None = None,
    ) -> History:
        """Train until `config.epochs` epochs are complete, and return the history.

        Parameters
        ----------
        X : (n_samples, n_features) dense or CSR
        y : (n_samples,) or (n_samples, n_targets)
            Class labels, or numbers where the loss is the mean squared error.
        sample_weight : (n_samples,), optional
            What each sample counts in the loss, 0 or more; scaled to mean 1.
        test : (X, y), optional
            Rows whose score is recorded after every epoch.
        augment : callable, optional
            augment(part, rows, epoch) returns the rows of a mini-batch, float32 (batch,
            n_features), changed as the epoch asks: see `augmentation.ImageAugmenter`.
        callbacks : iterable of callables
            Each is called as callback(trainer, record) after every epoch; one that returns True
            ends the training.
        checkpoint : path, optional
            Folder that receives a checkpoint after every epoch.
        progress : bool, optional
            Whether to show a progress bar; by default where standard error is a terminal.

        Raises
        ------
        DataError, ParameterError
            Where the data cannot be used.
        NumericalError
            Where the loss is not finite.
        """
        if checkpoint is not None:
            check_folder(checkpoint)
        data = prepare(self.network, self.config, X, y, sample_weight=sample_weight, test=test)
        self.check_rows(data)
        self.parallel = None
        stopping = EarlyStopping(self.config.patience) if len(data.validation_rows) else None
        if stopping and self.best is not None:
            stopping.resume(self.history, self.best)
        if not self.history.epochs:
            self._record(data)
        elif self.epoch < self.config.epochs:
            self.evolve_if_due(
                data, keep_maps=False
            )  # the last epoch of a training that is prolonged now
        total = self.config.epochs * len(data.train_rows)
        done = self.epoch * len(data.train_rows)
        hide = None if progress is None else not progress
        stop = stopping is not None and stopping.is_over(self.epoch)
        with tqdm(total=total, initial=done, unit=" samples", disable=hide, desc="training") as bar:
            while self.epoch < self.config.epochs and not stop:
                started = time.perf_counter()
                batches = epoch_batches(data.train_rows, self.config, self.epoch)
                running_loss = self.run_epoch(data, batches, bar, augment)
                epoch_s = time.perf_counter() - started
                record = self._record(data, running_loss=running_loss, epoch_s=epoch_s)
                bar.set_postfix(loss=f"{record.loss:.4f}", test=record.test_accuracy)
                if stopping:
                    stop = stopping.update(self.network, record)
                    self.best = stopping.best
                self.evolve_if_due(data, keep_maps=False)
                if checkpoint is not None:
                    self._save(checkpoint)
                stop = any([bool(callback(self, record)) for callback in callbacks]) or stop
        if stopping and stopping.best is not None:
            stopping.best.restore_(self.network)
        return self.history

    def check_rows(self, data: TrainingData) -> None:
        """Verify that a training that is resumed has as many rows as before."""
        if self.rows not in (None, len(data.y)):
            raise DataError(
                f"The training to resume had {self.rows} rows of data, and these are "
                f"{len(data.y)}. Pass the same data."
            )
        self.rows = len(data.y)

    def run_epoch(
        self, data: TrainingData, batches: Sequence[Rows], bar: Any, augment: Augment | None = None
    ) -> float:
        """Train on the mini-batches of an epoch; return the mean loss, with dropout.

        Parameters
        ----------
        data : TrainingData
        batches : sequence of int64 (batch,)
            The rows of every mini-batch.
        bar : tqdm
            Counts the samples.
        augment : callable, optional
            As in `fit`.
        """
        rows = sum(map(len, batches))
        total, start = 0.0, 0
        for batch in batches:
            X, y, weights, chosen = augmented(data, batch, self.epoch, augment)
            progress = self.epoch + start / rows
            total += len(batch) * self.step(X, y, chosen, progress=progress, sample_weight=weights)
            start += len(batch)
            bar.update(len(batch))
        self.epoch += 1
        return total / rows

    def _record(
        self, data: TrainingData, running_loss: float | None = None, epoch_s: float | None = None
    ) -> EpochRecord:
        """Evaluate, and append a record to the history."""
        loss, accuracy = self.evaluate(data.X, data.y, data.loss_rows, data.weights)
        self.check_finite(loss, self.step_count, self.epoch)
        record = EpochRecord(self.epoch, loss, accuracy, running_loss=running_loss, epoch_s=epoch_s)
        record.nnz = self.network.layer_connections
        with self.backend.threads(self.threads):
            record.active_neurons = sum(active_neurons(self.network))
        if len(data.validation_rows):
            watched = data.X, data.y, data.validation_rows, data.weights
            record.validation_accuracy = self.evaluate(*watched)[1]
        if data.test is not None:
            started = time.perf_counter()
            record.test_accuracy = self.evaluate(*data.test)[1]
            record.inference_s = time.perf_counter() - started
        self.history.epochs.append(record)
        return record

    def _save(self, folder: str | Path) -> None:
        """Write a checkpoint; where that fails, say so and go on with the training."""
        try:
            save_checkpoint(self, folder)
        except CheckpointError as error:
            logger.error("%s The checkpoint before, if there is one, is intact.", error)

    def evolve_if_due(
        self, data: TrainingData, *, keep_maps: bool = True
    ) -> list[list[NDArray[np.int32]]]:
        """Prune and evolve after an epoch, unless it is the last one or that has been done.

        Returns
        -------
        list of slot maps
            The slot maps of the layers, for each of the two that was done; those of evolution
            are empty unless they are to be kept.
        """
        config, record = self.config, self.history.epochs[-1]
        last = self.epoch >= config.epochs and not config.evolve_last
        start = config.pruning_start
        pruning = start is not None and self.epoch >= max(1, start)
        pruning &= self.epoch % config.pruning_every == 0
        maps = []
        if pruning and not last and record.pruning_s is None:
            started = time.perf_counter()
            maps.append(self.prune())
            record.pruning_s = time.perf_counter() - started
        due = config.zeta > 0 and self.epoch > 0 and self.epoch % config.evolution_interval == 0
        if due and not last and record.evolution_s is None:
            started = time.perf_counter()
            maps.append(self.evolve(data, keep_maps=keep_maps))
            record.evolution_s = time.perf_counter() - started
        return maps
