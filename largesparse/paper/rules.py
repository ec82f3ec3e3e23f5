"""Which trainings compare rules of evolution: rules × optimizers × densities on some data sets.

The networks have the sizes of the paper's (Table 1), one global density (Erdős–Rényi), ReLU and the
recipe "width". A rule is what `TrainingConfig` and `NetworkConfig` say of evolution; everything
else is the same for all rules. The learning rate of an optimizer is chosen for each data set and
density by a tenth of the training rows, with the rule "set" and the seed 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..backends.choice import BackendName
from ..model.config import NetworkConfig, TrainingConfig
from . import reported as paper
from .trainings import Keyed

START_FACTOR = 4.0  # of the rules that begin denser
RULES: dict[str, dict[str, Any]] = {  # name -> settings of the evolution
    "static": {"zeta": 0.0},
    "set": {},
    "magnitude": {"drop": "magnitude"},
    "soft": {"drop": "soft"},
    "mest": {"drop": "mest"},
    "reconnect": {"growth": "reconnect"},
    "rigl": {"drop": "magnitude", "growth": "gradient"},
    "topology": {"drop": "magnitude", "growth": "topology"},
    "dsr": {"drop": "magnitude", "redistribute": True},
    "gradual": {"drop": "magnitude", "zeta": 0.0, "start_factor": START_FACTOR},
    "granet": {"drop": "magnitude", "growth": "gradient", "start_factor": START_FACTOR},
}
DENSE = "dense"
MEANINGS = {
    "static": "Erdős–Rényi, no evolution",
    "set": "SET: the weakest of each sign go, others grow at random",
    "magnitude": "the weakest of all go, others grow at random",
    "soft": "weak ones go by chance, others grow at random",
    "mest": "MEST: the smallest |w| + |gradient| go, others grow at random",
    "reconnect": "SET, growing first at neurons without connections",
    "rigl": "RigL: the weakest go, others grow where the gradient is largest",
    "topology": "the weakest go, others grow where most paths lead",
    "dsr": "DSR: one threshold for all layers, growth where connections survive",
    "gradual": f"gradual magnitude pruning from {START_FACTOR:g} times the connections",
    "granet": f"GraNet: the same with RigL's growth, from {START_FACTOR:g} times the connections",
    DENSE: "every connection",
}
RATES: dict[str, tuple[float, ...]] = {  # optimizer -> learning rates to choose from
    "sgd": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    "adamw": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "weight_decay": 1e-5},
    "adamw": {"optimizer": "adamw", "weight_decay": 1e-3},  # which the learning rate multiplies
}
DENSITIES = (0.01, 0.05)
EPOCHS = {"fashion_mnist": 20, "madelon": 100, "higgs": 20}
VALIDATION = 0.1  # of the training rows, that choose a learning rate
WARMUP = 0.05  # share of the epochs
LAST_ZETA = 0.1  # ζ falls to this share of what it begins with


@dataclass(frozen=True)
class RuleProtocol:
    """What is the same in all trainings of the table."""

    epochs: int | None = None  # None: `EPOCHS`
    seeds: tuple[int, ...] = (0, 1, 2)
    rows: int | None = None  # of training, at most
    rates: int = 4  # of each optimizer, the middle ones, that are tried
    backend: BackendName = "fused"

    def epochs_of(self, dataset: str) -> int:
        """Return the epochs of a data set."""
        return self.epochs or EPOCHS[dataset]

    def rates_of(self, optimizer: str) -> tuple[float, ...]:
        """Return the learning rates to choose from."""
        rates = RATES[optimizer]
        first = (len(rates) - self.rates) // 2 if self.rates < len(rates) else 0
        return rates[max(0, first) :][: self.rates]


SHORT = RuleProtocol(epochs=8, seeds=(0, 1), rows=10_000, rates=2)


@dataclass(frozen=True)
class RuleTraining(Keyed):
    """One training: all that its result follows from."""

    dataset: str
    rule: str
    optimizer: str
    density: float
    network: NetworkConfig
    training: TrainingConfig
    rows: int | None  # of training, at most

    @property
    def chooses_rate(self) -> bool:
        """Whether it is one of those that choose a learning rate."""
        return self.training.validation_fraction > 0

    def __str__(self) -> str:
        rate = f", learning rate {self.training.learning_rate:g}" if self.chooses_rate else ""
        share = "" if self.rule == DENSE else f" {self.density:.0%}"
        seed = f", seed {self.training.seed}{rate}"
        return f"{self.dataset} {self.rule}{share} {self.optimizer}{seed}"


def make_training(
    protocol: RuleProtocol,
    dataset: str,
    rule: str,
    optimizer: str,
    density: float,
    rate: float,
    seed: int = 0,
    *,
    chooses_rate: bool = False,
) -> RuleTraining:
    """Return a training of the table, or one that chooses its learning rate."""
    task, epochs = paper.TASKS[dataset], protocol.epochs_of(dataset)
    own: dict[str, Any] = {"zeta": 0.0} if rule == DENSE else dict(RULES[rule])
    network = NetworkConfig(
        task.layer_sizes,
        density=1.0 if rule == DENSE else density,
        distribution="erdos_renyi",
        start_factor=own.pop("start_factor", 1.0),
        activation="relu",
        recipe="width",
        output_minimum=1,
        seed=seed,
    )
    training: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": task.batch_size,
        "learning_rate": rate,
        "schedule": "cosine",
        "warmup_epochs": WARMUP * epochs,
        "dropout": 0.0,
        "zeta": paper.ZETA,
        "zeta_decay": LAST_ZETA ** (1 / epochs),
        "validation_fraction": VALIDATION if chooses_rate else 0.0,
        "loss_rows": 0,
        "seed": seed,
        "backend": protocol.backend,
        "threads": 1,
    }
    config = TrainingConfig(**training | OPTIMIZERS[optimizer] | own)
    share = 1.0 if rule == DENSE else density
    return RuleTraining(dataset, rule, optimizer, share, network, config, protocol.rows)


def groups(
    rules: Sequence[str], optimizers: Iterable[str], densities: Iterable[float]
) -> list[tuple[str, float, list[str]]]:
    """Return (optimizer, density, rules) of the trainings that share a learning rate."""
    sparse = [rule for rule in rules if rule != DENSE]
    found = []
    for optimizer in optimizers:
        found += [(optimizer, density, sparse) for density in densities if sparse]
        found += [(optimizer, 1.0, [DENSE])] if DENSE in rules else []
    return found


def choosing(
    protocol: RuleProtocol, dataset: str, optimizer: str, density: float
) -> list[RuleTraining]:
    """Return the trainings that choose the learning rate of a group, one for each rate."""
    rule = DENSE if density == 1 else "set"
    return [
        make_training(protocol, dataset, rule, optimizer, density, rate, chooses_rate=True)
        for rate in protocol.rates_of(optimizer)
    ]


def best_rate(trainings: Sequence[RuleTraining], scores: Sequence[float | None]) -> float:
    """Return the learning rate with the best validation accuracy; of equal ones the lowest."""
    known = [-math.inf if score is None else score for score in scores]
    return trainings[known.index(max(known))].training.learning_rate
