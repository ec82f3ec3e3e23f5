"""Rules by which connections go: the weakest by a score, ties by position. All are O(nnz).

Nowak et al. (2023, "Fantastic weights and how to find them") compare such scores.
"""

from __future__ import annotations

import numpy as np

from .layer import SparseLayer
from .ranking import survivors, without_smallest
from .rule_state import Bool, RuleState, needs_gradient


def drop_by_sign(
    layer: SparseLayer, state: RuleState, count: int, rng: np.random.Generator
) -> Bool:
    """SET (Mocanu et al., 2018): of each sign, the share ζ that is closest to zero goes."""
    return survivors(layer.values, state.zeta)


def drop_by_magnitude(
    layer: SparseLayer, state: RuleState, count: int, rng: np.random.Generator
) -> Bool:
    """The smallest |w| go, whatever their sign."""
    return without_smallest(np.abs(layer.values), [count, 0])


@needs_gradient
def drop_by_magnitude_and_gradient(
    layer: SparseLayer, state: RuleState, count: int, rng: np.random.Generator
) -> Bool:
    """MEST (Yuan et al., 2021): the smallest |w| + λ|dL/dw| go."""
    scores = state.gradient()
    np.abs(scores, out=scores)
    scores *= np.float32(state.drop_factor)
    scores[~np.isfinite(scores)] = 0  # of a step that overflowed
    scores += np.abs(layer.values)
    return without_smallest(scores, [count, 0])


def drop_softly(layer: SparseLayer, state: RuleState, count: int, rng: np.random.Generator) -> Bool:
    """Draw those that go without replacement, each with a probability ∝ exp(-|w| / (T·mean|w|)).

    Those go whose -|w|/(T·mean|w|) + Gumbel noise is largest (Kool et al., 2019, "Stochastic beams
    and where to find them"); here, by the same order, those whose exponential waiting time of such
    a rate is smallest (Efraimidis and Spirakis, 2006). T is `drop_factor`: towards 0 the smallest
    |w| go, with a large T any.
    """
    strength = np.abs(layer.values)
    mean = float(strength.mean(dtype=np.float64))
    if mean > 0:
        strength *= np.float32(1 / max(mean * state.drop_factor, 1e-30))
    waiting = np.exp(np.minimum(strength, 80, out=strength), out=strength)
    waiting *= rng.standard_exponential(layer.nnz, dtype=np.float32)
    return without_smallest(waiting, [count, 0])
