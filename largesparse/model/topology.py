"""Which connections of a layer exist: Erdős–Rényi sampling, coverage, and the two orders."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends import operands
from ..backends.operands import Counts, count_dtype
from ..errors import MemoryPlanError, ParameterError, check_range
from ..machine.control_groups import free_memory

logger = logging.getLogger(__name__)

# The sampler draws this many connections at a time: what is drawn does not depend on the number
# of threads, and its buffers stay small beside the layer.
BLOCK_CONNECTIONS = 1 << 20
MAX_NEURONS = 2**31 - 1  # int32 indices
SAMPLING = 24  # bytes a connection, at least, while a layer is drawn

Int32 = NDArray[np.int32]


class Topology:
    """The pattern of the connections of one layer, in two orders.

    The *input order* (rows = inputs) is the pattern of W (n_in, n_out) in CSR form; values,
    velocities and gradients are kept in it, and the backward pass uses it. The *output order*
    (rows = outputs) is that of Wᵀ, and the forward pass uses it, but for that of sparse inputs.
    It is made when it is first asked for. Within a row, indices ascend. Nothing changes in place.
    Row pointers and places of connections are int32, or int64 where int32 does not count the
    connections: see `count_dtype`. The numbers of neurons are int32.
    """

    __slots__ = ("_output_order", "indices", "indptr", "n_in", "n_out")

    def __init__(
        self, n_in: int, n_out: int, indptr: Counts, indices: Int32, *output_order: Counts
    ) -> None:
        dtype = count_dtype(len(indices))
        if indptr.dtype != dtype and indptr.dtype.kind == "i":
            counted: Counts = indptr.astype(dtype)
            if np.array_equal(counted, indptr):  # else it is damaged, which checks tell
                indptr, output_order = counted, ()  # which is made again
        self.n_in, self.n_out = n_in, n_out
        self.indptr = indptr  # (n_in + 1,)
        self.indices = indices  # (nnz,), the output of every connection
        self._output_order = output_order  # the three arrays, or none yet

    @classmethod
    def from_input_order(cls, n_in: int, n_out: int, indptr: Counts, indices: Int32) -> Topology:
        """Return the topology of a pattern in input order."""
        return cls(n_in, n_out, indptr, indices)

    @classmethod
    def from_cells(cls, n_in: int, n_out: int, cells: NDArray[np.int64]) -> Topology:
        """Return the topology of row-major cells, i·n_out + j, which ascend."""
        rows, outputs = np.divmod(cells, n_out)
        indptr = np.zeros(n_in + 1, dtype=count_dtype(len(cells)))
        np.cumsum(np.bincount(rows, minlength=n_in), out=indptr[1:])
        return cls(n_in, n_out, indptr, outputs.astype(np.int32))

    @property
    def output_order(self) -> tuple[Any, ...]:
        """`indptr_by_output`, `indices_by_output` and `to_output_order`; O(nnz + n_in + n_out)."""
        from ..backends.pattern_kernels import transpose_pattern

        if not self._output_order:
            self._output_order = transpose_pattern(self.n_out, self.indptr, self.indices)
        return self._output_order

    @property
    def indptr_by_output(self) -> Counts:
        """Row pointers of the output order, (n_out + 1,), of the dtype of `indptr`."""
        return self.output_order[0]  # type: ignore[no-any-return]

    @property
    def indices_by_output(self) -> Int32:
        """The input of every connection in output order, int32 (nnz,)."""
        return self.output_order[1]  # type: ignore[no-any-return]

    @property
    def to_output_order(self) -> Counts:
        """The place in output order of connection k of the input order, (nnz,), as `indptr`."""
        return self.output_order[2]  # type: ignore[no-any-return]

    @property
    def nnz(self) -> int:
        """Number of connections."""
        return len(self.indices)

    @property
    def is_int64(self) -> bool:
        """Whether connections are counted by int64."""
        return self.indptr.itemsize == 8

    @property
    def density(self) -> float:
        """Share of the n_in * n_out cells that are connections."""
        return self.nnz / (self.n_in * self.n_out)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays)

    @property
    def arrays(self) -> list[Counts]:
        """All five: those of the input order, and of the output order."""
        return [self.indptr, self.indices, *self.output_order]

    def rows(self) -> Int32:
        """Return the input of every connection, in input order: int32 of shape (nnz,)."""
        return np.repeat(np.arange(self.n_in, dtype=np.int32), np.diff(self.indptr))

    def cells(self) -> NDArray[np.int64]:
        """Return the row-major cell of every connection, i·n_out + j, which ascend: int64."""
        return self.rows().astype(np.int64) * self.n_out + self.indices

    def contains(self, cells: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of some row-major cells are connections: bool, as `cells`."""
        if not self.nnz:
            return np.zeros(len(cells), dtype=bool)
        own = self.cells()
        found = own[np.minimum(np.searchsorted(own, cells), self.nnz - 1)]
        return np.asarray(found == cells)


