"""The sequential trainer: updates by mini-batches, evolution between epochs."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..data.batches import is_sparse
from ..errors import CheckpointError, DataError, NumericalError, ParameterError
from ..machine.environment import expand_user
from ..machine.output import LogLines, is_terminal
from ..machine.signals import Stop, StopRequest, saved_in, stop_request, stopped
from ..model.averages import settle_
from ..model.density import Shrinking, last_evolution, plan_changes
from ..model.evolution import evolve_layers
from ..model.exploration import begin_exploring_, explored_share
from ..model.importance import active_neurons, prune_neurons
from ..model.layer import SparseLayer
from ..model.lazy_updates import LazyUpdates
from ..model.optimizer import MomentumSGD
from ..randomness import stream
from .checkpoint import write_checkpoint
from .curve import held_out, is_due, measure
from .history import EpochRecord, History
from .prepared import Augment, Rows, TrainingData, augmented, epoch_batches, prepare_
from .saving import check_checkpoint_folder, check_notes, check_rules, save_elsewhere
from .state import Snapshot
from .stepping import Stepper, one_thread_at_a_time

logger = logging.getLogger(__name__)

Callback = Callable[["Trainer", EpochRecord], bool | None]


@dataclasses.dataclass(frozen=True)
class Run:
    """A call that trains: what it trains on, who watches it, and what may stop it."""

    data: TrainingData
    bar: tqdm | LogLines  # counts samples
    request: StopRequest
    checkpoint: str | Path | None
    callbacks: Sequence[Callback]

    def call_back(self, trainer: Trainer) -> bool:
        """Call all callbacks with the newest record; return whether one ends the training."""
        record = trainer.state.history.epochs[-1]
        return any([bool(callback(trainer, record)) for callback in self.callbacks])


def sample_bar(trainer: Trainer, rows: int, progress: bool | None, name: str) -> tqdm | LogLines:
    """Return a bar of the samples of all epochs, of `rows` each; see `fit` for `progress`."""
    counts: dict[str, Any] = {"total": trainer.config.epochs * rows, "unit": " samples"}
    counts["initial"] = trainer.epoch * rows + trainer.state.samples
    if progress is None and not is_terminal():
        return LogLines(name, **counts)
    return tqdm(desc=name, disable=progress is False, **counts)


class Trainer(Stepper):
    """Trains a network in this process.

    Parameters
    ----------
    network : SparseMLP
        Changed in place.
    config : TrainingConfig
    workspace : Workspace, optional
        The buffers of a step; by default made when they are first needed.
    state : TrainingState, optional
        How far the training is; by default it begins.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.keep_moments_()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.network!r}, epoch {self.epoch} of {self.config.epochs}, "
            f"backend {self.backend.name}, {self.threads} thread{'s'[: self.threads > 1]})"
        )

    @property
    def history(self) -> History:
        """The records of all epochs so far."""
        return self.state.history

    @property
    def best(self) -> Snapshot | None:
        """Weights of the epoch with the best validation score, where there is a validation part."""
        return self.state.best

    @property
    def notes(self) -> dict[str, Any]:
        """What the program that trains wants to find in its checkpoints: what JSON can hold."""
        return self.state.notes

    @property
    def shrinking(self) -> Shrinking | None:
        """When the network becomes smaller; None where it does not, or is small enough."""
        return Shrinking.of(self.network, self.config)

    def check_surplus(self) -> None:
        """Refuse to go on with more connections than in the end where no evolution takes them away.

        Raises
        ------
        ParameterError
            Of a training that is resumed for fewer epochs, or with other intervals, than before.
        """
        state, last = self.state, last_evolution(self.config)
        done = state.epoch
        if state.epoch and state.part is None and state.history.epochs[-1].evolution_s is None:
            done -= 1  # the evolution after it is still to come
        if self.shrinking is not None and last <= done:
            raise ParameterError(
                f"After {state.epoch} epochs the network has more connections than in the end (a "
                f"'start_factor' of {self.network.config.start_factor:g}), and of "
                f"{self.config.epochs} epochs with an evolution every "
                f"{self.config.evolution_interval} none takes them away any more. Give more epochs."
            )

    @property
    def evolving_layers(self) -> list[SparseLayer]:
        """The layers that evolve: those of hidden neurons, or all."""
        layers = self.network.layers
        return layers if self.config.evolve_output else layers[:-1]

    @property
    def dead_inputs(self) -> NDArray[np.bool_] | None:
        """Which inputs of the first layer are dead neurons, if any are; bool (n_in,)."""
        return None

    @one_thread_at_a_time
    def evolve(
        self, data: TrainingData | None = None, *, keep_maps: bool = True, exchange: bool = True
    ) -> list[NDArray[np.int32]]:
        """Evolve the layers; return their slot maps, if they are to be kept.

        The output layer evolves, too, only with `TrainingConfig(evolve_output=True)`. A network
        with a `start_factor` becomes smaller, as far as the epochs say: see `density.Shrinking`.
        Without `exchange` that is all.

        Where a rule asks for gradients, `data` has the rows of which it takes a micro-batch,
        without dropout.
        """
        config, epoch = self.config, self.state.epochs_before + self.epoch
        evolution = max(0, self.epoch - 1) // config.evolution_interval
        zeta = config.zeta * config.zeta_decay**evolution if exchange else 0.0
        gradient, rules = None, config.rules
        if rules.needs_gradient:
            if data is None:
                raise ParameterError("Rules that ask for gradients need 'data': see `prepare_`.")
            size = min(self.workspace.micro_batch, len(data.train_rows))
            rng = stream(config.seed, "growth", epoch)
            rows = np.sort(rng.choice(data.train_rows, size, replace=False))
            gradient = partial(self.gradient, data.X, data.y, rows, data.weights, plain=True)

        def rng_of(layer: SparseLayer) -> np.random.Generator:
            return stream(config.seed, "evolution", epoch, layer.number)

        with self.backend.threads(self.threads):
            layers = self.evolving_layers
            known: dict[str, Any] = {"epoch": epoch, "candidates": config.growth_candidates}
            known["drop_factor"] = config.drop_factor
            shrinking = self.shrinking
            targets = shrinking.targets(self.network.config, self.epoch) if shrinking else []
            moved: Any = {"redistribute": config.redistribute}
            moved["hidden"] = len(self.network.layers) - 1
            changes = plan_changes(layers, zeta, targets, **moved)
            given: Any = {"changes": changes, "keep_maps": keep_maps, **known}
            given["first_dead"] = self.dead_inputs
            return evolve_layers(layers, zeta, rng_of, rules, gradient, **given)

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
        moments that begin; with `average_decay` those are averages, as are the weights in the end
        without a validation part. They go on from there if `fit` is called again. Epochs do not
        count in which a network with a `start_factor` has more connections than in the end.

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
            n_features), changed as the epoch asks: see `augmentation.ImageAugmenter`. `part` is
            dense where X is sparse, too.
        callbacks : iterable of callables
            Each is called as callback(trainer, record) after every epoch; one that returns True
            ends the training.
        checkpoint : path, optional
            Folder that receives a checkpoint after every epoch. It may have one already only
            where this training goes on from it; what else is in it stays. SIGTERM and Ctrl-C
            then end the training after the present mini-batch, with a checkpoint that goes on
            from there.
        progress : bool, optional
            Whether to show a progress bar; by default where standard error is a terminal, and a
            line a minute elsewhere.

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
            self.check_saving(checkpoint)
        data = prepare_(self.network, self.config, X, y, sample_weight=sample_weight, test=test)
        return self.train(
            data, augment=augment, callbacks=callbacks, checkpoint=checkpoint, progress=progress
        )

    @property
    def is_over(self) -> bool:
        """Whether `fit` would train no more."""
        shrinking = self.shrinking
        return self.state.is_over(self.config, 0 if shrinking is None else shrinking.end)

    def settle(self) -> None:
        """Give the network the weights of the best epoch, or their averages, where there are."""
        if self.best is not None:
            self.best.restore_(self.network)
        settle_(self.network.layers)

    def train(
        self,
        data: TrainingData,
        *,
        augment: Augment | None = None,
        callbacks: Iterable[Callback] = (),
        checkpoint: str | Path | None = None,
        progress: bool | None = None,
    ) -> History:
        """Do what `fit` does, with data from `prepare`."""
        self.check_rows(data)
        self.check_surplus()
        self.state.parallel = None
        rows = len(data.train_rows)
        bar = sample_bar(self, rows, progress, "training")
        with stop_request(checkpoint is not None) as request:
            try:
                with bar:
                    self.run(Run(data, bar, request, checkpoint, list(callbacks)), augment)
            except Stop:
                assert checkpoint is not None
                stopped(request, self.save_stopped(checkpoint, rows))
        if checkpoint is not None:
            self.rescue(checkpoint)
        self.settle()
        return self.history

    def run(self, run: Run, augment: Augment | None = None) -> None:
        """Train and record epoch after epoch, to the end or until something stops it."""
        state, data, request = self.state, run.data, run.request
        if not state.history.epochs:
            self._record(data, request)
        elif state.part is None and not self.is_over:
            self.evolve_if_due(data, keep_maps=False)  # the last epoch before it was prolonged
        stop = self.is_over
        while state.epoch < self.config.epochs and not stop:
            number = state.epochs_before + state.epoch
            batches = epoch_batches(data.train_rows, self.config, number, state.samples)
            self.run_epoch(data, batches, run.bar, augment, request)
            record = self._record(data, request)
            loss = record.running_loss if record.loss is None else record.loss
            run.bar.set_postfix(loss=f"{loss:.4f}", test=record.test_accuracy)
            if self.shrinking is None:
                state.watch_(self.network, record)
            stop = self.is_over
            self.evolve_if_due(data, keep_maps=False)
            if run.checkpoint is not None:
                self.save(run.checkpoint)
            stop = run.call_back(self) or stop
            request.check()

    def check_rows(self, data: TrainingData) -> None:
        """Verify that a training that is resumed has as many rows as before."""
        if self.state.rows not in (None, len(data.y)):
            raise DataError(
                f"The training to resume had {self.state.rows} rows of data, and these are "
                f"{len(data.y)}. Pass the same data."
            )
        self.state.rows = len(data.y)

    def check_saving(self, folder: str | Path) -> None:
        """Verify, before training, that checkpoints can be kept in a folder, or raise."""
        check_notes(self.notes)
        check_rules(self.config)
        layers = self.network.layers
        arrays = [array for layer in layers for array in layer.arrays(True).values()]
        going_on = self.state.folder
        copies = 2 if going_on is None and self.config.epochs > 1 else 1
        nbytes = copies * sum(array.nbytes for array in arrays)
        check_checkpoint_folder(folder, going_on=going_on, nbytes=nbytes)

    def run_epoch(
        self,
        data: TrainingData,
        batches: Sequence[Rows],
        bar: Any,
        augment: Augment | None = None,
        request: StopRequest | None = None,
    ) -> None:
        """Train on the mini-batches that are left of an epoch, given by their rows.

        `bar` and the state's `part` count the samples; `request` is looked at after each.
        """
        part = self.state.begin_part_()
        rows = part.samples + sum(map(len, batches))
        started = time.perf_counter() - part.seconds
        with self.lazy_updates(data) as lazy, self.backend.threads(self.threads):
            for batch in batches:
                epoch = self.state.epochs_before + self.epoch
                X, y, weights, chosen = augmented(data, batch, epoch, augment)
                progress = self.epoch + part.samples / rows
                loss = self.step(X, y, chosen, progress=progress, sample_weight=weights)
                part.loss += len(batch) * loss
                part.samples += len(batch)
                part.seconds = time.perf_counter() - started
                if is_due(part.curve, part.samples, rows, self.config.curve_points):
                    started += self.add_point(data, rows, lazy)
                bar.update(len(batch))
                if request is not None and (lazy is None or lazy.is_settled):
                    request.check()

    def add_point(self, data: TrainingData, rows: int, lazy: LazyUpdates | None = None) -> float:
        """Evaluate a point of the learning curve in an epoch of `rows`; return its seconds."""
        if lazy is not None:
            lazy.settle_()
        X, y, weights, chosen = held_out(data, self.config)
        offsets = self.offsets if X is data.X else None

        def evaluate() -> tuple[float, float]:
            loss, sums = self.sum_scores(X, y, chosen, weights, offsets)
            return loss / sums.weight, sums.score()

        part = self.state.begin_part_()
        place = {"epoch": self.epoch + part.samples / rows, "samples": part.samples}
        point = measure(evaluate, **place, updates=self.step_count)
        self.check_finite(point["loss"], self.step_count, self.state.present_epoch)
        part.curve.append(point)
        return float(point["seconds"])

    @contextmanager
    def lazy_updates(self, data: TrainingData) -> Iterator[LazyUpdates | None]:
        """Let steps leave weights of inputs for later that sparse mini-batches do not have.

        Without a gradient Adam moves weights too, and not linearly, and to clip the gradient takes
        all of it: then nothing is left for later.
        They are up to date at the end, and whenever `is_settled` says so.
        """
        first = self.network.layers[0]
        optimizer = self.config.optimizer_at()
        possible = isinstance(optimizer, MomentumSGD) and optimizer.clip_norm is None
        possible = possible and not (first.config.centered or self.config.average_decay)
        if possible and is_sparse(data.X, self.network.preprocessing):
            self._lazy = LazyUpdates(first)
        try:
            yield self._lazy
        finally:
            if self._lazy is not None:
                with self.backend.threads(self.threads):
                    self._lazy.settle_()
            self._lazy = None

    def complete_epoch(self, **measured: Any) -> EpochRecord:
        """Count the epoch that `part` is as complete, and append a record of it to the history.

        Without `part` the record is that of the state before training.
        """
        state, part = self.state, self.state.part
        if part is not None:
            measured |= {"running_loss": part.loss / max(1, part.samples), "epoch_s": part.seconds}
            measured["curve"] = part.curve
            if part.curve:
                measured["curve_s"] = sum(point["seconds"] for point in part.curve)
            state.epoch += 1
            state.part = None
        measured = {"loss": None, "train_accuracy": None} | measured
        record = EpochRecord(state.epoch, **measured)
        record.nnz = self.network.layer_connections
        begin_exploring_(self.network.layers)
        record.explored = explored_share(self.network.layers)
        if record.active_neurons is None:
            with self.backend.threads(self.threads):
                record.active_neurons = sum(active_neurons(self.network))
        state.history.epochs.append(record)
        return record

    def _record(self, data: TrainingData, request: StopRequest) -> EpochRecord:
        """Evaluate, and complete the epoch."""
        measured: dict[str, float] = {}
        if self.state.part is None and not self.config.evaluate_first:  # it begins
            return self.complete_epoch()
        with request.at_once():
            if len(data.loss_rows):
                measured["loss"], measured["train_accuracy"] = self._score(data, data.loss_rows)
            else:
                self.check_weights()
            self.check_moments()
            if len(data.validation_rows):
                measured["validation_accuracy"] = self._score(data, data.validation_rows)[1]
            if data.test is not None:
                started = time.perf_counter()
                measured["test_accuracy"] = self.evaluate(*data.test)[1]
                measured["inference_s"] = time.perf_counter() - started
        return self.complete_epoch(**measured)

    def _score(self, data: TrainingData, rows: Rows) -> tuple[float, float]:
        loss, sums = self.sum_scores(data.X, data.y, rows, data.weights, self.offsets)
        loss /= sums.weight
        self.check_finite(loss, self.step_count, self.state.present_epoch)
        return loss, sums.score()

    def check_weights(self) -> None:
        """Find out, without evaluating a row, whether the last update has overflown."""
        for layer in self.network.layers:
            if not all(np.isfinite(array).all() for array in layer.parameters.values()):
                self.check_finite(math.nan, self.step_count, self.state.present_epoch)

    def check_moments(self) -> None:
        """Find out whether Adam's mean of squares has overflown: the weight then never moves."""
        for layer in self.network.layers:
            for name, array in layer.moments.get("square", {}).items():
                if not np.isfinite(array).all():
                    raise NumericalError(
                        f"The gradient of {name!r} in layer {layer.number} was so large that its "
                        "square is not finite. Scale the inputs and targets, or set 'clip_norm'."
                    )

    def save(self, folder: str | Path) -> bool:
        """Write a checkpoint; where that fails, say so and go on with the training."""
        place = expand_user(folder).resolve()
        try:
            if place != self.state.folder:  # another training may have begun there meanwhile
                check_checkpoint_folder(place, going_on=self.state.folder)
            save_checkpoint(self, place)
        except CheckpointError as error:
            logger.error("%s The checkpoint before, if there is one, is intact.", error)
            self.state.is_unsaved = True
            return False
        self.state.saved_step, self.state.is_unsaved = self.step_count, False
        self.state.folder = place
        return True

    def rescue(self, folder: str | Path) -> Path | None:
        """Save a training that ends now elsewhere, if its last checkpoint failed; return where."""
        if not self.state.is_unsaved:
            return None
        self.state.is_unsaved = False
        place = save_elsewhere(lambda place: save_checkpoint(self, place), folder)
        if place is not None:
            logger.error("The training is %s", saved_in(place))
        return place

    def save_stopped(self, folder: str | Path, rows: int) -> str:
        """Save a training that is stopped now, and return what there is to say of it."""
        samples, place = self.state.samples, f"after epoch {self.epoch}"
        if samples:
            place = f"in epoch {self.epoch + 1}, after {samples:,} of {rows:,} samples"
        complete = self.state.part is None and self.state.saved_step == self.step_count
        if complete or self.save(folder):
            return f"{place}; {saved_in(folder)}"
        if (other := self.rescue(folder)) is not None:
            return f"{place}; {saved_in(other)}"
        return f"{place}, and not saved."

    def evolve_if_due(
        self, data: TrainingData, *, keep_maps: bool = True, exchange: bool = True
    ) -> list[list[NDArray[np.int32]]]:
        """Prune and evolve after an epoch, unless it is the last one or that has been done.

        Without `exchange` it prunes, and the network may shrink, but no connections grow.
        Return the slot maps of the layers for each of the two that was done: see `evolve`.
        """
        config, record = self.config, self.history.epochs[-1]
        if self.epoch == 0 or (self.epoch >= config.epochs and not config.evolve_last):
            return []
        maps, start = [], config.pruning_start
        is_pruned = start is not None and self.epoch >= start
        if is_pruned and self.epoch % config.pruning_every == 0 and record.pruning_s is None:
            started = time.perf_counter()
            maps.append(self.prune())
            record.pruning_s = time.perf_counter() - started
        shrinking = self.shrinking
        due = (config.zeta > 0 and exchange) or shrinking is not None
        due = due and self.epoch % config.evolution_interval == 0
        if due and record.evolution_s is None:
            started = time.perf_counter()
            maps.append(self.evolve(data, keep_maps=keep_maps, exchange=exchange))
            record.evolution_s = time.perf_counter() - started
        if shrinking is not None and self.epoch >= shrinking.end:  # the patience counts from here
            self.state.patience_since = max(self.state.patience_since, self.epoch)
        return maps


def save_checkpoint(trainer: Trainer, folder: str | Path) -> None:
    """Write a training's state to a folder, from which `load_checkpoint` goes on.

    Raises
    ------
    CheckpointError
        Where the folder cannot be written; one that was there before is intact then.
    """
    backend = trainer.backend.name
    config = dataclasses.replace(trainer.config, micro_batch=trainer.micro_batch, backend=backend)
    write_checkpoint(trainer.network, config, trainer.state, folder)
