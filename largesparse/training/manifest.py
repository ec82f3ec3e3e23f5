"""The files of a saved model or checkpoint: arrays with their checksums, and the manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..machine.environment import expand_user
from ..machine.folders import FORMAT, MANIFEST, find, locate, umask
from ..model.layer import LayerArrays

VERSION = 2
READABLE = (1, 2)  # the first has what inputs and targets are scaled by in float32

# What reading a damaged file may raise.
DAMAGE = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OSError,
    OverflowError,
    RecursionError,
)


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn whatever a damaged file causes into a `CheckpointError` that names the folder."""
    try:
        yield
    except DAMAGE as error:
        raise CheckpointError(
            f"The checkpoint {folder} is damaged or not one of this version: "
            f"{type(error).__name__}: {error}"
        ) from error


def open_folder(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """Return where the model or checkpoint of a folder is read, and its manifest."""
    folder = expand_user(folder).resolve()
    with reading(folder):
        place = find(folder)
    if place is None:
        message = f"There is no model or checkpoint at {folder} (no {MANIFEST} in it)."
        raise CheckpointError(message)
    with reading(place):
        manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise ValueError(f"{MANIFEST} does not describe a model")
        if manifest.get("version") not in READABLE:
            raise CheckpointError(
                f"{place} has version {manifest.get('version')} of the format; this release "
                f"reads versions {' and '.join(map(str, READABLE))}."
            )
        if manifest.pop("sha256", None) != _checksum(manifest):
            raise ValueError(f"{MANIFEST} has another checksum than when it was written")
    return place, manifest


def open_training(folder: str | Path) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Return what `open_folder` does of a checkpoint, and the training in its manifest."""
    place, manifest = open_folder(folder)
    if (training := manifest.get("training")) is None:
        raise CheckpointError(f"{place} is a saved model, not a checkpoint to resume from.")
    return place, manifest, training


def write_manifest(beside: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest, with its format, version and checksum, to the disk."""
    complete = {"format": FORMAT, "version": VERSION, **manifest}
    with open(beside / MANIFEST, "w", encoding="utf-8") as stream:
        complete["sha256"] = _checksum(complete)
        json.dump(complete, stream, indent=1, default=dataclasses.asdict)
        stream.flush()
        os.fsync(stream.fileno())


def _checksum(manifest: dict[str, Any]) -> str:
    """Return the checksum of a manifest, its own entry apart, without its text in memory."""
    digest = hashlib.sha256()
    for part in json.JSONEncoder(sort_keys=True, default=dataclasses.asdict).iterencode(manifest):
        digest.update(part.encode())
    return digest.hexdigest()


def write_arrays(path: Path, arrays: LayerArrays) -> dict[str, Any]:
    """Write a safetensors file to the disk; return its entry in the manifest."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(arrays, path)
    except SafetensorError as error:  # it wraps what the system says
        raise OSError(str(error)) from error
    path.chmod(0o666 & ~umask())
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())
        checksum = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": checksum}


def read_arrays(folder: Path, manifest: dict[str, Any], name: str) -> LayerArrays:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = locate(folder, name)
    expected = manifest["files"][name]
    if path.stat().st_size != expected["bytes"]:
        raise ValueError(f"{name} has {path.stat().st_size} bytes, not {expected['bytes']}")
    with open(path, "rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != expected["sha256"]:
            raise ValueError(f"{name} has another checksum than when it was written")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{name}: {error}") from error
