"""Single instructions and small moves for the kernels, as LLVM IR.

Addresses are integers (`array.ctypes.data` in a kernel): the caller keeps the arrays alive.
"""

from __future__ import annotations

from numba import types
from numba.extending import intrinsic

from .lanes import F32, I32, I64, LANES, as_pointer, load_lanes, shuffle, store_lanes


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
def as_float(typing, value):
    """Return a number of activations, float32 or bfloat16 (as uint16), as float32."""

    def widen(context, builder, signature, arguments):
        bits = builder.shl(builder.zext(arguments[0], I32), I32(16))
        return builder.bitcast(bits, F32)

    def keep(context, builder, signature, arguments):
        return arguments[0]

    return types.float32(value), widen if value == types.uint16 else keep
