"""How a training is spread over ranks."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from ..errors import ParameterError, check_range
from ..model.config import TrainingConfig
from .comm.transfer import CHUNK_BYTES, check_chunk_bytes

JOINED = ("wassp", "allreduce")  # algorithms that join the workers' mini-batches
PHASE_ONE_SHARE = 0.7  # of the epochs
WARM_UP_EPOCHS = 5.0  # of WASSP's scaled learning rate (Goyal et al., 2017)


@dataclass(frozen=True)
class ParallelOptions:
    """How a training is spread over ranks; see `train_wasap` for what the fields mean."""

    algorithm: str  # wasap | wassp | allreduce (WASSP without a server)
    phase_one_epochs: int
    slots: int | None = None
    ranks_per_node: int | None = None
    chunk_bytes: int = CHUNK_BYTES
    staleness_power: float = 0.0
    delay_compensation: float = 0.0
    initial_rate_factor: float = 1.0
    initial_rate_epochs: float = 0.0

    def __post_init__(self) -> None:
        owner = "parallel training"
        check_range("phase_one_epochs", self.phase_one_epochs, owner, low=1, integer=True)
        for name in ("slots", "ranks_per_node"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), owner, low=1, integer=True)
        check_chunk_bytes(self.chunk_bytes)
        check_range("staleness_power", self.staleness_power, owner, low=0, high=10)
        check_range("delay_compensation", self.delay_compensation, owner, low=0, high=1e6)
        factor = self.initial_rate_factor
        check_range("initial_rate_factor", factor, owner, low=0, high=1e6, low_open=True)
        check_range("initial_rate_epochs", self.initial_rate_epochs, owner, low=0)

    @property
    def most_slots(self) -> int | None:
        """Slots that a node may have; None is as many as cores."""
        return sys.maxsize if self.algorithm == "allreduce" else self.slots

    @property
    def slots_each(self) -> int:
        """Slots that a worker on another node than rank 0's can use."""
        return 2 if self.algorithm == "wasap" and self.slots is not None else 1

    def rate_factor(self, progress: float, staleness: int, workers: int) -> float:
        """Return the factor of the learning rate in phase one, after so many epochs (`progress`).

        Staleness counts the updates made between a gradient's weights and its own.
        """
        if self.algorithm == "wasap":
            initial = self.initial_rate_factor if progress < self.initial_rate_epochs else 1.0
            return initial * float((1 + staleness) ** -self.staleness_power)
        return 1 + (workers - 1) * min(1.0, progress / WARM_UP_EPOCHS)


def phase_one_length(epochs: int, given: int | None = None) -> int:
    """Return the number of epochs of phase one, by default 0.7 of all and at least 1."""
    if given is None:
        return max(1, math.floor(PHASE_ONE_SHARE * epochs))
    check_range("phase_one_epochs", given, "parallel training", low=1, integer=True)
    if given > epochs:
        raise ParameterError(
            "The 'phase_one_epochs' parameter of parallel training must be at most the number of "
            f"epochs, {epochs}. Got {given} instead."
        )
    return given


def check_config(config: TrainingConfig) -> None:
    """Refuse what a training by one process can have, and one by several ranks cannot.

    Raises
    ------
    ParameterError
    """
    refused = {
        "validation_fraction": (0, "Pass the rows to watch as 'test'."),
        "evolve_output": (False, "The average of replicas would not keep every output's "
            "connections."),
        "redistribute": (False, "The memory that ranks share has no room for layers that become "
            "larger."),
        "average_decay": (0, "The result is an average of replicas."),
    }  # fmt: skip
    for name, (wanted, why) in refused.items():
        if (found := getattr(config, name)) != wanted:
            raise ParameterError(
                f"The {name!r} parameter must be {wanted} in parallel training. Got {found} "
                f"instead. {why}"
            )
