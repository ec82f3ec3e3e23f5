"""The `mkl` backend: products through MKL's sparse routines, by `sparse_dot_mkl`."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from ..errors import BackendError
from ..machine.threading_layers import can_limit_tbb, limit_tbb
from ..machine.threads import core_numbers
from ..machine.versions import wheel_file
from .base import Backend
from .operands import NO_INT64, Connections, Counts, Float32, Int32

LIBRARY = r"(lib)?mkl_rt[.\d]*\.(so[.\d]*|dylib|dll)"  # in the wheel
TBB = 4  # MKL_THREADING_TBB
AS_IT_IS = 10  # SPARSE_OPERATION_NON_TRANSPOSE


@functools.cache
def load_mkl() -> Any:
    """Return the module `sparse_dot_mkl`, with MKL loaded behind it.

    `sparse_dot_mkl` looks for MKL where the system's linker does, which does not see the library
    of the `mkl` wheel in a virtual environment: so it is pointed to the wheel's own file.

    Raises
    ------
    BackendError
        Where MKL or `sparse_dot_mkl` is not installed or cannot be loaded.
    """
    if not os.environ.get("MKL_RT") and (library := wheel_file("mkl", LIBRARY)) is not None:
        os.environ["MKL_RT"] = str(library)
    take_tbb()  # before its first call
    try:
        import sparse_dot_mkl
    except (ImportError, OSError) as error:
        raise BackendError(
            "The 'mkl' backend needs MKL, which could not be loaded: install it with "
            "'pip install mkl sparse_dot_mkl' (x86-64 only), or choose another backend."
        ) from error
    return sparse_dot_mkl


@functools.cache
def take_tbb() -> bool:
    """Let MKL's threads be TBB's, if it has not started any; return whether they are.

    Its own, of OpenMP, wait actively: beside the kernels' threads, and on a busy machine, they
    take the cores from those that compute. MKL_THREADING_LAYER has precedence.
    """
    library = os.environ.get("MKL_RT")
    if not library or os.environ.get("MKL_THREADING_LAYER") or not can_limit_tbb():
        return False
    if not any(Path(library).parent.glob("libmkl_tbb_thread.so*")):
        return False  # MKL would end the process
    return int(ctypes.CDLL(library).MKL_Set_Threading_Layer(TBB)) == TBB


def loaded_code_path() -> str | None:
    """Return which of its code paths MKL has loaded: "avx512", "avx2", ... or "generic".

    MKL chooses at its first call, by the maker of the CPU as much as by what the CPU can do.
    None where that cannot be told (no call yet, or not Linux).
    """
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    found = set(re.findall(r"libmkl_(def|mc3|avx|avx2|avx512\w*)\.so", maps))
    specific = sorted(found - {"def"})
    if specific:
        return specific[-1]
    return "generic" if found else None


class Handles:
    """MKL's own descriptions of matrices, which live as long as the arrays that they point to.

    Making one takes longer than a small product. The values of the arrays may change meanwhile.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], Any] = {}

    def of(self, indptr: Counts, indices: Int32, values: Float32, shape: tuple[int, int]) -> Any:
        """Return that of a CSR matrix."""
        arrays = indptr, indices, values
        key = (*map(id, arrays), *shape)
        if key not in self._known:
            from sparse_dot_mkl._mkl_interface import _create_mkl_sparse, _destroy_mkl_handle

            matrix = csr_matrix((values, indices, indptr), shape=shape, copy=False)
            handle = _create_mkl_sparse(matrix)[0]
            if self._known.setdefault(key, handle) is not handle:  # another thread was faster
                _destroy_mkl_handle(handle)
            for array in arrays:  # an id is another array's after this one's end
                weakref.finalize(array, self._forget, key).atexit = False
        return self._known[key]

    def _forget(self, key: tuple[int, ...]) -> None:
        from sparse_dot_mkl._mkl_interface import _destroy_mkl_handle

        if (handle := self._known.pop(key, None)) is not None:
            _destroy_mkl_handle(handle)


