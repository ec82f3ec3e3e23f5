"""A network as a PyTorch module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ParameterError
from ..model.export import fold
from ..model.network import SparseMLP

if TYPE_CHECKING:
    import torch


def to_torch(network: SparseMLP, *, share: bool = False) -> torch.nn.Module:
    """Return a PyTorch module with the same outputs, of `SparseLinear` layers.

    The module takes (batch, n_features) in float32 or float64, applies the standardisation, and
    returns the logits of classes or labels, float32 (batch, n_outputs), or the predicted numbers
    (batch, n_targets) in their own units, float64 where the network has their scale. Its `layers`
    are a `SparseSequential`, which can be trained. `to_network` is the way back.

    Parameters
    ----------
    network : SparseMLP
    share : bool
        Whether the module's weights and biases are the network's, so that each follows the
        training of the other until it evolves. By default they are copied. Topologies, which
        nothing changes, are shared. Normalised layers are folded, which needs copies: see
        `fold`.

    Raises
    ------
    ParameterError
        Where weights that are folded are to be shared.
    BackendError
        Where PyTorch is not installed.
    """
    from . import Network

    folded = fold(network)
    if share and folded is not network:
        raise ParameterError(
            "The 'share' parameter of to_torch must be False where layers are normalised or have "
            "averages: the module has other weights than these. Got True instead."
        )
    return Network(folded, share)
