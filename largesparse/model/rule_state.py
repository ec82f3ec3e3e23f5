"""What a rule of evolution is given, beside the layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..backends.operands import Float32, SparseBatch
from ..errors import ParameterError
from .cells import (
    Int64,
    Living,
    are_free,
    count_cells,
    draw_free_cells,
    sampled_gradient,
    score_cells,
)

if TYPE_CHECKING:
    from .layer import SparseLayer

FIRST = 2  # number of the first hidden layer, as the paper counts

Bool = NDArray[np.bool_]
# drop(layer, state, count, rng) -> kept slots, bool (nnz,)
# grow(layer, state, count, rng) -> free cells, int64 (count,)
Rule = Callable[["SparseLayer", "RuleState", int, np.random.Generator], NDArray[Any]]

SomeRule = TypeVar("SomeRule", bound=Callable[..., Any])


def needs_gradient(rule: SomeRule) -> SomeRule:
    """Mark a rule, as a decorator, as one that asks its state for gradients."""
    rule.needs_gradient = True  # type: ignore[attr-defined]
    return rule


@dataclass
class RuleState:
    """What a rule may look at beside the layer, and its only way to draw cells.

    Cells are row-major numbers i·n_out + j of input i and output j, int64.
    """

    layer: SparseLayer
    zeta: float  # share of the connections that evolution replaces
    epoch: int = 0  # epochs completed; in PyTorch, evolutions
    dead_inputs: Bool | None = None  # (n_in,), the dead neurons of the layer below
    keep: Bool | None = None  # (nnz,), the connections that stay; None before they are chosen
    X: Float32 | SparseBatch | None = None  # (n_in, batch), inputs, for rules that need gradients
    delta: Float32 | None = None  # (n_out, batch), dL/dz
    candidates: float = 4.0  # cells to look at for every connection that grows
    drop_factor: float = 1.0  # λ of |w| + λ|dL/dw|, and the temperature of soft random dropping
    name: str = ""  # of the layer in errors
    inputs_are_neurons: bool | None = None  # or features; by default the layer's number says it

    def __post_init__(self) -> None:
        self.name = self.name or f"layer {self.layer.number}"
        if self.inputs_are_neurons is None:
            self.inputs_are_neurons = self.layer.number > FIRST

    @cached_property
    def living(self) -> Living | None:
        """The living neurons, where some are dead."""
        layer = self.layer
        if layer.dead is None and self.dead_inputs is None:
            return None
        dead = self.dead_inputs
        inputs = np.arange(layer.n_in) if dead is None else np.flatnonzero(~dead)
        return Living(inputs, layer.living())

    @property
    def n_free(self) -> int:
        """Number of cells in which connections may grow."""
        if self.free_candidates is not None:
            return len(self.free_candidates)
        cells = count_cells(self.layer.topology, self.living)
        return cells - int(np.count_nonzero(self.kept))

    def fan_out(self) -> Int64:
        """Return how many connections of every input stay: int64 (n_in,)."""
        indptr = self.layer.topology.indptr
        totals = np.zeros(self.layer.nnz + 1, dtype=indptr.dtype)
        np.cumsum(self.kept, out=totals[1:])
        return (totals[indptr[1:]] - totals[indptr[:-1]]).astype(np.int64)

    def fan_in(self) -> Int64:
        """Return how many connections of every output stay: int64 (n_out,)."""
        outputs = self.layer.topology.indices[self.kept]
        return np.bincount(outputs, minlength=self.layer.n_out)

    @cached_property
    def free_candidates(self) -> Int64 | None:
        """The free cells of the layer's candidates, where it has some."""
        if self.layer.candidates is None:
            return None
        cells = self.layer.candidates.cells()
        return cells[are_free(self.layer.topology, self.kept, cells, self.living)]

    @property
    def kept(self) -> Bool:
        """`keep`, in a rule that grows: bool (nnz,)."""
        if self.keep is None:
            raise ParameterError(
                "A rule that drops connections asked for free cells, which are known only after "
                "it. Draw them in the rule that grows."
            )
        return self.keep

    def draw(self, count: int, rng: np.random.Generator) -> Int64:
        """Draw distinct free cells between living neurons, uniformly: int64 (count,), ascending.

        Of a layer with candidates they are among these.
        """
        if count > self.n_free:
            raise ParameterError(
                f"A rule asked for {count} free cells of {self.name}, which has {self.n_free}. "
                "Draw at most state.n_free."
            )
        if self.free_candidates is not None:
            return np.sort(rng.choice(self.free_candidates, count, replace=False))
        return draw_free_cells(self.layer.topology, self.kept, count, rng, self.living)

    def is_free(self, cells: Int64) -> Bool:
        """Return whether connections may grow in cells of the layer, in O(log) each."""
        free = are_free(self.layer.topology, self.kept, cells, self.living)
        candidates = self.layer.candidates
        return free if candidates is None else free & candidates.contains(cells)

    def score(self, cells: Int64) -> Float32:
        """Return dL/dw that a connection in each of some ascending cells would have: float32."""
        X, delta = self._batch()
        return score_cells(cells, self.layer.n_in, X, delta)

    def gradient(self) -> Float32:
        """Return dL/dw of the connections: float32 (nnz,)."""
        topology = self.layer.topology
        return sampled_gradient(topology.indptr, topology.indices, *self._batch())

    def _batch(self) -> tuple[Float32 | SparseBatch, Float32]:
        if self.X is None or self.delta is None:
            raise ParameterError(
                "A rule asked for a gradient that was not computed. Mark it as one that does: "
                "rule.needs_gradient = True."
            )
        return self.X, self.delta
