"""Folders that are written beside their place and renamed into it.

A crash leaves the old folder or the new one, and never a part of one.
"""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from pathlib import Path


def make_beside(folder: Path) -> Path:
    """Make and return an empty folder beside the one named.

    Raises
    ------
    OSError
        Where it cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    beside.chmod(0o777 & ~umask())
    return beside


def remove_abandoned(folder: Path) -> None:
    """Remove what runs left beside a folder that were killed while they wrote."""
    for abandoned in folder.parent.glob(f".{glob.escape(folder.name)}-????????"):
        shutil.rmtree(abandoned, ignore_errors=True)


def umask() -> int:
    """Return the permissions that new files lack: temporary ones are made private."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def put_in_place(source: Path, folder: Path) -> None:
    """Rename a folder into its place. At every moment the old or the new one can be found."""
    old = previous(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
    os.rename(source, folder)
    shutil.rmtree(old, ignore_errors=True)
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def previous(folder: Path) -> Path:
    """Return where a folder is while another takes its place."""
    return folder.parent / f".{folder.name}.previous"  # of the root, too
