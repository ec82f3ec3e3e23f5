"""What kernels do to a row or a range of their arrays: sums, gradients, activation, update.

These functions take whole arrays and a row's number: a view of a row would cost a reference
count, which is as much as ten connections. A state array is described in `kernels`.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .compiling import inline
from .lanes import (
    CACHE_LINE,
    F32,
    I16,
    I32,
    I64,
    LANES,
    as_pointer,
    call,
    gathered,
    lane_sum,
    load_elements,
    load_lanes,
    look_up,
    multiply_add,
    prefetch_line,
    shuffle,
    splat,
    store_elements,
    store_lanes,
)
from .loops import ROWS
from .operands import PREFETCH_AHEAD, PREFETCH_BYTES
from .tiles import (
    activated,
    differentiated,
    emitted,
    factors_of,
    for_each_tile,
    put_sums,
    row_range,
    sampled_products,
    sum_of_tiles,
    weighted_sum,
)

FORWARD_WIDTHS = (128, 64, 32, 8)
BACKWARD_WIDTHS = (64, 32, 8)
WORD = 32  # activations whose state bits share a word
SMALLEST_NORMAL = 2.0**-126  # of float32


@emitted()
def forward_row(builder, connections, j, X, bias, activation, keep, out, state):
    """Compute a row of activations, out[j], from the gathered rows of X.

    X and `out` are float32 or bfloat16, (n, batch) and (rows, batch); `activation` is the left
    slope and the share of the neurons that dropout keeps. Row j % ROWS of `keep`, uint32
    (ROWS, words), has the dropout decisions: see `philox.draw_keep_words`. Where the state,
    (rows, 2, words), has no words, nothing is dropped and nothing stored; else its last word is
    written up to the byte of the batch's last column.
    """
    factors = factors_of(builder, *activation)
    bits = keep.at(builder.and_(j, I64(ROWS - 1)))

    def emit(tile):
        z = weighted_sum(builder, connections, j, X, tile, bias)
        out.store(j, tile, activated(builder, z, tile, factors, bits, state, j))

    for_each_tile(builder, I64(0), X.shape[1], FORWARD_WIDTHS, emit)


@emitted()
def activate_row(builder, Z, j, bias, activation, keep, state):
    """Add the bias to Z[j] and apply activation and dropout, in place: see `forward_row`."""
    factors = factors_of(builder, *activation)
    bits = keep.at(builder.and_(j, I64(ROWS - 1)))

    def emit(tile):
        z = builder.fadd(Z.load(j, tile), splat(builder, bias, tile.width))
        Z.store(j, tile, activated(builder, z, tile, factors, bits, state, j))

    for_each_tile(builder, I64(0), Z.shape[1], (WORD,), emit)


@emitted(types.float32)
def backward_row(builder, connections, i, X, D, derivative, gradient, out, accumulate):
    """Compute the weight gradient of an input's connections, and dL/dz of the input.

    gradient[k] = sum over b of X[i, b] D[indices[k], b], added to what is there if `accumulate`;
    out[i, b] = f'(z) · sum over k of values[k] D[indices[k], b]. The result is the sum of out[i].
    X, D and `out` are float32 or bfloat16.
    """
    slope, keep_share, state = derivative
    factors = factors_of(builder, slope, keep_share)
    adds = cgutils.alloca_once_value(builder, accumulate)
    total = cgutils.alloca_once_value(builder, F32(0))

    def emit(tile):
        def put(k, sums):
            put_sums(builder, sums, gradient, k, builder.load(adds))

        x = X.load(i, tile)
        d = sampled_products(builder, connections, i, x, D, tile, put, weighted=True)
        d = differentiated(builder, d, tile, factors, state, i)
        out.store(i, tile, d)
        add_lanes_(builder, d, total)
        builder.store(accumulate.type(1), adds)  # the tiles of a row add up

    for_each_tile(builder, I64(0), X.shape[1], BACKWARD_WIDTHS, emit)
    return builder.load(total)


def add_lanes_(builder, v, total):
    """Add the sum of a vector's lanes to a variable."""
    part = builder.extract_element(lane_sum(builder, v), I32(0))
    builder.store(builder.fadd(builder.load(total), part), total)


@emitted()
def gradient_row(builder, connections, i, X, D, accumulate):
    """Compute the weight gradient alone, into the connections' values: see `backward_row`."""
    adds = cgutils.alloca_once_value(builder, accumulate)

    def emit(tile):
        def put(k, sums):
            put_sums(builder, sums, connections[2], k, builder.load(adds))

        x = X.load(i, tile)
        sampled_products(builder, connections, i, x, D, tile, put, weighted=False)
        builder.store(accumulate.type(1), adds)

    for_each_tile(builder, I64(0), X.shape[1], BACKWARD_WIDTHS, emit)


