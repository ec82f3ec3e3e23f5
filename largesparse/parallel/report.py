"""What a parallel training took, beside its history."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


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