class MKLBackend(Backend):
    """Sparse-dense products by MKL; the rest by the shared kernels."""

    name = "mkl"

    def __init__(self) -> None:
        self._mkl = load_mkl()
        self._interface = self._mkl._mkl_interface
        self._on_tbb = take_tbb()
        self._most = len(core_numbers())  # threads that TBB uses, unless it is limited
        self._handles = Handles()
        self._limit = threading.local()  # its `count`: the threads that `threads` lets it use
        # Handles of 64-bit indices are of copies; on Windows, kernels would call it otherwise.
        self._keeps_handles = self._interface.MKL.MKL_INT is ctypes.c_int
        if self._keeps_handles and sys.platform != "win32":
            self.has_whole_step = True
            self.multiply = _address(self._interface.MKL._mkl_sparse_s_mm)
        one = np.ones((1, 1), dtype=np.float32)
        pattern = np.array([0, 1], dtype=np.int32), np.zeros(1, dtype=np.int32)
        self.spmm(*pattern, one[0], one, out=one.copy())  # MKL chooses its code path now

    @contextmanager
    def threads(self, count: int) -> Iterator[None]:
        before = getattr(self._limit, "count", None)
        if before == count:  # a step within an epoch: to begin and end a limit takes 50 us
            yield
            return
        with super().threads(count), ExitStack() as stack:
            self._limit.count = count
            stack.callback(setattr, self._limit, "count", before)
            if not self._on_tbb:
                own = self._mkl.mkl_set_num_threads_local(count)
                stack.callback(self._mkl.mkl_set_num_threads_local, own)
            elif count < self._most:
                stack.enter_context(limit_tbb(count))
            yield

    def spmm(
        self, indptr: Counts, indices: Int32, values: Float32, X: Float32, *, out: Float32
    ) -> None:
        shape = (out.shape[0], X.shape[0])
        _check_counts(indptr)
        if len(indices) == 0:
            out[:] = 0
            return
        # With one column, MKL takes its product with a vector, whose sums depend on which thread
        # comes to which rows first.
        result = np.empty((shape[0], 2), dtype=np.float32) if X.shape[1] == 1 else out
        X = np.repeat(X, 2, axis=1) if X.shape[1] == 1 else X
        if not self._keeps_handles:
            matrix = csr_matrix((values, indices, indptr), shape=shape, copy=False)
            self._mkl.dot_product_mkl(matrix, X, out=result, out_scalar=0.0)
        else:
            self._multiply(self._handles.of(indptr, indices, values, shape), X, result)
        if result is not out:
            out[:] = result[:, :1]

    def matrix(self, connections: Connections, shape: tuple[int, int]) -> int:
        _check_counts(connections.indptr)
        if len(connections.indices) == 0:
            return 0
        return _address(self._handles.of(*connections, shape))

    def _multiply(self, handle: Any, X: Float32, out: Float32) -> None:
        """Compute out = A·X for the matrix A that a handle describes."""
        mkl, n_columns = self._interface, X.shape[1]
        status = mkl.MKL._mkl_sparse_s_mm(
            AS_IT_IS,
            1.0,
            handle,
            mkl.matrix_descr(),
            mkl.LAYOUT_CODE_C,
            X,
            n_columns,
            n_columns,
            0.0,
            ctypes.byref(ctypes.c_float.from_buffer(out.data)),
            n_columns,
        )
        mkl._check_return_value(status, "mkl_sparse_s_mm")


def _check_counts(indptr: Counts) -> None:
    if indptr.dtype != np.int32:  # its handles would be of copies, cut to 32 bits
        raise BackendError(NO_INT64)


def _address(pointer: Any) -> int:
    return ctypes.cast(pointer, ctypes.c_void_p).value or 0


@functools.cache
def load() -> MKLBackend:
    """Return the backend; it is made once in a process."""
    return MKLBackend()
