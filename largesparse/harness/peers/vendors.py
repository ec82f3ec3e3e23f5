"""The forward product by vendors' libraries: SciPy, MKL, PyTorch, and AMD's AOCL-Sparse, and whole
steps by the last.

Each multiplies the matrix of every layer (n_out, n_in), CSR, by float32 activations of features ×
samples, as ours do; without bias and activation function.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from threadpoolctl import threadpool_limits

from ...backends.base import Backend
from ...backends.mkl import loaded_code_path
from ...backends.operands import Counts, Float32, Int32
from ...errors import BackendError
from ...machine.versions import version, wheel_file
from .ours import Ours, Products
from .problem import Batches, Problem

AOCL_LIBRARY = r"libaoclsparse.*\.so[.\d]*"  # in the wheel `aoclda`
NO_TRANSPOSE, ROW_MAJOR, FROM_ZERO = 111, 0, 0  # of aoclsparse_types.h
EXPECTED_CALLS = 10_000  # the hint by which it may prepare the matrix

Product = Callable[[], Any]
Maker = Callable[[csr_array, NDArray[np.float32], NDArray[np.float32], int], Product]


def vendor_products(products: Products) -> dict[str, Callable[[int], Any]]:
    """Return the forward products of all layers by every library that is here, by its name.

    Each is checked against SciPy's product before it is timed; of those that are not installed
    standard error tells.

    Raises
    ------
    BackendError
        Where a library's product is another than SciPy's.
    """
    found: dict[str, Callable[[int], Any]] = {}
    for name, make in VENDORS.items():
        try:
            label, calls = _of_all_layers(name, make, products)
        except (ImportError, BackendError) as error:
            print(f"{name} is skipped: {error}", file=sys.stderr)
            continue
        found[f"{label}: forward products"] = functools.partial(_call_all, calls)
    return found


def _of_all_layers(name: str, make: Maker, products: Products) -> tuple[str, list[Product]]:
    """Return how a library is called, with what it is, and its product for every layer."""
    calls = []
    for k, layer in enumerate(products.layers):
        arrays = layer.values_by_output, layer.indices_by_output, layer.indptr_by_output
        matrix = csr_array(arrays, shape=(layer.n_out, layer.n_in))
        X = np.ascontiguousarray(products.inputs(k))
        out = np.empty((layer.n_out, X.shape[1]), dtype=np.float32)
        call = make(matrix, X, out, products.trainer.threads)
        result = call()
        _check(name, out if result is None else np.asarray(result), matrix @ X)
        calls.append(call)
    label = {"MKL": f"MKL {loaded_code_path() or ''}".strip(), AOCL: f"{AOCL} {aocl_version()}"}
    return label.get(name, name), calls


def _check(name: str, found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    scale = float(abs(expected).max()) or 1.0
    if not np.allclose(found, expected, atol=1e-4 * scale):
        raise BackendError(f"the product by {name} is not SciPy's")


def _call_all(calls: list[Product], _: int) -> None:
    for call in calls:
        call()


def _scipy(
    matrix: csr_array, X: NDArray[np.float32], out: NDArray[np.float32], threads: int
) -> Product:
    return lambda: matrix @ X


def _mkl(
    matrix: csr_array, X: NDArray[np.float32], out: NDArray[np.float32], threads: int
) -> Product:
    from ...backends.mkl import load

    backend = load()

    def call() -> None:
        with backend.threads(threads):
            backend.spmm(matrix.indptr, matrix.indices, matrix.data, X, out=out)

    return call


def _torch(
    matrix: csr_array, X: NDArray[np.float32], out: NDArray[np.float32], threads: int
) -> Product:
    import warnings

    import torch

    torch.set_num_threads(threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that CSR is in beta
        indptr, indices, data = map(torch.from_numpy, (matrix.indptr, matrix.indices, matrix.data))
        sparse = torch.sparse_csr_tensor(indptr, indices, data, matrix.shape)
    dense, result = torch.from_numpy(X), torch.from_numpy(out)

    def call() -> None:
        torch.matmul(sparse, dense, out=result)

    return call


def _aocl(
    matrix: csr_array, X: NDArray[np.float32], out: NDArray[np.float32], threads: int
) -> Product:
    backend = AOCLBackend()

    def call() -> None:
        backend.spmm(matrix.indptr, matrix.indices, matrix.data, X, out=out)

    with backend.threads(threads):  # once: to set it takes longer than a product
        call()
    return call


class AOCLBackend(Backend):
    """Sparse-dense products by AOCL-Sparse; the rest by the shared kernels.

    It keeps every matrix that it has multiplied by, for patterns that do not change.
    """

    name = "aocl"  # type: ignore[assignment]  # nobody chooses it by name

    def __init__(self) -> None:
        self._library = aocl_library()
        self._known: dict[tuple[int, ...], tuple[Any, ...]] = {}
        self._description = ctypes.c_void_p()
        create = self._library.aoclsparse_create_mat_descr
        _done(create(ctypes.byref(self._description)), "aoclsparse_create_mat_descr")

    @contextmanager
    def threads(self, count: int) -> Iterator[None]:
        if count != getattr(self, "_threads", None):
            threadpool_limits(count, user_api="openmp")
            self._threads = count
        with super().threads(count):
            yield

    def spmm(
        self, indptr: Counts, indices: Int32, values: Float32, X: Float32, *, out: Float32
    ) -> None:
        known, columns = len(self._known), X.shape[1]
        matrix = self._matrix(indptr, indices, values, X.shape[0])
        if len(self._known) > known:
            out[:] = 0  # it adds 0 times what is there, which may be NaN in memory that is new
        status = self._library.aoclsparse_scsrmm(
            *(NO_TRANSPOSE, ctypes.c_float(1), matrix, self._description, ROW_MAJOR),
            *(_pointer(X), columns, columns, ctypes.c_float(0), _pointer(out), columns),
        )
        _done(status, "aoclsparse_scsrmm")

    def _matrix(self, indptr: Counts, indices: Int32, values: Float32, n_in: int) -> Any:
        """Return the library's description of a CSR matrix, whose values may change."""
        arrays = indptr, indices, values
        key = (*map(id, arrays), n_in)
        if key not in self._known:
            library, matrix = self._library, ctypes.c_void_p()
            sizes = len(indptr) - 1, n_in, len(values)
            status = library.aoclsparse_create_scsr(
                ctypes.byref(matrix), FROM_ZERO, *sizes, *map(_pointer, arrays)
            )
            _done(status, "aoclsparse_create_scsr")
            hint = library.aoclsparse_set_mm_hint
            _done(hint(matrix, NO_TRANSPOSE, self._description, EXPECTED_CALLS), "the hint")
            _done(library.aoclsparse_optimize(matrix), "aoclsparse_optimize")
            self._known[key] = matrix, arrays
        return self._known[key][0]


