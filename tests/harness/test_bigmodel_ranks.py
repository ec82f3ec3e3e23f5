"""The main driver under mpiexec: what it records, resumes and refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers import ROOT
from mpi_runs import run_mpi

from largesparse import load_checkpoint

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
    common = ("--recipe=paper", "--curve-points=2", "--out", out, "--checkpoint", checkpoint)
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
    points = [(point["samples"], point.get("replica")) for point in record["curve"]]
    (first, _), second, (third, _), *rest = points  # the order of mini-batches is not fixed
    assert 140 <= first < 280 and 140 <= third < 280
    assert [second, *rest] == [(280, None), (280, None), (128, 1), (152, 1)]
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
    assert resumed["curve"][:6] == record["curve"]
    assert [point["samples"] for point in resumed["curve"][6:]] == [280, 128, 128]
    assert [value is None for value in resumed["accuracy"]] == [False] * 5 + [True, False]
    assert resumed["active_neurons"] == [400] * 5 + [None, 400]
    assert resumed["staleness"] == {"mean": 0, "max": 0, "histogram": [1]}  # one of 280 rows
    assert resumed["bytes_moved"] > 8 * resumed["connections"]


def test_ranks_train_by_the_defaults_of_one_process(run, folder):
    records = {}
    for ranks, more in ((1, ()), (3, ()), (3, ("--algorithm=pipeline",)), (3, ("--slots=2",))):
        out = folder / f"defaults-{len(records)}.jsonl"
        result = run(ranks, "--micro-batch=16", *more, "--epochs=2", "--out", out)
        assert (result.status, result.messages) == (0, []), result.err
        (records[ranks, *more],) = records_of(out)
    alone, server, pipeline, stale = records.values()
    for record in records.values():
        assert (record["optimizer"], record["growth"]) == ("adamw", "gradient")
        assert record["batch_size"] == 32
        assert None not in record["loss"] + record["accuracy"]  # there are no replicas
    rates = [record["learning_rate"] for record in records.values()]
    assert rates == [rates[0]] * 3 + [rates[0] / 2]
    assert stale["phase_one_epochs"] == 2
    assert server["phase_one_epochs"] == 2
    assert pipeline["loss"] == alone["loss"]  # to the bit
    assert server["loss"] == pytest.approx(alone["loss"], rel=1e-9)  # as one slot has


def test_a_pipeline_is_planned_and_recorded(run, folder):
    out = folder / "stages.jsonl"
    flags = ("--algorithm=pipeline", "--groups=2", "--recipe=paper", "--micro-batch=16")
    result = run(4, *flags, "--epochs=2", "--out", out, f"--checkpoint={folder / 'stages'}")
    assert (result.status, result.messages) == (0, []), result.err
    for line in (
        "pipeline of 2 ranks, 2 groups; split by time",
        "epoch 2/2: loss",
        "4 ranks waited",
    ):
        assert result.out.count(line) == 1, result.out
    (record,) = records_of(out)
    expected = {"algorithm": "pipeline", "ranks": 4, "groups": 2, "split": "auto", "threads": 1}
    expected |= {"micro_batch": 16, "batch_size": 128, "least_bubble": 1 / 5, "staleness": None}
    assert {name: record[name] for name in expected} == expected
    (_, last), (first, layers) = record["stages"]
    assert 0 < last == first < layers == record["layers"] + 1
    assert [len(record[name]) for name in ("stage_bytes", "bubble", "steps_s")] == [4, 4, 4]
    assert all(0 <= share < 1 for share in record["bubble"])
    assert 0 < record["steps_bytes"] < record["bytes_moved"]
    # all layers' connections: what a checkpoint of all ranks has, read by this process
    trainer = load_checkpoint(folder / "stages")
    assert record["connections"] == trainer.network.connections
    assert record["parameters"] == trainer.network.parameters


SEVERAL = """
import json, sys
from largesparse.harness.bigmodel import main
from largesparse.machine.exit_codes import run_command
from largesparse.parallel.comm.collectives import gather
from largesparse.parallel.comm.ranks import get_communicator

comm = get_communicator()
for arguments in json.loads(sys.argv[1]):
    try:
        code = run_command(lambda: main(arguments))
    except SystemExit as end:
        code = end.code
    if (codes := gather(comm, code)) is not None:
        for stream in (sys.stdout, sys.stderr):
            print("ended", *codes, file=stream, flush=True)
sys.exit(code)
"""
PRINTED = {"usage:": ["--help"], "memory plan": ["--plan"]}
MISTAKES = [
    (["--neurons=5Q"], ["--neurons", "'5Q'"]),  # argparse
    (["--neurons=9G", "--layers=10"], ["would fit", "2 ranks", "GiB"]),
    (["--neurons=20G", "--layers=10"], ["int32", "epsilon of at most 0.53", "2 layers"]),
    (["--phase-one-epochs=3"], ["'phase_one_epochs'", "at most", "2", "Got 3"]),
    (["--processes=2"], ["'processes'", "mpiexec"]),
    (["--groups=2"], ["'groups'", "--algorithm pipeline", "Leave it out"]),
    (["--algorithm=pipeline", "--slots=2"], ["'slots'", "--algorithm pipeline"]),
    (["--algorithm=pipeline", "--groups=3"], ["'groups'", "Got 3"]),
    (["--algorithm=pipeline", "--layers=0"], ["layers"]),
    (["--resume=nowhere"], ["nowhere", "manifest.json"]),  # after the data has been made
]


@pytest.fixture(scope="module")
def ended(folder):
    """Of each of several calls under one mpiexec: the ranks' codes, and what they have written."""
    flags = [*TINY, f"--out={folder / 'none.jsonl'}"]
    calls = [[*flags, *more] for more in (*PRINTED.values(), *(more for more, _ in MISTAKES))]
    environ = {"LARGESPARSE_CACHE": str(folder / "cache")}
    result = run_mpi(SEVERAL, 2, arguments=(json.dumps(calls),), environment=environ, timeout=120)
    assert result.status == 2, result.err
    assert "Traceback" not in result.err
    out, err = (re.split(r"^ended (.*)\n", text, flags=re.M) for text in (result.out, result.err))
    return list(zip(out[1::2], out[::2], err[::2], strict=False))


@pytest.mark.parametrize("line", PRINTED)
def test_help_and_plan_are_printed_once(ended, line):
    codes, out, err = ended[list(PRINTED).index(line)]
    assert (codes, err) == ("0 0", "")
    assert out.count(line) == 1


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_a_mistake_is_told_once(ended, folder, number):
    codes, _, err = ended[len(PRINTED) + number]
    assert codes == "2 2"
    (message,) = [line for line in err.splitlines() if "error: " in line]
    for word in MISTAKES[number][1]:
        assert word in message
    assert not (folder / "none.jsonl").exists()
