"""What `largesparse bench` times in processes of their own: sizes of Table 4, and ranks.

python -m largesparse.harness.bench.children NEURONS THREADS SECONDS prints the phases of a size.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import LargeSparseError
from ...machine.exit_codes import run_command
from ...machine.launching import start_ranks
from ...machine.threads import available_threads
from ...machine.usage import peak_rss_bytes
from ...model.config import NetworkConfig, TrainingConfig
from ...model.network import SparseMLP
from ...training.memory import choose_plan
from ...training.prediction import predict
from ...training.trainer import Trainer
from ...training.warming import warm_up
from ..noise import reference_seconds
from ..plots import TEST_SAMPLES, TRAIN_SAMPLES
from ..presets import BATCH_SIZE, FEATURES, hidden_sizes, nearest_row
from ..records import read_records, record_rows

PHASES = ("initialisation", "epoch", "inference", "evolution")
RANKS = (
    *("--neurons=20k", "--features=512", "--samples=2000", "--epochs=3", "--backend=fused"),
    *("--optimizer=sgd", "--growth=random"),  # of which the figures are since there are any
)
RANKS_ROWS = 1400  # of --samples, that are trained on


def network_config(neurons: int) -> NetworkConfig:
    """Return the network of a size, as Table 4 has it or its nearest row."""
    row = nearest_row(neurons)
    sizes = (FEATURES, *hidden_sizes(neurons, row.hidden_layers), 2)
    return NetworkConfig(sizes, epsilon=row.epsilon, recipe="width")


def measure_size(neurons: int, threads: int, seconds: float) -> dict[str, Any]:
    """Return repeats of every phase of a size, in seconds, until the time is over.

    An epoch is that of 7000 samples and inference that of 3000, from the time of one mini-batch.

    Raises
    ------
    MemoryPlanError
        Where it does not fit into the memory that is free.
    """
    config = network_config(neurons)
    plan = choose_plan(config, BATCH_SIZE, backend="fused")
    settings: Any = {"batch_size": BATCH_SIZE, "backend": "fused", "threads": threads}
    settings |= plan.micro_batching.settings()
    whole = plan.micro_batching.micro_batch == BATCH_SIZE
    warm_up("fused", threads, settings["activation_dtype"], whole=whole)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((BATCH_SIZE, FEATURES), dtype=np.float32)
    y = rng.integers(2, size=BATCH_SIZE, dtype=np.int32)
    times: dict[str, list[float]] = {phase: [] for phase in PHASES}
    reference: dict[str, list[float]] = {phase: [] for phase in PHASES}

    def timed(phase: str, call: Callable[[], Any], scale: float = 1.0) -> Any:
        reference[phase].append(reference_seconds())
        started = time.perf_counter()
        result = call()
        times[phase].append(scale * (time.perf_counter() - started))
        return result

    end = time.monotonic() + seconds
    network = timed("initialisation", lambda: SparseMLP(config, threads=threads, progress=False))
    trainer = Trainer(network, TrainingConfig(**settings))
    trainer.step(X, y)
    while not times["evolution"] or time.monotonic() < end:
        timed("epoch", lambda: trainer.step(X, y), TRAIN_SAMPLES / BATCH_SIZE)
        timed(
            "inference",
            lambda: predict(network, X, backend="fused", threads=threads),
            TEST_SAMPLES / BATCH_SIZE,
        )
        timed("evolution", trainer.evolve)
    found = {"times": times, "reference": reference, "connections": network.connections}
    return found | {"peak_bytes": peak_rss_bytes()}


def run_size(neurons: int, threads: int, seconds: float, limit: float) -> dict[str, Any]:
    """Return `measure_size` of a fresh process, which is ended after `limit` seconds.

    Raises
    ------
    LargeSparseError
        Where it does not fit, failed, or took too long; with the reason.
    """
    words = [sys.executable, "-m", __name__, str(neurons), str(threads), str(seconds)]
    result: dict[str, Any] = json.loads(_run(words, limit).splitlines()[-1])
    return result


def run_ranks(ranks: int, algorithm: str, limit: float) -> list[float]:
    """Return the seconds of each epoch of a small training by so many ranks, one thread each.

    Raises
    ------
    LargeSparseError
        Where there is no mpiexec, it failed, or took too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "runs.jsonl"
        words = [*start_ranks(ranks), sys.executable, "-m", "largesparse", "bigmodel", *RANKS]
        words += ["--threads=1", f"--out={out}"]
        if ranks > 1:
            words += [f"--algorithm={algorithm}", "--phase-one-epochs=3", "--batch-size=128"]
        if algorithm == "wasap":  # as many gradients at a time as cores, of which the figures are
            words.append(f"--slots={max(1, min(ranks - 1, available_threads()))}")
        _run(words, limit)
        (record,) = record_rows(read_records(out))
    return _epochs(record)


def _epochs(record: Mapping[str, Any]) -> list[float]:
    return [seconds for seconds in record["epoch_s"] if seconds]


def _run(words: list[str], limit: float) -> str:
    """Return what a command prints."""
    try:
        done = subprocess.run(
            words, check=False, capture_output=True, text=True, timeout=max(1.0, limit)
        )
    except subprocess.TimeoutExpired as error:
        raise LargeSparseError(f"It took longer than the {limit:.0f} s that were left.") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it printed nothing"]
        told = [line for line in lines if "error:" in line] or lines[-1:]
        raise LargeSparseError(told[0].partition("error: ")[2] or told[0])
    return done.stdout


def main() -> int:
    """Print the phases of a size as JSON."""
    neurons, threads, seconds = sys.argv[1:]
    print(json.dumps(measure_size(int(neurons), int(threads), float(seconds))))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
