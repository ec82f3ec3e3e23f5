"""The kinds of files that fuzz_files.py damages: how each is made, changed and loaded."""

from __future__ import annotations

import gzip
import hashlib
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file

from largesparse import (
    NetworkConfig,
    SparseMLP,
    Trainer,
    TrainingConfig,
    load_checkpoint,
    load_model,
    save_checkpoint,
)
from largesparse.data.geo import read_series_matrix
from largesparse.data.publishers import read_idx
from largesparse.data.tables import read_table
from largesparse.errors import CheckpointError, DataError, LargeSparseError
from largesparse.harness.records import read_records
from largesparse.machine.folders import MANIFEST

Rng = np.random.Generator
EXTREMES: tuple[Any, ...] = (
    *(0, -1, 1, 2**31 - 1, -(2**31), 2**32, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, 1e-320),
    *(float("nan"), float("inf"), True, None, "", "a", "../../../etc/passwd", "/etc/passwd"),
    *([], {}, [[]], [-1], [2**40, 2**40], {"a": 1}, "\0", "1" * 1000),
)
INTEGERS = (-1, 0, 1, -(2**31), 2**31 - 1, 2**30, 1000)
FLOATS = (float("nan"), float("inf"), -float("inf"), 3e38, 1e-45)


class Kind(NamedTuple):
    """One kind of input: how it is made, changed and loaded."""

    make: Callable[[Path], Path]  # into a folder; returns the path to load
    change: Callable[[Path, Rng], None]
    load: Callable[[Path], Any]
    error: type[LargeSparseError] = DataError  # that it may raise


# ------------------------------------------------------------------------------ changes of bytes
def change_bytes(path: Path, rng: Rng) -> None:
    """Change a file one to three times."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.integers(1, 4)):
        if not data:
            break
        start = int(rng.integers(len(data)))
        stop = min(len(data), start + int(2 ** rng.uniform(0, 8)))
        match rng.integers(7):
            case 0:
                data[start] ^= 1 << int(rng.integers(8))
            case 1:
                del data[start:]
            case 2:
                del data[start:stop]
            case 3:
                data[start:start] = data[start:stop]
            case 4:
                data[start:stop] = bytes([int(rng.choice([0, 255, 127, 128]))]) * (stop - start)
            case 5:
                data[start:stop] = rng.bytes(stop - start)
            case 6:
                extreme = str(EXTREMES[rng.integers(len(EXTREMES))]).encode()
                data[start : start + int(rng.integers(1, 4))] = extreme
    path.write_bytes(data)


def change_gzip(path: Path, rng: Rng) -> None:
    """Change what a compressed file has in it, or the file itself."""
    if rng.integers(2):
        path.write_bytes(gzip.decompress(path.read_bytes()))
        change_bytes(path, rng)
        path.write_bytes(gzip.compress(path.read_bytes(), compresslevel=1))
    else:
        change_bytes(path, rng)


def change_archive(path: Path, rng: Rng) -> None:
    """Change one of the files in a ZIP archive, so that its checksum fits, or the archive."""
    if rng.integers(4) == 0:
        change_bytes(path, rng)
        return
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = sorted(members)[rng.integers(len(members))]
    member = path.with_suffix(".member")
    member.write_bytes(members[name])
    change_bytes(member, rng)
    members[name] = member.read_bytes()
    member.unlink()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


# ------------------------------------------------------------------------------ checkpoints
def make_model(folder: Path) -> Path:
    """Save a checkpoint with everything that one can have."""
    config = NetworkConfig((6, 8, 7, 3), epsilon=2.0, activation="srelu", seed=1)
    training = TrainingConfig(
        epochs=3,
        batch_size=16,
        learning_rate=0.05,
        backend="scipy",
        threads=1,
        pruning_start=1,
        pruning_every=1,
        pruning_percentile=20,
    )
    rng = np.random.default_rng(0)
    X = rng.standard_normal((64, 6), dtype=np.float32)
    y = np.array(["α", "b", "c d"])[X[:, :3].argmax(axis=1)]
    trainer = Trainer(SparseMLP(config, progress=False), training)
    trainer.fit(X, y, test=(X, y))
    path = folder / "model"
    save_checkpoint(trainer, path)
    return path


def change_model(folder: Path, rng: Rng) -> None:
    """Change the bytes of a file, an entry of the manifest, a header, or elements of an array."""
    arrays = sorted(folder.glob("*.safetensors"))
    path = arrays[rng.integers(len(arrays))]
    match rng.integers(6):
        case 0:
            change_bytes(folder / MANIFEST, rng)
        case 1:
            change_bytes(path, rng)
        case 2:
            change_bytes(path, rng)
            repair(folder, path)
        case 3:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            change_entry(manifest, rng)
            write_manifest(folder, manifest)
        case 4:
            change_header(path, rng)
            repair(folder, path)
        case 5:
            change_arrays(path, rng)
            repair(folder, path)


def change_entry(value: Any, rng: Rng) -> None:
    """Replace or remove an entry of what JSON has, at any depth."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = keys[rng.integers(len(keys))]
        if not isinstance(value[key], (dict, list)) or not value[key] or rng.random() < 0.2:
            break
        value = value[key]
    if isinstance(value, dict) and rng.random() < 0.15:
        del value[key]
    elif isinstance(value, dict) and rng.random() < 0.1:
        value["../" + key] = value.pop(key)
    else:
        value[key] = EXTREMES[rng.integers(len(EXTREMES))]


