"""A row of a product in tiles of columns, as LLVM IR: what a compiler does not find by itself.

A loop over a row's connections and, inside, over the columns of a batch reads and writes the
collecting row for every connection. Here a tile of columns is one wide LLVM vector that stays in
registers over all connections: LLVM splits it into the vectors that the CPU has (a tile of 64 is
four registers of AVX-512, eight of AVX2). Tiles have fixed widths, and their operations a fixed
order: a row's result depends on its numbers and on the batch alone, whichever kernel or thread
computes it, and wherever the compiler inlines it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .lanes import (
    F32,
    I1,
    I32,
    I64,
    LANES,
    Builder,
    Value,
    as_pointer,
    first_lanes,
    gathered,
    lane_parts,
    lane_products,
    lane_sum,
    load_count,
    load_lanes,
    load_scalar,
    multiply_add,
    shuffle,
    splat,
    store_lanes,
    sums_of_four,
    tree_sum,
    vector_type,
)

SUM_WIDTHS = (32, 4, 1)  # of tiles whose numbers are summed
SUM_LANES = 8  # that the sums of a tile are brought to, part by part


class Tile(NamedTuple):
    """Some columns of a row: `width` from `start` on, or of these the ones that `mask` has."""

    start: Value
    width: int
    mask: Value | None = None


def for_each_tile(
    builder: Builder,
    start: Value,
    stop: Value,
    widths: Sequence[int],
    emit: Callable[[Tile], None],
) -> None:
    """Emit start <= column < stop in tiles: as many as there are of every width in turn.

    Widths are powers of two, the largest first. What is left is a tile of the last width, masked.
    """
    for width in widths:
        whole = builder.add(start, builder.and_(builder.sub(stop, start), I64(-width)))
        with cgutils.for_range_slice(builder, start, whole, I64(width)) as (column, _):
            emit(Tile(column, width))
        start = whole
    rest = builder.sub(stop, start)
    with builder.if_then(builder.icmp_signed(">", rest, I64(0))):
        emit(Tile(start, widths[-1], first_lanes(builder, rest, widths[-1])))


def sum_of_tiles(builder: Builder, size: Value, add: Callable[[Tile, Value], Value]) -> Value:
    """Return the sum over 0 <= column < size, a scalar; add(tile, sums) adds those of a tile."""
    total = F32(0)
    start = I64(0)
    for width in SUM_WIDTHS:
        kind = vector_type(width)
        first = builder.insert_element(ir.Constant(kind, None), total, I32(0))
        sums = cgutils.alloca_once_value(builder, first)
        whole = builder.and_(size, I64(-width))
        with cgutils.for_range_slice(builder, start, whole, I64(width)) as (column, _):
            builder.store(add(Tile(column, width), builder.load(sums)), sums)
        parts = lane_parts(builder, builder.load(sums), SUM_LANES)
        total = builder.extract_element(lane_sum(builder, tree_sum(builder, parts)), I32(0))
        start = whole
    return total


class Array:
    """A C-contiguous array of a kernel, as its compiler sees it. A uint16 is a bfloat16."""

    def __init__(self, context: Any, builder: Builder, kind: Any, value: Value) -> None:
        found = context.make_array(kind)(context, builder, value)
        self._builder = builder
        self.address = builder.ptrtoint(found.data, I64)
        self.shape = cgutils.unpack_tuple(builder, found.shape, kind.ndim)
        self.itemsize = kind.dtype.bitwidth // 8
        self.half = kind.dtype == types.uint16

    def at(self, *place: Value) -> Value:
        """Return the address of an element; the last indices may be left out, and are 0."""
        number = I64(0)
        for axis, size in enumerate(self.shape):
            number = self._builder.mul(number, size)
            if axis < len(place):
                number = self._builder.add(number, place[axis])
        return self._builder.add(self.address, self._builder.mul(number, I64(self.itemsize)))

    def row_bytes(self) -> Value:
        """Return the bytes of a row, where there are two axes."""
        return self._builder.mul(self.shape[1], I64(self.itemsize))

    def load(self, row: Value, tile: Tile) -> Value:
        """Return a tile of a row as float32."""
        address = self.at(row, tile.start)
        return load_lanes(self._builder, address, tile.width, tile.mask, self.half)

    def store(self, row: Value, tile: Tile, value: Value) -> None:
        """Write float32 to a tile of a row."""
        address = self.at(row, tile.start)
        store_lanes(self._builder, value, address, tile.width, tile.mask, self.half)


def emitted(result: Any = types.void) -> Callable[[Callable[..., Value | None]], Any]:
    """Return a decorator that makes a function of kernels from one that emits its code.

    That one is called with the builder and the arguments: arrays as `Array`, tuples as tuples of
    such, numbers as int64 and float32. What it returns, if anything, is of the type `result`.
    """

    def passed(kind: Any) -> Any:
        if isinstance(kind, types.Integer):
            return types.int64
        return types.float32 if isinstance(kind, types.Float) else kind

    def decorate(emit: Callable[..., Value | None]) -> Any:
        @functools.wraps(emit)
        def typed(typing: Any, *kinds: Any) -> Any:
            def generate(context: Any, builder: Builder, signature: Any, values: Any) -> Value:
                given = zip(signature.args, values, strict=True)
                value = emit(builder, *(_taken_apart(context, builder, *pair) for pair in given))
                return context.get_dummy_value() if value is None else value

            return result(*map(passed, kinds)), generate

        return intrinsic(typed)

    return decorate


def _taken_apart(context: Any, builder: Builder, kind: Any, value: Value) -> Any:
    if isinstance(kind, types.Array):
        return Array(context, builder, kind, value)
    if isinstance(kind, types.BaseTuple):
        parts = cgutils.unpack_tuple(builder, value, len(kind.types))
        given = zip(kind.types, parts, strict=True)
        return tuple(_taken_apart(context, builder, *pair) for pair in given)
    return value


def bits_at(builder: Builder, base: Value, tile: Tile) -> Value:
    """Return the pointer to the bits of a tile's columns, of those that begin at an address."""
    place = builder.add(base, builder.lshr(tile.start, I64(3)))
    return as_pointer(builder, place, ir.IntType(tile.width))


