"""The hyper-parameters of networks and of trainings. An unknown name is an error."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from ..backends.choice import BackendName
from ..errors import ParameterError, check_range
from .activations import ACTIVATIONS, TRAINED
from .density import solve_epsilon
from .given import GivenLayer
from .initializers import INITIALIZERS
from .losses import LOSSES
from .optimizer import OPTIMIZERS, Adam, Optimizer, ScheduleConfig, StepCounts
from .recipes import RECIPES
from .rule_state import Rule
from .rules import KINDS, Rules, describe_rule, plain_rule
from .topology import connection_probability
from .workspace import ACTIVATION_DTYPES

Activation = Literal["all_relu", "relu", "leaky_relu", "linear", "srelu", "prelu"]
Initializer = Literal["he_uniform", "xavier", "normal"]
Recipe = Literal["paper", "width"]
Regrowth = Literal["initial", "zero"]
Loss = Literal["softmax_cross_entropy", "binary_cross_entropy", "mean_squared_error"]
Coverage = Literal["random", "full"]
Distribution = Literal["uniform", "erdos_renyi"]
Schedule = Literal["constant", "step", "cosine"]
OptimizerName = Literal["sgd", "nesterov", "adam", "adamw"]
ActivationDtype = Literal["float32", "bfloat16"]

LOSS_ROWS = 1024
REGROWTH, COVERAGE, DISTRIBUTION = get_args(Regrowth), get_args(Coverage), get_args(Distribution)


class Chosen(float):
    """A number that followed from others of the configuration, and does so again in a copy."""


def _make_plain(config: Any) -> None:
    """Turn NumPy's numbers in a configuration into Python's, which JSON can hold."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, np.generic):
            object.__setattr__(config, field.name, value.item())


def _check_choice(name: str, value: Any, choices: Collection[str], owner: str) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ParameterError(
            f"The {name!r} parameter of {owner} must be one of {sorted(choices)}. "
            f"Got {value!r} instead."
        )


