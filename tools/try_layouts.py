"""Time ways to lay out a layer's connections and activations, beside the way that is used.

    python tools/try_layouts.py --layer 5M,5M --connections 10M --batch-size 32 --threads 2

Variants of one layer's fused forward and backward passes, alternating in one run:

  as drawn     the random topology, float32
  relabelled   outputs numbered by their first input, so that rows that are read together lie
               together; a network relabels layer by layer, and its outputs stay the same
  blocks       the rows that are gathered in blocks that fit the cache, a pass over the outputs
               for each
  bfloat16     rows in bfloat16

and ways to keep less of a connection, as passes over the connections:

  update       momentum SGD with the copy into output order, with the velocity in bfloat16, and
               without any (momentum 0)
  one order    the forward pass from weights in input order, found by a permutation, beside the
               same loop (`plain`) from a copy in output order; no copy is made by `update`
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numba import prange
from numpy.typing import NDArray
from scipy.sparse import csr_array
from tqdm import tqdm

from largesparse.backends import get_backend
from largesparse.backends.base import prefetch_distance
from largesparse.backends.compiling import kernel
from largesparse.backends.kernels import BLOCK
from largesparse.backends.rows import prefetch_rows, reorder_range
from largesparse.backends.vectors import as_float
from largesparse.cli import parse_size, run_command
from largesparse.errors import ParameterError
from largesparse.mapped_memory import aligned_zeros
from largesparse.randomness import stream
from largesparse.topology import Topology, erdos_renyi

ROWS = 32  # rows of the output that a thread takes at a time


class Pass(NamedTuple):
    """The pattern that a pass walks, its rows being outputs (forward) or inputs (backward)."""

    indptr: NDArray[np.int32]
    indices: NDArray[np.int32]
    values: NDArray[np.float32]


def relabelled(topology: Topology) -> Topology:
    """Number the outputs by their first input."""
    starts = topology.indptr_by_output[:-1]
    first = np.full(topology.n_out, topology.n_in)
    used = np.diff(topology.indptr_by_output) > 0
    first[used] = topology.indices_by_output[starts[used]]
    new = np.empty(topology.n_out, dtype=np.int32)
    new[np.argsort(first, kind="stable")] = np.arange(topology.n_out)
    shape = topology.n_in, topology.n_out
    ones = np.ones(topology.nnz, dtype=np.int8)
    pattern = csr_array((ones, new[topology.indices], topology.indptr), shape=shape)
    pattern.sort_indices()
    return Topology.from_input_order(*shape, topology.indptr, pattern.indices.astype(np.int32))


def blocks(full: Pass, columns: int, count: int) -> list[Pass]:
    """Cut a pass into blocks of the rows that it gathers."""
    found = []
    for block in range(count):
        low, high = columns * block // count, columns * (block + 1) // count
        inside = (full.indices >= low) & (full.indices < high)
        indptr = np.append(0, np.cumsum(inside))[full.indptr].astype(np.int32)
        found.append(Pass(indptr, full.indices[inside], full.values[inside]))
    return found


@kernel()
def product(indptr, indices, values, X, ahead, out):
    """The plain loop out = A·X, of float32."""
    n, batch = out.shape
    for chunk in prange((n + ROWS - 1) // ROWS):
        for j in range(chunk * ROWS, min(n, (chunk + 1) * ROWS)):
            start, stop = indptr[j], indptr[j + 1]
            if ahead > 0:
                prefetch_rows(X.ctypes.data, 4 * batch, indices, start + ahead, stop + ahead)
            row = out[j]
            row[:] = 0
            for k in range(start, stop):
                x, w = X[indices[k]], values[k]
                for b in range(batch):
                    row[b] += w * x[b]


@kernel()
def product_of_one_order(indptr, indices, places, values, X, ahead, out):
    """`product` with values[places[k]] in place of values[k]."""
    n, batch = out.shape
    for chunk in prange((n + ROWS - 1) // ROWS):
        for j in range(chunk * ROWS, min(n, (chunk + 1) * ROWS)):
            start, stop = indptr[j], indptr[j + 1]
            if ahead > 0:
                prefetch_rows(X.ctypes.data, 4 * batch, indices, start + ahead, stop + ahead)
                prefetch_rows(values.ctypes.data, 4, places, start + ahead, stop + ahead)
            row = out[j]
            row[:] = 0
            for k in range(start, stop):
                x, w = X[indices[k]], values[places[k]]
                for b in range(batch):
                    row[b] += w * x[b]


@kernel()
def update_bfloat16(values, velocity, gradient, rate, momentum, decay, places, out):
    """Momentum SGD with the velocity as uint16, the upper halves of float32."""
    n = len(values)
    for block in prange((n + BLOCK - 1) // BLOCK):
        start, stop = block * BLOCK, min(n, (block + 1) * BLOCK)
        new = np.empty(BLOCK, dtype=np.float32)
        for k in range(start, stop):
            v = momentum * as_float(velocity[k]) - rate * gradient[k]
            new[k - start] = v
            values[k] += v - decay * values[k]
        bits = new.view(np.uint32)
        for k in range(start, stop):  # rounded to nearest
            velocity[k] = np.uint16((bits[k - start] + np.uint32(0x8000)) >> np.uint32(16))
        reorder_range(values, start, stop, places, out)


@kernel()
def update_without_velocity(values, gradient, rate, decay, places, out):
    """SGD without momentum."""
    n = len(values)
    for block in prange((n + BLOCK - 1) // BLOCK):
        start, stop = block * BLOCK, min(n, (block + 1) * BLOCK)
        for k in range(start, stop):
            values[k] -= rate * gradient[k] + decay * values[k]
        reorder_range(values, start, stop, places, out)


class Layer:
    """The arrays of one layer, and its passes."""

    def __init__(self, topology: Topology, batch: int) -> None:
        rng = stream(0, "values")
        n_in, n_out, nnz = topology.n_in, topology.n_out, topology.nnz
        self.topology, self.backend = topology, get_backend("fused")
        self.values = rng.standard_normal(nnz, dtype=np.float32)
        self.X, self.Y = activations(n_in, batch), activations(n_out, batch)
        self.delta, self.delta_below = activations(n_out, batch), activations(n_in, batch)
        for array in (self.X, self.delta):
            rng.standard_normal(out=array, dtype=np.float32)
        self.half_X, self.half_delta = half(self.X), half(self.delta)
        self.half_Y, self.half_below = np.zeros_like(self.half_delta), np.zeros_like(self.half_X)
        self.gradient = np.zeros(nnz, dtype=np.float32)
        self.velocity, self.half_velocity = np.zeros_like(self.gradient), np.zeros(nnz, np.uint16)
        self.copy = np.zeros_like(self.values)
        self.bias = np.zeros(max(n_in, n_out), dtype=np.float32)
        self.state = np.full((n_in, 2, -(-batch // 32)), 2**32 - 1, dtype=np.uint32)

    def by_output(self, topology: Topology) -> Pass:
        return Pass(topology.indptr_by_output, topology.indices_by_output, self.values)

    def by_input(self, topology: Topology) -> Pass:
        return Pass(topology.indptr, topology.indices, self.values)

    def forward(self, part: Pass, *, halves: bool = False) -> None:
        X, out = (self.half_X, self.half_Y) if halves else (self.X, self.Y)
        self.backend.forward(*part, self.bias[: len(out)], X, slope=1.0, out=out)

    def backward(self, part: Pass, *, halves: bool = False) -> None:
        full = self.X, self.delta, self.delta_below
        X, delta, below = (self.half_X, self.half_delta, self.half_below) if halves else full
        self.backend.backward(
            *part,
            X,
            delta,
            out_gradient=self.gradient[: len(part.values)],
            out_delta=below,
            slope_below=0.6,
            state_below=self.state,
            keep_share_below=np.float32(1),
            out_bias_gradient_below=self.bias[: len(X)],
            accumulate=False,
        )

    def update(self, *, places: NDArray[np.int32] | None) -> None:
        arrays = self.values, self.velocity, self.gradient
        numbers = {"rate": 0.01, "momentum": 0.9, "decay": 2e-4}
        copy = None if places is None else self.copy
        self.backend.update(*arrays, **numbers, places=places, out=copy)


def activations(rows: int, batch: int) -> NDArray[np.float32]:
    """Return zeros (rows, batch), as a workspace has them."""
    return aligned_zeros((rows, batch))


def half(array: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the upper halves."""
    found = aligned_zeros(array.shape, np.uint16)
    found[...] = array.view(np.uint32) >> 16
    return found


