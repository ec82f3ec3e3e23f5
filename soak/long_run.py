"""Train for long, and start many jobs in a row: does anything grow, leak or stay behind?

    python -m soak long_run
    python -m soak long_run --epochs 300 --jobs 5

A small network is trained for --epochs epochs, with an evolution and a checkpoint after each, and
Importance Pruning eight times. Ten times after the first fifth its memory, open files, mapped files
and threads are counted; the memory may differ from its median by 1 % (the history of the training
takes up to 1 KiB an epoch), open files and threads not at all. The number of connections may change
by prunings alone. Then --jobs short jobs of three ranks are started, one after the other: each must
end well, and none may leave a process, a file in memory (/dev/shm), or a folder in the directory
for temporary files.

Needs Linux. A table is printed; the exit status is 1 where anything differs.
"""

from __future__ import annotations

import gc
import re
import subprocess
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from tqdm import tqdm

from largesparse import NetworkConfig, SparseMLP, Trainer, TrainingConfig
from largesparse.backends import BACKENDS
from largesparse.errors import check_range
from largesparse.harness.scaling import BIGMODEL
from largesparse.machine.launching import start_ranks
from largesparse.machine.sizes import parse_size
from largesparse.training.history import EpochRecord

JOB = ["--neurons=2k", "--features=64", "--samples=200", "--epochs=2", "--phase-one-epochs=1"]
PRUNINGS = 8
SAMPLES = 10  # of what a process holds
SPREAD = 0.01  # of memory
JOB_SECONDS = 120


class Watch:
    """Notes what this process holds, after some epochs.

    Attributes
    ----------
    rows : list of dict
    connections : list of int
        After every epoch.
    """

    def __init__(self, epochs: int) -> None:
        self.every = max(1, (epochs - epochs // 5) // SAMPLES)
        self.first = epochs - self.every * (SAMPLES - 1)
        self.rows: list[dict[str, Any]] = []
        self.connections: list[int] = []
        what_is_held()  # looking takes memory itself, the first time

    def __call__(self, trainer: Trainer, record: EpochRecord) -> None:
        self.connections.append(trainer.network.connections)
        if record.epoch >= self.first and (record.epoch - self.first) % self.every == 0:
            row = {"epoch": record.epoch, "connections": self.connections[-1]}
            self.rows.append(row | what_is_held() | {"seconds": record.epoch_s})


def what_is_held() -> dict[str, Any]:
    """Return what this process holds: memory, open and mapped files, threads.

    Pages of files, such as libraries, do not count as memory: other processes use them too.
    """
    gc.collect()
    process = psutil.Process()
    status = Path("/proc/self/status").read_text()
    kibibytes = map(int, re.findall(r"Rss(?:Anon|Shmem):\s+(\d+) kB", status))
    return {
        "MiB": sum(kibibytes) / 2**10,
        "files": process.num_fds(),
        "mapped": Path("/proc/self/maps").read_bytes().count(b"\n"),
        "threads": process.num_threads(),
    }


def train(epochs: int, backend: str) -> list[str]:
    """Train, print what was seen, and return what is wrong."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((256, 32), dtype=np.float32)
    y = X[:, :3].argmax(axis=1)
    config = NetworkConfig((32, 200, 150, 3), epsilon=8.0, seed=0)
    training = TrainingConfig(
        epochs=epochs,
        batch_size=32,
        learning_rate=0.01,
        backend=backend,
        threads=1,
        pruning_start=1,
        pruning_every=epochs // PRUNINGS,
        pruning_percentile=5.0,
    )
    watch = Watch(epochs)
    with tempfile.TemporaryDirectory(prefix="long-run-") as folder:
        trainer = Trainer(SparseMLP(config, progress=False), training)
        place = Path(folder) / "checkpoint"
        trainer.fit(X, y, checkpoint=place, callbacks=[watch])
    table = pd.DataFrame(watch.rows).set_index("epoch")
    print(table.to_string(float_format="{:.4g}".format), flush=True)
    wrong = []
    spread = (table["MiB"] / table["MiB"].median() - 1).abs().max()
    if spread > SPREAD:
        wrong.append(f"memory differs by {spread:.1%}")
    wrong += [
        f"{name}: {table[name].min()} to {table[name].max()}"
        for name in ("files", "threads")
        if table[name].nunique() > 1
    ]
    steps = np.diff(watch.connections)
    if np.any(steps > 0):
        wrong.append("connections became more")
    if np.count_nonzero(steps) > PRUNINGS:
        wrong.append(f"connections changed {np.count_nonzero(steps)} times by {PRUNINGS} prunings")
    return wrong


def left_behind() -> set[str]:
    """Return processes of jobs, files in memory, and entries of the temporary directory."""
    found = {f"process {p.pid}" for p in psutil.process_iter() if is_of_a_job(p)}
    for folder in (Path("/dev/shm"), Path(tempfile.gettempdir())):
        if folder.is_dir():
            found |= {str(path) for path in folder.iterdir()}
    return found


def is_of_a_job(process: psutil.Process) -> bool:
    try:
        return {*BIGMODEL[1:], *JOB} <= {*process.cmdline()}  # not of other runs beside
    except psutil.Error:
        return False


def start_jobs(count: int) -> list[str]:
    """Start short jobs of three ranks one after the other; return what is wrong."""
    before = left_behind()
    wrong, seconds = [], []
    for number in tqdm(range(count), desc="jobs", disable=None):
        start = time.perf_counter()
        command = [*start_ranks(3), *BIGMODEL, *JOB]
        options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": JOB_SECONDS}
        with tempfile.TemporaryDirectory() as folder:
            result = subprocess.run(
                [*command, "--out", f"{folder}/runs.jsonl"], check=False, **options
            )
        seconds.append(time.perf_counter() - start)
        if result.returncode:
            wrong.append(f"job {number}: status {result.returncode}: {result.stderr[-500:]}")
    left = left_behind() - before
    print(f"{count} jobs of {np.median(seconds):.1f} s; left behind: {sorted(left) or 'nothing'}")
    return wrong + [f"left behind: {each}" for each in sorted(left)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run both parts; return the exit status."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--epochs", type=parse_size, default=2000, help="of the long training (%(default)s)")
    add("--jobs", type=int, default=200, help="in a row, or 0 (%(default)s)")
    add("--backend", choices=BACKENDS, default="fused", help="of the training (%(default)s)")
    options = parser.parse_args(argv)
    check_range("epochs", options.epochs, "long_run", low=40)
    wrong = train(options.epochs, options.backend)
    if options.jobs:
        wrong += start_jobs(options.jobs)
    for each in wrong:
        print(f"wrong: {each}")
    print("nothing grows, leaks or stays behind" if not wrong else f"{len(wrong)} findings")
    return int(bool(wrong))
