"""Publishers' files, written here in their formats: values, splits, and damaged files."""

from __future__ import annotations

import gzip
import io
import struct
import urllib.error

import numpy as np
import pytest
import sklearn.datasets
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils import Bunch

from largesparse.data import publishers
from largesparse.data.datasets import load_dataset
from largesparse.data.geo import read_series_matrix
from largesparse.errors import DataError, ParameterError

LEUKEMIA = "GSE13159_series_matrix.txt.gz"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working directory from which no data folder is found."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    monkeypatch.delenv("LARGESPARSE_DATA", raising=False)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)


# MNIST


def write_mnist(folder, first_labels, dot=False):
    rng = np.random.default_rng(0)
    arrays = []
    for part, n in (("train", 20), ("t10k", 10)):
        images = rng.integers(0, 256, (n, 28, 28), np.uint8)
        labels = np.resize(first_labels, n).astype(np.uint8)
        for values, kind in ((images, "images-idx3-ubyte"), (labels, "labels-idx1-ubyte")):
            header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
            name = f"{part}-{kind}".replace("-idx", ".idx") if dot else f"{part}-{kind}"
            write(folder / name, header + values.tobytes())
            arrays.append(values)
    return arrays


@pytest.mark.parametrize("subfolder", [".", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("dot", [True, False])
def test_mnist(tmp_path, subfolder, dot):
    labels = [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    x_train, _, x_test, _ = write_mnist(tmp_path / subfolder, labels, dot)
    data = load_dataset("mnist", folder=tmp_path)
    np.testing.assert_array_equal(data.X_train, x_train.reshape(20, 784))
    np.testing.assert_array_equal(data.X_test, x_test.reshape(10, 784))
    classes = np.unique(labels).tolist()
    assert data.y_test.tolist() == [classes.index(label) for label in labels]


def test_mnist_and_fashion_mnist_are_not_confused(tmp_path):
    write_mnist(tmp_path, publishers.FIRST_LABELS["fashion_mnist"])
    with pytest.raises(DataError, match=r"those of fashion_mnist, not of mnist.* subfolders"):
        load_dataset("mnist", folder=tmp_path)
    load_dataset("fashion_mnist", folder=tmp_path)
    write_mnist(tmp_path / "mnist", publishers.FIRST_LABELS["mnist"])
    load_dataset("mnist", folder=tmp_path)


def test_first_labels_of_the_real_fashion_mnist(shared_data):
    y = load_dataset("fashion_mnist", folder=shared_data).y_train
    assert y[:10].tolist() == publishers.FIRST_LABELS["fashion_mnist"]


# Madelon


@pytest.fixture
def madelon(tmp_path, monkeypatch):
    """Madelon in small, as UCI's archive unpacks: the validation labels lie a folder above."""
    monkeypatch.setattr(publishers, "MADELON_SHAPES", {"train": (6, 5), "valid": (3, 5)})
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 6), ("valid", 3)):
        X, y = rng.integers(400, 600, (n, 5)), np.resize([-1, 1], n)
        folder = tmp_path / "MADELON"
        write(folder / f"madelon_{part}.data", "".join(f"{' '.join(map(str, r))} \n" for r in X))
        holder = tmp_path if part == "valid" else folder
        write(holder / f"madelon_{part}.labels", "".join(f"{label}\n" for label in y))
        arrays[part] = X, y
    return arrays


def test_madelon(tmp_path, madelon):
    data = load_dataset("madelon", folder=tmp_path)
    assert data.X_train.dtype == np.int16
    np.testing.assert_array_equal(data.X_train, madelon["train"][0])
    np.testing.assert_array_equal(data.X_test, madelon["valid"][0])
    np.testing.assert_array_equal(data.y_train, madelon["train"][1] == 1)
    np.testing.assert_array_equal(data.y_test, madelon["valid"][1] == 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3 4 5\n" * 5, "5 rows of 5 values instead of 6 rows of 5"),
        ("1 2 3 4\n" * 6, "6 rows of 4 values"),
        ("1 2 3 4 5\n" * 5 + "1 2\n", "cannot be read as rows of integers"),
        ("1 2 3 x 5\n" * 6, "cannot be read as rows of integers"),
        ("1 2 3 70000 5\n" * 6, "cannot be read as rows of integers"),
    ],
)
def test_damaged_madelon(tmp_path, madelon, text, message):
    write(tmp_path / "MADELON/madelon_train.data", text)
    with pytest.raises(DataError, match=message):
        load_dataset("madelon", folder=tmp_path)


