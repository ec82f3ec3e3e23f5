"""The synthetic task of the large experiments, generated once and memory-mapped from the cache.

scikit-learn's `make_classification` needs six times the memory of its result and one core. Nearly
all of its columns at these sizes are independent standard normals, so here it makes the other
columns only, and the noise is written in blocks of rows by several threads.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, ParameterError, check_range, check_share
from ..machine import environment
from ..machine.environment import expand_user
from ..machine.threads import available_threads
from .datasets import Dataset

FORMAT = 1  # of the cached files; part of their folder's name
BLOCK_BYTES = 2**24  # of noise per random stream: changing it changes the data, so raise FORMAT
BUFFER_BYTES = 2**28  # of blocks in the making at once
PIECE_BYTES = 2**16  # of a piece that a fingerprint reads
ABANDONED_SECONDS = 86400  # the age at which an unfinished folder counts as left by a killed run
TEMPORARY = ".tmp-"  # in the name of an unfinished folder
ARRAYS = ("X_train.npy", "y_train.npy", "X_test.npy", "y_test.npy")
MANIFEST = "manifest.json"
OWNER = "make_large_classification"

logger = logging.getLogger(__name__)


def make_large_classification(
    n_samples: int = 10000,
    n_features: int = 65536,
    *,
    n_informative: int = 32,
    n_redundant: int = 32,
    test_fraction: float = 0.3,
    random_state: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Dataset:
    """Make a two-class task with many noise features, distributed as `make_classification`'s.

    The informative and redundant columns are those of `sklearn.datasets.make_classification` with
    its defaults (two clusters a class, `class_sep=1`, 1 % of the labels flipped); they stand at
    random positions among columns of standard normal noise. The first call with some parameters
    writes the data to the cache, later ones map it.

    Parameters
    ----------
    n_samples, n_features : int
        Of the training and test part together.
    n_informative, n_redundant : int
        Their sum is at most `n_features`; the other features are noise.
    test_fraction : float
        In (0, 1): the share of the test part, stratified.
    random_state : int
        In 0..2**32-1. The data depends on it and the parameters above alone.
    cache_dir : path, optional
        Where the data is kept, by default `environment.cache_folder()`.
    progress : bool, optional
        Whether to show a progress bar; by default if standard error is a terminal.

    Returns
    -------
    Dataset
        X_train and X_test are read-only memory maps, float32 and C-contiguous; y_train and y_test
        are int32.

    Raises
    ------
    ParameterError
        If a parameter is out of range.
    DataError
        If the cache cannot be written or the disk is too small.
    """
    parameters = _checked(
        {
            "n_samples": n_samples,
            "n_features": n_features,
            "n_informative": n_informative,
            "n_redundant": n_redundant,
            "test_fraction": test_fraction,
            "random_state": random_state,
        }
    )
    folder = _folder(parameters, cache_dir)
    for _ in range(3):  # once in general; again if what is there is damaged
        if not os.path.isdir(folder):
            _generate(folder, parameters, progress)
        try:
            return _open(folder, parameters)
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            logger.warning("The cached data in %s is damaged: %s. Removing it.", folder, error)
            _discard(folder)
        except OSError as error:  # no permission, too many open files: the data may be good
            raise DataError(
                f"The cached data in {folder} cannot be read: {error.strerror or error}. "
                f"Make it readable, or set {environment.CACHE} to another folder."
            ) from error
    raise DataError(
        f"The data written to {folder} cannot be read back. "
        f"Set {environment.CACHE} to a folder on another disk."
    )


def is_made(**parameters: Any) -> bool:
    """Return whether the cache has a task: all of its parameters are given."""
    return _folder(_checked(parameters), None).is_dir()


def _folder(parameters: dict[str, Any], cache_dir: str | os.PathLike[str] | None) -> Path:
    cache = environment.cache_folder() if cache_dir is None else expand_user(cache_dir)
    digest = hashlib.blake2b(json.dumps([FORMAT, parameters]).encode(), digest_size=6).hexdigest()
    size = f"{parameters['n_samples']}x{parameters['n_features']}"
    return cache / f"classification-{size}-{digest}"


def _checked(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters as plain numbers, or raise `ParameterError`."""
    clusters = "Two classes of two clusters each need 2**n_informative >= 4."
    limits: dict[str, dict[str, Any]] = {
        "n_samples": {"low": 4},
        "n_informative": {"low": 2, "remedy": clusters},
        "n_redundant": {"low": 0},
        "random_state": {"low": 0, "high": 2**32 - 1},
    }
    for name, allowed in limits.items():
        check_range(name, parameters[name], OWNER, integer=True, **allowed)
    least = parameters["n_informative"] + parameters["n_redundant"]
    remedy = "It counts the informative and the redundant features as well."
    n_features = parameters["n_features"]
    check_range("n_features", n_features, OWNER, low=least, integer=True, remedy=remedy)
    fraction = float(check_share("test_fraction", parameters["test_fraction"], OWNER))
    return {name: int(value) for name, value in parameters.items()} | {"test_fraction": fraction}


