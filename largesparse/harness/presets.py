"""The architectures of the paper's Table 4 and between them, and what they are trained with."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from ..model.config import Coverage, OptimizerName, Schedule
from ..model.optimizer import OPTIMIZERS, MomentumSGD

FEATURES, BATCH_SIZE = 65_536, 128  # of section 2.4
LEAST_UPDATES, LEAST_BATCH = 200, 32  # of an epoch, and samples of an update, with recipe `width`
EXTREME = 1_000_000  # neurons from which a run has a learning curve within epochs
CURVE_POINTS, CURVE_ROWS = 5, 64  # of an epoch, and of the test rows
EXTREME_LOSS_ROWS = 256  # of training, that the loss of such a run is of


@dataclass(frozen=True)
class Table4Row:
    """A row of Table 4: measured by the paper on 96 virtual cores and 768 GB, in minutes."""

    neurons: int
    hidden_layers: int
    epsilon: float
    parameters: float  # as printed there
    workers: int
    init_min: float
    epoch_min: float
    inference_min: float
    evolution_min: float


TABLE_4 = (
    Table4Row(1_000_000, 2, 10, 20.6e6, 16, 1, 6, 2.5, 1),
    Table4Row(5_000_000, 2, 5, 50.3e6, 16, 2, 10, 6, 2),
    Table4Row(10_000_000, 2, 5, 100.3e6, 16, 3, 20, 11, 5),
    Table4Row(20_000_000, 4, 1, 40.3e6, 8, 5, 26, 18, 6),
    Table4Row(50_000_000, 10, 1, 100.3e6, 8, 9, 52, 20, 6),
)


def nearest_row(neurons: int) -> Table4Row:
    """Return the row of Table 4 with the nearest number of neurons, by ratio."""
    return min(TABLE_4, key=lambda row: abs(math.log(row.neurons / neurons)))


def hidden_sizes(neurons: int, hidden_layers: int) -> tuple[int, ...]:
    """Return the sizes of equal hidden layers with `neurons` neurons together."""
    size, rest = divmod(neurons, hidden_layers)
    return tuple(size + (k < rest) for k in range(hidden_layers))


def nominal_parameters(layer_sizes: tuple[int, ...], epsilon: float) -> float:
    """Return the number of parameters as Table 4 counts: the sum of ε·(n_in + n_out).

    It has no cap at full density, so it exceeds the number of connections that exist.
    """
    return sum(epsilon * (a + b) for a, b in itertools.pairwise(layer_sizes))


@dataclass(frozen=True)
class Hyperparameters:
    """What a recipe trains with, unless the command line says otherwise."""

    dropout: float
    schedule: Schedule
    warmup_epochs: float
    alpha: float
    coverage: Coverage  # of the initial topology
    keep_active: bool  # evolution leaves every neuron its last connections
    optimizer: OptimizerName  # of a training that has its arrays in memory
    growth: str  # of connections; the same


HYPERPARAMETERS = {
    "width": Hyperparameters(0.0, "cosine", 1.0, 0.6, "full", True, "adamw", "gradient"),
    "paper": Hyperparameters(0.4, "constant", 0.0, 0.6, "random", False, "sgd", "random"),
}


def default_batch_size(recipe: str, train_samples: int) -> int:
    """Return a mini-batch for a recipe and so many training rows.

    The paper's is 128. With few rows that is few updates an epoch, and it is updates that an
    extreme network lacks: `width` takes the largest of 128, 64 and 32 that makes about 200 an
    epoch, so 32 for 7,000 rows (219). It takes no less: below 32 an update of the connections
    takes longer than their gradient.
    """
    size = BATCH_SIZE
    while recipe == "width" and size > LEAST_BATCH and train_samples < LEAST_UPDATES * size:
        size //= 2
    return max(1, min(size, train_samples))


def default_curve(neurons: int, train_samples: int) -> tuple[int, int]:
    """Return how often an epoch, and on how many test rows, a run is evaluated within epochs.

    Networks of 1M neurons or more are, on 1 % of as many rows as are trained on, 8 to 64: five
    times takes 1 to 2 % of the epoch.
    """
    rows = min(CURVE_ROWS, max(8, train_samples // 100))
    return (CURVE_POINTS if neurons >= EXTREME else 0), rows


def evaluations(neurons: int) -> dict[str, Any]:
    """Return fields of `TrainingConfig`: what is evaluated beside the test rows after an epoch.

    Networks of 1M neurons or more are not evaluated before training, and their loss is that of 256
    training rows: of 50M, each such row takes about 40 ms.
    """
    if neurons < EXTREME:
        return {}
    return {"evaluate_first": False, "loss_rows": EXTREME_LOSS_ROWS}


def most_slots(recipe: str) -> int | None:
    """Return the gradients that a node computes at a time; None: as many as it has cores.

    For `width` it is one, by all of the node's threads, which on one node makes the updates of one
    process. With two, ten layers of 20,000 had 0.67 and 0.71 after two epochs at the best of three
    rates, and 0.75 and 0.80 with one, which took as long; 15 do not learn.
    """
    return 1 if recipe == "width" else None


STALE = 8  # what a second slot divides SGD's learning rate by
ADAM_RATE = 0.1


def default_learning_rate(
    recipe: str,
    hidden_sizes: tuple[int, ...],
    steps: int,
    *,
    optimizer: str = "sgd",
    slots: int = 1,
    batch_size: int = BATCH_SIZE,
    joined: int = 1,
) -> float:
    """Return a learning rate for a recipe.

    The paper's is 0.01, and that of its 'adam' and 'adamw' their own. Those of `width` are the
    largest that were measured to learn steadily:

    - with `adam` and `adamw` 0.1, at every depth and width: an update of theirs does not depend on
      the size of the gradient. Chosen on the twins (12 epochs) and on two epochs of 200,000 to 5M
      neurons, by AdamW, in layers of 20,000 and more: half of it is a little worse, twice of it
      unsteady;
    - with SGD 8 divided by the number of hidden layers, 4 at the most; less in layers under 2000
      neurons. That is for mini-batches of 128; for fewer samples it is multiplied by the root of
      their share, as the gradient's noise asks for: a half for 32. Above 128 it stays.

    Both are less in short trainings (by a hundredth of the steps): a high rate overshoots at first,
    and takes hundreds of steps to recover.

    Parameters
    ----------
    recipe : str
    hidden_sizes : tuple of int
    steps : int
        Updates of the whole training.
    optimizer : str
    batch_size : int
        Samples of an update.
    slots : int
        Gradients that are computed at a time and applied as they arrive (WASAP). With SGD's
        momentum stale gradients bear much less: for `width` the rate is an eighth of the above with
        two, and falls with their number less one. With two, two nets of 20,000 neurons learned at
        an eighth, and diverged at the whole rate; one was tried at a quarter, and diverged. Ten
        layers of 20,000 reached 0.842 with one slot, which has no staleness on one machine, as by
        one process (0.849), and 0.701 with two. Adam's rate is divided by their number: with four
        such nets diverge at the whole rate, and with two and four they learn at a half and a
        quarter as at less.
    joined : int
        Workers whose mini-batches are parts of one, which raise the rate as many times: Adam's
        should rise with the root only (Malladi et al., 2022), so it is divided by that.
    """
    kind = OPTIMIZERS[optimizer]
    is_sgd = issubclass(kind, MomentumSGD)
    if recipe == "paper":
        return kind.default_rate
    if not is_sgd:
        return ADAM_RATE / (slots * math.sqrt(joined)) * min(1.0, steps / 100)
    return (
        1
        / max(1, STALE * (slots - 1))
        * min(1.0, math.sqrt(batch_size / BATCH_SIZE))
        * min(8 / max(2, len(hidden_sizes)), min(hidden_sizes) / 500, steps / 100)
    )