@dataclass(frozen=True)
class NetworkConfig:
    """What a network is before it is trained."""

    layer_sizes: tuple[int, ...]  # features, hidden layers, classes (or targets)
    epsilon: float | None = None  # density control; 20 where density is not given either
    density: float | None = None  # share of the cells of every layer, in place of epsilon
    activation: Activation = "all_relu"  # all_relu | relu | leaky_relu | linear | srelu | prelu
    alpha: float = 0.6  # slope of the negative side
    initializer: Initializer = "he_uniform"  # he_uniform | xavier | normal
    recipe: Recipe = "paper"  # paper | width: see largesparse.model.recipes
    regrowth: Regrowth | None = None  # of new connections: initial | zero; None is the recipe's
    seed: int = 0
    loss: Loss = "softmax_cross_entropy"  # | binary_cross_entropy (labels) | mean_squared_error
    coverage: Coverage = "random"  # random | full: see largesparse.coverage
    output_epsilon: float | None = None  # of the output layer, where it is another
    output_density: float | None = None  # share of the cells of the output layer, likewise
    output_minimum: int = 0  # connections that every output has at least, or as many as there are
    distribution: Distribution = "uniform"  # of density: see `final_probabilities`
    start_factor: float = 1.0  # connections of hidden layers at the start over those in the end
    given: tuple[GivenLayer | None, ...] = ()  # layers with a given topology: `SparseMLP` sets it
    # the rate of a layer's weights is multiplied by this over its expected connections a neuron
    # (SμPar); None: the recipe's factor
    rate_fan_in: float | None = None
    batch_norm: bool = False  # of hidden layers: see largesparse.model.normalization

    def __post_init__(self) -> None:
        owner = "a network"
        _make_plain(self)
        if not isinstance(self.layer_sizes, Sequence | np.ndarray) or len(self.layer_sizes) < 2:
            raise ParameterError(
                "The 'layer_sizes' parameter of a network must have at least two entries: "
                f"features and classes. Got {self.layer_sizes!r} instead."
            )
        for size in self.layer_sizes:
            check_range("layer_sizes", size, owner, low=1, high=2**31 - 2, integer=True)
        sizes = tuple(int(size) for size in self.layer_sizes)
        object.__setattr__(self, "layer_sizes", sizes)
        if self.epsilon is None and self.density is None:
            object.__setattr__(self, "epsilon", 20.0)
        if self.output_epsilon is not None and self.output_density is not None:
            raise ParameterError(
                "Give either 'output_epsilon' or 'output_density' of a network, not both."
            )
        check_range("output_minimum", self.output_minimum, owner, low=0, integer=True)
        if self.rate_fan_in is not None:
            check_range("rate_fan_in", self.rate_fan_in, owner, low=0, high=1e9, low_open=True)
        check_range("alpha", self.alpha, owner, low=0, high=math.inf, high_open=True)
        check_range("seed", self.seed, owner, low=0, high=2**64 - 1, integer=True)
        _check_choice("activation", self.activation, ACTIVATIONS, owner)
        _check_choice("initializer", self.initializer, INITIALIZERS, owner)
        _check_choice("recipe", self.recipe, RECIPES, owner)
        if self.regrowth is not None:
            _check_choice("regrowth", self.regrowth, REGROWTH, owner)
        _check_choice("loss", self.loss, LOSSES, owner)
        _check_choice("coverage", self.coverage, COVERAGE, owner)
        self._check_density(owner)
        if not isinstance(self.batch_norm, bool):
            raise ParameterError(
                f"The 'batch_norm' parameter of a network must be True or False. Got "
                f"{self.batch_norm!r} instead."
            )
        if self.batch_norm and self.activation in TRAINED:
            raise ParameterError(
                f"The 'batch_norm' parameter of a network must be False where the activation's "
                f"shape is trained ({self.activation}). Take another activation, or leave it out."
            )
        loss = LOSSES[self.loss]
        remedy = f"It is the number of {loss.outputs_are}."
        check_range("layer_sizes[-1]", sizes[-1], owner, low=loss.least_outputs, remedy=remedy)
        given = (GivenLayer(**each) if isinstance(each, dict) else each for each in self.given)
        object.__setattr__(self, "given", tuple(given))
        if self.output_minimum and self.given_layer(len(sizes) - 2) is not None:
            raise ParameterError(
                "The 'output_minimum' parameter of a network must be 0 where the topology of the "
                f"output layer is given. Got {self.output_minimum} instead."
            )
        self.probabilities()

    def _check_density(self, owner: str) -> None:
        _check_choice("distribution", self.distribution, DISTRIBUTION, owner)
        if self.distribution == "erdos_renyi" and self.density is None:
            raise ParameterError(
                "The 'distribution' parameter of a network is of its 'density', which is None; "
                "'epsilon' is distributed as 'erdos_renyi' anyway. Give 'density', or leave "
                "'distribution' out."
            )
        if self.distribution == "erdos_renyi" and self.epsilon is not None:
            raise ParameterError(
                f"Give either 'epsilon' or 'density' of a network, not both. Got {self.epsilon!r} "
                f"and {self.density!r}."
            )
        check_range("start_factor", self.start_factor, owner, low=1, high=math.inf, high_open=True)
        if self.start_factor != 1 and len(self.layer_sizes) == 2:
            raise ParameterError(
                "The 'start_factor' parameter of a network is of its hidden layers, and there are "
                f"none. Got {self.start_factor:g}; leave it out."
            )

    def given_layer(self, k: int) -> GivenLayer | None:
        """Return what is known of layer k (0 is the first hidden one), if its topology is given."""
        return self.given[k] if k < len(self.given) else None

    def probabilities(self) -> list[float]:
        """Return the connection probability of every layer, before training."""
        found = self.final_probabilities()
        for k in range(len(found) - 1):
            if self.given_layer(k) is None:
                found[k] = min(1.0, self.start_factor * found[k])
        return found

    def final_probabilities(self) -> list[float]:
        """Return the connection probability of every layer, or the share of its cells in the end.

        A density is that of every layer where the distribution is "uniform", and that of all layers
        together where it is "erdos_renyi": ε is solved for it, so that a layer has the share
        min(1, ε(n_in + n_out) / (n_in·n_out)) of its cells (Mocanu et al., 2018). That is the
        Erdős–Rényi kernel of Evci et al. ("Rigging the lottery", 2020), too, which differs in
        convolutions only. An output layer with a density or ε of its own does not count, nor do
        layers whose topology is given.
        """
        pairs = list(itertools.pairwise(self.layer_sizes))
        own = self.output_epsilon is not None or self.output_density is not None
        epsilon, density = self.epsilon, self.density
        if self.distribution == "erdos_renyi" and density is not None:
            check_range("density", density, "a network", low=0, high=1, low_open=True)
            drawn = range(len(pairs) - own)
            if shapes := [pairs[k] for k in drawn if self.given_layer(k) is None]:
                epsilon, density = solve_epsilon(shapes, density), None
        densities = [(epsilon, density)] * len(pairs)
        if own:
            densities[-1] = self.output_epsilon, self.output_density
        found = [
            connection_probability(*pair, epsilon=epsilon, density=density)
            for pair, (epsilon, density) in zip(pairs, densities, strict=True)
        ]
        for k, (n_in, n_out) in enumerate(pairs):
            if (given := self.given_layer(k)) is not None:
                found[k] = min(1.0, given.connections / (n_in * n_out))
        return found

    def expected_connections(self) -> float:
        """Return the expected number of connections of all layers, before training."""
        cells = (n_in * n_out for n_in, n_out in itertools.pairwise(self.layer_sizes))
        return sum(p * n for p, n in zip(self.probabilities(), cells, strict=True))

    @property
    def neurons(self) -> int:
        """Number of neurons, the sum of the hidden layers' sizes."""
        return sum(self.layer_sizes[1:-1])

    def as_dict(self) -> dict[str, Any]:
        """Return the configuration as plain Python values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained."""

    epochs: int = 100
    batch_size: int = 128  # samples per update; the last one of an epoch may be smaller
    micro_batch: int | None = None  # samples computed at once; by default the whole mini-batch
    keep_every: int = 1  # keep every k-th hidden layer's activations, compute the others twice
    activation_dtype: ActivationDtype = "float32"  # as they are kept: float32 | bfloat16 (fused)
    optimizer: OptimizerName = "sgd"  # sgd | nesterov | adam | adamw: see largesparse.optimizer
    learning_rate: float = None  # type: ignore[assignment]  # None: sgd, nesterov 0.01; else 0.001
    schedule: Schedule = "constant"  # constant | step | cosine
    warmup_epochs: float = 0.0  # the learning rate rises linearly over these
    decay_every: float = 100.0  # epochs; schedule "step"
    decay_factor: float = 0.5  # schedule "step"
    momentum: float = 0.9  # Adam's β1
    # of sgd and nesterov per step, scaled by the schedule, not by learning_rate; of adam in the
    # gradient; of adamw times the learning rate
    weight_decay: float = None  # type: ignore[assignment]  # None: 2e-4; adam 0; adamw 0.01
    beta2: float = 0.999  # Adam's
    adam_epsilon: float = 1e-8  # what Adam adds to the root of the mean square
    step_counts: StepCounts = "connection"  # connection | global: of Adam's bias correction
    connection_warmup: int = 0  # updates over which Adam's rate of a new connection rises
    clip_norm: float | None = None  # Euclidean norm of all gradients together, at the most
    dropout: float = 0.3  # share of the hidden neurons dropped
    average_decay: float = 0.0  # of an average of the weights that is evaluated; 0: without
    label_smoothing: float = 0.0  # share of each label that all classes get in equal parts
    zeta: float = 0.3  # fraction that evolution replaces; 0 is static training
    zeta_decay: float = 1.0  # zeta is multiplied by this after every evolution
    evolution_interval: int = 1  # epochs between evolutions
    evolve_output: bool = False  # evolve the output layer too
    evolve_last: bool = False  # evolve after the last epoch too; replicas of phase two never do
    drop: str | Rule = "set"  # set | magnitude | mest | soft, 'module:function' or a function
    drop_factor: float = 1.0  # λ of "mest", or the temperature of "soft"
    growth: str | Rule = "random"  # random | gradient | topology | reconnect, or as for `drop`
    growth_candidates: float = 4.0  # cells looked at for every connection that grows by a score
    keep_active: bool = False  # evolution leaves every neuron its last connection on either side
    redistribute: bool = False  # between hidden layers: see `model.density.plan_changes`
    shrink_start: int = 0  # epoch from which a network with a 'start_factor' becomes smaller
    shrink_end: int | None = None  # epoch after which it has its density; None: half of the epochs
    pruning_start: int | None = None  # first epoch of Importance Pruning (paper: 200); None is off
    pruning_every: int = 10  # epochs between prunings
    pruning_percentile: float = 5.0  # of a layer's living neurons, in importance, below it they die
    validation_fraction: float = 0.0  # share of the rows set aside to watch
    patience: int | None = None  # epochs without a better validation accuracy before stopping
    loss_rows: int = LOSS_ROWS  # of training that are evaluated after an epoch; 0: running loss
    evaluate_first: bool = True  # before training too; without it the first record has no results
    curve_points: int = 0  # times an epoch that held-out rows are evaluated: see `training.curve`
    curve_rows: int = 64  # of the held-out ones that it is
    # features to zero mean and unit variance, by the training rows; zeros of sparse X stay, unless
    standardize: bool | Literal["centered"] = True  # "centered": see `Standardizer.fit`
    seed: int = 0
    backend: BackendName | None = "auto"  # auto | mkl | fused | scipy: see `choose_backend`
    threads: int | None = None  # None is all cores

    def __post_init__(self) -> None:
        owner = "a training"
        _make_plain(self)
        _check_choice("optimizer", self.optimizer, OPTIMIZERS, owner)
        of_kind = OPTIMIZERS[self.optimizer]
        defaults = {"learning_rate": of_kind.default_rate, "weight_decay": of_kind.default_decay}
        for name, default in defaults.items():
            if getattr(self, name) is None or isinstance(getattr(self, name), Chosen):
                object.__setattr__(self, name, Chosen(default))
        if not isinstance(self.redistribute, bool):
            raise ParameterError(
                "The 'redistribute' parameter of a training must be True or False. Got "
                f"{self.redistribute!r} instead."
            )
        for name in ("epochs", "batch_size", "keep_every", "evolution_interval", "pruning_every"):
            check_range(name, getattr(self, name), owner, low=1, integer=True)
        if self.micro_batch is not None:
            check_range("micro_batch", self.micro_batch, owner, low=1, integer=True)
        _check_choice("activation_dtype", self.activation_dtype, ACTIVATION_DTYPES, owner)
        check_range("learning_rate", self.learning_rate, owner, low=0, high=1e38)
        for name in ("dropout", "average_decay", "label_smoothing"):
            check_range(name, getattr(self, name), owner, low=0, high=1, high_open=True)
        check_range("zeta", self.zeta, owner, low=0, high=1, high_open=True)
        check_range("zeta_decay", self.zeta_decay, owner, low=0, high=1)
        for kind in KINDS:
            object.__setattr__(self, kind, plain_rule(kind, getattr(self, kind), owner))
        Rules.of(keep_active=self.keep_active)
        check_range("drop_factor", self.drop_factor, owner, low=0, high=1e6)
        check_range("growth_candidates", self.growth_candidates, owner, low=1, high=1e6)
        check_range("shrink_start", self.shrink_start, owner, low=0, integer=True)
        if self.shrink_end is not None:
            check_range("shrink_end", self.shrink_end, owner, low=1, integer=True)
        if self.pruning_start is not None:
            check_range("pruning_start", self.pruning_start, owner, low=0, integer=True)
        percentile = self.pruning_percentile
        check_range("pruning_percentile", percentile, owner, low=0, high=100, high_open=True)
        check_range("seed", self.seed, owner, low=0, high=2**64 - 1, integer=True)
        fraction = "validation_fraction"
        check_range(fraction, self.validation_fraction, owner, low=0, high=1, high_open=True)
        if self.patience is not None:
            check_range("patience", self.patience, owner, low=1, integer=True)
            if self.validation_fraction == 0:
                raise ParameterError(
                    "The 'patience' parameter of a training needs a validation part: "
                    "set 'validation_fraction' above 0, for instance to 0.1."
                )
        for name in ("loss_rows", "curve_points"):
            check_range(name, getattr(self, name), owner, low=0, high=2**31, integer=True)
        check_range("curve_rows", self.curve_rows, owner, low=1, integer=True)
        if self.standardize not in (True, False, "centered"):
            raise ParameterError(
                "The 'standardize' parameter of a training must be True, False or 'centered'. "
                f"Got {self.standardize!r} instead."
            )
        if self.connection_warmup != 0 and "updates" not in of_kind.kinds:
            raise ParameterError(
                "The 'connection_warmup' parameter of a training needs optimizer='adam' or "
                f"'adamw', which count the updates. Got {self.connection_warmup!r} with "
                f"{self.optimizer!r}."
            )
        self.optimizer_at()
        Adam(beta2=self.beta2, adam_epsilon=self.adam_epsilon, step_counts=self.step_counts)
        if self.optimizer == "adamw" and self.learning_rate * self.weight_decay > 1:
            raise ParameterError(
                "The 'weight_decay' parameter of AdamW is multiplied by the learning rate, "
                f"{self.learning_rate:g}, and must be at most {1 / self.learning_rate:g}: a larger "
                f"one turns weights around. Got {self.weight_decay:g} instead."
            )
        self.rates()

    @property
    def candidates_per_connection(self) -> float:
        """Cells that evolution looks at for every connection; 0 where it grows at random."""
        random = self.growth in ("random", "reconnect")
        return 0.0 if random else self.zeta * self.growth_candidates

    @property
    def rules(self) -> Rules:
        """The rules of evolution."""
        return Rules.of(self.drop, self.growth, keep_active=self.keep_active)

    @property
    def moments(self) -> tuple[str, ...]:
        """The kinds of moments that a training keeps: see `layer.MOMENTS`."""
        kinds = OPTIMIZERS[self.optimizer].kinds
        return (*kinds, "average") if self.average_decay else kinds

    def average_share(self, step: int) -> float:
        """Return the share of the weights in their average at an update, after `step` others.

        The average has the bias of its beginning corrected (Kingma and Ba, 2015, section 3): after
        t updates it is (1 - d) Σ d^(t - i) w_i / (1 - d^t).
        """
        decay = self.average_decay
        return (1 - decay) / (1 - decay ** (step + 1))

    def optimizer_at(self, factor: float = 1.0) -> Optimizer:
        """Return the optimizer for where the schedule's factor of the learning rate is `factor`."""
        kind = OPTIMIZERS[self.optimizer]
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(kind)}
        if kind.decay_is_scheduled and factor != 1:
            options["weight_decay"] *= factor
        return kind(**options)

    def rates(self) -> ScheduleConfig:
        """Return the learning-rate schedule."""
        return ScheduleConfig(
            self.schedule, self.epochs, self.warmup_epochs, self.decay_every, self.decay_factor
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the configuration as plain Python values, rules by their names."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return plain | {kind: describe_rule(plain[kind]) for kind in KINDS}
