"""Single instructions and small moves for the kernels, as LLVM IR.

Addresses are integers (`array.ctypes.data` in a kernel): the caller keeps the arrays alive.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .lanes import I64, LANES, as_pointer, load_lanes, shuffle, store_lanes


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
def fused_add(typing, a, b, c):
    """Return a·b + c, in one rounding where the CPU can; all float32, or else float64."""
    kind = types.float32 if a == b == c == types.float32 else types.float64

    def generate(context, builder, signature, arguments):
        given = zip(arguments, signature.args, strict=True)
        numbers = [context.cast(builder, value, given_as, kind) for value, given_as in given]
        name = f"llvm.fmuladd.f{kind.bitwidth}"
        function_type = ir.FunctionType(numbers[0].type, [numbers[0].type] * 3)
        function = cgutils.get_or_insert_function(builder.module, function_type, name)
        return builder.call(function, numbers)

    return kind(a, b, c), generate
