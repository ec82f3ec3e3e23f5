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

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..backends.choice import Choice
from ..data.layout import FileLayout
from ..data.standardizer import Standardizer
from ..errors import CheckpointError, ParameterError
from ..machine.environment import expand_user
from ..machine.folders import COMPLETE, find, replacing
from ..model import exploration
from ..model.averages import settle_
from ..model.config import NetworkConfig, TrainingConfig
from ..model.layer import LayerArrays, SparseLayer
from ..model.network import SparseMLP
from ..model.rules import KINDS, describe_rule, plain_rule
from ..model.storage import Storage, StoredLayer
from .history import History
from .layer_files import check_dead, expect, layer_of_arrays
from .manifest import (
    open_folder,
    open_training,
    read_arrays,
    reading,
    write_arrays,
    write_manifest,
)
from .saving import check_notes, check_rules, writing
from .state import TrainingState

logger = logging.getLogger(__name__)

BEST = "best-"  # of the files of the weights with the best validation score
PREPROCESSING = "preprocessing.safetensors"
TARGETS = "targets.safetensors"


class Files(NamedTuple):
    """Layers that have been written: what the manifest has of them."""

    files: dict[str, Any]  # by name
    nnz: list[int]
    explored: list[str | None]


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
    layers = None if state.best is None else state.best.layers
    _write(folder, network, checkpoint_manifest(config, state), moments=True, best=layers)


def checkpoint_manifest(config: TrainingConfig, state: TrainingState) -> dict[str, Any]:
    """Return what the manifest has of a training, if it can be saved."""
    check_notes(state.notes)
    check_rules(config)
    return {"kind": "checkpoint", "training": {"config": config.as_dict(), **state.as_dict()}}


def load_model(folder: str | Path) -> SparseMLP:
    """Read the network of a saved model or of a checkpoint.

    Of a training with a validation part it has the weights of the best epoch so far, and of one
    that averages weights the averages, as after `Trainer.fit`.

    Raises
    ------
    CheckpointError
        Where the folder is missing, damaged or of another version of the format.
    """
    return load_layers(folder, None)


def read_checkpoint(
    folder: str | Path, storage: Storage | None = None, numbers: range | None = None, **rules: Any
) -> tuple[SparseMLP, TrainingConfig, TrainingState]:
    """Read what `write_checkpoint` wrote: see `load_checkpoint` for storage and errors.

    `rules` replace those of the configuration, which may be of a module that is not here. Of the
    layers, 0 the first hidden one, only those of `numbers` are read, by default all.
    """
    folder, manifest, training = open_training(folder)
    with reading(folder):
        settings = _with_rules(training["config"], rules, folder)
    network = _read_network(folder, manifest, storage, numbers=numbers)
    with reading(folder):
        best = None
        if _has_best(manifest):
            layers = _read_layers(folder, manifest, network.config, BEST, storage, numbers)
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


def read_network_config(folder: str | Path) -> NetworkConfig:
    """Return the configuration of the network of a model or checkpoint, without reading it."""
    folder, manifest = open_folder(folder)
    with reading(folder):
        return NetworkConfig(**manifest["network"])


def load_layers(folder: str | Path, numbers: range | None) -> SparseMLP:
    """Read what `load_model` does, but of the layers only those of `numbers`, if given."""
    folder, manifest = open_folder(folder)
    prefix = BEST if _has_best(manifest) else ""
    network = _read_network(folder, manifest, prefix=prefix, numbers=numbers)
    settle_(network.layers)
    return network


def read_notes(folder: str | Path) -> dict[str, Any]:
    """Return the notes of a checkpoint's trainer, without reading the network."""
    folder, _, training = open_training(folder)
    with reading(folder):
        return dict(training.get("notes") or {})


def read_training_settings(folder: str | Path) -> dict[str, Any]:
    """Return the fields of a checkpoint's `TrainingConfig`, without reading the network."""
    folder, _, training = open_training(folder)
    with reading(folder):
        return dict(training["config"])


def read_history(folder: str | Path) -> tuple[History, bool]:
    """Return a checkpoint's history, and whether it ends with a whole epoch: see `read_notes`."""
    folder, _, training = open_training(folder)
    with reading(folder):
        return History.from_list(training["history"]), training.get("part") is None


