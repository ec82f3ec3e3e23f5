"""Two files of `largesparse bench`, figure by figure: faster, slower, or one cannot tell.

Between two runs a machine's speed changes for reasons that no repeat within a run shows. So every
time is divided by that of the reference kernel beside it, and what the *controls* still differ by
is the noise between the runs: they are the machine's limits and other libraries, which no change of
largesparse changes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from ..uncertainty import LEVEL, NAN, UNCLEAR, Ratio, ratio_of
from .results import Bench, Figure

NORMAL = 1.4826  # standard deviations of a normal error in its median size
LEAST_NOISE = 0.06  # half the interval of what two runs differ by at least
UNKNOWN_NOISE = 0.12  # where there are fewer than three controls
LEAST_CONTROLS = 3
MACHINE = ("cpu", "cores", "threads")  # what two runs on one machine have in common


def ratios(old: Figure, new: Figure) -> tuple[Ratio, Ratio]:
    """Return new / old of two runs: of the times, and of the times by the reference kernel's."""
    both = [np.array(figure.times_s) for figure in (old, new)]
    by_reference = [
        times / figure.reference_s for times, figure in zip(both, (old, new), strict=True)
    ]
    return ratio_of(both[1], both[0], paired=False), ratio_of(
        by_reference[1], by_reference[0], paired=False
    )


def noise_between(old: Bench, new: Bench) -> float:
    """Return half the 95 % interval, as a share, of what unchanged code differs by in two runs.

    It is Student's quantile times the spread of the logarithms of the controls' ratios around 0, by
    their median size: a control that lies in two states, such as threads on one core or on two,
    tells of its own state, which the bootstrap of each figure sees.
    """
    from scipy import stats

    found = [
        math.log(ratios(one, other)[1].value)
        for one in old.figures
        if one.control and (other := new.figure(one.name)) is not None
    ]
    if len(found) < LEAST_CONTROLS:
        return UNKNOWN_NOISE
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, len(found)))
    return max(LEAST_NOISE, quantile * NORMAL * float(np.median(np.abs(found))))


def compare_benches(old: Bench, new: Bench) -> pd.DataFrame:
    """Return a row for every figure that both files have.

    Returns
    -------
    DataFrame
        `figure`; `old_s` and `new_s`, medians; `ratio`, `low`, `high`: new / old with its 95 %
        interval; the same of times by the reference kernel's, as `by_reference`, `low_by_reference`
        and `high_by_reference`, whose interval has the noise between the runs in it; `control`; and
        `verdict`, which follows from the latter: "faster", "slower" or "cannot tell".
    """
    between = noise_between(old, new)
    rows = []
    for one in old.figures:
        other = new.figure(one.name)
        if other is None:
            continue
        raw, normalised = ratios(one, other)
        wide = normalised.widened(between) if normalised.known else normalised
        row: dict[str, Any] = {"figure": one.name}
        row |= {"old_s": np.median(one.times_s), "new_s": np.median(other.times_s)}
        row |= dict(zip(("ratio", "low", "high"), raw, strict=True))
        names = ("by_reference", "low_by_reference", "high_by_reference")
        row |= dict(zip(names, wide, strict=True))
        rows.append(row | {"control": one.control, "verdict": wide.verdict()})
    columns = ["figure", "old_s", "new_s", "ratio", "low", "high", "by_reference"]
    columns += ["low_by_reference", "high_by_reference", "control", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def show_comparison(old: Bench, new: Bench) -> str:
    """Return the comparison as text: what can be told first, then what cannot."""
    table = compare_benches(old, new)
    if table.empty:
        return "The two files have no figure in common."
    order = {"slower": 0, "faster": 1, UNCLEAR: 2}
    table = table.sort_values("verdict", key=lambda words: words.map(order), kind="stable")
    shown = pd.DataFrame(
        {
            "figure": table["figure"] + table["control"].map({True: " (control)", False: ""}),
            "old ms": (1e3 * table["old_s"]).map("{:.4g}".format),
            "new ms": (1e3 * table["new_s"]).map("{:.4g}".format),
            "new / old": _texts(table, "ratio", "low", "high"),
            "by the reference kernel": _texts(
                table, "by_reference", "low_by_reference", "high_by_reference"
            ),
            "new is": table["verdict"],
        }
    )
    counts = table["verdict"].value_counts()
    told = ", ".join(f"{count} {word}" for word, count in counts.items())
    lines = [shown.to_string(index=False), "", f"{len(table)} figures: {told}."]
    lines += [
        f"Noise between the runs, by the controls: ±{100 * noise_between(old, new):.0f} %, which "
        "the intervals by the reference kernel have in them. Verdicts are by these."
    ]
    differing = differences(old, new)
    lines += [f"{name}: {first} and {second}" for name, (first, second) in differing.items()]
    if any(name in differing for name in MACHINE):
        lines.append(
            "The controls differ by the machine, too: of two machines read new / old, the verdicts "
            "are for one."
        )
    return "\n".join(lines)


def differences(old: Bench, new: Bench) -> dict[str, tuple[Any, Any]]:
    """Return what a comparison may follow from beside the code: another processor, threads."""
    names = (*MACHINE, "version", "commit")
    pairs = {name: (getattr(old, name), getattr(new, name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _texts(table: pd.DataFrame, *names: str) -> list[str]:
    rows = table[list(names)].astype(float).fillna(NAN).to_numpy().tolist()
    return [str(Ratio(*row)) for row in rows]
