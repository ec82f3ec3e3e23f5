"""Where evolution lets connections grow: at random cells, or where the gradient is largest.

`evolution.draw_free_cells` is the rule of SET. The rule here follows RigL (Evci et al., 2020),
which grows where the loss has the largest gradient, but looks at a random sample of the free
cells only, after guided stochastic exploration (Heddes et al., 2024). So it costs O(connections),
where RigL computes the gradient of every cell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..backends.operands import Float32
from .evolution import Grow, Int64, Living, draw_free_cells, evolve, mark_smallest
from .layer import SparseLayer
from .network import Visit
from .topology import Topology


class GradientGrowth:
    """Grows where |dL/dw| on a mini-batch is largest, of some free cells drawn at random.

    Parameters
    ----------
    X : float32 (n_in, batch)
        Inputs of the layer.
    delta : float32 (n_out, batch)
        dL/dz of the layer.
    candidates : float >= 1
        How many cells are drawn for every connection that grows.
    """

    def __init__(self, X: Float32, delta: Float32, candidates: float) -> None:
        self.X = X
        self.delta = delta
        self.candidates = candidates

    def __call__(
        self,
        topology: Topology,
        keep: NDArray[np.bool_],
        count: int,
        rng: np.random.Generator,
        living: Living | None = None,
    ) -> Int64:
        """Return cells for `count` connections: see `evolution.draw_free_cells`."""
        if living is None:
            cells = topology.n_in * topology.n_out
        else:
            cells = len(living.inputs) * len(living.outputs)
        free = cells - int(np.count_nonzero(keep))
        drawn = min(free, max(count, round(self.candidates * count)))
        positions = draw_free_cells(topology, keep, drawn, rng, living)
        scores = np.abs(score_cells(positions, self.X, self.delta))
        return positions[mark_smallest(-scores, count)]


def score_cells(positions: Int64, X: Float32, delta: Float32) -> Float32:
    """Return dL/dw = Σ_b X[i, b] · delta[j, b] that a connection in each cell would have.

    Parameters
    ----------
    positions : int64 (n,)
        Row-major cells i·n_out + j, ascending.
    X : float32 (n_in, batch)
    delta : float32 (n_out, batch)

    Returns
    -------
    scores : float32 (n,)
    """
    from ..backends.kernels import sddmm

    rows, columns = np.divmod(positions, len(delta))
    indptr = np.zeros(len(X) + 1, dtype=np.int32)
    np.cumsum(np.bincount(rows, minlength=len(X)), out=indptr[1:])
    scores = np.empty(len(positions), dtype=np.float32)
    indices = columns.astype(np.int32)
    sddmm(indptr, indices, X, delta, scores, False)
    return scores


class Walk(NamedTuple):
    """A backward pass through a network, from the last layer to the first."""

    run: Callable[[Visit], object]  # see `SparseMLP.backward` for what it calls
    candidates: float  # see `GradientGrowth`


def evolve_layers(
    layers: Sequence[SparseLayer],
    zeta: float,
    rng_of: Callable[[SparseLayer], np.random.Generator],
    walk: Walk | None = None,
    *,
    keep_maps: bool = True,
) -> list[NDArray[np.int32]]:
    """Evolve the hidden layers of a network in place; return their slot maps.

    Parameters
    ----------
    layers : sequence of SparseLayer
        All but the output layer, the first hidden one first.
    zeta : float in [0, 1)
    rng_of : callable
        Returns the generator that a layer's evolution draws from.
    walk : Walk, optional
        Lets connections grow by the gradient. Layers then evolve from the last to the first: each
        when dL/dz has been passed through it to the layer below, by its old connections.
    keep_maps : bool
        Whether the slot maps are returned: 4 bytes for every connection.
    """
    maps = [np.empty(0, dtype=np.int32)] * len(layers)

    def evolve_one(k: int, grow: Grow | None = None) -> None:
        dead_inputs = layers[k - 1].dead if k else None
        found = evolve(layers[k], zeta, rng_of(layers[k]), dead_inputs=dead_inputs, grow=grow)
        if keep_maps:
            maps[k] = found

    def visit(k: int, X: Float32, delta: Float32) -> None:
        if walk is not None and k < len(layers):
            evolve_one(k, GradientGrowth(X, delta, walk.candidates))

    if walk is None:
        for k in range(len(layers)):
            evolve_one(k)
    else:
        walk.run(visit)
    return maps
