"""Two files of `largesparse bench`, figure by figure: faster, slower, or one cannot tell.

Between two runs a machine's speed changes for reasons that no repeat within a run shows. What it
changes by is told by the *controls*: the machine's limits and other libraries, which no change of
largesparse changes. The median of their ratios is the machine's own, by which those of the figures
are divided; what the controls still differ by is the noise between the runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..uncertainty import LEVEL, NAN, UNCLEAR, Ratio, mean_ratio, ratio_of
from .results import Bench, Figure

NORMAL = 1.4826  # standard deviations of a normal error in its median size
OF_MEDIAN = 1.2533  # the error of a median of normal errors, in that of their mean
LEAST_NOISE = 0.03  # standard deviation of a figure between two runs of the same code, at least
UNKNOWN_NOISE = 0.06  # where there are fewer than three controls
LEAST_CONTROLS = 3
MACHINE = ("cpu", "cores", "threads")  # what two runs on one machine have in common


class Drift(NamedTuple):
    """What two runs of the same code differ by.

    Attributes
    ----------
    ratio : float
        New / old of the machine: the median of the controls', or with fewer than three of them the
        reference kernel's.
    spread : float
        Standard deviation of the logarithm of a figure's ratio around it.
    controls : int
    """

    ratio: float
    spread: float
    controls: int

    def noise(self, figures: int = 1) -> float:
        """Return half the 95 % interval, as a share, of the mean of so many figures' ratios.

        By Student's quantile: the figures have errors of their own, the drift one that all share.
        """
        from scipy import stats

        known = self.controls >= LEAST_CONTROLS
        quantile = stats.t.ppf((1 + LEVEL) / 2, self.controls - 1) if known else 2.0
        shared = OF_MEDIAN**2 / self.controls if known else 1.0
        return float(quantile * self.spread * math.sqrt(1 / figures + shared))


def drift_between(old: Bench, new: Bench) -> Drift:
    """Return what unchanged code differs by in two runs, by their controls."""
    found = [
        math.log(_ratio(one, other).value)
        for one in old.figures
        if one.control and (other := new.figure(one.name)) is not None
    ]
    if len(found) < LEAST_CONTROLS:
        times = [[t for f in bench.figures for t in f.reference_s] for bench in (old, new)]
        ratio = float(np.median(times[1]) / np.median(times[0])) if all(times) else 1.0
        return Drift(ratio, UNKNOWN_NOISE, len(found))
    middle = float(np.median(found))
    spread = NORMAL * float(np.median(np.abs(np.subtract(found, middle))))
    return Drift(math.exp(middle), max(LEAST_NOISE, spread), len(found))


def compare_benches(old: Bench, new: Bench) -> pd.DataFrame:
    """Return a row for every figure that both files have, and for every group of such.

    A group are the figures with the same beginning, such as the steps of a backend: its ratio is
    the geometric mean of theirs, of which one can tell smaller differences.

    Returns
    -------
    DataFrame
        `figure`, of a group with an asterisk, as "step/fused/*"; `figures`, how many it is of;
        `old_s` and `new_s`, medians (geometric means of them); `ratio`, `low`, `high`: new / old
        with its 95 % interval; the same divided by the machine's (see `drift_between`), as
        `by_controls`, `low_by_controls` and `high_by_controls`, whose interval has the noise
        between the runs in it; `control`; and `verdict`, which follows from the latter: "faster",
        "slower" or "cannot tell".
    """
    drift = drift_between(old, new)
    pairs = [(one, other) for one in old.figures if (other := new.figure(one.name)) is not None]
    rows = [_row(one.name, [(one, other)], drift) for one, other in pairs]
    groups: dict[str, list[tuple[Figure, Figure]]] = {}
    for one, other in pairs:
        if _ratio(one, other).known:
            groups.setdefault(one.name.rpartition("/")[0], []).append((one, other))
    rows += [_row(f"{name}/*", of, drift) for name, of in groups.items() if len(of) > 1]
    return pd.DataFrame(rows, columns=COLUMNS)


OF_CONTROLS = ["by_controls", "low_by_controls", "high_by_controls"]
COLUMNS = ["figure", "figures", "old_s", "new_s", "ratio", "low", "high", *OF_CONTROLS]
COLUMNS += ["control", "verdict"]


def _ratio(old: Figure, new: Figure) -> Ratio:
    return ratio_of(new.times_s, old.times_s, paired=False)


def _mean(values: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(values))))


def _row(name: str, pairs: Sequence[tuple[Figure, Figure]], drift: Drift) -> dict[str, Any]:
    """Return the row of a figure, or of several."""
    ratio = mean_ratio([_ratio(*pair) for pair in pairs])
    own = Ratio(*(value / drift.ratio for value in ratio))
    wide = own.widened(drift.noise(len(pairs))) if own.known else own
    old, new = (_mean([float(np.median(f.times_s)) for f in of]) for of in zip(*pairs, strict=True))
    row: dict[str, Any] = {"figure": name, "figures": len(pairs), "old_s": old, "new_s": new}
    row |= dict(zip(("ratio", "low", "high"), ratio, strict=True))
    row |= dict(zip(OF_CONTROLS, wide, strict=True))
    return row | {"control": all(one.control for one, _ in pairs), "verdict": wide.verdict()}


def show_comparison(old: Bench, new: Bench) -> str:
    """Return the comparison as text: what can be told first, then what cannot."""
    table = compare_benches(old, new)
    if table.empty:
        return "The two files have no figure in common."
    order = {"slower": 0, "faster": 1, UNCLEAR: 2}
    table = table.sort_values("verdict", key=lambda words: words.map(order), kind="stable")
    single = table["figures"] == 1
    lines = [_shown(table[single]), ""]
    if not single.all():
        lines += [_shown(table[~single]), ""]
    counts = table[single]["verdict"].value_counts()
    told = ", ".join(f"{count} {word}" for word, count in counts.items())
    drift = drift_between(old, new)
    lines += [f"{single.sum()} figures: {told}."]
    judge = "controls" if drift.controls >= LEAST_CONTROLS else "reference kernel"
    lines += [
        f"The machine takes {drift.ratio:.2f} of the time by its {judge}, and a figure differs by "
        f"±{100 * drift.noise():.0f} % more between two runs: the last ratios are divided by the "
        "one and have the other in their intervals. Verdicts are by these."
    ]
    differing = differences(old, new)
    lines += [f"{name}: {first} and {second}" for name, (first, second) in differing.items()]
    if any(name in differing for name in MACHINE):
        lines.append(
            "The controls differ by the machine, too: of two machines read new / old, the verdicts "
            "are for one."
        )
    return "\n".join(lines)


def _shown(table: pd.DataFrame) -> str:
    shown = pd.DataFrame(
        {
            "figure": table["figure"] + table["control"].map({True: " (control)", False: ""}),
            "old ms": (1e3 * table["old_s"]).map("{:.4g}".format),
            "new ms": (1e3 * table["new_s"]).map("{:.4g}".format),
            "new / old": _texts(table, "ratio", "low", "high"),
            "by the controls": _texts(table, *OF_CONTROLS),
            "new is": table["verdict"],
        }
    )
    return shown.to_string(index=False)


def differences(old: Bench, new: Bench) -> dict[str, tuple[Any, Any]]:
    """Return what a comparison may follow from beside the code: another processor, threads."""
    names = (*MACHINE, "version", "commit")
    pairs = {name: (getattr(old, name), getattr(new, name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _texts(table: pd.DataFrame, *names: str) -> list[str]:
    rows = table[list(names)].astype(float).fillna(NAN).to_numpy().tolist()
    return [str(Ratio(*row)) for row in rows]
