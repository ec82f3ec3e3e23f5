"""What a pipeline takes next to one process, and its steps next to their bound."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from largesparse.errors import LargeSparseError, check_range
from largesparse.harness.scaling import BIGMODEL
from largesparse.machine.launching import start_ranks
from largesparse.machine.sizes import parse_size
from largesparse.training.memory_plan import GIB

from . import add_figure

Record = dict[str, Any]


def pipeline(options: argparse.Namespace) -> None:
    """Train by a pipeline and by one process, in turns: time, memory, and a step's bound.

    Both use the same micro-batches, unless --alone gives the one process its own, and as many
    threads together. The ratios are of medians over the
    rounds, with their ranges. The bound of a step is the longest computing of a rank in it, and its
    transfers at --bandwidth, which mpiexec -n 2 tools/measure.py transfer measures; a pipeline of K
    ranks and M micro-batches needs (M + K - 1) / M of that. The share of its steps in which a rank
    waited, the bubble, is next to (K - 1) / (M + K - 1).
    """
    check_range("ranks", options.ranks, "measure.py pipeline", low=2)
    ranks, threads = options.ranks, options.threads
    flags = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in COMMON]
    flags += options.more
    stages = ["--algorithm=pipeline", f"--groups={options.groups}", f"--threads={threads}"]
    own = f"--micro-batch={options.alone or options.micro_batch}"
    contestants = {
        "one process": [*BIGMODEL, *flags, own, f"--threads={threads * ranks}"],
        "pipeline": [*start_ranks(ranks), *BIGMODEL, *flags, *stages],
    }
    found: dict[str, list[Record]] = {name: [] for name in contestants}
    with tempfile.TemporaryDirectory() as folder:
        for number in tqdm(range(options.rounds), desc="rounds", disable=None):
            for name, command in contestants.items():
                found[name].append(run(command, Path(folder) / f"{number}.jsonl"))
    for line in table_of(found):
        print(line)
    print(bound_of(found["pipeline"], 1e9 * options.bandwidth).to_string())


def run(command: list[str], out: Path) -> Record:
    """Return the record of a run of bigmodel."""
    done = subprocess.run([*command, f"--out={out}"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LargeSparseError(f"bigmodel failed: {done.stderr[-2000:]}")
    record: Record = json.loads(out.read_text().splitlines()[-1])
    return record


def seconds_of(record: Record) -> float:
    """Return the seconds of a sample in training: of the last epoch, where kernels are there."""
    return float(record["epoch_s"][-1]) / int(record["train_samples"])


def table_of(found: dict[str, list[Record]]) -> list[str]:
    """Return what the contestants took, and the ratios."""
    alone, divided = found["one process"], found["pipeline"]
    times = {name: [1e3 * seconds_of(record) for record in found[name]] for name in found}
    ratios = [b / a for a, b in zip(times["one process"], times["pipeline"], strict=True)]
    one = statistics.median(record["peak_rss_bytes"] for record in alone)
    each = [
        statistics.median(sizes) for sizes in zip(*(r["stage_bytes"] for r in divided), strict=True)
    ]
    same = all(a["loss"] == b["loss"] for a, b in zip(alone, divided, strict=True))
    sizes = divided[0]
    between = sizes["steps_bytes"] / GIB
    return [
        f"{sizes['neurons']:,} neurons in {sizes['layers']} layers, {sizes['connections']:,} "
        f"connections, micro-batches of {sizes['micro_batch']} of {sizes['batch_size']} rows, "
        f"stages {sizes['stages']}",
        *(
            f"{name:<12} {statistics.median(values):8.2f} ms a sample "
            f"({min(values):.2f} to {max(values):.2f})"
            for name, values in times.items()
        ),
        f"time, ratio  {statistics.median(ratios):8.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
        f"memory       {one / GIB:8.2f} GiB by one process; by ranks "
        + ", ".join(f"{size / GIB:.2f} ({size / one:.2f})" for size in each)
        + f"; together {sum(each) / one:.2f}",
        f"moved        {between:8.2f} GiB in all steps; losses are {'equal' if same else 'OTHERS'}",
    ]


def bound_of(records: list[Record], bandwidth: float) -> pd.DataFrame:
    """Return a row for every rank: milliseconds of a step, its parts, its bound, the bubble."""
    last = records[-1]
    stages, rows = len(last["stages"]), int(last["train_samples"])
    steps = len(last["epoch_s"]) * -(-rows // last["batch_size"])
    least = last["least_bubble"]
    found = []
    for rank, (seconds, waited) in enumerate(zip(last["steps_s"], last["bubble"], strict=True)):
        boundaries = (rank % stages > 0) + (rank % stages < stages - 1)
        share = boundaries / max(1, 2 * (len(last["steps_s"]) - len(last["steps_s"]) // stages))
        moved = share * last["steps_bytes"] / steps
        found.append(
            {
                "step, ms": 1e3 * seconds / steps,
                "computing, ms": 1e3 * seconds * (1 - waited) / steps,
                "transfers, ms": 1e3 * moved / bandwidth,
                "bubble": waited,
            }
        )
    frame = pd.DataFrame(found).rename_axis("rank")
    bound = (frame["computing, ms"] + frame["transfers, ms"]).max()
    frame["longest rank, ms"] = bound
    frame["filled and emptied, ms"] = bound / (1 - least)
    frame["step / that"] = frame["step, ms"] * (1 - least) / bound
    frame["least bubble"] = least
    return frame.round(3)


COMMON = ("neurons", "layers", "epsilon", "features", "samples", "epochs", "batch_size")
COMMON += ("micro_batch", "backend")


def add_figures(figures: Any) -> None:
    """Add pipeline."""
    add = add_figure(figures, "pipeline", pipeline).add_argument
    for name, value in (
        *(("neurons", 5_000_000), ("layers", 10), ("features", 4096), ("samples", 1500)),
        *(("epochs", 2), ("batch-size", 512), ("micro-batch", 64), ("ranks", 2), ("groups", 1)),
        *(("threads", 1), ("rounds", 3)),
    ):
        add(f"--{name}", type=parse_size, default=value, help="default %(default)s")
    text = "micro-batch of the one process (default: that of the pipeline)"
    add("--alone", type=parse_size, metavar="N", help=text)
    add("--epsilon", type=float, default=1.0, help="default %(default)s")
    add("--backend", default="fused", help="default %(default)s")
    add("--bandwidth", type=float, default=10.0, metavar="GB/S", help="of ranks (%(default)s)")
    add("--more", nargs="*", default=[], metavar="FLAG", help="further flags of bigmodel")
