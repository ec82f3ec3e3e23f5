"""What the two scikit-learn estimators share: parameters, defaults that depend on n, training."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from ..data.batches import is_sparse
from ..data.checks import LARGEST, check_X, refuse_masked
from ..data.skewness import alpha_from_skewness
from ..errors import DataError, NumericalError, ParameterError
from ..machine.output import is_terminal
from ..model.config import (
    NetworkConfig,
    TrainingConfig,
)
from ..model.density import has_surplus
from ..model.losses import LOSSES
from ..model.network import SparseMLP
from ..model.start import LayerStart, given_topologies
from ..training.checkpoint import load_model, read_estimator, save_model
from ..training.history import History
from ..training.memory import prediction_batch
from ..training.prediction import Predictor
from ..training.prepared import (
    TrainingData,
    prepare_,
    relative_weights,
    standardize_,
    start_at_frequencies_,
)
from ..training.state import TrainingState
from ..training.trainer import Callback, Trainer
from .defaults import (
    DOC_LINK,
    FEWEST_EPOCHS,
    LARGEST_BATCH,
    OWNER,
    STEPS_PER_EPOCH,
    resolve_jobs,
)
from .files import PROGRESS, describe, parameters_of
from .label_defaults import (
    one_scale,
)
from .linear_start import LinearStart, fit_linear, has_learnt, what_prevents
from .settings import NETWORK_PARAMETERS, WARMUP_SHARE, Settings
from .verbose import EpochLines

logger = logging.getLogger(__name__)

COPY_BYTES = 2**28  # a dense table of up to so many bytes in float32 is standardised once

FEWEST_ROWS = 1000  # of which a tenth tells whether a linear start is better
RETRIES, RETRY_FACTOR = 4, 0.25  # a training that diverges starts again, at a lower rate

# `validate_data` leaves the values to the checks of the training and of the prediction.
AS_GIVEN: dict[str, Any] = {
    "accept_sparse": "csr",
    "dtype": "numeric",
    "ensure_all_finite": False,
}

Weights = NDArray[np.float64]


def undone_on_error(train: Callable[..., Any]) -> Any:
    """Let `fit` or `partial_fit` leave an estimator as it was before, where it raises an error.

    A network that it goes on with is copied before: its weights may not be numbers any more.
    """

    @functools.wraps(train)
    def careful(self: BaseSparseMLP, *arguments: Any, **options: Any) -> Any:
        before = vars(self).copy()
        network = before.get("network_")
        parts: dict[str, Any] = {}
        if network is not None and (self.warm_start or train.__name__ == "partial_fit"):
            parts = vars(network) | {"layers": [layer.copy() for layer in network.layers]}
        try:
            return train(self, *arguments, **options)
        except Exception:
            self.__dict__.clear()
            self.__dict__.update(before)
            if network is not None:
                vars(network).update(parts)
            raise

    return careful


@dataclass(eq=False, repr=False)
class BaseSparseMLP(Settings):
    """Base of `SparseMLPClassifier` and `SparseMLPRegressor`, which document the parameters."""

    _callbacks: ClassVar[tuple[Callback, ...]] = ()  # of `fit`, for the command line
    _began_linearly: ClassVar[bool] = False  # whether the network has
    _doc_link_module, _doc_link_template = DOC_LINK

    def save(self, folder: str | Path) -> None:
        """Write the fitted model and the estimator's parameters to a folder, without pickles.

        Raises
        ------
        CheckpointError
            Where the folder cannot be written.
        ParameterError
            Where a parameter is of a kind that JSON cannot hold.
        """
        check_is_fitted(self)
        save_model(self.network_, folder, estimator=describe(self))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Return a fitted estimator from a folder that `save` or `save_model` wrote.

        Its parameters are those of the one that was saved, and training can go on with it. Where
        `save_model` or an earlier release wrote the folder, the parameters that concern training
        have their defaults.

        Raises
        ------
        CheckpointError
            Where the folder is missing, damaged or of another version of the format.
        ParameterError
            Where the model is not of this kind: a regressor for a classifier, or the reverse.
        """
        network = load_model(folder)
        config = network.config
        if config.loss not in cls._losses:
            raise ParameterError(
                f"The model at {folder} was trained with the loss {config.loss!r}, and "
                f"{cls.__name__} takes {' and '.join(map(repr, cls._losses))}. Load it with the "
                "other estimator."
            )
        saved = read_estimator(folder)
        options = {name: getattr(config, name) for name in NETWORK_PARAMETERS}
        options["hidden_layer_sizes"] = config.layer_sizes[1:-1]
        options["standardize"] = network.preprocessing is not None
        estimator = cls(**(parameters_of(saved) if saved else options))
        estimator.topology = estimator._made_with = given_topologies(network)
        estimator.network_ = network
        estimator._loss = config.loss
        estimator.alpha_ = config.alpha
        estimator.n_features_in_ = config.layer_sizes[0]
        if network.feature_names is not None:
            estimator.feature_names_in_ = np.array(network.feature_names, dtype=object)
        estimator._seed = config.seed
        estimator._forget_training()
        if saved:
            progress = saved["progress"]
            known = {name: progress[name] for name in PROGRESS if name in progress}
            estimator.__dict__.update(known)
        estimator._take_targets()
        return estimator

    def __getstate__(self) -> dict[str, Any]:
        # The trainer has buffers, and tables of their addresses.
        state: dict[str, Any] = super().__getstate__()
        return {**state, "_trainer": None} if "_trainer" in state else state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _take_targets(self) -> None:
        """Set the attributes that say what is predicted, from the network."""
        raise NotImplementedError

    def _check_data(self, X: Any, y: Any, *, reset: bool, **options: Any) -> tuple[Any, Any]:
        """Return X as `check_X` does, and y; without `reset` training goes on with the network."""
        refuse_masked(X=X, y=y)
        X, y = validate_data(self, X, y, reset=reset, **AS_GIVEN, **options)
        if not reset:
            self._check_same_network()
        return check_X(X), y

    def _check_weights(self, sample_weight: Any, X: Any, *, ratios: bool) -> Weights | None:
        """Return the weights of rows; if only their `ratios` matter, relative to the largest."""
        if sample_weight is None:
            return None
        refuse_masked(sample_weight=sample_weight)
        options: dict[str, Any] = {"dtype": np.float64, "ensure_non_negative": True}
        weights: Weights = _check_sample_weight(sample_weight, X, **options)
        relative = relative_weights(weights, X.shape[0])
        return relative if ratios else weights

    def _forget_training(self) -> None:
        """Set the attributes that tell the course of trainings to those of none."""
        self.history_ = History()
        self.learning_rate_: float | None = None
        self._fit_rate: float | None = None  # what "auto" was, perhaps lowered, in `fit`
        self._epochs = 0  # of all calls of `fit` that went on with the network
        self.n_iter_ = 0
        self.n_steps_ = 0
        self.loss_curve_: list[float] = []
        self.validation_scores_: list[float] | None = None
        self.best_validation_score_: float | None = None
        self._trainer: Trainer | None = None

    def _make_network(
        self, n_outputs: int, n_rows: int | None, X: Any, weights: Weights | None
    ) -> None:
        """Set `network_` to a new one, which is trained first on X.

        `n_rows` are those of a weight above 0, or None where other rows may come.
        """
        self.alpha_ = self.alpha
        if self._is_auto("alpha"):
            if weights is not None and not weights.all():
                X = X[np.flatnonzero(weights)]
            self.alpha_ = alpha_from_skewness(X)
        random = check_random_state(self.random_state)
        self._seed = int(random.randint(np.iinfo(np.int32).max))
        self._forget_training()
        config, starts = self._network_config(n_outputs, n_rows)
        self.network_ = self._new_network(config, starts)
        self._made_with = self.topology
        if self._has_labels and self._is_auto("standardize"):
            self.network_.preprocessing = one_scale(X, weights)

    def _new_network(
        self, config: NetworkConfig, starts: dict[int, LayerStart] | None = None
    ) -> SparseMLP:
        return SparseMLP(
            config,
            threads=resolve_jobs(self.n_jobs),
            progress=None if self.verbose else False,
            topology={k + 2: start for k, start in (starts or {}).items()},
            feature_names=self._feature_names,
        )

    def _start_again(self) -> None:
        """Replace the network by what it was before it was trained."""
        before = self.network_
        self.network_ = self._new_network(before.config)
        for name in ("preprocessing", "classes", "target_mean", "target_scale"):
            setattr(self.network_, name, getattr(before, name))

    def _train(self, X: Any, y: Any, sample_weight: Weights | None) -> None:
        """Train the network on rows that `check_X` returned, and tell the course of it."""
        n_rows = count_rows(X, sample_weight)
        config = self._training_config(n_rows)
        given: dict[str, Any] = {"is_checked": True, "copy_bytes": COPY_BYTES}
        given["sample_weight"] = sample_weight
        is_new = self.network_.preprocessing is None
        data = prepare_(self.network_, config, X, y, **given)
        begins, trainer = self._begins_linearly(data, is_new), None
        if not begins and self._is_undecided(data, is_new):
            self.network_.preprocessing = None
            trial = self._training_config(n_rows, watched=True)
            data = prepare_(self.network_, trial, X, y, **given)
            trainer = self._run(trial, data, None)
            assert trainer.best is not None
            begins = fit_linear(self.network_, data).is_as_good_as(trainer.best.score, data)
            if begins or not config.validation_fraction:
                if begins and self._is_auto("early_stopping"):
                    config = self._training_config(n_rows, watched=False)
                self._start_again()
                self.network_.preprocessing = trainer = None
                data = prepare_(self.network_, config, X, y, **given)
        start = fit_linear(self.network_, data) if begins else None
        self._began_linearly = start is not None or (  # type: ignore[misc]
            not is_new and self._began_linearly
        )
        try:
            trainer = trainer or self._run(config, data, start)
        finally:  # Ctrl-C, too, leaves all of the network
            if start is not None:
                start.install_(self.network_)
        self.learning_rate_ = trainer.config.learning_rate
        if self._is_auto("learning_rate"):
            self._fit_rate = self.learning_rate_
        self.n_steps_ = trainer.step_count
        self.n_iter_ = trainer.epoch
        self._epochs += trainer.epoch
        self.history_ = history = trainer.history
        self.loss_curve_ = self.loss_curve_ + history["running_loss"][1:]
        if trainer.config.validation_fraction:
            scores = history["validation_accuracy"][1:]
            self.validation_scores_ = (self.validation_scores_ or []) + scores
            assert trainer.best is not None
            self.best_validation_score_ = trainer.best.score
        else:
            self.validation_scores_ = self.best_validation_score_ = None

    def _begins_linearly(self, data: TrainingData, is_new: bool) -> bool:
        """Return whether the training begins from a linear map."""
        wanted = self.linear_start
        if not isinstance(wanted, bool | np.bool_) and wanted != "auto":
            raise ParameterError(
                f"The 'linear_start' parameter of {OWNER} must be True, False or 'auto'. "
                f"Got {wanted!r} instead."
            )
        is_wide = data.X.shape[1] > len(data.train_rows)
        if wanted == "auto" and (self.warm_start or not is_wide):
            return False
        if not wanted or not is_new:  # what goes on with a network has begun
            return False
        obstacle = what_prevents(self.network_, data, COPY_BYTES)
        if obstacle is None or wanted == "auto":
            return obstacle is None
        raise ParameterError(
            f"The 'linear_start' parameter of {OWNER} cannot be True: {obstacle}. Pass 'auto'."
        )

    def _is_undecided(self, data: TrainingData, is_new: bool) -> bool:
        """Return whether validation rows are to tell if classification had better begin linearly.

        In sparse tables with fewer features than rows, such as codes of categories, these may act
        each by itself or together.
        """
        if not (is_new and self._is_auto("linear_start")) or self.warm_start:
            return False
        possible = LOSSES[self._loss].is_classification and data.X.shape[0] >= FEWEST_ROWS
        possible = possible and is_sparse(data.X, self.network_.preprocessing)
        return possible and what_prevents(self.network_, data, COPY_BYTES) is None

    def _run(
        self, config: TrainingConfig, data: TrainingData, start: LinearStart | None
    ) -> Trainer:
        """Train, again at a lower rate where it diverges; return the trainer."""
        progress = None if self.verbose and is_terminal() else False
        callbacks: list[Callback] = list(self._callbacks)
        if self.verbose and progress is False:
            callbacks.append(EpochLines(None if start is None else has_learnt))
        if start is not None:
            epochs = self._auto("max_epochs", FEWEST_EPOCHS)
            warmup = WARMUP_SHARE * epochs
            config = dataclasses.replace(config, epochs=epochs, warmup_epochs=warmup)
            callbacks = [start.seen_whole(self, callback) for callback in callbacks]
            callbacks.append(has_learnt)
        retries = RETRIES if self._is_auto("learning_rate") and not self.n_steps_ else 0
        for retry in range(retries + 1):
            start_at_frequencies_(self.network_, data.y, data.train_rows)
            state = TrainingState(step=self.n_steps_, epochs_before=self._epochs)
            if start is not None:
                start.reserve_(self.network_)
            trainer = Trainer(self.network_, config, state=state)
            trainer.offsets = None if start is None else start.offsets
            try:
                trainer.train(data, progress=progress, callbacks=callbacks)
                break
            except NumericalError as error:
                if retry == retries:
                    raise
                rate, decay = config.learning_rate * RETRY_FACTOR, config.weight_decay
                if config.optimizer == "adamw" and self._is_auto("weight_decay"):
                    decay /= RETRY_FACTOR  # the same share goes at an update
                config = dataclasses.replace(config, learning_rate=rate, weight_decay=decay)
                logger.warning("%s Starting again with %g.", error, config.learning_rate)
                self._start_again()
        return trainer

    def _train_once(self, X: Any, y: Any, sample_weight: Weights | None) -> None:
        """Make one pass over the rows, by mini-batches, without evolution."""
        counted, weights = np.arange(X.shape[0]), None
        if sample_weight is not None:
            if sample_weight.max() > LARGEST:
                raise DataError(
                    f"sample_weight has {sample_weight.max():.3g}, too large: in partial_fit "
                    "a weight multiplies the gradient. Divide the weights by their mean."
                )
            weights = sample_weight.astype(np.float32)
            counted = np.flatnonzero(weights)
        if has_surplus(self.network_):
            raise ParameterError(
                f"The 'start_factor' parameter of {OWNER} must be 1 in partial_fit, which takes no "
                f"connections away. Got {self.start_factor:g} instead. Call fit first, or set it "
                "to 1."
            )
        config = self._training_config(LARGEST_BATCH * STEPS_PER_EPOCH, epochs=1)
        if self._trainer is None or self._trainer.config != config:
            state = TrainingState(step=self.n_steps_)
            self._trainer = Trainer(self.network_, config, state=state)
        trainer, n_rows = self._trainer, len(counted)
        self.learning_rate_ = config.learning_rate
        trainer.state.step = self.n_steps_
        standardize_(self.network_, X, counted, sample_weight, wanted=config.standardize)
        start_at_frequencies_(self.network_, y, counted)
        size = self._batch_size(n_rows)
        order = np.random.default_rng((self._seed, self.n_steps_)).permutation(counted)
        total = 0.0
        for start in range(0, n_rows, size):
            rows = order[start : start + size]
            total += len(rows) * trainer.step(X, y, rows, sample_weight=weights)
        self.n_steps_ = trainer.step_count
        self.n_iter_ = 1
        self.loss_curve_ = [*self.loss_curve_, total / n_rows]

    def _predict(self, X: Any, predict: Callable[[Predictor, Any], Any]) -> Any:
        """Return what a method of `Predictor`, which looks at the values of X, says of X."""
        check_is_fitted(self)
        refuse_masked(X=X)
        X = validate_data(self, X, reset=False, **AS_GIVEN)
        network = self.network_
        sparse = is_sparse(X, network.preprocessing)
        most = prediction_batch(network.config.layer_sizes, sparse_inputs=sparse)
        with Predictor(
            network,
            threads=resolve_jobs(self.n_jobs),
            batch_size=max(1, min(X.shape[0], most)),
            backend=self.backend,
        ) as predictor:
            return predict(predictor, X)


def count_rows(X: Any, weights: Weights | None) -> int:
    """Return the number of rows that are trained on: those of a weight above 0."""
    return X.shape[0] if weights is None else int(np.count_nonzero(weights))
