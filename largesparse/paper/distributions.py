"""How the neurons of a trained network are distributed (the paper's Figures 9 to 14)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.batches import load_batch
from ..model.export import to_scipy
from ..model.network import SparseMLP

BINS = 60


def neuron_distributions(
    network: SparseMLP, X: Any, rows: NDArray[np.int64], *, bins: int = BINS
) -> dict[str, list[dict[str, list[float]]]]:
    """Return histograms of the hidden neurons' mean weighted sums and mean activations.

    A neuron's z and f(z) are averaged over the rows, without dropout. Dead neurons are left out.

    Parameters
    ----------
    network : SparseMLP
    X : (n_samples, n_features) dense or CSR
    rows : int64 (n,)
        The rows of X to average over.
    bins : int

    Returns
    -------
    dict
        "pre_activation" and "activation": a histogram for every hidden layer, which has `edges`
        (bins + 1) and `counts` (bins).
    """
    inputs = np.empty((network.config.layer_sizes[0], len(rows)), dtype=np.float32)
    load_batch(X, rows, network.preprocessing, out=inputs)
    values = inputs.T
    found: dict[str, list[dict[str, list[float]]]] = {"pre_activation": [], "activation": []}
    for layer, weights in zip(network.layers[:-1], to_scipy(network), strict=False):
        z = (weights.T @ values.T).T + layer.bias
        values = layer.activate(z)
        living = layer.living()
        for name, array in (("pre_activation", z), ("activation", values)):
            counts, edges = np.histogram(array[:, living].mean(axis=0), bins=bins)
            found[name].append({"edges": edges.tolist(), "counts": counts.tolist()})
    return found
