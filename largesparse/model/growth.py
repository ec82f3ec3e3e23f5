"""Where evolution lets connections grow: at random cells, or where the gradient is largest.

`evolution.draw_free_cells` is the rule of SET. The rule here follows RigL (Evci et al., 2020),
which grows where the loss has the largest gradient, but looks at a random sample of the free
cells only, after guided stochastic exploration (Heddes et al., 2024). So it costs O(connections),
where RigL computes the gradient of every cell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..backends.operands import Float32, SparseBatch
from .evolution import Grow, Int64, Living, count_cells, draw_free_cells, evolve, mark_smallest
from .layer import SparseLayer
from .topology import Topology


@dataclass(frozen=True)
class GradientGrowth:
    """Grows where |dL/dw| on a mini-batch is largest, of some free cells drawn at random."""

    X: Float32 | SparseBatch  # (n_in, batch), the layer's inputs
    delta: Float32  # (n_out, batch), dL/dz of the layer
    candidates: float  # cells drawn for every connection that grows; at least 1

    def __call__(
        self,
        topology: Topology,
        keep: NDArray[np.bool_],
        count: int,
        rng: np.random.Generator,
        living: Living | None = None,
    ) -> Int64:
        """Return cells for `count` connections: see `evolution.draw_free_cells`."""
        free = count_cells(topology, living) - int(np.count_nonzero(keep))
        drawn = min(free, max(count, round(self.candidates * count)))
        positions = draw_free_cells(topology, keep, drawn, rng, living)
        scores = np.abs(self.score(positions, topology.n_in))
        scores[~np.isfinite(scores)] = 0  # of a step that overflowed; else too few would grow
        return positions[mark_smallest(-scores, count)]

    def score(self, positions: Int64, n_in: int) -> Float32:
        """Return dL/dw of a connection in each cell."""
        return score_cells(positions, n_in, self.X, self.delta)


def score_cells(positions: Int64, n_in: int, X: Float32 | SparseBatch, delta: Float32) -> Float32:
    """Return dL/dw = Σ_b X[i, b] · delta[j, b] that a connection in each cell would have.

    Cells are row-major, i·n_out + j, and ascend; X is (n_in, batch), delta (n_out, batch).
    """
    from ..backends.kernels import sddmm
    from ..backends.sparse_inputs import add_sddmm

    rows, columns = np.divmod(positions, len(delta))
    indptr = np.zeros(n_in + 1, dtype=np.int32)
    np.cumsum(np.bincount(rows, minlength=n_in), out=indptr[1:])
    scores = np.zeros(len(positions), dtype=np.float32)
    indices = columns.astype(np.int32)
    if isinstance(X, SparseBatch):
        add_sddmm(indptr, indices, X, delta, scores)
    else:
        sddmm(indptr, indices, X, delta, scores, False)
    return scores


def evolve_layers(
    layers: Sequence[SparseLayer],
    zeta: float,
    rng_of: Callable[[SparseLayer], np.random.Generator],
    gradient: Callable[..., object] | None = None,
    candidates: float = 1.0,
    *,
    keep_maps: bool = True,
) -> list[NDArray[np.int32]]:
    """Evolve hidden layers, the first one first, in place; return slot maps, or empty ones.

    Connections grow by the gradient where gradient(visit=visit) computes it: see
    `SparseMLP.backward`, and `GradientGrowth` for `candidates`. Layers then evolve from the last to
    the first: each when dL/dz has been passed through it to the layer below, by its old
    connections. Kept maps take 4 bytes a connection.
    """
    maps = [np.empty(0, dtype=np.int32)] * len(layers)

    def evolve_one(k: int, grow: Grow | None = None) -> None:
        dead_inputs = layers[k - 1].dead if k else None
        found = evolve(layers[k], zeta, rng_of(layers[k]), dead_inputs=dead_inputs, grow=grow)
        if keep_maps:
            maps[k] = found

    def visit(k: int, X: Float32 | SparseBatch, delta: Float32) -> None:
        if k < len(layers):
            evolve_one(k, GradientGrowth(X, delta, candidates))

    if gradient is not None:
        gradient(visit=visit)
    else:
        for k in range(len(layers)):
            evolve_one(k)
    return maps
