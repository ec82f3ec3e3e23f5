"""Measure what the engine is expected to reach, one figure at a time.

    python tools/measure.py fashion            784-1000-1000-1000-10, Table 7's settings
    python tools/measure.py madelon            500-400-100-400-2, Table 7's settings
    python tools/measure.py madelon --epochs 500 --weight-decay 6e-4 --pruning
                                               the same with Importance Pruning
    python tools/measure.py threading --net 1M --rounds 5
    mpiexec -n 2 python tools/measure.py transfer
    mpiexec -n 16 python tools/measure.py idle_cost
    python tools/measure.py pipeline           2 ranks with half of the layers each, one process
    python tools/measure.py optimizers --net large        AdamW's step next to momentum SGD's
    python tools/measure.py optimizers --evolution        Adam's counts of updates
    python tools/measure.py start             a fresh process, to the end of its first fit
    python tools/measure.py gpt                PyTorch: a GPT whose feed-forward layers are sparse
    python tools/measure.py topology           20,000 genes, 2,000 sets: a frozen layer, unchanged

Each prints a table; `--help` after a name lists its settings.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from largesparse.machine.exit_codes import run_command

MODULES = {  # of measuring/ -> its figures
    "learning": ("fashion", "madelon", "slopes", "twins", "linear"),
    "networks": ("compaction", "active", "layer", "prediction"),
    "inputs": ("wide_inputs", "crossover", "categories"),
    "steps": ("micro_batch", "idle_steps", "step_options"),
    "optimizers": ("optimizers",),
    "ladders": ("width_ladder", "graph_challenge"),
    "threads": ("threading",),
    "parallel": ("accuracy", "staleness", "speed", "apply", "train"),
    "pipelines": ("pipeline",),
    "ranks": ("transfer", "big", "idle_cost"),
    "starting": ("start",),
    "labels": ("extreme_labels",),
    "rules": ("rules",),
    "pytorch": ("gpt", "alternating", "steady"),
    "topologies": ("topology",),
    "reaching": ("time_to_accuracy", "learn"),
}


def make_parser(name: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of a figure or, of another name, of all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    figures = parser.add_subparsers(dest="figure", metavar="FIGURE", required=True)
    chosen = [module for module, names in MODULES.items() if name in names]
    for module in chosen or MODULES:
        importlib.import_module(f"measuring.{module}").add_figures(figures)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the figure that was asked for."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = make_parser(words[0] if words else None).parse_args(words)
    options.run(options)


if __name__ == "__main__":
    sys.exit(run_command(main))
