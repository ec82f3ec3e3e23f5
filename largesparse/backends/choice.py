"""Which backend computes a network: what was asked for, else what is fastest here."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ..errors import BackendError, LargeSparseError, ParameterError
from ..machine.environment import BACKEND, cache_folder
from ..machine.hardware import cpu_model
from ..machine.output import tell_once
from ..machine.versions import versions
from .operands import NO_INT64, count_dtype

logger = logging.getLogger(__name__)

AUTO = "auto"
BackendName = Literal["auto", "mkl", "fused", "scipy"]
BACKENDS: tuple[BackendName, ...] = ("mkl", "fused", "scipy")

BACKEND_HELP = (
    "mkl, fused, scipy, or auto (default): LARGESPARSE_BACKEND, else what 'largesparse tune' "
    "measured here, else fused"
)

ShapeClass = Literal["small", "wide", "extreme"]
TYPICAL_SIZES: dict[ShapeClass, tuple[int, ...]] = {
    "small": (500, 400, 100, 400, 2),
    "wide": (10_000, 400, 400, 4),
    "extreme": (16_384, 100_000, 100_000, 2),
}
WIDE_INPUTS = 2_000  # features from which on a network is wide
EXTREME_NEURONS = 50_000  # of a hidden layer, from which on it is extreme

# The versions that decide how fast a backend is.
_COUNTED = ("largesparse", "numba", "llvmlite", "sparse_dot_mkl", "mkl", "scipy")


class Choice(NamedTuple):
    """A backend by name, and why it is used."""

    name: BackendName
    reason: str


def shape_class(layer_sizes: Sequence[int]) -> ShapeClass:
    """Return the class of shapes that a network belongs to.

    Examples
    --------
    >>> shape_class((500, 400, 100, 400, 2)), shape_class((5748, 400, 400, 4))
    ('small', 'wide')
    >>> shape_class((65_536, 200_000, 200_000, 2))
    'extreme'
    """
    if max(layer_sizes[1:-1], default=0) >= EXTREME_NEURONS:
        return "extreme"
    return "wide" if layer_sizes[0] >= WIDE_INPUTS else "small"


def choose_backend(
    asked: str | None = None, layer_sizes: Sequence[int] | None = None, connections: int = 0
) -> Choice:
    """Return which backend is used, and why.

    Parameters
    ----------
    asked : {"auto", "mkl", "fused", "scipy"}, optional
        None is "auto": what LARGESPARSE_BACKEND names; else what `largesparse tune` has measured
        on this machine for networks of such a shape; else `fused`.
    layer_sizes : sequence of int, optional
        From features to outputs. Without it, the network is taken for an extreme one.
    connections : int
        Of the largest layer, as far as is known. Where int32 does not count them, `mkl` is not
        chosen, and refused by name.

    Raises
    ------
    ParameterError
        Where there is no such backend.
    BackendError
        Where it cannot have so many connections.
    """
    source = "'backend' parameter"
    reason = "asked for by name"
    if asked is None or asked == AUTO:
        asked, reason = os.environ.get(BACKEND) or AUTO, f"{BACKEND} names it"
        source = f"environment variable {BACKEND}"
    is_counted = count_dtype(connections) is np.int32
    if asked == "mkl" and not is_counted:
        raise BackendError(NO_INT64)
    if asked in BACKENDS:
        return Choice(asked, reason)  # type: ignore[arg-type]
    if asked != AUTO:
        raise ParameterError(
            f"The {source} must be one of {[AUTO, *BACKENDS]}. Got {asked!r} instead."
        )
    kind = "extreme" if layer_sizes is None else shape_class(layer_sizes)
    measured = stored_choices().get(kind)
    if measured == "mkl" and not is_counted:
        return Choice("fused", "a layer has more connections than int32 counts, which mkl does by")
    if measured is not None:
        return Choice(measured, f"'largesparse tune' measured it as the fastest on {kind} networks")
    return Choice("fused", "no other takes less time, on all CPUs that were measured")


def tell_of_generic_path() -> None:
    """Warn whoever has asked for MKL where it runs its generic code path: once a job."""
    from . import mkl

    if mkl.loaded_code_path() == "generic":
        tell_once(
            logger,
            "MKL runs its generic code path on this CPU. On an AMD EPYC (Zen 4), its sparse "
            "products take 1.2 to 2.4 times as long as those of the backend 'fused', and none of "
            "MKL's faster paths could be switched on. 'largesparse tune' measures both here.",
        )


def machine_file() -> Path:
    """Return the file for what is measured on this machine: CPU model and versions name it.

    Raises
    ------
    ParameterError
        As `cache_folder`.
    """
    found = versions()
    parts = [cpu_model(), *(found.get(name) for name in _COUNTED)]
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()
    return cache_folder() / f"backends-{digest}.json"


def stored_choices() -> dict[ShapeClass, BackendName]:
    """Return the fastest backend of each class of shapes that was measured on this machine.

    A file that is damaged counts as none.
    """
    try:
        stored = json.loads(_read(machine_file()))
        found = {kind: stored[kind]["backend"] for kind in TYPICAL_SIZES if kind in stored}
        if not set(found.values()) <= set(BACKENDS):
            raise ValueError(f"it names {sorted(set(found.values()))}")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, LargeSparseError) as error:
        logger.debug("What 'largesparse tune' has stored cannot be read: %r", error)
        return {}
    return found


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def store_choices(measured: dict[ShapeClass, dict[str, Any]]) -> Path:
    """Keep measurements for `choose_backend`, beside those of other classes; return the file.

    Parameters
    ----------
    measured : dict
        For each class a dictionary whose "backend" is the fastest; the rest is for readers.

    Raises
    ------
    OSError, ParameterError
        Where the cache folder cannot be written.
    """
    file = machine_file()
    try:
        before = json.loads(_read(file))
    except (OSError, ValueError):
        before = {}
    stored = (before if isinstance(before, dict) else {}) | measured
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=file.parent, prefix=file.stem, delete=False
    ) as writing:
        json.dump(stored, writing, indent=1)
    os.replace(writing.name, file)
    return file
