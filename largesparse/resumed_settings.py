"""What a training that is resumed takes over of its configuration."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from .backends import get_backend
from .config import TrainingConfig
from .errors import BackendError

logger = logging.getLogger(__name__)


def resumed_config(before: TrainingConfig, changes: dict[str, Any], folder: Path) -> TrainingConfig:
    """Return the configuration of a checkpoint with changes.

    It is told where the backend becomes another one, which gives other bits.

    Parameters
    ----------
    before : TrainingConfig
    changes : dict
        Fields to replace.
    folder : Path
        The checkpoint, for the message.
    """
    now = dataclasses.replace(before, **changes)
    whole = before.micro_batch == before.batch_size
    if whole and "batch_size" in changes and "micro_batch" not in changes:
        now = dataclasses.replace(now, micro_batch=None)  # the whole mini-batch, as before
    if before.backend is None:  # of older checkpoints: not known
        return now
    missing = ""
    if "backend" not in changes:
        try:
            get_backend(now.backend)
        except BackendError as error:
            missing, now = f"{error} ", dataclasses.replace(now, backend=None)
    used = get_backend(now.backend).name
    if used != before.backend:
        logger.warning(
            "%sThe training in %s used the backend %r and goes on with %r: the result will differ "
            "in the last digits from that of %r alone.",
            missing,
            folder,
            before.backend,
            used,
            before.backend,
        )
    return now
