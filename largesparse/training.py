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

from .checkpoint import save_checkpoint
from .config import TrainingConfig
from .early_stopping import EarlyStopping, Snapshot
from .environment import expand_user
from .errors import CheckpointError, DataError, ParameterError
from .growth import Walk, evolve_layers
from .history import EpochPart, EpochRecord, History
from .importance import active_neurons, prune_neurons
from .layer import SparseLayer
from .network import SparseMLP
from .randomness import stream
from .saving import check_checkpoint_folder, check_training, save_elsewhere
from .stepping import Stepper, one_thread_at_a_time
from .stopping import Stop, StopRequest, saved_in, stop_request, stopped
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
    part : EpochPart or None
        The next epoch, where it has begun.
    history : History
    rows : int or None
        Rows of the data set, the validation part included.
    best : Snapshot or None
        Weights of the epoch with the best validation score, where there is a validation part.
    patience_since : int
        Epoch from which the patience counts at the earliest: that at which it was set.
    folder : Path or None
        The checkpoint that it was read from or saved to.
    parallel : dict or None
        What a parallel training needs beside, to go on from a checkpoint.
    notes : dict
        What the program that trains wants to find in its checkpoints again, as JSON can hold it.
    epochs_before : int
        Epochs that other trainers have trained the network for: what is drawn for an epoch is by
        its number among all, and so not drawn twice.
    """

    def __init__(
        self,
        network: SparseMLP,
        config: TrainingConfig | None = None,
        *,
        workspace: Workspace | None = None,
    ) -> None:
        super().__init__(network, config, workspace=workspace)
        self.part: EpochPart | None = None
        self.history = History()
        self.rows: int | None = None
        self.best: Snapshot | None = None
        self.patience_since = 0
        self.folder: Path | None = None
        self.parallel: dict[str, Any] | None = None
        self.notes: dict[str, Any] = {}
        self.epochs_before = 0
        self._saved_step = -1  # of the last checkpoint of this process
        self._is_unsaved = False  # whether the last one failed

    @one_thread_at_a_time
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
            rng = stream(config.seed, "growth", self.epochs_before + self.epoch)
            rows = np.sort(rng.choice(data.train_rows, size, replace=False))
            run = partial(self.gradient, data.X, data.y, rows, data.weights, plain=True)
            walk = Walk(lambda visit: run(visit=visit), config.growth_candidates)

        def rng_of(layer: SparseLayer) -> np.random.Generator:
            return stream(config.seed, "evolution", self.epochs_before + self.epoch, layer.number)

        with self.backend.threads(self.threads):
            layers = self.network.layers[:-1]
            return evolve_layers(layers, zeta, rng_of, walk, keep_maps=keep_maps)

    @one_thread_at_a_time
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

        Where there is a validation part, the network then has the weights of the best epoch, with
        zero velocities. They go on from there if `fit` is called again.

        Parameters
        ----------
        X : (n_samples, n_features) dense or CSR
        y : (n_samples,) or (n_samples, n_targets)
            Class labels, or numbers where the loss is the mean squared error.
        sample_weight : (n_samples,), optional
            What each sample counts in the loss and in the standardisation, 0 or more; scaled to
            mean 1. Rows of weight 0 are as if they were not there.
        test : (X, y), optional
            Rows whose score is recorded after every epoch.
        augment : callable, optional
            augment(part, rows, epoch) returns the rows of a mini-batch, float32 (batch,
            n_features), changed as the epoch asks: see `augmentation.ImageAugmenter`.
        callbacks : iterable of callables
            Each is called as callback(trainer, record) after every epoch; one that returns True
            ends the training.
        checkpoint : path, optional
            Folder that receives a checkpoint after every epoch. It may have one already only
            where this training goes on from it; what else is in it stays. SIGTERM and Ctrl-C
            then end the training after the present mini-batch, with a checkpoint that goes on
            from there.
        progress : bool, optional
            Whether to show a progress bar; by default where standard error is a terminal.

        Raises
        ------
        DataError, ParameterError
            Where the data cannot be used.
        CheckpointError
            Before training, where the checkpoints cannot be written, or would replace another
            training's.
        NumericalError
            Where the loss is not finite.
        SystemExit, KeyboardInterrupt
            After SIGTERM (with status 143) and Ctrl-C.
        """
        if checkpoint is not None:
            check_training(self, checkpoint)
        data = prepare(self.network, self.config, X, y, sample_weight=sample_weight, test=test)
        self.check_rows(data)
        self.parallel = None
        stopping = self.early_stopping()
        hide = None if progress is None else not progress
        total = self.config.epochs * len(data.train_rows)
        done = self.epoch * len(data.train_rows) + (self.part.samples if self.part else 0)
        shown = tqdm(total=total, initial=done, unit=" samples", disable=hide, desc="training")
        with stop_request(checkpoint is not None) as request:
            try:
                with shown as bar:
                    self._run(data, stopping, request, bar, augment, checkpoint, list(callbacks))
            except Stop:
                assert checkpoint is not None
                stopped(request, self.save_stopped(checkpoint, len(data.train_rows)))
        if checkpoint is not None:
            self.rescue(checkpoint)
        self.restore_best()
        return self.history

    def early_stopping(self) -> EarlyStopping | None:
        """Return what watches the validation part, as it is after the epochs so far."""
        if self.config.validation_fraction == 0:
            return None
        return EarlyStopping(self.config.patience, self.best, self.patience_since)

    @property
    def is_over(self) -> bool:
        """Whether `fit` would train no more."""
        stopping = self.early_stopping()
        stops = stopping is not None and stopping.is_over(self.epoch)
        return self.part is None and (stops or self.epoch >= self.config.epochs)

    def restore_best(self) -> None:
        """Give the network the weights of the best epoch, where one has been watched."""
        if self.best is not None:
            self.best.restore_(self.network)

    def _run(
        self,
        data: TrainingData,
        stopping: EarlyStopping | None,
        request: StopRequest,
        bar: tqdm,
        augment: Augment | None,
        checkpoint: str | Path | None,
        callbacks: Sequence[Callback],
    ) -> None:
        """Train and record epoch after epoch, to the end or until something stops it."""
        if not self.history.epochs:
            self._record(data, request)
        elif self.part is None and not self.is_over:
            self.evolve_if_due(data, keep_maps=False)  # the last epoch before it was prolonged
        stop = self.is_over
        while self.epoch < self.config.epochs and not stop:
            done = self.part.samples if self.part else 0
            number = self.epochs_before + self.epoch
            batches = epoch_batches(data.train_rows, self.config, number, done)
            self.run_epoch(data, batches, bar, augment, request)
            record = self._record(data, request)
            bar.set_postfix(loss=f"{record.loss:.4f}", test=record.test_accuracy)
            if stopping:
                stop = stopping.update(self.network, record)
                self.best = stopping.best
            self.evolve_if_due(data, keep_maps=False)
            if checkpoint is not None:
                self.save(checkpoint)
            stop = any([bool(callback(self, record)) for callback in callbacks]) or stop
            request.check()

    def check_rows(self, data: TrainingData) -> None:
        """Verify that a training that is resumed has as many rows as before."""
        if self.rows not in (None, len(data.y)):
            raise DataError(
                f"The training to resume had {self.rows} rows of data, and these are "
                f"{len(data.y)}. Pass the same data."
            )
        self.rows = len(data.y)

    def run_epoch(
        self,
        data: TrainingData,
        batches: Sequence[Rows],
        bar: Any,
        augment: Augment | None = None,
        request: StopRequest | None = None,
    ) -> None:
        """Train on the mini-batches of an epoch, or what is left of them, and count in `part`.

        Parameters
        ----------
        data : TrainingData
        batches : sequence of int64 (batch,)
            The rows of every mini-batch that is left.
        bar : tqdm
            Counts the samples.
        augment : callable, optional
            As in `fit`.
        request : StopRequest, optional
            Looked at after every mini-batch.
        """
        part = self.part = self.part or EpochPart()
        rows = part.samples + sum(map(len, batches))
        started = time.perf_counter() - part.seconds
        for batch in batches:
            epoch = self.epochs_before + self.epoch
            X, y, weights, chosen = augmented(data, batch, epoch, augment)
            progress = self.epoch + part.samples / rows
            loss = self.step(X, y, chosen, progress=progress, sample_weight=weights)
            part.loss += len(batch) * loss
            part.samples += len(batch)
            part.seconds = time.perf_counter() - started
            bar.update(len(batch))
            if request is not None:
                request.check()

    def complete_epoch(self, **measured: Any) -> EpochRecord:
        """Count the epoch that `part` is as complete, and append a record of it to the history.

        Without `part` the record is that of the state before training.
        """
        if self.part is not None:
            measured |= {"running_loss": self.part.mean_loss, "epoch_s": self.part.seconds}
            self.epoch += 1
            self.part = None
        record = EpochRecord(self.epoch, **measured)
        record.nnz = self.network.layer_connections
        if record.active_neurons is None:
            with self.backend.threads(self.threads):
                record.active_neurons = sum(active_neurons(self.network))
        self.history.epochs.append(record)
        return record

    def _record(self, data: TrainingData, request: StopRequest) -> EpochRecord:
        """Evaluate, and complete the epoch."""
        with request.at_once():
            measured = self._measure(data)
        return self.complete_epoch(**measured)

    def _measure(self, data: TrainingData) -> dict[str, float]:
        """Return loss and scores of the present weights, by their names in a record."""
        measured_epoch = self.epoch + (self.part is not None)
        loss, accuracy = self.evaluate(data.X, data.y, data.loss_rows, data.weights)
        self.check_finite(loss, self.step_count, measured_epoch)
        measured = {"loss": loss, "train_accuracy": accuracy}
        if len(data.validation_rows):
            watched = data.X, data.y, data.validation_rows, data.weights
            loss, measured["validation_accuracy"] = self.evaluate(*watched)
            self.check_finite(loss, self.step_count, measured_epoch)
        if data.test is not None:
            started = time.perf_counter()
            measured["test_accuracy"] = self.evaluate(*data.test)[1]
            measured["inference_s"] = time.perf_counter() - started
        return measured

    def save(self, folder: str | Path) -> bool:
        """Write a checkpoint; where that fails, say so and go on with the training."""
        place = expand_user(folder).resolve()
        try:
            if place != self.folder:  # another training may have begun there since this one did
                check_checkpoint_folder(place, going_on=self.folder)
            save_checkpoint(self, place)
        except CheckpointError as error:
            logger.error("%s The checkpoint before, if there is one, is intact.", error)
            self._is_unsaved = True
            return False
        self._saved_step, self._is_unsaved = self.step_count, False
        self.folder = expand_user(folder).resolve()
        return True

    def rescue(self, folder: str | Path) -> Path | None:
        """Save a training that ends now elsewhere, if its last checkpoint failed; return where."""
        if not self._is_unsaved:
            return None
        self._is_unsaved = False
        place = save_elsewhere(lambda place: save_checkpoint(self, place), folder)
        if place is not None:
            logger.error("The training is %s", saved_in(place))
        return place

    def save_stopped(self, folder: str | Path, rows: int) -> str:
        """Save a training that is stopped now, and return what there is to say of it."""
        samples = 0 if self.part is None else self.part.samples
        place = f"after epoch {self.epoch}"
        if samples:
            place = f"in epoch {self.epoch + 1}, after {samples:,} of {rows:,} samples"
        complete = self.part is None and self._saved_step == self.step_count
        if complete or self.save(folder):
            return f"{place}; {saved_in(folder)}"
        if (other := self.rescue(folder)) is not None:
            return f"{place}; {saved_in(other)}"
        return f"{place}, and not saved."

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
