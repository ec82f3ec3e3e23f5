"""Run trainings in child processes, several at once, with one progress bar."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TextIO, TypeAlias, cast

from tqdm import tqdm

from ..errors import LargeSparseError, ParameterError, install_command
from ..machine.environment import find_mpiexec
from ..machine.launching import start_ranks
from ..machine.output import LogLines, is_terminal
from .trainings import Training

Bar: TypeAlias = tqdm | LogLines
CHILD = f"{__package__}.child"
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"
)


class Children:
    """Child processes, each of which runs one training.

    Parameters
    ----------
    out : path
        The file that receives the records.
    command : str
        What the records name as their command.
    jobs : int
        How many trainings run at once. One by several ranks always runs alone.
    """

    def __init__(self, out: str | Path, command: str, jobs: int) -> None:
        self.out, self.command, self.jobs = str(out), command, jobs
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False
        self._lock = threading.Lock()

    def run(self, trainings: Mapping[str, Training]) -> list[str]:
        """Run trainings, given by what they are called; return what went wrong.

        Raises
        ------
        ParameterError
            Where mpiexec is needed and not there.
        """
        parallel = {name: one for name, one in trainings.items() if one.ranks > 1}
        single = {name: one for name, one in trainings.items() if one.ranks == 1}
        if parallel and find_mpiexec() is None:
            raise ParameterError(
                "mpiexec was not found, which WASAP and WASSP are trained by: "
                f"{install_command('mpi')}, or leave them out by --only."
            )
        failures = []
        total = sum(one.training.epochs for one in trainings.values())
        bar: Bar = LogLines("trainings", total, " epochs")
        if is_terminal():
            bar = tqdm(total=total, unit=" epochs", smoothing=0.02)
        with bar:
            for jobs, group in ((self.jobs, single), (1, parallel)):
                failures += self._run_group(group, min(jobs, max(1, len(group))), bar)
        return failures

    def _run_group(self, group: Mapping[str, Training], jobs: int, bar: Bar) -> list[str]:
        failures = []
        with ThreadPoolExecutor(jobs) as pool:
            futures = {
                pool.submit(self._train, name, training, jobs == 1, bar): name
                for name, training in group.items()
            }
            try:
                for future in as_completed(futures):
                    try:
                        future.result()
                    except LargeSparseError as error:
                        failures.append(f"{futures[future]}: {error}")
                        tqdm.write(failures[-1], file=sys.stderr)
            except BaseException:
                self._stop()
                pool.shutdown(cancel_futures=True)
                tqdm.write(
                    "Stopped. Repeat the command to go on: trainings of one process from their "
                    "last epoch, the others anew.",
                    file=sys.stderr,
                )
                raise
        return failures

    def _train(self, name: str, training: Training, alone: bool, bar: Bar) -> None:
        order = {
            "settings": training.settings,
            "command": self.command,
            "out": self.out,
            "alone": alone,
        }
        command = [*start_ranks(training.ranks), sys.executable, "-m", CHILD, json.dumps(order)]
        started, reached, before = time.monotonic(), [], 0
        with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
            child = self._start(command, cast("TextIO", errors))
            if child is None:
                return
            assert child.stdout is not None
            with child:
                for line in child.stdout:
                    epoch, _, accuracy = line.strip().partition(" ")
                    if not epoch.isdigit():
                        continue
                    with self._lock:
                        bar.set_postfix(**{name: f"epoch {epoch}, accuracy {accuracy:.6}"})
                        bar.update(int(epoch) - before)
                    before = int(epoch)
                    if accuracy != "-":
                        reached.append(float(accuracy))
            with self._lock:
                self._running.discard(child)
            errors.seek(0)
            said = errors.read().strip().splitlines()
        if self._stopped:
            return
        if child.returncode:
            ours = [line for line in said if line.startswith("largesparse: error: ")]
            reason = ours[0].partition("error: ")[2] if ours else (said or ["no message"])[-1]
            raise LargeSparseError(f"{reason} (exit code {child.returncode})")
        if reached:
            tqdm.write(
                f"{name}: best {max(reached):.2%}, last {reached[-1]:.2%}, "
                f"{(time.monotonic() - started) / 60:.1f} minutes in all",
                file=sys.stderr,
            )

    def _start(self, command: list[str], errors: TextIO) -> subprocess.Popen[str] | None:
        with self._lock:
            if self._stopped:
                return None
            child = subprocess.Popen(
                command,
                env=os.environ | ONE_THREAD,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            self._running.add(child)
            return child

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            for child in self._running:
                child.terminate()
