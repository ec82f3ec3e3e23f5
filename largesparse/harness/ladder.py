"""A ladder of ever larger networks, run within a time limit: what a size will take, and what fits.

The time of a run is predicted from what the runs before have measured: seconds a connection for
initialisation and evolution, and a connection and sample for training and for prediction.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .presets import EXTREME_LOSS_ROWS

RUNGS = (1_000_000, 5_000_000, 10_000_000, 20_000_000, 50_000_000, 100_000_000, 125_800_000)
TABLE_4_SAMPLES = 10_000
MOST_GROWTH = 0.5  # of the cost, as a power of the connections
LEAST_STEPS = 2  # updates of a shortened epoch


class Length(NamedTuple):
    """How long a run is."""

    samples: int  # training and test rows together
    epochs: int

    def parts(self, test_fraction: float) -> tuple[int, int]:
        """Return training and test rows."""
        test = math.ceil(test_fraction * self.samples)
        return self.samples - test, test


class Costs(NamedTuple):
    """Seconds a connection; of training and inference, a connection and sample."""

    connections: int  # where it was measured
    init: float
    training: float
    inference: float
    evolution: float
    overhead: float = 20.0  # seconds of start and end


# Before anything is measured: what two cores of 2020 hardly exceed.
GUESS = Costs(0, 3e-7, 4e-9, 2e-9, 5e-7)
FIELDS = {  # of a run record -> of `Costs`
    "init_s": "init",
    "epoch_s": "training",
    "inference_s": "inference",
    "evolution_s": "evolution",
}


def measured_costs(record: Mapping[str, Any]) -> Costs:
    """Return the costs that a run record tells (see `records.record_rows`), or else the guess."""

    def cost(name: str, per: float) -> float:
        values = record[name] if isinstance(record[name], list) else [record[name]]
        found = [value for value in values if value is not None]
        return statistics.median(found) / per if found and per else getattr(GUESS, FIELDS[name])

    n = int(record["connections"])
    return Costs(
        n,
        cost("init_s", n),
        cost("epoch_s", n * (record["train_samples"] or 0)),
        cost("inference_s", n * (record["test_samples"] or 0)),
        cost("evolution_s", n),
    )


def extrapolate(measured: Sequence[Costs], connections: int) -> Costs:
    """Return the costs that a network with so many connections is expected to have.

    Costs rise with the size, since caches hold a smaller share. The power by which they rose
    between the last two sizes is continued, within 0 and 0.5; where only one is known, 0.2.
    """
    if not measured:
        return GUESS._replace(connections=connections)
    *before, last = sorted(measured, key=lambda costs: costs.connections)
    ratio = max(1.0, connections / last.connections)
    found = {}
    for name in FIELDS.values():
        power, cost = 0.2, getattr(last, name)
        if before and last.connections > before[-1].connections:
            cost_before = getattr(before[-1], name)
            rise = math.log(cost / cost_before) if cost_before > 0 < cost else 0.0
            power = rise / math.log(last.connections / before[-1].connections)
        found[name] = cost * ratio ** min(max(power, 0.0), MOST_GROWTH)
    return last._replace(connections=connections, **found)


def predicted_seconds(costs: Costs, length: Length, test_fraction: float) -> float:
    """Return the seconds of a whole run of 1M neurons or more: in an epoch training, loss and
    accuracy after it, and an evolution."""
    train, test = length.parts(test_fraction)
    looks = length.epochs * (test + min(train, EXTREME_LOSS_ROWS))
    each = costs.init + length.epochs * (costs.training * train + costs.evolution)
    return costs.overhead + costs.connections * (each + costs.inference * looks)


def choose_length(
    costs: Costs, wanted: Length, seconds: float, *, batch_size: int, test_fraction: float
) -> Length | None:
    """Return the longest run of at most the length wanted that fits into so many seconds.

    Epochs become fewer before samples do, by halves; None where nothing fits.
    """
    least = math.ceil(LEAST_STEPS * batch_size / (1 - test_fraction))
    samples = wanted.samples
    tried = [Length(samples, epochs) for epochs in range(wanted.epochs, 0, -1)]
    while samples > least:
        samples = max(least, samples // 2)
        tried.append(Length(samples, 1))
    for length in tried:
        if predicted_seconds(costs, length, test_fraction) <= seconds:
            return length
    return None