@emitted(types.float32)
def differentiate_row(builder, D, i, derivative):
    """Turn D[i] from dL/da into dL/dz, in place; return its sum."""
    slope, keep_share, state = derivative
    factors = factors_of(builder, slope, keep_share)
    total = cgutils.alloca_once_value(builder, F32(0))

    def emit(tile):
        d = differentiated(builder, D.load(i, tile), tile, factors, state, i)
        D.store(i, tile, d)
        add_lanes_(builder, d, total)

    for_each_tile(builder, I64(0), D.shape[1], (WORD,), emit)
    return builder.load(total)


@emitted(types.float32)
def row_sum(builder, X, i):
    """Return the sum of X[i], of float32 or bfloat16."""

    def add(tile, total):
        return builder.fadd(total, X.load(i, tile))

    return sum_of_tiles(builder, X.shape[1], add)


@emitted(types.float32)
def weighted_row_sum(builder, X, i, weights):
    """Return the sum of X[i] times the weights, float32 (1, batch)."""

    def add(tile, total):
        return multiply_add(builder, weights.load(I64(0), tile), X.load(i, tile), total)

    return sum_of_tiles(builder, X.shape[1], add)


@emitted()
def update_range(builder, values, velocity, gradient, start, stop, sgd):
    """Momentum SGD (eq. 1) on start <= k < stop: v = momentum·v - rate·g; w = w + v - decay·w.

    By Nesterov's momentum w moves by momentum·v - rate·g, with the new v, in place of v.

    A velocity below the smallest normal float32 is set to zero: that of an idle connection would
    become subnormal within 900 steps, and subnormal arithmetic is up to 8 times slower. The
    numbers come as `SGD`.
    """
    arrays = values, velocity, gradient
    rate, momentum, decay, nesterov = sgd
    looks_ahead = builder.icmp_unsigned("!=", nesterov, nesterov.type(0))
    rates = builder.fneg(rate), momentum, builder.fneg(decay)
    descent, momentum, decayed = (splat(builder, number, LANES) for number in rates)

    def emit(tile):
        places = [array.at(tile.start) for array in arrays]
        w, v, g = (load_lanes(builder, place, LANES, tile.mask) for place in places)
        descending = builder.fmul(descent, g)
        v = flushed(builder, multiply_add(builder, momentum, v, descending))
        ahead = multiply_add(builder, momentum, v, descending)
        moved = builder.select(looks_ahead, ahead, v)
        w = multiply_add(builder, decayed, w, builder.fadd(w, moved))
        store_lanes(builder, v, places[1], LANES, tile.mask)
        store_lanes(builder, w, places[0], LANES, tile.mask)

    for_each_tile(builder, start, stop, (LANES,), emit)


def flushed(builder, v):
    """Return a vector with 0 for what is below the smallest normal number."""
    zero, tiny = ir.Constant(v.type, None), ir.Constant(v.type, [SMALLEST_NORMAL] * LANES)
    size = call(builder, f"llvm.fabs.v{LANES}f32", v.type, v)
    return builder.select(builder.fcmp_ordered("<", size, tiny), zero, v)


