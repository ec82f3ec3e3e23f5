"""Scripts under mpiexec, as child processes with a time limit that leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from largesparse.machine.environment import find_mpiexec

MARKER = "LARGESPARSE_TEST_RUN"  # set in the environment of every process of a run


class Result(NamedTuple):
    """How a run ended."""

    status: int
    out: str
    err: str

    @property
    def messages(self) -> list[str]:
        """Lines on standard error that are the library's."""
        return [line for line in self.err.splitlines() if line.startswith("largesparse:")]


class MpiRun:
    """A run under mpiexec.

    Parameters
    ----------
    script : str
        A Python program, which may be indented.
    ranks : int
    arguments : sequence of str
        What the program finds in `sys.argv[1:]`.
    environment : mapping of str to str
        Variables beside those of this process.
    program : sequence of str
        Started instead of the script, if given: the path of a program and its arguments.
    directory : Path, optional
        Where the processes start.
    """

    def __init__(
        self,
        script: str,
        ranks: int,
        arguments: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        program: tuple[str, ...] = (),
        directory: Path | None = None,
    ) -> None:
        self.marker = uuid.uuid4().hex
        python = (sys.executable, *(program or ("-c", textwrap.dedent(script))), *arguments)
        self.process = subprocess.Popen(
            [mpiexec(), "-n", str(ranks), *python],
            env=os.environ | {MARKER: self.marker} | dict(environment or {}),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._out = ""

    def wait_for(self, text: str) -> None:
        """Read standard output up to the line that holds `text`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._out += line
            if text in line:
                return
        raise AssertionError(f"no {text!r} on standard output: {self.finish(5)}")

    def rank(self, rank: int) -> psutil.Process:
        """Return the process of a rank."""
        for found in processes(self.marker):
            environment = found.environ()
            name = environment.get("PMI_RANK", environment.get("OMPI_COMM_WORLD_RANK"))
            if name == str(rank) and "watcher.py" not in " ".join(found.cmdline()):
                return found
        raise AssertionError(f"no process of rank {rank}")

    def send(self, number: signal.Signals) -> None:
        """Send a signal to mpiexec."""
        self.process.send_signal(number)

    def finish(self, timeout: float) -> Result:
        """Wait for the end of the run and of all its processes; else the test fails."""
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.stop()
            out, err = self.process.communicate()
            pytest.fail(f"still running after {timeout} s:\n{self._out + out}\n{err}")
        deadline = time.monotonic() + 5
        while (left := processes(self.marker)) and time.monotonic() < deadline:
            time.sleep(0.05)
        orphans = [" ".join(process.cmdline()) for process in left]
        assert not orphans
        return Result(self.process.returncode, self._out + out, err)

    def stop(self) -> None:
        """Kill all processes of the run that are left."""
        self.process.kill()
        for process in processes(self.marker):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def mpiexec() -> str:
    """Return the path of mpiexec; the test is skipped where there is none, or no mpi4py."""
    found = find_mpiexec()
    if found is None or find_spec("mpi4py") is None:
        pytest.skip("needs mpi4py and mpiexec: pip install '.[mpi]'")
    return found


def processes(marker: str) -> list[psutil.Process]:
    """Return the living processes of a run."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            running = process.status() != psutil.STATUS_ZOMBIE
            if running and process.environ().get(MARKER) == marker:
                found.append(process)
    return found


@contextlib.contextmanager
def mpi_run(script: str, ranks: int, **options) -> Iterator[MpiRun]:
    """Start a script under mpiexec; whatever is left of it at the end of the block is killed."""
    run = MpiRun(script, ranks, **options)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            run.stop()
            run.process.communicate()


def run_mpi(script: str, ranks: int, *, timeout: float = 60, **options) -> Result:
    """Run a script under mpiexec to its end; see `MpiRun` for the options."""
    with mpi_run(script, ranks, **options) as run:
        return run.finish(timeout)
