"""Where a training is saved: what can be known before it begins, and what is done if that fails."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..machine.environment import expand_user
from ..machine.folders import find, read_manifest, try_writing
from ..model.config import TrainingConfig
from ..model.rules import nameless_rule


def check_model_folder(folder: str | Path) -> None:
    """Raise a `CheckpointError` if a folder cannot be written, or has a training's checkpoint."""
    folder = expand_user(folder).resolve()
    if epoch := _epoch(find(folder)):
        raise CheckpointError(
            f"{folder} has the checkpoint of a training ({epoch}), which the model would replace. "
            "Name another folder, or remove that one."
        )
    with writing(folder):
        try_writing(folder)


def check_checkpoint_folder(
    folder: str | Path, *, going_on: str | Path | None = None, nbytes: int = 0
) -> None:
    """Verify, before work starts, that a training can keep its checkpoints in a folder.

    Raise a `CheckpointError` where it cannot be written, has no room for `nbytes` more, or has a
    model or another checkpoint than `going_on`, from which the training goes on.
    """
    folder = expand_user(folder).resolve()
    found = find(folder)
    own = () if going_on is None else (expand_user(going_on).resolve(),)
    if found is not None and read_manifest(found) and not {folder, found} & {*own}:
        epoch = _epoch(found)
        raise CheckpointError(
            f"{folder} has the checkpoint of another training ({epoch}), which would be replaced. "
            "Go on with --resume (in Python: load_checkpoint), name another folder, or remove it."
            if epoch
            else f"{folder} has a saved model, which a checkpoint would replace. Name another "
            "folder, or remove it."
        )
    with writing(folder):
        try_writing(folder)
    place = next(path for path in (folder, *folder.parents) if path.exists())
    usage = shutil.disk_usage(place)
    if usage.total and usage.free < nbytes:
        raise CheckpointError(
            f"The checkpoints in {folder} take {nbytes:,} bytes, and {usage.free:,} are free there "
            "(a new one is written before the old one goes). Name a folder on another disk."
        )


def check_notes(notes: Any) -> None:
    """Raise a CheckpointError unless JSON can hold a trainer's notes."""
    try:
        json.dumps(notes, sort_keys=True, default=dataclasses.asdict)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"The 'notes' of a trainer must be what JSON can hold (text, numbers, lists, "
            f"dictionaries), as they are saved with its checkpoints: {error}."
        ) from error


def check_rules(config: TrainingConfig) -> None:
    """Raise a CheckpointError unless a training that goes on can find its rules of evolution."""
    if problem := nameless_rule(config):
        raise CheckpointError(f"{problem}, or train without checkpoints.")


def save_elsewhere(save: Callable[[Path], None], folder: str | Path) -> Path | None:
    """Save where `save(folder)` has failed to a new folder beside it, else to a temporary one.

    Return where it has been saved, if anywhere.
    """
    folder = expand_user(folder).resolve()
    for parent in (folder.parent, None):  # None: the folder of temporary files
        try:
            place = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=parent))
        except OSError:
            continue
        try:
            save(place)
            return place
        except CheckpointError:
            with suppress(OSError):
                place.rmdir()
    return None


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what the system says into a `CheckpointError` that names the folder."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"Cannot write a checkpoint to {folder}: {error}.") from error


def _epoch(place: Path | None) -> str:
    """Return how far the checkpoint at a place is; an empty text where there is none."""
    training = (read_manifest(place) or {}).get("training") if place is not None else None
    if not isinstance(training, dict):
        return ""
    return f"after epoch {training.get('epoch')}"
