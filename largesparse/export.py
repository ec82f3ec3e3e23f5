"""A network in the terms of other libraries: SciPy matrices, and a PyTorch module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scipy.sparse import csr_array

from .errors import BackendError
from .network import SparseMLP

if TYPE_CHECKING:
    import torch


def to_scipy(network: SparseMLP) -> list[csr_array]:
    """Return the weights of every layer as CSR, float32 (n_in, n_out); copies.

    A layer computes f(x W + b), with the bias and the activation of `network.layers`.
    """
    return [
        csr_array(
            (layer.values, layer.topology.indices, layer.topology.indptr),
            shape=(layer.n_in, layer.n_out),
            copy=True,
        )
        for layer in network.layers
    ]


def to_torch(network: SparseMLP) -> torch.nn.Module:
    """Return a PyTorch module with the same outputs; its weights are sparse CSR tensors.

    The module takes (batch, n_features) in float32 or float64, applies the standardisation, and
    returns the logits, float32 (batch, n_classes), or the predicted numbers (batch, n_targets) in
    their own units, float64 where the network has their scale. It is for inference: the weights
    are buffers. It can be copied, and saved by `torch.save`.

    Raises
    ------
    BackendError
        Where PyTorch is not installed.
    """
    try:
        from .torch_module import Network
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise BackendError(
            "to_torch needs PyTorch, which is not installed. Install it with pip install torch."
        ) from error
    return Network(network)
