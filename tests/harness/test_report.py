"""asv's results and run records as one table, and the report that is made of them."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pandas as pd
import pytest

from largesparse.errors import DataError
from largesparse.harness import records, report
from largesparse.harness.measurements import CONDITIONS, COUNTS, read_measurements
from largesparse.harness.report import benchmark_figures, history_figure, strong_scaling
from largesparse.harness.series import colour_of
from largesparse.machine.exit_codes import run_command

TIME, TRACK = "step.Step.time_step", "limits.Machine.track_bandwidth"
COMMITS = {"a" * 40: 1_700_000_000_000, "b" * 40: 1_700_000_360_000}


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


def test_the_page_and_its_plots(asv, runs, tmp_path, capsys):
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
    rows = re.findall(r"<tr><td>2,000</td><td>1</td><td>50</td>", page)  # init and epoch
    assert len(rows) == 2  # one rank and three


@pytest.fixture
def without_pngs(monkeypatch):
    """They take most of the time of a report."""
    monkeypatch.setattr(report.pages, "save_figures", lambda *_: [])


@pytest.mark.usefixtures("without_pngs")
def test_a_value_and_its_unit_stand_beside_the_name(asv, runs, tmp_path):
    report.main([str(runs), "--asv", str(asv), "--out", str(tmp_path)])
    page = (tmp_path / "index.html").read_text()
    runs_table, _, suite = map(cells_of, page.split("<table>")[1:])
    assert suite[0] == ["figure", "value", "unit", "settings", "low", "high", "commit", "machine"]
    assert [row[0] for row in suite[1:]] == [TRACK, TIME, TIME, TIME]
    assert [row[1:4] for row in suite[2:]] == [
        ["2", "s", "10k neurons, fused, 1 thread"],
        ["1", "s", "10k neurons, mkl, 1 thread"],
        ["5", "s", "100k neurons, fused, 1 thread"],
    ]
    assert runs_table[0][:3] == ["neurons", "init s", "epoch s"]
    assert "epsilon" not in runs_table[0]  # no run says it
    assert runs_table[1][runs_table[0].index("peak GiB")] == "0.931"


def cells_of(table):
    lines = re.findall("<tr>.*", table)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", line) for line in lines]
    return [[cell.replace("<wbr>", "") for cell in row] for row in cells]


@pytest.mark.usefixtures("without_pngs")
def test_a_part_of_the_suite_is_reported(asv, tmp_path, capsys):
    for path in asv.glob("box/*-env.json"):
        result = json.loads(path.read_text())
        del result["results"][TIME]
        path.write_text(json.dumps(result))
    assert run_command(lambda: report.main(["--asv", str(asv), "--out", str(tmp_path)])) == 0
    assert "limits.<wbr>Machine" in (tmp_path / "index.html").read_text()
    argv = ["--asv", str(asv), "--out", str(tmp_path), "--history", TIME]
    assert run_command(lambda: report.main(argv)) == 2  # asked for, and not there
    assert TRACK in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [
        lambda result: "{",
        lambda result: "[]",
        lambda result: json.dumps(result | {"results": {TIME: [[1.0], [["9"], [7]]]}}),
        lambda result: json.dumps(result | {"date": "yesterday"}),
        lambda result: json.dumps(result | {"env_vars": {"NUMBA_NUM_THREADS": "many"}}),
        lambda result: json.dumps({"version": 2}),
    ],
)
def test_a_damaged_result_of_asv_is_skipped(asv, caplog, damage):
    first, _ = sorted(asv.glob("box/*-env.json"))
    first.write_text(damage(json.loads(first.read_text())))
    table = read_measurements(asv=asv)
    assert set(table["commit"]) == {"b" * 40}
    assert first.name in caplog.text


def test_results_of_a_benchmark_that_took_other_parameters_are_left_out(asv):
    described = json.loads((asv / "benchmarks.json").read_text())
    described[TIME]["param_names"].append("new")
    (asv / "benchmarks.json").write_text(json.dumps(described))
    assert set(read_measurements(asv=asv)["figure"]) == {TRACK}


@pytest.mark.usefixtures("without_pngs")
def test_records_that_hardly_say_anything_are_reported(runs, tmp_path):
    lacking = tmp_path / "lacking.jsonl"
    row = {"kind": "bigmodel", "neurons": 1000, "connections": 5, "init_s": 1.0}
    lacking.write_text(json.dumps(row) + "\n{}\n")
    for files in ([lacking], [lacking, runs]):
        out = tmp_path / str(len(files))
        report.main([*map(str, files), "--no-asv", "--out", str(out)])
        page = (out / "index.html").read_text()
        assert "unknown backend" in page
        assert not re.search(r">(nan|NaN|NaT|None)<", page)


@pytest.mark.usefixtures("without_pngs")
def test_parts_that_are_missing_are_left_out(asv, runs, tmp_path):
    report.main([str(runs), "--no-asv", "--out", str(tmp_path / "one")])
    assert "benchmark suite" not in (tmp_path / "one" / "index.html").read_text()
    report.main(["--asv", str(asv), "--out", str(tmp_path / "two"), "--history"])
    assert "Table 4" not in (tmp_path / "two" / "index.html").read_text()


def test_mistakes_are_told(asv, tmp_path, monkeypatch, capsys):
    def run(*arguments: str) -> str:
        assert run_command(lambda: report.main(list(arguments))) == 2
        return capsys.readouterr().err

    assert TIME in run("--asv", str(asv), "--history", "nothing", "--out", str(tmp_path / "x"))
    assert "asv run" in run("--asv", str(tmp_path / "none"))
    (tmp_path / "file").touch()
    assert "cannot be written" in run("--asv", str(asv), "--out", str(tmp_path / "file"))
    monkeypatch.setitem(sys.modules, "asv.results", None)
    assert "pip install '.[bench]'" in run("--asv", str(asv))


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
    assert found["threads"] == {"fused": [1.0, 1.6], "linear": [1.0, 2.0]}
    assert found["weak"] == {"fused": [1.0, 1.8], "linear": [1.0, 2.0]}
    assert found["ranks"] == {
        "wassp, same rows": [1.0, 1.5],
        "wasap, same rows a worker": [1.0, 1.95],
        "linear": [1.0, 2.0],
    }
    colours = {line.get_label(): line.get_color() for line in figures["ranks"].axes[0].lines}
    assert colours["wasap, same rows a worker"] == colour_of("wasap")
    assert colours["wassp, same rows"] == colour_of("wassp")


def test_what_differs_is_a_line_of_its_own():
    told = {"source": "asv", "figure": "step.Density.time_step", "date": pd.Timestamp("2026-01-01")}
    empty = dict.fromkeys((*CONDITIONS, *COUNTS)) | {"machine": "box"}
    rows = [
        told | empty | {"epsilon": epsilon, "commit": commit, "value": value, "threads": 1}
        for epsilon in (1, 20)
        for commit, value in (("a" * 40, 2.0), ("b" * 40, 2.0 * epsilon))
    ]
    rows += [row | {"machine": "other"} for row in rows if row["epsilon"] == 1]
    lines = history_figure(pd.DataFrame(rows), "Density").axes[0].lines
    assert [(line.get_label(), list(line.get_ydata())) for line in lines] == [
        ("ε 1, on box", [1, 1]),
        ("ε 1, on other", [1, 1]),
        ("ε 20, on box", [1, 20]),
    ]


def test_strong_scaling_compares_runs_that_differ_in_their_ranks_alone(tmp_path):
    path = tmp_path / "runs.jsonl"
    same = {"neurons": 2000, "connections": 9, "train_samples": 700, "epoch_s": [1.0]}
    for ranks, features in ((1, 64), (3, 64), (1, 128), (1, 256), (3, 512)):
        changes = {"ranks": ranks, "features": features}
        records.append_record(path, records.new_record("bigmodel", **same, **changes))
    found = strong_scaling(read_measurements(path))
    assert found[["features", "ranks"]].to_numpy().tolist() == [[64, 1], [64, 3]]
