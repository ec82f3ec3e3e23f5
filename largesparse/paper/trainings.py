"""Which trainings the paper's tables are made of, with all their settings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..backends.choice import BackendName
from ..errors import ParameterError, check_range
from ..model.config import Activation, NetworkConfig, Regrowth, Schedule, TrainingConfig
from . import reported as paper
from .settings import SETTINGS, Settings

PRUNED = "+pruning"
VARIANTS: dict[str, Activation] = {  # of Table 2 -> activation
    "relu": "relu",
    "all_relu": "all_relu",
    "srelu": "srelu",
    "dense_relu": "relu",
    "dense_all_relu": "all_relu",
    "mlp_classifier": "relu",
}
ROWS = {  # table -> the names of its rows
    2: (
        *(name + suffix for name in ("relu", "all_relu", "srelu") for suffix in ("", PRUNED)),
        "dense_relu",
        "dense_all_relu",
        "mlp_classifier",
    ),
    3: tuple(name + suffix for name in ("sequential", "wassp", "wasap") for suffix in ("", PRUNED)),
}
TABLES = (2, 3, 5, 6)
SRELU_ALPHA = 0.2  # the left slope that SReLU's begin with (Jin et al., 2016)
# Connections left are neurons left to this power, as shares. It was measured for the percentile to
# leave the paper's share of the connections; no accuracy was looked at.
EXPONENT = 1.26
EXPONENTS = {"higgs": 1.27, "madelon": 1.0}
START_SHARE, EVERY_SHARE = paper.PRUNING_START / paper.EPOCHS, 0.1  # of the epochs


@dataclass(frozen=True)
class Protocol:
    """What is the same in all trainings of a table. None is what `settings` says."""

    settings: str = "rule"  # a key of `settings.SETTINGS`
    epochs: int = paper.EPOCHS
    seeds: tuple[int, ...] = (0,)
    train_samples: int | None = None  # which the rule's λ follows from; None is Table 1's
    learning_rate: float | None = None
    schedule: Schedule | None = None
    decay_factor: float | None = None
    warmup_epochs: float | None = None
    weight_decay: float | None = None
    dropout: float | None = None
    zeta: float = paper.ZETA
    zeta_decay: float | None = None
    regrowth: Regrowth = "initial"
    augment: bool | None = None
    validation_fraction: float = 0.0
    pruning_start: int | None = None  # None is 0.4 of the epochs, as 200 of 500
    pruning_every: int | None = None  # None is 0.1 of the epochs
    pruning_percentile: float | None = None  # None leaves about the paper's share of connections
    workers: int = paper.WORKERS
    phase_one_epochs: int | None = None
    backend: BackendName = "fused"

    def __post_init__(self) -> None:
        if self.settings not in SETTINGS:
            raise ParameterError(
                f"The 'settings' of the paper's tables must be one of {sorted(SETTINGS)}. "
                f"Got {self.settings!r} instead."
            )
        check_range("epochs", self.epochs, "the paper's tables", low=1, integer=True)
        check_range("workers", self.workers, "the paper's tables", low=1, integer=True)

    def settings_of(self, dataset: str, annealed: bool = True) -> Settings:
        """Return how networks are trained, annealed (sparse ones, by one worker) or not."""
        task = paper.TASKS[dataset]
        rows = task.train_samples if self.train_samples is None else self.train_samples
        chosen = SETTINGS[self.settings](dataset, rows, self.epochs, annealed)
        names = (field.name for field in dataclasses.fields(chosen))
        given = {name: getattr(self, name) for name in names}
        changes = {name: value for name, value in given.items() if value is not None}
        chosen = dataclasses.replace(chosen, **changes)
        if self.decay_factor not in (None, 1.0) and chosen.schedule != "step":
            raise ParameterError(
                "The 'decay_factor' of the paper's tables belongs to the schedule 'step'. "
                f"Got it with {chosen.schedule!r}: add --schedule step, or leave it out."
            )
        return chosen


@dataclass(frozen=True)
class Keyed:
    """A training that is kept, and found again, by its fields."""

    @property
    def settings(self) -> dict[str, Any]:
        """The training as JSON has it."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @property
    def key(self) -> str:
        """What two trainings have in common exactly where they are the same."""
        return key_of(self.settings)


@dataclass(frozen=True)
class Training(Keyed):
    """One training of a table: all that its result follows from."""

    dataset: str
    algorithm: str  # sequential | wasap | wassp | mlp_classifier (scikit-learn's)
    ranks: int
    network: NetworkConfig
    training: TrainingConfig
    augment: bool = False
    phase_one_epochs: int | None = None

    @property
    def dense(self) -> bool:
        """Whether every connection exists."""
        return self.network.density == 1

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Training:
        """Return the training that has these `settings`."""
        parts = {
            "network": NetworkConfig(**settings["network"]),
            "training": TrainingConfig(**settings["training"]),
        }
        return cls(**(settings | parts))


class Row(NamedTuple):
    """A row of a table: what is trained for it, and what the paper has there."""

    name: str
    trainings: tuple[Training, ...]  # a seed each
    paper: paper.Result | None


def key_of(settings: dict[str, Any]) -> str:
    """Return settings as a text that can be compared."""
    return json.dumps(settings, sort_keys=True)