def checked_topology(n_in: int, n_out: int, indptr: Counts, indices: Int32, name: str) -> Topology:
    """Return the topology of a pattern in input order that a file called `name` holds.

    ValueError is raised where it is no such pattern; `indptr` is (n_in + 1,), `indices` (nnz,).
    """
    nnz = len(indices)
    if len(indptr) != n_in + 1:
        raise ValueError(f"{name}: indptr is not one for {n_in} rows")
    if indptr[0] != 0 or indptr[-1] != nnz or np.any(indptr[1:] < indptr[:-1]):
        raise ValueError(f"{name}: indptr does not ascend from 0")
    if nnz and (indices.min() < 0 or indices.max() >= n_out):
        raise ValueError(f"{name}: an index is outside [0, {n_out})")
    descends = indices[1:] <= indices[:-1]
    starts = indptr[1:-1]
    descends[starts[(starts > 0) & (starts < nnz)] - 1] = False
    if descends.any():
        raise ValueError(f"{name}: the indices of a row do not ascend")
    return Topology.from_input_order(n_in, n_out, indptr, indices)


def connection_probability(
    n_in: int, n_out: int, *, epsilon: float | None = None, density: float | None = None
) -> float:
    """Return the probability that a cell is a connection: min(1, ε(n_in+n_out)/(n_in·n_out)).

    Exactly one of `epsilon` (> 0) and `density` (in (0, 1]) is given.

    Raises
    ------
    ParameterError
        Where a value is out of range, or both or none are given.
    """
    check_range("n_in", n_in, "a layer", low=1, high=MAX_NEURONS, integer=True)
    check_range("n_out", n_out, "a layer", low=1, high=MAX_NEURONS, integer=True)
    n_in, n_out = int(n_in), int(n_out)
    if (epsilon is None) == (density is None):
        raise ParameterError(
            "Give either 'epsilon' or 'density' of a layer, not both and not none."
        )
    if density is not None:
        check_range("density", density, "a layer", low=0, high=1, low_open=True)
        return float(density)
    assert epsilon is not None
    check_range("epsilon", epsilon, "a layer", low=0, high=math.inf, low_open=True, high_open=True)
    return min(1.0, epsilon * (n_in + n_out) / (n_in * n_out))


def check_count(n_in: int, n_out: int, connections: int, owner: str) -> None:
    """Verify that int32 counts the connections of a layer, for an `owner` that takes no other.

    `ParameterError` says which epsilon, and how many layers, would do.
    """
    if count_dtype(connections) is np.int64:
        raise ParameterError(
            f"A layer of {n_in} x {n_out} has about {connections:.3g} connections; {owner} takes "
            f"at most {operands.MOST_INT32} a layer, which int32 counts. "
            f"{_smaller(n_in, n_out, connections, operands.MOST_INT32)}; a training by one "
            "process, or by a pipeline, has no such limit."
        )


def _check_memory(n_in: int, n_out: int, probability: float) -> None:
    """Raise `MemoryPlanError` where a layer that int32 does not count cannot fit in memory."""
    expected = math.ceil(probability * n_in * n_out)
    if count_dtype(expected) is np.int64 and SAMPLING * expected > (free := free_memory()):
        raise MemoryPlanError(
            f"A layer of {n_in} x {n_out} with density {probability:.3g} would have about "
            f"{expected:.3g} connections, which take {SAMPLING * expected / 2**30:.1f} GiB while "
            f"they are drawn, and {free / 2**30:.1f} GiB are available. "
            f"{_smaller(n_in, n_out, expected, free // SAMPLING)}."
        )


