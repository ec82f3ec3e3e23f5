"""A sparse network as a PyTorch module; importing this needs PyTorch."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import DataError
from ..model.layer import SparseLayer
from ..model.network import SparseMLP

with warnings.catch_warnings():  # the first such tensor of a process tells that they are new
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], [], [], size=(1, 1))


class Layer(torch.nn.Module):
    """A sparse layer and its activation, on columns: (n_in, batch) to (n_out, batch).

    The weights are buffers of dense arrays, which PyTorch can copy and save.
    """

    indptr: torch.Tensor
    indices: torch.Tensor
    values: torch.Tensor
    bias: torch.Tensor
    srelu: torch.Tensor | None

    def __init__(self, layer: SparseLayer) -> None:
        super().__init__()
        self.shape = layer.n_out, layer.n_in
        self.slope = float(layer.slope)
        self.register_buffer("indptr", _tensor(layer.indptr_by_output))
        self.register_buffer("indices", _tensor(layer.indices_by_output))
        self.register_buffer("values", _tensor(layer.values_by_output))
        self.register_buffer("bias", _tensor(layer.bias)[:, None])
        self.register_buffer("srelu", None if layer.srelu is None else _tensor(layer.srelu))

    def forward(self, x: Any) -> Any:
        """Return the activations, float32 (n_out, batch)."""
        arrays = self.indptr, self.indices, self.values
        weight = torch.sparse_csr_tensor(*arrays, size=self.shape, check_invariants=False)
        z = weight @ x + self.bias
        shape = self.srelu
        if shape is None:
            return torch.where(z > 0, z, self.slope * z)
        t_left, a_left, t_right, a_right = shape[:, :, None]
        right = torch.where(z >= t_right, t_right + a_right * (z - t_right), z)
        return torch.where(z <= t_left, t_left + a_left * (z - t_left), right)


class Network(torch.nn.Module):
    """Standardisation, layers, and the scale of predicted numbers: see `to_torch`."""

    def __init__(self, network: SparseMLP) -> None:
        super().__init__()
        self.n_features = network.config.layer_sizes[0]
        scaling = network.preprocessing
        arrays = {
            "input_mean": None if scaling is None else scaling.mean,
            "input_scale": None if scaling is None else scaling.scale,
            "target_mean": network.target_mean,
            "target_scale": network.target_scale,
        }
        for name, array in arrays.items():
            found = None if array is None else _tensor(np.asarray(array, dtype=np.float64))
            self.register_buffer(name, found)
        self.layers = torch.nn.Sequential(*(Layer(layer) for layer in network.layers))

    def forward(self, x: Any) -> Any:
        """Return logits, float32 (batch, n_classes), or numbers (batch, n_targets).

        x (batch, n_features) may be float64 where float32 does not tell the rows apart.
        """
        if x.ndim != 2 or x.shape[1] != self.n_features:
            raise DataError(
                f"The module takes inputs of shape (batch, {self.n_features}). Got "
                f"{tuple(x.shape)} instead; a single row is x[None, :]."
            )
        if self.input_mean is not None:
            x = (x - self.input_mean) * self.input_scale
        out = self.layers(x.to(torch.float32).T).T
        if self.target_scale is not None:
            out = out * self.target_scale
        return out if self.target_mean is None else out + self.target_mean


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(array.copy())
