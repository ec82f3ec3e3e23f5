"""MKL's sparse products within kernels: no Python around each of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from ..errors import BackendError
from .compiling import inline
from .lanes import F32, I32, I64, Builder, Value
from .tiles import Array, emitted

AS_IT_IS = 10  # SPARSE_OPERATION_NON_TRANSPOSE
GENERAL = 20  # SPARSE_MATRIX_TYPE_GENERAL
BY_ROWS = 101  # SPARSE_LAYOUT_ROW_MAJOR


@emitted(types.int32)
def call_mkl(builder: Builder, function: Value, matrix: Value, X: Array, out: Array) -> Value:
    """Call the function at an address, `mkl_sparse_s_mm`: out = A·X; return its status.

    `matrix` is the address of MKL's description of A. As x86-64 has it outside Windows, a structure
    of three integers (`matrix_descr`) is passed as one of 64 bits and one of 32.
    """
    columns = builder.trunc(X.shape[1], I32)
    given: list[Any] = [I32(AS_IT_IS), F32(1), matrix, I64(GENERAL), I32(0), I32(BY_ROWS)]
    given += [X.address, columns, columns, F32(0), out.address, columns]
    signature = ir.FunctionType(I32, [value.type for value in given])
    return builder.call(builder.inttoptr(function, ir.PointerType(signature)), given)


@inline
def multiply(function, matrix, X, out):
    """out = A·X by MKL for X (n, batch), out (rows, batch): see `call_mkl`.

    Without an address of A, this has no connections.
    """
    status = np.int32(0)
    if matrix == 0:
        out[:] = 0
    elif X.shape[1] == 1:  # see `MKLBackend.spmm`
        twice = np.empty((len(X), 2), dtype=np.float32)
        result = np.empty((len(out), 2), dtype=np.float32)
        twice[:] = X
        status = call_mkl(function, matrix, twice, result)
        out[:, 0] = result[:, 0]
    else:
        status = call_mkl(function, matrix, X, out)
    if status != 0:
        raise BackendError("MKL could not compute a sparse product: is there memory for it?")