def _done(status: int, what: str) -> None:
    if status:
        raise BackendError(f"{what} of AOCL-Sparse failed with status {status}")


def _pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


class AOCLSteps(Ours):
    """Steps of largesparse whose products are AOCL-Sparse's."""

    def __init__(self, problem: Problem, batches: Batches) -> None:
        super().__init__(problem, batches, backend="scipy")
        self.trainer.backend = AOCLBackend()
        self.name = f"{AOCL} {aocl_version()}, steps"


@functools.cache
def aocl_library() -> ctypes.CDLL:
    """Return AOCL-Sparse, from the wheel `aoclda`.

    The libraries of the wheel do not find each other by themselves: those that the wanted one needs
    are loaded before it, in the order in which that succeeds.

    Raises
    ------
    ImportError
        Where that wheel is not installed, or cannot be loaded.
    """
    path = wheel_file("aoclda", AOCL_LIBRARY)
    if path is None:
        raise ImportError("the wheel aoclda is not installed (Linux x86-64: pip install aoclda)")
    try:
        _load_with_needed(path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise ImportError(f"{path.name} cannot be loaded: {error}") from error


def _load_with_needed(path: Path) -> None:
    """Load a library, after those beside it that it says are not there."""
    for _ in range(len(list(path.parent.iterdir()))):
        try:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            return
        except OSError as error:
            needed = path.parent / str(error).partition(":")[0]
            if not needed.exists() or needed == path:
                raise
        _load_with_needed(needed)


def aocl_version() -> str:
    """Return the version of the wheel; nothing where there is none."""
    return version("aoclda") or ""


AOCL = "AOCL-Sparse"
VENDORS: dict[str, Maker] = {
    "SciPy CSR": _scipy,
    "MKL": _mkl,
    "torch CSR": _torch,
    AOCL: _aocl,
}