def test_madelon_with_files_missing(tmp_path, madelon):
    (tmp_path / "madelon_valid.labels").unlink()
    with pytest.raises(DataError, match=r"lacks madelon_valid.labels"):
        load_dataset("madelon", folder=tmp_path)


def test_real_madelon_as_uci_distributes_it(shared_data, tmp_path):
    archive = load_dataset("madelon", folder=shared_data)
    for part, X, y in (
        ("train", archive.X_train, archive.y_train),
        ("valid", archive.X_test, archive.y_test),
    ):
        for kind, values in (("data", X), ("labels", 2 * y - 1)):
            np.savetxt(tmp_path / f"madelon_{part}.{kind}", values, fmt="%d")
    own = load_dataset("madelon", folder=tmp_path)
    for one, other in zip(archive, own, strict=True):
        np.testing.assert_array_equal(one, other)


# HIGGS


def higgs_rows(n):
    X = np.random.default_rng(0).normal(size=(n, 28)).astype(np.float32)
    y = np.arange(n) % 2
    lines = (",".join(f"{v:.18e}" for v in [label, *row]) for label, row in zip(y, X, strict=True))
    return X, y, "".join(f"{line}\n" for line in lines)


@pytest.mark.parametrize("file", ["HIGGS.csv", "higgs/HIGGS.csv.gz"])
def test_higgs_is_read_from_the_front(tmp_path, monkeypatch, file):
    monkeypatch.setattr("largesparse.data.columns.CHUNK_BYTES", 8 * 29 * 4)  # 4 rows a chunk
    X, y, text = higgs_rows(20)
    write(tmp_path / file, text + "not to be read\n" * 9)
    data = load_dataset("higgs", folder=tmp_path, n_train=11, n_test=6)
    assert data.X_train.dtype == np.float32
    np.testing.assert_array_equal(data.X_train, X[:11])
    np.testing.assert_array_equal(data.y_train, y[:11])
    np.testing.assert_array_equal(data.X_test, X[11:17])
    np.testing.assert_array_equal(data.y_test, y[11:17])


def test_unusable_higgs(tmp_path):
    _, _, text = higgs_rows(20)
    path = tmp_path / "HIGGS.csv"
    write(path, text)
    with pytest.raises(DataError, match=r"20 rows, but n_train \+ n_test is 155000"):
        load_dataset("higgs", folder=tmp_path)
    with pytest.raises(ParameterError, match="'n_train'"):
        load_dataset("higgs", folder=tmp_path, n_train=0)
    with pytest.raises(ParameterError, match=r"no option 'rows'.*n_train, n_test"):
        load_dataset("higgs", folder=tmp_path, rows=5)
    for bad, message in (
        (text.replace("\n", ",1\n"), "more fields"),
        (text.replace("e", "x"), "cannot be read as HIGGS.csv"),
        (text.replace(",", ",,", 1), "Expected 29|more fields|cannot be read"),
        ("1,2\n" * 20, "NaN"),
    ):
        write(path, bad)
        with pytest.raises(DataError, match=message):
            load_dataset("higgs", folder=tmp_path, n_train=10, n_test=5)
    path.unlink()
    cut = gzip.compress(text.encode())[:-2000]
    (tmp_path / "HIGGS.csv.gz").write_bytes(cut)
    with pytest.raises(DataError, match=r"cannot be read as HIGGS.csv"):
        load_dataset("higgs", folder=tmp_path, n_train=10, n_test=10)


