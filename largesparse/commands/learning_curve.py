"""Learning curves: one line in a terminal, or a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import ParameterError, install_command
from ..harness.records import check_output
from ..machine.environment import expand_user

if TYPE_CHECKING:
    from ..training.history import History

CURVE_WIDTH = 60  # characters of a learning curve in a terminal
BARS = " ▁▂▃▄▅▆▇█"


def text_curve(losses: list[float]) -> str:
    """Return losses as one line of bars, for a terminal."""
    if not losses:
        return ""
    points = np.interp(
        np.linspace(0, len(losses) - 1, min(CURVE_WIDTH, len(losses))), range(len(losses)), losses
    )
    low, high = points.min(), points.max()
    heights = np.rint((points - low) / ((high - low) or 1) * (len(BARS) - 2)).astype(int) + 1
    bars = "".join(BARS[height] for height in heights)
    return f"loss {losses[0]:.4g} {bars} {losses[-1]:.4g}"


def check_plot(path: str) -> None:
    """Raise a ParameterError, before any work, unless `plot_curve` can write to a path."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ParameterError(f"--plot needs matplotlib: {install_command('plot')}.") from error
    formats = Figure().canvas.get_supported_filetypes()
    suffix = expand_user(path).suffix[1:].lower()
    if suffix and suffix not in formats:
        raise ParameterError(
            f"--plot {path}: there is no picture format {suffix!r}. Known are "
            f"{', '.join(sorted(formats))}."
        )
    check_output(path)


def plot_curve(history: History, path: str) -> None:
    """Draw loss and scores by epoch into a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    loss, score = figure.subplots(1, 2)
    epochs = history["epoch"]
    measured = any(value is not None for value in history["loss"])
    loss.plot(epochs, history["loss" if measured else "running_loss"])
    loss.set(xlabel="epoch", ylabel="loss", title="rows trained on")
    for name in ("train_accuracy", "validation_accuracy", "test_accuracy"):
        if any(value is not None for value in history[name]):
            score.plot(epochs, history[name], label=name.split("_")[0])
    score.set(xlabel="epoch", title="accuracy, or R² of a regression")
    score.legend()
    try:
        figure.savefig(expand_user(path), dpi=150)
    except (OSError, ValueError) as error:
        raise ParameterError(f"--plot {path}: {error}. The model is saved.") from error
