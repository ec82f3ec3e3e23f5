"""The PyTorch face: truly sparse layers for its models. Names are imported as they are used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..errors import BackendError, install_command
from ..machine.threading_layers import waiting_threads_sleep

if TYPE_CHECKING:
    from .activations import AllReLU as AllReLU
    from .activations import SReLU as SReLU
    from .conversion import convert as convert
    from .conversion import to_dense as to_dense
    from .evolution import Evolution as Evolution
    from .evolution import evolve as evolve
    from .evolution import recording as recording
    from .export import to_torch as to_torch
    from .linear import SparseLinear as SparseLinear
    from .linear import parameter_groups as parameter_groups
    from .module import Network as Network
    from .module import to_network as to_network
    from .sequential import SparseSequential as SparseSequential

_NAMES = {
    "activations": ("AllReLU", "SReLU"),
    "conversion": ("convert", "to_dense"),
    "evolution": ("Evolution", "evolve", "recording"),
    "export": ("to_torch",),
    "linear": ("SparseLinear", "parameter_groups"),
    "module": ("Network", "to_network"),
    "sequential": ("SparseSequential",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        with waiting_threads_sleep():  # for PyTorch's OpenMP, if it is not loaded yet
            importlib.import_module("torch")
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise BackendError(
            f"{__name__}.{name} needs PyTorch, which is not installed. {install_command('torch')}."
        ) from error


def __dir__() -> list[str]:
    return __all__