def test_options_need_the_publishers_file(tmp_path):
    np.savez(tmp_path / "higgs.npz", X=np.ones((20, 2)), y=np.arange(20) % 2)
    assert load_dataset("higgs", folder=tmp_path).X_train.shape == (14, 2)
    with pytest.raises(DataError, match=r"no HIGGS.csv .which n_train needs"):
        load_dataset("higgs", folder=tmp_path, n_train=10)


# CIFAR10


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    monkeypatch.setattr(publishers, "CIFAR10_RECORDS", 20)
    rng = np.random.default_rng(0)
    records = rng.integers(0, 256, (120, 3073), np.uint8)
    records[:, 0] = np.arange(120) % 10
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    for i, name in enumerate(names):
        content = records[20 * i : 20 * i + 20].tobytes()
        write(tmp_path / "cifar-10-batches-bin" / name, content)
    return records


def test_cifar10(tmp_path, cifar10):
    data = load_dataset("cifar10", folder=tmp_path)
    np.testing.assert_array_equal(np.vstack([data.X_train, data.X_test]), cifar10[:, 1:])
    np.testing.assert_array_equal(np.r_[data.y_train, data.y_test], cifar10[:, 0])
    assert data.X_train.shape == (100, 3072) and data.X_train.dtype == np.uint8


def test_damaged_cifar10(tmp_path, cifar10):
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    content = path.read_bytes()
    for bad, message in (
        (content[:-1], "holds 61459 bytes, but 61460 make 20 images"),
        (content + b"\0", "holds 61461 bytes"),
        (b"\x0a" + content[1:], "label of record 0 is 10"),
    ):
        path.write_bytes(bad)
        with pytest.raises(DataError, match=message):
            load_dataset("cifar10", folder=tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"lacks data_batch_3.bin"):
        load_dataset("cifar10", folder=tmp_path)


# Leukemia


def series_matrix(X, classes, *, end=True):
    """The format as GEO's files have it, with the lines that matter here."""
    n = len(X)
    accessions = [f"GSM{330000 + i}" for i in range(n)]
    lines = [
        '!Series_title\t"Microarray Innovations in LEukemia (MILE) study: Stage 1 data"',
        '!Series_sample_id\t"' + " ".join(accessions) + ' "',
        "",
        "\t".join(["!Sample_title", *(f'"patient {i}"' for i in range(n))]),
        "\t".join(["!Sample_characteristics_ch1", *['"tissue: bone marrow"'] * n]),
        "\t".join(["!Sample_characteristics_ch1", *(f'"leukemia class: {c}"' for c in classes)]),
        "!series_matrix_table_begin",
        "\t".join(['"ID_REF"', *(f'"{a}"' for a in accessions)]),
        *("\t".join([f'"{p}_at"', *map(repr, col)]) for p, col in enumerate(X.T.tolist())),
    ]
    return "\n".join(lines + ["!series_matrix_table_end"] * end) + "\n"


MATRIX = np.random.default_rng(0).normal(7, 2, (12, 9)).round(3)
VALUE = repr(MATRIX[1, 2].item())  # of sample 1 and probe 2
CLASSES = ["AML with t(8;21)", "CLL", "mature B-ALL with t(8;14)"] * 4


def test_leukemia(tmp_path):
    write(tmp_path / LEUKEMIA, series_matrix(MATRIX, CLASSES))
    data = load_dataset("leukemia", folder=tmp_path, test_fraction=1 / 3, seed=1)
    assert (data.X_train.shape, data.X_test.shape) == ((8, 9), (4, 9))
    assert data.X_train.dtype == np.float32
    rows = {tuple(row): CLASSES[i] for i, row in enumerate(MATRIX.astype(np.float32).tolist())}
    names = sorted(set(CLASSES))
    for X, y in ((data.X_train, data.y_train), (data.X_test, data.y_test)):
        assert [rows[tuple(row)] for row in X.tolist()] == [names[label] for label in y]
    again = load_dataset("leukemia", folder=tmp_path, test_fraction=1 / 3, seed=1)
    np.testing.assert_array_equal(again.X_test, data.X_test)
    own = load_dataset(tmp_path / LEUKEMIA, class_field="leukemia class")
    assert own.name == "GSE13159_series_matrix"


