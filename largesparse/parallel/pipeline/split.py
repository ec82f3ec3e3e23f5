"""Which rank owns which layers: consecutive ones, split so that the dearest rank costs least."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from largesparse.errors import ParameterError


class Stage(NamedTuple):
    """The consecutive layers [first, last) of a rank."""

    first: int
    last: int

    @property
    def layers(self) -> range:
        """The numbers of its layers in the network, from 0."""
        return range(self.first, self.last)


def split_layers(costs: Sequence[float], ranks: int) -> tuple[Stage, ...]:
    """Divide layers into `ranks` stages so that the largest cost of a stage is smallest.

    Parameters
    ----------
    costs : sequence of float, not negative
        Of each layer, in the network's order: bytes, or seconds of a step.
    ranks : int, 1 to the number of layers
        Every stage has at least one layer.

    Returns
    -------
    stages : tuple of Stage, one a rank
        Of several best divisions, the one whose early stages have the most layers.

    Raises
    ------
    ParameterError
        If there are more ranks than layers, no rank, or a cost is negative or not a number.

    Examples
    --------
    >>> split_layers([4.0, 1.0, 1.0, 1.0, 3.0], 2)
    (Stage(first=0, last=2), Stage(first=2, last=5))
    """
    layers = len(costs)
    if not 1 <= ranks <= layers:
        raise ParameterError(
            f"A pipeline over {ranks} ranks needs as many layers: the network has {layers}. "
            f"Start 1 to {layers} ranks, or divide the ranks into groups."
        )
    if any(not cost >= 0 for cost in costs):
        raise ParameterError(
            f"The costs of layers must be numbers of 0 or more. Got {list(costs)}."
        )
    least = _smallest_largest(costs, ranks)
    stages, first = [], 0
    for rank in range(ranks):
        last, cost = first + 1, costs[first]
        # Each stage after this one needs a layer too.
        while last < layers - (ranks - rank - 1) and cost + costs[last] <= least:
            cost += costs[last]
            last += 1
        stages.append(Stage(first, last))
        first = last
    return tuple(stages)


def stages_of(bounds: Iterable[int]) -> tuple[Stage, ...]:
    """The stages between bounds given by hand: (0, 3, 5) are layers 0 to 2, and 3 and 4."""
    bounds = tuple(bounds)
    if len(bounds) < 2 or bounds[0] != 0 or any(b <= a for a, b in itertools.pairwise(bounds)):
        raise ParameterError(
            f"The bounds of stages must start at 0 and rise, such as (0, 3, 5). Got {bounds}."
        )
    return tuple(Stage(a, b) for a, b in itertools.pairwise(bounds))


def _smallest_largest(costs: Sequence[float], ranks: int) -> float:
    """The largest sum of a stage in the best division: for more and more ranks.

    Sums run in the order in which `split_layers` adds them, so that rounding is the same.
    """
    layers = len(costs)
    sums = [[0.0] * (layers + 1) for _ in range(layers)]
    for first in range(layers):
        total = costs[first]
        sums[first][first + 1] = total
        for last in range(first + 1, layers):
            total += costs[last]
            sums[first][last + 1] = total
    best = [sums[0][last] for last in range(layers + 1)]
    for parts in range(2, ranks + 1):
        best = [
            min(
                (max(best[cut], sums[cut][last]) for cut in range(parts - 1, last)),
                default=float("inf"),
            )
            for last in range(layers + 1)
        ]
    return best[layers]