def change_header(path: Path, rng: Rng) -> None:
    """Change the header of a file of arrays: names, types, shapes, places."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change_entry(header, rng)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def change_arrays(path: Path, rng: Rng) -> None:
    """Change elements, the length, type or name of an array."""
    arrays = {name: array.copy() for name, array in load_file(path).items()}
    name = sorted(arrays)[rng.integers(len(arrays))]
    array = arrays[name]
    match rng.integers(6):
        case 0 | 1 if array.size:
            values = FLOATS if array.dtype.kind == "f" else INTEGERS
            place = rng.integers(array.size, size=rng.integers(1, 4))
            with np.errstate(all="ignore"):
                array.flat[place] = np.array(values[rng.integers(len(values))]).astype(array.dtype)
        case 2:
            rng.shuffle(array)
        case 3:
            arrays[name] = array[: rng.integers(len(array) + 1)].copy()
        case 4:
            dtypes = (np.int64, np.float64, np.float16, np.uint8, np.int32, np.float32)
            arrays[name] = array.astype(dtypes[rng.integers(len(dtypes))])
        case 5:
            arrays[f"{name}{rng.integers(3)}"] = arrays.pop(name)
    save_file(arrays, path)


def repair(folder: Path, path: Path) -> None:
    """Enter the size and checksum that a file has now into the manifest."""
    data = path.read_bytes()
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"][path.name] = {
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    write_manifest(folder, manifest)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest whose own checksum fits."""
    manifest.pop("sha256", None)
    text = json.dumps(manifest, sort_keys=True)
    manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def load_either(folder: Path) -> Any:
    """Load a checkpoint as a model and as a training; check what is accepted."""
    check_network(load_model(folder))
    trainer = load_checkpoint(folder)
    check_network(trainer.network)
    return None


def check_network(network: SparseMLP) -> None:
    """Raise AssertionError where a product with the network could read what is not its own."""
    for layer in network.layers:
        topology = layer.topology
        for indptr, indices, n_major, n_minor in (
            (topology.indptr, topology.indices, layer.n_in, layer.n_out),
            (topology.indptr_by_output, topology.indices_by_output, layer.n_out, layer.n_in),
        ):
            assert len(indptr) == n_major + 1 and indptr[0] == 0
            assert indptr[-1] == len(indices) == len(layer.values)
            assert np.all(np.diff(indptr) >= 0)
            assert not len(indices) or (indices.min() >= 0 and indices.max() < n_minor)
        for values in (layer.values, layer.bias, layer.velocity, layer.bias_velocity):
            assert np.isfinite(values).all()


