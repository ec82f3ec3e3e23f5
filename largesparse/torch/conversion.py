"""Dense models to sparse ones and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.prune import BasePruningMethod

from ..data.frames import some_of
from ..errors import ParameterError, check_range
from ..model.ranking import mark_smallest
from ..model.topology import Topology, connection_probability
from ..randomness import seed_sequence
from .linear import SparseLinear, sparse_layers
from .sequential import SparseSequential


def convert(
    model: nn.Module,
    *,
    density: float | None = None,
    epsilon: float | None = None,
    include: str | list[str] = "*",
    keep: str = "magnitude",
    frozen: bool = False,
    recipe: str = "width",
    seed: int | None = None,
) -> nn.Module:
    """Replace the `torch.nn.Linear` layers of a model by sparse ones, in place; return the model.

    A `torch.nn.Sequential` that gets sparse layers becomes a `SparseSequential`.

    Parameters
    ----------
    model : Module
        A `torch.nn.Linear` itself is returned as a `SparseLinear`. Subclasses of it stay dense.
    density, epsilon : float
        One of them, as of `SparseLinear`, for every layer; with keep="nonzero" none.
    include : str or list of str
        Patterns of the names of layers to replace, such as "*.mlp.*" (`fnmatch`).
    keep : {"magnitude", "random", "nonzero"}
        The connections with the largest weights, which stay; an Erdős–Rényi topology with weights
        that are drawn anew; or those of a model that is masked already: those that the mask of
        `torch.nn.utils.prune` keeps, or weights that are not zero. The bias is the same parameter.
    frozen : bool
        Whether `evolve` leaves the connections as they are.
    recipe, seed
        As of `SparseLinear`; each layer has a seed of its own.

    Raises
    ------
    ParameterError
        Where no layer is found, or one shares its weights with another module.

    Notes
    -----
    Make the optimizer afterwards: the parameters are other ones.
    """
    if keep not in ("magnitude", "random", "nonzero"):
        raise ParameterError(
            "The 'keep' parameter of convert must be 'magnitude', 'random' or 'nonzero'. "
            f"Got {keep!r} instead."
        )
    if keep == "nonzero" and (density is not None or epsilon is not None):
        raise ParameterError(
            "convert(keep='nonzero') takes the connections that there are. Leave 'density' and "
            "'epsilon' out."
        )
    patterns = [include] if isinstance(include, str) else list(include or ())
    seed = int(torch.randint(2**62, ())) if seed is None else seed
    check_range("seed", seed, "convert", low=0, high=2**63 - 1, integer=True)
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    if unknown := [p for p in patterns if not any(fnmatchcase(name, p) for name in names)]:
        raise ParameterError(
            f"The 'include' parameter of convert has {unknown}, which no module is named like. The "
            f"modules are {some_of(names[1:])}."
        )
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(id(module))

    def sparse(name: str, module: nn.Module, number: int) -> nn.Module | None:
        own_weight = "weight" if keep != "nonzero" or not _is_masked(module) else "weight_orig"
        unusual = own_weight not in module._parameters or "bias_orig" in module._parameters
        if type(module) is nn.Linear and unusual:
            raise ParameterError(
                f"The layer {name!r} computes its weight or bias from others (weight_norm, prune). "
                "Make that permanent first, or leave it out by 'include'. Masks of weights are "
                "taken with keep='nonzero'."
            )
        if type(module) is not nn.Linear or not any(fnmatchcase(name, p) for p in patterns):
            return None
        if len(owners[id(module._parameters[own_weight])]) > 1:
            raise ParameterError(
                f"The layer {name!r} shares its weight with another module, which a sparse layer "
                "cannot. Leave it out by 'include'."
            )
        own = int(seed_sequence(seed, "topology", number).generate_state(1, np.uint64)[0] >> 1)
        options: dict[str, Any] = {"recipe": recipe, "seed": own, "bias": module.bias is not None}
        layer = _sparse(module, name, density, epsilon, keep, options)
        layer.config = replace(layer.config, frozen=frozen)
        return layer

    model = _replace(model, sparse, f"torch.nn.Linear whose name is like {include!r}")
    for module in model.modules():
        if type(module) is nn.Sequential and any(isinstance(m, SparseLinear) for m in module):
            module.__class__ = SparseSequential  # in place, as it may have hooks
    return model


def _sparse(
    dense: nn.Linear,
    name: str,
    density: float | None,
    epsilon: float | None,
    keep: str,
    options: dict[str, Any],
) -> SparseLinear:
    sizes = dense.in_features, dense.out_features
    if dense.weight.dtype != torch.float32 or dense.weight.device.type != "cpu":
        raise ParameterError(
            f"The layer {name!r} is {dense.weight.dtype} on {str(dense.weight.device)!r}; sparse "
            "layers are float32 on the CPU. Call model.float().cpu() first."
        )
    if keep != "random" and not torch.isfinite(dense.weight).all():
        raise ParameterError(f"The layer {name!r} has weights that are not finite.")
    if keep == "random":
        layer = SparseLinear(*sizes, density=density, epsilon=epsilon, **options)
    else:
        masked = keep == "nonzero" and _is_masked(dense)
        weights = _in_input_order(dense.weight_orig if masked else dense.weight)
        if keep == "nonzero":
            cells = np.flatnonzero(_in_input_order(dense.weight_mask) if masked else weights)
            if not len(cells):
                raise ParameterError(f"The layer {name!r} has no weight that is not zero.")
        else:
            share = connection_probability(*sizes, density=density, epsilon=epsilon)
            count = max(1, round(share * len(weights)))
            cells = np.flatnonzero(mark_smallest(-np.abs(weights), count))
        layer = SparseLinear(*sizes, topology=Topology.from_cells(*sizes, cells), **options)
        layer.values.data = torch.from_numpy(weights[cells])
    if dense.bias is not None:
        layer.bias = dense.bias
    trained = dense._parameters["weight_orig" if _is_masked(dense) else "weight"]
    layer.values.requires_grad_(trained is not None and trained.requires_grad)
    return layer.train(dense.training)


def _is_masked(module: nn.Module) -> bool:
    return "weight_mask" in module._buffers and "weight_orig" in module._parameters


def _in_input_order(weight: Any) -> NDArray[Any]:
    """Return a dense layer's weights, or their mask, flat and row by row of inputs."""
    found: NDArray[Any] = weight.detach().t().contiguous().reshape(-1).numpy()
    return found


