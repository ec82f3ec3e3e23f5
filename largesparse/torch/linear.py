"""A truly sparse `torch.nn.Linear`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..backends.operands import Float32
from ..errors import DataError, ParameterError, check_range
from ..model.config import NetworkConfig
from ..model.initializers import INITIALIZERS, Sampler
from ..model.layer import CANDIDATES, LayerConfig, SparseLayer
from ..model.matrices import check_kind
from ..model.recipes import RECIPES
from ..model.start import LayerStart, as_topologies, resolve
from ..model.topology import (
    Topology,
    check_count,
    checked_topology,
    connection_probability,
    erdos_renyi,
)
from ..randomness import seed_sequence, stream
from .activations import ACTIVATIONS, AllReLU, is_plain
from .chain import sparse_chain
from .operators import activation_numbers, traced_linear
from .passes import Link, Pattern
from .tensors import array_of, is_traced

PATTERN = ("indptr", "indices", "indptr_by_output", "indices_by_output", "to_output_order")
OWNER = "SparseLinear"


class SparseLinear(nn.Module):
    """y = x W + b, as `torch.nn.Linear` computes it, where only W's connections are stored.

    x (..., in_features) -> y (..., out_features); W (in_features, out_features), b (out_features,).
    Of two axes, y is a transposed view of contiguous (out_features, batch), which the next such
    layer takes without a copy; of more, it is contiguous.

    Parameters
    ----------
    in_features, out_features : int
    epsilon : float, optional
        An Erdős–Rényi topology with ε(in + out)/(in·out) of the cells.
    density : float in (0, 1], optional
        The same with this share of the cells.
    topology : Topology, bool tensor (out_features, in_features) or GivenTopology, optional
        The connections themselves. Exactly one of these three is given. Those of a `Topology` or a
        tensor evolve freely. Of a `GivenTopology`, and of what that takes as connections or a file,
        which are frozen, `evolve` takes account.
    bias : bool
    activation : AllReLU, optional
        Computed with the layer, in less time and memory than as a module that follows it.
    recipe : {"width", "paper"}
        Initial values by the expected number of connections of a neuron, or as if the layer were
        dense; and whether connections that grow begin at zero (`largesparse.model.recipes`).
    seed : int, optional
        Of topology, values and evolution; by default PyTorch's generator draws one. `SparseMLP` has
        the same first layer for the same seed.

    Attributes
    ----------
    values : Parameter (connections,), float32
        The weights in input order: those of the first input, by output; then the second's.
    bias : Parameter (out_features,) or None
    indptr, indices : int32 buffers
        W's pattern as CSR rows of inputs. Those of the output order, `indptr_by_output`,
        `indices_by_output` and `to_output_order`, are made again as a state is loaded.
    random_state : int64 buffer (2,)
        The seed, and the evolutions so far.
    rate_scale : float
        What the recipe multiplies the learning rate of `values` by: see `parameter_groups`.

    Raises
    ------
    ParameterError, DataError
        Where an argument, an input's shape, dtype or device is not possible.
    """

    values: nn.Parameter
    indptr: Tensor
    indices: Tensor
    indptr_by_output: Tensor
    indices_by_output: Tensor
    to_output_order: Tensor
    random_state: Tensor
    candidate_indptr: Tensor | None
    candidate_indices: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        epsilon: float | None = None,
        density: float | None = None,
        topology: Any = None,
        bias: bool = True,
        activation: AllReLU | None = None,
        recipe: str = "width",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(activation, AllReLU | None):
            raise ParameterError(
                f"The 'activation' parameter of {OWNER} must be an AllReLU or None; others follow "
                f"as modules of their own. Got {activation!r} instead."
            )
        self.activation = activation
        if (device := torch.empty(0).device).type != "cpu":  # the default, as PyTorch 2.6 has it
            raise ParameterError(
                f"{OWNER} is made and computes on the CPU. PyTorch's default device is "
                f"{str(device)!r}; make it within torch.device('cpu')."
            )
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            check_range(name, size, OWNER, low=1, high=2**31 - 2, integer=True)
        if recipe not in RECIPES:
            raise ParameterError(
                f"The 'recipe' parameter of {OWNER} must be one of {sorted(RECIPES)}. "
                f"Got {recipe!r} instead."
            )
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        check_range("seed", seed, OWNER, low=0, high=2**63 - 1, integer=True)
        self.in_features, self.out_features = in_features, out_features
        start: LayerStart | None = None
        if topology is None:
            if epsilon is None and density is None:
                raise ParameterError(f"Give 'epsilon', 'density' or 'topology' of {OWNER}.")
            probability = connection_probability(
                in_features, out_features, epsilon=epsilon, density=density
            )
            expected = math.ceil(probability * in_features * out_features)
            check_count(in_features, out_features, expected, OWNER)
            drawn = seed_sequence(seed, "topology", 0)
            threads = torch.get_num_threads()
            found = erdos_renyi(in_features, out_features, probability, drawn, threads=threads)
        else:
            if epsilon is not None or density is not None:
                raise ParameterError(
                    f"Give one of 'epsilon', 'density' and 'topology' of {OWNER}, not several."
                )
            start = _given_start(topology, in_features, out_features, seed)
            found = start.topology
            probability = found.density
        self.recipe = recipe
        self._draws, self.config = _settings(recipe, in_features, out_features, probability)
        values = self._draws(stream(seed, "values", 0), found.nnz)
        if start is not None:
            self.config = replace(self.config, frozen=start.evolution == "frozen")
            values = values if start.values is None else start.values.copy()
        self.set_candidates_(None if start is None else start.candidates)
        self.values = nn.Parameter(torch.from_numpy(values))
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=torch.float32)) if bias else None
        self.register_buffer("random_state", torch.tensor([seed, 0]))
        self._set_pattern(found)

    @property
    def rate_scale(self) -> float:
        """What the recipe multiplies the learning rate of `values` by."""
        return self.config.rate_scale

    @property
    def connections(self) -> int:
        """Number of connections."""
        return len(self.indices)

    @property
    def density(self) -> float:
        """Share of the cells that are connections."""
        return self.connections / (self.in_features * self.out_features)

    @property
    def pattern(self) -> tuple[Tensor, ...]:
        """Both orders of the topology, as `Topology.arrays`."""
        buffers = self._buffers
        return tuple(buffers[name] for name in PATTERN)  # type: ignore[misc]

    @property
    def topology(self) -> Topology:
        """The topology; its arrays are views of the buffers."""
        return Topology(self.in_features, self.out_features, *map(array_of, self.pattern))

    @property
    def candidates(self) -> Topology | None:
        """The cells in which connections may grow, where they are given; None is all."""
        if self.candidate_indptr is None or self.candidate_indices is None:
            return None
        arrays = map(array_of, (self.candidate_indptr, self.candidate_indices))
        return Topology(self.in_features, self.out_features, *arrays)

    def set_candidates_(self, candidates: Topology | None) -> None:
        """Have the cells in which connections may grow; None is all."""
        pattern = None if candidates is None else (candidates.indptr, candidates.indices)
        for name, array in zip(CANDIDATES, pattern or (None, None), strict=True):
            self.register_buffer(name, None if array is None else torch.from_numpy(array))

    def _set_pattern(self, topology: Topology) -> None:
        check_count(topology.n_in, topology.n_out, topology.nnz, OWNER)
        for name, array in zip(PATTERN, topology.arrays, strict=True):
            own = name in ("indptr", "indices")
            self.register_buffer(name, torch.from_numpy(array), persistent=own)

    def forward(self, input: Tensor) -> Tensor:
        """Return y (..., out_features): float32, or bfloat16 under `torch.autocast`."""
        x, f = input, self.activation
        if is_traced(x):
            x = autocast(x)
            z = traced_linear(x, *self._checked(x), *self.pattern)
            return z if f is None else f(z)
        observe = self.__dict__.get("_observe")
        if observe is None and (f is None or is_plain(f, ACTIVATIONS)):
            return compute(x, (self,))
        z = compute(x, (self,), activated=False)
        if observe is not None:
            observe(self, autocast(x), z)
        return z if f is None else f(z)

    def can_chain(self) -> bool:
        """Return whether `compute` may take the layer together with others."""
        f = self.activation
        return (
            is_plain(self, (SparseLinear,))
            and "_observe" not in self.__dict__
            and (f is None or is_plain(f, ACTIVATIONS))
        )

    def _pattern(self) -> Pattern:
        tensors = self.pattern
        found: Pattern | None = self.__dict__.get("_kernel_pattern")
        if found is None or not found.is_of(tensors):
            found = Pattern(tensors)
            if not found.is_whole():
                raise DataError(
                    f"The connections of {OWNER} are none: its buffers have no data, as after "
                    "to_empty(). Load a state by load_state_dict, or make the layer anew."
                )
            self.__dict__["_kernel_pattern"] = found
        return found

    def __getstate__(self) -> dict[str, Any]:
        own = ("_kernel_pattern", "_observe")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name in CANDIDATES:  # earlier releases had none
            self._buffers.setdefault(name, None)

    def _checked(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return values and bias, if they and the inputs are what the kernels take."""
        if not isinstance(x, Tensor) or x.layout != torch.strided:
            raise DataError(
                f"{OWNER} takes a dense tensor. Got {getattr(x, 'layout', type(x).__name__)}."
            )
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise DataError(
                f"{OWNER} takes inputs of shape (..., {self.in_features}). "
                f"Got {tuple(x.shape)} instead."
            )
        autocast = torch.is_autocast_enabled("cpu")
        wanted = torch.bfloat16 if autocast else torch.float32
        if x.dtype != wanted:
            remedy = "torch.autocast('cpu', dtype=torch.bfloat16)" if autocast else "x.float()"
            raise DataError(
                f"{OWNER} takes {'bfloat16 under autocast' if autocast else 'float32'}. "
                f"Got {x.dtype} instead; use {remedy}."
            )
        self._check_device("inputs", x)
        return self._checked_parameters()

    def _check_device(self, name: str, tensor: Tensor) -> None:
        if not tensor.is_cpu:
            raise DataError(
                f"{OWNER} computes on the CPU. Its {name} are on {str(tensor.device)!r}; "
                "move them by .cpu()."
            )

    def _checked_parameters(self) -> tuple[Tensor, Tensor | None]:
        own, count = self._parameters, self._buffers["indices"].shape[0]  # type: ignore[union-attr]
        values, bias = own.get("values"), own.get("bias")
        if values is None or bias is None:  # or another module computes them
            values, bias = self.values, self.bias
        if values.dtype != torch.float32:
            raise DataError(
                f"The weights of {OWNER} must be float32. Got {values.dtype} instead; "
                "call float() on the module, and use torch.autocast for bfloat16."
            )
        if values.shape != (count,) or (
            bias is not None and (bias.shape != (self.out_features,) or bias.dtype != torch.float32)
        ):
            raise DataError(
                f"{OWNER} has {count} connections and {self.out_features} outputs, but "
                f"values of shape {tuple(values.shape)} or a bias that do not fit. Set them "
                "by load_state_dict."
            )
        self._check_device("weights", values)
        return values, bias

    def record(self) -> SparseLayer:
        """Return the layer as largesparse has it; its arrays are views of this module's."""
        bias = np.zeros(self.out_features, np.float32) if self.bias is None else array_of(self.bias)
        layer = SparseLayer(
            2,
            self.topology,
            {"values": array_of(self.values), "bias": bias},
            self.config,
            values_by_output=np.empty(0, dtype=np.float32),
            candidates=self.candidates,
        )
        layer.is_stale = True
        return layer

    def replace_(self, topology: Topology, values: Float32) -> None:
        """Take over another topology and its values, (nnz,); the parameter stays the same one."""
        self.values.data = torch.from_numpy(values)
        torch.autograd.graph.increment_version(self.values)  # a backward pass from before fails
        self._set_pattern(topology)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Load a topology of any size, if it is one."""
        indptr, indices, values = (
            state_dict.get(prefix + name) for name in ("indptr", "indices", "values")
        )
        errors = rest[4]
        if indptr is not None and indices is not None and len(indptr) == self.in_features + 1:
            try:
                rows, columns = (array_of(t.to(torch.int32)).copy() for t in (indptr, indices))
                sizes = self.in_features, self.out_features
                topology = checked_topology(*sizes, rows, columns, f"{prefix}indptr and indices")
                candidates = self._candidates_in(state_dict, prefix)
                if candidates is not None and not candidates.contains(topology.cells()).all():
                    raise ValueError(f"{prefix}indices has connections that are no candidates")
                if values is None or values.shape != indices.shape:
                    raise ValueError(f"{prefix}values are not as many as {prefix}indices")
            except ValueError as error:
                errors.append(str(error))
                return
            same = values.shape == self.values.shape and np.array_equal(
                topology.indices, array_of(self.indices)
            )
            if not same:  # memory that a network shares has its topology
                # By way of another dtype, as PyTorch forgets only then where a graph that is still
                # alive, as of the last loss, wanted a gradient of the old length.
                self.values.data = torch.empty(0, dtype=torch.float64)
                self.values.data = torch.empty(len(values), dtype=torch.float32)
                self.values.grad = None
            self._set_pattern(topology)
            self.set_candidates_(candidates)
            buffers = {"indptr": rows, "indices": columns}
            if candidates is not None:
                buffers |= zip(CANDIDATES, (candidates.indptr, candidates.indices), strict=True)
            for name, array in buffers.items():
                state_dict[prefix + name] = torch.from_numpy(array)
        else:
            for name in CANDIDATES:  # of others, too: nothing is copied into them
                state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _candidates_in(self, state_dict: Any, prefix: str) -> Topology | None:
        """Return the candidates of a state, copied, or None; ValueError where they are damaged."""
        found = [state_dict.get(prefix + name) for name in CANDIDATES]
        if all(tensor is None for tensor in found):
            return None
        if any(tensor is None for tensor in found):
            raise ValueError(f"{prefix}{CANDIDATES[0]} and {CANDIDATES[1]} go together")
        indptr, indices = (array_of(tensor.to(torch.int32)).copy() for tensor in found)
        sizes = self.in_features, self.out_features
        return checked_topology(*sizes, indptr, indices, f"{prefix}{' and '.join(CANDIDATES)}")

    def to_dense(self) -> nn.Module:
        """Return a dense layer that computes the same, followed by the activation if it has one."""
        dense = nn.utils.skip_init(
            nn.Linear,
            self.in_features,
            self.out_features,
            bias=self.bias is not None,
            dtype=torch.float32,
        )
        dense.weight.requires_grad_(self.values.requires_grad)
        if self.bias is not None:
            dense.bias.requires_grad_(self.bias.requires_grad)
        with torch.no_grad():
            dense.weight.zero_()
            rows = torch.from_numpy(self.topology.rows())
            dense.weight[self.indices.long(), rows.long()] = self.values.detach()
            if self.bias is not None:
                dense.bias.copy_(self.bias)
        return dense if self.activation is None else nn.Sequential(dense, self.activation)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"connections={self.connections}, density={self.density:.3g}, "
            f"bias={self.bias is not None}"
        )


def _settings(
    recipe: str, n_in: int, n_out: int, probability: float
) -> tuple[Sampler, LayerConfig]:
    numbers = RECIPES[recipe](n_in, n_out, probability)
    sampler = INITIALIZERS["he_uniform"](numbers.fan_in, numbers.fan_out)
    regrowth = None if numbers.regrowth == "zero" else sampler
    return sampler, LayerConfig(1.0, rate_scale=numbers.rate_scale, regrowth=regrowth)


def _given_start(topology: Any, n_in: int, n_out: int, seed: int) -> LayerStart:
    """Return what a layer begins with whose topology is given; a pattern alone evolves freely."""
    if isinstance(topology, Topology) and (topology.n_in, topology.n_out) == (n_in, n_out):
        check_kind(topology, "connections")
        return LayerStart(topology, "free", None, None, None)
    mask = topology if isinstance(topology, Tensor) and topology.dtype == torch.bool else None
    if mask is not None and mask.shape == (n_out, n_in):
        cells = np.flatnonzero(mask.t().contiguous().numpy())
        return LayerStart(Topology.from_cells(n_in, n_out, cells), "free", None, None, None)
    if isinstance(topology, Tensor):
        raise ParameterError(
            f"The 'topology' parameter of {OWNER}, where it is a tensor, must be bool, of shape "
            f"{(n_out, n_in)}. Got {topology.dtype} of shape {tuple(topology.shape)} instead."
        )
    config = NetworkConfig((n_in, n_out, 2), epsilon=1, seed=seed)
    return resolve(as_topologies({2: topology}), config)[0]


def autocast(x: Tensor) -> Tensor:
    """Return x in the dtype of `torch.autocast`, where that is on."""
    if torch.is_autocast_enabled("cpu") and isinstance(x, Tensor) and x.is_floating_point():
        return x.to(torch.get_autocast_dtype("cpu"))
    return x


def compute(x: Tensor, modules: Iterable[nn.Module], *, activated: bool = True) -> Tensor:
    """Return what sparse layers make of x, one after the other, with activations between them.

    The first module is a layer; at most one of `ACTIVATIONS` follows each. Unless `activated`, the
    layers' own ones are left out.
    """
    x = autocast(x)
    patterns: list[Pattern] = []
    shapes: list[tuple[float, float] | None] = []
    parameters: list[Tensor | None] = []
    for module in modules:
        if not isinstance(module, SparseLinear):
            shapes[-1] = ACTIVATIONS[type(module)](module)
            continue
        parameters += module._checked_parameters() if patterns else module._checked(x)
        f: Any = module._modules.get("activation") if activated else None
        patterns.append(module._pattern())
        shapes.append(None if f is None else f.shape())
    links = list(map(Link, patterns, activation_numbers(shapes)))
    return sparse_chain(x, links, parameters)


def sparse_layers(model: nn.Module) -> dict[str, SparseLinear]:
    """Return the sparse layers of a model, or the model itself, by their names in it."""
    found = {n: each for n, each in model.named_modules() if isinstance(each, SparseLinear)}
    if not found:
        raise ParameterError(
            "The model has no SparseLinear. Make some by largesparse.torch.convert(model, …)."
        )
    for name, layer in found.items():
        if (device := layer.indices.device.type) != "cpu":
            raise ParameterError(
                f"The layer {name!r} is on {device!r}, and {OWNER} on the CPU only. Move the model "
                "by .cpu(); where it has no data, on 'meta', make it anew."
            )
    return found


def parameter_groups(model: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
    """Return groups for an optimizer, with the learning rates of the layers' recipes."""
    scales = {
        each.values: each.rate_scale for each in model.modules() if isinstance(each, SparseLinear)
    }
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        groups.setdefault(scales.get(parameter, 1.0), []).append(parameter)
    return [{"params": found, "lr": learning_rate * scale} for scale, found in groups.items()]
