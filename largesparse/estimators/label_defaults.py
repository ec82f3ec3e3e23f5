"""What `SparseMLPClassifier` takes for "auto" where rows have any number of labels.

Chosen on parts of training rows: see docs/notebook.md.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.standardizer import Standardizer

DROPOUT = 0.5
HIDDEN = (1000, 400)
LARGEST_BATCH = 64
RATES = {"paper": 0.07, "width": 0.7}  # by recipe; "auto" is "width"
RARE, LEAST_RATE = 0.02, 0.2  # labels of a row, as a share of all, up to which that is the rate
FEWEST_EPOCHS, MOST_EPOCHS = 10, 50
EPOCH_ROWS = 500_000  # trained on in all epochs, between these bounds
DECAY = 4.0  # the weight decays of all updates add up to this, and with schedule "cosine" to half
LARGEST_DECAY = 1e-3
OUTPUT_CONNECTIONS = 400_000  # up to which the output layer is dense
OUTPUT_FAN_IN = 32  # connections of a label where there are many labels
OUTPUT_MINIMUM = 4  # connections that every label keeps
MOSTLY_ZERO = 0.5  # share of zeros from which all features have one scale


def label_rate(recipe: str, share: float, batch_size: int) -> float:
    """Return the learning rate for rows that have such a share of the labels.

    The curvature of the loss is in proportion to p(1 - p) of its labels, and the noise of a
    mini-batch of less than 64 rows to one over the root of its size.
    """
    factor = max(LEAST_RATE, RARE / max(share, RARE)) * min(
        1.0, math.sqrt(batch_size / LARGEST_BATCH)
    )
    return RATES[recipe] * factor


def label_epochs(n_rows: int) -> int:
    """Return the number of epochs."""
    return max(FEWEST_EPOCHS, min(MOST_EPOCHS, EPOCH_ROWS // n_rows))


def label_decay(updates: int) -> float:
    """Return the weight decay, which acts on every one of so many updates."""
    return min(LARGEST_DECAY, DECAY / updates)


def label_density(layer_sizes: tuple[int, ...]) -> float:
    """Return the density of the output layer."""
    n_in, n_out = layer_sizes[-2:]
    return min(1.0, max(OUTPUT_FAN_IN / n_in, OUTPUT_CONNECTIONS / (n_in * n_out)))


def one_scale(X: Any, weights: NDArray[np.floating] | None = None) -> Standardizer | None:
    """Return the standardisation of non-negative, mostly zero features: one factor for all.

    Words, tags and the like tell more by their rarity than each by its own scale. Values have then
    a mean square of 1 over the rows of a weight above 0, and zeros stay. None where X is something
    else.
    """
    if weights is not None and not weights.all():
        X = X[np.flatnonzero(weights)]
    values: NDArray[Any] = X if isinstance(X, np.ndarray) else X.data
    cells, stored = X.shape[0] * X.shape[1], np.count_nonzero(values)
    if not 0 < stored <= MOSTLY_ZERO * cells or values.min() < 0:
        return None
    scale = np.sqrt(cells / np.square(values, dtype=np.float64).sum())
    return Standardizer(np.zeros(X.shape[1]), np.full(X.shape[1], scale))
