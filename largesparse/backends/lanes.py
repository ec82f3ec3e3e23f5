"""Vectors in LLVM IR: loads, stores, shuffles and sums.

Operations have a fixed order, so that a result does not depend on where a compiler inlines it.
Addresses are integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

F32 = ir.FloatType()
I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
CACHE_LINE = 64  # bytes
LANES = 16  # of the vectors whose sums are taken together

Builder = Any  # llvmlite.ir.IRBuilder
Value = Any  # llvmlite.ir.Value


def vector_type(width: int) -> Any:
    return ir.VectorType(F32, width)


def call(builder: Builder, name: str, kind: Any, *arguments: Value) -> Value:
    """Call an intrinsic of LLVM, whose result is of a kind."""
    signature = ir.FunctionType(kind, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


def as_pointer(builder: Builder, address: Value, kind: Any) -> Value:
    return builder.inttoptr(address, ir.PointerType(kind))


def load_scalar(builder: Builder, base: Value, k: Value, kind: Any) -> Value:
    """Return element k of an array of 4-byte elements."""
    address = builder.add(base, builder.shl(k, I64(2)))
    return builder.load(as_pointer(builder, address, kind), align=4)


def load_count(builder: Builder, base: Value, k: Value, itemsize: int) -> Value:
    """Return element k of an array of int32, or int64 by its `itemsize`, as int64."""
    if itemsize == 4:
        return builder.sext(load_scalar(builder, base, k, I32), I64)
    address = builder.add(base, builder.shl(k, I64(3)))
    return builder.load(as_pointer(builder, address, I64), align=8)


def gathered(builder: Builder, indices: Value, k: Value, X: Value, row_bytes: Value) -> Value:
    """Return the address of row indices[k] of X."""
    row = builder.sext(load_scalar(builder, indices, k, I32), I64)
    return builder.add(X, builder.mul(row, row_bytes))


def shuffle(builder: Builder, a: Value, b: Value, lanes: Sequence[int]) -> Value:
    chosen = ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes))
    return builder.shuffle_vector(a, b, chosen)


def splat(builder: Builder, scalar: Value, width: int) -> Value:
    kind = ir.VectorType(scalar.type, width)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, I32(0))
    return shuffle(builder, one, one, [0] * width)


def first_lanes(builder: Builder, count: Value, width: int) -> Value:
    """Return the mask of the first `count` lanes."""
    lanes = ir.Constant(ir.VectorType(I32, width), list(range(width)))
    return builder.icmp_signed("<", lanes, splat(builder, builder.trunc(count, I32), width))


def load_lanes(
    builder: Builder, address: Value, width: int, mask: Value | None, half: bool = False
) -> Value:
    """Return `width` numbers as float32, from bfloat16 if `half`."""
    found = load_elements(builder, address, width, mask, I16 if half else F32)
    return widened(builder, found) if half else found


def load_elements(
    builder: Builder, address: Value, width: int, mask: Value | None, element: Any
) -> Value:
    """Return `width` float32 or uint16 as they are."""
    size, suffix = (2, "i16") if element == I16 else (4, "f32")
    kind = ir.VectorType(element, width)
    pointer = as_pointer(builder, address, kind)
    if mask is None:
        return builder.load(pointer, align=size)
    name = f"llvm.masked.load.v{width}{suffix}.p0"
    return call(builder, name, kind, pointer, I32(size), mask, ir.Constant(kind, None))


def widened(builder: Builder, v: Value) -> Value:
    """Return the float32 whose upper halves are given: bfloat16 without a loss."""
    wide = ir.VectorType(I32, v.type.count)
    bits = builder.shl(builder.zext(v, wide), ir.Constant(wide, [16] * v.type.count))
    return builder.bitcast(bits, vector_type(v.type.count))


def narrowed(builder: Builder, v: Value) -> Value:
    """Return float32 as bfloat16, rounded to nearest, ties to even."""
    width = v.type.count
    wide = ir.VectorType(I32, width)
    one, sixteen, below_half = (ir.Constant(wide, [n] * width) for n in (1, 16, 0x7FFF))
    bits = builder.bitcast(v, wide)
    odd = builder.and_(builder.lshr(bits, sixteen), one)
    rounded = builder.add(bits, builder.add(odd, below_half))
    return builder.trunc(builder.lshr(rounded, sixteen), ir.VectorType(I16, width))


def store_lanes(
    builder: Builder,
    value: Value,
    address: Value,
    width: int,
    mask: Value | None,
    half: bool = False,
) -> None:
    """Write `width` float32, as bfloat16 if `half`."""
    store_elements(builder, narrowed(builder, value) if half else value, address, mask)


def store_elements(builder: Builder, value: Value, address: Value, mask: Value | None) -> None:
    """Write a vector of float32 or uint16 as it is."""
    size, suffix = (2, "i16") if value.type.element == I16 else (4, "f32")
    pointer = as_pointer(builder, address, value.type)
    if mask is None:
        builder.store(value, pointer, align=size)
    else:
        name = f"llvm.masked.store.v{value.type.count}{suffix}.p0"
        call(builder, name, ir.VoidType(), value, pointer, I32(size), mask)


def look_up(builder: Builder, table: Value, numbers: Value) -> Value:
    """Return the float32 of so many numbers, int32, in the table at an address."""
    width = numbers.type.count
    wide, pointer = ir.VectorType(I64, width), ir.VectorType(ir.PointerType(F32), width)
    offsets = builder.shl(builder.zext(numbers, wide), ir.Constant(wide, [2] * width))
    places = builder.inttoptr(builder.add(splat(builder, table, width), offsets), pointer)
    every = ir.Constant(ir.VectorType(I1, width), [1] * width)
    none = ir.Constant(vector_type(width), None)
    name = f"llvm.masked.gather.v{width}f32.v{width}p0"
    return call(builder, name, none.type, places, I32(4), every, none)


def multiply_add(builder: Builder, a: Value, b: Value, c: Value) -> Value:
    return call(builder, f"llvm.fmuladd.v{a.type.count}f32", a.type, a, b, c)


def lane_products(builder: Builder, x: Value, d: Value) -> Value:
    """Return a vector of at most 16 lanes whose sum is x·d."""
    pairs = list(zip(lane_parts(builder, x), lane_parts(builder, d), strict=True))
    total = builder.fmul(*pairs[0])
    for a, b in pairs[1:]:
        total = multiply_add(builder, a, b, total)
    return total


def lane_parts(builder: Builder, v: Value, lanes: int = LANES) -> list[Value]:
    """Return a vector cut into ones of at most `lanes` lanes."""
    width = v.type.count
    if width <= lanes:
        return [v]
    return [shuffle(builder, v, v, range(s, s + lanes)) for s in range(0, width, lanes)]


def lane_sum(builder: Builder, v: Value, left: int = 1) -> Value:
    """Return the sum of the lanes as a vector of one, or as that of `left` parts of it."""
    while v.type.count > left:
        n = v.type.count
        low, high = range(n // 2), range(n // 2, n)
        v = builder.fadd(shuffle(builder, v, v, low), shuffle(builder, v, v, high))
    return v


def tree_sum(builder: Builder, vectors: Sequence[Value]) -> Value:
    """Return the sum of one, two or four vectors."""
    while len(vectors) > 1:
        vectors = [builder.fadd(*vectors[q : q + 2]) for q in range(0, len(vectors), 2)]
    return vectors[0]


def sums_of_four(builder: Builder, vectors: Sequence[Value]) -> Value:
    """Return the sums of the lanes of four vectors, as a vector of four."""

    def halved(a: Value, b: Value, starts: Sequence[int], size: int) -> Value:
        """Add the halves of groups of lanes of two vectors, and join the sums."""
        low = [start + lane for start in starts for lane in range(size // 2)]
        high = [lane + size // 2 for lane in low]
        return builder.fadd(shuffle(builder, a, b, low), shuffle(builder, a, b, high))

    a, b, c, d = vectors
    n = a.type.count
    ab, cd = halved(a, b, (0, n), n), halved(c, d, (0, n), n)
    v = halved(ab, cd, range(0, 2 * n, n // 2), n // 2)  # a group of lanes for each of the four
    while v.type.count > 4:
        n = v.type.count
        v = halved(v, v, range(0, n, n // 4), n // 4)
    return v


def prefetch_line(builder: Builder, address: Value) -> None:
    """Ask for the cache line of an address, to be read soon."""
    pointer = as_pointer(builder, address, I8)
    read, keep_in_all_caches, data = I32(0), I32(3), I32(1)
    call(builder, "llvm.prefetch.p0", ir.VoidType(), pointer, read, keep_in_all_caches, data)
