"""The parameters of the estimators, and what "auto" is: the settings of network and training."""

from __future__ import annotations

import dataclasses
import numbers
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from sklearn.base import BaseEstimator

from ..backends.choice import BackendName
from ..errors import ParameterError, check_range, check_share
from ..model.config import (
    Activation,
    Distribution,
    Loss,
    NetworkConfig,
    OptimizerName,
    Recipe,
    Regrowth,
    Schedule,
    TrainingConfig,
)
from ..model.network import SparseMLP
from ..model.optimizer import StepCounts
from ..model.rule_state import Rule
from ..model.start import LayerStart, as_topologies, described, resolve, with_given_sizes
from .defaults import (
    ADAM_RATES,
    ADAMS,
    DROPOUT,
    HIDDEN,
    OWNER,
    PARTIAL_FACTOR,
    WEIGHT_DECAY,
    auto_batch_size,
    auto_decay,
    auto_epochs,
    auto_epsilon,
    auto_rate,
    auto_recipe,
    evolution_interval,
    resolve_jobs,
    stops_early,
)
from .label_defaults import DROPOUT as LABEL_DROPOUT
from .label_defaults import HIDDEN as LABEL_HIDDEN
from .label_defaults import LARGEST_BATCH as LARGEST_LABEL_BATCH
from .label_defaults import (
    OUTPUT_MINIMUM,
    label_decay,
    label_density,
    label_epochs,
    label_rate,
)

WARMUP_SHARE = 0.05  # of the epochs, over which the learning rate rises

# Fields of NetworkConfig that a saved model tells the parameters of an estimator from.
NETWORK_PARAMETERS = (
    *("epsilon", "density", "distribution", "start_factor", "output_epsilon", "output_density"),
    *("activation", "alpha", "recipe", "rate_fan_in", "regrowth", "batch_norm"),
)


