"""What a run of `largesparse bench` shows: ten lines in the terminal, and an HTML page."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...errors import install_command
from ...machine.sizes import show_seconds
from ...training.memory import GIB
from ...training.memory_plan import counted
from .. import pages
from ..noise import describe_noise
from ..series import colour_of, short
from ..uncertainty import Ratio, fitted_exponent, ratio_of
from .results import Bench, Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

UNITS = {"bytes": ("GB/s", 1e9), "FLOP": ("GFLOP/s", 1e9), "samples": ("samples/s", 1.0)}
TITLES = {
    "limits": "The machine's limits",
    "step": "A training step, by backend and shape",
    "peers": "A training step of other libraries",
    "inference": "Prediction by processes",
    "ranks": "An epoch of a small training, by ranks",
    "ladder": "The phases of Table 4's sizes",
}
MOST_LINEAR = 20  # times the shortest bar, beyond which bars are drawn on a logarithmic axis
LADDER_PHASES = ("initialisation", "epoch", "inference", "evolution")


def rate_of(figure: Figure) -> str:
    """Return the median rate with its unit; nothing for a figure that has none."""
    if not figure.work or figure.unit not in UNITS or not figure.times_s:
        return ""
    unit, scale = UNITS[figure.unit]
    rate = figure.work / float(np.median(figure.times_s)) / scale
    return f"{rate:,.0f} {unit}" if rate >= 1000 else f"{rate:.3g} {unit}"


def summary(bench: Bench) -> list[str]:
    """Return ten lines about a run."""

    def line(title: str, names: dict[str, str]) -> str:
        found = {label: bench.figure(name) for label, name in names.items()}
        parts = [
            f"{label} {rate_of(one) or show_seconds(float(np.median(one.times_s)))}"
            for label, one in found.items()
            if one is not None
        ]
        return f"{title}: {', '.join(parts) or 'not measured'}"

    shapes = sorted({one.name.split("/")[2] for one in bench.figures if one.group == "step"})
    sizes = _sizes(bench)
    largest = {f"{phase}": f"ladder/{sizes[-1]}/{phase}" for phase in LADDER_PHASES if sizes}
    processes = {
        one.name.split("/")[1]: one.name for one in bench.figures if one.group == "inference"
    }
    jobs = {one.name.split("/")[1]: one.name for one in bench.figures if one.group == "ranks"}
    memory = "" if bench.memory_bytes is None else f", {bench.memory_bytes / GIB:.0f} GiB"
    size = f" of {sizes[-1]} neurons" if sizes else ""
    return [
        f"{bench.cpu}, {counted(bench.cores or 0, 'core')}{memory}; "
        f"{counted(bench.threads or 0, 'thread')} used",
        line("limits", {"memory": "limits/bandwidth", "BLAS": "limits/arithmetic, float32"}),
        line(
            "gathered rows",
            {"float32": "limits/gather, float32", "bfloat16": "limits/gather, bfloat16"},
        ),
        line("step, fused", {shape: f"step/fused/{shape}" for shape in shapes}),
        f"fused beside the others: {_beside(bench)}",
        line(f"ladder{size}", largest),
        f"growth with the connections: {_growth(bench)}",
        line("prediction", processes),
        line("epoch by ranks", jobs),
        f"noise of the machine: {describe_noise(bench.noise)}; {len(bench.figures)} figures in "
        f"{bench.seconds or 0:.0f} s{'' if bench.complete else ', interrupted'}, "
        f"{len(bench.left_out)} left out",
    ]


def make_page(bench: Bench) -> str:
    """Return the page of a run; plots need matplotlib, and without it a line says so."""
    used = ", ".join(f"{name} {found}" for name, found in (bench.versions or {}).items() if found)
    sections = [pages.code(summary(bench))]
    told = f"Measured {bench.timestamp} with {used}."
    if bench.commit:
        told += f" Commit {bench.commit[:8]}."
    sections.append(pages.paragraph(told))
    if find_spec("matplotlib") is not None:
        sections.append(pages.plots(pictures(bench)))
    else:
        sections.append(pages.paragraph(f"Plots need matplotlib: {install_command('plot')}."))
    for group, title in TITLES.items():
        chosen = [one for one in bench.figures if one.group == group]
        if chosen:
            sections += [pages.paragraph("", heading=title), pages.table(table_of(chosen))]
    if bench.left_out:
        rows = pd.DataFrame(bench.left_out.items(), columns=["figure", "why"])
        sections += [pages.paragraph("", heading="Left out"), pages.table(rows)]
    return pages.page("largesparse bench", sections)


def table_of(figures: list[Figure]) -> pd.DataFrame:
    """Return the figures for readers: median with the range of half the repeats, and a rate."""
    rows: list[dict[str, Any]] = []
    for one in figures:
        low, median, high = 1e3 * np.quantile(one.times_s, (0.25, 0.5, 0.75))
        row = {"figure": one.name, "median ms": float(median)}
        row |= {"quartiles": f"{low:.4g} to {high:.4g}", "repeats": len(one.times_s)}
        row |= {"rate": rate_of(one), "connections": one.settings.get("connections")}
        peak = None if one.peak_bytes is None else one.peak_bytes / GIB
        rows.append(row | {"peak GiB": peak})
    return pd.DataFrame(rows)


def pictures(bench: Bench) -> dict[str, Picture]:
    """Return bars of the steps, and the ladder's phases against connections."""
    drawn: dict[str, Picture] = {}
    for group in ("step", "peers", "limits", "inference", "ranks"):
        chosen = [one for one in bench.figures if one.group == group]
        if not chosen:
            continue
        figure, (axes,) = pages.new_figure()
        spans = np.array([np.quantile(one.times_s, (0.25, 0.5, 0.75)) for one in chosen]) * 1e3
        names = [one.name.partition("/")[2] for one in chosen]
        colours = [colour_of(name.partition("/")[0]) for name in names]
        errors = abs(spans[:, [0, 2]] - spans[:, [1]]).T
        axes.barh(names, spans[:, 1], xerr=errors, color=colours, alpha=0.8)
        axes.set(title=TITLES[group], xlabel="milliseconds, median and quartiles")
        if spans[:, 1].max() > MOST_LINEAR * spans[:, 1].min():
            axes.set_xscale("log")
        axes.tick_params(axis="y", labelsize="x-small")
        axes.invert_yaxis()
        drawn[group] = figure
    if len(_sizes(bench)) > 1:
        figure, axes = pages.log_axes(TITLES["ladder"], "connections", "seconds")
        for number, phase in enumerate(LADDER_PHASES):
            x, y = _phase(bench, phase)
            label = f"{phase}\n∝ connections ^ {fitted_exponent(x, y)}"
            axes.plot(x, y, f"C{number}o-", label=label)
        axes.legend(fontsize="x-small")
        drawn["ladder"] = figure
    return drawn