def each(walk: Callable[[Pass], None], parts: Sequence[Pass]) -> Callable[[], None]:
    """Return what makes a pass over every part."""

    def run() -> None:
        for part in parts:
            walk(part)

    return run


def make_actions(layer: Layer, options: Any) -> dict[tuple[str, str], Callable[[], None]]:
    """Return what is timed, by pass and variant."""
    topology, other = layer.topology, relabelled(layer.topology)
    out, back = layer.by_output(topology), layer.by_input(topology)
    ahead = prefetch_distance(layer.X)
    places = topology.to_output_order
    back_places = np.empty_like(places)
    back_places[places] = np.arange(len(places), dtype=np.int32)
    pattern = out.indptr, out.indices
    rate, momentum, decay = np.float32(0.01), np.float32(0.9), np.float32(2e-4)
    plain = layer.values, layer.gradient
    actions: dict[tuple[str, str], Callable[[], None]] = {
        ("forward", "as drawn"): lambda: layer.forward(out),
        ("backward", "as drawn"): lambda: layer.backward(back),
        ("forward", "bfloat16"): lambda: layer.forward(out, halves=True),
        ("backward", "bfloat16"): lambda: layer.backward(back, halves=True),
        ("forward", "relabelled"): lambda: layer.forward(layer.by_output(other)),
        ("backward", "relabelled"): lambda: layer.backward(layer.by_input(other)),
        ("forward", "plain"): lambda: product(*out, layer.X, ahead, layer.Y),
        ("forward", "plain, one order"): lambda: product_of_one_order(
            *pattern, back_places, layer.values, layer.X, ahead, layer.Y
        ),
        ("update", "both orders"): lambda: layer.update(places=places),
        ("update", "one order"): lambda: layer.update(places=None),
        ("update", "velocity in bfloat16"): lambda: update_bfloat16(
            layer.values,
            layer.half_velocity,
            layer.gradient,
            rate,
            momentum,
            decay,
            places,
            layer.copy,
        ),
        ("update", "no velocity"): lambda: update_without_velocity(
            *plain, rate, decay, places, layer.copy
        ),
    }
    for count in options.blocks:
        name = f"{count} blocks"
        actions["forward", name] = each(layer.forward, blocks(out, topology.n_in, count))
        actions["backward", name] = each(layer.backward, blocks(back, topology.n_out, count))
    return actions


