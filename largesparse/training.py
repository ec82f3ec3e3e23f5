"""The sequential trainer: momentum SGD by mini-batches, SET evolution between epochs."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from .activations import TRAINED
from .backends import get_backend
from .batches import load_batch
from .checkpoint import check_folder, save_checkpoint
from .config import TrainingConfig
from .early_stopping import EarlyStopping, Snapshot
from .errors import CheckpointError, DataError, NumericalError, ParameterError
from .growth import Walk, evolve_layers
from .history import EpochRecord, History
from .importance import prune_neurons
from .layer import SparseLayer
from .losses import LOSSES, ScoreSums
from .network import SparseMLP, Visit, dropout_key
from .randomness import stream
from .threads import resolve_threads
from .training_data import Augment, Rows, TrainingData, augmented, epoch_batches, prepare
from .whole_step import WholeStep
from .workspace import Workspace

logger = logging.getLogger(__name__)

Callback = Callable[["Trainer", EpochRecord], bool | None]


class Trainer:
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
        self.network = network
        self.config = config or TrainingConfig()
        self.backend = get_backend(self.config.backend)
        self.threads = resolve_threads(self.config.threads, "a training")
        self.epoch = 0
        self.step_count = 0
        self.history = History()
        self.rows: int | None = None
        self.best: Snapshot | None = None
        self.parallel: dict[str, Any] | None = None
        self._loss = LOSSES[network.config.loss].function
        self._optimizer = self.config.optimizer()
        self._rates = self.config.rates()
        self._workspace = workspace
        self._compiled_step: WholeStep | None = None

    @property
    def workspace(self) -> Workspace:
        """The buffers of a step; allocated when they are first needed."""
        if self._workspace is None:
            self._workspace = Workspace(self.network.layers, self.micro_batch)
        return self._workspace

    @property
    def micro_batch(self) -> int:
        """Samples computed at once."""
        batch_size = self.config.batch_size
        return min(self.config.micro_batch or batch_size, batch_size)

    @property
    def _has_whole_step(self) -> bool:
        """Whether a step can be one compiled call."""
        return self.backend.has_whole_step and self.network.config.activation not in TRAINED

    def step(
        self,
        X: Any,
        y: NDArray[Any],
        rows: NDArray[np.int64] | None = None,
        *,
        progress: float | None = None,
        sample_weight: NDArray[np.float32] | None = None,
    ) -> float:
        """Make one update from a mini-batch, and return its mean loss (with dropout).

        Parameters
        ----------
        X : (n_samples, n_features) dense or CSR
        y : int32 (n_samples,) or float32 (n_samples, n_targets)
            Class indices, or targets where the loss is the mean squared error.
        rows : int64 (batch,), optional
            The rows of the mini-batch; all of X by default.
        progress : float, optional
            Epochs trained so far, for the schedule; by default the epochs completed.
        sample_weight : float32 (n_samples,), optional
            Factors of the samples' losses; 1 by default.

        Raises
        ------
        NumericalError
            Where the loss is not finite. The weights are those before the step.
        """
        rows = np.arange(len(y)) if rows is None else rows
        factor = self._rates.factor(self.epoch if progress is None else progress)
        rate = self.config.learning_rate * factor
        with self.backend.threads(self.threads):
            if self._has_whole_step and len(rows) <= self.workspace.micro_batch:
                loss = self._whole_step(X, y, rows, rate, sample_weight)
            else:
                loss = self.gradient(X, y, rows, sample_weight)
                self.network.update_(self.workspace, self._optimizer, rate, self.backend)
        self.step_count += 1
        return loss

    def gradient(
        self,
        X: Any,
        y: NDArray[Any],
        rows: NDArray[np.int64],
        sample_weight: NDArray[np.float32] | None = None,
        *,
        plain: bool = False,
        visit: Visit | None = None,
        first_row: int = 0,
        joined: int | None = None,
    ) -> float:
        """Compute the mini-batch's gradient, by micro-batches, into the workspace.

        Parameters
        ----------
        X, y, rows, sample_weight
            As in `step`.
        plain : bool
            Without dropout and centring.
        visit : callable, optional
            As in `SparseMLP.backward`.
        first_row, joined : int, optional
            Where the rows are a part of a mini-batch of `joined` rows that begins with its row
            `first_row`: the gradient is this part of the mini-batch's, and is not centred yet.

        Returns
        -------
        loss : float
            Mean over the rows, with dropout.
        """
        config, workspace, backend = self.config, self.workspace, self.backend
        total = 0.0
        workspace.fit(self.network.layer_connections)  # neurons may have been pruned
        for start in range(0, len(rows), workspace.micro_batch):
            part = rows[start : start + workspace.micro_batch]
            batch = len(part)
            load_batch(X, part, self.network.preprocessing, out=workspace.inputs(batch))
            rate = 0.0 if plain else config.dropout
            dropout = dropout_key(rate, config.seed, self.step_count, first_row + start)
            logits = self.network.forward(workspace, batch, backend, training=True, dropout=dropout)
            weights = None if sample_weight is None else sample_weight[part]
            loss, delta = self._loss(logits, y[part], joined or len(rows), weights)
            self.check_finite(loss, self.step_count + 1, self.epoch + 1)
            total += loss
            options: dict[str, Any] = {"dropout": dropout, "accumulate": start > 0}
            self.network.backward(workspace, delta, backend, visit=visit, **options)
        if not plain and joined is None:
            self.network.finish_gradient(workspace, len(rows), backend)
        return total / len(rows)

    def _whole_step(
        self,
        X: Any,
        y: NDArray[Any],
        rows: NDArray[np.int64],
        rate: float,
        sample_weight: NDArray[np.float32] | None,
    ) -> float:
        """Compute the gradient and update, in one compiled call."""
        step = self._compiled_step
        if step is None or not step.fits(self.network, self.workspace, len(rows)):
            self.workspace.fit(self.network.layer_connections)  # neurons may have been pruned
            step = self._compiled_step = WholeStep(self.network, self.workspace, len(rows))
        load_batch(X, rows, self.network.preprocessing, out=step.inputs)
        dropout = dropout_key(self.config.dropout, self.config.seed, self.step_count, 0)
        weights = None if sample_weight is None else sample_weight[rows]
        loss = step.run(y[rows], weights, self._optimizer, rate, dropout) / len(rows)
        self.check_finite(loss, self.step_count + 1, self.epoch + 1)
        return loss

    def check_finite(self, loss: float, step: int, epoch: int) -> None:
        if not math.isfinite(loss):
            raise NumericalError(
                f"The loss became {loss} at step {step} (epoch {epoch}). "
                f"Lower 'learning_rate' (now {self.config.learning_rate}), or check the inputs "
                "for extreme values."
            )

    def evaluate(
        self,
        X: Any,
        y: NDArray[Any],
        rows: NDArray[np.int64] | None = None,
        sample_weight: NDArray[np.float32] | None = None,
    ) -> tuple[float, float]:
        """Return mean loss and score (accuracy or R²) over rows of a data set, without dropout."""
        rows = np.arange(len(y)) if rows is None else rows
        loss, sums = self.sum_scores(X, y, rows, sample_weight)
        return loss / max(sums.weight, 1e-300), sums.score()

    def sum_scores(
        self,
        X: Any,
        y: NDArray[Any],
        rows: NDArray[np.int64],
        sample_weight: NDArray[np.float32] | None = None,
    ) -> tuple[float, ScoreSums]:
        """Return the loss summed over rows of a data set, and the sums behind their score."""
        loss, sums = 0.0, ScoreSums()
        with self.backend.threads(self.threads):
            for start in range(0, len(rows), self.workspace.micro_batch):
                part = rows[start : start + self.workspace.micro_batch]
                inputs = self.workspace.inputs(len(part))
                load_batch(X, part, self.network.preprocessing, out=inputs)
                outputs = self.network.forward(self.workspace, len(part), self.backend)
                weights = None if sample_weight is None else sample_weight[part]
                loss += self._loss(outputs, y[part], None, weights)[0]
                sums.add(outputs, y[part], weights)
        return loss, sums

    def evolve(self, data: TrainingData | None = None) -> list[NDArray[np.int32]]:
        """Evolve every layer but the output one; return their slot maps.

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
            return evolve_layers(self.network.layers[:-1], zeta, rng_of, walk)

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
            self.evolve_if_due(data)  # the last epoch of a training that is prolonged now
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
                self.evolve_if_due(data)
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
        record.nnz = [layer.nnz for layer in self.network.layers]
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

    def evolve_if_due(self, data: TrainingData) -> list[list[NDArray[np.int32]]]:
        """Prune and evolve after an epoch, unless it is the last one or that has been done.

        Returns
        -------
        list of slot maps
            The slot maps of the layers, for each of the two that was done.
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
            maps.append(self.evolve(data))
            record.evolution_s = time.perf_counter() - started
        return maps
