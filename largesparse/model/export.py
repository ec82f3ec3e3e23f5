"""A network as SciPy matrices."""

from __future__ import annotations

from scipy.sparse import csr_array

from .folding import fold
from .network import SparseMLP


def to_scipy(network: SparseMLP) -> list[csr_array]:
    """Return the weights of every layer as CSR, float32 (n_in, n_out); copies.

    A layer computes f(x W + b), with the bias and the activation of `network.layers`; where these
    are normalised, of the layers of `fold(network)`, whose weights the result has.
    """
    return [
        csr_array(
            (layer.values, layer.topology.indices, layer.topology.indptr),
            shape=(layer.n_in, layer.n_out),
            copy=True,
        )
        for layer in fold(network).layers
    ]
