"""Which runs share a line of a plot, what the line is called, and how it is drawn.

A backend, an algorithm or an activation has the same colour in every plot; lines of one colour
differ in their markers.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..machine.sizes import SizeError, parse_size
from ..training.memory import BFLOAT16_WIDE
from .presets import BATCH_SIZE, FEATURES, hidden_sizes, nearest_row

if TYPE_CHECKING:
    import pandas as pd

PAPER = "paper, 96 virtual cores"
COLOURS = {
    PAPER: "black",
    "fused": "C0",
    "mkl": "C1",
    "scipy": "C2",
    "wasap": "C3",
    "wassp": "C4",
    "allreduce": "C5",
    "sequential": "C6",
    "a process that trains": "C8",
    "making a network": "C9",
    "relu": "teal",
    "all_relu": "crimson",
    "srelu": "indigo",
    "dense_relu": "goldenrod",
    "dense_all_relu": "saddlebrown",
    "mlp_classifier": "slategray",
}
OTHER = "C7"  # what has no colour of its own
MARKERS = "o^vDPX*h"
UNKNOWN = "unknown"


def colour_of(name: object) -> str:
    """Return the colour of a backend, an algorithm, an activation or the paper."""
    return COLOURS.get(str(name), OTHER)


def marker_of(number: int) -> str:
    """Return the marker of the first, second, ... line of a colour."""
    return MARKERS[number % len(MARKERS)]


def series_of(run: Mapping[str, Any]) -> str:
    """Return what the line of a run is called: its backend, and what is not as in Table 4.

    The sizes of Table 4 differ in depth, ε and dtype of the activations. So these are told where
    they are not those of the nearest row. Micro-batches, which follow the free memory, and what
    does not change the time, such as a seed or a learning rate, make no line of their own.

    Parameters
    ----------
    run : mapping
        A run record as `records.record_rows` has it.
    """
    neurons, backend = int(run["neurons"]), run["backend"]
    row = nearest_row(neurons)
    layers = int(run["layers"] or row.hidden_layers)
    wide = backend == "fused" and max(hidden_sizes(neurons, layers)) >= BFLOAT16_WIDE
    ranks = int(run["ranks"] or 1)
    usual = {
        "features": FEATURES,
        "layers": row.hidden_layers,
        "epsilon": row.epsilon,
        "batch_size": BATCH_SIZE,
        "recipe": "width",
        "optimizer": "sgd",
        "growth": "random",
        "coverage": "random",
        "activation_dtype": "bfloat16" if wide else "float32",
        "algorithm": "sequential" if ranks == 1 else "wasap",
        "groups": 1,
    }
    old = usual | {"activation_dtype": "float32"}  # records lack what was not to be chosen then
    found = {name: old[name] if run[name] is None else run[name] for name in usual}
    found["features"] = features_of(run)
    parts = [backend or f"{UNKNOWN} backend"]
    parts += [told("ranks", ranks)] if ranks > 1 else []
    parts += [told(name, value) for name, value in found.items() if value != usual[name]]
    return ", ".join(parts)


def features_of(run: Mapping[str, Any]) -> int | None:
    """Return the features of a run, if known; older records have them in their commands alone."""
    if run["features"] is not None:
        return int(run["features"])
    words = split_command(run["command"])
    if not words or any(word.startswith("--resume") for word in words):
        return None
    flags = [word.replace("=", " ").split() for word in words]
    for k, (flag, *value) in enumerate(flags):
        if flag == "--features":
            try:
                return parse_size((value or words[k + 1 : k + 2] or [""])[0])
            except SizeError:
                return None
    return FEATURES


def split_command(command: str | None) -> list[str]:
    """Return the words of a record's command; none where it lacks one or it cannot be read."""
    try:
        return shlex.split(command or "")
    except ValueError:  # a quotation that does not end
        return []


def told(name: str, value: Any) -> str:
    """Return a setting as a reader is told it: 2 threads, 10k neurons, ε 5."""
    if value is None or value != value:
        return f"{name} {UNKNOWN}"
    if name in ("backend", "algorithm", "figure", "activation_dtype", "optimizer"):
        return str(value)
    if name in ("machine", "cpu"):
        return f"on {value}"
    if name in ("epsilon", "recipe", "growth", "coverage", "commit"):
        return f"{'ε' if name == 'epsilon' else name} {short(value)}"
    if name == "batch_size":
        return f"mini-batches of {short(value)}"
    if name == "chunk_bytes":
        return f"chunks of {short(value)} bytes"
    return f"{short(value)} {name[:-1] if value == 1 else name}"


def short(value: Any) -> str:
    """Return a round number with a unit, 250k or 1.5M; others as 65,536, and text as it is."""
    if not isinstance(value, (int, float)) or value != int(value):
        return f"{value:g}" if isinstance(value, float) else str(value)
    for unit, size in (("M", 10**6), ("k", 10**3)):
        if value >= size and value % (size // 10) == 0:
            return f"{value / size:g}{unit}"
    return f"{int(value):,}"


def split(rows: pd.DataFrame, names: Iterable[str]) -> list[tuple[str, pd.DataFrame]]:
    """Return rows in groups that agree in all of `names`, each with what tells it from the rest."""
    varied = [name for name in names if rows[name].nunique(dropna=False) > 1]
    if not varied:
        return [("", rows)]
    return [
        (", ".join(told(*pair) for pair in zip(varied, chosen, strict=True)), group)
        for chosen, group in rows.groupby(varied, dropna=False)
    ]