# ------------------------------------------------------------------------------ data
def sample_rows() -> tuple[np.ndarray, np.ndarray]:
    """Return X (12, 4) and labels."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((12, 4)).astype(np.float32), np.array(["yes", "no"] * 6)


def make_csv(folder: Path) -> Path:
    X, y = sample_rows()
    frame = pd.DataFrame(X, columns=["a", "b b", "ä", "d"]).assign(label=y)
    frame.to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def make_tsv(folder: Path) -> Path:
    X, _ = sample_rows()
    path = folder / "table.tsv.gz"
    pd.DataFrame(X).to_csv(path, sep="\t", index=False, header=False)
    return path


def make_parquet(folder: Path) -> Path:
    X, y = sample_rows()
    frame = pd.DataFrame(X, columns=list("abcd")).assign(label=y)
    frame.to_parquet(folder / "table.parquet")
    return folder / "table.parquet"


def make_npz(folder: Path) -> Path:
    X, y = sample_rows()
    np.savez(folder / "arrays.npz", x_train=X, y_train=y, x_test=X, y_test=y)
    return folder / "arrays.npz"


def make_csr(folder: Path) -> Path:
    from scipy.sparse import csr_array

    X = csr_array(np.eye(5, 7, dtype=np.float32))
    arrays = {"data": X.data, "indices": X.indices, "indptr": X.indptr}
    np.savez(folder / "sparse.npz", **arrays, shape=X.shape, y=np.arange(5))
    return folder / "sparse.npz"


def make_csc(folder: Path) -> Path:
    from scipy.sparse import csc_array, save_npz

    save_npz(folder / "columns.npz", csc_array(np.eye(5, 7, dtype=np.float32)))
    return folder / "columns.npz"


def make_svmlight(folder: Path) -> Path:
    from sklearn.datasets import dump_svmlight_file

    X, _ = sample_rows()
    dump_svmlight_file(X, np.arange(12) % 2, str(folder / "table.svm"))
    return folder / "table.svm"


def make_arff(folder: Path) -> Path:
    X, y = sample_rows()
    head = ["@relation own", *(f"@attribute {name} numeric" for name in "abcd")]
    rows = [",".join(map(str, [*row, label])) for row, label in zip(X, y, strict=True)]
    kinds = ",".join(sorted(set(map(str, y))))
    lines = [*head, f"@attribute label {{{kinds}}}", "@data", *rows]
    (folder / "table.arff").write_text("\n".join(lines) + "\n")
    return folder / "table.arff"


def make_npy(folder: Path) -> Path:
    np.save(folder / "array.npy", sample_rows()[0])
    return folder / "array.npy"


def make_gaps(folder: Path) -> Path:
    text = "a;b;c;label\n" + "1,5;red;?;x\n;blue;2;y\n3;;1,25;x\n" * 4
    (folder / "table.data").write_text(text)
    return folder / "table.data"


def with_gaps(path: Path) -> Any:
    """Read a table with decimal commas, gaps and a column of text."""
    return read_table(path, "label", decimal=",", missing="mean", categorical=["b"]).X


def make_idx(folder: Path) -> Path:
    images = np.arange(5 * 3 * 3, dtype=np.uint8)
    (folder / "images").write_bytes(struct.pack(">HBB3I", 0, 8, 3, 5, 3, 3) + images.tobytes())
    return folder / "images"


def make_series(folder: Path) -> Path:
    lines = [
        '!Sample_title\t"one"\t"two"\t"three"',
        '!Sample_geo_accession\t"GSM1"\t"GSM2"\t"GSM3"',
        "!Sample_characteristics_ch1" + "".join(f'\t"leukemia class: {c}"' for c in "ABA"),
        "!series_matrix_table_begin",
        '"ID_REF"\t"GSM1"\t"GSM2"\t"GSM3"',
        '"probe_1"\t1.5\t2.5\t3.5',
        '"probe_2"\t0.5\t1e3\t-2',
        "!series_matrix_table_end",
    ]
    path = folder / "few_series_matrix.txt.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode() + b"\n"))
    return path


def make_records(folder: Path) -> Path:
    rows = [{"kind": "bigmodel", "neurons": 1000, "epoch_s": [1.0, 2.0], "schema": 3}] * 3
    (folder / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "runs.jsonl"


def checked(X: Any) -> Any:
    """Return X, whose indices must be its own if it is CSR."""
    if hasattr(X, "check_format"):
        X.check_format(full_check=True)
    return X


def labelled(path: Path) -> Any:
    """Read a table whose labels are a column of text."""
    return read_table(path, "label").X


KINDS = {
    "model": Kind(make_model, change_model, load_either, CheckpointError),
    "csv": Kind(make_csv, change_bytes, labelled),
    "tsv.gz": Kind(make_tsv, change_gzip, lambda path: read_table(path, 3).X),
    "parquet": Kind(make_parquet, change_bytes, labelled),
    "npz": Kind(make_npz, change_archive, lambda path: read_table(path).X),
    "csr": Kind(make_csr, change_archive, lambda path: checked(read_table(path).X)),
    "csc": Kind(make_csc, change_archive, lambda path: checked(read_table(path).X)),
    "svmlight": Kind(make_svmlight, change_bytes, lambda path: checked(read_table(path).X)),
    "gaps": Kind(make_gaps, change_bytes, with_gaps),
    "arff": Kind(make_arff, change_bytes, labelled),
    "npy": Kind(make_npy, change_bytes, lambda path: read_table(path, -1).X),
    "idx": Kind(make_idx, change_bytes, read_idx),
    "series": Kind(make_series, change_gzip, lambda path: read_series_matrix(path).X),
    "records": Kind(make_records, change_bytes, lambda path: len(read_records(path))),
}
