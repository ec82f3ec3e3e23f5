"""The backends' sparse-dense products against dense NumPy, and how MKL is found."""

from __future__ import annotations

import ctypes
import os
import sys

import numba
import numpy as np
import pytest
from helpers import backend_or_skip, run_python
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from largesparse import NetworkConfig, SparseMLP, Trainer, TrainingConfig
from largesparse.backends import BACKENDS, get_backend
from largesparse.backends import mkl as mkl_module
from largesparse.backends import scipy as scipy_module
from largesparse.errors import BackendError
from largesparse.machine.versions import wheel_file


@pytest.fixture(params=BACKENDS)
def backend(request):
    return backend_or_skip(request.param)


def random_product(rows, n, batch, density, seed):
    """The arrays of a random product: indptr, indices, values, X, and the dense matrix."""
    rng = np.random.default_rng(seed)
    dense = rng.standard_normal((rows, n)).astype(np.float32)
    dense *= rng.random((rows, n)) < density
    A = csr_matrix(dense)
    X = rng.standard_normal((n, batch)).astype(np.float32)
    return A.indptr.astype(np.int32), A.indices.astype(np.int32), A.data, X, dense


def check_product(backend, rows, n, batch, density, seed=0):
    indptr, indices, values, X, dense = random_product(rows, n, batch, density, seed)
    before = [array.copy() for array in (indptr, indices, values, X)]
    out = np.full((rows, batch), np.nan, dtype=np.float32)  # must be overwritten, not added to
    backend.spmm(indptr, indices, values, X, out=out)
    dense, X64 = dense.astype(np.float64), X.astype(np.float64)
    error = np.abs(out - dense @ X64)
    assert np.all(error <= 1e-5 * (np.abs(dense) @ np.abs(X64)))
    for array, old in zip((indptr, indices, values, X), before, strict=True):
        np.testing.assert_array_equal(array, old)


# Products


@settings(max_examples=50)
@given(
    rows=st.one_of(st.just(1), st.integers(1, 60)),
    n=st.one_of(st.just(1), st.integers(1, 60)),
    batch=st.one_of(st.just(1), st.integers(1, 130)),
    density=st.sampled_from([0, 0.02, 0.1, 0.5, 1]),
    seed=st.integers(0, 1000),
)
@pytest.mark.parametrize("name", BACKENDS)
def test_spmm_equals_dense(name, rows, n, batch, density, seed):
    check_product(backend_or_skip(name), rows, n, batch, density, seed)


@pytest.mark.parametrize(
    "rows, n, batch, density",
    [
        (1, 1, 1, 1),
        (1, 1, 1, 0),
        (5, 4, 3, 0),  # no connections at all
        (30, 20, 1, 0.2),  # one sample
        (1, 2000, 64, 0.5),  # one row
        (2000, 1, 64, 0.5),  # one column
        (1, 2000, 1, 0.5),
        (2000, 1, 1, 0.5),
        (300, 300, 32, 0.001),  # most rows are empty
        (40, 50, 128, 1),
        (3000, 2000, 8, 0.01),
    ],
)
def test_spmm_of_special_shapes(backend, rows, n, batch, density):
    check_product(backend, rows, n, batch, density)


@pytest.mark.parametrize("empty", [np.s_[:3], np.s_[3:6], np.s_[7:], np.s_[1:]])
def test_empty_rows_give_zeros(backend, empty):
    *_, X, dense = random_product(10, 6, 5, 1, 0)
    dense[empty] = 0
    A = csr_matrix(dense)
    out = np.full((10, 5), np.nan, dtype=np.float32)
    backend.spmm(A.indptr, A.indices, A.data, X, out=out)
    assert not out[empty].any()
    np.testing.assert_allclose(out, dense @ X, rtol=1e-4, atol=1e-5)