def read_estimator(folder: str | Path) -> dict[str, Any] | None:
    """Return what `save_model` was given of the estimator, without reading the network."""
    found: dict[str, Any] | None = open_folder(folder)[1].get("estimator")
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
        files = write_layers(beside, network.layers, moments=moments, best=best)
        write_rest(beside, network, manifest, files)


def write_layers(
    beside: Path,
    layers: Sequence[SparseLayer],
    *,
    moments: bool = False,
    best: Sequence[LayerArrays] | None = None,
) -> Files:
    """Write layers, and the best weights of each, to a folder; return what a manifest has of it."""
    found = Files({}, [layer.nnz for layer in layers], [])
    found.explored.extend(exploration.to_text(layer.explored) for layer in layers)
    own = (layer.arrays(moments) for layer in layers)
    for prefix, each in (("", own), (BEST, best or [])):
        for layer, arrays in zip(layers, each, strict=False):
            name = layer_file(layer.number - 2, prefix)
            found.files[name] = write_arrays(beside / name, arrays)
    return found


def write_rest(beside: Path, network: SparseMLP, manifest: dict[str, Any], found: Files) -> None:
    """Write all but the layers, of which `found` says what `write_layers` has written."""
    files = dict(found.files)
    if network.preprocessing is not None:
        arrays = {"mean": network.preprocessing.mean, "scale": network.preprocessing.scale}
        files[PREPROCESSING] = write_arrays(beside / PREPROCESSING, arrays)
    if network.target_mean is not None and network.target_scale is not None:
        pair = {"mean": network.target_mean, "scale": network.target_scale}
        arrays = {name: array.astype(np.float64) for name, array in pair.items()}
        files[TARGETS] = write_arrays(beside / TARGETS, arrays)
    complete = {
        "network": network.config.as_dict(),
        "nnz": found.nnz,
        "explored": found.explored,
        "preprocessing": None if network.preprocessing is None else "standardize",
        "classes": None if network.classes is None else _describe(network.classes),
        "feature_names": network.feature_names,
        "neuron_names": {str(number): each for number, each in network.neuron_names.items()},
        "file_layout": None if network.file_layout is None else network.file_layout._asdict(),
        "trained_with": network.trained_with and network.trained_with._asdict(),
        **manifest,
        "files": files,
    }
    write_manifest(beside, complete)


def layer_file(k: int, prefix: str = "") -> str:
    """Return the name of the file of layer k (0 is the first hidden one)."""
    return f"{prefix}layer-{k + 1:02d}.safetensors"


def _describe(classes: NDArray[Any]) -> dict[str, Any]:
    """Return class labels as JSON can hold them."""
    plain = np.char.decode(classes, "latin-1") if classes.dtype.kind == "S" else classes
    return {"dtype": classes.dtype.str, "values": plain.tolist()}


def has_checkpoint(folder: str | Path) -> bool:
    """Return whether there is a checkpoint or a model at a path."""
    return find(expand_user(folder).resolve()) is not None


def _read_network(
    folder: Path,
    manifest: dict[str, Any],
    storage: Storage | None = None,
    prefix: str = "",
    numbers: range | None = None,
) -> SparseMLP:
    with reading(folder):
        config = NetworkConfig(**manifest["network"])
        layers = _read_layers(folder, manifest, config, prefix, storage, numbers)
        if (explored := manifest.get("explored")) is not None:  # since version 0.2
            for layer in layers:
                layer.explored = exploration.from_text(explored[layer.number - 2])
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
    arrays = read_arrays(folder, manifest, name)
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
    numbers: range | None = None,
) -> list[SparseLayer]:
    layers: list[SparseLayer] = []
    for k in range(len(config.layer_sizes) - 1) if numbers is None else numbers:
        name = layer_file(k, prefix)
        arrays = read_arrays(folder, manifest, name)
        layer = layer_of_arrays(arrays, config, k, name)
        layers.append(layer if storage is None else StoredLayer(layer, storage))
        check_dead(layers, name)
    return layers
