"""What a training recorded, epoch by epoch."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas


@dataclass
class EpochRecord:
    """One epoch. Epoch 0 is the state before training; what was not measured is None."""

    epoch: int
    loss: float | None  # without dropout, mean over a fixed set of `loss_rows` rows
    train_accuracy: float | None  # over the same rows; with targets in place of classes, R²
    test_accuracy: float | None = None  # over all test rows; as above
    validation_accuracy: float | None = None
    running_loss: float | None = None  # mean over the mini-batches of the epoch, with dropout
    epoch_s: float | None = None  # training alone, seconds
    inference_s: float | None = None  # prediction of all test rows, seconds
    evolution_s: float | None = None  # evolution after the epoch, seconds
    pruning_s: float | None = None  # Importance Pruning after the epoch, seconds
    nnz: list[int] = field(default_factory=list)  # connections of every layer
    active_neurons: int | None = None  # hidden ones on a path from an input to an output
    explored: float | None = None  # share of all cells that were ever connected, within about 2 %
    curve: list[dict[str, Any]] = field(default_factory=list)  # within the epoch: `training.curve`
    curve_s: float | None = None  # what its points took, seconds, which are not in `epoch_s`


@dataclass
class EpochPart:
    """What has been trained of an epoch."""

    samples: int = 0
    loss: float = 0.0  # with dropout, summed over the samples
    seconds: float = 0.0  # of training alone
    curve: list[dict[str, Any]] = field(default_factory=list)  # see `training.curve`

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EpochPart:
        """Return what `dataclasses.asdict` was given, if it can be true."""
        part = cls(**values)
        finite = math.isfinite(part.loss) and math.isfinite(part.seconds)
        if not isinstance(part.samples, int) or part.samples < 0 or not finite:
            raise ValueError(f"{part} is not a part of an epoch")
        return part


@dataclass
class ParallelReport:
    """What a parallel training took. Lists of seconds have an entry a rank."""

    algorithm: str
    ranks: int
    nodes: int
    slots: list[int]  # of every node
    threads: list[int]  # of a worker of every node
    phase_one_epochs: int
    updates: int = 0
    staleness: dict[int, int] = field(default_factory=dict)  # updates by their staleness
    bytes_moved: int = 0  # between nodes
    phase_one_s: float = 0.0
    phase_two_s: float = 0.0
    averaging_s: float = 0.0
    idle_s: list[float] = field(default_factory=list)
    idle_cpu_s: list[float] = field(default_factory=list)  # used while idle
    cpu_s: list[float] = field(default_factory=list)
    peak_rss_bytes: int = 0  # of the largest rank
    node_pss_bytes: int = 0  # of all ranks of the largest node, at most
    # of a pipeline
    stages: list[list[int]] = field(default_factory=list)  # layers [first, last), 0 the first
    micro_batches: int = 0  # of a mini-batch
    bubble: float = 0.0  # share of a step that a rank waits, at least: (K - 1) / (M + K - 1)
    steps_bytes: int = 0  # moved between ranks in its steps, without evaluation and evolution
    step_s: list[float] = field(default_factory=list)  # in steps, of every rank
    waiting_share: list[float] = field(default_factory=list)  # of its steps that a rank waited
    rss_bytes: list[int] = field(default_factory=list)  # of every rank, at most

    def count(self, staleness: int) -> None:
        """Count an update."""
        self.updates += 1
        self.staleness[staleness] = self.staleness.get(staleness, 0) + 1

    @property
    def mean_staleness(self) -> float:
        """Mean staleness of the updates of phase one."""
        return sum(s * n for s, n in self.staleness.items()) / max(1, self.updates)

    @property
    def max_staleness(self) -> int:
        """Largest staleness of the updates of phase one."""
        return max(self.staleness, default=0)

    def staleness_record(self) -> dict[str, Any]:
        """Return mean, maximum and histogram as a run record has them."""
        histogram = Counter(self.staleness)
        return {
            "mean": self.mean_staleness,
            "max": self.max_staleness,
            "histogram": [histogram[s] for s in range(self.max_staleness + 1)],
        }


@dataclass
class History:
    """The records of all epochs, the first of them taken before training."""

    epochs: list[EpochRecord] = field(default_factory=list)
    parallel: ParallelReport | None = None  # what a training by several ranks took beside

    def __getitem__(self, name: str) -> list[Any]:
        """Return a field of every epoch, for instance history["loss"].

        Raises
        ------
        KeyError
            Where `EpochRecord` has no such field; the message has those that there are.
        """
        names = [field.name for field in dataclasses.fields(EpochRecord)]
        if name not in names:
            raise KeyError(f"A history has no {name!r}. It has {', '.join(names)}.")
        return [getattr(record, name) for record in self.epochs]

    def __repr__(self) -> str:
        if not self.epochs:
            return "History(no epochs)"
        first, last = self.epochs[0], self.epochs[-1]
        scores = {
            f.name.replace("_", " "): value
            for f in dataclasses.fields(EpochRecord)
            if f.name.endswith(("loss", "accuracy"))
            and (value := getattr(last, f.name)) is not None
        }
        told = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
        told = f"{sum(last.nnz):,} connections" + (f"; {told}" if told else "")
        return f"History(epochs {first.epoch} to {last.epoch}, {told})"

    def __len__(self) -> int:
        return len(self.epochs)

    def __iter__(self) -> Iterator[EpochRecord]:
        return iter(self.epochs)

    @property
    def best_test_accuracy(self) -> float | None:
        """Best test accuracy over the epochs (the paper's protocol)."""
        return max((a for a in self["test_accuracy"][1:] if a is not None), default=None)

    def to_list(self) -> list[dict[str, Any]]:
        """Return the records as plain dictionaries."""
        return [dataclasses.asdict(record) for record in self.epochs]

    @classmethod
    def from_list(cls, records: list[dict[str, Any]]) -> History:
        """Return the history that `to_list` was made from."""
        return cls([EpochRecord(**record) for record in records])

    def to_frame(self) -> pandas.DataFrame:
        """Return one table with a row an epoch; the curve within epochs is `curve_frame`."""
        import pandas

        return pandas.DataFrame(self.to_list()).drop(columns="curve").set_index("epoch")

    @property
    def curve(self) -> list[dict[str, Any]]:
        """The learning curve within epochs, a dictionary a point: see `curve_frame`."""
        return [point for record in self.epochs for point in record.curve]

    def curve_frame(self) -> pandas.DataFrame:
        """Return the learning curve within epochs, a row a point; empty with `curve_points` 0.

        Columns are `epoch`, with a fraction; `samples` of that epoch; `updates` so far; `loss` and
        `accuracy` (or R²) over a fixed part of the held-out rows; and the `seconds` that the point
        took. In phase two of a parallel training, where there is no whole model, `replica` is 1:
        the points are those of the first replica, and `samples` of its share.
        """
        import pandas

        columns = ["epoch", "samples", "updates", "loss", "accuracy", "seconds", "replica"]
        return pandas.DataFrame(self.curve, columns=columns)
