"""`SparseMLP` as a PyTorch module, and back; importing this needs PyTorch."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..backends.operands import Float32
from ..data.standardizer import Standardizer
from ..errors import DataError, ParameterError
from ..model.activations import TRAINED
from ..model.config import NetworkConfig
from ..model.given import GivenLayer
from ..model.layer import LayerArrays, LayerConfig, SparseLayer
from ..model.network import SparseMLP
from .activations import AllReLU, SReLU
from .linear import SparseLinear
from .sequential import SparseSequential
from .tensors import array_of

SCALING = ("input_mean", "input_scale", "target_mean", "target_scale")
NAMES = ("classes", "feature_names", "neuron_names", "file_layout")


class SharedLayer(SparseLayer):
    """A layer whose weights PyTorch may change: their output order is renewed for every use."""

    @property
    def values_by_output(self) -> Float32:
        """The weights in output order, (nnz,), as they are now."""
        self.refresh()
        return self._copy

    @values_by_output.setter
    def values_by_output(self, values: Float32) -> None:
        self._copy = values


class Network(nn.Module):
    """Standardisation, layers, and the scale of predicted numbers: see `export.to_torch`."""

    input_mean: Tensor | None
    input_scale: Tensor | None
    target_mean: Tensor | None
    target_scale: Tensor | None

    def __init__(self, network: SparseMLP, share: bool) -> None:
        super().__init__()
        self.config = network.config
        self.names = {name: getattr(network, name) for name in NAMES}
        self.n_features = network.config.layer_sizes[0]
        scaling = network.preprocessing
        arrays = (
            *((None, None) if scaling is None else (scaling.mean, scaling.scale)),
            network.target_mean,
            network.target_scale,
        )
        for name, array in zip(SCALING, arrays, strict=True):
            found = None if array is None else torch.from_numpy(np.array(array, dtype=np.float64))
            self.register_buffer(name, found)
        if share:
            network.layers[:] = map(_shared, network.layers)
        self.layers = SparseSequential()
        for k, layer in enumerate(network.layers):
            self.layers.append(_linear(layer, network.config, k, share))
            if k < len(network.layers) - 1:
                self.layers.append(_activation(layer, network.config, share))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, float32 (batch, n_classes), or numbers (batch, n_targets).

        x (batch, n_features) may be float64 where float32 does not tell the rows apart.
        """
        if x.ndim != 2 or x.shape[1] != self.n_features:
            raise DataError(
                f"The module takes inputs of shape (batch, {self.n_features}). Got "
                f"{tuple(x.shape)} instead; a single row is x[None, :]."
            )
        if self.input_mean is not None and self.input_scale is not None:
            x = (x - self.input_mean) * self.input_scale
        out: Tensor = self.layers(x.to(torch.float32))
        if self.target_scale is not None:
            out = out * self.target_scale
        return out if self.target_mean is None else out + self.target_mean


def _shared(layer: SparseLayer) -> SharedLayer:
    rest: Any = {"moments": layer.moments, "dead": layer.dead, "candidates": layer.candidates}
    return SharedLayer(layer.number, layer.topology, layer.parameters, layer.config, **rest)


def _tensor(array: NDArray[Any], share: bool) -> Tensor:
    return torch.from_numpy(array if share else array.copy())


def _linear(layer: SparseLayer, config: NetworkConfig, k: int, share: bool) -> SparseLinear:
    found = SparseLinear(
        layer.n_in,
        layer.n_out,
        topology=layer.topology,
        recipe=config.recipe,
        seed=(config.seed + k) % 2**63,
    )
    found.config = replace(layer.config, slope=1.0)
    found.set_candidates_(layer.candidates)
    found.values.data = _tensor(layer.values, share)
    assert found.bias is not None
    found.bias.data = _tensor(layer.bias, share)
    return found


def _activation(layer: SparseLayer, config: NetworkConfig, share: bool) -> nn.Module:
    if layer.srelu is not None:
        return SReLU(_tensor(layer.srelu, share), layer.config.shape_trained)
    if config.activation == "all_relu":
        return AllReLU(config.alpha, layer.number)
    if config.activation == "relu":
        return nn.ReLU()
    return nn.LeakyReLU(layer.slope) if layer.slope != 1 else nn.Identity()