@given(
    st.integers(1, 6).flatmap(
        lambda n: st.lists(
            st.lists(st.floats(-1e4, 1e4), min_size=n, max_size=n), min_size=1, max_size=5
        )
    ),
    st.sampled_from(["\n", "\r\n"]),
)
def test_series_matrix_round_trip(tmp_path_factory, values, newline):
    X = np.array(values)
    path = tmp_path_factory.mktemp("geo") / "own_series_matrix.txt"
    write(path, series_matrix(X, [f"c{i}" for i in range(len(X))]).replace("\n", newline))
    series = read_series_matrix(path, "Leukemia Class")
    np.testing.assert_allclose(series.X, X.astype(np.float32), rtol=2e-7, atol=1e-44)
    assert series.X.flags.c_contiguous
    assert series.labels.tolist() == [f"c{i}" for i in range(len(X))]
    assert series.probes == [f"{i}_at" for i in range(X.shape[1])]
    assert series.samples[0] == "GSM330000"
    assert read_series_matrix(path, "title").labels[0] == "patient 0"


def test_fields_that_stand_in_different_lines(tmp_path):
    """GEO fills the characteristics of a sample up from the first line."""
    text = series_matrix(MATRIX[:2], ["CLL", "MDS"]).replace(
        '"tissue: bone marrow"\t"tissue: bone marrow"', '"tissue: blood"\t"leukemia class: MDS"'
    )
    text = text.replace('"leukemia class: CLL"\t"leukemia class: MDS"', '"leukemia class: CLL"\t""')
    write(tmp_path / "own_series_matrix.txt", text)
    series = read_series_matrix(tmp_path / "own_series_matrix.txt")
    assert series.labels.tolist() == ["CLL", "MDS"]
    with pytest.raises(DataError, match="no 'tissue' for sample 2"):
        read_series_matrix(tmp_path / "own_series_matrix.txt", "tissue")
    with pytest.raises(DataError, match=r"leukemia class.*tissue, title, not 'age'"):
        read_series_matrix(tmp_path / "own_series_matrix.txt", "age")


@pytest.mark.parametrize("second", ["CLL", "MDS"])
def test_a_field_that_a_sample_has_twice(tmp_path, second):
    text = series_matrix(MATRIX[:2], ["CLL", "MDS"]).replace(
        '"tissue: bone marrow"', f'"Leukemia class: {second}"', 1
    )
    write(tmp_path / "own_series_matrix.txt", text)
    if second == "CLL":
        series = read_series_matrix(tmp_path / "own_series_matrix.txt")
        assert series.labels.tolist() == ["CLL", "MDS"]
        return
    with pytest.raises(DataError, match="'leukemia class' twice for sample 1: 'MDS' and 'CLL'"):
        read_series_matrix(tmp_path / "own_series_matrix.txt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("!series_matrix_table_end\n", ""), "cut off: it has no line"),
        (lambda text: text[:-60], "cut off|damaged"),
        (lambda text: text[:300], "no line !series_matrix_table_begin"),
        (lambda text: "", "no line !series_matrix_table_begin"),
        (lambda text: text.replace('"8_at"\t', '"8_at"\tnull\t'), "8_at.* has 13 values for 12"),
        (
            lambda text: text.replace(VALUE, "null"),
            "2_at.* GSM330001 is 'null'",
        ),
        (lambda text: text.replace(VALUE, ""), "2_at.* GSM330001 is ''"),
        (lambda text: text.replace(VALUE, "nan"), "2_at.* GSM330001 is 'nan'"),
        (lambda text: text.split('"ID_REF"')[0], "table without samples"),
    ],
)
def test_damaged_series_matrices(tmp_path, change, message):
    path = tmp_path / LEUKEMIA
    write(path, change(series_matrix(MATRIX, CLASSES)))
    with pytest.raises(DataError, match=message):
        load_dataset("leukemia", folder=tmp_path)


