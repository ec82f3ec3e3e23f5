"""How many connections layers have: by one density of them all, over time, and between layers."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..backends import operands
from ..backends.operands import count_dtype
from ..errors import ParameterError
from .evolution import Change
from .layer import SparseLayer
from .ranking import find_counts
from .rule_state import RuleState

if TYPE_CHECKING:
    from .config import NetworkConfig, TrainingConfig
    from .network import SparseMLP


class Shrinking(NamedTuple):
    """When a training takes away what a network has more of at the start (`start_factor`).

    A layer has p₀ of its cells at the start and p₁ in the end. After t epochs it may have

        p₁ + (p₀ - p₁)·(1 - (t - start)/(end - start))³

    of them, rounded to a number of connections, which takes away most of them early (Zhu & Gupta,
    "To prune, or not to prune", 2018, eq. 1). Where it has fewer already it keeps what it has.
    """

    start: int  # epochs before it begins
    end: int  # epochs after which an evolution leaves as many as there are to be in the end

    @classmethod
    def of(cls, network: SparseMLP, training: TrainingConfig) -> Shrinking | None:
        """Return that of a network's training; None where no layer is to become smaller.

        Raises
        ------
        ParameterError
            As `planned` does.
        """
        if not has_surplus(network, training.redistribute):
            return None
        return cls.planned(network.config, training)

    @classmethod
    def planned(cls, network: NetworkConfig, training: TrainingConfig) -> Shrinking:
        """Return that of a network which has a surplus.

        Raises
        ------
        ParameterError
            Where no evolution comes between its start and its end, or no epoch after it.
        """
        interval, start = training.evolution_interval, training.shrink_start
        last = last_evolution(training)
        end = training.shrink_end
        if end is None:
            end = min(last, max(start + 1, math.ceil(training.epochs / 2)))
        found = cls(start, -(-end // interval) * interval)
        if found.end > last or found.end <= start:
            wanted = "the number of epochs"
            if training.shrink_end is not None:
                wanted = f"'shrink_end' ({training.shrink_end}) or {wanted}"
            raise ParameterError(
                f"A network with a 'start_factor' of {network.start_factor:g} must become "
                f"smaller by evolutions after epoch {start} ('shrink_start'), with an epoch of "
                f"training behind them. Of {training.epochs} epochs with an evolution every "
                f"{interval} the last such is that after epoch {last}. Change {wanted}."
            )
        return found

    def targets(self, network: NetworkConfig, epochs: int) -> list[int]:
        """Return how many connections every hidden layer may have after so many epochs.

        None are returned before the first that count.
        """
        if epochs <= self.start:
            return []
        passed = min(1.0, (epochs - self.start) / (self.end - self.start))
        return hidden_connections(network, (1 - passed) ** 3)


def last_evolution(training: TrainingConfig) -> int:
    """Return the epoch after which the last evolution comes that has an epoch of training behind.

    It is 0 where there is none.
    """
    return (training.epochs - 1) // training.evolution_interval * training.evolution_interval


def hidden_connections(network: NetworkConfig, left: float = 0.0) -> list[int]:
    """Return how many connections hidden layers have where a share of their surplus is left."""
    sizes = itertools.pairwise(network.layer_sizes[:-1])
    shares = zip(sizes, network.probabilities(), network.final_probabilities(), strict=False)
    return [
        max(1, round(n_in * n_out * (last + (first - last) * left)))
        for (n_in, n_out), first, last in shares
    ]


def has_surplus(network: SparseMLP, redistribute: bool = False) -> bool:
    """Return whether a hidden layer, or all together, have more connections than in the end."""
    if network.config.start_factor == 1:
        return False
    there, wanted = network.layer_connections[:-1], hidden_connections(network.config)
    if redistribute:
        return sum(there) > sum(wanted)
    return any(map(operator.gt, there, wanted))


def plan_changes(
    layers: Sequence[SparseLayer],
    zeta: float,
    targets: Sequence[int] = (),
    *,
    redistribute: bool = False,
    hidden: int | None = None,
) -> list[Change] | None:
    """Return what an evolution changes in layers; None where each keeps its number of connections.

    `targets` are the connections that the first layers may have after it. Where a layer has more,
    the surplus goes, and ζ of what is to be left is replaced (GraNet: Liu et al., "Sparse training
    via boosting pruning plasticity with neuroregeneration", 2021; with ζ 0 nothing grows: Zhu &
    Gupta, 2018). With `redistribute` as many connections of the first `hidden` layers (by default
    all) together go and grow, but which layers lose them is told by one threshold of |w|, and where
    they grow by `share_growth`; others, and those that are frozen, keep their number.
    """
    if not (targets or redistribute):
        return None
    there = np.array([layer.nnz for layer in layers])
    allowed = np.array([*targets, *there[len(targets) :]])
    wanted = np.minimum(there, allowed)
    going = there - wanted + np.floor(zeta * wanted).astype(np.int64)
    free = [not layer.config.frozen for layer in layers[:hidden]]
    free += [False] * (len(layers) - len(free))
    if redistribute and any(free):
        evolving = list(itertools.compress(layers, free))
        total = int(min(there[free].sum(), allowed[free].sum()))
        least = count_weakest(evolving, there[free].sum() - total + math.floor(zeta * total))
        going[free] = least
        stay = there[free] - least
        room = _cells(layers)[free] - stay
        wanted[free] = stay + share_growth(total - int(stay.sum()), stay.tolist(), room.tolist())
    return [Change(*pair) for pair in zip(going.tolist(), wanted.tolist(), strict=True)]


def _cells(layers: Sequence[SparseLayer]) -> NDArray[np.int64]:
    """Return how many connections each layer could have."""
    found = []
    for k, layer in enumerate(layers):
        dead_inputs = layers[k - 1].dead if k else None
        keep = np.ones(layer.nnz, dtype=bool)
        free = RuleState(layer, 0.0, dead_inputs=dead_inputs, keep=keep).n_free
        # connections that int32 counts do not become more than it counts
        most = layer.nnz + free
        is_counted = count_dtype(layer.nnz) is np.int32
        found.append(min(most, operands.MOST_INT32) if is_counted else most)
    return np.array(found)


def solve_epsilon(shapes: Sequence[tuple[int, int]], density: float) -> float:
    """Return the ε at which layers of these shapes have a share `density` of all their cells.

    A layer (n_in, n_out) has min(n_in·n_out, ε(n_in + n_out)) connections, so ε is where a line
    with a bend for every layer that becomes full reaches the number wanted: exact but for the
    rounding of one division.

    Examples
    --------
    >>> solve_epsilon([(100, 50), (50, 10)], 0.1)  # 150 ε and 60 ε of 5000 and 500 cells
    2.619047619047619
    >>> solve_epsilon([(100, 100), (2, 2)], 0.5)  # the second is full: 200 ε + 4 of 10,004
    24.99
    """
    wanted = density * sum(n_in * n_out for n_in, n_out in shapes)
    full = 0
    remaining = sorted(shapes, key=lambda shape: shape[0] * shape[1] / sum(shape))
    while True:
        epsilon = (wanted - full) / sum(map(sum, remaining))
        n_in, n_out = remaining[0]
        if len(remaining) == 1 or epsilon * (n_in + n_out) <= n_in * n_out:
            return epsilon
        full += n_in * n_out
        del remaining[0]


def count_weakest(layers: Sequence[SparseLayer], count: int) -> list[int]:
    """Return how many of the `count` weights closest to zero, of all layers, each layer has.

    Ties fall by layer, the first one first, and one connection of every layer stays. Magnitudes are
    counted by the upper and then the lower 16 bits: O(nnz), without a copy of the weights.
    """
    from ..backends.pattern_kernels import count_magnitudes

    count = min(count, sum(layer.nnz for layer in layers))
    if count == 0:
        return [0] * len(layers)
    prefix, rest, below = 0, count, np.zeros(len(layers), dtype=np.int64)
    for shift in (16, 0):
        prefixes = np.full(2, prefix, dtype=np.int64)
        counts = np.array(
            [count_magnitudes(layer.values, shift, prefixes).sum(axis=(0, 1)) for layer in layers]
        )
        both = np.stack([counts, np.zeros_like(counts)], axis=1)  # as of one sign
        bins, rests = find_counts(both, (rest, 0))
        below += counts[:, : bins[0]].sum(axis=1)
        prefix, rest = prefix << 16 | int(bins[0]), rests[0]
    ties = counts[:, bins[0]]
    before = np.cumsum(ties) - ties
    found = below + np.clip(rest - before, 0, ties)
    least: list[int] = np.minimum(found, [max(0, layer.nnz - 1) for layer in layers]).tolist()
    return least


def share_growth(count: int, survivors: Sequence[int], room: Sequence[int]) -> list[int]:
    """Divide `count` new connections among layers in proportion to those that survive.

    No layer gets more than it has `room` for: what it would have more goes to the others (Mostafa
    & Wang, "Parameter efficient training of deep convolutional neural networks by dynamic sparse
    reparameterization", 2019, algorithm 1). What is left over by rounding goes to the layers with
    the largest remainders, ties to the first.

    Examples
    --------
    >>> share_growth(10, [30, 20, 10], [100, 100, 100])
    [5, 3, 2]
    >>> share_growth(10, [30, 20, 10], [2, 100, 100])
    [2, 5, 3]
    """
    found = [0] * len(room)
    open_ = [k for k in range(len(room)) if room[k]]
    count = min(count, sum(room))
    while count and open_:
        weights = [survivors[k] for k in open_]
        if not any(weights):
            weights = [1] * len(open_)
        total = sum(weights)
        parts = [divmod(count * weight, total) for weight in weights]
        shares = [whole for whole, _ in parts]
        largest = sorted(range(len(open_)), key=lambda place: -parts[place][1])
        for place in largest[: count - sum(shares)]:
            shares[place] += 1
        for k, share in zip(open_, shares, strict=True):
            given = min(share, room[k] - found[k])
            found[k] += given
            count -= given
        open_ = [k for k in open_ if found[k] < room[k]]
    return found