@dataclass(eq=False, repr=False)
class Settings(BaseEstimator):
    """The parameters of both estimators, and what they make of a network and of a training.

    The fields are the parameters: scikit-learn reads them from the `__init__` that they make.
    """

    hidden_layer_sizes: tuple[int, ...] | Literal["auto"] = "auto"
    _: KW_ONLY
    epsilon: float | None = None
    density: float | None = None
    distribution: Distribution = "uniform"
    start_factor: float = 1.0
    output_epsilon: float | None = None
    output_density: float | None = None
    activation: Activation = "all_relu"
    alpha: float | Literal["auto"] = 0.1
    recipe: Recipe | Literal["auto"] = "auto"
    rate_fan_in: float | None = None
    regrowth: Regrowth | None = None
    batch_norm: bool = False
    topology: Any = None
    zeta: float = 0.3
    zeta_decay: float = 1.0
    evolve_output: bool = False
    drop: str | Rule = "set"
    drop_factor: float = 1.0
    growth: str | Rule = "random"
    growth_candidates: float = 4.0
    redistribute: bool = False
    keep_active: bool = False
    shrink_start: int = 0
    shrink_end: int | None = None
    pruning_start: int | None = None
    pruning_every: int = 10
    pruning_percentile: float = 5.0
    dropout: float | Literal["auto"] = "auto"
    label_smoothing: float = 0.0
    average_decay: float = 0.0
    optimizer: OptimizerName = "sgd"
    learning_rate: float | Literal["auto"] = "auto"
    schedule: Schedule = "cosine"
    momentum: float = 0.9
    weight_decay: float | Literal["auto"] = "auto"
    beta2: float = 0.999
    adam_epsilon: float = 1e-8
    step_counts: StepCounts = "connection"
    connection_warmup: int = 0
    clip_norm: float | None = None
    batch_size: int | Literal["auto"] = "auto"
    max_epochs: int | Literal["auto"] = "auto"
    early_stopping: bool | Literal["auto"] = "auto"
    validation_fraction: float = 0.1
    patience: int = 20
    standardize: bool | Literal["auto", "centered"] = "auto"
    linear_start: bool | Literal["auto"] = "auto"
    warm_start: bool = False
    random_state: Any = None
    n_jobs: int | None = None
    backend: BackendName | None = "auto"
    verbose: bool = False

    network_: SparseMLP = field(init=False)
    _made_with: Any = field(init=False, default=None)  # the `topology` of `network_`
    _column_names: ClassVar[list[str] | None] = None  # of arrays, for the command line
    _loss: Loss = field(init=False)  # of NetworkConfig
    _losses: ClassVar[tuple[Loss, ...]]  # that the kind of estimator can have

    def _network_config(
        self, n_outputs: int, n_rows: int | None, made: NetworkConfig | None = None
    ) -> tuple[NetworkConfig, dict[int, LayerStart]]:
        """Return the configuration of a network, and what its given layers begin with.

        `made` is that of a network whose given layers are those of the parameters: they are not
        read again.
        """
        topologies = as_topologies(self.topology if made is None else None)
        hidden: Any = self.hidden_layer_sizes
        if self._is_auto("hidden_layer_sizes"):
            hidden = LABEL_HIDDEN if self._has_labels else HIDDEN
            hidden = with_given_sizes(hidden, topologies, n_outputs)
            if made is not None and made.given:
                hidden = made.layer_sizes[1:-1]
        if isinstance(hidden, numbers.Integral):
            hidden = (hidden,)
        if not isinstance(hidden, tuple | list | np.ndarray):
            raise ParameterError(
                f"The 'hidden_layer_sizes' parameter of {OWNER} must be a tuple of integers, the "
                f"neurons of every hidden layer, or 'auto'. Got {hidden!r} instead."
            )
        for size in hidden:
            check_range("hidden_layer_sizes", size, OWNER, low=1, integer=True)
        sizes = (self.n_features_in_, *hidden, n_outputs)
        given = self.epsilon is not None or self.density is not None
        last = len(sizes) - 2
        is_given = last in topologies or (made is not None and made.given_layer(last) is not None)
        config = NetworkConfig(
            sizes,
            epsilon=self.epsilon if given else auto_epsilon(sizes),
            density=self.density,
            distribution=self.distribution,
            start_factor=self.start_factor,
            activation=self.activation,
            alpha=self.alpha_ if self._is_auto("alpha") else self.alpha,  # type: ignore[arg-type]
            recipe="width" if self._is_auto("recipe") else self.recipe,  # type: ignore[arg-type]
            rate_fan_in=self.rate_fan_in,
            regrowth=self.regrowth,
            batch_norm=self.batch_norm,
            loss=self._loss,
            **self._output_options(sizes, is_given),
            seed=self._seed,
        )
        starts = resolve(topologies, config, self._feature_names)
        if made is None:
            config = described(config, starts)
        else:
            config = dataclasses.replace(config, given=made.given)
        if self._is_auto("recipe") and not self._has_labels:
            config = dataclasses.replace(config, recipe=auto_recipe(config, n_rows))
        return config, starts

    def _output_options(self, sizes: tuple[int, ...], is_given: bool) -> dict[str, Any]:
        """Return how many connections the output layer of a network has, if it is not given."""
        given = {"output_epsilon": self.output_epsilon, "output_density": self.output_density}
        if not self._has_labels:
            return given
        if self.output_epsilon is None and self.output_density is None:
            given["output_density"] = label_density(sizes)
        return given if is_given else given | {"output_minimum": OUTPUT_MINIMUM}

    @property
    def _feature_names(self) -> list[str] | None:
        names = getattr(self, "feature_names_in_", self._column_names)
        return None if names is None else [str(name) for name in names]

    def _check_same_network(self) -> None:
        """Refuse to go on with a network that the parameters no longer describe."""
        config = self.network_.config
        made = config if self.topology is self._made_with else None
        wanted, _ = self._network_config(config.layer_sizes[-1], None, made)
        names = ["layer_sizes", *NETWORK_PARAMETERS]
        for name in ("recipe", "alpha"):
            if self._is_auto(name):
                names.remove(name)
        given = [
            [each and (each.evolution, each.digest) for each in one.given]
            for one in (wanted, config)
        ]
        differ = any(getattr(wanted, name) != getattr(config, name) for name in names)
        if differ or given[0] != given[1]:
            raise ParameterError(
                f"The parameters of {OWNER} that make its network were changed since the network "
                "was made, so training cannot go on with it. Restore them, or fit with "
                "warm_start=False."
            )

    def _training_config(
        self, n_rows: int, *, epochs: int | None = None, watched: bool | None = None
    ) -> TrainingConfig:
        """Return how to train on a table; given `epochs`, at a constant rate, on all its rows.

        `watched` says whether to set rows aside; by default early_stopping does.
        """
        fraction, labels = 0.0, self._has_labels
        if epochs is None:
            if watched is None:
                watched = stops_early(self.early_stopping, 0 if labels else n_rows)
            if watched:
                remedy = "Set early_stopping=False to train on all rows."
                fraction = self.validation_fraction
                check_share("validation_fraction", fraction, OWNER, remedy=remedy)
            most = auto_epochs(n_rows, self.n_features_in_, watched=fraction > 0)
            most = label_epochs(n_rows) if labels else most
            chosen = self._auto("max_epochs", most)
            schedule, warmup = self.schedule, WARMUP_SHARE * chosen
        else:
            chosen, schedule, warmup = epochs, "constant", 0.0
        n_train = max(1, n_rows - int(np.ceil(fraction * n_rows)))
        own, known = vars(self), [known.name for known in dataclasses.fields(TrainingConfig)]
        options = {name: own[name] for name in known if name in own}
        batch_size = min(n_train, self._batch_size(n_train))
        updates, decay = chosen * -(-n_train // batch_size), WEIGHT_DECAY
        if epochs is None and (labels or not fraction):
            decay = label_decay(updates) if labels else auto_decay(updates)
        rate = self._rate(n_rows, partial=epochs is not None)
        options |= {
            "dropout": self._unless_auto("dropout", LABEL_DROPOUT if labels else DROPOUT),
            "weight_decay": self._unless_auto("weight_decay", self._decay(decay, rate)),
            "standardize": self._unless_auto("standardize", True),
            "epochs": chosen,
            "batch_size": batch_size,
            "evolution_interval": evolution_interval(n_train, batch_size),
            "loss_rows": 0,  # the loss curve is the running loss
            "learning_rate": rate,
            "schedule": schedule,
            "warmup_epochs": warmup,
            "validation_fraction": fraction,
            "patience": self.patience if fraction else None,
            "seed": self._seed,
            "threads": resolve_jobs(self.n_jobs),
        }
        return TrainingConfig(**options)

    @property
    def _has_labels(self) -> bool:
        """Whether rows have any number of labels."""
        return self._loss == "binary_cross_entropy"

    def _unless_auto(self, name: str, chosen: Any) -> Any:
        """Return a parameter, or what is chosen where it is "auto"."""
        return chosen if self._is_auto(name) else getattr(self, name)

    def _is_auto(self, name: str) -> bool:
        value = getattr(self, name)
        return isinstance(value, str) and value == "auto"

    def _decay(self, share: float, rate: Any) -> float | None:
        """Return the weight decay by which weights lose a share at an update; Adam's default.

        AdamW's is times the learning rate.
        """
        if self.optimizer == "adamw" and isinstance(rate, numbers.Real) and float(rate) > 0:
            return share / float(rate)
        return None if self.optimizer in ADAMS else share

    def _rate(self, n_rows: int, *, partial: bool) -> float:
        if not self._is_auto("learning_rate"):
            return self.learning_rate  # type: ignore[return-value]  # TrainingConfig checks it
        if not partial and self._fit_rate is not None:
            return self._fit_rate
        factor = PARTIAL_FACTOR if partial else 1.0
        config = self.network_.config
        if self.optimizer in ADAMS:
            return factor * ADAM_RATES[config.recipe]
        if self._has_labels:
            batch_size = self._batch_size(n_rows)
            return factor * label_rate(config.recipe, self._label_share, batch_size)
        return factor * auto_rate(config, n_rows)

    def _auto(self, name: str, chosen: int) -> int:
        """Return a parameter that is a positive integer or 'auto', which stands for `chosen`."""
        if self._is_auto(name):
            return chosen
        value = getattr(self, name)
        return int(check_range(name, value, OWNER, low=1, integer=True, remedy="Or pass 'auto'."))

    def _batch_size(self, n_rows: int) -> int:
        chosen = auto_batch_size(n_rows)
        if self._has_labels:
            chosen = min(chosen, LARGEST_LABEL_BATCH)
        return self._auto("batch_size", chosen)