# The task itself


def _signal(parameters: dict[str, Any]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Informative and redundant columns of all samples, and the labels."""
    from sklearn.datasets import make_classification

    n_columns = parameters["n_informative"] + parameters["n_redundant"]
    X, y = make_classification(
        parameters["n_samples"],
        n_columns,
        n_informative=parameters["n_informative"],
        n_redundant=parameters["n_redundant"],
        random_state=parameters["random_state"],
    )
    return X.astype(np.float32), y.astype(np.int32)


def _split_rows(y: NDArray[np.int32], parameters: dict[str, Any]) -> dict[str, NDArray[np.intp]]:
    """Rows of the training and of the test part."""
    from sklearn.model_selection import train_test_split

    try:
        train, test = train_test_split(
            np.arange(len(y)),
            test_size=parameters["test_fraction"],
            stratify=y,
            random_state=parameters["random_state"],
        )
    except ValueError as error:
        raise ParameterError(
            f"The 'n_samples' and 'test_fraction' parameters of {OWNER} leave no stratified split "
            f"of {len(y)} samples: {error} Take more samples."
        ) from error
    return {"train": train, "test": test}


def _write_task(folder: Path, parameters: dict[str, Any], progress: bool | None) -> None:
    from tqdm import tqdm

    n_features = parameters["n_features"]
    signal, y = _signal(parameters)
    parts = _split_rows(y, parameters)
    step = max(1, BLOCK_BYTES // (4 * n_features))
    blocks = [
        (part, start, rows[start : start + step])
        for part, rows in parts.items()
        for start in range(0, len(rows), step)
    ]
    # One stream a block: the data does not depend on which thread makes which block, or when.
    first, *streams = np.random.SeedSequence(parameters["random_state"]).spawn(1 + len(blocks))
    positions = np.random.default_rng(first).permutation(n_features)[: signal.shape[1]]
    offsets = {}
    for part, rows in parts.items():
        np.save(folder / f"y_{part}.npy", y[rows])
        with open(folder / f"X_{part}.npy", "wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(rows), n_features)}
            np.lib.format.write_array_header_1_0(file, header)
            offsets[part] = file.tell()

    def write(block: tuple[str, int, NDArray[np.intp]], seed: np.random.SeedSequence) -> int:
        part, start, rows = block
        X = np.random.default_rng(seed).standard_normal((len(rows), n_features), dtype=np.float32)
        X[:, positions] = signal[rows]
        # Not through a memory map: its pages would count as this process's memory.
        with open(folder / f"X_{part}.npy", "r+b") as file:
            file.seek(offsets[part] + 4 * n_features * start)
            file.write(X.astype("<f4", copy=False).data)
        return len(rows)

    threads = max(1, min(available_threads(), BUFFER_BYTES // (4 * n_features * step)))
    with (
        tqdm(
            total=len(y),
            desc=f"Generating {len(y)} x {n_features}",
            unit=" samples",
            disable=None if progress is None else not progress,
        ) as bar,
        ThreadPoolExecutor(threads) as executor,
    ):
        for n_rows in executor.map(write, blocks, streams):
            bar.update(n_rows)


# The cache


def _open(folder: Path, parameters: dict[str, Any]) -> Dataset:
    """Map the data in `folder`; ValueError if it is not what was written there."""
    manifest = json.loads((folder / MANIFEST).read_text())
    if manifest["parameters"] != parameters:
        raise ValueError("the manifest is of other data")
    arrays = []
    for name in ARRAYS:
        if _fingerprint(folder / name) != manifest["files"][name]:
            raise ValueError(f"{name} has changed")
        arrays.append(np.load(folder / name, mmap_mode="r" if name.startswith("X") else None))
    X_train, y_train, X_test, y_test = arrays
    return Dataset(X_train, y_train, X_test, y_test, folder.name)


def _fingerprint(path: Path) -> dict[str, Any]:
    """Size of a file, and a checksum of its first, its last and 64 pieces between.

    Reading gigabytes to check them would cost more than a small run.
    """
    size = path.stat().st_size
    checksum = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        for offset in np.linspace(0, max(0, size - PIECE_BYTES), 66, dtype=np.int64):
            file.seek(int(offset))
            checksum.update(file.read(PIECE_BYTES))
    return {"bytes": size, "blake2b_of_pieces": checksum.hexdigest()}


def _generate(folder: Path, parameters: dict[str, Any], progress: bool | None) -> None:
    """Write the data beside `folder` and rename it into place, unless another process did so."""
    cache = folder.parent
    needed = 4 * parameters["n_samples"] * (parameters["n_features"] + 1) + 2**16
    temporary = None
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(cache)
        free = shutil.disk_usage(cache).free
        if free < needed:
            raise OSError(errno.ENOSPC, f"only {free:,} bytes are free")
        temporary = _name_beside(folder)
        temporary.mkdir()
        _write_task(temporary, parameters, progress)
        files = {path.name: _fingerprint(path) for path in sorted(temporary.iterdir())}
        manifest = {"format": FORMAT, "parameters": parameters, "files": files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in (*temporary.iterdir(), temporary):
            _sync(path)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, and its data is the same
                raise
        _sync(cache)
    except OSError as error:
        raise DataError(
            f"The data cache {cache} cannot take {needed:,} bytes: {error.strerror or error}. Free "
            f"space there, or set {environment.CACHE} to a folder that has the space and can be "
            "written."
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _discard(folder: Path) -> None:
    """Remove `folder` in one step: no other process sees half of it."""
    try:
        others = {path.name for path in folder.iterdir()} - {*ARRAYS, MANIFEST}
        if others:
            raise OSError(f"it has {min(others)}, which was not written there")
        aside = _name_beside(folder)
        folder.rename(aside)
        shutil.rmtree(aside)
    except FileNotFoundError:  # another process removed it
        return
    except OSError as error:
        raise DataError(
            f"The damaged data in {folder} cannot be removed: {error.strerror or error}. "
            f"Remove it, or set {environment.CACHE} to another folder."
        ) from error


def _name_beside(folder: Path) -> Path:
    """Return a path on the same disk with a name that no one else uses."""
    return folder.with_name(f"{folder.name}{TEMPORARY}{secrets.token_hex(8)}")


def _remove_abandoned(cache: Path) -> None:
    """Remove what runs that were killed long ago have left."""
    for path in cache.glob(f"classification-*{TEMPORARY}*"):
        with contextlib.suppress(OSError):  # another's, or somebody has put something there
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                for name in (*ARRAYS, MANIFEST):
                    (path / name).unlink(missing_ok=True)
                path.rmdir()


def _sync(path: Path) -> None:
    """Have a file's or folder's content on the disk before it gets its final name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
