"""Sparse backends: what a layer computes, as functions on flat arrays.

`get_backend` returns a `Backend`; nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from .base import Backend
from .choice import BACKENDS, Choice, choose_backend, tell_of_generic_path
from .operands import Dropout

__all__ = ["BACKENDS", "Backend", "Choice", "Dropout", "choose_backend", "get_backend"]


def get_backend(
    name: str | None = None, layer_sizes: Sequence[int] | None = None, connections: int = 0
) -> Backend:
    """Return a backend by name, or the one that `choose_backend` chooses.

    None is "auto"; `layer_sizes` are of the network that it is for, `connections` those of its
    largest layer.

    Raises
    ------
    ParameterError
        Where there is no such backend.
    BackendError
        Where the backend cannot be loaded here, or cannot have so many connections.
    """
    choice = choose_backend(name, layer_sizes, connections)
    backend: Backend = importlib.import_module(f".{choice.name}", __name__).load()
    if choice.name == "mkl":
        tell_of_generic_path()
    return backend
