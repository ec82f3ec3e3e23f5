"""Vector code for the kernels, as LLVM IR: what a compiler does not find by itself.

A loop over a row's connections and, inside, over the columns of a batch reads and writes the
collecting row for every connection. Here a tile of columns is one wide LLVM vector that stays in
registers over all connections: LLVM splits it into the vectors that the CPU has (a tile of 64 is
four registers of AVX-512, eight of AVX2). Operations have a fixed order, so a result does not
depend on where the compiler inlines it.

Addresses are integers (`array.ctypes.data` in a kernel): the caller keeps the arrays alive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .lanes import (
    F32,
    I1,
    I8,
    I32,
    I64,
    LANES,
    Builder,
    Value,
    as_bit,
    as_pointer,
    element,
    first_lanes,
    gathered,
    lane_products,
    lane_sum,
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

CACHE_LINE = 64  # bytes
SMALLEST_NORMAL = 2.0**-126  # of float32
WORD = 32  # activations whose state bits share a word


def is_half(kind: Any) -> bool:
    """Return whether a dtype, as numba sees it, is that of bfloat16: uint16."""
    return bool(kind.dtype == types.uint16)


def chains(width: int) -> int:
    """Return how many sums a tile keeps: its additions wait for each other less."""
    return min(4, max(1, 4 * LANES // width))


def for_each(
    builder: Builder,
    start: Value,
    stop: Value,
    totals: Sequence[Value],
    add: Callable[[Value, Value], None],
) -> None:
    """Emit add(k, total) for start <= k < stop, the totals taking turns."""
    count = len(totals)
    whole = start
    if count > 1:
        whole = builder.add(start, builder.and_(builder.sub(stop, start), I64(-count)))
        with cgutils.for_range_slice(builder, start, whole, I64(count)) as (k, _):
            for q, total in enumerate(totals):
                add(builder.add(k, I64(q)), total)
    with cgutils.for_range_slice(builder, whole, stop, I64(1)) as (k, _):
        add(k, totals[0])


def make_forward(width: int, *, masked: bool = False) -> Callable[..., None]:
    """Return the intrinsic of a row's forward pass over a tile of `width` columns.

    z[b] = init + sum over start <= k < stop of values[k] X[indices[k], b]; out[b] = z[b] · right
    where z[b] > 0, else z[b] · left, for 0 <= b < width; if `masked`, for 0 <= b < count. Where
    `stored`, out[b] is 0 where bit b at `keep` is 0, and `low` and `high` receive the bits of
    those that are kept with z <= 0, and with z > 0. X and `out` are of the dtypes `kind` and
    `out_kind`: see `is_half`.
    """

    @intrinsic
    def forward(
        typing,
        indices,
        values,
        start,
        stop,
        X,
        row_bytes,
        init,
        out,
        left,
        right,
        stored,
        keep,
        low,
        high,
        count,
        kind,
        out_kind,
    ):
        half, half_out = is_half(kind), is_half(out_kind)

        def generate(context, builder, signature, arguments):
            indices, values, start, stop, X, row_bytes, init, out, left, right = arguments[:10]
            stored, keep, low, high, count = arguments[10:15]
            mask = first_lanes(builder, count, width) if masked else None
            zero = ir.Constant(vector_type(width), None)
            inits = [splat(builder, init, width)] + [zero] * (chains(width) - 1)
            totals = [cgutils.alloca_once_value(builder, value) for value in inits]

            def add(k: Value, total: Value) -> None:
                place = gathered(builder, indices, k, X, row_bytes)
                x = load_lanes(builder, place, width, mask, half)
                w = splat(builder, load_scalar(builder, values, k, F32), width)
                builder.store(multiply_add(builder, w, x, builder.load(total)), total)

            for_each(builder, start, stop, totals, add)
            z = tree_sum(builder, [builder.load(total) for total in totals])
            above = builder.fcmp_ordered(">", z, zero)
            factors = splat(builder, right, width), splat(builder, left, width)
            a = builder.fmul(z, builder.select(above, *factors))
            builder.store(a, totals[0])
            with builder.if_then(as_bit(builder, stored)):
                bits = builder.load(as_pointer(builder, keep, ir.IntType(width)), align=1)
                if masked:
                    bits = builder.and_(bits, builder.bitcast(mask, bits.type))
                positive = builder.bitcast(above, bits.type)
                for place, value in (
                    (low, builder.and_(bits, builder.not_(positive))),
                    (high, builder.and_(bits, positive)),
                ):
                    builder.store(value, as_pointer(builder, place, bits.type), align=1)
                kept = builder.bitcast(bits, above.type)
                builder.store(builder.select(kept, a, zero), totals[0])
            store_lanes(builder, builder.load(totals[0]), out, width, mask, half_out)
            return context.get_dummy_value()

        i, f, b = types.int64, types.float32, types.boolean
        kinds = kind, out_kind
        return types.void(i, i, i, i, i, i, f, i, f, f, b, i, i, i, i, *kinds), generate

    return forward


def make_backward(width: int, *, masked: bool = False, delta: bool = True) -> Callable[..., float]:
    """Return the intrinsic of a row's backward pass over a tile of `width` columns.

    gradient[k] = sum over b of x[b] D[indices[k], b], for start <= k < stop, added to what is
    there if `accumulate`. If `delta`, also d[b] = sum over k of values[k] D[indices[k], b], of
    which out[b] is d[b] · right where bit b at `high` is 1, d[b] · left where that at `low` is 1,
    and 0 elsewhere; the result is the sum of out. Every row of D is read once for both. If
    `masked`, for 0 <= b < count. D is of the dtype `kind`, x and `out` are of `x_kind`.
    """

    @intrinsic
    def backward(
        typing,
        indices,
        values,
        start,
        stop,
        D,
        row_bytes,
        x,
        gradient,
        accumulate,
        out,
        left,
        right,
        low,
        high,
        count,
        kind,
        x_kind,
    ):
        half, half_x = is_half(kind), is_half(x_kind)

        def generate(context, builder, signature, arguments):
            indices, values, start, stop, D, row_bytes, x, gradient, add = arguments[:9]
            out, left, right, low, high, count = arguments[9:15]
            mask = first_lanes(builder, count, width) if masked else None
            x = load_lanes(builder, x, width, mask, half_x)
            zero = ir.Constant(x.type, None)
            totals = [cgutils.alloca_once_value(builder, zero) for _ in range(chains(width))]
            add = as_bit(builder, add)

            def products_of(k: Value, total: Value) -> Value:
                place = gathered(builder, indices, k, D, row_bytes)
                d = load_lanes(builder, place, width, mask, half)
                if delta:
                    w = splat(builder, load_scalar(builder, values, k, F32), width)
                    builder.store(multiply_add(builder, w, d, builder.load(total)), total)
                return lane_products(builder, x, d)

            def put(k: Value, sums: Value) -> None:
                place = as_pointer(builder, element(builder, gradient, k), sums.type)
                sums = builder.select(add, builder.fadd(builder.load(place, align=4), sums), sums)
                builder.store(sums, place, align=4)

            # Four sums over lanes cost little more than one.
            fours = builder.add(start, builder.and_(builder.sub(stop, start), I64(-4)))
            with cgutils.for_range_slice(builder, start, fours, I64(4)) as (k, _):
                products = [
                    products_of(builder.add(k, I64(q)), totals[q % len(totals)]) for q in range(4)
                ]
                put(k, sums_of_four(builder, products))
            with cgutils.for_range_slice(builder, fours, stop, I64(1)) as (k, _):
                put(k, lane_sum(builder, products_of(k, totals[0])))
            if not delta:
                return F32(0)
            lows, highs = (
                builder.load(as_pointer(builder, place, ir.IntType(width)), align=1)
                for place in (low, high)
            )
            lanes = ir.VectorType(I1, width)
            factors = splat(builder, right, width), splat(builder, left, width)
            total = tree_sum(builder, [builder.load(total) for total in totals])
            d = builder.fmul(total, builder.select(builder.bitcast(highs, lanes), *factors))
            d = builder.select(builder.bitcast(builder.or_(lows, highs), lanes), d, zero)
            store_lanes(builder, d, out, width, mask, half_x)
            return builder.extract_element(lane_sum(builder, d), I32(0))

        i, f, b = types.int64, types.float32, types.boolean
        return f(i, i, i, i, i, i, i, i, b, i, f, f, i, i, i, kind, x_kind), generate

    return backward


def make_activate_word(*, masked: bool = False) -> Callable[..., int]:
    """Return the intrinsic of activation and dropout of 32 sums, in place.

    row[b] = row[b] · (right where row[b] > 0, else left), or 0 where bit b of `keep` is 0. The
    result has the bits of those above 0. If `masked`, nothing is read or written where bit b of
    `valid` is 0.
    """

    @intrinsic
    def activate_word(typing, row, valid, left, right, keep):
        def generate(context, builder, signature, arguments):
            row, valid, left, right, keep = arguments
            mask = builder.bitcast(valid, ir.VectorType(I1, WORD)) if masked else None
            z = load_lanes(builder, row, WORD, mask)
            positive = builder.fcmp_ordered(">", z, ir.Constant(z.type, None))
            factors = splat(builder, right, WORD), splat(builder, left, WORD)
            kept = builder.bitcast(keep, ir.VectorType(I1, WORD))
            a = builder.fmul(z, builder.select(positive, *factors))
            a = builder.select(kept, a, ir.Constant(z.type, None))
            store_lanes(builder, a, row, WORD, mask)
            return builder.bitcast(positive, I32)

        f, u = types.float32, types.uint32
        return u(types.int64, u, f, f, u), generate

    return activate_word


def make_differentiate_word(*, masked: bool = False) -> Callable[..., float]:
    """Return the intrinsic that multiplies 32 numbers by the activation's derivative, in place.

    row[b] = row[b] · right where bit b of `high` is 1, row[b] · left where that of `low` is 1,
    and 0 where both are 0. The result is their sum. `valid` as in `make_activate_word`.
    """

    @intrinsic
    def differentiate_word(typing, row, valid, left, right, low, high):
        def generate(context, builder, signature, arguments):
            row, valid, left, right, low, high = arguments
            mask = builder.bitcast(valid, ir.VectorType(I1, WORD)) if masked else None
            d = load_lanes(builder, row, WORD, mask)
            above = builder.bitcast(high, ir.VectorType(I1, WORD))
            kept = builder.bitcast(builder.or_(low, high), ir.VectorType(I1, WORD))
            factors = splat(builder, right, WORD), splat(builder, left, WORD)
            d = builder.fmul(d, builder.select(above, *factors))
            d = builder.select(kept, d, ir.Constant(d.type, None))
            store_lanes(builder, d, row, WORD, mask)
            return builder.extract_element(lane_sum(builder, d), I32(0))

        f, u = types.float32, types.uint32
        return f(types.int64, u, f, f, u, u), generate

    return differentiate_word


def make_update(*, masked: bool = False) -> Callable[..., None]:
    """Return the intrinsic of momentum SGD on 16 weights, or the first `count` if `masked`.

    v = momentum·v - rate·g, set to 0 where it is subnormal; w = w + v - decay·w. All are
    addresses.
    """

    @intrinsic
    def update(typing, values, velocity, gradient, rate, momentum, decay, count):
        def generate(context, builder, signature, arguments):
            values, velocity, gradient, rate, momentum, decay, count = arguments
            mask = first_lanes(builder, count, LANES) if masked else None
            w, v, g = (
                load_lanes(builder, address, LANES, mask)
                for address in (values, velocity, gradient)
            )
            step = builder.fmul(splat(builder, builder.fneg(rate), LANES), g)
            v = multiply_add(builder, splat(builder, momentum, LANES), v, step)
            zero, tiny = ir.Constant(v.type, None), ir.Constant(v.type, [SMALLEST_NORMAL] * LANES)
            signature = ir.FunctionType(v.type, [v.type])
            name = f"llvm.fabs.v{LANES}f32"
            fabs = cgutils.get_or_insert_function(builder.module, signature, name)
            subnormal = builder.fcmp_ordered("<", builder.call(fabs, [v]), tiny)
            v = builder.select(subnormal, zero, v)
            decayed = splat(builder, builder.fneg(decay), LANES)
            w = multiply_add(builder, decayed, w, builder.fadd(w, v))
            store_lanes(builder, v, velocity, LANES, mask)
            store_lanes(builder, w, values, LANES, mask)
            return context.get_dummy_value()

        i, f = types.int64, types.float32
        return types.void(i, i, i, f, f, f, i), generate

    return update


@intrinsic
def transpose_16(typing, source, rows, row_bytes, target, target_bytes):
    """Write 16 numbers of each of 16 rows as columns.

    target[f, b] = source[rows[b], f] for 0 <= f, b < 16. All are addresses, of float32 and, for
    the rows, int64; `row_bytes` and `target_bytes` are the sizes of a row.
    """

    def generate(context, builder, signature, arguments):
        source, rows, row_bytes, target, target_bytes = arguments
        lines = []
        for b in range(LANES):
            row = builder.load(as_pointer(builder, builder.add(rows, I64(8 * b)), I64), align=8)
            place = builder.add(source, builder.mul(row, row_bytes))
            lines.append(load_lanes(builder, place, LANES, None))
        # Swap the off-diagonal blocks of 8 lanes, then those of 4, 2 and 1 within each block.
        for size in (8, 4, 2, 1):
            for i in (i for i in range(LANES) if not i & size):
                a, b = lines[i], lines[i + size]
                upper = [L if not L & size else LANES + L - size for L in range(LANES)]
                lower = [L + size if not L & size else LANES + L for L in range(LANES)]
                lines[i] = shuffle(builder, a, b, upper)
                lines[i + size] = shuffle(builder, a, b, lower)
        for f, line in enumerate(lines):
            place = builder.add(target, builder.mul(target_bytes, I64(f)))
            store_lanes(builder, line, place, LANES, None)
        return context.get_dummy_value()

    i = types.int64
    return types.void(i, i, i, i, i), generate


@intrinsic
def copy_16(typing, source, target):
    """Copy 16 float32 from one address to another."""

    def generate(context, builder, signature, arguments):
        value = load_lanes(builder, arguments[0], LANES, None)
        store_lanes(builder, value, arguments[1], LANES, None)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def prefetch_line(typing, address):
    """Ask for the cache line of an address, to be read soon."""

    def generate(context, builder, signature, arguments):
        pointer = as_pointer(builder, arguments[0], I8)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        read, keep_in_all_caches, data = I32(0), I32(3), I32(1)
        builder.call(function, [pointer, read, keep_in_all_caches, data])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def as_float(typing, value):
    """Return a number of activations, float32 or bfloat16 (as uint16), as float32."""

    def widen(context, builder, signature, arguments):
        bits = builder.shl(builder.zext(arguments[0], I32), I32(16))
        return builder.bitcast(bits, F32)

    def keep(context, builder, signature, arguments):
        return arguments[0]

    return types.float32(value), widen if value == types.uint16 else keep


@intrinsic
def itemsize(typing, kind):
    """Return the bytes of a number of a dtype, in a kernel."""

    def generate(context, builder, signature, arguments):
        return I64(kind.dtype.bitwidth // 8)

    return types.int64(kind), generate
