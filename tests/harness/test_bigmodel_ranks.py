"""The main driver under mpiexec: what it records, resumes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import ROOT
from mpi_runs import run_mpi

TOOL = str(ROOT / "tools" / "bigmodel.py")
TINY = ("--neurons=400", "--features=100", "--samples=400", "--threads=1", "--backend=scipy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def run(folder):
    """Run the driver under mpiexec; return how it ended."""

    def run(ranks, *arguments):
        program = (TOOL, *TINY, *map(str, arguments))
        environ = {"LARGESPARSE_CACHE": str(folder / "cache")}
        return run_mpi("", ranks, program=program, environment=environ, timeout=120)

    return run


def records_of(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_a_run_is_recorded_and_resumed_by_other_ranks(run, folder):
    out, checkpoint = folder / "runs.jsonl", folder / "checkpoint"
    common = ("--recipe=paper", "--out", out, "--checkpoint", checkpoint)
    first = run(3, "--epochs=3", *common)
    assert (first.status, first.messages) == (0, []), first.err
    for line in (
        "once for a node",
        "epoch 1/3: loss",
        "epoch 3/3: loss",
        "2 workers",
        "after the last epoch",
    ):
        assert first.out.count(line) == 1, first.out
    (record,) = records_of(out)
    expected = {"algorithm": "wasap", "ranks": 3, "threads": 1, "phase_one_epochs": 2}
    expected |= {"batch_size": 128, "micro_batch": 128, "train_samples": 280, "bytes_moved": 0}
    assert {name: record[name] for name in expected} == expected
    assert [len(record[name]) for name in ("loss", "accuracy", "epoch_s")] == [4, 4, 3]
    assert None not in record["loss"] + record["accuracy"]
    assert record["active_neurons"] == [400] * 4
    assert [len(record[name]) for name in ("idle_s", "cpu_s")] == [3, 3]
    # two epochs of 128, 128 and 24 rows
    assert sum(record["staleness"]["histogram"]) == 6
    assert record["staleness"]["max"] < 6
    assert 0 < record["peak_rss_bytes"] < 2 * record["node_pss_bytes"]  # much is shared
    compiling = 2**29  # the plan is without it
    assert record["node_pss_bytes"] < record["planned_bytes"] + compiling

    options = ("--algorithm=wassp", "--ranks-per-node=2", "--phase-one-epochs=4")
    second = run(4, "--epochs=6", "--resume", checkpoint, *options, *common)
    assert (second.status, second.messages) == (0, []), second.err
    assert "epoch 5/6: replicas apart" in second.out
    _, resumed = records_of(out)
    expected = {"algorithm": "wassp", "ranks": 4, "phase_one_epochs": 4}
    assert {name: resumed[name] for name in expected} == expected
    assert resumed["loss"][:4] == record["loss"]
    assert [value is None for value in resumed["accuracy"]] == [False] * 5 + [True, False]
    assert resumed["active_neurons"] == [400] * 5 + [None, 400]
    assert resumed["staleness"] == {"mean": 0, "max": 0, "histogram": [1]}  # one of 280 rows
    assert resumed["bytes_moved"] > 8 * resumed["connections"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--neurons=5Q"], ["--neurons", "'5Q'"]),  # argparse
        (["--neurons=20G", "--layers=10"], ["would fit", "2 ranks", "GiB"]),
        (["--phase-one-epochs=3"], ["'phase_one_epochs'", "at most", "2", "Got 3"]),
        (["--processes=2"], ["'processes'", "mpiexec"]),
        (["--resume=nowhere"], ["nowhere", "manifest.json"]),  # after the data has been made
    ],
)
def test_a_mistake_is_told_once(run, folder, arguments, words):
    result = run(2, "--out", folder / "none.jsonl", *arguments)
    assert result.status != 0
    (message,) = [line for line in result.err.splitlines() if "error: " in line]
    for word in words:
        assert word in message
    assert "Traceback" not in result.err
    assert not (folder / "none.jsonl").exists()


def test_help_and_plan_are_printed_once(run):
    for arguments, line in ((["--help"], "usage:"), (["--plan"], "memory plan")):
        result = run(2, *arguments)
        assert (result.status, result.err) == (0, "")
        assert result.out.count(line) == 1
