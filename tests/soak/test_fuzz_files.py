"""soak/fuzz_files.py, for a moment, and what it has found."""

import importlib
import io
import subprocess
import zipfile

import numpy as np
import pytest

from largesparse.data.tables import read_table
from largesparse.errors import DataError


@pytest.fixture(scope="module")
def tool():
    return importlib.import_module("soak.fuzz_files")


@pytest.mark.long
def test_damaged_files_are_refused_or_loaded_as_they_are(tool):
    # In a process of its own, as its memory is limited to little more than it has.
    command = [*importlib.import_module("soak").program("fuzz_files"), "--inputs", "600"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 2 + len(tool.KINDS)


def test_a_finding_is_told_and_kept(tool, tmp_path, monkeypatch, capsys):
    def broken(path):
        if path.read_bytes() != intact:
            raise KeyError("not an error of the package")

    make, change, *_ = tool.KINDS["idx"]
    intact = make(tmp_path).read_bytes()
    kinds = {"idx": tool.Kind(make, change, broken)}
    monkeypatch.setattr(tool, "KINDS", kinds)
    keep = tmp_path / "found"
    assert tool.main(["--inputs", "3", "--only", "idx", "--keep", str(keep)]) == 1
    assert "idx, input 1: KeyError" in capsys.readouterr().out
    assert (keep / "idx-1" / "images").read_bytes() != intact


def member(array, shape=None):
    """Return the bytes of an array as an archive has it, with another shape in its header."""
    stream = io.BytesIO()
    np.save(stream, array)
    told, said = str(array.shape).encode(), str(shape or array.shape).encode()
    assert len(said) <= len(told) + 20
    return stream.getvalue().replace(told + b", }" + b" " * (len(said) - len(told)), said + b", }")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no array", "magic string"),
        (member(np.zeros((2, 3), np.float32), (2**36, 3)), "X.npy has .* bytes, not 8246337"),
        (b"", "EOF"),
    ],
)
def test_an_archive_with_something_else_in_it_is_refused(tmp_path, content, message):
    path = tmp_path / "bad.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("X.npy", content)
    with pytest.raises(DataError, match=message):
        read_table(path)


@pytest.mark.parametrize("indices", [[0, 3], [0, -1]])
def test_csr_indices_out_of_range_are_refused(tmp_path, indices):
    np.savez(tmp_path / "bad.npz", indptr=[0, 1, 2], indices=indices, shape=[2, 3])
    with pytest.raises(DataError, match="valid CSR array: indices must be"):
        read_table(tmp_path / "bad.npz")


def test_text_that_is_not_utf8_in_parquet_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    import pandas as pd

    path = tmp_path / "table.parquet"
    pd.DataFrame({"a": [1.0, 2.0], "labels": ["xyz", "uvw"]}).to_parquet(path)
    data = path.read_bytes()
    assert data.count(b'"name": "labels"') == 1
    path.write_bytes(data.replace(b'"name": "labels"', b'"name": "lab\xff\xfes"'))
    with pytest.raises(DataError, match="cannot be read as parquet"):
        read_table(path)
