"""Loaders: archives, FashionMNIST's own files, real data, damaged files."""

from __future__ import annotations

import gzip
import os
import struct

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from largesparse.data.datasets import load_dataset
from largesparse.data.publishers import read_idx
from largesparse.errors import DataError, ParameterError

IDX_CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working directory from which no data folder is found."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    monkeypatch.delenv("LARGESPARSE_DATA", raising=False)


def write_idx(path, array):
    """Write the format as its publisher describes it: magic number, sizes, values, big-endian."""
    array = np.asarray(array)
    magic = bytes([0, 0, IDX_CODES[array.dtype.str[1:]], array.ndim])
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    content = magic + sizes + array.astype(array.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion_mnist(folder, suffix=""):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 30), ("t10k", 10)):
        arrays[part] = rng.integers(0, 256, (n, 28, 28), np.uint8), np.arange(n, dtype="u1") % 10
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", arrays[part][0])
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", arrays[part][1])
    return arrays


# Archives


def test_archive_with_a_split_keeps_rows_order_and_dtype(tmp_path):
    x_train, x_test = np.arange(24, dtype=np.int16).reshape(6, 2, 2), np.ones((3, 2, 2), np.int16)
    np.savez(
        tmp_path / "own.npz",
        x_train=x_train,
        y_train=[4, 9, 4, 9, 7, 4],
        x_test=x_test,
        y_test=[9, 4, 7],
    )
    data = load_dataset(tmp_path / "own.npz")
    assert data.name == "own"
    assert data.X_train.dtype == np.int16
    np.testing.assert_array_equal(data.X_train, x_train.reshape(6, 4))
    np.testing.assert_array_equal(data.X_test, x_test.reshape(3, 4))
    np.testing.assert_array_equal(data.y_train, [0, 2, 0, 2, 1, 0])
    np.testing.assert_array_equal(data.y_test, [2, 0, 1])
    assert data.y_train.dtype == np.int32


@pytest.mark.parametrize("kind", ["dense", "csr", "binary csr"])
def test_archive_without_a_split_is_split_by_class_and_seed(tmp_path, kind):
    rng = np.random.default_rng(0)
    X = (rng.random((100, 40)) < 0.2).astype(np.float32)
    if kind != "binary csr":
        X *= rng.normal(size=X.shape).astype(np.float32)
    y = np.repeat([0, 1, 2], [50, 30, 20])
    csr = sp.csr_array(X)
    arrays = {"indptr": csr.indptr, "indices": csr.indices, "shape": csr.shape, "y": y}
    if kind == "dense":
        arrays = {"X": X, "y": y}
    elif kind == "csr":
        arrays["data"] = csr.data
    np.savez(tmp_path / "own.npz", **arrays)
    data = load_dataset(tmp_path / "own.npz", test_fraction=0.2, seed=1)
    np.testing.assert_array_equal(np.bincount(data.y_train), [40, 24, 16])
    np.testing.assert_array_equal(np.bincount(data.y_test), [10, 6, 4])
    both = [data.X_train, data.X_test]
    assert all(sp.issparse(part) == (kind != "dense") for part in both)
    rows = np.vstack([part.toarray() if sp.issparse(part) else part for part in both])
    labels = np.concatenate([data.y_train, data.y_test])
    order, expected = np.lexsort(rows.T), np.lexsort(X.T)
    np.testing.assert_array_equal(rows[order], X[expected])  # the same rows, each once
    np.testing.assert_array_equal(labels[order], y[expected])
    again, other = (load_dataset(tmp_path / "own.npz", test_fraction=0.2, seed=s) for s in (1, 2))
    assert (again.X_test != data.X_test).sum() == 0
    assert (other.X_test != data.X_test).sum() > 0


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": np.ones((4, 2))}, "holds X; a data set needs"),
        ({}, "holds no arrays"),
        ({"X": np.ones((4, 2)), "y": [0, 1, 0]}, "4 samples but y has 3 labels"),
        ({"X": np.ones((4, 2)), "y": [0, 0, 0, 0]}, "one class only"),
        ({"X": np.ones((4, 2)), "y": [0, 0, 0, 1]}, "own.npz cannot be used"),
        ({"X": np.full((4, 2), np.nan), "y": [0, 1, 0, 1]}, "own.npz cannot be used: .*NaN"),
        ({"X": np.ones((4, 2), object), "y": [0, 1, 0, 1]}, "own.npz cannot be read"),
        (
            {
                "x_train": np.ones((2, 3)),
                "y_train": [0, 1],
                "x_test": np.ones((2, 2)),
                "y_test": [0, 1],
            },
            "2 features",
        ),
        (
            {
                "x_train": np.ones((2, 3)),
                "y_train": [0, 1],
                "x_test": np.ones((1, 3)),
                "y_test": [5],
            },
            "not among the 2 known classes: 5",
        ),
        (
            {"indptr": [0, 1, 2], "indices": [0, 7], "shape": [2, 3], "y": [0, 1]},
            "valid CSR array: indices must be < 3",
        ),
        (
            {"indptr": [0, 1], "indices": [0, 1], "shape": [2, 3], "y": [0, 1]},
            "valid CSR array",
        ),
        (
            {"indptr": [0, 1, 2], "indices": [0, 1], "shape": 2, "y": [0, 1]},
            "valid CSR array",
        ),
    ],
)
def test_unusable_archives_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path / "own.npz")


