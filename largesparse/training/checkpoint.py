"""Saved models and checkpoints: a folder of safetensors files with a manifest.

    FOLDER/manifest.json            format, configuration, classes, progress, checksums
    FOLDER/layer-NN.safetensors     indptr, indices, values, bias; in checkpoints the moments;
                                    dead, where neurons have been pruned; candidate_indptr and
                                    candidate_indices, where connections grow only within those
    FOLDER/preprocessing.safetensors    mean, scale (where inputs are standardised)
    FOLDER/targets.safetensors          mean, scale (where predicted numbers are scaled back)
    FOLDER/best-layer-NN.safetensors    in checkpoints, the best epoch's weights, if watched

A crash leaves the old files or the new ones: see `folders`. Layers are written and read one at a
time. Nothing is pickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends.choice import Choice
from ..data.layout import FileLayout
from ..data.standardizer import Standardizer
from ..errors import CheckpointError, ParameterError
from ..machine.environment import expand_user
from ..machine.folders import COMPLETE, FORMAT, MANIFEST, find, locate, replacing, umask
from ..model import exploration
from ..model.averages import settle_
from ..model.config import NetworkConfig, TrainingConfig
from ..model.layer import LayerArrays, SparseLayer
from ..model.network import SparseMLP
from ..model.rules import KINDS, describe_rule, plain_rule
from ..model.storage import Storage, StoredLayer
from .history import History
from .layer_files import check_dead, expect, layer_of_arrays
from .saving import check_notes, check_rules, writing
from .state import TrainingState

logger = logging.getLogger(__name__)

VERSION = 2
READABLE = (1, 2)  # the first has what inputs and targets are scaled by in float32
BEST = "best-"  # of the files of the weights with the best validation score
PREPROCESSING = "preprocessing.safetensors"
TARGETS = "targets.safetensors"

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


def save_model(
    network: SparseMLP, folder: str | Path, *, estimator: dict[str, Any] | None = None
) -> None:
    """Write a network, without moments, to a folder.

    Parameters
    ----------
    network : SparseMLP
    folder : path
    estimator : dict, optional
        What the estimator that it belongs to wants to find again, as JSON can hold it.

    Raises
    ------
    CheckpointError
        Where the folder cannot be written; one that was there before is intact then.
    """
    _write(folder, network, {"kind": "model", "estimator": estimator})


def write_checkpoint(
    network: SparseMLP, config: TrainingConfig, state: TrainingState, folder: str | Path
) -> None:
    """Write a training to a folder, for `read_checkpoint`; errors are those of `save_model`."""
    check_notes(state.notes)
    check_rules(config)
    manifest = {"kind": "checkpoint", "training": {"config": config.as_dict(), **state.as_dict()}}
    layers = None if state.best is None else state.best.layers
    _write(folder, network, manifest, moments=True, best=layers)


def load_model(folder: str | Path) -> SparseMLP:
    """Read the network of a saved model or of a checkpoint.

    Of a training with a validation part it has the weights of the best epoch so far, and of one
    that averages weights the averages, as after `Trainer.fit`.

    Raises
    ------
    CheckpointError
        Where the folder is missing, damaged or of another version of the format.
    """
    folder, manifest = _open(folder)
    network = _read_network(folder, manifest, prefix=BEST if _has_best(manifest) else "")
    settle_(network.layers)
    return network


def read_checkpoint(
    folder: str | Path, storage: Storage | None = None, **rules: Any
) -> tuple[SparseMLP, TrainingConfig, TrainingState]:
    """Read what `write_checkpoint` wrote: see `load_checkpoint` for storage and errors.

    `rules` replace those of the configuration, which may be of a module that is not here.
    """
    folder, manifest, training = _open_training(folder)
    with reading(folder):
        settings = _with_rules(training["config"], rules, folder)
    network = _read_network(folder, manifest, storage)
    with reading(folder):
        best = None
        if _has_best(manifest):
            layers = _read_layers(folder, manifest, network.config, BEST, storage)
            best = [layer.arrays() for layer in layers]
        state = TrainingState.from_dict(training, best)
        state.folder = folder.parent if folder.name == COMPLETE else folder
        return network, TrainingConfig(**settings), state


def _with_rules(settings: dict[str, Any], rules: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the settings of a training with rules that replace its own; tell of it."""
    for kind in KINDS:
        saved = settings.get(kind, getattr(TrainingConfig, kind))
        module = saved.partition(":")[0] if ":" in saved and kind not in rules else "sys"
        if module not in sys.modules:
            raise CheckpointError(
                f"The training in {folder} has a rule of a module that has not been imported, and "
                f"reading a checkpoint imports nothing. Import it before, or pass it: "
                f"load_checkpoint(folder, {kind}={saved!r})."
            )
        try:
            rule = plain_rule(kind, rules.get(kind, saved), "a training")
        except ParameterError as error:
            raise CheckpointError(
                f"The training in {folder} cannot go on: {error} Or pass another rule: "
                f"load_checkpoint(folder, {kind}=...)."
            ) from error
        if rule != saved:
            logger.warning(
                f"The training in {folder} had the rule {saved!r} for {kind} and goes on with "
                f"{describe_rule(rule)!r}."
            )
    return settings | rules


