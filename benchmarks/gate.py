"""A gate: has a training step or an evolution become slower than the references of this CPU say?

    python -m benchmarks.gate                   # passes, or fails with exit status 1
    python -m benchmarks.gate --renew           # writes this CPU's references anew
    python -m benchmarks.gate --times 20        # how often it passes
    python -m benchmarks.gate --plant 1.3       # as though the code took 30 % longer: it must fail

Both are timed by one thread, in turns with a product by SciPy, as `step.Relative` and
`evolution.Relative` of asv are, so that a slow core slows both. The references, ratios to that
product, and their tolerances lie in benchmarks/references.json, by the CPU's name. Each is measured
two times, and up to six times while the median of these is above half the tolerance; above all of
it then fails. An unknown CPU passes, and is told how to be added.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .common import LADDER, beside_scipy, find, make_batch, make_network, warm_up
from .evolution import ZETA, evolve
from .step import make_trainer

cpu_model = find("machine.hardware.cpu_model")

REFERENCES = Path(__file__).with_name("references.json")
NEURONS = LADDER[0]
SECONDS = 1.5  # of a measurement
LEAST_TRIES, MOST_TRIES = 2, 6
FAST = 0.1  # the quantile of the times that is compared: what a neighbour slows is above it
RENEWING = 7  # measurements that a reference is the median of
TOLERANCE = (0.12, 0.18)  # at least, and at most: a slow-down of 30 % must be beyond


def cpu_kind() -> str:
    """Return the name of the CPU, and family and model where the name may mean several kinds."""
    name = cpu_model() or "unknown"
    with suppress(OSError):  # not Linux
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        numbers = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
        if {"cpu family", "model"} <= set(numbers):
            name += f", family{numbers['cpu family']}, model{numbers['model']}"
    return name


def calls() -> dict[str, tuple[Callable[[], object], Any]]:
    """Return what is measured, and the layer whose product by SciPy it is compared with."""
    warm_up("fused")
    trainer, batch = make_trainer(NEURONS), make_batch()
    layer = copy.deepcopy(make_network(NEURONS).layers[1])
    rng = np.random.default_rng(0)
    return {
        "step": (lambda: trainer.step(*batch), trainer.network.layers[1]),
        "evolution": (lambda: evolve(layer, ZETA, rng), layer),
    }


def slower(call: Callable[[], object], factor: float) -> Callable[[], object]:
    """Return a call that takes `factor` times as long."""

    def longer() -> object:
        started = time.perf_counter()
        result = call()
        end = started + factor * (time.perf_counter() - started)
        while time.perf_counter() < end:
            pass
        return result

    return longer if factor > 1 else call


def ratio(call: Callable[[], object], layer: Any) -> float:
    """Return the ratio of a measurement, of the fast ones among the times of both."""
    ours, theirs = (
        np.quantile(times, FAST) for times in beside_scipy(call, layer, seconds=SECONDS)
    )
    return float(ours / theirs)


def check(name: str, reference: dict[str, float], measure: Callable[[], float]) -> bool:
    """Measure until the median is well within the tolerance; print what was found.

    That is half the tolerance, or all of it after the last try.
    """
    half, limit = (reference["ratio"] * (1 + part * reference["tolerance"]) for part in (0.5, 1))
    found = [measure() for _ in range(LEAST_TRIES)]
    while statistics.median(found) > half and len(found) < MOST_TRIES:
        found.append(measure())
    passed = statistics.median(found) <= limit
    tried = ", ".join(f"{value:.3f}" for value in found)
    print(
        f"{name}: {tried} of SciPy's product, reference {reference['ratio']:.3f}, at most "
        f"{limit:.3f}: {'passed' if passed else 'SLOWER'}",
        flush=True,
    )
    return passed


def renew(measures: dict[str, Callable[[], float]]) -> dict[str, dict[str, float]]:
    """Return new references: in turns, since the machine's state changes."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(RENEWING):
        for name, measure in measures.items():
            found[name].append(measure())
    least, most = TOLERANCE
    return {
        name: {
            "ratio": round(statistics.median(values), 4),
            "tolerance": round(min(most, max(least, 2 * np.ptp(values) / np.median(values))), 3),
        }
        for name, values in found.items()
    }


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--renew", action="store_true", help="write the references of this CPU")
    add("--times", type=int, default=1, help="checks, one after the other (%(default)s)")
    add("--plant", type=float, default=1.0, help="take so many times as long (%(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Check, or renew; return the exit status."""
    options = make_parser().parse_args(argv)
    cpu = cpu_kind()
    references = json.loads(REFERENCES.read_text(encoding="utf-8"))
    measures = {
        name: partial(ratio, slower(call, options.plant), layer)
        for name, (call, layer) in calls().items()
    }
    if options.renew:
        references[cpu] = renew(measures)
        text = json.dumps(references, indent=2, sort_keys=True) + "\n"
        REFERENCES.write_text(text, encoding="utf-8")
        print(f"{cpu}: {references[cpu]} written to {REFERENCES.name}. Commit it, and say why.")
        return 0
    if cpu not in references:
        print(f"No reference for {cpu!r}: passed. To add it to {REFERENCES.name}:")
        found = {name: {"ratio": round(measure(), 4)} for name, measure in measures.items()}
        told = {name: one | {"tolerance": TOLERANCE[-1]} for name, one in found.items()}
        print(json.dumps({cpu: told}, indent=2))
        print("or, from several measurements: python -m benchmarks.gate --renew")
        return 0
    passed = 0
    for _ in range(options.times):
        # A list, since both are measured even where the first has failed.
        passed += all([check(name, references[cpu][name], one) for name, one in measures.items()])
    if options.times > 1:
        print(f"passed {passed} of {options.times} times")
    if passed < options.times:
        print(
            "A change has made it slower, or the machine is disturbed. Where it is meant to be: "
            "python -m benchmarks.gate --renew, and commit benchmarks/references.json."
        )
    return int(passed < options.times)


if __name__ == "__main__":
    sys.exit(main())
