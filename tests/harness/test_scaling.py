"""The scaling ladder: what is run within a time limit, its plots, its page, plans of clusters."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess

import numpy as np
import pandas as pd
import pytest
from helpers import TOOLS
from hypothesis import given
from hypothesis import strategies as st

from largesparse import read_records
from largesparse.backends.operands import MOST_INT32
from largesparse.errors import DataError, MemoryPlanError, ParameterError
from largesparse.harness import pages, records, scaling
from largesparse.harness.cluster import Cluster, least_layers, plan_cluster
from largesparse.harness.ladder import (
    GUESS,
    Costs,
    Length,
    choose_length,
    extrapolate,
    measured_costs,
    predicted_seconds,
)
from largesparse.harness.measurements import read_measurements
from largesparse.harness.plots import (
    exponent_table,
    paper_table,
    run_table,
    scaling_figures,
    scaling_table,
)
from largesparse.harness.presets import TABLE_4
from largesparse.harness.records import append_record, new_record
from largesparse.harness.series import PAPER
from largesparse.training.memory import GIB

COSTS = Costs(10**6, 1e-8, 1e-9, 5e-10, 1e-8, overhead=1.0)


def record_of(neurons, **changes):
    """A run whose epoch takes 2 ns a connection and sample; the median is the middle epoch."""
    connections, train, test = 20 * neurons, 1400, 600
    epoch = 2e-9 * connections * train
    values = {
        "neurons": neurons,
        "connections": connections,
        "backend": "fused",
        "ranks": 1,
        "threads": 2,
        "train_samples": train,
        "test_samples": test,
        "init_s": 1e-8 * connections,
        "epoch_s": [0.5 * epoch, epoch, 9 * epoch],
        "inference_s": [1e-9 * connections * test],
        "evolution_s": [2e-8 * connections, None],
        "planned_bytes": 3 * GIB,
        "peak_rss_bytes": 2 * GIB,
        "cpu": "a <fast> processor",
        "command": f"/somewhere/tools/bigmodel.py --neurons={neurons} --samples=2000",
    }
    return new_record("bigmodel", **(values | changes))


@pytest.fixture
def recorded(tmp_path):
    """Write records to a file; return its path."""

    def write(*records):
        for record in records:
            append_record(tmp_path / "runs.jsonl", record)
        return tmp_path / "runs.jsonl"

    return write


# What is run


def test_a_run_is_made_of_its_phases():
    costs = Costs(1000, 1.0, 0.1, 0.01, 2.0, overhead=5.0)
    # 70 training rows, 30 test rows; loss over 70 and accuracy over 30, after an epoch
    expected = 5 + 1000 * (1.0 + 0.1 * 70 + 2.0 + 0.01 * 100)
    assert predicted_seconds(costs, Length(100, 1), 0.3) == pytest.approx(expected)


def test_costs_are_those_of_the_record(recorded):
    row = read_records(recorded(record_of(1000))).to_dict("records")[0]
    assert measured_costs(row)[:5] == pytest.approx((20_000, 1e-8, 2e-9, 1e-9, 2e-8))
    without = read_records(recorded(record_of(1000, evolution_s=[None]))).to_dict("records")[1]
    assert measured_costs(without).evolution == GUESS.evolution


def test_costs_rise_as_they_have_risen_but_not_without_end():
    small, large = Costs(10, 1, 1, 1, 1), Costs(1000, 1, 100**0.1, 1e6, 0.5)
    found = extrapolate([large, small], 100_000)
    assert found[:5] == pytest.approx((100_000, 1, 100**0.2, 1e6 * 10, 0.5))
    assert extrapolate([small], 10 * 2**5)[1:5] == pytest.approx((2, 2, 2, 2))
    assert extrapolate([], 7) == GUESS._replace(connections=7)
    assert extrapolate([large], 10)[1:] == large[1:]  # smaller ones are not cheaper


@given(
    samples=st.integers(400, 20_000),
    epochs=st.integers(1, 4),
    seconds=st.floats(0, 200),
    training=st.floats(1e-10, 1e-8),
)
def test_the_longest_run_that_fits_is_chosen(samples, epochs, seconds, training):
    costs, wanted = COSTS._replace(training=training), Length(samples, epochs)
    options = {"batch_size": 128, "test_fraction": 0.3}
    length = choose_length(costs, wanted, seconds, **options)
    if length is None:
        assert predicted_seconds(costs, Length(366, 1), 0.3) > seconds
        return
    assert predicted_seconds(costs, length, 0.3) <= seconds
    assert length.parts(0.3)[0] >= min(2 * 128, Length(samples, 1).parts(0.3)[0])
    if length.samples == samples and length.epochs < epochs:
        assert predicted_seconds(costs, length._replace(epochs=length.epochs + 1), 0.3) > seconds
    if length.samples < samples:
        assert length.epochs == 1
        assert predicted_seconds(costs, Length(samples, 1), 0.3) > seconds


def test_epochs_go_before_samples():
    options = {"batch_size": 128, "test_fraction": 0.3}
    seconds = {
        length: predicted_seconds(COSTS, length, 0.3)
        for length in (Length(10_000, 3), Length(10_000, 2), Length(5_000, 1), Length(366, 1))
    }
    for length, enough in seconds.items():
        assert choose_length(COSTS, Length(10_000, 3), enough, **options) == length
    assert choose_length(COSTS, Length(10_000, 3), enough - 0.01, **options) is None


@pytest.fixture
def ladder(tmp_path, monkeypatch, capsys):
    """Climb with runs that only write records; return their lengths, and what is printed."""

    original = subprocess.run

    def climb(*flags, refuse=()):
        done = []

        def run(command, **options):
            if "git" in command:  # for the records' commit
                return original(command, **options)
            values = dict(
                flag.split("=") for flag in command if flag.startswith("--") and "=" in flag
            )
            neurons, samples = int(values["--neurons"]), int(values["--samples"])
            result = subprocess.CompletedProcess(command, 0, "", "")
            if "--plan" in command:
                result.stdout = f"{20 * neurons:,} connections expected\n"
                if neurons in refuse:
                    result.returncode, result.stdout = 2, ""
                    result.stderr = (
                        "x: error: 9 neurons need about 7.0 GiB, and 1.0 GiB can be used"
                    )
                return result
            done.append((neurons, Length(samples, int(values["--epochs"]))))
            joined = " ".join(command[1:])
            append_record(values["--out"], record_of(neurons, command=joined))
            return result

        monkeypatch.setattr(scaling.subprocess, "run", run)
        out = tmp_path / "s.jsonl"
        capsys.readouterr()
        flags = [f"--out={out}", "--batch-size", "128", *flags]
        options, options.rest = scaling.make_parser().parse_known_args(flags)
        scaling.climb(options)
        return done, capsys.readouterr().out

    return climb


def test_the_ladder_is_climbed_within_its_time(ladder):
    sizes = "--neurons", "1M", "10k", "100k"
    done, out = ladder(*sizes, "--minutes", "8", "--backend=fused")
    # 20M connections at 2 ns: 280 s an epoch, and 80 s a look at 1024 and 3000 rows
    assert [neurons for neurons, _ in done] == [10_000, 100_000, 1_000_000]
    assert [length for _, length in done] == [Length(10_000, epochs) for epochs in (2, 2, 1)]
    assert "shortened" in out.splitlines()[-2]
    assert "20,000,000 connections" in out
    again, out = ladder(*sizes, "--minutes", "8", "--backend=fused")
    assert not again
    assert out.count("already") == 3
    assert ladder(*sizes, "--backend=fused", "--again", "--minutes", "600")[0] == [
        (neurons, Length(10_000, 2)) for neurons in (10_000, 100_000, 1_000_000)
    ]
    other = ladder("--neurons", "10k", "--minutes", "20", "--backend=mkl")[0]
    assert other == [(10_000, Length(10_000, 2))]


def test_every_size_is_run_with_each_mini_batch(ladder):
    done, out = ladder("--neurons", "10k", "100k", "--batch-size", "128", "32")
    assert [neurons for neurons, _ in done] == [10_000, 10_000, 100_000, 100_000]
    assert "mini-batches of 128: about" in out and "mini-batches of 32: about" in out
    assert scaling.make_parser().parse_args([]).batch_size == [128, 32]


def test_what_does_not_fit_is_left_out_and_said(ladder):
    done, out = ladder("--neurons", "10k", "50M", "--minutes", "1")
    assert [neurons for neurons, _ in done] == [10_000]
    assert "1,000,000,000 connections, mini-batches of 128: left out" in out


def test_what_the_memory_plan_refuses_is_reported(ladder):
    done, out = ladder("--neurons", "10k", "20k", "30k", "--minutes", "60", refuse=[20_000])
    assert [neurons for neurons, _ in done] == [10_000, 30_000]
    assert "20,000 neurons: refused. 9 neurons need about 7.0 GiB" in out


def test_the_length_of_a_run_is_no_setting():
    settings = scaling.settings_of(
        ["python", "/a/bigmodel.py", "--samples=5", "--seed=1", "--out=x"]
    )
    assert settings == ["--seed=1"]


# Plots


def test_a_table_has_the_newest_run_of_every_size(recorded):
    newer = {"timestamp": "2999-01-01T00:00:00+00:00", "init_s": 77.0}
    parallel = {"ranks": 16, "node_pss_bytes": 9 * GIB}
    records = [
        record_of(3000, **newer),
        record_of(1000),
        record_of(3000),
        record_of(500, **parallel),
    ]
    table = scaling_table(read_records(recorded(*records)))
    assert table["series"].tolist() == ["fused", "fused", "fused, 16 ranks"]
    assert table["neurons"].tolist() == [1000, 3000, 500]
    first = table.iloc[0]
    assert first["epoch_s"] == pytest.approx(2e-9 * 20_000 * 7000)
    assert first["inference_s"] == pytest.approx(1e-9 * 20_000 * 3000)
    assert first["evolution_s"] == pytest.approx(2e-8 * 20_000)
    np.testing.assert_allclose(table["cost_s"], 2e-9)
    assert table["init_s"][1] == 77
    assert table["peak_bytes"].tolist() == [2 * GIB, 2 * GIB, 9 * GIB]


CHANGES = {
    "features": {"features": 4096},
    "epsilon": {"epsilon": 3.0},
    "layers": {"layers": 4},
    "batch": {"batch_size": 32},
    "dtype": {"activation_dtype": "bfloat16"},
    "threads": {"threads": 1},
    "processor": {"cpu": "another"},
    "command": {"command": "bigmodel.py --neurons 1000 --features 4096"},
    "resumed": {"command": "bigmodel.py --resume run"},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_runs_that_differ_do_not_share_a_line(recorded, changes):
    other = record_of(1000, **changes)
    found = scaling_table(read_records(recorded(record_of(1000), record_of(3000), other)))
    assert sorted(found["series"].value_counts()) == [1, 2]
    assert all(name.startswith("fused") for name in found["series"])


def test_the_sizes_of_table_4_share_a_line(recorded):
    runs = [
        record_of(
            row.neurons,
            layers=row.hidden_layers,
            epsilon=row.epsilon,
            activation_dtype="bfloat16",
            features=65_536,
        )
        for row in TABLE_4
    ]
    assert set(scaling_table(read_records(recorded(*runs)))["series"]) == {"fused"}


@pytest.mark.parametrize("field", records.FIELDS)
def test_a_record_that_lacks_a_field_is_tabled_beside_the_others(tmp_path, field):
    whole = dataclasses.asdict(record_of(3000))
    lacking = {name: value for name, value in whole.items() if name != field}
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (whole, lacking | {"seed": 1})))
    found = read_records(path)
    needed = field in ("kind", "neurons", "connections")
    assert len(run_table(found)) == (1 if needed else 2)
    rows = scaling.shown_table(scaling_table(found)).to_numpy()
    assert len(rows) > len(TABLE_4) and not any("nan" in cell for row in rows for cell in row)
    figures = read_measurements(path)["figure"]
    assert figures.value_counts()["peak_bytes"] == 2 - (needed or field == "peak_rss_bytes")
    runs = scaling.runs_like(found, ["bigmodel.py", "--neurons=3000"], 1)
    assert len(runs) == (1 if field in ("kind", "command", "connections") else 2)
    assert all(measured_costs(run).training > 0 for run in runs)


def test_without_runs_there_is_nothing_to_plot():
    with pytest.raises(DataError, match="no records of bigmodel"):
        scaling_table(read_records())


def test_the_paper_s_points_are_those_of_table_4():
    table = paper_table()
    assert table["epoch_s"].tolist() == [60 * row.epoch_min for row in TABLE_4]
    assert table["cost_s"].iloc[0] == pytest.approx(360 / (20.6e6 * 7000))


def lines_of(figure):
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    return {name_of(line): line.get_xydata().tolist() for line in axes.get_lines()}


def name_of(line):
    return line.get_label().partition("\n")[0]  # the exponent is below


def test_the_plots_have_the_points(recorded):
    pytest.importorskip("matplotlib")
    table = scaling_table(read_records(recorded(record_of(1000), record_of(3000))))
    figures = scaling_figures(table)
    backends = [record_of(1000, backend=name) for name in ("mkl", "fused")]
    both = scaling_figures(scaling_table(read_records(recorded(*backends))))
    colours = {
        (name_of(line).removesuffix(", planned"), line.get_color())
        for figure in (*figures.values(), *both.values())
        for line in figure.axes[0].get_lines()
    }
    assert len(colours) == len({name for name, _ in colours}) == 3  # the paper's too
    assert list(figures) == ["init", "epoch", "inference", "evolution", "memory", "cost"]
    epoch = lines_of(figures["epoch"])
    *_, line = figures["epoch"].axes[0].get_lines()
    assert line.get_label() == "fused\n∝ connections ^ 1.00 (no interval)"
    assert epoch[PAPER] == [[row.neurons, 60 * row.epoch_min] for row in TABLE_4]
    np.testing.assert_allclose(epoch["fused"], [[1000, 0.28], [3000, 0.84]])
    assert lines_of(figures["memory"]) == {
        "fused": [[1000, 2], [3000, 2]],
        "fused, planned": [[1000, 3], [3000, 3]],
    }
    np.testing.assert_allclose(lines_of(figures["cost"])["fused"], [[1000, 2], [3000, 2]])


def test_the_page_needs_nothing_else(recorded, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = recorded(record_of(1000), record_of(3000))
    assert scaling.main(["--plot-only", f"--out={out}", f"--plots={tmp_path / 'plots'}"]) == 0
    written = sorted(path.name for path in (tmp_path / "plots").iterdir())
    names = ["cost", "epoch", "evolution", "inference", "init", "memory"]
    assert written == ["index.html", *(f"scaling-{name}.png" for name in names)]
    for path in (tmp_path / "plots").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "plots" / "index.html").read_text()
    assert text.count("<svg") == 6
    references = re.findall(r"(?:href|src|url)\s*[=(]\s*[\"']?([^\"')\s>]+)", text)
    assert references and all(reference.startswith("#") for reference in references)
    assert not re.search(r"<(?:script|link|img|iframe)|@import", text)
    assert 'content="width=device-width' in text
    assert "a &lt;fast&gt; processor" in text
    assert str(TOOLS) not in text and "/somewhere" not in text
    assert "<td>60,000</td>" in text  # connections of the larger one
    printed = capsys.readouterr().out
    assert re.search(r"fused +3,000 +60,000", printed)
    assert re.search(r"paper\S* .* +1,000,000 +20,600,000 +60 s +360 s +150 s", printed)


def test_a_table_is_escaped_and_scrolls():
    text = pages.table(pd.DataFrame([["<1>", "2"]], columns=["a", "b"]))
    assert '<td class="name">&lt;1&gt;</td><td>2</td>' in text
    assert text.startswith('<div class="wide">')


# Clusters


def test_a_plan_of_a_cluster_adds_up():
    cluster = Cluster(nodes=4, cores=10, memory=2**60, link=1e9, efficiency=0.5)
    costs = Costs(0, 1e-8, 1e-9, 0, 0)
    plan = plan_cluster(10**9, cluster, costs=costs, samples=1280, features=1000)
    assert (plan.stages, plan.replicas, plan.updates, plan.micro_batch) == (1, 4, 10, 64)
    assert plan.connections == pytest.approx(9 * 2e8 + 2 * 1e8, rel=1e-3)
    # 4 bytes a connection and a neuron, to and fro
    assert plan.update_bytes == pytest.approx(8 * (plan.connections + 10**9), rel=1e-6)
    assert plan.compute_s == pytest.approx(1e-9 * plan.connections * 1280 / 20)
    assert plan.transfer_s == pytest.approx(10 * 3 / 4 * plan.update_bytes / 1e9)
    assert plan.epoch_s == max(plan.compute_s, plan.transfer_s)
    assert plan.first_bytes > plan.other_bytes > 24 * plan.connections
    # 3 GiB of values in 9 pieces of 2**28 at most, and small ones
    assert plan.update_messages >= plan.update_bytes / 2**28
    assert re.search(r"algorithm +wasap", str(plan))


def test_a_smaller_micro_batch_comes_before_dividing_the_layers():
    sizes = [plan_cluster(10**9, Cluster(memory=m * GIB)) for m in (1000, 300, 200, 100)]
    assert [plan.micro_batch for plan in sizes] == sorted(
        (plan.micro_batch for plan in sizes), reverse=True
    ) or sizes[-1].stages > 1
    assert sizes[0].stages == 1 and sizes[-1].stages > 1
    assert all(plan.first_bytes <= 0.9 * plan.cluster.memory + 1 for plan in sizes)
    assert re.search(r"nodes that share the layers +[2-8]\n", str(sizes[-1]))
    assert "NOT IMPLEMENTED" not in str(sizes[-1])


def test_a_cluster_whose_nodes_share_the_layers_adds_up():
    machine = {"cores": 10, "memory": 64 * GIB, "link": 1e9, "latency": 0.5, "efficiency": 0.5}
    cluster, costs = Cluster(nodes=8, **machine), Costs(0, 0, 1e-9, 0, 0)
    plan = plan_cluster(10**9, cluster, costs=costs, samples=1280, features=1000)
    groups, stages, rows = plan.replicas, plan.stages, plan.rows
    assert groups * stages <= 8 < (groups + 1) * stages and stages > 2
    assert plan.first_bytes <= 0.9 * 64 * GIB and plan.updates == -(-1280 // rows)
    a_group = -(-rows // groups)
    count = -(-a_group // plan.micro_batch)
    assert plan.bubble == pytest.approx((stages - 1) / (count + stages - 1))
    # boundaries of 1e8 neurons: both ways in bfloat16, two bits, and the biases' gradient
    words = a_group // plan.micro_batch * -(-plan.micro_batch // 32)
    between = 1e8 * (a_group * 2 * 2 + 8 * words + 4) * groups * (stages - 1)
    assert plan.stage_bytes == pytest.approx(between, rel=1e-6)
    waiting = plan.update_bytes / 1e9 + 2 * (stages - 1) * 0.5
    assert plan.waiting_s == pytest.approx(plan.updates * waiting)
    # the slowest stage has at least the mean of the connections; small micro-batches cost more
    least = 1e-9 * plan.connections / stages * a_group * (1 + (stages - 1) / count) / 5
    assert plan.compute_s > 0.9 * plan.updates * least
    half = Cluster(nodes=8, **machine, pipeline_efficiency=0.5)
    slower = plan_cluster(10**9, half, costs=costs, samples=1280, features=1000)
    # another mini-batch or split may suit it better
    assert 1.5 * plan.compute_s < slower.compute_s <= (2 + 1e-9) * plan.compute_s


def test_a_mini_batch_becomes_smaller_before_a_network_is_refused():
    plan = plan_cluster(10**9, Cluster(nodes=8, memory=40 * GIB))
    assert plan.rows < 128 and plan.first_bytes <= 0.9 * plan.cluster.memory
    with pytest.raises(MemoryPlanError, match=r"2 nodes of 64 GiB.*--nodes"):
        plan_cluster(10**10, Cluster(nodes=2, memory=64 * GIB))


@pytest.mark.parametrize("epsilon", [1, 3.7])
@pytest.mark.parametrize("neurons", [10**6, 2 * 10**9, 80 * 10**9])
def test_the_layers_are_as_few_as_int32_allows(neurons, epsilon):
    layers = least_layers(neurons, epsilon)
    assert 2 * epsilon * neurons / layers <= MOST_INT32
    assert layers == 1 or 2 * epsilon * neurons / (layers - 1) > 0.9999 * MOST_INT32


def test_too_wide_layers_are_refused():
    nodes = Cluster(nodes=76, memory=1024 * GIB)
    assert plan_cluster(80 * 10**9, nodes, layers=74).connections > 74 * MOST_INT32
    with pytest.raises(ParameterError, match="'layer_sizes'"):  # neurons are numbered by int32
        plan_cluster(80 * 10**9, nodes, layers=37)


def test_costs_of_a_cluster_are_those_of_one_core(recorded, monkeypatch, capsys):
    monkeypatch.setattr(scaling, "available_threads", lambda: 2)
    out = recorded(record_of(1000))
    assert scaling.main(["--cluster=1B", f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    assert "training: 4.00 ns a connection, sample and core" in printed  # 2 ns on 2 cores
    assert re.search(r"layers x width +10 x 100,000,000", printed)


def test_groups_of_a_pipeline_have_a_line_of_their_own(recorded):
    ranks = {"algorithm": "pipeline", "ranks": 4}
    table = run_table(read_records(recorded(*(record_of(900, **ranks, groups=g) for g in (1, 2)))))
    first, second = table["series"]
    assert second == first.replace("pipeline", "pipeline, 2 groups") != first


def test_what_the_ranks_of_a_pipeline_waited_is_not_counted_twice(recorded, capsys):
    waited = {"algorithm": "pipeline", "ranks": 1, "threads": 1, "init_s": None}
    large = record_of(2000, **waited, bubble=[0.5, 0.5], least_bubble=0.2)
    out = recorded(large, record_of(1000, **waited, bubble=[0.9], least_bubble=0.0))
    assert scaling.main(["--cluster=1B", f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    assert "training: 1.00 ns a connection" in printed  # half of 2 ns
    assert "ranks waited 50% of a step, at the least 20%" in printed


# As a user runs it


@pytest.mark.long
def test_two_tiny_sizes(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(pages, "save_figures", lambda *_: [])  # PNGs take long
    monkeypatch.chdir(tmp_path)
    flags = ["--minutes=10", "--features=100", "--samples=400", "--epochs=1", "--threads=1"]
    ladder = ["--neurons", "2k", "4k", "--batch-size=128", "--plots=plots"]
    assert scaling.main([*ladder, *flags, "--backend=scipy"]) == 0
    table = read_records(tmp_path / "scaling.jsonl")
    assert table["neurons"].tolist() == [2000, 4000]
    assert table["train_samples"].tolist() == [280, 280]
    assert isinstance(table, pd.DataFrame)
    json.loads((tmp_path / "scaling.jsonl").read_text().splitlines()[0])
    assert (tmp_path / "plots" / "index.html").exists()
    shown = capsys.readouterr().out
    assert re.search(r"4,000 neurons, [\d,]+ connections, mini-batches of 128: about", shown)


def test_growth_is_told_with_its_interval(recorded):
    sizes = [record_of(neurons) for neurons in (1000, 3000, 10_000)]
    sizes[1].init_s *= 1.1
    table = scaling_table(read_records(recorded(*sizes, record_of(1000, backend="mkl"))))
    (row,) = exponent_table(table).to_dict("records")
    assert (row["series"], row["sizes"], row["memory"]) == ("fused", 3, "0.00 (0.00 to 0.00)")
    assert row["epoch"] == row["inference"] == "1.00 (1.00 to 1.00)"
    found = re.fullmatch(r"1.00 \((-?\d\.\d+) to (\d\.\d+)\)", row["initialisation"])
    assert float(found[1]) < 0.9 and float(found[2]) > 1.1