def to_dense(model: nn.Module) -> nn.Module:
    """Replace the sparse layers of a model by `torch.nn.Linear`, in place; return the model."""
    sparse_layers(model)
    model = _replace(
        model,
        lambda name, module, number: (
            module.to_dense().train(module.training) if isinstance(module, SparseLinear) else None
        ),
        "SparseLinear",
    )
    for module in model.modules():
        kind = type(module)
        if kind is SparseSequential:
            module.__class__ = nn.Sequential
    return model


def _replace(
    model: nn.Module, new: Callable[[str, nn.Module, int], nn.Module | None], wanted: str
) -> nn.Module:
    """Replace the modules of which `new` makes another one, wherever they are used."""
    found: dict[nn.Module, nn.Module] = {}
    for number, (name, module) in enumerate(model.named_modules()):
        if (other := new(name, module, number)) is not None:
            found[module] = other
    if not found:
        raise ParameterError(f"The model has no {wanted}.")
    for old, other in found.items():
        for attribute, hooks in vars(old).items():
            if attribute.startswith(("_forward_", "_backward_")) and "hooks" in attribute:
                masks = [k for k, hook in hooks.items() if isinstance(hook, BasePruningMethod)]
                for k in masks:  # the sparse layer is what they made of the dense one
                    del hooks[k]
                vars(other)[attribute] = hooks
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child in found:
                setattr(module, name, found[child])
    for module in model.modules():  # their fast path reads the weights of dense layers
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
    return found.get(model, model)
