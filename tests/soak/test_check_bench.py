"""soak/check_bench.py: what it says of runs that it finds; the benchmark is not run."""

import importlib

import numpy as np
import pytest

from largesparse.errors import LargeSparseError
from largesparse.harness.bench.results import Bench, Figure, write_bench

NAMES = "run1", "run2", "run3", "slowed-0.15"


@pytest.fixture
def tool():
    return importlib.import_module("soak.check_bench")


def written(path, seed, factor=1.0):
    rng = np.random.default_rng(seed)
    names = [f"step/fused/{k}" for k in range(4)] + [f"limits/{k}" for k in range(6)]
    figures = []
    for name in names:
        group = name.partition("/")[0]
        seconds = 5e-3 * rng.lognormal(0, 0.02, 15) * (factor if group == "step" else 1)
        figures.append(Figure(name, group, list(seconds), [2e-3] * 15, group == "limits"))
    write_bench(
        path, Bench(figures, cpu="a processor", cores=2, threads=2, complete=True, minutes=10.0)
    )


@pytest.mark.parametrize(
    ("factors", "status", "found"),
    [
        ((1.0, 1.0, 1.0, 1.15), 0, "called slower beside 3 of 3 runs"),
        ((1.0, 1.0, 1.0, 1.0), 1, "called slower beside 0 of 3 runs"),
        ((1.0, 1.2, 1.0, 1.4), 1, "of the figures of 3 pairs"),
    ],
)
def test_pairs_of_unchanged_runs_and_the_slowed_one(
    tool, tmp_path, capsys, monkeypatch, factors, status, found
):
    monkeypatch.setattr(tool, "plant", lambda *_: {"slower": "a commit"})
    monkeypatch.setattr(tool, "git", lambda *_: "")
    for seed, (name, factor) in enumerate(zip(NAMES, factors, strict=True)):
        written(tmp_path / f"{name}.json", seed, factor)
    assert tool.main(["--times", "3", "--out", str(tmp_path)]) == status
    assert found in capsys.readouterr().out


def test_without_a_slowed_run_none_is_made(tool, tmp_path, capsys):
    for seed in range(2):
        written(tmp_path / f"run{seed + 1}.json", seed)
    assert tool.main(["--times", "2", "--slow-down", "0", "--out", str(tmp_path)]) == 0
    assert "100.0% of the figures of 1 pairs" in capsys.readouterr().out


def test_files_of_other_lengths_and_short_ones_are_refused(tool, tmp_path):
    for seed in range(2):
        written(tmp_path / f"run{seed + 1}.json", seed)
    words = ["--times", "2", "--slow-down", "0", "--out", str(tmp_path)]
    with pytest.raises(LargeSparseError, match="of 10 minutes, not of 3"):
        tool.main([*words, "--minutes", "3"])
    for name in ("run1", "run2"):
        bench = tool.read_bench(tmp_path / f"{name}.json")
        for figure in bench.figures:
            figure.times_s, figure.reference_s = figure.times_s[:3], figure.reference_s[:3]
        write_bench(tmp_path / f"{name}.json", bench)
    with pytest.raises(LargeSparseError, match="give more --minutes"):
        tool.main(words)


def test_a_run_that_fails_says_why(tool, tmp_path):
    with pytest.raises(LargeSparseError, match="'minutes'"):
        tool.run_bench(tool.ROOT, -1.0, tmp_path / "run1.json")
