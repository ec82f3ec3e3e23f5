"""What else the machine did while something was measured: a part of every record.

with NoiseMeter() as meter:
    train()         # calls tick() now and then, between what is timed
meter.result()
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ContextDecorator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

STEAL, WAITED, SPREAD = "steal", "waited", "spread"
HEAVY_STEAL = 0.05  # from which on a figure is not shown without saying so
NOISY, VERY_NOISY = 0.1, 0.25  # noise scores
SIZE, DEGREE, BATCH = 2000, 20, 64  # of the reference kernel: 0.6 MiB, which a cache of a core has
CALLS = 5  # of which the fastest counts

_meters: list[NoiseMeter] = []  # those whose `with` blocks this process is in


class NoiseMeter(ContextDecorator):
    """Measures steal, load, and how the speed of a core changed, from entering to leaving a block.

    `steal` is the share of the processor time that was asked for and went to other guests of the
    host (Linux tells it, other systems do not: None); `load` the cores that were busy on the
    average, with whatever runs on the machine; `cores` how many there are. `waited` is the share of
    the time that the measuring thread would have run and waited for a core, which others had (None
    but on Linux). `reference_s` are the times of a kernel that never changes (`reference_seconds`),
    before, between and after, and `spread` is their tenth to their ninetieth percentile, divided by
    their median. `score` is the largest of steal, waited and spread: 0 is a quiet machine. It also
    decorates functions.
    """

    def __init__(self) -> None:
        self.reference_s: list[float] = []
        self._result: dict[str, Any] | None = None

    def _recreate_cm(self) -> NoiseMeter:  # every call of a decorated function has its own
        return NoiseMeter()

    def __enter__(self) -> NoiseMeter:
        _meters.append(self)
        self._started, self._before = time.monotonic(), psutil.cpu_times()
        self._thread = threading.get_native_id()
        self._ran = core_seconds(self._thread)
        self.tick()
        return self

    def __exit__(self, *_: object) -> None:
        self._result = self.result()
        _meters.remove(self)

    def tick(self) -> None:
        """Time the reference kernel."""
        self.reference_s.append(reference_seconds())

    def result(self) -> dict[str, Any]:
        """Return what was measured so far, or within the block that was left."""
        if self._result is not None:
            return self._result
        self.tick()
        used = busy_and_stolen(self._before, psutil.cpu_times())
        seconds = max(time.monotonic() - self._started, 1e-9)
        low, median, high = np.quantile(self.reference_s, (0.1, 0.5, 0.9))
        spread = (high - low) / median
        steal = used.get("steal")
        waited = _waited(self._ran, core_seconds(self._thread))
        return {
            STEAL: steal,
            WAITED: waited,
            "load": used["busy"] / seconds,
            "cores": psutil.cpu_count() or 1,
            "reference_s": list(self.reference_s),
            SPREAD: float(spread),
            "score": float(max(steal or 0.0, waited or 0.0, spread)),
        }


def tick() -> None:
    """Time the reference kernel for the innermost meter, where there is one."""
    if _meters:
        _meters[-1].tick()


def noise_so_far() -> dict[str, Any] | None:
    """Return the result of the innermost meter as it is now; None where there is none."""
    return _meters[-1].result() if _meters else None


def busy_and_stolen(before: Any, after: Any) -> dict[str, float]:
    """Return what lies between two answers of `psutil.cpu_times`.

    `busy` is in seconds of all cores. `steal` is the share of the time asked for, which is the busy
    and the stolen one together; left out where the system does not tell it.
    """
    spent = {name: max(0.0, getattr(after, name) - getattr(before, name)) for name in after._fields}
    # What guests of this machine use is in `user` and `nice` already.
    idle = ("idle", "iowait", "steal", "guest", "guest_nice")
    busy = sum(seconds for name, seconds in spent.items() if name not in idle)
    if "steal" not in spent:
        return {"busy": busy}
    asked = busy + spent["steal"]
    return {"busy": busy, "steal": spent["steal"] / asked if asked else 0.0}


def core_seconds(thread: int) -> tuple[float, float] | None:
    """Return how long a thread of this process ran and how long it waited for a core, in seconds.

    None where the system does not tell.
    """
    try:
        text = Path(f"/proc/self/task/{thread}/schedstat").read_text(encoding="ascii")
        ran, waited, _ = (int(word) for word in text.split())
    except (OSError, ValueError):
        return None
    return 1e-9 * ran, 1e-9 * waited


def _waited(before: tuple[float, float] | None, after: tuple[float, float] | None) -> float | None:
    """Return the waiting's share of what lies between two answers of `core_seconds`."""
    if before is None or after is None:
        return None
    ran, waited = (max(0.0, late - early) for early, late in zip(before, after, strict=True))
    return waited / (ran + waited) if ran + waited else 0.0


def reference_seconds() -> float:
    """Return the time of the reference kernel: a product by SciPy on one core, about 2 ms.

    It is the fastest of a few calls, since what is asked for is the speed of the core.
    """
    call = reference_kernel()
    times = []
    for _ in range(CALLS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


@functools.cache
def reference_kernel() -> Callable[[], Any]:
    """Return the product of a sparse matrix (2000, 2000), 20 to a row, and X (2000, 64)."""
    from scipy.sparse import csr_array

    rng = np.random.default_rng(0)
    indices = rng.integers(SIZE, size=SIZE * DEGREE, dtype=np.int32)
    indptr = np.arange(0, SIZE * DEGREE + 1, DEGREE, dtype=np.int32)
    values = np.ones(SIZE * DEGREE, dtype=np.float32)
    matrix = csr_array((values, indices, indptr), shape=(SIZE, SIZE))
    X = np.ones((SIZE, BATCH), dtype=np.float32)
    matrix @ X
    return functools.partial(matrix.__matmul__, X)


def is_heavy(noise: Any) -> bool:
    """Say whether a record's noise tells of heavy steal."""
    return (_number(noise, STEAL) or 0.0) >= HEAVY_STEAL


def _number(noise: Any, name: str) -> float | None:
    """Return what a record, which others may have written, has by a name if it is a number."""
    value = noise.get(name) if isinstance(noise, Mapping) else None
    return value if isinstance(value, int | float) else None


def describe_noise(noise: Any) -> str:
    """Return a few words about a record's noise; none where nothing was recorded.

    Examples
    --------
    >>> describe_noise({"steal": 0.12, "spread": 0.3, "score": 0.3})
    'HEAVY STEAL 12 %, very noisy 0.30'
    >>> describe_noise({"steal": 0.0, "spread": 0.02, "score": 0.02})
    'quiet 0.02'
    """
    score = _number(noise, "score")
    if score is None:
        return ""
    word = "very noisy" if score >= VERY_NOISY else "noisy" if score >= NOISY else "quiet"
    steal = f"HEAVY STEAL {noise[STEAL]:.0%}, ".replace("%", " %") if is_heavy(noise) else ""
    return f"{steal}{word} {score:.2f}"
