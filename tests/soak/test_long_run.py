"""soak/long_run.py, not for long, and what it would call wrong."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from largesparse import Trainer
from largesparse.machine.environment import find_mpiexec


@pytest.fixture
def tool(monkeypatch):
    module = importlib.import_module("soak.long_run")
    monkeypatch.setattr(module, "SPREAD", 0.1)  # 40 epochs are no long run
    return module


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="counts what Linux tells")
def test_a_short_run_leaves_nothing(tool, capsys):
    if find_mpiexec() is None:
        pytest.skip("no mpiexec")
    wrong = tool.train(40, "scipy")
    assert wrong == []
    processes = [each for each in tool.start_jobs(1) if "process" in each or "status" in each]
    assert processes == []
    assert "1 jobs of" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="counts what Linux tells")
def test_what_leaks_is_told(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "SPREAD", 0.02)
    kept, evolve = [], Trainer.evolve

    def leaking(trainer, *values, **options):
        kept.append(open(tmp_path / f"file-{len(kept)}", "w"))  # noqa: SIM115
        kept.append(bytearray(b"1") * 2**22)
        return evolve(trainer, *values, **options)

    monkeypatch.setattr(Trainer, "evolve", leaking)
    wrong = tool.train(40, "scipy")
    for each in kept[::2]:
        each.close()
    assert any(each.startswith("memory differs by") for each in wrong)
    assert any(each.startswith("files: ") for each in wrong)


def test_processes_that_are_left_are_seen(tool, monkeypatch, tmp_path):
    script = tmp_path / "job.py"
    script.write_text("import time; time.sleep(99)")
    monkeypatch.setattr(tool, "BIGMODEL", [sys.executable, str(script)])
    before = tool.left_behind()
    with subprocess.Popen([sys.executable, str(script), *tool.JOB]) as left:
        found = tool.left_behind() - before
        left.kill()
    assert f"process {left.pid}" in found
