"""What a process makes of the variables that a launcher of ranks sets, or has left behind."""

from __future__ import annotations

import os
import pty
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from mpi_runs import run_mpi

from largesparse.errors import ParameterError
from largesparse.harness import scaling
from largesparse.machine import environment, launching
from largesparse.machine.environment import launched_ranks, left_over_variables

OF_LAUNCHERS = ("PMI_", "PMIX_", "MPI_", "OMPI_", "MV2_", "SLURM_", "PALS_")
SLURM = {"SLURM_PROCID": "{}", "SLURM_STEP_NUM_TASKS": "3"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "{}", "OMPI_COMM_WORLD_SIZE": "3"}
ASK = "from largesparse.parallel.comm.ranks import get_communicator; print(get_communicator().size)"


def alone(**variables: str) -> dict[str, str]:
    """Return an environment without any launcher's variables but these."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(OF_LAUNCHERS)}
    return kept | variables


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python without a terminal."""
    return subprocess.run(
        [sys.executable, *words],
        env=alone(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def no_launcher(monkeypatch):
    for name in os.environ:
        if name.startswith(OF_LAUNCHERS):
            monkeypatch.delenv(name)


# Left-over variables


@pytest.mark.skipif(os.name != "posix", reason="files are inherited by their numbers")
def test_a_rank_has_a_connection_to_its_launcher(no_launcher, monkeypatch):
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setenv("PMI_SIZE", "3")
    assert launched_ranks() == (0, 1)  # no connection at all
    launcher, own = socket.socketpair()
    with own:
        monkeypatch.setenv("PMI_FD", str(own.fileno()))
        assert (launched_ranks(), left_over_variables()) == ((1, 3), [])
        launcher.send(b"cmd=")
        assert launched_ranks() == (1, 3)
        assert own.recv(4) == b"cmd="  # a look takes nothing away
        launcher.close()
        assert launched_ranks() == (0, 1)  # hung up
        assert left_over_variables() == ["PMI_FD", "PMI_RANK", "PMI_SIZE"]
    assert launched_ranks() == (0, 1)  # closed
    monkeypatch.setenv("PMI_FD", "no number")
    assert launched_ranks() == (0, 1)
    monkeypatch.delenv("PMI_FD")
    monkeypatch.setenv("PMI_PORT", "host:1234")
    assert launched_ranks() == (1, 3)


@pytest.mark.parametrize(
    "left_over",
    [
        {"PMI_RANK": "1", "PMI_SIZE": "3"},
        {"PMI_RANK": "0", "PMI_SIZE": "1", "PMI_FD": "7"},
        {"PMI_RANK": "2", "PMI_SIZE": "3", "PMI_FD": "7"},
        {"PMI_FD": "7"},
    ],
)
def test_a_lone_process_with_a_job_s_variables_goes_on_alone(left_over):
    pytest.importorskip("mpi4py")
    done = run("-c", ASK, **left_over)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    assert all(name in done.stderr for name in left_over)
    assert done.stderr.count("\n") == 1 and "going on as one process" in done.stderr


def test_a_second_program_in_a_rank_s_shell_goes_on_alone():
    """The first has used up the shell's connection to the launcher."""
    shell = f'"{sys.executable}" -c "{ASK}" && "{sys.executable}" -c "{ASK}"'
    script = (
        f"import subprocess, sys; sys.exit(subprocess.call({shell!r}, shell=True, close_fds=0))"
    )
    result = run_mpi(script, 1)
    assert (result.status, result.out) == (0, "1\n1\n"), result.err
    assert result.err.count("PMI_FD") == 1


def test_the_process_of_a_job_s_other_launcher_is_told_what_to_unset():
    variables = {name: value.format(0) for name, value in OPEN_MPI.items()}
    done = run("-c", ASK, **variables)
    assert done.returncode == 1
    assert "unset OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE" in done.stderr


# Commands that are no programs for ranks


def test_a_command_under_mpiexec_is_refused_in_one_sentence(tmp_path):
    out = tmp_path / "model"
    command = ("-m", "largesparse", "train", "--data", "madelon", "--out", str(out))
    result = run_mpi("", 3, program=command)
    assert result.status == 2
    (message,) = result.err.splitlines()
    assert "3 ranks of 'largesparse train'" in message and "PMI_RANK PMI_SIZE" in message
    assert result.out == "" and not out.exists()


@pytest.mark.parametrize("launcher", [SLURM, OPEN_MPI])
@pytest.mark.parametrize("command", ["train", "predict", "evaluate", "inspect", "tune"])
def test_rank_0_tells_it_under_other_launchers(no_launcher, launcher, command, monkeypatch, capsys):
    from largesparse.commands.main import main

    monkeypatch.setattr(launching, "HEAD_START", 0.01)
    monkeypatch.setattr("sys.stdin", None)
    for name, value in launcher.items():
        monkeypatch.setenv(name, value.format(0))
    assert main([command]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"3 ranks of 'largesparse {command}'" in told
    for name, value in launcher.items():
        monkeypatch.setenv(name, value.format(2))
    with pytest.raises(SystemExit) as left:
        main([command])
    assert left.value.code == 2 and capsys.readouterr().err == ""


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no terminals")
@pytest.mark.parametrize("rank", ["0", "2"])
def test_a_command_that_is_typed_into_a_job_s_shell_is_alone(rank, tmp_path):
    """Its input is a terminal, which launchers do not give to ranks."""
    controller, terminal = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "largesparse", "inspect", str(tmp_path)],
        env=alone(SLURM_PROCID=rank, SLURM_STEP_NUM_TASKS="3"),
        stdin=terminal,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    os.close(controller)
    os.close(terminal)
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr and "ranks" not in done.stderr


def test_a_batch_script_is_no_rank(no_launcher, monkeypatch):
    for name, value in {"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_JOB_ID": "5"}.items():
        monkeypatch.setenv(name, value)
    assert launched_ranks() == (0, 1)


# mpiexec


def test_mpiexec_is_found_beside_an_interpreter_whose_environment_is_not_active(
    tmp_path, monkeypatch
):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    monkeypatch.setattr(environment.sys, "executable", str(python))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ParameterError, match=r"3 ranks need mpiexec.*'\.\[mpi\]'"):
        launching.start_ranks(3)
    mpiexec = python.with_name("mpiexec")
    mpiexec.touch(mode=0o700)
    assert launching.start_ranks(3) == [str(mpiexec), "-n", "3"]
    assert launching.start_ranks(1) == []
    options = scaling.make_parser().parse_args(["--ranks=3"])
    options.rest = []
    command = scaling.command_of(options, 1000, scaling.Length(9, 1), 32)
    assert command[:3] == [str(mpiexec), "-n", "3"]


def test_no_tool_looks_for_mpiexec_by_itself():
    folders = (ROOT / name for name in ("tools", "soak", "largesparse"))
    sources = [path for folder in folders for path in folder.rglob("*.py")]
    found = [
        path.name
        for path in sources
        if 'which("mpiexec"' in (text := path.read_text(encoding="utf-8")) or '["mpiexec"' in text
    ]
    assert found == [Path(environment.__file__).name]
