"""Learning curves: one line in a terminal, or a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.ranking import precision_at_k
from ..errors import ParameterError, install_command
from ..harness.records import check_output
from ..machine.environment import expand_user

if TYPE_CHECKING:
    from ..training.history import EpochRecord, History
    from ..training.trainer import Trainer

CURVE_WIDTH = 60  # characters of a learning curve in a terminal
BARS = " ▁▂▃▄▅▆▇█"


def text_curve(losses: list[float]) -> str:
    """Return losses as one line of bars, for a terminal."""
    if len(losses) < 2:  # no curve
        return f"loss {losses[0]:.4g}" if losses else ""
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


class HeldOutScores:
    """A callback that adds the score of the rows held out to the record of every epoch."""

    def __init__(self, estimator: Any, X: Any, y: Any) -> None:
        self.estimator, self.X, self.y = estimator, X, y

    def __call__(self, trainer: Trainer, record: EpochRecord) -> None:
        """Predict and score; a score of one row's numbers is not known."""
        if self.y.ndim == 2 and hasattr(self.estimator, "classes_"):
            labels, _ = self.estimator.predict_top(self.X, 1)
            record.test_accuracy = precision_at_k(self.y, labels, 1)
        elif hasattr(self.estimator, "classes_") or len(self.y) > 1:
            record.test_accuracy = float(self.estimator.score(self.X, self.y))


def plot_curve(history: History, path: str) -> None:
    """Draw loss and scores by epoch into a picture."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    epochs = history["epoch"]
    measured = any(value is not None for value in history["loss"])
    curves = {"train": "trained on", "validation": "validation", "test": "held out"}
    scores = {label: _numbers(history[f"{name}_accuracy"]) for name, label in curves.items()}
    scores = {label: values for label, values in scores.items() if not np.isnan(values).all()}
    loss, *others = figure.subplots(1, 2 if scores else 1, squeeze=False)[0]
    loss.plot(epochs, _numbers(history["loss" if measured else "running_loss"]), marker=".")
    loss.set(xlabel="epoch", ylabel="loss", title="rows trained on")
    for score in others:
        for label, values in scores.items():
            score.plot(epochs, values, marker=".", label=label)
        score.set(xlabel="epoch", title="accuracy, or R² of a regression")
        score.legend()
    for axes in figure.axes:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    try:
        figure.savefig(expand_user(path), dpi=150)
    except (OSError, ValueError) as error:
        raise ParameterError(f"--plot {path}: {error}. The model is saved.") from error


def _numbers(values: list[float | None]) -> list[float]:
    return [np.nan if value is None else value for value in values]
