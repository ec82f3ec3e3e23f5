"""Section 2.4's sequential trainings on a task of Leukemia's shape, by `largesparse bigmodel`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..harness.records import median_of, record_rows
from ..harness.series import split_command
from ..training.memory import GIB
from . import reported as paper
from .tables import NOT_MEASURED, NOTHING

if TYPE_CHECKING:
    import pandas as pd

TRAIN_SAMPLES, TEST_SAMPLES = 1397, 699
FEATURES = 54675
LAYER = 5_000_000  # neurons of a hidden layer, as in Table 4; the paper does not state it here


def flags_of(neurons: int, epochs: int, backend: str) -> list[str]:
    """Return the flags of bigmodel for a network of so many neurons."""
    samples = TRAIN_SAMPLES + TEST_SAMPLES
    flags = {
        "neurons": neurons,
        "layers": max(2, -(-neurons // LAYER)),
        "epsilon": 1,
        "features": FEATURES,
        "samples": samples,
        "test-fraction": round(TEST_SAMPLES / samples, 6),
        "epochs": epochs,
        "threads": 1,
        "backend": backend,
        "optimizer": "sgd",
        "growth": "random",
    }
    return [f"--{name}={value}" for name, value in flags.items()]


def find_run(records: pd.DataFrame, flags: Sequence[str]) -> dict[str, Any] | None:
    """Return the newest record of bigmodel with these flags, or None."""
    found = None
    for row in record_rows(records[records["kind"] == "bigmodel"]):
        used = [word for word in split_command(row["command"]) if word.startswith("--")]
        if [word for word in used if not word.startswith("--out=")] == list(flags):
            found = row
    return found


def command_of(program: Sequence[str | Path], flags: Sequence[str], out: str) -> list[str]:
    """Return the command that runs bigmodel, of which `program` is the beginning."""
    return [*map(str, program), *flags, f"--out={out}"]


def extremes_table(
    records: pd.DataFrame, sizes: Sequence[int], epochs: int, backend: str
) -> tuple[list[str], list[list[str]]]:
    """Return head and rows: seconds of every phase, ours with one thread beside the paper's."""
    head = ["neurons", "connections", "initialisation s", "epoch s", "paper", "inference s"]
    head += ["paper", "evolution s", "paper", "GiB"]
    lines = []
    for neurons in sizes:
        theirs = next((row for row in paper.EXTREMES if row.neurons == neurons), None)
        run = find_run(records, flags_of(neurons, epochs, backend))
        line = [f"{neurons:,}"]
        if run is None:
            line += [NOT_MEASURED, NOTHING]
        else:
            line += [_cell(run["connections"], "{:,.0f}"), _cell(run["init_s"], "{:.1f}")]
        for name in ("epoch_s", "inference_s", "evolution_s"):
            line.append(_cell(median_of(None if run is None else run[name]), "{:,.1f}"))
            reported = None if theirs is None else getattr(theirs, name)
            line.append(_cell(reported, "{:,.0f}"))
        line.append(_cell(run["peak_rss_bytes"] if run else None, "{:.2f}", 1 / GIB))
        lines.append(line)
    return head, lines


def _cell(value: float | None, show: str, scale: float = 1) -> str:
    return NOTHING if value is None else show.format(scale * value)
