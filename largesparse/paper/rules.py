"""Which trainings compare rules of evolution: rules × optimizers × densities on some data sets.

The networks have the sizes of the paper's (Table 1), one global density (Erdős–Rényi), ReLU and the
recipe "width". A rule is what `TrainingConfig` and `NetworkConfig` say of evolution; everything
else is the same for all rules. Learning rate and weight decay of an optimizer are chosen for each
data set and density by a tenth of the training rows and the seed 0, with the rule "set". So that
evolution is not compared with a network that would rather have others, "static" has those that are
best for itself, and "static_set" those of the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..backends.choice import BackendName
from ..model.config import NetworkConfig, TrainingConfig
from ..model.recipes import RATE_FAN_IN
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
STATIC_SET = "static_set"  # the rule "static" with what was chosen for the others
NAMES = ("static", STATIC_SET, *list(RULES)[1:], DENSE)  # rows of the table
MEANINGS = {
    "static": "Erdős–Rényi, no evolution; learning rate and weight decay are chosen by itself",
    STATIC_SET: "Erdős–Rényi, no evolution; learning rate and weight decay as all others",
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
CHOOSERS = {"static": "static", DENSE: DENSE}  # rule -> rule that chooses for it, else "set"


class Decayed(NamedTuple):
    """What is chosen by validation rows."""

    rate: float  # the learning rate
    decay: float  # of AdamW as it is; of SGD λ/2·‖w‖² is added to the loss


# optimizer -> what to choose from
CHOICES = {
    "sgd": [Decayed(rate, decay) for decay in (1e-4, 5e-4) for rate in (0.3, 1.0)],
    "adamw": [Decayed(rate, decay) for decay in (0.03, 0.1) for rate in (0.01, 0.03)],
}
OPTIMIZERS = tuple(CHOICES)
DENSITIES = (0.01, 0.05)
# data set -> density from which on -> epochs: a step of a dense network takes 60 times as long
EPOCHS: dict[str, dict[float, int]] = {
    "fashion_mnist": {0.0: 30, 0.02: 10, 1.0: 8},
    "madelon": {0.0: 100},
    "higgs": {0.0: 20, 1.0: 10},
}
ROWS = {"higgs": 10_000}  # of training, of data sets of which not all are taken
VALIDATION = 0.1  # of the training rows, that choose
CHOOSING_ROWS = 20_000  # of training and validation, at most, that choose for a dense network
DROPOUT = 0.1  # chosen by validation rows too, once: docs/notebook.md has how
WARMUP = 0.05  # share of the epochs
LAST_ZETA = 0.1  # ζ falls to this share of what it begins with


@dataclass(frozen=True)
class RuleProtocol:
    """What is the same in all trainings of the table."""

    epochs: int | None = None  # None: `EPOCHS`
    seeds: tuple[int, ...] = (0, 1, 2)
    rows: int | None = None  # of training, at most; None: `ROWS`
    choices: int = 4  # the first so many of `CHOICES` are tried
    backend: BackendName = "fused"

    def epochs_of(self, dataset: str, density: float) -> int:
        """Return the epochs of a training."""
        known = EPOCHS[dataset]
        return self.epochs or known[max(least for least in known if least <= density)]

    def rows_of(self, dataset: str) -> int | None:
        """Return the most training rows of a data set; None where all are taken."""
        return self.rows or ROWS.get(dataset)


SHORT = RuleProtocol(epochs=8, seeds=(0, 1), rows=10_000, choices=2)


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
    def chooses(self) -> bool:
        """Whether it is one of those that choose the learning rate and the weight decay."""
        return self.training.validation_fraction > 0

    def __str__(self) -> str:
        config, chosen = self.training, ""
        if self.chooses:
            chosen = f", learning rate {config.learning_rate:g}, decay {config.weight_decay:.2g}"
        share = "" if self.rule == DENSE else f" {self.density:.0%}"
        seed = f", seed {config.seed}{chosen}"
        return f"{self.dataset} {self.rule}{share} {self.optimizer}{seed}"


def make_training(
    protocol: RuleProtocol,
    dataset: str,
    rule: str,
    optimizer: str,
    density: float,
    chosen: Decayed,
    seed: int = 0,
    *,
    chooses: bool = False,
) -> RuleTraining:
    """Return a training of the table, or one that tries what could be chosen."""
    task, share = paper.TASKS[dataset], 1.0 if rule == DENSE else density
    rule = "static" if rule == STATIC_SET else rule
    epochs, rows = protocol.epochs_of(dataset, share), protocol.rows_of(dataset)
    own: dict[str, Any] = {"zeta": 0.0} if rule == DENSE else dict(RULES[rule])
    start_factor = own.pop("start_factor", 1.0)
    network = NetworkConfig(
        task.layer_sizes,
        density=share,
        distribution="erdos_renyi",
        activation="relu",
        recipe="width",
        output_minimum=1,
        seed=seed,
    )
    decay = chosen.decay if optimizer == "adamw" else chosen.decay * chosen.rate * scale(network)
    training: dict[str, Any] = {
        "optimizer": optimizer,
        "epochs": epochs,
        "batch_size": task.batch_size,
        "learning_rate": chosen.rate,
        "weight_decay": decay,
        "schedule": "cosine",
        "warmup_epochs": WARMUP * epochs,
        "dropout": DROPOUT,
        "zeta": paper.ZETA,
        "zeta_decay": LAST_ZETA ** (1 / epochs),
        "validation_fraction": VALIDATION if chooses else 0.0,
        "loss_rows": 0,
        "seed": seed,
        "backend": protocol.backend,
        "threads": 1,
    }
    if chooses and rule == DENSE:
        rows = min(rows or CHOOSING_ROWS, CHOOSING_ROWS)
    config = TrainingConfig(**training | own)
    network = replace(network, start_factor=start_factor)
    return RuleTraining(dataset, rule, optimizer, share, network, config, rows)


def scale(network: NetworkConfig) -> float:
    """Return about the factor of the recipe "width" to the learning rate of the weights."""
    return min(1.0, RATE_FAN_IN * sum(network.layer_sizes[1:]) / network.expected_connections())


def groups(
    rules: Sequence[str], optimizers: Iterable[str], densities: Iterable[float]
) -> list[tuple[str, float, str, list[str]]]:
    """Return (optimizer, density, rule that chooses, rules) of what shares what is chosen."""
    found = []
    for optimizer in optimizers:
        for density in densities:
            for chooser in ("static", "set"):
                some = [rule for rule in rules if CHOOSERS.get(rule, "set") == chooser]
                found += [(optimizer, density, chooser, some)] if some else []
        found += [(optimizer, 1.0, DENSE, [DENSE])] if DENSE in rules else []
    return found


def choosing(
    protocol: RuleProtocol, dataset: str, optimizer: str, density: float, chooser: str
) -> list[RuleTraining]:
    """Return the trainings that choose for a group, one for each choice."""
    return [
        make_training(protocol, dataset, chooser, optimizer, density, choice, chooses=True)
        for choice in CHOICES[optimizer][: protocol.choices]
    ]


def best_choice(optimizer: str, scores: Sequence[float | None]) -> Decayed:
    """Return the choice with the best validation accuracy; of equal ones the first."""
    known = [-math.inf if score is None else score for score in scores]
    return CHOICES[optimizer][known.index(max(known))]
