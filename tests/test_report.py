"""asv's results and run records as one table, and the report that is made of them."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from largesparse import records
from largesparse.benchmark_plots import benchmark_figures
from largesparse.cli import run_command
from largesparse.errors import DataError
from largesparse.measurements import read_measurements

ROOT = Path(__file__).parent.parent
TIME, TRACK = "step.Step.time_step", "limits.Machine.track_bandwidth"
COMMITS = {"a" * 40: 1_700_000_000_000, "b" * 40: 1_700_000_360_000}


@pytest.fixture(scope="module")
def report():
    spec = importlib.util.spec_from_file_location("report", ROOT / "tools" / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def asv(tmp_path):
    """A folder of results of two commits, as asv writes it."""
    folder = tmp_path / "results"
    machine = folder / "box"
    machine.mkdir(parents=True)
    (machine / "machine.json").write_text(json.dumps({"machine": "box", "version": 1}))
    sizes, backends = ["10000", "100000"], ["'mkl'", "'fused'"]
    described = {
        TIME: {"param_names": ["neurons", "backend"], "unit": "seconds"},
        TRACK: {"param_names": [], "unit": "GB/s"},
    }
    (folder / "benchmarks.json").write_text(json.dumps(described | {"version": 2}))
    columns = ["result", "params", "version", "started_at", "duration"]
    for k, (commit, date) in enumerate(COMMITS.items()):
        values = [1.0, 2.0, float("nan"), 4.0 + k]
        low, high = [0.5, 1.5, None, -np.inf], [1.5, 3, None, np.inf]
        results = {
            TIME: [values, [sizes, backends], "1", 0, 1, low, high],
            TRACK: [[16.5], [], "1", 0, 1],
            "gone.time_it": [[3.0], [], "1", 0, 1],
        }
        told = {
            "commit_hash": commit,
            "env_name": "env",
            "date": date,
            "params": {"machine": "box", "python": "3.11"},
            "python": "3.11",
            "requirements": {},
            "env_vars": {"NUMBA_NUM_THREADS": "1"},
            "result_columns": [*columns, "stats_ci_99_a", "stats_ci_99_b"],
            "results": results,
            "durations": {},
            "version": 2,
        }
        (machine / f"{commit[:8]}-env.json").write_text(json.dumps(told))
    return folder


@pytest.fixture
def runs(tmp_path):
    """A file of records: two sizes, one of them by one rank and by three."""
    path = tmp_path / "runs.jsonl"
    for neurons, ranks in ((1000, 1), (2000, 1), (2000, 3)):
        values = {
            "neurons": neurons,
            "connections": 2 * neurons,
            "backend": "fused",
            "ranks": ranks,
            "threads": 1,
            "train_samples": 700,
            "test_samples": 300,
            "init_s": 1.0,
            "epoch_s": [4.0, 6.0],
            "inference_s": [2.0, 2.0, 2.0],
            "evolution_s": [0.5, None],
            "peak_rss_bytes": 10**9,
            "node_pss_bytes": 2 * 10**9,
        }
        records.append_record(path, records.new_record("bigmodel", **values))
    return path


def test_one_table_of_both(asv, runs):
    table = read_measurements(runs, asv=asv)
    times = table[table["figure"] == TIME].sort_values(["date", "value"])
    assert times["value"].tolist() == [1, 2, 4, 1, 2, 5]  # the NaN is left out
    assert times["neurons"].tolist() == [1e4, 1e4, 1e5] * 2
    assert times["backend"].tolist() == ["mkl", "fused", "fused"] * 2
    assert times["threads"].tolist() == [1] * 6
    assert times["low"].tolist()[:2] == [0.5, 1.5] and np.isnan(times["high"].tolist()[2])
    assert set(times["unit"]) == {"s"}
    assert times["date"].iloc[0] == pd.Timestamp("2023-11-14 22:13:20", tz="UTC")
    assert table[table["figure"] == TRACK]["value"].tolist() == [16.5] * 2
    assert "gone.time_it" not in set(table["figure"])

    ours = table[table["source"] == "bigmodel"]
    epochs = ours[ours["figure"] == "epoch_s"]
    assert epochs["value"].tolist() == [50] * 3  # the median, for 7000 samples
    assert epochs["ranks"].tolist() == [1, 1, 3]
    peaks = ours[ours["figure"] == "peak_bytes"]
    assert peaks["value"].tolist() == [1e9, 1e9, 2e9]
    assert set(ours["connections"]) == {2000, 4000}


def test_there_must_be_results(tmp_path, asv):
    with pytest.raises(DataError, match="asv run"):
        read_measurements()
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "none"))):
        read_measurements(asv=tmp_path / "none")
    (asv / "benchmarks.json").write_text("{")
    with pytest.raises(DataError, match=re.escape("benchmarks.json")):
        read_measurements(asv=asv)


def test_the_page_and_its_plots(report, asv, runs, tmp_path, capsys):
    out = tmp_path / "out"
    report.main([str(runs), "--asv", str(asv), "--out", str(out), "--history", "Step"])
    assert capsys.readouterr().out == f"{out / 'index.html'}\n"
    page = (out / "index.html").read_text()
    names = {path.name for path in out.iterdir()}
    assert {"index.html", "report-scaling-epoch.png", "report-history-Step.png"} <= names
    assert "report-threads.png" not in names  # there is nothing to draw it from
    links = set(re.findall(r"https?://[^\"<\s]*", page))
    assert links <= {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}
    assert "<script" not in page and "bbbbbbbb" in page
    rows = re.findall(r"<td>2,000</td><td>4,000</td>", page)
    assert len(rows) == 2  # one rank and three


def test_parts_that_are_missing_are_left_out(report, asv, runs, tmp_path):
    report.main([str(runs), "--no-asv", "--out", str(tmp_path / "one")])
    assert "benchmark suite" not in (tmp_path / "one" / "index.html").read_text()
    report.main(["--asv", str(asv), "--out", str(tmp_path / "two"), "--history"])
    assert "Table 4" not in (tmp_path / "two" / "index.html").read_text()


def test_mistakes_are_told(report, asv, tmp_path, monkeypatch, capsys):
    def run(*arguments: str) -> str:
        assert run_command(lambda: report.main(list(arguments))) == 2
        return capsys.readouterr().err

    assert TIME in run("--asv", str(asv), "--history", "nothing", "--out", str(tmp_path / "x"))
    assert "asv run" in run("--asv", str(tmp_path / "none"))
    monkeypatch.setitem(sys.modules, "asv.results", None)
    assert "largesparse[bench]" in run("--asv", str(asv))


def test_strong_and_weak_scaling_are_drawn_beside_linear():
    rows = [
        ("ranks.Ranks.track_rate", 100.0, {"ranks": 2, "algorithm": "wassp"}),
        ("ranks.Ranks.track_rate", 150.0, {"ranks": 3, "algorithm": "wassp"}),
        ("ranks.Ranks.track_rate", 100.0, {"ranks": 2, "algorithm": "wasap"}),
        ("ranks.WeakRanks.track_rate", 200.0, {"ranks": 2}),
        ("ranks.WeakRanks.track_rate", 390.0, {"ranks": 3}),
        ("step.WeakThreads.track_rate", 10.0, {"threads": 1}),
        ("step.WeakThreads.track_rate", 18.0, {"threads": 2}),
        ("step.Threads.track_step", 0.8, {"threads": 1}),
        ("step.Threads.track_step", 0.5, {"threads": 2}),
        ("inference.Processes.time_predict", 0.8, {"processes": 1}),
    ]
    told = {"source": "asv", "machine": "box", "commit": "a", "date": pd.Timestamp("2026-01-01")}
    empty = dict.fromkeys(("ranks", "threads", "neurons", "backend", "processes", "algorithm"))
    table = pd.DataFrame(
        [told | empty | {"figure": name, "value": value} | more for name, value, more in rows]
    )
    figures = benchmark_figures(table)
    assert set(figures) == {"threads", "weak", "ranks"}
    found = {
        name: {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
        for name, figure in figures.items()
    }
    assert found["threads"] == {"measured": [1.0, 1.6], "linear": [1.0, 2.0]}
    assert found["weak"] == {"measured": [1.0, 1.8], "linear": [1.0, 2.0]}
    assert found["ranks"] == {
        "wassp, same rows": [1.0, 1.5],
        "wasap, same rows a worker": [1.0, 1.95],
        "linear": [1.0, 2.0],
    }
