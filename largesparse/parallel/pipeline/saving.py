"""Checkpoints of a pipeline: every rank of the first one writes and reads its own layers.

The format is that of all checkpoints. The folder must be one that all ranks see.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import CheckpointError
from ...machine.environment import expand_user
from ...machine.folders import replacing, trying_writing
from ...machine.signals import saved_in
from ...training.checkpoint import Files, checkpoint_manifest, write_layers, write_rest
from ...training.saving import check_checkpoint_folder, writing
from ..comm.collectives import broadcast, gather
from ..comm.ranks import together

if TYPE_CHECKING:
    from .trainer import StageTrainer

logger = logging.getLogger(__name__)


def place_of(folder: str | Path, comm: Any) -> Path:
    """Return the folder that rank 0 names, as it understands it: another has no home, perhaps."""
    found = together(comm, lambda: expand_user(folder).resolve() if comm.rank == 0 else None)
    place: Path = broadcast(comm, found)
    return place


def write_stages(trainer: StageTrainer, folder: Path, *, training: bool) -> None:
    """Write the layers of all ranks to a folder; every rank calls it.

    Where it is the checkpoint of a training, that has moments, and the manifest the training.

    Raises
    ------
    CheckpointError
        On all ranks, where one cannot write; what was there before is intact then.
    """
    comm, leads, writes = trainer.comm, trainer.place.rank == 0, trainer.place.group == 0
    best = trainer.best if training else None
    with ExitStack() as stack:

        def begin() -> Path | None:
            if not leads:
                return None
            with writing(folder):
                return stack.enter_context(replacing(folder))

        def write(beside: Path) -> Files | None:
            if not writes:
                return None
            with writing(folder):
                layers = None if best is None else best.layers
                given: Any = {"moments": training, "best": layers}
                return write_layers(beside, trainer.network.layers, **given)

        beside: Path = broadcast(comm, together(comm, begin))
        part = trainer.state.part
        own = together(comm, lambda: write(beside)), 0.0 if part is None else part.loss
        found = gather(comm, own)

        def complete() -> None:
            if found is None:
                return
            total = Files({}, [], [])
            for each in (each for each, _ in found if each is not None):
                total.files.update(each.files)
                total.nnz.extend(each.nnz)
                total.explored.extend(each.explored)
            manifest = {"kind": "model"}
            if training:
                manifest = _manifest_of(trainer, sum(loss for _, loss in found))
            with writing(folder):
                write_rest(beside, trainer.network, manifest, total)
                stack.close()  # which replaces the checkpoint before

        together(comm, complete)


def _manifest_of(trainer: StageTrainer, loss: float) -> dict[str, Any]:
    """Return what a manifest has of a training, of which all ranks have so much loss together."""
    state = trainer.state
    if state.part is not None:
        part = dataclasses.replace(state.part, loss=loss)
        state = dataclasses.replace(state, part=part)
    return checkpoint_manifest(trainer.saved_config, state)


class StageSaver:
    """Saves a pipeline's training; what `Trainer` does about checkpoints, by all ranks together."""

    def __init__(self, trainer: StageTrainer) -> None:
        self.trainer = trainer

    def save(self, folder: str | Path) -> bool:
        """Write a checkpoint; where that fails, rank 0 says so, and the training goes on."""
        state, comm = self.trainer.state, self.trainer.comm
        place = place_of(folder, comm)
        try:
            if place != state.folder:  # another training may have begun there meanwhile
                together(comm, lambda: self._check(place))
            self.write(place)
        except CheckpointError as error:
            if not error.is_told_elsewhere:
                logger.error("%s The checkpoint before, if there is one, is intact.", error)
            state.is_unsaved = True
            return False
        state.saved_step, state.is_unsaved, state.folder = state.step, False, place
        return True

    def _check(self, place: Path, nbytes: int = 0) -> None:
        if self.trainer.place.rank == 0:
            check_checkpoint_folder(place, going_on=self.trainer.state.folder, nbytes=nbytes)

    def write(self, place: Path) -> None:
        """Write a checkpoint to a folder; every rank calls it."""
        write_stages(self.trainer, place, training=True)

    def check(self, folder: str | Path) -> None:
        """Verify, before training, that checkpoints can be kept in a folder, or raise on all."""
        trainer = self.trainer
        layers = trainer.network.layers
        own = sum(array.nbytes for layer in layers for array in layer.arrays(True).values())
        everyone = gather(trainer.comm, own if trainer.place.group == 0 else 0)
        copies = 2 if trainer.state.folder is None and trainer.config.epochs > 1 else 1
        checkpoint_manifest(trainer.config, trainer.state)
        nbytes = copies * sum(everyone or [0])
        together(trainer.comm, lambda: self._check(Path(folder), nbytes))
        self._check_shared(folder)

    def _check_shared(self, folder: str | Path) -> None:
        """Raise on all ranks where one that is to write cannot write to the folder of rank 0."""
        comm, place = self.trainer.comm, self.trainer.place

        def write(beside: Path) -> None:
            try:
                (beside / f"rank-{place.rank}").write_bytes(b"")
            except OSError as error:
                raise CheckpointError(
                    f"Cannot write to the folder that rank 0 has made in {beside.parent}: {error}. "
                    "Name one for checkpoints that all hosts share."
                ) from error

        with ExitStack() as stack:

            def begin() -> Path | None:
                if place.rank > 0:
                    return None
                with writing(Path(folder)):
                    return stack.enter_context(trying_writing(expand_user(folder).resolve()))

            beside = broadcast(comm, together(comm, begin))
            together(comm, lambda: write(beside) if place.group == 0 else None)

    def rescue(self, folder: str | Path) -> Path | None:
        """Save a training that ends now elsewhere, if its last checkpoint failed; return where."""
        trainer, comm = self.trainer, self.trainer.comm
        if not trainer.state.is_unsaved:
            return None
        trainer.state.is_unsaved = False
        folder = place_of(folder, comm)
        for parent in (folder.parent, None):  # None: the folder of temporary files
            place = None
            if trainer.place.rank == 0:
                try:
                    place = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=parent))
                except OSError:
                    place = None
            place = broadcast(comm, place)
            if place is None:
                continue
            try:
                self.write(place)
            except CheckpointError:
                if trainer.place.rank == 0:
                    with suppress(OSError):
                        place.rmdir()
                continue
            if trainer.place.rank == 0:
                logger.error("The training is %s", saved_in(place))
            return place
        return None
