"""A network as a PyTorch module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import BackendError
from ..model.network import SparseMLP

if TYPE_CHECKING:
    import torch


def to_torch(network: SparseMLP) -> torch.nn.Module:
    """Return a PyTorch module with the same outputs; its weights are sparse CSR tensors.

    The module takes (batch, n_features) in float32 or float64, applies the standardisation, and
    returns the logits of classes or labels, float32 (batch, n_outputs), or the predicted numbers
    (batch, n_targets) in their own units, float64 where the network has their scale. It is for
    inference: the weights are buffers. It can be copied, and saved by `torch.save`.

    Raises
    ------
    BackendError
        Where PyTorch is not installed.
    """
    try:
        from .module import Network
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise BackendError(
            "to_torch needs PyTorch, which is not installed. Install it with pip install torch."
        ) from error
    return Network(network)
