"""How long a contestant trains until its accuracy on test rows is a stated one."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...data.datasets import Dataset
from ...errors import NumericalError
from ...machine.energy import EnergyMeter
from ...model.config import TrainingConfig
from ...model.network import SparseMLP
from ...training.history import EpochRecord, History
from .problem import SGD, ZETA, Contestant, Problem

Point = dict[str, Any]  # epoch, updates, accuracy; train_s, cpu_s, energy_j; seconds: its own
MOST_EPOCHS = 100_000  # of ranks, which must be told a number


@dataclass(frozen=True)
class Limits:
    """When a training ends: at the accuracy `target`, or at one of these."""

    target: float = math.inf
    seconds: float = math.inf  # of training
    epochs: int = MOST_EPOCHS

    def end(self, points: Sequence[Point]) -> bool:
        """Whether the training is over after these points."""
        last = points[-1]
        return last["accuracy"] >= self.target or last["train_s"] >= self.seconds


class Clock:
    """Time, processor time and joules of training: it stands still but within `running`."""

    def __init__(self, meter: EnergyMeter) -> None:
        self.seconds, self.cpu_seconds, self._meter = 0.0, 0.0, meter
        self.joules: float | None = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the block."""
        before = self._read()
        started, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started
            self.cpu_seconds += time.process_time() - cpu
            after = self._read()
            known = not (before is None or after is None or self.joules is None)
            self.joules = self.joules + after - before if known else None  # type: ignore[operator]

    def _read(self) -> float | None:
        self._meter.update()
        return self._meter.joules


def learn(
    contestant: Contestant, data: Dataset, limits: Limits, *, seed: int, points: int
) -> list[Point]:
    """Train until the limits say so; return the accuracies on the test rows.

    An epoch is all whole mini-batches of the training rows in random order, and an evolution where
    the contestant has one. Accuracy is measured `points` times in it, equally spaced, the last time
    before the evolution; the clock stands still meanwhile. A training whose loss is no longer
    finite ends with a point without accuracy.
    """
    X, y, size = data.X_train, data.y_train, contestant.problem.batch_size
    rng = np.random.default_rng(seed)
    count = len(y) // size
    ends = sorted({-(-count * k // points) for k in range(points + 1)})
    found: list[Point] = []
    with EnergyMeter() as meter:
        clock = Clock(meter)
        for epoch in range(limits.epochs):
            rows = rng.permutation(len(y))[: count * size].reshape(count, size)
            for first, last in itertools.pairwise(ends):
                with clock.running():
                    finite = _train(contestant, X, y, rows[first:last])
                started = time.perf_counter()
                accuracy = _accuracy(contestant, data) if finite else None
                place = {"epoch": epoch + last / count, "updates": epoch * count + last}
                measured = {"accuracy": accuracy, "seconds": time.perf_counter() - started}
                until = {"train_s": clock.seconds, "cpu_s": clock.cpu_seconds}
                found.append(place | measured | until | {"energy_j": clock.joules})
                if not finite or limits.end(found):
                    return found
            with clock.running():
                _evolve(contestant)
    return found


def _train(contestant: Contestant, X: Any, y: Any, batches: Any) -> bool:
    """Train on mini-batches, given by their rows; return whether the last loss is finite."""
    try:
        for rows in batches:
            loss = contestant.train(X[rows], y[rows])
    except NumericalError:
        return False
    return bool(np.isfinite(loss))


def _evolve(contestant: Contestant) -> None:
    with suppress(NotImplementedError):
        contestant.evolve()


def _accuracy(contestant: Contestant, data: Dataset) -> float:
    return float(np.mean(contestant.predict(data.X_test) == data.y_test))


def learn_by_ranks(
    algorithm: str,
    problem: Problem,
    data: Dataset | None,
    limits: Limits,
    *,
    test_rows: int,
    points: int,
    backend: Any = "fused",
) -> list[Point]:
    """Do what `learn` does by all ranks of a job, in phase one of WASAP or WASSP.

    Phase two has nothing to evaluate before its end. The training ends after a whole epoch, of
    which a point has its share of time; that workers pause for an evaluation is in it. Energy is
    the job's, times the share of training in its time. `data`, with so many `test_rows`, counts on
    rank 0, which returns the points. A loss that is not finite ends the job.
    """
    from ...parallel import train_wasap, train_wassp

    config = TrainingConfig(
        epochs=limits.epochs,
        batch_size=problem.batch_size,
        learning_rate=problem.learning_rate,
        dropout=problem.dropout,
        zeta=ZETA,
        standardize=False,
        curve_points=points,
        curve_rows=test_rows,
        seed=problem.seed,
        backend=backend,
        threads=problem.threads,
        **SGD,
    )
    train = train_wasap if algorithm == "wasap" else train_wassp
    arguments: dict[str, Any] = {"phase_one_epochs": limits.epochs, "progress": False}
    if data is None:
        train(None, config, **arguments)
        return []
    found: list[Point] = []
    started = time.perf_counter()
    meter = EnergyMeter()

    def note(trainer: Any, record: EpochRecord) -> bool:
        meter.update()
        wall = time.perf_counter() - started
        found[:] = points_of(trainer.history, len(data.y_train))
        for point in found:
            share = point["train_s"] / max(wall, 1e-9)
            point["energy_j"] = None if meter.joules is None else meter.joules * share
        return any(point["accuracy"] >= limits.target for point in found) or limits.end(found)

    arguments |= {"test": (data.X_test, data.y_test), "callbacks": [note]}
    with meter:
        train(SparseMLP(problem.network()), config, data.X_train, data.y_train, **arguments)
    return found


def points_of(history: History, rows: int) -> list[Point]:
    """Return the points of a history that has a learning curve over all test rows.

    Within an epoch, time passes as samples do.
    """
    found, before = [], 0.0
    for record in history.epochs[1:]:
        for point in record.curve:
            place = {name: point[name] for name in ("epoch", "updates", "accuracy", "seconds")}
            seconds = (record.epoch_s or 0.0) * point["samples"] / rows
            found.append(place | {"train_s": before + seconds})
        before += (record.epoch_s or 0.0) + (record.evolution_s or 0.0)
    return found


def first_at(points: Sequence[Point], target: float, seconds: float = math.inf) -> Point | None:
    """Return the first point with an accuracy, within so many seconds of training; None if none."""
    for point in points:
        accuracy = point["accuracy"]
        if accuracy is not None and accuracy >= target and point["train_s"] <= seconds:
            return point
    return None


def best_of(points: Sequence[Point], seconds: float = math.inf) -> float:
    """Return the best accuracy within so many seconds of training, 0 where there is none."""
    reached = (point["accuracy"] or 0.0 for point in points if point["train_s"] <= seconds)
    return max(reached, default=0.0)


def rank_of_trial(points: Sequence[Point], target: float) -> tuple[bool, float, float]:
    """Return by what a learning rate is chosen: the trial with the least is taken.

    Trainings that stay finite come first, then those that reach the target in fewer updates, then
    those with a better accuracy.
    """
    reached = first_at(points, target)
    diverged = not points or points[-1]["accuracy"] is None
    updates = math.inf if reached is None else float(reached["updates"])
    return diverged, updates, -best_of(points)
