"""The architectures of the paper's Table 4, and those of other sizes between them."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass


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
