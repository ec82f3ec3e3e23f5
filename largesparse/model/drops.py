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

    T is `drop_factor`: with 0 the smallest |w| go, with a large one any. Those go whose waiting
    time, exponential with such a rate, is shortest (Efraimidis and Spirakis, 2006); by its
    logarithm that is the Gumbel top-k trick (Kool et al., 2019, "Stochastic beams and where to find
    them"). CHTs (Zhang et al., 2025) drops softly, too.
    """
    strength = np.abs(layer.values)
    noise = rng.standard_exponential(layer.nnz, dtype=np.float32)
    np.log(np.maximum(noise, 1e-10, out=noise), out=noise)
    noise += 24  # so that none is negative
    noise *= np.float32(state.drop_factor * float(strength.mean(dtype=np.float64)))
    strength += noise
    return without_smallest(strength, [count, 0])