@given(st.data())
def test_a_damaged_archive_gives_one_kind_of_error(tmp_path_factory, data):
    """Any byte changed, or the end missing: `DataError`, or data (not every byte matters)."""
    path = tmp_path_factory.mktemp("damaged") / "own.npz"
    save = data.draw(st.sampled_from([np.savez, np.savez_compressed]))
    save(path, X=np.arange(40.0).reshape(10, 4), y=np.arange(10) % 2)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[position] ^= data.draw(st.integers(1, 255))
    else:
        del content[position:]
    path.write_bytes(content)
    try:
        result = load_dataset(path)
    except DataError as error:
        assert "own.npz" in str(error)
    else:
        np.testing.assert_array_equal(
            np.sort(np.vstack([result.X_train, result.X_test]).ravel()), np.arange(40.0)
        )


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\3\4 no archive either"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "own.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"own\.npz cannot be read as a NumPy archive"):
        load_dataset(tmp_path / "own.npz")


def test_a_single_array_is_refused(tmp_path):
    np.save(tmp_path / "own.npy", np.ones(3))
    with pytest.raises(DataError, match="no array of numbers"):
        load_dataset(tmp_path / "own.npy")


def test_a_missing_data_set_says_where_it_was_searched(tmp_path, monkeypatch):
    monkeypatch.setenv("LARGESPARSE_DATA", str(tmp_path / "named"))
    with pytest.raises(DataError) as error:
        load_dataset("madelon")
    message = str(error.value)
    for part in (str(tmp_path / "named"), "data", "../shared/data", "Set LARGESPARSE_DATA"):
        assert part in message
    with pytest.raises(DataError, match=f"no madelon.npz in {tmp_path}[.]"):
        load_dataset("madelon", folder=tmp_path)
    with pytest.raises(DataError, match="neither a file nor the name of a data set"):
        load_dataset("no_such_thing")


@pytest.mark.parametrize("place", ["folder", "variable", "data", "checkout"])
def test_places_where_an_archive_is_found(tmp_path, monkeypatch, place):
    places = {"data": tmp_path / "a/b/data", "checkout": tmp_path / "a/shared/data"}
    target = places.get(place, tmp_path / "own place")
    target.mkdir(parents=True)
    np.savez(target / "higgs.npz", X=np.ones((20, 2)), y=np.arange(20) % 2)
    if place == "variable":
        monkeypatch.setenv("LARGESPARSE_DATA", str(target))
    data = load_dataset("higgs", folder=target if place == "folder" else None)
    assert (data.name, data.X_train.shape) == ("higgs", (14, 2))


def test_the_folder_that_the_variable_names_comes_first(tmp_path, monkeypatch):
    for folder, n_features in (("data", 2), ("named", 3)):
        os.mkdir(folder)
        np.savez(f"{folder}/higgs.npz", X=np.ones((20, n_features)), y=np.arange(20) % 2)
    monkeypatch.setenv("LARGESPARSE_DATA", "named")
    assert load_dataset("higgs").X_train.shape[1] == 3


@pytest.mark.parametrize(
    "arguments",
    [{"test_fraction": 0}, {"test_fraction": 1}, {"test_fraction": "x"}, {"seed": -1}],
)
def test_parameters_out_of_range(arguments):
    with pytest.raises(ParameterError, match=next(iter(arguments))):
        load_dataset("madelon", **arguments)


