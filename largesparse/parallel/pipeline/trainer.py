"""The trainer of a rank of a pipeline: `Trainer`, whose network has consecutive layers alone.

Every rank goes through the same epochs. What concerns one layer at a time is done where the layer
is; what crosses layers passes between the ranks: activations and deltas, masks of neurons that die
or lie on a path, and sums.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...data.batches import dense_rows, load_batch
from ...errors import ParameterError
from ...model.config import TrainingConfig
from ...model.exploration import explored_cells
from ...model.losses import ScoreSums, check_weights
from ...model.network import SparseMLP, Visit, dropout_key
from ...model.optimizer import Optimizer
from ...training.history import EpochRecord, History
from ...training.prepared import Augment, Rows, TrainingData
from ...training.stepping import one_thread_at_a_time
from ...training.trainer import Trainer
from ..comm.collectives import broadcast, gather
from ..comm.transfer import CHUNK_BYTES
from .costs import Held
from .crossing import Crossing
from .flow import FORWARD, GRADIENTS, Links, one_forward_one_backward
from .groups import sum_over_groups_
from .orders import Orders
from .passes import Passes, TrainingPasses, predict
from .saving import StageSaver
from .stage import Edge, Place
from .workspace import StageWorkspace


class StageTrainer(Trainer):
    """Trains the layers of one rank, together with the trainers of all others.

    All ranks call the same methods in the same order. Losses and scores are the same on all.

    Parameters
    ----------
    network : SparseMLP
        With the layers of this rank alone.
    config : TrainingConfig
        The same on all ranks.
    comm : mpi4py.MPI.Comm
    place : Place
    chunk_bytes : int
        Largest message.
    augment : callable, optional
        As of `Trainer.fit`.
    state : TrainingState, optional
    """

    def __init__(
        self,
        network: SparseMLP,
        config: TrainingConfig,
        comm: Any,
        place: Place,
        *,
        chunk_bytes: int = CHUNK_BYTES,
        augment: Augment | None = None,
        **options: Any,
    ) -> None:
        super().__init__(network, config, **options)
        self.comm, self.place = comm, place
        self.links = Links(comm, chunk_bytes)
        self._augment = augment
        first, last = place.stage
        sizes = network.config
        self.before = None if place.is_first else Edge.before(sizes, first - 1)
        self.behind = None if place.is_last else Edge.behind(last)
        self.steps_s = 0.0  # of all steps
        self.steps_waiting_s = 0.0  # waited within them
        self.steps_bytes = 0  # sent within them
        self.orders = Orders(self.links, place)
        self.channel: Any = None  # to rank 0, or to all others, once they have connected
        self._crossing = Crossing(place, self.links, self.before)
        self._saver = StageSaver(self)
        self.unshare_loss_()

    # ----------------------------------------------------------------------- buffers
    @property
    def workspace(self) -> StageWorkspace:
        """The buffers of a step; allocated when they are first needed."""
        if self._workspace is None:
            place, count = self.place, self.micro_batches
            self._workspace = StageWorkspace(
                self._between_edges(self.network.layers),
                self.micro_batch,
                *Held.by(place.number, len(place.stages), count),
                has_before=self.before is not None,
                has_behind=self.behind is not None,
                activation_dtype=self.config.activation_dtype,
            )
        assert isinstance(self._workspace, StageWorkspace)
        return self._workspace

    @property
    def micro_batches(self) -> int:
        """Those of a mini-batch that pass through this pipeline."""
        rows = math.ceil(self.config.batch_size / self.place.groups)
        return math.ceil(rows / self.micro_batch)

    def _between_edges(self, layers: Sequence[Any]) -> list[Any]:
        edges = ([] if edge is None else [edge] for edge in (self.before, self.behind))
        return [*next(edges), *layers, *next(edges)]

    @property
    def _passes(self) -> Passes:
        edges = self.before, self.behind
        layers, space = self.network.layers, self.workspace
        return Passes(self.place, self.links, *edges, layers, space, self.backend)

    @property
    def evolving_layers(self) -> list[Any]:
        """Those that evolve."""
        layers = self.network.layers
        is_output = self.place.is_last and not self.config.evolve_output
        return layers[:-1] if is_output else layers

    @property
    def dead_inputs(self) -> NDArray[np.bool_] | None:
        """The dead neurons below the first layer."""
        return None if self.before is None else self.before.dead

    def evolve(
        self, data: TrainingData | None = None, *, keep_maps: bool = True, exchange: bool = True
    ) -> list[NDArray[np.int32]]:
        """Evolve the layers: see `Trainer.evolve`.

        The buffers of a step are freed before, unless it needs them, and are allocated again after.
        """
        if not self.config.rules.needs_gradient:
            self._workspace = None
        return super().evolve(data, keep_maps=keep_maps, exchange=exchange)

    def fit(self, *_: Any, **__: Any) -> History:
        """Refuse: data, signals and checkpoints are all ranks' business, by `train_pipeline`."""
        raise ParameterError("The trainer of a rank cannot 'fit' alone. Call train_pipeline.")

    # ----------------------------------------------------------------------- updates
    @one_thread_at_a_time
    def step(
        self,
        X: Any,
        y: Any,
        rows: Rows | None = None,
        *,
        progress: float | None = None,
        sample_weight: NDArray[np.float32] | None = None,
    ) -> float:
        """Make one update from a mini-batch; return this rank's part of its mean loss.

        That is all of it on the last rank of the first pipeline, and 0 on others.
        """
        assert rows is not None
        started, waited, sent = time.perf_counter(), self.links.waiting_s, self.links.bytes_sent
        self.orders.pass_on(may_stop=self._lazy is None or self._lazy.is_settled)
        loss = self._step(X, y, rows, progress, sample_weight)
        self.steps_s += time.perf_counter() - started
        self.steps_waiting_s += self.links.waiting_s - waited
        self.steps_bytes += self.links.bytes_sent - sent
        return loss

    def _update(
        self,
        X: Any,
        y: Any,
        rows: Rows,
        sample_weight: NDArray[np.float32] | None,
        optimizer: Optimizer,
        rate: float,
    ) -> float:
        """Compute this rank's part of a gradient and apply it: see `Stepper.step`."""
        loss = self._joined_gradient(X, y, rows, sample_weight)
        own = self.workspace.own_gradients()
        if (norm := optimizer.clip_norm) is not None:
            self._crossing.clip_(self.network.layers, own.by_layer, norm)
            optimizer = dataclasses.replace(optimizer, clip_norm=None)  # it has been done
        sparse = self.workspace.sparse is not None
        self.network.update_(own, optimizer, rate, lazy=self._lazy, sparse=sparse)
        return loss

    def _joined_gradient(
        self, X: Any, y: Any, rows: Rows, weights: NDArray[np.float32] | None
    ) -> float:
        """Compute the gradient of a mini-batch that the pipelines divide among them."""
        part = self.place.part(len(rows))
        of_X = rows[part]
        if self._augment is not None and self.place.is_first:
            epoch = self.state.epochs_before + self.epoch
            X, of_X = self._augment(dense_rows(X, rows), rows, epoch), np.arange(len(rows))[part]
        joined = None if self.place.groups == 1 else len(rows)
        given: Any = {"first_row": part.start, "joined": joined, "rows_of_X": of_X}
        loss = self.gradient(X, y, rows[part], weights, **given)
        if joined is not None:
            own = self.workspace.own_gradients()
            of_groups = np.array([loss] if self.place.is_last else [])
            sum_over_groups_(self.links, self.place, [*own.arrays(), of_groups], GRADIENTS)
            if self.place.is_last:
                self.network.finish_gradient(own)
                loss = float(of_groups[0]) if self.place.group == 0 else 0.0
        return loss

    @one_thread_at_a_time
    def gradient(
        self,
        X: Any,
        y: Any,
        rows: Rows,
        sample_weight: NDArray[np.float32] | None = None,
        *,
        plain: bool = False,
        visit: Visit | None = None,
        first_row: int = 0,
        joined: int | None = None,
        rows_of_X: Rows | None = None,
    ) -> float:
        """Compute a gradient of the layers of this rank: see `Stepper.gradient`.

        `rows_of_X` are the rows of X where these are others than those of y. Return the part of the
        mean loss that is of these rows, on the last rank, and 0 on others.
        """
        space, config, network = self.workspace, self.config, self.network
        space.resize_([layer.nnz for layer in self._between_edges(network.layers)])
        rows_of_X = rows if rows_of_X is None else rows_of_X
        starts = range(0, len(rows), space.micro_batch)
        parts = [slice(start, start + space.micro_batch) for start in starts]
        sizes = [len(rows[part]) for part in parts]
        if not parts:  # a mini-batch of fewer rows than there are pipelines
            for array in space.arrays():
                array[...] = 0
        passes = TrainingPasses(self._passes, sizes, visit)
        count, total = joined or len(rows), 0.0
        stages, touched_only = len(self.place.stages), False
        deltas: dict[int, Any] = {}
        for kind, number in one_forward_one_backward(self.place.number, stages, len(parts)):
            part, size = parts[number], sizes[number]
            weights = None if sample_weight is None else sample_weight[rows[part]]
            if kind == FORWARD:
                space.turn_to_(number)
                if self.place.is_first:
                    is_all = joined is None and size == count
                    is_plain = plain or visit is not None
                    is_dense = is_all and not is_plain and self._is_whole(X, rows_of_X)
                    touched_only = self._load(X, rows_of_X[part], is_all, is_dense)
                rate = 0.0 if plain else config.dropout
                start = first_row + part.start
                dropout = dropout_key(rate, config.seed, self.step_count, start)
                logits = passes.forward(number, dropout, weights)
                if logits is not None:
                    loss, delta = self._trained_loss(logits, y[rows[part]], count, weights)
                    self.check_finite(loss, self.step_count + 1, self.epoch + 1, size)
                    total += loss
                    deltas[number] = delta
            else:
                delta = deltas.pop(number, None)
                passes.backward(number, delta, weights, size / count, touched_only)
        passes.finish()
        if not plain and joined is None and self.place.is_last:
            network.finish_gradient(space.own_gradients())
        return total / count

    def _load(self, X: Any, rows: Rows, is_all: bool, is_dense: bool) -> bool:
        """Have rows of X as inputs; return whether gradients of few of the weights come.

        `is_all` says whether they are a whole mini-batch, `is_dense` whether `Stepper` would take
        them in one compiled step, by all their features.
        """
        space, scaling = self.workspace, self.network.preprocessing
        inputs: Any
        if is_dense:
            inputs = space.inputs(len(rows))
            load_batch(X, rows, scaling, out=inputs)
        else:
            inputs = space.load_(X, rows, scaling)
        if self._lazy is None:
            return False
        return self._lazy.prepare_(inputs if is_all else None, space.by_layer[0]["values"])

    def _overflown(self, batch: int) -> int | None:
        """Return the first of this rank's layers with activations that are not finite, if known."""
        if batch == 0:
            return None
        for k, layer in zip(self._passes.own, self.network.layers, strict=True):
            found = self.workspace.activations(k, batch)
            if found.dtype == np.float32 and not np.isfinite(found).all():
                return None if k == 1 and self.before is not None else layer.number
        return None

    # ----------------------------------------------------------------------- evaluation
    def evaluate(
        self, X: Any, y: Any, rows: Any = None, sample_weight: Any = None
    ) -> tuple[float, float]:
        """Return mean loss and score over rows, on all ranks: see `Stepper.evaluate`."""
        rows = np.arange(len(y)) if rows is None else rows
        loss, sums = self.sum_scores(X, y, rows, sample_weight)
        return loss / sums.weight, sums.score()

    @one_thread_at_a_time
    def sum_scores(
        self,
        X: Any,
        y: Any,
        rows: Rows,
        sample_weight: NDArray[np.float32] | None = None,
        offsets: Any = None,
    ) -> tuple[float, ScoreSums]:
        """Return summed loss and score sums, on all ranks: see `Stepper.sum_scores`."""
        rows = self.place.parts_of_groups(rows, self.micro_batch)[self.place.group]
        found: list[Any] = [0.0, ScoreSums()]

        def take(chosen: Rows, outputs: Any) -> None:
            weights = None
            if sample_weight is not None:
                weights = check_weights(sample_weight[chosen], len(chosen))
            found[1].add(outputs, y[chosen], weights)  # the loss may replace the outputs
            found[0] += self._loss.function(outputs, y[chosen], None, weights)[0]

        self.pass_rows(X, rows, take)
        parts = gather(self.comm, found if self.place.is_last else None)
        loss, sums = 0.0, ScoreSums()
        for each in filter(None, parts or []):
            loss += each[0]
            sums.merge(each[1])
        total: tuple[float, ScoreSums] = broadcast(self.comm, (loss, sums))
        return total

    def pass_rows(self, X: Any, rows: Rows, take: Any) -> None:
        """Pass rows through this pipeline; the last rank calls take(rows, logits) for each part."""
        size = self.workspace.micro_batch
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        scaling = self.network.preprocessing
        with self.backend.threads(self.threads):
            predict(
                self._passes,
                list(map(len, parts)),
                lambda number: self.workspace.load_(X, parts[number], scaling),
                lambda number, logits: take(parts[number], logits),
            )

    def unshare_loss_(self) -> None:
        """Have it on one rank, as a sum over all has it once."""
        if self.state.part is not None and not (self.place.group == 0 and self.place.is_last):
            self.state.part.loss = 0.0

    @property
    def saved_config(self) -> TrainingConfig:
        """The configuration as checkpoints have it: with what has been chosen by default."""
        chosen: Any = {"micro_batch": self.micro_batch, "backend": self.backend.name}
        return dataclasses.replace(self.config, **chosen)

    def complete_epoch(self, **measured: Any) -> EpochRecord:
        """Append a record of all ranks' layers: see `Trainer.complete_epoch`."""
        part = self.state.part
        with self.backend.threads(self.threads):
            counts = self._crossing.count_active(self.network.layers)
        record = super().complete_epoch(**measured, active_neurons=0)
        layers = self.network.layers
        cells = [layer.n_in * layer.n_out for layer in layers]
        of_layers = counts, record.nnz, [explored_cells(layer) for layer in layers], cells
        everyone = gather(self.comm, (0.0 if part is None else part.loss, of_layers))
        if everyone is not None:
            losses, of_ranks = zip(*everyone, strict=True)
            if part is not None:
                record.running_loss = sum(losses) / max(1, part.samples)
            of_group = zip(*of_ranks[: len(self.place.stages)], strict=True)
            counts, record.nnz, explored, cells = (list(chain.from_iterable(p)) for p in of_group)
            record.active_neurons = sum(counts)
            known = None not in explored
            record.explored = sum(explored) / sum(cells) if known else None
        found: EpochRecord = broadcast(self.comm, record)
        self.state.history.epochs[-1] = found
        return found

    # ----------------------------------------------------------------------- saving
    def check_saving(self, folder: str | Path) -> None:
        """Verify on all ranks, before training, that checkpoints can be kept in a folder."""
        self._saver.check(folder)

    def save(self, folder: str | Path) -> bool:
        """Write a checkpoint by all ranks: see `Trainer.save`."""
        return self._saver.save(folder)

    def rescue(self, folder: str | Path) -> Path | None:
        """Save elsewhere, by all ranks: see `Trainer.rescue`."""
        return self._saver.rescue(folder)

    # ----------------------------------------------------------------------- pruning
    @one_thread_at_a_time
    def prune(self) -> list[NDArray[np.int32]]:
        """Prune neurons by importance; return the slot maps of this rank's layers."""
        with self.backend.threads(self.threads):
            percentile, seed = self.config.pruning_percentile, self.network.config.seed
            return self._crossing.prune(self.network.layers, percentile, seed)

    def meet(self) -> None:
        """Let the rank behind know of neurons that are dead already: before anything else."""
        self._crossing.tell_dead(self.network.layers)
