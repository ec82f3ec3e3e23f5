"""What one update is: the gradient of a mini-batch, and the optimizer; and evaluation."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from ..backends import choose_backend, get_backend
from ..data.batches import is_sparse, load_batch
from ..data.checks import refuse_masked
from ..data.label_sets import LabelSets, check_label_sets
from ..errors import DataError, NumericalError, ParameterError
from ..machine.mapped_memory import aligned_zeros
from ..machine.threads import resolve_threads
from ..model.activations import TRAINED
from ..model.averages import average_
from ..model.config import TrainingConfig
from ..model.export import fold
from ..model.lazy_updates import LazyUpdates
from ..model.losses import LOSSES, MANY, ScoreSums, check_weights, smoothed
from ..model.network import SparseMLP, Visit, dropout_key
from ..model.optimizer import MomentumSGD, Optimizer
from ..model.workspace import Workspace, check_activation_dtype
from .layer_terms import expected_connections
from .memory import MicroBatching
from .state import TrainingState
from .whole_step import WholeStep

Method = TypeVar("Method", bound=Callable[..., Any])

CHECKED_ROWS = 4096  # of activations at a time, so that looking for overflows takes no memory


def one_thread_at_a_time(method: Method) -> Method:
    """Let a method of a stepper wait until no other thread uses the stepper's buffers.

    They are as large as the memory plan allows, so there is one set of them, and a lock.
    """

    @functools.wraps(method)
    def wait_and_call(self: Stepper, *arguments: Any, **options: Any) -> Any:
        with self._lock:
            return method(self, *arguments, **options)

    return wait_and_call  # type: ignore[return-value]


class Stepper:
    """Updates a network by mini-batches: see `Trainer`. Threads that share it wait in turn."""

    def __init__(
        self,
        network: SparseMLP,
        config: TrainingConfig | None = None,
        *,
        workspace: Workspace | None = None,
        state: TrainingState | None = None,
    ) -> None:
        self.network = network
        self.config = config or TrainingConfig()
        # a rank of a pipeline has some of the layers, and all choose alike
        most = max(*network.layer_connections, *expected_connections(network.config))
        sizes = network.config.layer_sizes
        network.trained_with = choose_backend(self.config.backend, sizes, most)
        self.backend = get_backend(network.trained_with.name)
        check_activation_dtype(
            self.config.activation_dtype,
            self.backend,
            network.config.activation,
            "a training",
            normalised=network.config.batch_norm,
        )
        self.threads = resolve_threads(self.config.threads, "a training")
        self.state = TrainingState() if state is None else state
        # (n_samples, n_outputs), added to the outputs for the rows of a training: `linear_start`
        self.offsets: NDArray[np.float32] | None = None
        self._loss = LOSSES[network.config.loss]
        self._trained_loss = smoothed(network.config.loss, self.config.label_smoothing)
        self._rates = self.config.rates()
        if self.config.average_decay and network.storage is not None:
            raise ParameterError(
                "The 'average_decay' parameter of a training must be 0 where the network's arrays "
                f"lie in files ('storage'). Got {self.config.average_decay} instead."
            )
        if network.config.batch_norm and self.micro_batch < 2:
            raise ParameterError(
                "The 'batch_size' and 'micro_batch' parameters of a training must be at least 2 "
                f"with batch normalisation, which is over a micro-batch. Got {self.micro_batch}."
            )
        self._workspace = workspace
        self._lock = threading.RLock()
        self._compiled_step: WholeStep | None = None
        self._lazy: LazyUpdates | None = None  # within an epoch

    def __getstate__(self) -> dict[str, Any]:
        # The compiled step has the addresses of this stepper's arrays.
        return vars(self) | {"_compiled_step": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"_lock": threading.RLock()})

    @property
    def epoch(self) -> int:
        """Epochs completed: a loop of one's own counts them."""
        return self.state.epoch

    @epoch.setter
    def epoch(self, count: int) -> None:
        self.state.epoch = count

    @property
    def step_count(self) -> int:
        """Updates made."""
        return self.state.step

    @step_count.setter
    def step_count(self, count: int) -> None:
        self.state.step = count

    def keep_moments_(self) -> None:
        """Have the network keep the moments of the configuration, and no others; new ones begin.

        Where the optimizer needs others, all of its moments begin: momentum SGD's velocity is no
        mean of gradients, from which Adam could go on.
        """
        kinds = self.config.moments
        if "average" in kinds and "average" not in self.network.layers[0].kinds:
            self.state.average_since = self.state.step
        for layer in self.network.layers:
            if layer.kinds != kinds:
                if set(kinds) ^ set(layer.kinds) != {"average"}:
                    layer.keep_moments_([kind for kind in layer.kinds if kind == "average"])
                layer.keep_moments_(kinds)

    @property
    def workspace(self) -> Workspace:
        """The buffers of a step; allocated when they are first needed."""
        if self._workspace is None:
            layers, storage = self.network.layers, self.network.storage
            allocate = aligned_zeros if storage is None else storage.zeros
            setting = self.micro_batching._replace(sparse_inputs=True)._asdict()
            self._workspace = Workspace(
                layers, **setting, allocate=allocate, allocate_inputs=allocate
            )
        return self._workspace

    @property
    def micro_batch(self) -> int:
        """Samples computed at once."""
        batch_size = self.config.batch_size
        return min(self.config.micro_batch or batch_size, batch_size)

    @property
    def micro_batching(self) -> MicroBatching:
        """How activations are computed and kept."""
        return MicroBatching(self.micro_batch, self.config.keep_every, self.config.activation_dtype)

    def _is_whole(self, X: Any, rows: NDArray[np.int64]) -> bool:
        """Return whether a step can be one compiled call."""
        if is_sparse(X, self.network.preprocessing):
            return False
        possible = self.backend.has_whole_step and self.network.config.activation not in TRAINED
        possible = possible and not self.network.config.batch_norm
        possible = possible and self.network.storage is None and self.workspace.keep_every == 1
        possible = possible and self.workspace.activation_dtype == "float32"
        n_outputs = self.network.config.layer_sizes[-1]
        possible = possible and not self._loss.is_multilabel and n_outputs <= MANY
        possible = possible and len(rows) <= self.workspace.micro_batch
        return possible and not any(layer.topology.is_int64 for layer in self.network.layers)

    @one_thread_at_a_time
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
        y : int32 (n_samples,), float32 (n_samples, n_targets) or LabelSets
            Class indices, or targets where the loss is the mean squared error, or the labels of
            every row where it is the binary cross-entropy; `check_label_sets` makes them.
        rows : int64 (batch,), optional
            The rows of the mini-batch; all of X by default. More than `config.batch_size` are one
            larger mini-batch.
        progress : float, optional
            Epochs trained so far, for the schedule; by default the epochs completed.
        sample_weight : float32 (n_samples,), optional
            Factors of the samples' losses; 1 by default.

        Raises
        ------
        DataError
            Where X, y, rows or weights do not fit the network or each other.
        NumericalError
            Where the loss is not finite. The weights are those before the step, with both.
        """
        refuse_masked(X=X, y=y, sample_weight=sample_weight)
        y, rows = _checked(X, y, rows, sample_weight)
        return self._step(X, y, rows, progress, sample_weight)

    def _step(
        self,
        X: Any,
        y: Any,
        rows: NDArray[np.int64],
        progress: float | None,
        sample_weight: NDArray[np.float32] | None,
    ) -> float:
        """Do what `step` does with what has been checked."""
        factor = self._rates.factor(self.epoch if progress is None else progress)
        rate, optimizer = self.config.learning_rate * factor, self.config.optimizer_at(factor)
        self.keep_moments_()
        with self.backend.threads(self.threads):
            loss = self._update(X, y, rows, sample_weight, optimizer, rate)
            if self.config.average_decay:
                updates = self.state.step - self.state.average_since
                average_(self.network.layers, self.config.average_share(updates))
        self.state.step += 1
        return loss

    def _update(
        self,
        X: Any,
        y: Any,
        rows: NDArray[np.int64],
        sample_weight: NDArray[np.float32] | None,
        optimizer: Optimizer,
        rate: float,
    ) -> float:
        """Compute a gradient and apply it; return the mean loss."""
        if self._is_whole(X, rows):
            return self._whole_step(X, y, rows, sample_weight, optimizer, rate)
        loss = self.gradient(X, y, rows, sample_weight)
        sparse = self.workspace.sparse is not None
        self.network.update_(self.workspace, optimizer, rate, lazy=self._lazy, sparse=sparse)
        return loss

    @one_thread_at_a_time
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
        """Compute a gradient, by micro-batches, into the workspace; return the mean loss.

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
        """
        y, rows = _checked(X, y, rows, sample_weight)
        if self._is_whole(X, rows) and not plain and visit is None and joined is None:
            return self._whole_step(X, y, rows, sample_weight)
        config, workspace, backend = self.config, self.workspace, self.backend
        total = 0.0
        workspace.resize_(self.network.layer_connections)  # neurons may have been pruned
        for start in range(0, len(rows), workspace.micro_batch):
            part = rows[start : start + workspace.micro_batch]
            batch = len(part)
            inputs = workspace.load_(X, part, self.network.preprocessing)
            touched_only = self._lazy is not None and self._lazy.prepare_(
                inputs if batch == len(rows) else None, workspace.by_layer[0]["values"]
            )
            rate = 0.0 if plain else config.dropout
            dropout = dropout_key(rate, config.seed, self.step_count, first_row + start)
            weights = None if sample_weight is None else sample_weight[part]
            how: dict[str, Any] = {"dropout": dropout, "weights": weights}
            logits = self.network.forward(workspace, batch, backend, training=True, **how)
            if self.offsets is not None:
                logits += self.offsets[part].T
            loss, delta = self._trained_loss(logits, y[part], joined or len(rows), weights)
            self.check_finite(loss, self.step_count + 1, self.epoch + 1, batch)
            total += loss
            self.network.backward(
                workspace,
                delta,
                backend,
                accumulate=start > 0,
                visit=visit,
                touched_only=touched_only,
                part=batch / (joined or len(rows)),
                **how,
            )
        if not plain and joined is None:
            self.network.finish_gradient(workspace)
        return total / len(rows)

    def _whole_step(
        self,
        X: Any,
        y: NDArray[Any],
        rows: NDArray[np.int64],
        sample_weight: NDArray[np.float32] | None,
        optimizer: Optimizer | None = None,
        rate: float = 0.0,
    ) -> float:
        """Compute the gradient in one compiled call and, if there is an optimizer, update.

        Momentum SGD is part of the call, unless the gradient has to be clipped before.
        """
        step = self._compiled_step
        if step is None or not step.fits(self.network, self.workspace, len(rows)):
            self.workspace.resize_(self.network.layer_connections)  # neurons may have been pruned
            step = WholeStep(self.network, self.workspace, len(rows), self.backend)
            self._compiled_step = step
        load_batch(X, rows, self.network.preprocessing, out=step.inputs)
        dropout = dropout_key(self.config.dropout, self.config.seed, self.step_count, 0)
        n_outputs = self.network.layers[-1].n_out
        labels = self._loss.check_y(y[rows], n_outputs, len(rows))
        weights = check_weights(None if sample_weight is None else sample_weight[rows], len(rows))
        offsets = None if self.offsets is None else self.offsets[rows].T
        inside = None
        if isinstance(optimizer, MomentumSGD) and optimizer.clip_norm is None:
            inside = optimizer
        smoothing = self.config.label_smoothing
        loss = step.run(labels, weights, dropout, inside, rate, offsets, smoothing) / len(rows)
        self.check_finite(loss, self.step_count + 1, self.epoch + 1, len(rows))
        if optimizer is not None and inside is None:
            self.network.update_(self.workspace, optimizer, rate)
        return loss

    def check_finite(self, loss: float, step: int, epoch: int, batch: int = 0) -> None:
        """Raise `NumericalError` where the loss of a forward pass of `batch` rows is not finite."""
        if not math.isfinite(loss):
            layer = self._overflown(batch)
            place = "" if layer is None else f", first in layer {layer}"
            raise NumericalError(
                f"The loss became {loss} at step {step} (epoch {epoch}{place}). "
                f"Lower 'learning_rate' (now {self.config.learning_rate}), or check the inputs "
                "for extreme values."
            )

    def _overflown(self, batch: int) -> int | None:
        """Return the number of the first layer with activations that are not finite, if known."""
        if batch and self.workspace.keep_every == 1:
            for k, layer in enumerate(self.network.layers):
                activations = self.workspace.activations(k, batch)
                blocks = range(0, len(activations), CHECKED_ROWS)
                if not all(_are_finite(activations[b : b + CHECKED_ROWS]) for b in blocks):
                    return layer.number
        return None

    def evaluate(
        self,
        X: Any,
        y: NDArray[Any],
        rows: NDArray[np.int64] | None = None,
        sample_weight: NDArray[np.float32] | None = None,
    ) -> tuple[float, float]:
        """Return mean loss and score over rows of a data set, without dropout.

        The weights are the averages of a training with `average_decay`; labels are not smoothed.
        The score is accuracy or R²; of rows with several labels it is precision at 1.

        Parameters are those of `step`, and so is the DataError.
        """
        refuse_masked(X=X, y=y, sample_weight=sample_weight)
        y, rows = _checked(X, y, rows, sample_weight)
        loss, sums = self.sum_scores(X, y, rows, sample_weight)
        if sums.weight == 0:
            raise DataError("sample_weight is 0 for all rows to evaluate. Give some a weight.")
        return loss / sums.weight, sums.score()

    @one_thread_at_a_time
    def sum_scores(
        self,
        X: Any,
        y: NDArray[Any],
        rows: NDArray[np.int64],
        sample_weight: NDArray[np.float32] | None = None,
        offsets: NDArray[np.float32] | None = None,
    ) -> tuple[float, ScoreSums]:
        """Return the loss summed over rows of a data set, and the sums behind their score.

        `offsets`, float32 (n_samples, n_outputs), are added to the outputs.
        """
        y, rows = _checked(X, y, rows, sample_weight)
        loss, sums = 0.0, ScoreSums()
        with self.backend.threads(self.threads):
            network = fold(self.network)
            for start in range(0, len(rows), self.workspace.micro_batch):
                part = rows[start : start + self.workspace.micro_batch]
                self.workspace.load_(X, part, self.network.preprocessing)
                outputs = network.forward(self.workspace, len(part), self.backend)
                if offsets is not None:
                    outputs += offsets[part].T
                weights = None
                if sample_weight is not None:
                    weights = check_weights(sample_weight[part], len(part))
                sums.add(outputs, y[part], weights)  # the loss may replace the outputs
                loss += self._loss.function(outputs, y[part], None, weights)[0]
        return loss, sums


def _checked(
    X: Any, y: Any, rows: NDArray[np.int64] | None, sample_weight: Any
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return y, and the rows of a mini-batch (by default all), where X, y and weights fit.

    `load_batch` and the losses look at the values of these rows.
    """
    if issparse(y):
        y = check_label_sets(y)
    elif not isinstance(y, LabelSets):
        y = np.asarray(y)
    counts = {"X": np.shape(X)[:1], "y": y.shape[:1]}
    if sample_weight is not None:
        counts["sample_weight"] = np.shape(sample_weight)[:1]
    if len(set(counts.values())) > 1 or not counts["y"]:
        found = ", ".join(f"{name} {count[0] if count else 0}" for name, count in counts.items())
        raise DataError(f"X, y and sample_weight must have as many samples. Got {found}.")
    rows = np.arange(len(y)) if rows is None else rows
    if not len(rows):
        raise DataError("A mini-batch needs at least 1 row. Got 0.")
    return y, rows


def _are_finite(activations: NDArray[Any]) -> bool:
    """Return whether all are finite; uint16 is bfloat16."""
    if activations.dtype == np.uint16:
        return bool(np.all(activations & 0x7F80 != 0x7F80))
    return bool(np.isfinite(activations).all())