def test_arrays_may_be_read_only(backend):
    if backend.name == "fused":
        pytest.skip("numba compiles a version of its own, which takes as long as 50 tests")
    *arrays, dense = random_product(20, 30, 7, 0.3, 0)
    for array in arrays:
        array.flags.writeable = False
    out = np.empty((20, 7), dtype=np.float32)
    backend.spmm(*arrays, out=out)
    np.testing.assert_allclose(out, dense @ arrays[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_seen(backend, value):
    """A diverging run must not be hidden by the kernels' fast arithmetic."""
    network = SparseMLP(NetworkConfig((6, 5, 4, 2), density=1), progress=False)
    config = TrainingConfig(batch_size=40, dropout=0, backend=backend.name)
    workspace = Trainer(network, config).workspace
    X, delta = np.random.default_rng(0).standard_normal((2, 6, 40)).astype(np.float32)
    X[3, 35] = value
    workspace.inputs(40)[:] = X
    for training in (True, False):
        logits = network.forward(workspace, 40, backend, training=training)
        finite = np.isfinite(logits).all(axis=0)
        assert not finite[35] and finite.sum() == 39
    network.forward(workspace, 40, backend, training=True)
    delta = delta[:2]
    network.backward(workspace, delta, backend)
    first = workspace.gradients[0].reshape(6, 5)
    assert not np.isfinite(first[3]).any() and np.isfinite(np.delete(first, 3, axis=0)).all()
    delta[0, 1] = value
    network.backward(workspace, delta, backend)
    assert not any(np.isfinite(gradient).all() for gradient in workspace.bias_gradients)


# Threads


@pytest.mark.parametrize("block", [1, 40, 1 << 18])
@pytest.mark.parametrize("density", [0, 0.2])
def test_scipy_with_several_threads_equals_one(monkeypatch, block, density):
    backend = get_backend("scipy")
    *arrays, _ = random_product(200, 100, 20, density, 0)
    results = []
    for threads, floats in ((1, 1 << 18), (1, block), (2, block), (3, block)):
        monkeypatch.setattr(scipy_module, "BLOCK_FLOATS", floats)
        out = np.full((200, 20), np.nan, dtype=np.float32)
        with backend.threads(threads):
            backend.spmm(*arrays, out=out)
        results.append(out)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_scipy_shares_its_blocks_among_threads(monkeypatch):
    backend = get_backend("scipy")
    *arrays, _ = random_product(200, 100, 20, 0.2, 0)
    monkeypatch.setattr(scipy_module, "BLOCK_FLOATS", 400)
    sizes, pool = [], scipy_module._pool
    monkeypatch.setattr(scipy_module, "_pool", lambda count: sizes.append(count) or pool(count))
    out = np.empty((200, 20), dtype=np.float32)
    for threads in (1, 3):
        with backend.threads(threads):
            backend.spmm(*arrays, out=out)
    backend.spmm(*arrays, out=out)  # back to one
    assert sizes == [3]


def test_mkl_with_several_threads_equals_one():
    backend = backend_or_skip("mkl")
    *arrays, _ = random_product(500, 300, 40, 0.1, 0)
    results = []
    for threads in (1, 2):
        results.append(np.full((500, 40), np.nan, dtype=np.float32))
        with backend.threads(threads):
            backend.spmm(*arrays, out=results[-1])
    np.testing.assert_array_equal(*results)


def test_a_product_with_one_column_is_the_same_every_time():
    """MKL's own threads make it differ once in some hundred times."""
    backend = backend_or_skip("mkl")
    indptr, indices, values, X, _ = random_product(403, 301, 1, 0.03, 0)
    out = np.empty((403, 1), dtype=np.float32)
    found = set()
    for threads in (1, 2, 3):
        with backend.threads(threads):
            for _ in range(500):
                backend.spmm(indptr, indices, values, X, out=out)
                found.add(out.tobytes())
    assert len(found) == 1


def test_threads_of_mkl_are_set_for_a_while():
    backend = backend_or_skip("mkl")
    if backend._on_tbb:
        threads_of_mkl = active_threads_of_tbb
    else:
        threads_of_mkl = pytest.importorskip("sparse_dot_mkl").mkl_get_max_threads
    before = threads_of_mkl()
    with backend.threads(1):
        assert threads_of_mkl() == 1
        if not backend._on_tbb:
            with backend.threads(2):
                assert threads_of_mkl() == 2
        assert threads_of_mkl() == 1
    assert threads_of_mkl() == before


def active_threads_of_tbb():
    name = "_ZN3tbb6detail2r127global_control_active_valueEi"
    function = ctypes.CDLL("libtbb.so.12")[name]
    function.restype = ctypes.c_size_t
    return function(0)


def test_threads_are_set_for_a_while(backend):
    before = numba.get_num_threads()
    most = numba.config.NUMBA_NUM_THREADS
    with backend.threads(1):
        assert numba.get_num_threads() == 1
        with backend.threads(most + 5):
            assert numba.get_num_threads() == most
        assert numba.get_num_threads() == 1
    assert numba.get_num_threads() == before
    with pytest.raises(ZeroDivisionError), backend.threads(1):
        _ = 1 / 0
    assert numba.get_num_threads() == before


# How MKL is found


@pytest.mark.parametrize("error", [ImportError("no mkl_rt"), OSError("cannot open")])
def test_an_mkl_that_cannot_be_loaded(monkeypatch, error):
    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "sparse_dot_mkl":
                raise error

    monkeypatch.setenv("MKL_RT", os.environ.get("MKL_RT", "unused"))
    for name in [name for name in sys.modules if name.split(".")[0] == "sparse_dot_mkl"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    with pytest.raises(BackendError, match="pip install mkl sparse_dot_mkl") as caught:
        mkl_module.load_mkl.__wrapped__()
    assert caught.value.__cause__ is error


def test_the_library_of_the_wheel_is_found():
    backend_or_skip("mkl")
    library = wheel_file("mkl", mkl_module.LIBRARY)
    if library is None:
        pytest.skip("MKL is not installed as a wheel")
    assert library.is_file() and "mkl_rt" in library.name


def test_no_wheel():
    assert wheel_file("there-is-no-such-wheel", ".*") is None


def test_a_library_that_is_named_is_left_alone(monkeypatch):
    backend_or_skip("mkl")
    monkeypatch.setenv("MKL_RT", "/somewhere/libmkl_rt.so")
    mkl_module.load_mkl.__wrapped__()
    assert os.environ["MKL_RT"] == "/somewhere/libmkl_rt.so"


# The code path of MKL


@pytest.mark.parametrize(
    "libraries, expected",
    [
        (["libmkl_rt.so.2", "libmkl_core.so.2", "libmkl_def.so.2"], "generic"),
        (["libmkl_rt.so.2", "libmkl_avx512.so.2"], "avx512"),
        (["libmkl_def.so.2", "libmkl_avx2.so.2"], "avx2"),
        (["libmkl_mc3.so.3"], "mc3"),
        (["libmkl_rt.so.2", "libmkl_core.so.2"], None),
        ([], None),
    ],
)
def test_code_path_by_the_libraries_mapped(monkeypatch, libraries, expected):
    lines = [f"7f00-7f01 r-xp 00000000 08:01 42 /env/lib/{name}\n" for name in libraries]

    class Path:
        def __init__(self, path):
            assert path == "/proc/self/maps"

        def read_text(self):
            return "".join(lines)

    monkeypatch.setattr(mkl_module, "Path", Path)
    assert mkl_module.loaded_code_path() == expected


def test_code_path_where_there_is_no_proc(monkeypatch):
    class Path:
        def __init__(self, path):
            pass

        def read_text(self):
            raise FileNotFoundError

    monkeypatch.setattr(mkl_module, "Path", Path)
    assert mkl_module.loaded_code_path() is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_code_path_of_the_mkl_that_is_loaded():
    backend_or_skip("mkl")
    assert mkl_module.loaded_code_path() is not None


# MKL's own descriptions of matrices


def test_a_description_is_kept_as_long_as_its_arrays_and_sees_their_values_change():
    mkl = backend_or_skip("mkl")
    known = mkl._handles._known
    before = len(known)
    indptr, indices, values, X, dense = random_product(30, 20, 8, 0.3, 0)
    out = np.empty((30, 8), dtype=np.float32)
    for factor in (1, 2, -3):
        values *= factor
        dense *= factor
        mkl.spmm(indptr, indices, values, X, out=out)
        np.testing.assert_allclose(out, dense @ X, rtol=1e-4, atol=1e-4)
    assert len(known) == before + 1
    mkl.spmm(indptr, indices, values.copy(), X, out=out)  # arrays of which one is gone
    assert len(known) == before + 1
    del indices
    assert len(known) == before


def test_arrays_that_take_the_places_of_others_are_not_taken_for_them():
    mkl = backend_or_skip("mkl")
    for seed in range(50):  # the memory of one is the next one's
        *arrays, X, dense = random_product(12, 9, 4, 0.4, seed)
        out = np.empty((12, 4), dtype=np.float32)
        mkl.spmm(*arrays, X, out=out)
        np.testing.assert_allclose(out, dense @ X, rtol=1e-4, atol=1e-4)


ILP64 = """
import numpy as np
from largesparse.backends import get_backend
mkl = get_backend("mkl")
rng = np.random.default_rng(0)
dense = rng.standard_normal((30, 20)).astype(np.float32) * (rng.random((30, 20)) < 0.3)
indices = np.flatnonzero(dense).astype(np.int32) % 20
indptr = np.r_[0, np.cumsum((dense != 0).sum(axis=1))].astype(np.int32)
values, X = dense[dense != 0], rng.standard_normal((20, 8)).astype(np.float32)
out = np.empty((30, 8), dtype=np.float32)
for factor in (1, 2):
    values *= factor
    mkl.spmm(indptr, indices, values, X, out=out)
    np.testing.assert_allclose(out, factor * dense @ X, rtol=1e-4, atol=1e-4)
assert not mkl._handles._known
"""


def test_an_mkl_of_64_bit_indices_describes_copies_that_are_not_kept():
    backend_or_skip("mkl")
    done = run_python("-c", ILP64, env=os.environ | {"MKL_INTERFACE_LAYER": "ILP64"})
    assert done.returncode == 0, done.stderr
