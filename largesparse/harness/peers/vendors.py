"""The forward product by vendors' libraries: SciPy, MKL, PyTorch, and AMD's AOCL-Sparse.

Each multiplies the matrix of every layer (n_out, n_in), CSR, by float32 activations of features ×
samples, as ours do; without bias and activation function.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from threadpoolctl import threadpool_limits

from ...backends.mkl import loaded_code_path
from ...errors import BackendError
from ...machine.versions import version, wheel_file
from .ours import Products

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
        except (ImportError, OSError, BackendError) as error:
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
    return lambda: torch.matmul(sparse, dense, out=result) and None


def _aocl(
    matrix: csr_array, X: NDArray[np.float32], out: NDArray[np.float32], threads: int
) -> Product:
    """Return the product by AOCL-Sparse; the matrix lives as long as the process."""
    library = aocl_library()
    sparse, description = ctypes.c_void_p(), ctypes.c_void_p()
    keep = matrix.indptr, matrix.indices, matrix.data, X, out
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in keep]
    n_out, n_in = matrix.shape
    one, none, columns = ctypes.c_float(1), ctypes.c_float(0), X.shape[1]

    def done(status: int, what: str) -> None:
        if status:
            raise BackendError(f"{what} of AOCL-Sparse failed with status {status}")

    create = library.aoclsparse_create_scsr
    done(
        create(ctypes.byref(sparse), FROM_ZERO, n_out, n_in, matrix.nnz, *pointers[:3]),
        "aoclsparse_create_scsr",
    )
    done(library.aoclsparse_create_mat_descr(ctypes.byref(description)), "create_mat_descr")
    hint = library.aoclsparse_set_mm_hint
    done(hint(sparse, NO_TRANSPOSE, description, EXPECTED_CALLS), "aoclsparse_set_mm_hint")
    done(library.aoclsparse_optimize(sparse), "aoclsparse_optimize")
    multiply, order = library.aoclsparse_scsrmm, ROW_MAJOR

    def call() -> None:
        assert keep
        with threadpool_limits(threads, user_api="openmp"):
            status = multiply(
                *(NO_TRANSPOSE, one, sparse, description, order),
                *(pointers[3], columns, columns, none, pointers[4], columns),
            )
        done(status, "aoclsparse_scsrmm")

    return call


@functools.cache
def aocl_library() -> ctypes.CDLL:
    """Return AOCL-Sparse, from the wheel `aoclda`.

    The libraries of the wheel do not find each other by themselves: those that the wanted one needs
    are loaded before it, in the order in which that succeeds.

    Raises
    ------
    ImportError
        Where that wheel is not installed.
    OSError
        Where it cannot be loaded.
    """
    path = wheel_file("aoclda", AOCL_LIBRARY)
    if path is None:
        raise ImportError("the wheel aoclda is not installed (Linux x86-64: pip install aoclda)")
    _load_with_needed(path)
    return ctypes.CDLL(str(path))


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
