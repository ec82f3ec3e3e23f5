"""What all contestants train, and what a contestant is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import MemoryPlanError
from ...model.config import NetworkConfig, Recipe
from ...training.memory import available_memory

SEED = 0
ALPHA = 0.6
DROPOUT = 0.3
LEARNING_RATE = 0.01
ZETA = 0.3
SGD: dict[str, Any] = {"momentum": 0.9, "weight_decay": 2e-4}
N_BATCHES = 8  # more than one, or gradients vanish as it is learnt by heart
BATCH_FLOATS = 2**28  # of all batches together, if that leaves two
INFERENCE_ROWS = 1024  # of a block in which a peer predicts; ours choose theirs

Batches = list[tuple[NDArray[np.float32], NDArray[np.int32]]]


@dataclass(frozen=True)
class Problem:
    """What all contestants train."""

    layer_sizes: tuple[int, ...]
    epsilon: float = 20.0
    batch_size: int = 128
    threads: int = 1
    recipe: Recipe = "paper"
    alpha: float = ALPHA  # All-ReLU's slope is -alpha in the first hidden layer, alpha in the next
    dropout: float = DROPOUT
    learning_rate: float = LEARNING_RATE
    seed: int = SEED

    def network(self) -> NetworkConfig:
        """Return the net as largesparse describes it, which checks sizes and ε."""
        return NetworkConfig(
            self.layer_sizes,
            self.epsilon,
            alpha=self.alpha,
            seed=self.seed,
            recipe=self.recipe,
        )

    def batches(self) -> Batches:
        """Return pairs of random X (batch, n_features) and y (batch,)."""
        rng = np.random.default_rng(SEED)
        size = self.batch_size * self.layer_sizes[0]
        count = int(np.clip(BATCH_FLOATS // size, 2, N_BATCHES))
        shape = (count, self.batch_size, self.layer_sizes[0])
        labels = rng.integers(0, self.layer_sizes[-1], shape[:2], dtype=np.int32)
        return list(zip(rng.standard_normal(shape, dtype=np.float32), labels, strict=True))


PRESETS = {
    "fashion": Problem((784, 1000, 1000, 1000, 10)),
    "cifar": Problem((3072, 4000, 1000, 4000, 10)),
    "madelon": Problem((500, 400, 100, 400, 2), epsilon=10, batch_size=32),
    "leukemia-small": Problem((5000, 2700, 2700, 18), epsilon=10, batch_size=5),
}


class Contestant(ABC):
    """A net that is trained step by step.

    Attributes
    ----------
    name : str
        As the tables call it.
    connections : int
        Weights that are not held at zero.
    """

    name: str
    connections: int

    def __init__(self, problem: Problem, batches: Batches) -> None:
        self.problem, self.batches = problem, batches

    def step(self, index: int) -> float:
        """Train one step on batch number `index` and return the loss."""
        return self.train(*self.batches[index % len(self.batches)])

    @abstractmethod
    def train(self, X: NDArray[np.float32], y: NDArray[np.int32]) -> float:
        """Train one step on X (batch, n_features) and classes y (batch,); return the loss."""

    def evolve(self) -> None:
        """Replace the fraction ζ of the connections of every sparse layer but the output one.

        Raises
        ------
        NotImplementedError
            Where the net is not sparse.
        """
        raise NotImplementedError

    def predict(self, X: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the class (n,) of every row of X (n, n_features)."""
        blocks = range(0, len(X), INFERENCE_ROWS)
        return np.concatenate([self.classes(X[k : k + INFERENCE_ROWS]) for k in blocks])

    @abstractmethod
    def classes(self, X: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the class (n,) of every row of one block X (n, n_features)."""

    @abstractmethod
    def first_weights(self) -> NDArray[np.float32]:
        """Return a copy of the weights of the first layer."""


def check_dense(cells: int) -> None:
    """Raise `MemoryPlanError` where arrays of so many floats, and a copy or two, do not fit."""
    if 3 * 4 * cells > available_memory():
        raise MemoryPlanError(f"{cells:,} dense numbers do not fit in memory")


def draw_cells(
    rng: np.random.Generator, count: int, total: int, taken: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Return `count` different cells of 0 to total - 1, none of them `taken` (sorted), sorted."""
    taken = np.empty(0, dtype=np.int64) if taken is None else taken
    if 4 * (count + len(taken)) > total:
        free = np.delete(np.arange(total), taken)
        return np.sort(rng.choice(free, count, replace=False))
    cells = np.empty(0, dtype=np.int64)
    while len(cells) < count:
        more = rng.integers(total, size=count - len(cells))
        cells = np.union1d(cells, np.setdiff1d(more, taken))
    return cells


def evolve_cells(
    rng: np.random.Generator,
    cells: NDArray[np.int64],
    values: NDArray[np.float32],
    velocity: NDArray[np.float32],
    total: int,
    bound: float,
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """Return cells (sorted), values and velocities after the fraction ζ of each sign is replaced.

    New values are uniform in ±bound; `total` is the number of the matrix's cells.
    """
    keep = np.ones(len(values), dtype=bool)
    for places in (np.flatnonzero(values > 0), np.flatnonzero(values < 0)):
        count = int(ZETA * len(places))
        if count:
            smallest = np.argpartition(abs(values[places]), count - 1)[:count]
            keep[places[smallest]] = False
    grown = draw_cells(rng, len(cells) - int(keep.sum()), total, cells[keep])
    new = rng.uniform(-bound, bound, len(grown)).astype(np.float32)
    cells = np.concatenate([cells[keep], grown])
    order = np.argsort(cells)
    values = np.concatenate([values[keep], new])
    velocity = np.concatenate([velocity[keep], np.zeros_like(new)])
    return cells[order], values[order], velocity[order]