@emitted()
def adam_range(builder, values, moments, gradient, start, stop, adam, corrections):
    """Adam (Kingma & Ba, 2015, algorithm 1) on start <= k < stop, with a count for every weight.

    `moments` are mean m, square s and updates t, uint16, of every weight. With t counted up, to
    65535 at the most, `corrections` have a[t] = 1/(1 - β1ᵗ) and c[t] = 1/√(1 - β2ᵗ), float32; their
    last numbers hold for larger t too. The numbers come as `Adam`::

        g = g + coupled·w;  m = β1·m + (1 - β1)·g;  s = β2·s + (1 - β2)·g²
        w = w - decay·w - rate·a[t]·m / (c[t]·√s + ε)
    """
    arrays = values, *moments[:2], gradient
    first, second = corrections
    keeps = [splat(builder, number, LANES) for number in adam]
    rate, decay, coupled, keep_mean, to_mean, keep_square, to_square, epsilon = keeps
    wide = ir.VectorType(I32, LANES)
    one, most = ir.Constant(wide, [1] * LANES), ir.Constant(wide, [2**16 - 1] * LANES)
    last = builder.trunc(builder.sub(first.shape[0], I64(1)), I32)
    last = splat(builder, last, LANES)

    def least(a, b):
        return builder.select(builder.icmp_unsigned("<", a, b), a, b)

    def emit(tile):
        places = [array.at(tile.start) for array in arrays]
        w, m, s, g = (load_lanes(builder, place, LANES, tile.mask) for place in places)
        counts = moments[2].at(tile.start)
        t = builder.zext(load_elements(builder, counts, LANES, tile.mask, I16), wide)
        t = least(builder.add(t, one), most)
        number = least(t, last)
        g = multiply_add(builder, coupled, w, g)
        fresh = builder.fmul(to_mean, g)
        m = flushed(builder, multiply_add(builder, keep_mean, m, fresh))
        fresh = builder.fmul(builder.fmul(to_square, g), g)
        s = flushed(builder, multiply_add(builder, keep_square, s, fresh))
        root = call(builder, f"llvm.sqrt.v{LANES}f32", s.type, s)
        below = multiply_add(builder, root, look_up(builder, second.address, number), epsilon)
        above = builder.fmul(builder.fmul(rate, look_up(builder, first.address, number)), m)
        kept = multiply_add(builder, builder.fneg(decay), w, w)
        w = builder.fsub(kept, builder.fdiv(above, below))
        store_lanes(builder, m, places[1], LANES, tile.mask)
        store_lanes(builder, s, places[2], LANES, tile.mask)
        store_lanes(builder, w, places[0], LANES, tile.mask)
        narrow = builder.trunc(t, ir.VectorType(I16, LANES))
        store_elements(builder, narrow, counts, tile.mask)

    for_each_tile(builder, start, stop, (LANES,), emit)


@intrinsic
def unsigned(typing, number):
    """Return an int32 or int64 that is not negative as uint32 or uint64, which index faster."""
    kind = types.uint32 if number == types.int32 else types.uint64

    def generate(context, builder, signature, arguments):
        return context.cast(builder, arguments[0], number, kind)

    return kind(number), generate


@inline
def reorder_range(values, start, stop, places, out):
    """out[places[k]] = values[k] for start <= k < stop."""
    new = values[start:stop]
    to = places[start:stop]
    for k in range(len(new)):
        out[unsigned(to[k])] = new[k]


@inline
def prefetch_distance(X):
    """Return how many connections ahead rows are prefetched: none where the cache holds them.

    Where it does not, every connection is a cache and TLB miss.
    """
    return PREFETCH_AHEAD if X.nbytes > PREFETCH_BYTES else 0


@emitted()
def prefetch_row(builder, indptr, indices, j, X, ahead):
    """Ask for the rows of X that a row's connections gather, but `ahead` connections later."""
    nnz, size = indices.shape[0], X.row_bytes()
    ends = [builder.add(end, ahead) for end in row_range(builder, indptr, j)]
    ends = [builder.select(builder.icmp_signed("<", end, nnz), end, nnz) for end in ends]
    with cgutils.for_range_slice(builder, *ends, I64(1)) as (k, _):
        row = gathered(builder, indices.address, k, X.address, size)
        with cgutils.for_range_slice(builder, I64(0), size, I64(CACHE_LINE)) as (offset, _):
            prefetch_line(builder, builder.add(row, offset))


@emitted()
def transpose_16(builder, X, rows, first, out, b):
    """out[first + f, b + r] = X[rows[b + r], first + f] for 0 <= f, r < 16.

    X and `out` are float32, `rows` int64.
    """
    lines = []
    for r in range(LANES):
        place = as_pointer(builder, rows.at(builder.add(b, I64(r))), I64)
        lines.append(load_lanes(builder, X.at(builder.load(place, align=8), first), LANES, None))
    # Swap the off-diagonal blocks of 8 lanes, then those of 4, 2 and 1 within each block.
    for size in (8, 4, 2, 1):
        for i in (i for i in range(LANES) if not i & size):
            upper = [L if not L & size else LANES + L - size for L in range(LANES)]
            lower = [L + size if not L & size else LANES + L for L in range(LANES)]
            pair = lines[i], lines[i + size]
            lines[i] = shuffle(builder, *pair, upper)
            lines[i + size] = shuffle(builder, *pair, lower)
    for f, line in enumerate(lines):
        store_lanes(builder, line, out.at(builder.add(first, I64(f)), b), LANES, None)


@intrinsic
def fused_add(typing, a, b, c):
    """Return a·b + c, in one rounding where the CPU can; all float32, or else float64."""
    kind = types.float32 if a == b == c == types.float32 else types.float64

    def generate(context, builder, signature, arguments):
        given = zip(arguments, signature.args, strict=True)
        numbers = [context.cast(builder, value, given_as, kind) for value, given_as in given]
        return call(builder, f"llvm.fmuladd.f{kind.bitwidth}", numbers[0].type, *numbers)

    return kind(a, b, c), generate
