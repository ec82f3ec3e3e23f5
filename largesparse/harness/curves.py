"""Learning curves from run records: accuracy against updates, and along a ladder of sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .pages import new_figure
from .records import record_rows
from .series import marker_of, series_of, told

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

COLUMNS = (
    *("run", "series", "neurons", "seed", "epoch", "updates", "train_s"),
    *("accuracy", "standard_error", "loss", "rows"),
)


def curve_table(records: pd.DataFrame) -> pd.DataFrame:
    """Return the learning curves of the newest run of every series, size and seed.

    Parameters
    ----------
    records : DataFrame
        From `records.read_records`. Runs of drivers other than bigmodel are left out, and those
        without a test accuracy.

    Returns
    -------
    DataFrame
        A row a point: `run`, its name in plots; `series` (see `series.series_of`), `neurons`,
        `seed`; `epoch` with a fraction; `updates` until then; `train_s`, seconds of training until
        then; `accuracy` and `loss`; and `rows`, "all" where these are over all test rows (after
        an epoch, without a loss) and "part" where over the fixed part of them of the curve. Points
        of phase two of a parallel training, which are those of one replica, are left out.
        `standard_error` is that of the accuracy over all test rows, from their number.
    """
    import pandas as pd

    kept = records[(records["kind"] == "bigmodel") & records["neurons"].notna()]
    kept = kept.sort_values("timestamp", na_position="first", kind="stable")
    runs = {(series_of(run), run["neurons"], run["seed"]): run for run in record_rows(kept)}
    several = {key[:2] for key, other in itertools.permutations(runs, 2) if key[:2] == other[:2]}
    rows = []
    for (series, neurons, seed), run in runs.items():
        name = f"{told('neurons', int(neurons))}, {series}"
        name += f", seed {seed}" if (series, neurons) in several else ""
        about = {"run": name, "series": series, "neurons": int(neurons), "seed": seed}
        rows += [about | point for point in _points(run)]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.sort_values(["neurons", "run", "epoch"], kind="stable").reset_index(drop=True)


def _points(run: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the points of a run, without its name."""
    epoch_s = [0.0 if seconds is None else seconds for seconds in run["epoch_s"] or []]
    ends = [0.0, *itertools.accumulate(epoch_s)]  # seconds of training at the ends of epochs
    for point in run["curve"] or []:
        if not point.get("replica"):
            whole = min(int(point["epoch"]), len(ends) - 1)
            part = point["epoch"] - whole
            seconds = ends[whole] + (part * epoch_s[whole] if whole < len(epoch_s) else 0.0)
            own = {name: point[name] for name in ("epoch", "updates", "accuracy", "loss")}
            yield own | {"standard_error": None, "train_s": seconds, "rows": "part"}
    each = -(-(run["train_samples"] or 0) // (run["batch_size"] or 1))
    for epoch, accuracy in enumerate(run["accuracy"] or []):
        if accuracy is not None and epoch < len(ends):
            found = {"epoch": float(epoch), "updates": epoch * each, "train_s": ends[epoch]}
            spread = None
            if run["test_samples"]:
                spread = math.sqrt(accuracy * (1 - accuracy) / run["test_samples"])
            found |= {"accuracy": accuracy, "standard_error": spread}
            yield found | {"loss": None, "rows": "all"}


def ladder_table(curves: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy and seconds of every size after the same number of updates.

    Parameters
    ----------
    curves : DataFrame
        From `curve_table`.

    Returns
    -------
    DataFrame
        A row a size of every series with two sizes or more: `series`, `neurons`, the common
        `updates`, `accuracy` over all test rows and `train_s`, means over the seeds (`runs`), and
        `standard_error`, of that mean, by the number of test rows. The updates are the most that
        all runs of the series have an accuracy after.
    """
    import pandas as pd

    rows = []
    for series, group in curves[curves["rows"] == "all"].groupby("series"):
        common = set.intersection(*(set(run["updates"]) for _, run in group.groupby("run")))
        if group["neurons"].nunique() < 2 or not common - {0}:
            continue
        chosen = group[group["updates"] == max(common)]
        for neurons, found in chosen.groupby("neurons"):
            about = {"series": series, "neurons": neurons, "updates": max(common)}
            means = {name: found[name].mean() for name in ("accuracy", "train_s")}
            squares = pd.to_numeric(found["standard_error"]) ** 2
            means["standard_error"] = math.sqrt(squares.sum(skipna=False)) / len(found)
            rows.append(about | means | {"runs": len(found)})
    columns = ["series", "neurons", "updates", "accuracy", "standard_error", "train_s", "runs"]
    return pd.DataFrame(rows, columns=columns)


def curve_figures(curves: pd.DataFrame) -> dict[str, Figure]:
    """Return the plots that there are points for: `learning`, and along the sizes `ladder`.

    Parameters
    ----------
    curves : DataFrame
        From `curve_table`.
    """
    figures = {}
    if (curves["updates"] > 0).any():
        figures["learning"] = _learning(curves)
    if len(ladder := ladder_table(curves)):
        figures["ladder"] = _ladder(ladder)
    return figures


def _learning(curves: pd.DataFrame) -> Figure:
    """Draw accuracy against updates: lines over a part of the test rows, markers over all."""
    figure, (axes,) = new_figure()
    axes.set(title="learning curve", xlabel="updates", ylabel="accuracy on held-out rows")
    for number, (run, points) in enumerate(curves.groupby("run", sort=False)):
        colour = f"C{number % 10}"
        part, whole = (points[points["rows"] == rows] for rows in ("part", "all"))
        axes.plot(part["updates"], part["accuracy"], color=colour, linewidth=1)
        style: dict[str, Any] = {
            "marker": marker_of(number // 10),
            "linestyle": "--" if part.empty else "",
        }
        axes.plot(whole["updates"], whole["accuracy"], color=colour, label=run, **style)
    figure.legend(loc="outside lower center", fontsize="x-small")
    return figure


def _ladder(ladder: pd.DataFrame) -> Figure:
    """Draw accuracy (left) and seconds (right) against neurons, after as many updates.

    Bars are two standard errors of the accuracy up and down.
    """
    figure, (axes,) = new_figure()
    updates = sorted(set(ladder["updates"]))
    title = f"after {', '.join(map(str, updates))} updates"
    axes.set(title=title, xlabel="neurons", ylabel="test accuracy", xscale="log")
    seconds = axes.twinx()
    seconds.set(ylabel="seconds of training (dotted)", yscale="log")
    for number, (series, rows) in enumerate(ladder.groupby("series")):
        style: dict[str, Any] = {"color": f"C{number % 10}", "marker": marker_of(number // 10)}
        bars = 2 * rows["standard_error"]
        axes.errorbar(rows["neurons"], rows["accuracy"], bars, label=series, capsize=3, **style)
        seconds.plot(rows["neurons"], rows["train_s"], linestyle=":", fillstyle="none", **style)
    figure.legend(loc="outside lower center", fontsize="x-small")
    return figure