def _smaller(n_in: int, n_out: int, connections: int, limit: int) -> str:
    """Return which epsilon and how many layers have at most `limit` connections a layer."""
    most = max(1.0, limit - 6 * math.sqrt(limit))
    epsilon, layers = most / (n_in + n_out), math.ceil(connections / most)
    unit = 10.0 ** (math.floor(math.log10(epsilon)) - 1)
    return (
        f"An epsilon of at most {math.floor(epsilon / unit) * unit:g}, or {layers} layers or "
        "more for its neurons, would do"
    )


def erdos_renyi(
    n_in: int,
    n_out: int,
    probability: float,
    seed: np.random.SeedSequence,
    *,
    cover: bool = False,
    threads: int = 1,
) -> Topology:
    """Sample a topology in which each cell is a connection with `probability`, independently.

    The gaps between the connections of a row-major walk over the cells are geometric, so only
    the connections are drawn: time and memory are O(nnz + n_in + n_out), and the positions come
    out sorted and distinct.

    Parameters
    ----------
    n_in, n_out : int
    probability : float in (0, 1]
    seed : SeedSequence
    cover : bool
        Whether to move connections to neurons that have none then: see `covering`.
    threads : int
        Blocks drawn at a time. The result does not depend on it.

    Raises
    ------
    ParameterError
        Where the probability is out of range.
    MemoryPlanError
        Where int32 does not count the connections, and they do not fit in memory.
    """
    check_range("probability", probability, "erdos_renyi", low=0, high=1, low_open=True)
    n_in, n_out = int(n_in), int(n_out)
    _check_memory(n_in, n_out, probability)
    if probability == 1.0:
        logger.info("a layer of %d x %d is fully connected at this density", n_in, n_out)
        columns = np.tile(np.arange(n_out, dtype=np.int32), n_in)
        full = np.arange(n_in + 1, dtype=np.int64) * n_out
        return Topology.from_input_order(n_in, n_out, full, columns)

    rows_per_block = max(1, int(min(n_in, BLOCK_CONNECTIONS / (probability * n_out))))
    starts = range(0, n_in, rows_per_block)

    def generator(block: int) -> np.random.Generator:
        key = (*seed.spawn_key, block)
        return np.random.default_rng(np.random.SeedSequence(seed.entropy, spawn_key=key))

    def sample(block: int) -> tuple[Int32, Int32]:
        rows = min(rows_per_block, n_in - starts[block])
        return _sample_rows(rows, n_out, probability, generator(block))

    indptr, indices = _sample_blocks(sample, len(starts), threads)
    if cover:
        return covering(n_in, n_out, indptr, indices, generator(len(starts)))
    return Topology.from_input_order(n_in, n_out, indptr, indices)


def _sample_blocks(
    sample: Callable[[int], tuple[Int32, Int32]], count: int, threads: int
) -> tuple[Counts, Int32]:
    """Return the pattern of all rows, in input order, from blocks as `_sample_rows` has them."""
    if threads > 1 and count > 1:
        with ThreadPoolExecutor(threads) as pool:
            blocks = list(pool.map(sample, range(count)))
    else:
        blocks = list(map(sample, range(count)))
    counts = np.concatenate([block[0] for block in blocks])
    indices = np.concatenate([block[1] for block in blocks])
    indptr: Counts = np.zeros(len(counts) + 1, dtype=count_dtype(len(indices)))
    np.cumsum(counts, out=indptr[1:])
    return indptr, indices


