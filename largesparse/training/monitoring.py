"""Callbacks that measure a network after every epoch of a training.

flow, degrees = GradientFlow(X, y), InputDegrees()
trainer.fit(X, y, callbacks=[flow, degrees])
flow.to_frame()
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..data.checks import check_lengths, check_X
from ..data.frames import align_frame
from ..errors import check_range
from .history import EpochRecord
from .prepared import encode

if TYPE_CHECKING:
    import pandas

    from .trainer import Trainer


class GradientFlow:
    """How fast the loss would fall: norms of its gradient, without dropout, after every epoch.

    The first-order decrease of the loss in a step of gradient descent with learning rate η is
    η·‖g‖² (the gradient flow of the paper's Figure 5, after Evci et al., 2020, and Wang et al.,
    2020). The effective gradient flow is the mean over layers of the norm of a layer's gradient,
    of the connections that exist (Tessera et al., "Keep the gradients flowing", 2021); unlike the
    sum over all connections it can be compared between networks of other densities.

    Parameters
    ----------
    X : (n_samples, n_features) dense or CSR
    y : (n_samples,) or (n_samples, n_targets)
        Class labels, or numbers. The gradient is that of the mean loss over all rows: a sample
        of the training rows, 1000 for instance, keeps it cheap.
    every : int
        Epochs between measurements.

    Attributes
    ----------
    rows : list of dict
        What was measured.
    """

    def __init__(self, X: Any, y: Any, *, every: int = 1) -> None:
        self.X = X
        self.y = y
        self.every = check_range("every", every, "GradientFlow", low=1, integer=True)
        self.rows: list[dict[str, float]] = []

    def __call__(self, trainer: Trainer, record: EpochRecord) -> None:
        """Measure after an epoch."""
        if record.epoch % self.every:
            return
        network = trainer.network
        X = check_X(align_frame(self.X, network.feature_names), network.config.layer_sizes[0])
        y = encode(network, self.y)[0]
        check_lengths(X, y)
        with trainer.backend.threads(trainer.threads):
            loss = trainer.gradient(X, y, np.arange(len(y)), plain=True)
        gradients = trainer.workspace.gradients
        squares = [float(gradient @ gradient) for gradient in gradients]
        of_biases = sum(float(g @ g) for g in trainer.workspace.bias_gradients)
        sums = [float(np.abs(gradient).sum(dtype=np.float64)) for gradient in gradients]
        row = {
            "epoch": record.epoch,
            "loss": loss,
            "gradient_flow": sum(squares) + of_biases,
            "effective_gradient_flow": sum(math.sqrt(square) for square in squares) / len(squares),
            "effective_gradient_flow_l1": sum(sums) / len(sums),
        }
        norms = {f"norm_{k + 1}": math.sqrt(square) for k, square in enumerate(squares)}
        self.rows.append(row | norms)

    def to_frame(self) -> pandas.DataFrame:
        """Return a table with a row an epoch.

        Columns are `loss`; `gradient_flow`, ‖g‖² over all weights and biases;
        `effective_gradient_flow` and `effective_gradient_flow_l1`, by Euclidean and by absolute
        norms of the layers' weight gradients; and `norm_1`, … of every layer, the first hidden one
        first.
        """
        import pandas

        return pandas.DataFrame(self.rows).set_index("epoch") if self.rows else pandas.DataFrame()


class InputDegrees:
    """How many connections leave the inputs, after every epoch.

    Evolution moves connections from features that say little to those that say much, so the
    degrees spread (Mocanu et al., 2018). Counted are the connections after the epoch's evolution.

    Parameters
    ----------
    every : int
        Epochs between measurements.

    Attributes
    ----------
    epochs : list of int
    histograms : list of int64 (largest degree + 1,)
        How many inputs have each degree.
    degrees : int64 (n_features,) or None
        The degree of every input, at the last measurement.
    """

    def __init__(self, *, every: int = 1) -> None:
        self.every = check_range("every", every, "InputDegrees", low=1, integer=True)
        self.epochs: list[int] = []
        self.histograms: list[NDArray[np.int64]] = []
        self.degrees: NDArray[np.int64] | None = None

    def __call__(self, trainer: Trainer, record: EpochRecord) -> None:
        """Count after an epoch."""
        if record.epoch % self.every:
            return
        self.degrees = np.diff(trainer.network.layers[0].topology.indptr).astype(np.int64)
        self.epochs.append(record.epoch)
        self.histograms.append(np.bincount(self.degrees))

    def to_frame(self) -> pandas.DataFrame:
        """Return a table of counts of inputs, with a row an epoch and a column a degree."""
        import pandas

        longest = max(map(len, self.histograms), default=0)
        table = np.zeros((len(self.histograms), longest), dtype=np.int64)
        for row, histogram in zip(table, self.histograms, strict=True):
            row[: len(histogram)] = histogram
        epochs = pandas.Index(self.epochs, name="epoch", dtype=np.int64)
        return pandas.DataFrame(table, index=epochs).rename_axis(columns="degree")