def make_parser() -> ArgumentParser:
    """Return the parser of the command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--layer", default="5M,5M", help="inputs and outputs (%(default)s)")
    parser.add_argument("--connections", type=parse_size, default=10**7, help="default 10M")
    parser.add_argument("--batch-size", type=parse_size, default=32, help="default %(default)s")
    parser.add_argument("--blocks", type=parse_size, nargs="*", default=[2, 4], help="default 2 4")
    parser.add_argument("--threads", type=parse_size, default=1, help="default %(default)s")
    parser.add_argument("--repeats", type=parse_size, default=9, help="default %(default)s")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Time the variants that were asked for, and print a table."""
    options = make_parser().parse_args(argv)
    sizes = [parse_size(size) for size in options.layer.split(",")]
    if len(sizes) != 2:
        raise ParameterError(f"--layer must be two sizes, as 5M,5M. Got {options.layer!r} instead.")
    n_in, n_out = sizes
    probability = min(1.0, options.connections / (n_in * n_out))
    seed = np.random.SeedSequence(0)
    layer = Layer(
        erdos_renyi(n_in, n_out, probability, seed, threads=options.threads), options.batch_size
    )
    actions = make_actions(layer, options)
    rows = []
    with layer.backend.threads(options.threads):
        for action in actions.values():
            action()
        for _ in tqdm(range(options.repeats), desc="repeats", leave=False, disable=None):
            for (walk, variant), action in actions.items():
                started = time.perf_counter()
                action()
                rows.append((walk, variant, (time.perf_counter() - started) * 1e3))
    table = pd.DataFrame(rows, columns=["pass", "variant", "ms"])
    table = table.groupby(["pass", "variant"], sort=False)["ms"].quantile([0.25, 0.5, 0.75])
    print(f"{n_in} x {n_out}, {layer.topology.nnz} connections, batch {options.batch_size}")
    print(table.unstack().set_axis(["quarter", "median", "three quarters"], axis=1).round(3))


if __name__ == "__main__":
    sys.exit(run_command(main))