def _sample_rows(
    rows: int, n_out: int, probability: float, rng: np.random.Generator
) -> tuple[Int32, Int32]:
    """Return the connections per row, and the output of each connection, of a block of rows."""
    cells = rows * n_out
    mean = cells * probability
    pieces = []
    last = -1
    while last < cells:
        remaining = max(0.0, (cells - 1 - last) * probability)
        gaps = rng.geometric(probability, size=int(remaining + 6 * math.sqrt(mean)) + 16)
        np.minimum(gaps, 2**62 // len(gaps), out=gaps)  # so that their sum does not overflow
        gaps[0] += last
        positions = np.cumsum(gaps, out=gaps)
        last = int(positions[-1])
        pieces.append(positions)
    positions = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    positions = positions[: np.searchsorted(positions, cells)]
    row = positions // n_out
    indices = (positions - row * n_out).astype(np.int32)
    return np.bincount(row, minlength=rows).astype(np.int32), indices


def covering(
    n_in: int, n_out: int, indptr: Counts, indices: Int32, rng: np.random.Generator
) -> Topology:
    """Return a pattern's topology after connections moved to the neurons that have none.

    First an input without connections takes one over from an input that has several, with its
    output; then an output without connections takes one over from an output that has several,
    with its input. So the first step leaves the degrees of all outputs as they are, and the
    second those of all inputs; the number of connections stays, and none comes to lie on another.
    Each neuron can spare all of its connections but one, and all that can be spared move with the
    same probability. Where a side has more neurons than there are connections, each connection
    gets a neuron of its own there, and those are drawn with the same probability too. So
    min(nnz, n_in) inputs and min(nnz, n_out) outputs have a connection.
    """
    from ..backends.coverage_kernels import invert
    from ..backends.pattern_kernels import transpose_pattern

    by_input = _fill_rows((indptr, indices), rng)
    by_output = _fill_rows(transpose_pattern(n_out, *by_input)[:2], rng)
    del by_input
    indptr, indices, to_input_order = transpose_pattern(n_in, *by_output)
    to_output_order = np.empty_like(to_input_order)
    invert(to_input_order, to_output_order)
    return Topology(n_in, n_out, indptr, indices, *by_output, to_output_order)


def _fill_rows(pattern: tuple[Counts, Int32], rng: np.random.Generator) -> tuple[Counts, Int32]:
    """Move connections to as many empty rows as can be, within their columns."""
    from ..backends.coverage_kernels import move_to_rows

    indptr, indices = pattern
    empty = np.flatnonzero(indptr[1:] == indptr[:-1])
    spare = len(indices) - (len(indptr) - 1 - len(empty))
    count = min(len(empty), spare)
    if count == 0:
        return pattern
    receivers = empty[(np.arange(count) * len(empty) + rng.integers(len(empty))) // count]
    turns = rng.integers(2**62, size=count)
    moved: tuple[Counts, Int32] = move_to_rows(
        indptr, indices, receivers, int(rng.integers(spare)), turns
    )
    return moved


def draw_missing_cells(
    topology: Topology,
    keep: NDArray[np.bool_],
    minimum: int,
    rng: np.random.Generator,
    inputs: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Draw the cells that outputs lack to have a minimum of connections: int64, ascending.

    They are drawn uniformly from the cells of such an output that have no connection in `keep`,
    bool (nnz,), and are those of `inputs` (by default all). Where these are too few an output gets
    all of them. The cells are row-major, i·n_out + j. O(nnz) and a sort of the connections of such
    outputs.
    """
    n_in, n_out = topology.n_in, topology.n_out
    inputs = np.arange(n_in) if inputs is None else inputs
    missing = min(minimum, len(inputs)) - np.bincount(topology.indices[keep], minlength=n_out)
    missing = np.maximum(missing, 0)
    here = keep & (missing > 0)[topology.indices]
    taken = np.sort(topology.indices[here].astype(np.int64) * n_in + topology.rows()[here])
    grown = np.empty(0, dtype=np.int64)
    while missing.any():
        outputs = np.repeat(np.arange(n_out), missing)
        drawn = np.unique(outputs * n_in + rng.choice(inputs, len(outputs)))
        drawn = np.setdiff1d(drawn, taken, assume_unique=True)
        missing -= np.bincount(drawn // n_in, minlength=n_out)
        grown, taken = np.concatenate([grown, drawn]), np.concatenate([taken, drawn])
    j, i = np.divmod(grown, n_in)
    return np.sort(i * n_out + j)


def with_minimum(topology: Topology, minimum: int, rng: np.random.Generator) -> Topology:
    """Return the topology with the connections that outputs lack to have a minimum of them."""
    there = np.ones(topology.nnz, dtype=bool)
    cells = draw_missing_cells(topology, there, minimum, rng)
    if not len(cells):
        return topology
    cells = np.sort(np.concatenate([topology.cells(), cells]))
    return Topology.from_cells(topology.n_in, topology.n_out, cells)
