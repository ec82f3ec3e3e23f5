"""How initial values and learning rates depend on a layer's width.

`paper` is the paper's: dense fan-in, one learning rate. At extreme width it does not learn: with
two connections a neuron and a fan-in of 5M the signal shrinks a thousandfold a layer. `width`
keeps the signal's size at every width, as maximal-update parametrisation does for dense nets, and
centres the output layer's gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

RATE_FAN_IN = 8.0  # connections of a neuron up to which the learning rate is not lowered
OUTPUT_SCALE = 0.01  # the output layer starts near zero, so that its size does not matter


@dataclass(frozen=True)
class LayerRecipe:
    """Numbers that one layer is built with."""

    fan_in: float  # what the initializer takes for the number of inputs of a neuron
    fan_out: float
    rate_scale: float = 1.0  # factor of the learning rate of the layer's weights
    output_scale: float = 1.0  # factor of the initial values, if it is the output layer
    regrowth: str = "initial"  # values of the connections that evolution adds: initial | zero
    center_output: bool = False  # if it is the output layer, its gradient is centred


def paper(n_in: int, n_out: int, probability: float) -> LayerRecipe:
    """Return the paper's numbers: fans as if the layer were dense."""
    return LayerRecipe(n_in, n_out)


def width(n_in: int, n_out: int, probability: float) -> LayerRecipe:
    """Return numbers that hold at every width: fans as the expected number of connections."""
    fan_in = max(1.0, probability * n_in)
    return LayerRecipe(
        fan_in,
        max(1.0, probability * n_out),
        rate_scale=min(1.0, RATE_FAN_IN / fan_in),
        output_scale=OUTPUT_SCALE,
        regrowth="zero",
        center_output=True,
    )


RECIPES: dict[str, Callable[[int, int, float], LayerRecipe]] = {"paper": paper, "width": width}
