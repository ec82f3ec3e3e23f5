"""Time ways to lay out a layer's connections and activations, beside the way that is used.

    python tools/try_layouts.py --layer 5M,5M --connections 10M --batch-size 32 --threads 2

Variants of one layer's fused forward and backward passes, alternating in one run:

  as drawn     the random topology, float32
  relabelled   outputs numbered by their first input, so that rows that are read together lie
               together; a network relabels layer by layer, and its outputs stay the same
  blocks       the rows that are gathered in blocks that fit the cache, a pass over the outputs
               for each
  bfloat16     the forward product alone, from rows in bfloat16, beside the same loop (`plain`)
               from float32
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numba import prange, types
from numba.extending import intrinsic
from numpy.typing import NDArray
from scipy.sparse import csr_array
from tqdm import tqdm

from largesparse.backends import get_backend
from largesparse.backends.base import prefetch_distance
from largesparse.backends.compiling import kernel
from largesparse.backends.rows import prefetch_rows
from largesparse.cli import parse_size, run_command
from largesparse.errors import ParameterError
from largesparse.randomness import stream
from largesparse.topology import Topology, erdos_renyi
from largesparse.workspace import aligned_zeros

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


@intrinsic
def from_bits(typing, bits):
    """Return the float32 that has the bits of a uint32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), generate


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
def product_bfloat16(indptr, indices, values, X, ahead, out):
    """`product` of X as uint16 (n, batch), the upper halves of float32, and `out` likewise."""
    n, batch = out.shape
    for chunk in prange((n + ROWS - 1) // ROWS):
        row = np.empty(batch, dtype=np.float32)
        bits = row.view(np.uint32)
        for j in range(chunk * ROWS, min(n, (chunk + 1) * ROWS)):
            start, stop = indptr[j], indptr[j + 1]
            if ahead > 0:
                prefetch_rows(X.ctypes.data, 2 * batch, indices, start + ahead, stop + ahead)
            row[:] = 0
            for k in range(start, stop):
                x, w = X[indices[k]], values[k]
                for b in range(batch):
                    row[b] += w * from_bits(np.uint32(x[b]) << np.uint32(16))
            to = out[j]
            for b in range(batch):  # rounded to nearest
                to[b] = np.uint16((bits[b] + np.uint32(0x8000)) >> np.uint32(16))


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
        self.gradient = np.zeros(nnz, dtype=np.float32)
        self.bias = np.zeros(max(n_in, n_out), dtype=np.float32)
        self.state = np.full((n_in, 2, -(-batch // 32)), 2**32 - 1, dtype=np.uint32)

    def by_output(self, topology: Topology) -> Pass:
        return Pass(topology.indptr_by_output, topology.indices_by_output, self.values)

    def by_input(self, topology: Topology) -> Pass:
        return Pass(topology.indptr, topology.indices, self.values)

    def forward(self, part: Pass) -> None:
        self.backend.forward(*part, self.bias[: len(self.Y)], self.X, slope=1.0, out=self.Y)

    def backward(self, part: Pass) -> None:
        self.backend.backward(
            *part,
            self.X,
            self.delta,
            out_gradient=self.gradient[: len(part.values)],
            out_delta=self.delta_below,
            slope_below=0.6,
            state_below=self.state,
            keep_share_below=np.float32(1),
            out_bias_gradient_below=self.bias[: len(self.X)],
            accumulate=False,
        )


def activations(rows: int, batch: int) -> NDArray[np.float32]:
    """Return zeros (rows, batch), as a workspace has them."""
    return aligned_zeros((rows, batch))


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
    half = (layer.X.view(np.uint32) >> 16).astype(np.uint16)
    half_out = np.zeros(layer.Y.shape, dtype=np.uint16)
    ahead = prefetch_distance(layer.X)
    actions: dict[tuple[str, str], Callable[[], None]] = {
        ("forward", "as drawn"): lambda: layer.forward(out),
        ("backward", "as drawn"): lambda: layer.backward(back),
        ("forward", "relabelled"): lambda: layer.forward(layer.by_output(other)),
        ("backward", "relabelled"): lambda: layer.backward(layer.by_input(other)),
        ("forward", "plain"): lambda: product(*out, layer.X, ahead, layer.Y),
        ("forward", "plain, bfloat16"): lambda: product_bfloat16(*out, half, ahead, half_out),
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
