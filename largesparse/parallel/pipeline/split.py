"""Which rank owns which layers: consecutive ones, the dearest rank's as cheap as possible."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...errors import ParameterError

StageCost = Callable[[int, int, int], float]  # of a rank that owns the layers [first, last)


class Stage(NamedTuple):
    """The consecutive layers [first, last) of a rank."""

    first: int
    last: int

    @property
    def layers(self) -> range:
        """The numbers of its layers in the network, from 0."""
        return range(self.first, self.last)


def split_layers(costs: Sequence[float], ranks: int) -> tuple[Stage, ...]:
    """Divide layers into stages so that the largest sum of costs of a stage is smallest.

    Parameters
    ----------
    costs : sequence of float
        Of each layer, in the network's order, not negative: bytes, or seconds of a step.
    ranks : int
        1 to the number of layers: every stage has a layer.

    Returns
    -------
    tuple of Stage
        One a rank, in order. Of several best divisions, the one whose early stages are longest.

    Raises
    ------
    ParameterError
        Where there are more ranks than layers, none, or a cost is negative.

    Examples
    --------
    >>> split_layers([4.0, 1.0, 1.0, 1.0, 3.0], 2)
    (Stage(first=0, last=2), Stage(first=2, last=5))
    """
    if any(not 0 <= cost < math.inf for cost in costs):
        raise ParameterError(
            f"The costs of layers must be numbers of 0 or more. Got {list(costs)}."
        )
    if 1 <= ranks <= len(costs):
        # each from its own first layer, so that rounding is the same wherever sums are compared
        sums = [list(itertools.accumulate(costs[first:])) for first in range(len(costs))]
        limits = sorted({total for row in sums for total in row})
        least = bisect.bisect_left(limits, True, key=lambda limit: _stages_of(sums, limit) <= ranks)
        limit = limits[least]
        return _fill(lambda _, first, last: sums[first][last - first - 1], costs, ranks, limit)
    return split_stages(lambda *_: 0.0, len(costs), ranks)  # refuses


def _stages_of(sums: Sequence[Sequence[float]], limit: float) -> int:
    """Return how few stages divide layers so that none has a larger sum; infinity for none."""
    first, count = 0, 0
    while first < len(sums):
        more = bisect.bisect_right(sums[first], limit)
        if not more:
            return len(sums) + 1
        first, count = first + more, count + 1
    return count


def split_stages(cost: StageCost, layers: int, ranks: int) -> tuple[Stage, ...]:
    """Divide layers so that the largest `cost(rank, first, last)` of a stage is smallest.

    The cost of a stage must not fall where it gets a layer more. O(ranks·layers²) costs are asked
    for. For what is returned and raised see `split_layers`.
    """
    if not 1 <= ranks <= layers:
        raise ParameterError(
            f"A pipeline over {ranks} ranks needs as many layers, and the network has {layers}, "
            f"the output layer included. Start 1 to {layers} ranks for a group, or divide the "
            "ranks into more groups."
        )
    # least[rank][first]: the dearest of the stages from this rank's on, which begins at `first`
    least = [[math.inf] * (layers + 1) for _ in range(ranks + 1)]
    least[ranks][layers] = 0.0
    for rank in range(ranks - 1, -1, -1):
        behind = least[rank + 1]
        for first in range(rank, layers - (ranks - rank) + 1):
            best = math.inf
            for last in range(first + 1, layers - (ranks - rank - 1) + 1):
                if (own := cost(rank, first, last)) >= best:
                    break  # as those with more layers
                best = min(best, max(own, behind[last]))
            least[rank][first] = best
    return _fill(cost, range(layers), ranks, least[0][0], least)


def _fill(
    cost: StageCost,
    layers: Sequence[Any],
    ranks: int,
    limit: float,
    least: Sequence[Sequence[float]] | None = None,
) -> tuple[Stage, ...]:
    """Return stages of which each has as many layers as it can, and none costs more than `limit`.

    `least[rank][first]` is the dearest of the stages from a rank's on; without, all can be filled.
    """
    stages, first = [], 0
    for rank in range(ranks):
        lasts = range(len(layers) - (ranks - rank - 1), first, -1)
        last = next(
            last
            for last in lasts
            if (least is None or least[rank + 1][last] <= limit)
            and cost(rank, first, last) <= limit
        )
        stages.append(Stage(first, last))
        first = last
    return tuple(stages)


def stages_of(bounds: Iterable[int]) -> tuple[Stage, ...]:
    """Return the stages between bounds given by hand: (0, 3, 5) are layers 0 to 2, and 3 and 4."""
    found = tuple(bounds) if isinstance(bounds, Iterable) else ()
    pairs = list(itertools.pairwise(found))
    whole = all(isinstance(bound, int | np.integer) for bound in found)
    if not pairs or not whole or found[0] != 0 or any(last <= first for first, last in pairs):
        raise ParameterError(
            "The bounds of stages must be whole numbers that start at 0 and rise, such as "
            f"(0, 3, 5). Got {bounds} instead."
        )
    return tuple(Stage(int(first), int(last)) for first, last in pairs)
