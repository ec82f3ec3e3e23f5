"""The kernels' parallel loops on the threads of an OpenMP library that another package runs.

Two pools of threads in a process are in each other's way: GNU OpenMP's threads wait actively for
milliseconds after each loop, on the cores that the other pool's threads need then. Numba calls one
function for all parallel loops of its kernels. This module puts another one in its place, with the
same arguments, which asks the library for a team of threads: its threads wait for ours too.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import cfunc, types
from numba.extending import intrinsic

from ..machine.threading_layers import threading_layer
from ..machine.threads import numba_threads

# What is taken of the library: GNU OpenMP's names, which LLVM's and Intel's have too
FUNCTIONS = ("GOMP_parallel", "omp_get_thread_num", "omp_set_num_threads")
PREFIX = "largesparse_"  # of symbols, so that they are nobody else's
MEMBER = PREFIX + "member"
ALONE = PREFIX + "alone"  # where it is 1, a loop has the thread that calls it
WORD = 8  # bytes: all arguments are addresses and counts
place = types.int64

omp_parallel = types.ExternalFunction(
    PREFIX + FUNCTIONS[0], types.void(place, place, types.uint32, types.uint32)
)
omp_get_thread_num = types.ExternalFunction(PREFIX + FUNCTIONS[1], types.int32())

_kept: list[Any] = []  # what symbols point to
_libraries: list[ctypes.CDLL] = []
_alone = ctypes.c_int64(0)


def _after_fork() -> None:
    _alone.value = 1  # the library's threads are the parent's: a team would wait for them for ever
    for library in _libraries:  # nor may what else it runs, as PyTorch's own operations, wait so
        library.omp_set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

# Places in the record that a team shares
LOOP, ARGUMENTS, DIMENSIONS, STEPS, DATA, INNER, ARRAYS, NEXT, SPACE = range(9)


@intrinsic
def _words(typing, address):
    """Return an address as a pointer to int64."""
    kind = types.CPointer(types.int64)

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(kind))

    return kind(place), generate


@intrinsic
def _reserve(typing, count):
    """Return the address of `count` words that live until the function returns."""

    def generate(context, builder, signature, arguments):
        word = ir.IntType(8 * WORD)
        return builder.ptrtoint(builder.alloca(word, size=arguments[0]), word)

    return place(types.int64), generate


@intrinsic
def _take(typing, address):
    """Return the number at an address, and add one to it for all threads."""

    def generate(context, builder, signature, arguments):
        word = ir.IntType(8 * WORD)
        pointer = builder.inttoptr(arguments[0], word.as_pointer())
        return builder.atomic_rmw("add", pointer, word(1), "monotonic")

    return types.int64(place), generate


@intrinsic
def _run(typing, loop, arguments, dimensions, steps, data):
    """Call a piece of a loop: a function that numba has compiled."""

    def generate(context, builder, signature, given):
        word = ir.IntType(8 * WORD)
        kind = ir.FunctionType(ir.VoidType(), [word] * 4)
        builder.call(builder.inttoptr(given[0], kind.as_pointer()), given[1:])
        return context.get_dummy_value()

    return types.void(place, place, place, place, place), generate


def _symbol(name: str) -> Any:
    """Return a function for compiled code that returns the address of a symbol."""

    @intrinsic
    def address(typing):
        def generate(context, builder, signature, arguments):
            word = ir.IntType(8 * WORD)
            return builder.ptrtoint(ir.GlobalVariable(builder.module, word, name), word)

        return place(), generate

    return address


_member_place, _alone_place = _symbol(MEMBER), _symbol(ALONE)


def _member(record):
    """Run pieces of a loop until none is left, whichever thread is first."""
    shared = _words(record)
    dimensions, steps = _words(shared[DIMENSIONS]), _words(shared[STEPS])
    arguments, inner, arrays = _words(shared[ARGUMENTS]), shared[INNER], shared[ARRAYS]
    own = shared[SPACE] + WORD * (inner + 1 + arrays) * omp_get_thread_num()
    counts, places = _words(own), _words(own + WORD * (inner + 1))
    for k in range(1, inner + 1):
        counts[k] = dimensions[k]
    counts[0] = 1
    piece = _take(record + WORD * NEXT)
    while piece < dimensions[0]:
        for k in range(arrays):
            places[k] = arguments[k] + steps[k] * piece
        _run(shared[LOOP], own + WORD * (inner + 1), own, shared[STEPS], shared[DATA])
        piece = _take(record + WORD * NEXT)


def _parallel_for(loop, arguments, dimensions, steps, data, inner, arrays, threads):
    """Take the place of numba's function of this name, with its arguments.

    The loop has `dimensions[0]` pieces; piece k takes each of its `arrays` arguments `steps` bytes
    times k further.
    """
    if threads == 1 or _words(_alone_place())[0] == 1:
        _run(loop, arguments, dimensions, steps, data)
        return
    record = _reserve(SPACE + 1 + threads * (inner + 1 + arrays))
    shared = _words(record)
    shared[LOOP], shared[ARGUMENTS], shared[DIMENSIONS] = loop, arguments, dimensions
    shared[STEPS], shared[DATA], shared[INNER], shared[ARRAYS] = steps, data, inner, arrays
    shared[NEXT] = 0
    shared[SPACE] = record + WORD * (SPACE + 1)
    omp_parallel(_member_place(), record, threads, 0)


@functools.cache
def run_loops_on(library: ctypes.CDLL) -> bool:
    """Let kernels that this process has yet to load run on a library's threads; return if they do.

    They do not where the library is no OpenMP that GNU's compiler knows (macOS, Windows), or where
    NUMBA_THREADING_LAYER asks for another's threads.
    """
    if threading_layer().is_asked_for or not all(hasattr(library, name) for name in FUNCTIONS):
        return False
    numba_threads()  # numba sets what is set anew here
    for name in FUNCTIONS:
        llvm.add_symbol(PREFIX + name, _address(library[name]))
    options: Any = {"nopython": True, "error_model": "numpy"}
    member = cfunc(types.void(place), **options)(_member)
    llvm.add_symbol(MEMBER, member.address)
    llvm.add_symbol(ALONE, ctypes.addressof(_alone))
    of_loop = cfunc(types.void(*[place] * 7, types.int32), **options)(_parallel_for)
    llvm.add_symbol("numba_parallel_for", of_loop.address)
    _kept.extend((member, of_loop))
    _libraries.append(library)
    return True


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0