# IDX


@given(
    dtype=st.sampled_from(sorted(IDX_CODES)),
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    suffix=st.sampled_from(["", ".gz"]),
)
def test_idx_round_trip(tmp_path_factory, dtype, shape, suffix):
    path = tmp_path_factory.mktemp("idx") / f"values{suffix}"
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    write_idx(path, array)
    values = read_idx(path)
    assert values.dtype == np.dtype(dtype)  # the machine's own byte order
    np.testing.assert_array_equal(values, array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (b"\0\0\x08", "not an IDX file"),
        (b"\1\0\x08\1\0\0\0\1\7", "not an IDX file"),
        (b"\0\0\x0a\1\0\0\0\1\7", "not an IDX file"),
        (b"\0\0\x08\0", "not an IDX file"),
        (b"\0\0\x08\1\0\0", "damaged"),
        (b"\0\0\x08\1\0\0\0\2\7", "damaged: it holds 9 bytes, but 10 follow"),
        (b"\0\0\x08\1\0\0\0\1\7\7", "damaged: it holds 10 bytes, but 9 follow"),
        (b"\0\0\x0e\4" + b"\xff" * 16, "damaged"),
        (b"\0\0\x08\4" + bytes(4) + b"\xff" * 12, "impossible shape"),
        (b"\0\0\x08\x64" + b"\0\0\0\1" * 100 + b"\7", "impossible shape"),
        (b"\x1f\x8b\x08 no gzip", "cannot be read"),
        (gzip.compress(bytes(1000), mtime=0)[:-9], "cannot be read"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(tmp_path / "file")


def test_missing_idx_file(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path / "nowhere")


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("subfolder", [".", "fashion_mnist"])
def test_fashion_mnist_in_its_publishers_files(tmp_path, suffix, subfolder):
    arrays = write_fashion_mnist(tmp_path / subfolder, suffix)
    data = load_dataset("fashion_mnist", folder=tmp_path)
    assert data.X_train.dtype == np.uint8
    np.testing.assert_array_equal(data.X_train, arrays["train"][0].reshape(30, 784))
    np.testing.assert_array_equal(data.y_train, arrays["train"][1])
    np.testing.assert_array_equal(data.X_test, arrays["t10k"][0].reshape(10, 784))
    np.testing.assert_array_equal(data.y_test, arrays["t10k"][1])


def test_fashion_mnist_with_files_missing(tmp_path):
    write_fashion_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="lacks t10k-labels-idx1-ubyte"):
        load_dataset("fashion_mnist", folder=tmp_path)


# The real data sets


@pytest.mark.parametrize(
    ("name", "train", "test", "classes", "dtype"),
    [
        ("fashion_mnist", (60000, 784), (10000, 784), 10, np.uint8),
        ("madelon", (2000, 500), (600, 500), 2, np.int16),
        ("higgs", (41233, 28), (10000, 28), 2, np.float32),
        ("dorothea", (560, 88119), (240, 88119), 2, np.float32),
        ("microarray_nakayama", (73, 22283), (32, 22283), 10, np.int32),
    ],
)
def test_real_data_sets(shared_data, name, train, test, classes, dtype):
    data = load_dataset(name, folder=shared_data)
    assert (data.X_train.shape, data.X_test.shape) == (train, test)
    assert data.X_train.dtype == data.X_test.dtype == dtype
    assert sp.issparse(data.X_train) == (name == "dorothea")
    assert set(data.y_train) == set(data.y_test) == set(range(classes))
    if name == "dorothea":
        assert data.X_train.nnz + data.X_test.nnz == 727760
        assert (data.y_train.sum(), data.y_test.sum()) == (55, 23)  # 78 of 800, as stated by UCI


def test_publishers_files_and_archive_of_fashion_mnist_agree(shared_data, tmp_path):
    archive = load_dataset("fashion_mnist", folder=shared_data)
    for part, X, y in (
        ("train", archive.X_train, archive.y_train),
        ("t10k", archive.X_test, archive.y_test),
    ):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", X.reshape(-1, 28, 28))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", y.astype(np.uint8))
    own = load_dataset("fashion_mnist", folder=tmp_path)
    for one, other in zip(archive, own, strict=True):
        np.testing.assert_array_equal(one, other)
