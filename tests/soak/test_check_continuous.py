"""soak/check_continuous.py: what it plants, and how it reads what asv says; asv is not run."""

import ast
import importlib
import subprocess
import sys
import time

import pytest
from helpers import ROOT

from largesparse.errors import LargeSparseError

TABLE = """
| Change   | Before [aa] <main>   | After [bb] <slower>   |   Ratio | Benchmark (Parameter)        |
|----------|----------------------|-----------------------|---------|------------------------------|
| {mark}   | 1.00±0.01ms          | 1.29±0.01ms           |    1.29 | step.Step.time_step(10000)   |
| {mark}   | 2.50                 | 2.75                  |    1.10 | step.Relative.track_step     |
{end}
"""


@pytest.fixture
def tool():
    return importlib.import_module("soak.check_continuous")


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git repository")
def test_one_commit_slows_training_down_and_one_changes_nothing(tool, tmp_path):
    commits = tool.plant(tmp_path / "clone", 0.3)
    assert set(commits) == {"newest", "unchanged", "slower"} and len(set(commits.values())) == 3

    def changed(name):
        names = tool.git(
            tmp_path / "clone", "diff", "--name-only", commits["newest"], commits[name]
        )
        return names.splitlines()

    assert changed("unchanged") == ["README.md"]
    assert changed("slower") == [tool.SLOWED]


def test_the_planted_code_takes_a_share_more_time(tool):
    class Kernel:
        def run(self, seconds):
            time.sleep(seconds)
            return "result"

    code = tool.PLANTED.replace("{share}", "2.0").split("from .")[0]
    names = {}
    exec(code, names)
    names["_slow_down"](Kernel, "run")
    start = time.perf_counter()
    assert Kernel().run(0.05) == "result"
    assert time.perf_counter() - start >= 0.15


def test_what_is_planted_finds_what_it_slows_down(tool):
    package = tool.SLOWED.rpartition("/")[0].replace("/", ".")
    found = [part for part in ast.parse(tool.PLANTED).body if isinstance(part, ast.ImportFrom)]
    assert len(found) == 2
    for part in found:
        module = importlib.import_module("." * part.level + part.module, package)
        assert all(hasattr(module, name.name) for name in part.names)


@pytest.mark.parametrize(
    ("mark", "end", "told"),
    [
        ("+", "SOME BENCHMARKS HAVE CHANGED SIGNIFICANTLY.\nPERFORMANCE DECREASED.", "slower"),
        (" ", "BENCHMARKS NOT SIGNIFICANTLY CHANGED.", "silent"),
    ],
)
def test_what_asv_says_is_read(tool, monkeypatch, tmp_path, mark, end, told):
    said = TABLE.format(mark=mark, end=end)
    script = [sys.executable, "-c", f"print({said!r})"]
    run = subprocess.run
    monkeypatch.setattr(tool.subprocess, "run", lambda _, **options: run(script, **options))
    assert tool.compare(tmp_path, "a", "b", "step") == {"ratio": 1.29, "told": told}


def test_a_comparison_of_nothing_is_an_error(tool, monkeypatch, tmp_path):
    script = [sys.executable, "-c", "print('no benchmarks selected')"]
    run = subprocess.run
    monkeypatch.setattr(tool.subprocess, "run", lambda _, **options: run(script, **options))
    with pytest.raises(LargeSparseError, match="no benchmarks selected"):
        tool.compare(tmp_path, "a", "b", "step")
