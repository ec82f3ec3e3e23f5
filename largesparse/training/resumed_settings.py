"""A training that goes on from a checkpoint, and what it takes over of its configuration."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..backends import get_backend
from ..errors import BackendError
from ..model.config import TrainingConfig
from ..model.optimizer import OPTIMIZERS
from ..model.rules import KINDS
from ..model.storage import Storage
from .checkpoint import read_checkpoint, reading
from .trainer import Trainer

logger = logging.getLogger(__name__)


def load_checkpoint(
    folder: str | Path, *, storage: Storage | None = None, **changes: Any
) -> Trainer:
    """Read a checkpoint, and return a trainer whose `fit` goes on from there.

    The network of a training that is over has the weights that `fit` left it with.

    Parameters
    ----------
    folder : path
    storage : Storage, optional
        Receives the layers' arrays, one layer after another; by default they are in memory.
    **changes
        Fields of the training's configuration to replace, for instance `threads`. With the same
        data, and nothing but `threads` changed, the training goes on to the same bits as if it
        had not been interrupted. The backend is the one that it had, whatever LARGESPARSE_BACKEND
        is now; under another one that is named, or where it cannot be used here, a warning is
        logged. A micro-batch that was the whole mini-batch stays the whole one. More `epochs`
        prolong a training; a schedule that depends on its length (cosine) then goes on along the
        curve of the longer one. A `patience` that is added counts from here, and so do the scores
        of another validation part: those of rows that have been trained on already are too good.
        Another `optimizer` that keeps other moments begins with new ones, with a warning; where its
        defaults of `learning_rate` and `weight_decay` are others, these are taken, too.

    Raises
    ------
    CheckpointError
        Where the folder is missing, damaged, of another version, or a model without a training.
    ParameterError
        Where the changes cannot be, for instance too few `epochs` for a network with a
        `start_factor` to become as small as it is to be.
    """
    rules = {kind: changes[kind] for kind in KINDS if kind in changes}
    network, before, state = read_checkpoint(folder, storage, **rules)
    assert state.folder is not None
    # A mistake in the changes is not the folder's.
    with nullcontext() if changes else reading(state.folder):
        config = resumed_config(before, changes, state.folder, network.config.layer_sizes)
        trainer = Trainer(network, config, state=state)
        trainer.check_surplus()
    state.watch_anew_(before, config)
    if trainer.is_over:
        trainer.settle()
    return trainer


def _defaults_of_another(before: TrainingConfig, changes: dict[str, Any]) -> dict[str, None]:
    """Return the fields that another optimizer has another default of, to take that."""
    then = OPTIMIZERS[before.optimizer]
    now = OPTIMIZERS.get(str(changes.get("optimizer")), then)
    defaults = {"learning_rate": "default_rate", "weight_decay": "default_decay"}
    return {name: None for name, of in defaults.items() if getattr(now, of) != getattr(then, of)}


def resumed_config(
    before: TrainingConfig, changes: dict[str, Any], folder: Path, layer_sizes: Sequence[int]
) -> TrainingConfig:
    """Return the configuration of the checkpoint in a folder with changes.

    A warning tells where the backend becomes another one, which gives other bits.
    """
    now = dataclasses.replace(before, **_defaults_of_another(before, changes) | changes)
    if now.optimizer != before.optimizer:
        kinds = OPTIMIZERS[before.optimizer].kinds, OPTIMIZERS[now.optimizer].kinds
        begin = "" if kinds[0] == kinds[1] else ": its moments begin"
        logger.warning(
            f"The training in {folder} used the optimizer {before.optimizer!r} and goes on with "
            f"{now.optimizer!r}, learning rate {now.learning_rate:g}, weight decay "
            f"{now.weight_decay:g}{begin}."
        )
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
            missing, now = f"{error} ", dataclasses.replace(now, backend="auto")
    used = get_backend(now.backend, layer_sizes).name
    if used != before.backend:
        logger.warning(
            f"{missing}The training in {folder} used the backend {before.backend!r} and goes on "
            f"with {used!r}: the result will differ in the last digits from that of "
            f"{before.backend!r} alone."
        )
    return now
