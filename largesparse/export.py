"""A network in the terms of other libraries: SciPy matrices, and a PyTorch module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_array

from .layer import SparseLayer
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

    The module takes float32 (batch, n_features), applies the standardisation, and returns the
    logits (batch, n_classes), or the predicted numbers (batch, n_targets) in their own units. It
    is for inference: the weights are buffers. PyTorch must be installed.
    """
    import torch

    class Layer(torch.nn.Module):
        """A sparse layer and its activation, on columns: (n_in, batch) to (n_out, batch)."""

        def __init__(self, layer: SparseLayer) -> None:
            super().__init__()
            arrays = layer.indptr_by_output, layer.indices_by_output, layer.values_by_output
            tensors = [torch.from_numpy(array.copy()) for array in arrays]
            weight = torch.sparse_csr_tensor(*tensors, size=(layer.n_out, layer.n_in))
            self.register_buffer("weight", weight)
            self.register_buffer("bias", torch.from_numpy(layer.bias.copy())[:, None])
            self.slope = layer.slope
            shape = None if layer.srelu is None else torch.from_numpy(layer.srelu.copy())
            self.register_buffer("srelu", shape)

        def forward(self, x: Any) -> Any:
            z = self.weight @ x + self.bias
            if self.srelu is not None:
                t_left, a_left, t_right, a_right = self.srelu[:, :, None]
                right = torch.where(z >= t_right, t_right + a_right * (z - t_right), z)
                return torch.where(z <= t_left, t_left + a_left * (z - t_left), right)
            return torch.where(z > 0, z, self.slope * z)

    class Network(torch.nn.Module):
        """Standardisation, layers, and the scale of predicted numbers."""

        def __init__(self) -> None:
            super().__init__()
            scaling = network.preprocessing
            n_in, n_out = network.config.layer_sizes[0], network.config.layer_sizes[-1]
            of_inputs = None if scaling is None else (scaling.mean, scaling.scale)
            of_targets = network.target_mean, network.target_scale
            for name, n, pair in (("input", n_in, of_inputs), ("target", n_out, of_targets)):
                mean, scale = pair or (None, None)
                mean = np.zeros(n, np.float32) if mean is None else mean.copy()
                scale = np.ones(n, np.float32) if scale is None else scale.copy()
                self.register_buffer(f"{name}_mean", torch.from_numpy(mean))
                self.register_buffer(f"{name}_scale", torch.from_numpy(scale))
            self.layers = torch.nn.Sequential(*(Layer(layer) for layer in network.layers))

        def forward(self, x: Any) -> Any:
            scaled = (x - self.input_mean) * self.input_scale
            return self.layers(scaled.T).T * self.target_scale + self.target_mean

    return Network()
