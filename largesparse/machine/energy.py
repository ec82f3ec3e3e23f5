"""Energy that the processors of this machine have used, from RAPL's counters (Linux).

with EnergyMeter() as meter:
    train()
meter.joules  # None where the counters cannot be read
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import NamedTuple

POWERCAP = Path("/sys/class/powercap")
SECONDS_BETWEEN = 60.0  # a counter wraps around after 10 minutes at the earliest, at 400 W
ZONE = re.compile(r"intel-rapl:\d+(:\d+)?")  # the name on AMD's processors too


class Counter(NamedTuple):
    """A counter of energy in microjoules, which starts again at 0 after `largest`."""

    path: Path
    largest: int


def find_counters(folder: str | Path = POWERCAP) -> list[Counter]:
    """Return the counters that together are what processors and memory use, each watt once.

    These are the packages, and the memory beside them. The parts of a package (cores, graphics)
    are in the package already; the whole platform, which few machines tell, is left out.
    """
    counters = []
    for zone in sorted(Path(folder).glob("intel-rapl:*")):
        try:
            name = (zone / "name").read_text().strip()
            largest = int((zone / "max_energy_range_uj").read_text())
        except (OSError, ValueError):
            continue
        if ZONE.fullmatch(zone.name) and (name.startswith("package") or name == "dram"):
            counters.append(Counter(zone / "energy_uj", largest))
    return counters


class EnergyMeter:
    """Adds up the energy between entering and leaving a `with` block: `joules`.

    It is that of the whole machine, whatever else runs there; None where there are no counters, or
    the user may not read them (on most systems only root may). A thread looks at the counters
    every few `seconds`, so that none wraps around twice unseen.
    """

    def __init__(self, folder: str | Path = POWERCAP, *, seconds: float = SECONDS_BETWEEN) -> None:
        self.joules: float | None = None
        self._counters = find_counters(folder)
        self._seconds = seconds
        self._last: list[int] = []
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="energy")

    def __enter__(self) -> EnergyMeter:
        self._last = self._read() or []
        if self._last:
            self.joules = 0.0
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self._end.set()
            self._thread.join()
            self.update()

    def update(self) -> None:
        """Add what was used since the last look; a counter that has failed makes all unknown."""
        with self._lock:
            if self.joules is None:
                return
            now = self._read()
            if now is None:
                self.joules = None
                return
            for counter, before, after in zip(self._counters, self._last, now, strict=True):
                used = after - before if after >= before else after + counter.largest - before
                self.joules += used / 1e6
            self._last = now

    def _read(self) -> list[int] | None:
        """Return what all counters say, None where one cannot be read."""
        try:
            return [int(counter.path.read_text()) for counter in self._counters]
        except (OSError, ValueError):
            return None

    def _watch(self) -> None:
        while not self._end.wait(self._seconds):
            self.update()
