"""An exponential moving average of the weights, which a training evaluates and ends with.

It is a moment of every parameter (`layer.MOMENTS`), so it follows the connections; that of a new
one begins with its weight. The running statistics of batch normalisation are averaged, too.
"""

from __future__ import annotations

from collections.abc import Sequence

from .layer import SparseLayer
from .normalization import move_


def average_(layers: Sequence[SparseLayer], share: float) -> None:
    """Move the averages so large a share of the way to the parameters."""
    for layer in layers:
        for name, average in layer.moments["average"].items():
            move_(average, getattr(layer, name), share)


def settle_(layers: Sequence[SparseLayer]) -> None:
    """Make the averages, where there are, the parameters, with other moments that begin."""
    for layer in layers:
        if "average" in layer.kinds:
            layer.restore_(layer.arrays())
            layer.keep_moments_([kind for kind in layer.kinds if kind != "average"])
