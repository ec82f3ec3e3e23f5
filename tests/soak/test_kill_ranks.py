"""soak/kill_ranks.py: one kill, and how it judges."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys

import pytest

from largesparse.machine.environment import find_mpiexec
from largesparse.machine.folders import COMPLETE, FORMAT, MANIFEST

SMALL = ["--neurons=5k", "--samples=300", "--epochs=2", "--phase-one-epochs=1", "--undisturbed=2"]


@pytest.fixture
def tool():
    return importlib.import_module("soak.kill_ranks")


@pytest.mark.long
@pytest.mark.skipif(find_mpiexec() is None, reason="no mpiexec")
def test_a_killed_job_is_resumed(tool, capsys):
    flags = ["--times", "1", "--ranks", "2", "--algorithm", "wassp", "--target", "worker"]
    assert tool.main([*flags, *SMALL]) == 0
    out = capsys.readouterr().out
    assert "1 of 1 right" in out and "worker in averaging 1 of wassp" in out


@pytest.mark.long
@pytest.mark.skipif(find_mpiexec() is None, reason="no mpiexec")
def test_a_killed_pipeline_is_resumed_to_the_bit(tool, capsys):
    flags = ["--times", "1", "--ranks", "2", "--algorithm", "pipeline", "--target", "worker"]
    small = [flag for flag in SMALL if not flag.startswith("--phase")]
    assert tool.main([*flags, *small]) == 0
    out = capsys.readouterr().out
    assert "1 of 1 right" in out and "worker in evaluation" in out


@pytest.mark.parametrize(
    ("found", "alike"),
    [((0.5, 0.8), True), ((0.53, 0.8), True), ((0.6, 0.8), False), ((0.5, 0.6), False)],
)
def test_results_are_compared_with_their_spread(tool, found, alike):
    results = [(0.49, 0.79), (0.5, 0.8), (0.51, 0.81)]
    assert tool.are_alike(found, results) == alike
    assert tool.are_alike((0.5, 0.8), [(0.5, 0.8)] * 5)


def test_those_who_are_aimed_at_are_killed(tool, tmp_path):
    sleepers = [
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"]) for _ in "abc"
    ]
    log = tmp_path / "log"
    log.write_text("".join(f"1.5 {s.pid} pid {k}\n" for k, s in enumerate(sleepers)) + "2.5 0 ph")
    events = tool.read(log)  # what is being written is left for later
    assert [event.text for event in events] == ["pid 0", "pid 1", "pid 2"]
    pids = tool.pids_of(events)
    assert tool.aims("mpiexec", 7, pids) == [7]
    assert tool.aims("all ranks", 7, pids) == [s.pid for s in sleepers]
    assert tool.aims("rank 0", 7, pids) == [sleepers[0].pid]
    tool.kill([*tool.aims("worker", 7, pids), 2**22 + 1])
    assert sleepers[2].wait(10) == -9
    assert [tool.is_running(s.pid) for s in sleepers] == [True, True, False]
    tool.kill(pids.values())
    for sleeper in sleepers:
        sleeper.wait(10)


def test_the_last_record_counts(tool, tmp_path):
    rows = [{"loss": [1, 0.5], "accuracy": [0.1, 0.2]}, {"loss": [1, 0.4], "accuracy": [0, 0.3]}]
    (tmp_path / "run.jsonl").write_text("".join(json.dumps(row) + os.linesep for row in rows))
    assert tool.result_of(tmp_path / "run") == (0.4, 0.3)


def test_files_are_those_of_the_checkpoint_that_is_read(tool, tmp_path):
    """A process may have been killed between the rename that completes one and its tidying up."""
    for place, files in ((tmp_path, {"layer-1": 1}), (tmp_path / COMPLETE, {"layer-1": 2})):
        place.mkdir(exist_ok=True)
        (place / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}))
    assert tool.files_of(tmp_path) == {"layer-1": 2}