def _sizes(bench: Bench) -> list[str]:
    """Return the sizes of the ladder that were measured, the smallest first."""
    sizes = {
        one.settings["neurons"] for one in bench.figures if one.group == "ladder" and one.times_s
    }
    return [short(size) for size in sorted(sizes)]


def _phase(bench: Bench, phase: str) -> tuple[list[float], list[float]]:
    """Return connections and median seconds of a phase, by size."""
    found = [bench.figure(f"ladder/{size}/{phase}") for size in _sizes(bench)]
    measured = [one for one in found if one is not None]
    measured.sort(key=lambda one: one.settings["connections"])  # 20M have fewer than 10M
    return (
        [float(one.settings["connections"]) for one in measured],
        [float(np.median(one.times_s)) for one in measured],
    )


def _growth(bench: Bench) -> str:
    exponents = {phase: fitted_exponent(*_phase(bench, phase)) for phase in LADDER_PHASES}
    if all(one.value != one.value for one in exponents.values()):
        return "it takes two sizes"
    return ", ".join(f"{phase} {one}" for phase, one in exponents.items())


def _beside(bench: Bench) -> str:
    """Return how many times the fused step's time the others take, at the peers' shape."""
    from .cases import PEERS_SHAPE

    ours = bench.figure(f"step/fused/{PEERS_SHAPE}")
    if ours is None:
        return "not measured"
    parts = []
    for one in bench.figures:
        words = one.name.split("/")
        if one.group not in ("step", "peers") or words[2] != PEERS_SHAPE or one is ours:
            continue
        paired = len(one.times_s) == len(ours.times_s)
        ratio: Ratio = ratio_of(one.times_s, ours.times_s, paired=paired)
        parts.append(f"{'backend ' if one.group == 'step' else ''}{words[1]} {ratio}")
    return "; ".join(parts) or "none was measured"