def rows_of(
    table: int,
    dataset: str,
    protocol: Protocol,
    *,
    only: Sequence[str] | None = None,
    slopes: Iterable[float] = tuple(paper.TABLE_5),
) -> list[Row]:
    """Return the rows of a table for a data set.

    Parameters
    ----------
    table : int
        2, 3, 5 or 6. Table 6 has one row: it prunes the networks of Table 2's All-ReLU.
    dataset : str
        A key of `paper.TASKS`.
    protocol : Protocol
    only : sequence of str, optional
        The names of the rows wanted; those that the table does not have are ignored.
    slopes : iterable of float
        Of Table 5.
    """
    if table == 5:
        return [_slope_row(dataset, float(alpha), protocol) for alpha in slopes]
    if table == 6:
        return [_row("all_relu", dataset, protocol, paper.TABLE_2)]
    if table not in ROWS:
        raise ParameterError(f"The 'table' must be one of {TABLES}. Got {table!r} instead.")
    names = [name for name in ROWS[table] if only is None or name in only]
    results = {2: paper.TABLE_2, 3: paper.TABLE_3}[table]
    return [_row(name, dataset, protocol, results) for name in names]


def _row(name: str, dataset: str, protocol: Protocol, results: tuple[paper.Result, ...]) -> Row:
    variant, suffix, _ = name.partition(PRUNED)
    pruning = bool(suffix)
    activation: Activation = VARIANTS.get(variant, "all_relu")
    task = paper.TASKS[dataset]
    dense = variant.startswith("dense") or variant == "mlp_classifier"
    alpha = {
        "relu": 0.0,
        "srelu": SRELU_ALPHA,
        "all_relu": task.dense_alpha if dense else task.alpha,
    }[activation]
    parallel = variant in ("wasap", "wassp")
    algorithm = variant if parallel or variant == "mlp_classifier" else "sequential"
    trainings = tuple(
        _training(dataset, protocol, seed, activation, alpha, dense, pruning, algorithm)
        for seed in protocol.seeds
    )
    return Row(name, trainings, paper.result(results, dataset, variant, pruning))


def _slope_row(dataset: str, alpha: float, protocol: Protocol) -> Row:
    activation: Activation = "all_relu" if alpha else "relu"
    trainings = tuple(
        _training(dataset, protocol, seed, activation, alpha) for seed in protocol.seeds
    )
    found = paper.TABLE_5.get(alpha) if dataset == "fashion_mnist" else None
    name = f"α {alpha:g}" if alpha else "α 0 (ReLU)"
    return Row(name, trainings, paper.Result(dataset, "all_relu", False, found))


def _training(
    dataset: str,
    protocol: Protocol,
    seed: int,
    activation: Activation,
    alpha: float,
    dense: bool = False,
    pruning: bool = False,
    algorithm: str = "sequential",
) -> Training:
    task = paper.TASKS[dataset]
    parallel = algorithm in ("wasap", "wassp")
    chosen = protocol.settings_of(dataset, annealed=not (dense or parallel))
    network = NetworkConfig(
        task.layer_sizes,
        epsilon=None if dense else task.epsilon,
        density=1.0 if dense else None,
        activation=activation,
        alpha=alpha,
        initializer=task.initializer,
        regrowth=protocol.regrowth,
        seed=seed,
    )
    training = TrainingConfig(
        epochs=protocol.epochs,
        batch_size=task.batch_size,
        learning_rate=chosen.learning_rate,
        schedule=chosen.schedule,
        warmup_epochs=chosen.warmup_epochs,
        momentum=paper.MOMENTUM,
        weight_decay=chosen.weight_decay,
        dropout=chosen.dropout,
        zeta=0.0 if dense else protocol.zeta,
        zeta_decay=chosen.zeta_decay,
        validation_fraction=0.0 if parallel else protocol.validation_fraction,
        seed=seed,
        backend=protocol.backend,
        threads=1,
        **(step_schedule(chosen) if chosen.schedule == "step" else {}),
        **(pruning_schedule(dataset, protocol) if pruning else {}),
    )
    return Training(
        dataset=dataset,
        algorithm=algorithm,
        ranks=1 + protocol.workers if parallel else 1,
        network=network,
        training=training,
        augment=chosen.augment,
        phase_one_epochs=protocol.phase_one_epochs if parallel else None,
    )


def step_schedule(chosen: Settings) -> dict[str, Any]:
    """Return that η falls after every epoch, as `TrainingConfig` has it."""
    return {"decay_every": 1.0, "decay_factor": chosen.decay_factor}


def pruning_schedule(dataset: str, protocol: Protocol) -> dict[str, Any]:
    """Return when and how much Importance Pruning prunes, as `TrainingConfig` has it.

    The paper begins at epoch 200 of 500 and ends with a share of the connections (Table 2); the
    rest is ours: every tenth of the epochs, and equal shares of the neurons.

    Raises
    ------
    ParameterError
        Where no pruning falls into the training.
    """
    epochs = protocol.epochs
    start = _first(protocol.pruning_start, max(1, round(START_SHARE * epochs)))
    every = _first(protocol.pruning_every, max(1, round(EVERY_SHARE * epochs)))
    check_range("pruning_every", every, "the paper's tables", low=1, integer=True)
    count = sum(epoch % every == 0 for epoch in range(max(1, start), epochs))
    if not count:
        raise ParameterError(
            f"Importance Pruning from epoch {start} on, every {every} epochs, never happens in "
            f"{epochs} epochs. Take more --epochs, a smaller --pruning-start or "
            "--pruning-every, or rows without it (--only)."
        )
    neurons = paper.share_left(dataset) ** (1 / EXPONENTS.get(dataset, EXPONENT))
    percentile = _first(protocol.pruning_percentile, round(100 * (1 - neurons ** (1 / count)), 1))
    return {"pruning_start": start, "pruning_every": every, "pruning_percentile": percentile}


def _first(given: Any, default: Any) -> Any:
    return default if given is None else given
