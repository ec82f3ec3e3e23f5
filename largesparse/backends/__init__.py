"""Sparse backends: what a layer computes, as functions on flat arrays.

`get_backend` returns a `Backend`; nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
import logging
import os

from ..errors import BackendError, ParameterError
from ..machine.environment import BACKEND
from .base import Backend
from .operands import Dropout

__all__ = ["BACKENDS", "DEFAULT", "Backend", "Dropout", "get_backend"]

logger = logging.getLogger(__name__)

BACKENDS = ("mkl", "fused", "scipy")
DEFAULT = "mkl"
_told = False


def get_backend(name: str | None = None) -> Backend:
    """Return a backend by name.

    The default is that of LARGESPARSE_BACKEND, else `mkl`, or `scipy` on a machine without MKL
    (logged once).

    Raises
    ------
    ParameterError
        Where there is no such backend.
    BackendError
        Where the backend was asked for by name and cannot be loaded here.
    """
    global _told
    asked = name or os.environ.get(BACKEND) or None
    chosen = asked or DEFAULT
    if chosen not in BACKENDS:
        source = "'backend' parameter" if name else f"environment variable {BACKEND}"
        raise ParameterError(
            f"The {source} must be one of {list(BACKENDS)}. Got {chosen!r} instead."
        )
    try:
        return _load(chosen)
    except BackendError as error:
        if asked:
            raise
        if not _told:
            logger.warning("%s The 'scipy' backend is used.", error)
            _told = True
        return _load("scipy")


def _load(name: str) -> Backend:
    backend: Backend = importlib.import_module(f".{name}", __name__).load()
    return backend
