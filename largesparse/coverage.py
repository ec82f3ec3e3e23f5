"""Topologies that leave no neuron without an input and an output, where there are enough."""

from __future__ import annotations

import numpy as np

from .topology import Int32, Topology


def covering(
    n_in: int, n_out: int, indptr: Int32, indices: Int32, rng: np.random.Generator
) -> Topology:
    """Return a layer's topology after connections moved to the neurons that have none.

    First an input without connections takes one over from an input that has several, with its
    output; then an output without connections takes one over from an output that has several,
    with its input. So the first step leaves the degrees of all outputs as they are, and the
    second those of all inputs; the number of connections stays, and none comes to lie on another.
    Each neuron can spare all of its connections but one, and all that can be spared move with the
    same probability. Where a side has more neurons than there are connections, each connection
    gets a neuron of its own there, and those are drawn with the same probability too.

    Parameters
    ----------
    n_in, n_out : int
    indptr : int32 (n_in + 1,)
    indices : int32 (nnz,)
        The pattern in input order; within a row, indices ascend.
    rng : Generator

    Returns
    -------
    topology : Topology
        min(nnz, n_in) inputs and min(nnz, n_out) outputs have a connection.
    """
    from .backends.coverage_kernels import invert
    from .backends.pattern_kernels import transpose_pattern

    by_input = _fill_rows((indptr, indices), rng)
    by_output = _fill_rows(transpose_pattern(n_out, *by_input)[:2], rng)
    del by_input
    indptr, indices, to_input_order = transpose_pattern(n_in, *by_output)
    to_output_order = np.empty_like(to_input_order)
    invert(to_input_order, to_output_order)
    return Topology(n_in, n_out, indptr, indices, by_output[0], by_output[1], to_output_order)


def _fill_rows(pattern: tuple[Int32, Int32], rng: np.random.Generator) -> tuple[Int32, Int32]:
    """Move connections to as many empty rows as can be, within their columns."""
    from .backends.coverage_kernels import move_to_rows

    indptr, indices = pattern
    empty = np.flatnonzero(indptr[1:] == indptr[:-1])
    spare = len(indices) - (len(indptr) - 1 - len(empty))
    count = min(len(empty), spare)
    if count == 0:
        return pattern
    receivers = empty[(np.arange(count) * len(empty) + rng.integers(len(empty))) // count]
    turns = rng.integers(2**62, size=count)
    moved: tuple[Int32, Int32] = move_to_rows(
        indptr, indices, receivers, int(rng.integers(spare)), turns
    )
    return moved