def test_truncated_gzip_of_a_series_matrix(tmp_path):
    content = gzip.compress(series_matrix(MATRIX, CLASSES).encode())
    (tmp_path / LEUKEMIA).write_bytes(content[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset("leukemia", folder=tmp_path)


# Tables through load_dataset


def test_tables_are_data_sets_too(tmp_path):
    write(tmp_path / "own.csv.gz", "a,kind,b\n" + "1,x,2\n3,y,4\n" * 10)
    data = load_dataset(tmp_path / "own.csv.gz", target="kind", test_fraction=0.5)
    assert (data.name, data.X_train.shape) == ("own", (10, 2))
    np.testing.assert_array_equal(data.X_train[:, 0] == 3, data.y_train)
    with pytest.raises(DataError, match="target"):
        load_dataset(tmp_path / "own.csv.gz", target="kid")
    write(tmp_path / "own.svm", "1 1:2\n-1 2:5.5\n" * 10)
    assert load_dataset(tmp_path / "own.svm").X_train.shape == (14, 2)
    with pytest.raises(DataError, match="no column 'y'"):
        load_dataset(tmp_path / "own.svm", target="y")
    with pytest.raises(ParameterError, match="no option 'targets'"):
        load_dataset(tmp_path / "own.svm", targets="y")
    write(tmp_path / "numbers.csv", "a,b\n1,2\n3,4\n")
    with pytest.raises(DataError, match="target=NAME"):
        load_dataset(tmp_path / "numbers.csv")


# OpenML


@pytest.fixture
def openml(monkeypatch, tmp_path):
    """What `fetch_openml` is called with, and what it answers or raises."""
    monkeypatch.setenv("LARGESPARSE_CACHE", str(tmp_path / "cache"))
    calls, answer = [], Bunch(data=np.eye(20), target=np.array(["a", "b"] * 10))

    def fetch(**arguments):
        calls.append(arguments)
        if isinstance(answer.get("error"), Exception):
            raise answer.error
        return answer

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch)
    return calls, answer


def test_openml(openml, tmp_path):
    calls, _ = openml
    data = load_dataset("openml:some set")
    assert (data.name, data.X_train.shape) == ("openml:some set", (14, 20))
    assert data.y_train.tolist().count(1) == 7
    load_dataset("openml:some set", version=2)
    load_dataset("openml:40996")
    assert [(c.get("name"), c.get("version"), c.get("data_id")) for c in calls] == [
        ("some set", "active", None),
        ("some set", 2, None),
        (None, None, 40996),
    ]
    assert {c["data_home"] for c in calls} == {tmp_path / "cache" / "openml"}
    assert not any(c["as_frame"] for c in calls)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (urllib.error.URLError("no route"), "could not be fetched: .*no route.* Connect to the"),
        (
            urllib.error.HTTPError("https://a", 503, "unavailable", None, io.BytesIO()),
            "could not be fetched: .*503",
        ),
        (TimeoutError("timed out"), "could not be fetched: timed out"),
        (ValueError("No known data set"), "cannot be used: No known data set"),
    ],
)
def test_openml_without_a_network_or_data_set(openml, error, message):
    openml[1].error = error
    with pytest.raises(DataError, match=message):
        load_dataset("openml:iris")


def test_unusable_openml_sets(openml):
    _, answer = openml
    answer.data[3, 4] = np.nan
    with pytest.raises(DataError, match=r"openml:iris cannot be used: .*NaN at row 3, column 4"):
        load_dataset("openml:iris")
    answer.data = np.array([[1, "2", None]] * 10 + [[3, "4", 5]] * 10, object)
    answer.feature_names = ["a", "b", "c"]
    with pytest.raises(DataError, match="NaN at row 0, column 2"):
        load_dataset("openml:iris")
    answer.data[:, 2] = 7
    assert load_dataset("openml:iris").X_train.max() == 7
    answer.data[4, 1] = "red"
    with pytest.raises(DataError, match=r"'b' of OpenML's data set 'iris' is no number: .*'red'"):
        load_dataset("openml:iris")
    answer.target = None
    with pytest.raises(DataError, match="no single target"):
        load_dataset("openml:iris")
    with pytest.raises(ParameterError, match="'version'"):
        load_dataset("openml:iris", version=0)
