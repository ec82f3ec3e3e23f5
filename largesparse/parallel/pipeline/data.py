"""What a rank of a pipeline is given of the data: the first one inputs, the last one targets."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ...data.batches import dense_rows
from ...data.checks import check_X
from ...data.frames import align_frame, column_names
from ...errors import DataError, ParameterError
from ...training.prepared import (
    TrainingData,
    check_watched,
    encode,
    mean_one,
    relative_weights,
    split_rows,
    standardize_,
    start_at_frequencies_,
)
from ..comm.collectives import broadcast, gather
from ..comm.ranks import together
from .trainer import StageTrainer

COMPARED_ROWS = 64  # of those of groups, which all must have


class Elsewhere(NamedTuple):
    """Stands for rows that other ranks have."""

    rows: int

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.rows


class Given(NamedTuple):
    """What a rank is given to train on; what it does not need of it is not looked at."""

    X: Any = None
    y: Any = None
    test: tuple[Any, Any] | None = None
    sample_weight: Any = None


def prepare_stage_(trainer: StageTrainer, given: Given) -> TrainingData:
    """Check and split data, as `prepared.prepare_` does; every rank calls it.

    Inputs count on the ranks with the first layer, targets and weights on those with the last one.
    """
    place, comm, network = trainer.place, trainer.comm, trainer.network

    def load() -> tuple[Any, Any, Any]:
        if given.test is not None and len(given.test) != 2:
            raise ParameterError("The 'test' parameter of train_pipeline must be a pair (X, y).")
        test = given.test or (None, None)
        X = _inputs(trainer, given.X, "X") if place.is_first else None
        of_test = None
        if place.is_first and test[0] is not None:
            of_test = _inputs(trainer, test[0], "test")
        y, targets = None, None
        if place.is_last:
            y, classes = _targets(trainer, given.y, "y")
            if test[1] is not None:
                targets = encode(network, test[1], classes)[0]
            network.classes = classes
        return X, y, (of_test, targets)

    X, y, test = together(comm, load)
    count, n_test = (
        count_rows(trainer, pair, name)
        for pair, name in (((X, y), "X and y"), (test, "the test's X and y"))
    )
    assert count is not None
    _compare_groups(trainer, X, y, count)
    network.classes = broadcast(comm, network.classes, len(place.stages) - 1)
    relative = _weights(trainer, given.sample_weight, count)

    def split() -> TrainingData:
        train, losses, watched = split_rows(trainer.config, count, relative)
        if len(watched) and y is not None:
            check_watched(y[watched])
        weights = None if relative is None else mean_one(relative, train)
        if X is not None:
            standardize_(network, X, train, relative, wanted=trainer.config.standardize)
        if y is not None:
            start_at_frequencies_(network, y, train)
        rows = Elsewhere(count)
        pair = None
        if n_test is not None:
            found = (Elsewhere(n_test) if each is None else each for each in test)
            pair = tuple(found)
        own = rows if X is None else X, rows if y is None else y
        return TrainingData(*own, weights, train, losses, watched, pair)  # type: ignore[arg-type]

    return together(comm, split)


def _inputs(trainer: StageTrainer, X: Any, name: str) -> Any:
    _expect(trainer, X, name)
    network = trainer.network
    names = network.feature_names or column_names(X)
    X = check_X(align_frame(X, names), network.config.layer_sizes[0])
    network.feature_names = names
    return X


def _targets(trainer: StageTrainer, y: Any, name: str) -> tuple[Any, Any]:
    _expect(trainer, y, name)
    network = trainer.network
    encoded, classes = encode(network, y)
    n_outputs = network.config.layer_sizes[-1]
    if classes is not None and len(classes) != n_outputs:
        raise DataError(
            f"The labels have {len(classes)} classes, and the network has {n_outputs} "
            "outputs. Make the last entry of 'layer_sizes' the number of classes."
        )
    return encoded, classes


def _expect(trainer: StageTrainer, given: Any, name: str) -> None:
    if given is None:
        which = "first" if trainer.place.is_first and name != "y" else "last"
        raise ParameterError(
            f"The {name!r} parameter of train_pipeline must be given on rank {trainer.place.rank}, "
            f"which has the {which} layer. Got None instead."
        )


def count_rows(trainer: StageTrainer, parts: tuple[Any, ...], name: str) -> int | None:
    """Return how many rows all that have some have, on all ranks; None if none have.

    `parts` are the inputs, on ranks with the first layer, or these and the targets, on those with
    the last one, and None elsewhere.
    """
    own = [None if each is None else int(each.shape[0]) for each in parts]
    everyone = gather(trainer.comm, own)
    counts = {count for each in everyone or [] for count in each if count is not None}
    wanted = len(parts) * trainer.place.groups
    there = sum(count is not None for each in everyone or [] for count in each)

    def agree() -> None:
        if len(counts) > 1:
            raise DataError(
                f"{name} must have as many rows on all ranks. Got {sorted(counts)}. Load the same "
                "data on the ranks that have the first layer or the last one."
            )
        if there not in (0, wanted):
            raise ParameterError(
                f"{name} must be given on all ranks with the first and the last layer, or on none."
            )

    together(trainer.comm, agree if everyone is not None else lambda: None)
    return broadcast(trainer.comm, counts.pop() if counts else None)  # type: ignore[no-any-return]


def _compare_groups(trainer: StageTrainer, X: Any, y: Any, count: int) -> None:
    """Raise a DataError on all ranks where groups have others of the rows that are compared."""
    place = trainer.place
    if place.groups == 1:
        return
    rows = np.unique(np.linspace(0, count - 1, COMPARED_ROWS).astype(np.int64))
    parts = None if X is None else dense_rows(X, rows), None if y is None else y[rows]
    everyone = gather(trainer.comm, zlib.crc32(pickle.dumps(parts)))

    def compare() -> None:
        stages = len(place.stages)
        for rank, found in enumerate(everyone or []):
            if found != (everyone or [])[rank % stages]:
                raise DataError(
                    f"Ranks {rank % stages} and {rank} have other rows. Load all rows in the same "
                    "order in every group: groups divide the rows of a mini-batch by themselves."
                )

    together(trainer.comm, compare)


def _weights(trainer: StageTrainer, sample_weight: Any, count: int) -> Any:
    """Return relative weights of all rows, which all ranks need; those of the last rank."""
    check: Callable[[], Any] = lambda: None  # noqa: E731
    root = len(trainer.place.stages) - 1
    if trainer.place.rank == root and sample_weight is not None:
        check = lambda: relative_weights(sample_weight, count)  # noqa: E731
    found = together(trainer.comm, check)
    return broadcast(trainer.comm, found, root)
