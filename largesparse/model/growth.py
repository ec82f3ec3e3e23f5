"""Rules by which connections grow: at random, or at the best of some free cells drawn at random.

The best are those where the gradient is largest, after RigL (Evci et al., 2020), or those that most
paths lead to. But only a random sample of the free cells is looked at, after guided stochastic
exploration (Heddes et al., 2024). So it costs O(connections), where RigL computes the gradient of
every cell.
"""

from __future__ import annotations

import numpy as np

from ..backends.operands import Float32
from .cells import Int64, are_in
from .layer import SparseLayer
from .ranking import mark_largest, mark_smallest
from .rule_state import RuleState, needs_gradient

RARE = 1e-3  # paths for a cell, below which growth by topology is at random: few have any
WIDE = 8192  # inputs or outputs above which it looks at less, as memory is slower there
PATHS, PATHS_OF_WIDE = 64, 16  # connections of a neuron that it looks at


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


def draw_candidates(
    state: RuleState, count: int, rng: np.random.Generator, share: float = 1.0
) -> Int64:
    """Draw the cells that are looked at where so many connections grow: a share of `candidates`."""
    wanted = max(count, round(share * state.candidates * count))
    return state.draw(min(state.n_free, wanted), rng)


def grow_by_paths(
    layer: SparseLayer, state: RuleState, count: int, rng: np.random.Generator
) -> Int64:
    """By topology: where most paths of three connections lead, of `candidates` / 2 cells for each.

    This is the idea of Cannistraci-Hebb training (Zhang et al., 2024, "Epitopological learning and
    Cannistraci-Hebb network shape intelligence"): a missing link is likely between neurons that
    have common neighbours, which in a layer are paths i - h - g - j of connections that stay. A
    path counts 1/√(d_h·d_g), by the degrees of the neurons on it (Kovács et al., 2019), as CH3-L3
    does with degrees outside of the local community. Cells without any are alike, and chosen at
    random. Of a neuron's connections at most `PATHS` are looked at; in layers wider than `WIDE` at
    most `PATHS_OF_WIDE`, of `candidates`·3/8 cells.
    """
    topology, left = layer.topology, np.count_nonzero(state.kept) / max(1, layer.nnz)
    fan_out, fan_in = (np.diff(x) for x in (topology.indptr, topology.indptr_by_output))
    squares = np.dot(fan_out, fan_out.astype(float)) * np.dot(fan_in, fan_in.astype(float))
    paths = left**3 * squares / max(1, layer.nnz)  # where connections do not depend on each other
    if paths < RARE * layer.n_in * layer.n_out:
        return state.draw(count, rng)
    cells = draw_candidates(state, count, rng, share=0.375 if _is_wide(layer) else 0.5)
    return cells[mark_largest(score_by_paths(layer, state, cells), count, rng)]


def _is_wide(layer: SparseLayer) -> bool:
    return max(layer.n_in, layer.n_out) > WIDE


def score_by_paths(layer: SparseLayer, state: RuleState, cells: Int64) -> Float32:
    """Return the paths to ascending cells, as `grow_by_paths` counts them: float32."""
    from ..backends.path_kernels import score_paths, thin_rows

    topology, kept = layer.topology, state.kept
    most = PATHS_OF_WIDE if _is_wide(layer) else PATHS
    kept_by_output = np.empty_like(kept)
    kept_by_output[topology.to_output_order] = kept
    *by_input, fan_out = thin_rows(topology.indptr, topology.indices, kept, most)
    by_output = topology.indptr_by_output, topology.indices_by_output
    *by_output, fan_in = thin_rows(*by_output, kept_by_output, most)
    # those that are looked at stand for all, and a degree of 0 has no path
    shares = [np.maximum(degrees / most, 1) for degrees in (fan_in, fan_out)]
    w, v = (1 / np.sqrt(np.maximum(degrees, 1)) for degrees in (fan_in, fan_out))
    weights = w * shares[0], shares[0], v, shares[1]
    scores = np.empty(len(cells), dtype=np.float32)
    plain = tuple(array.astype(np.float32) for array in weights)
    score_paths(tuple(by_input), tuple(by_output), plain, cells, scores)
    return scores


def reconnect(layer: SparseLayer, state: RuleState, count: int, rng: np.random.Generator) -> Int64:
    """Neurons without inputs or without outputs first, a connection each; the rest at random.

    The other end is a random living neuron, or among the neuron's candidates. Where the neurons are
    more than the connections, those that get one are drawn.
    """
    n_in, n_out = layer.n_in, layer.n_out
    inputs, outputs = np.arange(n_in), np.arange(n_out)
    if state.living is not None:
        inputs, outputs = state.living
    lonely_inputs = inputs[state.fan_out()[inputs] == 0]
    lonely_outputs = outputs[state.fan_in()[outputs] == 0]
    if (free := state.free_candidates) is not None:
        ends = (free // n_out, lonely_inputs), (free % n_out, lonely_outputs)
        found = [free[_one_of_each(owners, lonely, rng)] for owners, lonely in ends]
    else:
        found = [
            lonely_inputs * n_out + rng.choice(outputs, len(lonely_inputs)),
            rng.choice(inputs, len(lonely_outputs)) * n_out + lonely_outputs,
        ]
    cells = np.concatenate(found)
    if len(cells) > count:
        cells = rng.choice(cells, count, replace=False, shuffle=False)
    cells.sort()
    first = np.ones(len(cells), dtype=bool)  # of those at the same cell
    first[1:] = cells[1:] != cells[:-1]
    cells = cells[first & state.is_free(cells)]
    missing, wanted = count - len(cells), 0
    others = cells[:0]
    while len(others) < missing:  # few of those drawn are among the cells, but in small layers
        wanted = min(state.n_free, 2 * wanted or missing + missing // 16 + 16)
        others = state.draw(wanted, rng)
        others = others[~are_in(others, cells)]
    surplus = len(others) - missing
    others = np.delete(others, rng.choice(len(others), surplus, replace=False, shuffle=False))
    return np.sort(np.concatenate([cells, others]), kind="stable")  # it merges what ascends


def _one_of_each(owners: Int64, wanted: Int64, rng: np.random.Generator) -> Int64:
    """Return a random place of each wanted number in `owners`, but of those that are not there."""
    order = np.argsort(owners, kind="stable")
    first, end = (np.searchsorted(owners, wanted, side, order) for side in ("left", "right"))
    there = first < end
    return order[rng.integers(first[there], end[there])]
