"""The paper's figures, from the records of the trainings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError
from ..harness.pages import new_figure
from ..harness.series import COLOURS, colour_of
from .tables import Run, Runs, diverged, last
from .trainings import PRUNED, Protocol, Row, rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SPARSE = ("relu", "all_relu", "srelu")
BOTH = tuple(name + suffix for name in SPARSE for suffix in ("", PRUNED))
Found = list[tuple[Row, list[Run]]]


def draw(number: int, dataset: str, protocol: Protocol, runs: Runs) -> Figure:
    """Return a figure of the paper, drawn from the runs that there are.

    Parameters
    ----------
    number : int
        A key of `FIGURES`.
    dataset : str
    protocol : Protocol
        The settings of the trainings: those with others are not drawn.
    runs : Runs

    Raises
    ------
    DataError
        Where none of its trainings has been run.
    """
    table, names, fields, make = FIGURES[number]
    rows = rows_of(table, dataset, protocol, only=names)
    found = []
    for row in rows:
        runs_of_row = [run for run in runs.of(row) if not diverged(run)]
        if whole := [run for run in runs_of_row if all(run[name] for name in fields)]:
            found.append((row, whole))
    if not found:
        raise DataError(
            f"Figure {number} has no data: no training of {dataset} with these settings is in the "
            f"output file. Run --table {table} --dataset {dataset} with them first."
        )
    figure = make(found)
    figure.suptitle(f"{dataset} (the paper's Figure {number})", fontsize="medium")
    return figure


def size_and_loss(found: Found) -> Figure:
    """Figure 4: the last loss against the connections, beside those of All-ReLU without pruning."""
    figure, axes = new_figure(1, 2)
    whole = next((those for row, those in found if row.name == "all_relu"), found[0][1])
    for one, name, title in zip(axes, ("loss", "test_loss"), ("train", "test"), strict=True):
        size = np.mean([run["nnz"][0] for run in whole])
        loss = np.mean([run[name][-1] for run in whole])
        for row, those in found:
            x = np.mean([run["nnz"][-1] for run in those]) / size
            y = np.mean([run[name][-1] for run in those]) / loss
            marker = "s" if row.name.endswith(PRUNED) else "o"
            one.plot([x], [y], marker, color=_colour(row), label=row.name)
        one.set(title=title, xlabel="relative size (connections)", ylabel="relative loss")
        one.legend(fontsize="small")
    return figure


def gradient_flow(found: Found) -> Figure:
    """Figure 5: the first-order decrease of the loss in a step."""
    figure, (axes,) = new_figure()
    for row, those in found:
        _curve(axes, row, [run["gradient_flow"] for run in those])
    axes.set(xlabel="epoch", ylabel="gradient flow, ‖g‖²", yscale="log")
    axes.legend(fontsize="small")
    return figure


def learning_curves(found: Found) -> Figure:
    """Figure 6: test and training accuracy by epochs, and the connections at the end."""
    figure, axes = new_figure(1, 3)
    for row, those in found:
        _curve(axes[0], row, [run["accuracy"] for run in those])
        _curve(axes[1], row, [run["train_accuracy"] for run in those])
    for one, title in zip(axes, ("test", "train"), strict=False):
        one.set(title=title, xlabel="epoch", ylabel="accuracy")
    names = [row.name for row, _ in found]
    for name, which in (("start", 0), ("end", -1)):
        counts = [np.mean([run["nnz"][which] for run in those]) for _, those in found]
        axes[2].barh(names, counts, height=0.7 if which == 0 else 0.4, label=name)
    axes[2].set(title="connections")
    for one in axes:
        one.legend(fontsize="small")
    return figure


def errors(found: Found) -> Figure:
    """Figure 7: test and training loss by epochs."""
    figure, axes = new_figure(1, 2)
    for one, name, title in zip(axes, ("test_loss", "loss"), ("test", "train"), strict=True):
        for row, those in found:
            _curve(one, row, [run[name] for run in those])
        one.set(title=title, xlabel="epoch", ylabel="loss")
        one.legend(fontsize="small")
    return figure


def histograms(found: Found, name: str, label: str) -> Figure:
    """Figures 9 to 14: neurons by the mean of a value over the test rows, of the first seed."""
    layers = len(found[0][1][0]["distributions"][name])
    figure, axes = new_figure(layers, len(found))
    for column, (row, those) in enumerate(found):
        for layer, histogram in enumerate(those[0]["distributions"][name]):
            one = axes[layer * len(found) + column]
            shape = histogram["counts"], histogram["edges"]
            one.stairs(*shape, fill=True, color=_colour(row))
            one.set(title=f"{row.name}, hidden layer {layer + 1}", xlabel=label, ylabel="neurons")
    return figure


def slopes(found: Found) -> Figure:
    """Figure 19: test accuracy by epochs for slopes of All-ReLU."""
    figure, (axes,) = new_figure()
    for row, those in found:
        accuracy = np.mean([last(run) for run in those])
        _curve(axes, row, [run["accuracy"] for run in those], f"{row.name}: {accuracy:.2f} %")
    axes.set(xlabel="epoch", ylabel="test accuracy")
    axes.legend(fontsize="x-small", title="after the last epoch", title_fontsize="x-small")
    return figure


def _curve(axes: Axes, row: Row, curves: Sequence[Sequence[Any]], label: str = "") -> None:
    """Draw the mean of curves, and the space between the least and the largest."""
    values = np.array(curves, dtype=np.float64)  # None becomes NaN
    measured = ~np.isnan(values).any(axis=0)
    epochs, values = np.flatnonzero(measured), values[:, measured]
    style, label = "--" if row.name.endswith(PRUNED) else "-", label or row.name
    mean = values.mean(axis=0)
    (line,) = axes.plot(epochs, mean, color=_colour(row), linestyle=style, label=label)
    if len(values) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        axes.fill_between(epochs, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def _colour(row: Row) -> str | None:
    """Return the colour of a row's activation or algorithm; None, the next, for other rows."""
    name = row.name.removesuffix(PRUNED)
    return colour_of(name) if name in COLOURS else None


ACTIVATIONS = partial(histograms, name="activation", label="mean activation")
WEIGHTED_SUMS = partial(histograms, name="pre_activation", label="mean weighted sum")
# number -> table, the rows drawn (None: all), the fields of a record it takes, and what draws them
FIGURES: dict[int, tuple[int, Sequence[str] | None, Sequence[str], Callable[[Found], Figure]]] = {
    4: (2, BOTH, ("loss", "test_loss"), size_and_loss),
    5: (2, SPARSE, ("gradient_flow",), gradient_flow),
    6: (2, BOTH, ("train_accuracy",), learning_curves),
    7: (2, BOTH, ("loss", "test_loss"), errors),
    9: (2, SPARSE, ("distributions",), ACTIVATIONS),
    12: (2, SPARSE, ("distributions",), WEIGHTED_SUMS),
    19: (5, None, (), slopes),
}
