"""The folder of a saved model: what in it is the format's, and how that is replaced.

What is written lies in a folder of its own within, `.largesparse-writing-*`, which becomes
`.largesparse-complete` by one rename. From then on that is what is read; its files then take the
places of the old ones. So the old or the new one is found at every moment, nothing outside the
folder is touched (it may be a mount point, or the working directory), and what else lies in it
stays. Only files that a manifest of this format lists are ever removed.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

logger = logging.getLogger(__name__)

FORMAT = "largesparse"
MANIFEST = "manifest.json"
WRITING = ".largesparse-writing-"
COMPLETE = ".largesparse-complete"
REPLICAS = "replica-*"  # checkpoints within that of a parallel training
LISTED = re.compile(r"[\w-]+\.safetensors")  # names that a manifest may list
WRITTEN = re.compile(r"((best-)?layer-\d+|preprocessing|targets)\.safetensors")
IGNORED = ("lost+found",)  # beside hidden files: a folder with no more than these is empty


def read_manifest(place: Path) -> dict[str, Any] | None:
    """Return the manifest of this format in a folder, of any version, or None."""
    try:
        manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("format") == FORMAT else None


def find(folder: Path) -> Path | None:
    """Return where the model or checkpoint of a folder is read, or None where there is none."""
    earlier = folder.parent / f".{folder.name}.previous"  # by crashes of releases up to 0.1
    for place in (folder / COMPLETE, folder, earlier):
        if (place / MANIFEST).is_file():
            return place
    return None


def locate(place: Path, name: str) -> Path:
    """Return the path of a file of a model that `find` has found."""
    path = place / name
    if place.name == COMPLETE and not path.exists():  # it is in its place already
        return place.parent / name
    return path


def check_replaceable(folder: Path) -> None:
    """Raise `CheckpointError` where other files than of this format would be replaced."""
    remedy = "Name another folder, or remove it."
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; it would be replaced. {remedy}")
    listed = _listed(folder) | _listed(folder / COMPLETE)
    names = sorted(path.name for path in folder.iterdir())
    if MANIFEST in names and read_manifest(folder) is None:
        raise CheckpointError(
            f"{folder / MANIFEST} is not a model's, or damaged; it would be replaced. {remedy}"
        )
    if not listed and (others := [name for name in names if not _is_ignored(folder / name)]):
        raise CheckpointError(
            f"{folder} exists and is not a checkpoint: it has {others[0]}. {remedy}"
        )
    if strange := [name for name in names if WRITTEN.fullmatch(name) and name not in listed]:
        raise CheckpointError(
            f"{folder / strange[0]} is not of the model beside; it would be replaced. {remedy}"
        )


def try_writing(folder: Path) -> None:
    """Write a file to a folder and remove it, and the folder where it was not there.

    Errors are those of `replacing`.
    """
    with trying_writing(folder):
        pass


@contextmanager
def trying_writing(folder: Path) -> Iterator[Path]:
    """Give a folder within another, for other processes to write to: see `try_writing`."""
    with _writing(folder) as beside:
        (beside / MANIFEST).write_bytes(b"\0" * 4096)
        yield beside


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give an empty folder; what the block writes there replaces the model in `folder`.

    Raises
    ------
    CheckpointError
        As `check_replaceable`.
    OSError
        Where the folder cannot be written. What was there before is intact then.
    """
    with _writing(folder) as beside:
        yield beside
        with _locked(folder):
            check_replaceable(folder)
            _settle(folder)
            os.rename(beside, folder / COMPLETE)
            _sync(folder)
            try:
                _settle(folder)
            except OSError as error:
                logger.warning("%s is saved; the next save will tidy it up: %s.", folder, error)


@contextmanager
def _writing(folder: Path) -> Iterator[Path]:
    """Give an empty folder within another; what the block leaves of it is removed."""
    if is_new := not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
    elif not folder.is_dir():
        check_replaceable(folder)
    with ExitStack() as stack:
        if is_new:
            stack.callback(_remove_empty, folder)
        with _locked(folder):  # no other writer is half-way; none takes `beside` for abandoned
            check_replaceable(folder)
            _remove_abandoned(folder)
            beside = Path(tempfile.mkdtemp(prefix=WRITING, dir=folder))
            stack.callback(shutil.rmtree, beside, ignore_errors=True)
            beside.chmod(0o777 & ~umask())
            stack.enter_context(_locked(beside))
        yield beside
    if is_new:
        _sync(folder.parent)


def _settle(folder: Path) -> None:
    """Move the files of a complete model into their places, and remove what they replace.

    A crash on the way is no harm: whoever writes next goes on, and reading finds each file where
    it is.
    """
    complete = folder / COMPLETE
    if (manifest := read_manifest(complete)) is None:
        _remove_empty(complete)
        return
    names = _names(manifest)
    for name in sorted(names):
        with suppress(FileNotFoundError):  # it has been moved
            os.replace(complete / name, folder / name)
    for name in _listed(folder) - names:
        (folder / name).unlink(missing_ok=True)
    for replica in folder.glob(REPLICAS):
        _remove_model(replica)
    _sync(folder)
    os.replace(complete / MANIFEST, folder / MANIFEST)
    complete.rmdir()
    _sync(folder)


def _remove_model(folder: Path) -> None:
    """Remove the files of a model, and the folder if it has no others."""
    if folder.is_symlink() or not folder.is_dir():
        return
    _remove_abandoned(folder)
    for place in (folder / COMPLETE, folder):
        if (manifest := read_manifest(place)) is not None:
            for name in (*sorted(_names(manifest)), MANIFEST):
                (place / name).unlink(missing_ok=True)
        _remove_empty(place)


def _remove_abandoned(folder: Path) -> None:
    """Remove what processes have left in a folder that were killed while they wrote."""
    for path in folder.glob(f"{WRITING}*"):
        if path.is_symlink() or not path.is_dir():
            continue
        with _locked(path, wait=False) as is_mine:
            if not is_mine:
                continue  # somebody writes there
            for file in path.iterdir():
                if WRITTEN.fullmatch(file.name) or file.name == MANIFEST:
                    file.unlink(missing_ok=True)
            _remove_empty(path)


def _remove_empty(folder: Path) -> None:
    """Remove a folder, unless something is in it."""
    with suppress(OSError):
        folder.rmdir()


def _names(manifest: dict[str, Any]) -> set[str]:
    """Return the names of the files beside the manifest; nothing that leads elsewhere."""
    files = manifest.get("files")
    return {name for name in files if LISTED.fullmatch(name)} if isinstance(files, dict) else set()


def _listed(place: Path) -> set[str]:
    """Return the names of a model's files, the manifest's among them; none where there is none."""
    manifest = read_manifest(place)
    return set() if manifest is None else {MANIFEST} | _names(manifest)


def _is_ignored(path: Path) -> bool:
    """Return whether a folder with this in it is still empty enough to be a model's."""
    if path.name.startswith(".") or path.name in IGNORED:
        return True
    return path.match(REPLICAS) and find(path) is not None


@contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Keep other writers out of a folder; give whether the systems and another writer allow it."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            is_mine = True
        except OSError:
            is_mine = False
        yield is_mine
    finally:
        os.close(descriptor)


def umask() -> int:
    """Return the permissions that new files lack: temporary ones are made private."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sync(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
