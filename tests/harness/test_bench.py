"""`largesparse bench`: its file, what it spends its time on, and what two files say of a change."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT

from largesparse.errors import DataError, LargeSparseError
from largesparse.harness.bench import children, command, exports, schedule
from largesparse.harness.bench.compare import compare_benches, drift_between
from largesparse.harness.bench.machines import machines_page
from largesparse.harness.bench.page import make_page, summary
from largesparse.harness.bench.results import Bench, Figure, read_bench, write_bench
from largesparse.machine.exit_codes import run_command

NAMES = [f"step/{name}/fashion" for name in ("fused", "mkl", "scipy")]
NAMES += [f"step/fused/{n}" for n in range(20)]
CONTROLS = [f"limits/{n}" for n in range(6)]
STEP = {"name": "a", "group": "step", "control": False, "settings": {}}
STEP |= {"times_s": [], "reference_s": []}


def made(seed, *, repeats=9, drift=1.0, noise=0.02, between=0.02, slower=()):
    """A run whose machine is `drift` times as slow, by figures that change by run and repeat."""
    rng = np.random.default_rng(seed)
    figures = []
    for name in NAMES + CONTROLS:
        reference = drift * 2e-3 * rng.lognormal(0, 0.01, repeats)
        seconds = drift * 5e-3 * rng.lognormal(0, between) * rng.lognormal(0, noise, repeats)
        seconds *= 1.15 if name in slower else 1
        control = name in CONTROLS
        figure = Figure(name, name.partition("/")[0], list(seconds), list(reference), control)
        figure.settings = {"connections": 7}
        figures.append(figure)
    return Bench(figures, cpu="a processor", cores=2, threads=2, complete=True, seconds=60.0)


def test_unchanged_code_is_not_called_faster_or_slower():
    told = []
    for seed in range(6):
        table = compare_benches(made(seed), made(100 + seed, drift=1.3))
        told += list(table[~table["control"]]["verdict"])
        single = table[table["figures"] == 1]
        assert (single["ratio"] > 1.1).all()  # the machine has become slower
    assert told.count("cannot tell") >= 0.95 * len(told)


def test_a_kernel_that_is_slower_by_15_percent_is_found():
    slower, found, wrong = NAMES[:2], 0, 0
    for seed in range(5):
        table = compare_benches(made(seed), made(100 + seed, drift=0.8, slower=slower))
        verdicts = table[table["figures"] == 1].set_index("figure")["verdict"]
        found += (verdicts[slower] == "slower").sum()
        wrong += (verdicts.drop([*slower, *CONTROLS]) != "cannot tell").sum()
    assert found >= 8  # of 10
    assert wrong <= 0.05 * 5 * (len(NAMES) - 2)


def test_of_a_group_one_can_tell_less():
    group = [name for name in NAMES if name.startswith("step/fused/")][1:]
    for seed in range(5):
        new = made(100 + seed, drift=0.8, slower=group, noise=0.05)
        table = compare_benches(made(seed, noise=0.05), new).set_index("figure")
        assert set(table.index) == {*NAMES, *CONTROLS, "step/fused/*", "limits/*"}
        row = table.loc["step/fused/*"]
        assert row["verdict"] == "slower" and row["figures"] == len(group) + 1
        assert row["ratio"] == pytest.approx(
            np.exp(np.log(table.loc[["step/fused/fashion", *group], "ratio"]).mean())
        )
        assert (
            table.loc["limits/*", "verdict"] == "cannot tell" and table.loc["limits/*", "control"]
        )
        narrow = row["high_by_controls"] / row["by_controls"]
        single = table.loc[group]
        assert narrow < (single["high_by_controls"] / single["by_controls"]).min()


def test_the_drift_and_the_noise_between_runs_are_those_of_the_controls():
    quiet, noisy = made(1, between=0), made(2, between=0.2, drift=1.5)
    alike = drift_between(quiet, quiet)
    assert alike == (1.0, 0.03, 6)  # the least
    controls = [
        np.log(np.median(b.times_s) / np.median(a.times_s))
        for a, b in zip(quiet.figures, noisy.figures, strict=True)
        if a.control
    ]
    found = drift_between(quiet, noisy)
    assert found.ratio == pytest.approx(np.exp(np.median(controls)), rel=1e-4)
    spread = 1.4826 * np.median(np.abs(controls - np.median(controls)))
    assert found.spread == pytest.approx(spread, rel=1e-4) and spread > 0.03
    # of Student's t, 5 degrees; the error of a mean of 4, and that of the median of 6
    noise = 2.5706 * spread * np.sqrt(1 / 4 + np.pi / 2 / 6)
    assert found.noise(4) == pytest.approx(noise, rel=1e-4)
    none, slow = (
        Bench([one for one in made(seed, drift=drift).figures if not one.control])
        for seed, drift in ((1, 1.0), (2, 1.5))
    )
    assert drift_between(none, slow)[1:] == (0.06, 0)
    assert drift_between(none, slow).ratio == pytest.approx(1.5, rel=0.01)  # the reference kernel's
    few = made(3, repeats=4)
    assert set(compare_benches(few, few)["verdict"]) == {"cannot tell"}
    assert set(compare_benches(few, few)["figures"]) == {1}


def test_a_file_is_read_as_it_was_written(tmp_path):
    bench = made(1)
    bench.left_out = {"step/mkl/cifar": "no MKL"}
    path = write_bench(tmp_path / "a.json", bench)
    assert read_bench(path) == bench
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    found = json.loads(path.read_text())
    found["newer"] = found["figures"][0]["newer"] = 1
    path.write_text(json.dumps(found))
    assert read_bench(path) == bench  # of what it does not know it takes no notice


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "bigmodel"}, "not of `largesparse bench`"),
        ({"schema": 99}, "schema 99"),
        ({"figures": None}, "no list 'figures'"),
        ({"figures": [{"name": "a"}]}, "lacks a field"),
        ({"figures": [{"name": "a", "group": "step", "times_s": "x"}]}, "damaged in 'times_s'"),
        ({"figures": [{"name": "a", "group": "step", "times_s": [1.0]}]}, "as many positive"),
        ({"figures": [STEP]}, "as many positive"),
        ({"figures": [STEP | {"times_s": [math.nan], "reference_s": [1.0]}]}, "as many positive"),
        ({"figures": 2 * [STEP | {"times_s": [1.0], "reference_s": [1.0]}]}, "'a' twice"),
        ({"schema": 0}, "measure again"),
        ({"threads": "two"}, "damaged in 'threads'"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, change, told):
    path = write_bench(tmp_path / "a.json", made(1))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=told):
        read_bench(path)
    path.write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        read_bench(path)


def test_the_fields_are_those_of_the_documentation():
    page = (ROOT / "docs" / "bench.md").read_text()
    told = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    known = {field.name for kind in (Bench, Figure) for field in dataclasses.fields(kind)}
    assert told == known


def test_it_is_shown(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    bench = made(1)
    for size, neurons in (("1M", 10**6), ("5M", 5 * 10**6)):
        for phase in children.PHASES:
            figure = Figure(f"ladder/{size}/{phase}", "ladder", [1e-6 * neurons], [2e-3])
            figure.settings = {"neurons": neurons, "connections": 20 * neurons}
            bench.figures.append(figure)
    bench.left_out["ladder/10M"] = "no time"
    bench.noise = {"steal": 0.3, "spread": 0.1, "score": 0.3}
    lines = summary(bench)
    assert len(lines) == 10 and "HEAVY STEAL 30 %" in lines[-1]
    assert "epoch 1.00 (no interval)" in lines[6]
    page = make_page(bench)
    assert page.count("<svg") == 3 and "ladder/10M" in page and "HEAVY STEAL" in page
    path = write_bench(tmp_path / "machine.json", bench)
    assert not run_command(lambda: command.main(["--compare", str(path), str(path)]))
    shown = capsys.readouterr().out
    assert f"{len(bench.figures)} figures: {len(bench.figures)} cannot tell." in shown
    assert "two machines" not in shown
    other = write_bench(tmp_path / "other", dataclasses.replace(bench, cores=3))
    assert not run_command(lambda: command.main(["--compare", str(path), str(other)]))
    assert "cores: 2 and 3\n" in (shown := capsys.readouterr().out) and "two machines" in shown
    assert not run_command(lambda: command.main(["--machines", str(tmp_path)]))
    assert "a processor ([machine](" in capsys.readouterr().out


def test_the_page_of_machines_is_that_of_its_files():
    folder = ROOT / "docs" / "machines"
    assert machines_page(folder) == (ROOT / "docs" / "machines.md").read_text()


def test_a_moment_of_it(tmp_path, monkeypatch, capsys):
    """Turns in this process; the groups of processes of their own are stood in for."""
    monkeypatch.setattr(schedule, "SETUP_SHARE", 30.0)  # kernels may have to be compiled
    visits = []

    def run_size(neurons, threads, seconds, limit):
        visits.append(neurons)
        if neurons == 5_000_000:
            raise LargeSparseError("it needs about 900 GiB")
        each = {phase: [1.0, 2.0] for phase in children.PHASES}
        found = {"times": each, "reference": each, "connections": 9}
        return found | {"peak_bytes": 10}

    monkeypatch.setattr(schedule, "run_size", run_size)
    monkeypatch.setattr(schedule, "FIRST_SIZE_SECONDS", 0.0)
    monkeypatch.setattr(schedule, "SIZES", (100_000, 5_000_000, 10_000_000))
    monkeypatch.setattr(schedule, "run_ranks", lambda *_: [1.0, 1.1, 1.2])
    monkeypatch.setattr(schedule, "RANKS_SECONDS", 0.0)
    for only in ("ranks/sequential", "step/scipy/madelon"):
        bench = schedule.run_bench(minutes=0.03, threads=1, only=only, progress=False)
        assert [one.name for one in bench.figures] == [only]
        assert min(bench.figures[0].times_s) > 0 and bench.noise["score"] >= 0
    bench = schedule.run_bench(minutes=0.03, threads=1, only="ladder/*", progress=False)
    assert {one.name for one in bench.figures} == {f"ladder/100k/{p}" for p in children.PHASES}
    assert bench.left_out["ladder/5M"] == "it needs about 900 GiB" and 10_000_000 not in visits
    assert visits.count(5_000_000) == 1 and bench.complete

    out = tmp_path / "own.json"
    argv = ["--minutes", "0.04", "--only", "*SciPy", "--threads", "1", "--out", str(out)]
    assert not run_command(lambda: command.main(argv))
    assert len(capsys.readouterr().out.splitlines()) == 10
    (figure,) = read_bench(out).figures
    assert figure.control and len(figure.times_s) >= 2 and min(figure.times_s) > 0
    page = tmp_path / "own.html"
    before = out.read_bytes()
    assert run_command(lambda: command.main(argv)) == 2
    assert f"{out} and {page} would be replaced" in capsys.readouterr().err
    assert out.read_bytes() == before
    out.unlink()  # the page alone counts too
    assert run_command(lambda: command.main(argv)) == 2
    assert not run_command(lambda: command.main([*argv, "--overwrite"]))
    assert read_bench(out).figures


def test_what_was_measured_is_kept_after_an_interruption(monkeypatch):
    turns = iter(range(3))

    def seconds():
        if next(turns) == 2:
            raise KeyboardInterrupt
        return 1.0

    case = schedule.Case(Figure("limits/a", "limits"), seconds)
    monkeypatch.setattr(schedule, "makers_of", lambda *_: {"limits/a": lambda: case})
    bench = schedule.run_bench(minutes=1, threads=1, only="limits/*", progress=False)
    assert bench.figures[0].times_s == [1.0, 1.0] and not bench.complete


def test_mistakes_are_told(tmp_path, capsys):
    def told(*argv):
        assert run_command(lambda: command.main(list(argv))) == 2
        return capsys.readouterr().err

    assert "'minutes'" in told("--minutes", "0")
    out = str(tmp_path / "a.json")
    assert "step/fused/fashion" in told("--minutes", "0.1", "--only", "stop/*", "--out", out)
    told_of_ranks = told("--minutes", "0.01", "--only", "ranks/seq*", "--out", out)
    assert "ranks/sequential: no time was left" in told_of_ranks
    assert "must differ" in told("--out", out, "--page", out)
    assert "mkdir -p" in told("--out", str(tmp_path / "none" / "a.json"))
    assert "cannot be read" in told("--compare", out, out)
    assert "no file *.json" in told("--machines", str(tmp_path))


@pytest.mark.long
def test_sizes_and_ranks_in_processes_of_their_own(monkeypatch):
    found = children.run_size(20_000, 1, 0.1, 200)
    assert all(times and min(times) > 0 for times in found["times"].values())
    with pytest.raises(LargeSparseError, match="GiB"):
        children.run_size(10**10, 1, 0.1, 200)
    assert len(children.run_ranks(1, "sequential", 200)) == 3
    commands, run = [], children._run
    monkeypatch.setattr(
        children, "_run", lambda words, limit: commands.append(words) or run(words, limit)
    )
    monkeypatch.setattr(children, "available_threads", lambda: 2)
    assert len(children.run_ranks(3, "wasap", 200)) == 3
    assert "--slots=2" in commands[0]


def test_exports_have_the_times(tmp_path, capsys):
    path = write_bench(tmp_path / "a.json", made(1))
    (first, *_) = figures = read_bench(path).figures
    first.work, first.unit = 128.0, "samples"
    write_bench(path, Bench(figures, cpu="a processor", commit="abc"))
    assert not run_command(lambda: command.main(["--export", "bencher", str(path)]))
    found = json.loads(capsys.readouterr().out)
    q1, median, q3 = np.quantile(first.times_s, (0.25, 0.5, 0.75))
    assert found[first.name] == {
        "latency": pytest.approx(
            {"value": 1e9 * median, "lower_value": 1e9 * q1, "upper_value": 1e9 * q3}
        ),
        "throughput": {"value": pytest.approx(128 / median)},
    }
    assert not run_command(lambda: command.main(["--export", "pytest-benchmark", str(path)]))
    found = json.loads(capsys.readouterr().out)
    assert found["commit_info"]["id"] == "abc" and len(found["benchmarks"]) == len(figures)
    stats = found["benchmarks"][0]["stats"]
    assert stats["data"] == first.times_s and stats["rounds"] == 9
    assert stats["stddev"] == pytest.approx(np.std(first.times_s, ddof=1))
    assert stats["min"] <= stats["ld15iqr"] <= stats["q1"] <= stats["hd15iqr"] <= stats["max"]
    assert run_command(lambda: command.main(["--export", "csv", str(path)])) == 2
    assert "pytest-benchmark, bencher" in capsys.readouterr().err


def test_exports_of_asv(monkeypatch):
    """asv's rows as `measurements` reads them (tests/harness/test_report.py)."""
    rows = [
        ("step.Step.time_step", 2.0, 1.5, 3.0, "s", {"neurons": 10_000, "backend": "mkl"}),
        ("limits.Machine.track_bandwidth", 16.5, None, None, "GB/s", {}),
    ]
    told = dict.fromkeys((*exports.CONDITIONS, *exports.COUNTS)) | {"source": "asv", "commit": "c"}
    told |= {"machine": "box", "date": pd.Timestamp("2026-01-01", tz="UTC")}
    table = pd.DataFrame(
        [
            told | {"figure": name, "value": value, "low": low, "high": high, "unit": unit} | more
            for name, value, low, high, unit, more in rows
        ]
    )
    monkeypatch.setattr(exports, "read_measurements", lambda asv: table)
    source = exports.read_source(ROOT)
    assert exports.to_bencher(source) == {
        "step.Step.time_step (10k neurons, mkl)": {
            "latency": {"value": 2e9, "lower_value": 1.5e9, "upper_value": 3e9}
        },
        "limits.Machine.track_bandwidth": {"gb-s": {"value": 16.5}},
    }
    (only,) = exports.to_pytest_benchmark(source)["benchmarks"]
    assert only["stats"]["median"] == only["stats"]["mean"] == 2 and only["stats"]["stddev"] == 0
    json.dumps(exports.to_pytest_benchmark(source))