def to_network(
    module: nn.Module, *, share: bool = False, loss: str = "softmax_cross_entropy"
) -> SparseMLP:
    """Return the `SparseMLP` of a module of `to_torch`, or of a Sequential of sparse layers.

    A Sequential alternates `SparseLinear` with `AllReLU`, `torch.nn.ReLU`, `LeakyReLU`, `SReLU` or
    nothing, the same after every hidden layer; `torch.nn.Dropout` between them is left out.

    Parameters
    ----------
    module : Module
    share : bool
        Whether weights and biases are the module's, so that the network follows its training until
        it evolves; by default they are copied. Topologies, which nothing changes, are shared.
    loss : str
        Of `NetworkConfig`, where the module is a Sequential.

    Raises
    ------
    ParameterError
        Where the modules are not such a chain.
    """
    parts: list[nn.Module] = []
    for part in _parts(module):
        if not isinstance(part, nn.Dropout | nn.Identity):
            parts.append(part)
        if isinstance(part, SparseLinear) and part.activation is not None:
            parts.append(part.activation)
    linears = [part for part in parts if isinstance(part, SparseLinear)]
    config = module.config if isinstance(module, Network) else _config_of(parts, linears, loss)
    shapes = [part for part in parts if isinstance(part, SReLU)]
    layers = []
    for k, linear in enumerate(linears):
        parameters: LayerArrays = {
            "values": array_of(linear.values),
            "bias": np.zeros(linear.out_features, np.float32)
            if linear.bias is None
            else array_of(linear.bias),
        }
        own = LayerConfig.of(config, k)
        if own.shape_trained:
            parameters["srelu"] = array_of(shapes[k].srelu)
        if not share:
            parameters = {name: array.copy() for name, array in parameters.items()}
        kind = SharedLayer if share else SparseLayer
        layers.append(kind(k + 2, linear.topology, parameters, own, candidates=linear.candidates))
    network = SparseMLP.from_layers(config, layers)
    if isinstance(module, Network):
        mean, scale, *target = (getattr(module, name) for name in SCALING)
        if mean is not None:
            network.preprocessing = Standardizer(mean.numpy().copy(), scale.numpy().copy())
        found = [None if each is None else each.numpy().copy() for each in target]
        network.target_mean, network.target_scale = found
        for name, value in module.names.items():
            setattr(network, name, copy.copy(value))
    return network


def _parts(module: nn.Module) -> Iterable[nn.Module]:
    found = module.layers if isinstance(module, Network) else module
    if isinstance(found, nn.Sequential):
        return list(found)
    raise ParameterError(
        "The 'module' parameter of to_network must be a torch.nn.Sequential, or a module that "
        f"to_torch has made. Got {type(module).__name__} instead."
    )


def _config_of(parts: list[nn.Module], linears: list[SparseLinear], loss: str) -> NetworkConfig:
    kinds = [_kind(part) for part in parts if not isinstance(part, SparseLinear)]
    hidden = len(linears) - 1
    alternate = all(isinstance(part, SparseLinear) == (k % 2 == 0) for k, part in enumerate(parts))
    is_chain = len(linears) == len(parts) or (alternate and len(kinds) == hidden)
    numbers = [part.number for part in parts if isinstance(part, AllReLU)]
    activation, alpha = (kinds[0] if kinds else None) or ("linear", 0.6)
    if not linears or not is_chain or len(set(kinds)) > 1 or None in kinds:
        problem = ", ".join(type(part).__name__ for part in parts) or "nothing"
    elif numbers and numbers != list(range(2, 2 + hidden)):
        problem = f"AllReLU of the layers {numbers}, not from 2 on"
    elif any(a.out_features != b.in_features for a, b in itertools.pairwise(linears)):
        problem = "layers whose sizes do not follow each other"
    else:
        sizes = (linears[0].in_features, *(linear.out_features for linear in linears))
        cells = sum(linear.in_features * linear.out_features for linear in linears)
        density = sum(linear.connections for linear in linears) / cells
        options: Any = {"activation": activation, "alpha": alpha, "loss": loss}
        recipes = {linear.recipe for linear in linears}
        options["recipe"] = recipes.pop() if len(recipes) == 1 else "width"
        return NetworkConfig(sizes, density=density, **options, given=tuple(map(_given, linears)))
    raise ParameterError(
        "A Sequential for to_network alternates SparseLinear with one kind of activation, and ends "
        f"with a SparseLinear. Got {problem}."
    )


def _given(linear: SparseLinear) -> GivenLayer | None:
    """Return what a configuration says of a layer that is frozen, or grows within candidates."""
    if linear.candidates is not None:
        return GivenLayer(linear.connections, "within", linear.candidates.nnz)
    return GivenLayer(linear.connections, "frozen") if linear.config.frozen else None


def _kind(part: nn.Module) -> tuple[str, float] | None:
    """Return an activation's name and α in `NetworkConfig`, or None."""
    if isinstance(part, AllReLU):
        return "all_relu", part.alpha
    if isinstance(part, nn.ReLU):
        return "relu", 0.6
    if isinstance(part, nn.LeakyReLU):
        return "leaky_relu", part.negative_slope
    if isinstance(part, SReLU):
        return next(name for name, rows in TRAINED.items() if rows == part.trained), 0.6
    return None
