"""Rules by which connections grow: at random, or at the best of some free cells drawn at random.

The best are those where the gradient is largest, after RigL (Evci et al., 2020). But only a random
sample of the free cells is looked at, after guided stochastic exploration (Heddes et al., 2024). So
it costs O(connections), where RigL computes the gradient of every cell.
"""

from __future__ import annotations

import numpy as np

from .cells import Int64
from .layer import SparseLayer
from .ranking import mark_smallest
from .rule_state import RuleState, needs_gradient


def grow_at_random(
    layer: SparseLayer, state: RuleState, count: int, rng: np.random.Generator
) -> Int64:
    """SET: uniformly among the free cells."""
    return state.draw(count, rng)


@needs_gradient
def grow_by_gradient(
    layer: SparseLayer, state: RuleState, count: int, rng: np.random.Generator
) -> Int64:
    """RigL's idea: where |dL/dw| is largest, of `candidates` free cells for every connection."""
    cells = draw_candidates(state, count, rng)
    scores = np.abs(state.score(cells))
    scores[~np.isfinite(scores)] = 0  # of a step that overflowed; else too few would grow
    return cells[mark_smallest(-scores, count)]


def draw_candidates(state: RuleState, count: int, rng: np.random.Generator) -> Int64:
    """Draw the cells that are looked at where so many connections grow."""
    wanted = max(count, round(state.candidates * count))
    return state.draw(min(state.n_free, wanted), rng)