def _has_best(manifest: dict[str, Any]) -> bool:
    return f"{BEST}layer-01.safetensors" in manifest["files"]


def read_notes(folder: str | Path) -> dict[str, Any]:
    """Return the notes of a checkpoint's trainer, without reading the network."""
    folder, _, training = _open_training(folder)
    with reading(folder):
        return dict(training.get("notes") or {})


def read_history(folder: str | Path) -> tuple[History, bool]:
    """Return a checkpoint's history, and whether it ends with a whole epoch: see `read_notes`."""
    folder, _, training = _open_training(folder)
    with reading(folder):
        return History.from_list(training["history"]), training.get("part") is None


def read_estimator(folder: str | Path) -> dict[str, Any] | None:
    """Return what `save_model` was given of the estimator, without reading the network."""
    found: dict[str, Any] | None = _open(folder)[1].get("estimator")
    return found


def _write(
    folder: str | Path,
    network: SparseMLP,
    manifest: dict[str, Any],
    *,
    moments: bool = False,
    best: Sequence[LayerArrays] | None = None,
) -> None:
    folder = expand_user(folder).resolve()
    with writing(folder), replacing(folder) as beside:
        files = {}
        own = (layer.arrays(moments) for layer in network.layers)
        for prefix, layers in (("", own), (BEST, best or [])):
            for k, arrays in enumerate(layers, start=1):
                name = f"{prefix}layer-{k:02d}.safetensors"
                files[name] = _write_arrays(beside / name, arrays)
        if network.preprocessing is not None:
            arrays = {"mean": network.preprocessing.mean, "scale": network.preprocessing.scale}
            files[PREPROCESSING] = _write_arrays(beside / PREPROCESSING, arrays)
        if network.target_mean is not None and network.target_scale is not None:
            pair = {"mean": network.target_mean, "scale": network.target_scale}
            arrays = {name: array.astype(np.float64) for name, array in pair.items()}
            files[TARGETS] = _write_arrays(beside / TARGETS, arrays)
        complete = {
            "format": FORMAT,
            "version": VERSION,
            "network": network.config.as_dict(),
            "nnz": [layer.nnz for layer in network.layers],
            "explored": [exploration.to_text(layer.explored) for layer in network.layers],
            "preprocessing": None if network.preprocessing is None else "standardize",
            "classes": None if network.classes is None else _describe(network.classes),
            "feature_names": network.feature_names,
            "neuron_names": {str(number): each for number, each in network.neuron_names.items()},
            "file_layout": None if network.file_layout is None else network.file_layout._asdict(),
            "trained_with": network.trained_with and network.trained_with._asdict(),
            **manifest,
            "files": files,
        }
        with open(beside / MANIFEST, "w", encoding="utf-8") as stream:
            complete["sha256"] = _checksum(complete)
            json.dump(complete, stream, indent=1, default=dataclasses.asdict)
            stream.flush()
            os.fsync(stream.fileno())


def _describe(classes: NDArray[Any]) -> dict[str, Any]:
    """Return class labels as JSON can hold them."""
    plain = np.char.decode(classes, "latin-1") if classes.dtype.kind == "S" else classes
    return {"dtype": classes.dtype.str, "values": plain.tolist()}