def _accumulators(builder: Builder, first: Value) -> list[Value]:
    """Return the sums that a tile keeps, so that its additions wait for each other less."""
    count = min(4, max(1, 4 * LANES // first.type.count))
    zero = ir.Constant(first.type, None)
    return [cgutils.alloca_once_value(builder, v) for v in [first] + [zero] * (count - 1)]


def _total(builder: Builder, accumulators: Sequence[Value]) -> Value:
    first, *others = (builder.load(total) for total in accumulators)
    return builder.fadd(first, functools.reduce(builder.fadd, others)) if others else first


def row_range(builder: Builder, indptr: Array, row: Value) -> tuple[Value, Value]:
    """Return the first connection of a row, and the one after its last, as int64."""
    ends = row, builder.add(row, I64(1))
    start, stop = (load_count(builder, indptr.address, end, indptr.itemsize) for end in ends)
    return start, stop


def weighted_sum(
    builder: Builder, connections: Sequence[Array], row: Value, X: Array, tile: Tile, init: Value
) -> Value:
    """Return init + sum over the row's connections k of values[k] X[indices[k], tile]."""
    indptr, indices, values = connections
    start, stop = row_range(builder, indptr, row)
    totals = _accumulators(builder, splat(builder, init, tile.width))
    columns, row_bytes = X.at(I64(0), tile.start), X.row_bytes()

    def add(k: Value, total: Value) -> None:
        place = gathered(builder, indices.address, k, columns, row_bytes)
        x = load_lanes(builder, place, tile.width, tile.mask, X.half)
        w = splat(builder, load_scalar(builder, values.address, k, F32), tile.width)
        builder.store(multiply_add(builder, w, x, builder.load(total)), total)

    count = len(totals)
    whole = start
    if count > 1:
        whole = builder.add(start, builder.and_(builder.sub(stop, start), I64(-count)))
        with cgutils.for_range_slice(builder, start, whole, I64(count)) as (k, _):
            for q, total in enumerate(totals):
                add(builder.add(k, I64(q)), total)
    with cgutils.for_range_slice(builder, whole, stop, I64(1)) as (k, _):
        add(k, totals[0])
    return _total(builder, totals)


def sampled_products(
    builder: Builder,
    connections: Sequence[Array],
    row: Value,
    x: Value,
    D: Array,
    tile: Tile,
    put: Callable[[Value, Value], None],
    *,
    weighted: bool,
) -> Value | None:
    """Emit put(k, x·D[indices[k], tile]) for the row's connections k, four at once or one.

    If `weighted`, the sum of values[k] D[indices[k], tile] is returned: rows of D are read once
    for both.
    """
    indptr, indices, values = connections
    start, stop = row_range(builder, indptr, row)
    totals = _accumulators(builder, ir.Constant(vector_type(tile.width), None))
    columns, row_bytes = D.at(I64(0), tile.start), D.row_bytes()

    def products_of(k: Value, total: Value) -> Value:
        place = gathered(builder, indices.address, k, columns, row_bytes)
        d = load_lanes(builder, place, tile.width, tile.mask, D.half)
        if weighted:
            w = splat(builder, load_scalar(builder, values.address, k, F32), tile.width)
            builder.store(multiply_add(builder, w, d, builder.load(total)), total)
        return lane_products(builder, x, d)

    # Four sums over lanes cost little more than one.
    fours = builder.add(start, builder.and_(builder.sub(stop, start), I64(-4)))
    with cgutils.for_range_slice(builder, start, fours, I64(4)) as (k, _):
        products = [products_of(builder.add(k, I64(q)), totals[q % len(totals)]) for q in range(4)]
        put(k, sums_of_four(builder, products))
    # A masked tile adds the halves of a sum one by one: trainings go on as they began.
    left = 1 if tile.mask is None else 2
    with cgutils.for_range_slice(builder, fours, stop, I64(1)) as (k, _):
        put(k, lane_sum(builder, products_of(k, totals[0]), left))
    return _total(builder, totals) if weighted else None


def put_sums(builder: Builder, sums: Value, gradient: Array, k: Value, accumulate: Value) -> None:
    """Write sums to gradient[k:], or add them to what is there; two are the halves of one."""
    parts = [sums]
    if sums.type.count == 2:
        parts = [shuffle(builder, sums, sums, [lane]) for lane in range(2)]
        sums = builder.fadd(*parts)
    place = as_pointer(builder, gradient.at(k), sums.type)
    added = builder.load(place, align=4)
    for part in reversed(parts):
        added = builder.fadd(added, part)
    sums = builder.select(accumulate, added, sums)
    builder.store(sums, place, align=4)


def factors_of(builder: Builder, slope: Value, keep_share: Value) -> tuple[Value, Value]:
    """Return what sums are multiplied by where they are not above 0, and where they are."""
    right = builder.fdiv(F32(1), keep_share)
    return builder.fmul(slope, right), right


def activated(
    builder: Builder,
    z: Value,
    tile: Tile,
    factors: tuple[Value, Value],
    keep: Value,
    state: Array,
    row: Value,
) -> Value:
    """Return z · right where z > 0, else z · left, after dropout.

    Where the state has words, a number is 0 where its bit at the address `keep` is, and the row's
    planes receive the bits of those that are kept with z <= 0, and with z > 0.
    """
    left, right = (splat(builder, factor, tile.width) for factor in factors)
    zero = ir.Constant(z.type, None)
    above = builder.fcmp_ordered(">", z, zero)
    a = builder.fmul(z, builder.select(above, right, left))
    result = cgutils.alloca_once_value(builder, a)
    with builder.if_then(builder.icmp_signed(">", state.shape[2], I64(0))):
        bits = builder.load(bits_at(builder, keep, tile), align=1)
        if tile.mask is not None:
            bits = builder.and_(bits, builder.bitcast(tile.mask, bits.type))
        positive = builder.bitcast(above, bits.type)
        for plane, value in enumerate((builder.not_(positive), positive)):
            place = bits_at(builder, state.at(row, I64(plane)), tile)
            builder.store(builder.and_(bits, value), place, align=1)
        kept = builder.bitcast(bits, above.type)
        builder.store(builder.select(kept, a, zero), result)
    return builder.load(result)


def differentiated(
    builder: Builder,
    d: Value,
    tile: Tile,
    factors: tuple[Value, Value],
    state: Array,
    row: Value,
) -> Value:
    """Return d · right or d · left, by the plane in which a number's bit is 1; else 0.

    Where the state has no words there is no activation: d is returned.
    """
    left, right = (splat(builder, factor, tile.width) for factor in factors)
    result = cgutils.alloca_once_value(builder, d)
    with builder.if_then(builder.icmp_signed(">", state.shape[2], I64(0))):
        planes = (bits_at(builder, state.at(row, I64(plane)), tile) for plane in range(2))
        low, high = (builder.load(plane, align=1) for plane in planes)
        lanes = ir.VectorType(I1, tile.width)
        d = builder.fmul(d, builder.select(builder.bitcast(high, lanes), right, left))
        kept = builder.bitcast(builder.or_(low, high), lanes)
        builder.store(builder.select(kept, d, ir.Constant(d.type, None)), result)
    return builder.load(result)