def _checksum(manifest: dict[str, Any]) -> str:
    """Return the checksum of a manifest, its own entry apart, without its text in memory."""
    digest = hashlib.sha256()
    for part in json.JSONEncoder(sort_keys=True, default=dataclasses.asdict).iterencode(manifest):
        digest.update(part.encode())
    return digest.hexdigest()


def _write_arrays(path: Path, arrays: LayerArrays) -> dict[str, Any]:
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


def has_checkpoint(folder: str | Path) -> bool:
    """Return whether there is a checkpoint or a model at a path."""
    return find(expand_user(folder).resolve()) is not None


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


def _open(folder: str | Path) -> tuple[Path, dict[str, Any]]:
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


def _open_training(folder: str | Path) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Return what `_open` does of a checkpoint, and the training in its manifest."""
    place, manifest = _open(folder)
    if (training := manifest.get("training")) is None:
        raise CheckpointError(f"{place} is a saved model, not a checkpoint to resume from.")
    return place, manifest, training


def _read_network(
    folder: Path, manifest: dict[str, Any], storage: Storage | None = None, prefix: str = ""
) -> SparseMLP:
    with reading(folder):
        config = NetworkConfig(**manifest["network"])
        layers = _read_layers(folder, manifest, config, prefix, storage)
        if (explored := manifest.get("explored")) is not None:  # since version 0.2
            for layer, text in zip(layers, explored, strict=True):
                layer.explored = exploration.from_text(text)
        network = SparseMLP.from_layers(config, layers, storage)
        classes = manifest["classes"]
        if classes is not None:
            dtype = np.dtype(classes["dtype"])
            labels = np.array(classes["values"], dtype=str if dtype.kind == "S" else dtype)
            if dtype.kind == "S":
                labels = np.char.encode(labels, "latin-1").astype(dtype)
            network.classes = labels
            if network.classes.dtype.hasobject or len(network.classes) != config.layer_sizes[-1]:
                raise ValueError("the classes do not fit the outputs")
            if len(set(classes["values"])) < len(labels):
                raise ValueError("a class has two outputs")
        if manifest["preprocessing"] is not None:
            scaling = _read_scaling(folder, manifest, PREPROCESSING, config.layer_sizes[0])
            network.preprocessing = Standardizer(*scaling)
        if TARGETS in manifest["files"]:
            targets = _read_scaling(folder, manifest, TARGETS, config.layer_sizes[-1])
            network.target_mean, network.target_scale = targets
        names, sizes = manifest.get("feature_names"), config.layer_sizes
        network.feature_names = None if names is None else _checked_names(names, sizes[0])
        network.neuron_names = {
            int(number): _checked_names(each, sizes[int(number) - 1])
            for number, each in (manifest.get("neuron_names") or {}).items()
        }
        if (layout := manifest.get("file_layout")) is not None:  # since version 0.2
            network.file_layout = FileLayout.from_dict(layout)
        if (used := manifest.get("trained_with")) is not None:  # since version 0.2
            network.trained_with = Choice(**used)
    return network


def _read_scaling(
    folder: Path, manifest: dict[str, Any], name: str, length: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and scale, float64 (length,)."""
    arrays = _read_arrays(folder, manifest, name)
    dtype = np.float32 if manifest["version"] == 1 else np.float64
    pair = (expect(arrays, key, dtype, length) for key in ("mean", "scale"))
    mean, scale = (array.astype(np.float64) for array in pair)
    return mean, scale


def _checked_names(names: Any, count: int) -> list[str]:
    plain = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not plain or len(names) != count:
        raise ValueError("the names of features or neurons do not fit their layer")
    return names


def _read_layers(
    folder: Path,
    manifest: dict[str, Any],
    config: NetworkConfig,
    prefix: str = "",
    storage: Storage | None = None,
) -> list[SparseLayer]:
    layers: list[SparseLayer] = []
    for k in range(len(config.layer_sizes) - 1):
        name = f"{prefix}layer-{k + 1:02d}.safetensors"
        arrays = _read_arrays(folder, manifest, name)
        layer = layer_of_arrays(arrays, config, k, name)
        layers.append(layer if storage is None else StoredLayer(layer, storage))
        check_dead(layers, name)
    return layers


def _read_arrays(folder: Path, manifest: dict[str, Any], name: str) -> LayerArrays:
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
