"""WASAP-SGD and WASSP-SGD under mpiexec, beside trainings in this process."""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import parallel_cases
import pytest
from mpi_runs import Result, mpi_run, run_mpi
from parallel_cases import (
    ASYNCHRONOUS,
    BOTH_PHASES,
    CASES,
    CONTINUED,
    FEATURES,
    FEWER,
    GIVEN,
    JOINED,
    MASKS,
    NORMALISED_CASES,
    REPLICAS,
    REPLICAS_SHRINKING,
    ROWS,
    SEQUENTIAL,
    SETTLED,
    TURNS,
    Case,
    save_network,
    shift,
)

from largesparse import Trainer, load_checkpoint
from largesparse.model import layer
from largesparse.model.density import Shrinking, hidden_connections
from largesparse.model.layer import moment_name
from largesparse.parallel.wasap.replicas import replica_seed
from largesparse.training.prepared import epoch_batches, prepare_

MOMENTS = tuple(moment_name(name, kind) for kind in layer.MOMENTS for name in layer.PARAMETERS)


class Job(NamedTuple):
    """Cases that are trained one after another under one mpiexec."""

    ranks: int
    cases: tuple[str, ...]
    after: str | None = None  # job whose checkpoints it needs
    status: int = 0


JOBS = {
    "one worker": Job(2, (*SEQUENTIAL, *BOTH_PHASES)),
    "three workers": Job(
        4,
        (
            *(*TURNS, *JOINED, *REPLICAS, *SETTLED, *REPLICAS_SHRINKING, *GIVEN),
            *(*NORMALISED_CASES, *ASYNCHRONOUS),
        ),
    ),
    "two workers": Job(3, ("begun", "replicas-fewer"), "three workers"),
    "broken": Job(
        4, ("continued-by-4", "continued-synchronously", "broken"), "two workers", status=1
    ),
    "mended": Job(2, ("mended", "continued-by-2"), "broken"),
    "no worker": Job(1, ("continued-by-1",), "two workers"),
}


class Jobs:
    """Results of cases; the job that a case is in is run when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results: dict[str, Result | None] = {}

    def run(self, name: str) -> Result:
        """Run a job, after the one that it needs, unless that has been done."""
        job = JOBS[name]
        if job.after is not None:
            self.run(job.after)
        if name not in self.results:
            self.results[name] = None
            program = (parallel_cases.__file__, str(self.folder), *job.cases)
            result = run_mpi("", job.ranks, program=program, timeout=300)  # kernels compile
            assert result.status == job.status, f"{result.out}\n{result.err}"
            self.results[name] = result
        found = self.results[name]
        if found is None:
            pytest.fail(f"the job {name!r} has failed for another test")
        return found

    def folder_of(self, case: str) -> Path:
        """Where the results of a case are."""
        self.run(next(name for name, job in JOBS.items() if case in job.cases))
        return self.folder / case

    def network(self, name: str) -> dict[str, np.ndarray]:
        with np.load(self.folder_of(name) / "network.npz") as arrays:
            return dict(arrays)

    def told(self, name: str, rank: int = 0) -> dict:
        """The history and the report that a rank has returned."""
        return json.loads((self.folder_of(name) / f"history-{rank}.json").read_text())


@pytest.fixture(scope="module")
def jobs(tmp_path_factory) -> Jobs:
    return Jobs(tmp_path_factory.mktemp("jobs"))


def arrays_of(network, folder: Path) -> dict[str, np.ndarray]:
    save_network(network, folder / "twin.npz")
    with np.load(folder / "twin.npz") as arrays:
        return dict(arrays)


def train_in_one_process(case: Case) -> Trainer:
    trainer = Trainer(case.make_network(), case.make_config())
    trainer.fit(**case.given(), augment=shift if case.augment else None, progress=False)
    return trainer


def assert_same(found, expected, *, but=(), tolerance=0.0) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        if not name.startswith(but) or not but:
            np.testing.assert_allclose(
                found[name], array, rtol=tolerance, atol=tolerance, err_msg=name
            )


def assert_same_history(found, expected, tolerance=1e-9) -> None:
    """Compare the records of epochs, their times left out."""
    measured = "loss", "train_accuracy", "test_accuracy", "running_loss"
    for record, other in zip(found, expected, strict=True):
        for name in ("epoch", "nnz", "explored"):
            assert record[name] == other[name]
        for name in measured:
            one, two = np.array([record[name], other[name]], float)  # None is NaN
            np.testing.assert_allclose(one, two, rtol=tolerance, err_msg=name)


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_one_worker_trains_as_one_process_does(jobs, name, tmp_path):
    twin = train_in_one_process(CASES[name])
    if name == "stopped":
        assert [r["epoch"] for r in jobs.told(name)["epochs"]] == [0, 1, 2]
        return
    # One process leaves weights of sparse inputs for later, which rounds them otherwise.
    tolerance = 1e-6 if name == "few-nonzeros" else 0.0
    assert_same(jobs.network(name), arrays_of(twin.network, tmp_path), tolerance=tolerance)
    assert_same_history(jobs.told(name)["epochs"], twin.history.to_list(), max(1e-9, tolerance))
    assert jobs.told(name, 1)["epochs"] == jobs.told(name)["epochs"]


@pytest.mark.parametrize("name", TURNS)
def test_workers_that_take_turns_in_one_slot_train_as_one_process_does(jobs, name, tmp_path):
    twin = train_in_one_process(CASES[name])
    assert_same(jobs.network(name), arrays_of(twin.network, tmp_path))
    told = jobs.told(name)
    assert_same_history(told["epochs"], twin.history.to_list())
    assert told["report"]["staleness"] == {"0": 3 * 40}


@pytest.mark.parametrize("name", BOTH_PHASES)
def test_one_worker_and_both_phases(jobs, name, tmp_path):
    twin = train_in_one_process(CASES[name])
    arrays = arrays_of(twin.network, tmp_path)
    assert_same(jobs.network(name), arrays, but=MOMENTS)
    last = jobs.told(name)["epochs"][-1]
    assert_same_history([last], twin.history.to_list()[-1:])


@pytest.fixture(scope="module")
def joined_twin():
    return train_joined(CASES["joined-one-node"])


def train_joined(case: Case, **changes):
    """Sequential training with the mini-batches of three workers joined, step by step."""
    trainer = Trainer(case.make_network(), case.make_config(batch_size=18, **changes))
    given = case.given()
    data = prepare_(trainer.network, trainer.config, given["X"], given["y"])
    losses = [trainer.evaluate(data.X, data.y)[0]]
    with pytest.MonkeyPatch.context() as patch:
        for epoch in range(trainer.config.epochs):
            for number, rows in enumerate(epoch_batches(data.train_rows, trainer.config, epoch)):
                progress = epoch + number * 18 / ROWS
                rate = 0.05 * (1 + 2 * min(1.0, progress / 5))  # up to three times the rate
                patch.setattr(
                    trainer, "config", dataclasses.replace(trainer.config, learning_rate=rate)
                )
                trainer.step(data.X, data.y, rows, progress=progress)
            trainer.epoch += 1
            losses.append(trainer.evaluate(data.X, data.y)[0])
            if trainer.epoch < trainer.config.epochs:
                trainer.evolve(data)
    return trainer.network, losses


@pytest.mark.parametrize("name", JOINED)
def test_synchronous_training_is_sequential_with_joined_batches(jobs, name, joined_twin, tmp_path):
    network, losses = joined_twin
    assert_same(jobs.network(name), arrays_of(network, tmp_path), tolerance=2e-6)
    told = jobs.told(name)
    assert [record["loss"] for record in told["epochs"]] == pytest.approx(losses, rel=1e-5)
    assert told["report"]["staleness"] == {"0": 7 * 3}


def test_workers_normalise_their_parts_of_joined_batches(jobs, tmp_path):
    network, losses = train_joined(CASES["joined-normalised"], micro_batch=6)
    expected = arrays_of(network, tmp_path)
    assert np.abs(expected["running-0"]).min() > 0
    assert_same(jobs.network("joined-normalised"), expected, tolerance=1e-5)
    told = jobs.told("joined-normalised")["epochs"]
    assert [record["loss"] for record in told] == pytest.approx(losses, rel=1e-5)


def train_alone(start: Path, replica: int, replicas: int, case: Case):
    """Train a replica from a checkpoint on its share of the rows, by the steps of a trainer."""
    found = load_checkpoint(start)
    seed = replica_seed(found.config.seed, replica)
    config = dataclasses.replace(found.config, seed=seed)
    trainer = Trainer(found.network, config, state=found.state)
    given = case.given()
    data = prepare_(trainer.network, found.config, given["X"], given["y"])
    while trainer.epoch < 4:
        batches = epoch_batches(data.train_rows, found.config, trainer.epoch)[replica::replicas]
        for rows in batches:
            trainer.step(data.X, data.y, rows)
        trainer.epoch += 1
        if trainer.epoch < 4 and case.training.get("pruning_start"):
            trainer.prune()
        if trainer.epoch < 4 and not case.recovery:
            trainer.evolve(data)
    return trainer.network


def dense(layer) -> tuple[np.ndarray, np.ndarray]:
    """The cells of a layer's connections, and the weights as a matrix, float64 (n_in, n_out)."""
    cells = np.zeros((layer.n_in, layer.n_out), bool)
    weights = np.zeros(cells.shape)
    places = np.repeat(np.arange(layer.n_in), np.diff(layer.topology.indptr))
    cells[places, layer.topology.indices] = True
    weights[places, layer.topology.indices] = layer.values
    return cells, weights


def mean_of(layers) -> dict[str, np.ndarray]:
    """The mean of layers over the union of their cells, pruned to their mean size (eq. 2)."""
    cells, weights = zip(*map(dense, layers), strict=True)
    mean = np.mean(weights, axis=0).astype(np.float32)
    union = np.flatnonzero(np.any(cells, axis=0))
    wanted = int(np.floor(np.mean([layer.nnz for layer in layers]) + 0.5))
    order = np.argsort(np.abs(mean.ravel()[union]), kind="stable")
    kept = np.sort(union[order[len(union) - wanted :]])
    found = {"cells": kept, "values": mean.ravel()[kept]}
    found["bias"] = np.mean([layer.bias for layer in layers], axis=0)
    for name in ("srelu", "scale", "running"):
        if getattr(layers[0], name) is not None:
            found[name] = np.mean([getattr(layer, name) for layer in layers], axis=0)
    if layers[0].dead is not None:
        found["dead"] = np.all([layer.dead for layer in layers], axis=0)
    return found


@pytest.fixture(scope="module")
def replicas_twin(jobs):
    """Replicas that were trained one after another in this process, averaged with NumPy."""
    return average_of(jobs, CASES["start"], "start", "start-checkpoint")


def average_of(jobs, case: Case, name: str, checkpoint: str):
    start = jobs.folder_of(name).with_name(checkpoint)
    networks = [train_alone(start, r, 3, case) for r in range(3)]
    return [mean_of(layers) for layers in zip(*(n.layers for n in networks), strict=True)]


def assert_average(found, twin) -> None:
    for k, expected in enumerate(twin):
        n_out = len(found[f"bias-{k}"])
        rows = np.repeat(np.arange(len(found[f"indptr-{k}"]) - 1), np.diff(found[f"indptr-{k}"]))
        np.testing.assert_array_equal(rows * n_out + found[f"indices-{k}"], expected["cells"])
        for part in set(expected) - {"cells"}:
            np.testing.assert_allclose(
                found[f"{part}-{k}"], expected[part], rtol=1e-6, atol=1e-7, err_msg=part
            )


@pytest.mark.parametrize("name", [*(name for name in REPLICAS if name != "start"), *FEWER])
def test_phase_two_is_the_mean_of_trainings_alone(jobs, name, replicas_twin):
    found = jobs.network(name)
    assert_average(found, replicas_twin)
    assert found["dead-0"].sum() > 0


@pytest.mark.parametrize("name", [name for name in SETTLED if name.startswith("start")])
def test_replicas_of_few_updates_keep_their_connections(jobs, name):
    case, of_replicas = CASES[name], name.replace("start", "replicas")
    found, start = jobs.network(of_replicas), jobs.network(name)
    assert_average(found, average_of(jobs, case, name, str(case.checkpoint)))
    evolved = [record["evolution_s"] is not None for record in jobs.told(name)["epochs"]]
    assert evolved == [False, True, case.recovery == 4]
    if not case.training.get("pruning_start"):
        for part in (f"{name}-{k}" for name in ("indptr", "indices") for k in range(3)):
            np.testing.assert_array_equal(found[part], start[part])


@pytest.mark.parametrize("name", REPLICAS_SHRINKING)
def test_replicas_and_their_mean_have_the_connections_of_the_schedule(jobs, name):
    epochs, config = jobs.told(name)["epochs"], CASES[name].make_network().config
    nnz, output = [record["nnz"] for record in epochs], epochs[0]["nnz"][2]
    assert nnz[2] == [*Shrinking(0, 4).targets(config, 1), output]
    assert nnz[3] == nnz[4] == []  # of three networks
    assert nnz[5] == [*hidden_connections(config), output]
    for k in range(3):
        assert jobs.network(name)[f"values-{k}"].shape == (nnz[5][k],)
    grows = CASES[name].make_config().zeta > 0 and not CASES[name].recovery
    assert (epochs[5]["explored"] > epochs[2]["explored"]) == grows


@pytest.mark.parametrize("name", GIVEN)
def test_given_layers_stay_what_they_are(jobs, name):
    found, dead = jobs.network(name), [np.zeros(FEATURES, bool)]
    for k, mask in enumerate(MASKS):
        dead.append(found[f"dead-{k}"])
        cells = np.zeros(mask.shape, bool)
        cells[
            np.repeat(np.arange(len(mask)), np.diff(found[f"indptr-{k}"])), found[f"indices-{k}"]
        ] = 1
        allowed = mask & ~dead[k][:, None] & ~dead[k + 1]
        assert not (cells & ~allowed).any() and dead[k + 1].any()
        if k == 1:  # frozen
            assert np.array_equal(cells, allowed)


def test_running_statistics_are_averaged(jobs):
    case = CASES["start-normalised"]
    twin = average_of(jobs, case, "start-normalised", "normalised-checkpoint")
    assert "running" in twin[0]
    assert_average(jobs.network("replicas-normalised"), twin)


def read_notes(folder: Path) -> Counter:
    """How often each (epoch, row) was used, by all ranks."""
    lines = [line for path in folder.glob("rows-*.txt") for line in path.read_text().splitlines()]
    return Counter(tuple(map(int, line.split())) for line in lines)


def test_replicas_go_on_from_their_own_checkpoints(jobs, replicas_twin):
    broken = jobs.run("broken")
    assert len(broken.messages) == 1 and "RuntimeError: broken" in broken.messages[0]
    folder = jobs.folder_of("mended")
    assert {epoch for epoch, _ in read_notes(folder)} == {3}
    assert_average(jobs.network("mended"), replicas_twin)
    epochs = jobs.told("mended")["epochs"]
    assert [record["epoch"] for record in epochs] == list(range(5))
    assert None not in [record["running_loss"] for record in epochs[1:]]
    assert not list((jobs.folder / "broken-checkpoint").glob("replica-*"))


@pytest.mark.parametrize("name", CONTINUED)
def test_other_ranks_go_on_with_a_training(jobs, name):
    ranks = {"continued-by-1": 1, "continued-by-2": 2}.get(name, 4)
    assert [record["epoch"] for record in jobs.told("begun")["epochs"]] == [0, 1, 2]
    epochs = jobs.told(name, ranks - 1)["epochs"]
    assert [record["epoch"] for record in epochs] == list(range(7))
    assert epochs[:2] == jobs.told("begun")["epochs"][:2]
    begun = load_checkpoint(jobs.folder / "begun-checkpoint")
    batches = [epoch_batches(np.arange(ROWS), begun.config, epoch) for epoch in range(6)]
    left = {epoch: range(0, ROWS, 5) for epoch in range(2, 6)}
    if ranks > 1:  # what the server had not applied, to the mini-batch
        left |= {int(e): starts for e, starts in begun.state.parallel["deal"]["missing"].items()}
    expected = [(e, int(row)) for e in left for start in left[e] for row in batches[e][start // 5]]
    assert read_notes(jobs.folder_of(name)) == Counter(expected)
    notes = [path.read_text() for path in jobs.folder_of(name).glob("rows-*.txt")]
    assert sum("\n5 " in text for text in notes) == max(1, ranks - 1)  # replicas
    assert load_checkpoint(jobs.folder / f"{name}-checkpoint").epoch == 6


def test_every_row_is_used_once_an_epoch(jobs):
    for name in ("noted-one-node", "noted-four-nodes"):
        folder = jobs.folder_of(name)
        assert len(list(folder.glob("rows-*.txt"))) == 3
        expected = Counter((epoch, row) for epoch in range(3) for row in range(ROWS))
        assert read_notes(folder) == expected


@pytest.mark.parametrize("name", ["large-evolved", "large-stopped"])
def test_long_transfers_do_not_stop_each_other(jobs, name):
    epochs = jobs.told(name, 3)["epochs"]
    assert len(epochs) == 1 + (CASES[name].stop_after or 6)


@pytest.mark.parametrize("name", [n for n in ASYNCHRONOUS if CASES[n].rows > ROWS])
def test_asynchronous_training_learns_and_reports(jobs, name):
    case, told = CASES[name], jobs.told(name)
    for rank in (1, 2, 3):
        assert jobs.told(name, rank) == told
    epochs, report = told["epochs"], told["report"]
    assert [record["epoch"] for record in epochs] == list(range(7))
    assert epochs[4]["loss"] < 0.75 * epochs[0]["loss"]
    assert epochs[6]["loss"] < 0.9 * epochs[0]["loss"]
    nodes = case.options.get("ranks_per_node")
    assert report["nodes"] == {None: 1, 2: 2, 1: 4}[nodes]
    assert (report["bytes_moved"] > 0) == (nodes is not None)
    assert report["updates"] == sum(report["staleness"].values()) == 4 * 67
    for times in ("idle_s", "idle_cpu_s", "cpu_s"):
        assert len(report[times]) == 4
    assert all(record["loss"] is not None for record in epochs[:5])
    nnz = [record["nnz"] for record in epochs if record["nnz"]]
    if case.training.get("pruning_start") is None:
        assert all(each == nnz[0] for each in nnz)
    else:
        assert sum(nnz[-1]) < sum(nnz[0])
    assert jobs.network(name)["values-0"].shape == (nnz[-1][0],)


BAD_INPUT = """
import sys
from parallel_cases import Case
from largesparse import Trainer, load_checkpoint, save_checkpoint, save_model
from largesparse.errors import LargeSparseError
from largesparse.machine import mapped_memory
from largesparse.parallel import plan, train_wasap
from largesparse.parallel.comm.collectives import barrier
from largesparse.parallel.comm.ranks import get_communicator
from largesparse.parallel.wasap import job

comm = get_communicator()


def attempt(name, case=Case(), config=None, **given):
    network = case.make_network() if comm.rank == 0 else None
    options = {"network": network, "config": config or case.make_config(), "progress": False}
    told = "trained"
    try:
        train_wasap(**options | (case.given() if comm.rank == 0 else {}) | given)
    except LargeSparseError as error:
        told = f"{type(error).__name__}: {error}"
    except TypeError as error:
        told = f"TypeError: {error}"
    with open(f"{sys.argv[1]}/{comm.rank}", "a", encoding="utf-8") as file:
        file.write(f"{name} | {told}\\n")
    barrier(comm)


attempt("network", network=None)
attempt("config", config=Case().make_config(dropout=0.5 if comm.rank == 2 else 0.2))
attempt("options", chunk_bytes=1000 + comm.rank)
attempt("validation", config=Case().make_config(validation_fraction=0.1))
attempt("output", config=Case().make_config(evolve_output=True))
attempt("redistribution", config=Case().make_config(redistribute=True))
attempt("phase one", phase_one_epochs=4)
attempt("no phase one", phase_one_epochs=0)
attempt("slots", slots=0)
attempt("power", staleness_power=-1.0 if comm.rank == 3 else 0.0)
attempt("checkpoint", resume="nowhere")
attempt("no config", config=5 if comm.rank == 1 else None)
attempt("augment", augment=(lambda rows, numbers, epoch: rows) if comm.rank == 2 else None)
attempt("own error", test=5)
attempt("data", X=[[1.0, 2.0]])
available, create, connect = plan.memory_of_ranks, mapped_memory.Segment.create, job.connect
plan.memory_of_ranks = lambda comm, nodes: 300 * 2**20
mapped_memory.Segment.create = job.connect = None  # it is refused before these are reached
attempt("memory")
plan.memory_of_ranks, mapped_memory.Segment.create, job.connect = available, create, connect
if comm.rank == 0:
    save_checkpoint(Trainer(Case().make_network(), Case().make_config()), f"{sys.argv[1]}/taken")
attempt("taken", checkpoint=f"{sys.argv[1]}/taken")
attempt("rows", Case(targets=True, rows=2, training={"batch_size": 2}))
slow = {"batch_size": 5, "learning_rate": 1e-4}
attempt("batches", Case(targets=True, rows=7, training=slow), test=None)
"""


@pytest.fixture(scope="module")
def attempts(tmp_path_factory) -> tuple[dict[str, list[str]], str]:
    """What the ranks said of each bad input, and all of standard error."""
    folder = tmp_path_factory.mktemp("attempts")
    result = run_mpi(BAD_INPUT, 4, arguments=(str(folder),))
    assert result.status == 0, result.err
    told: dict[str, list[str]] = {}
    for rank in range(4):
        for line in (folder / str(rank)).read_text(encoding="utf-8").splitlines():
            name, text = line.split(" | ")
            told.setdefault(name, []).append(text)
    return told, result.err


@pytest.mark.parametrize(
    ("name", "parts"),
    {
        "network": ("ParameterError", "'network'", "None"),
        "config": ("ParallelError", "training configuration", "rank 2", "dropout=0.5"),
        "options": ("ParallelError", "parallel options", "chunk_bytes=1001"),
        "validation": ("ParameterError", "'validation_fraction'", "0.1", "'test'"),
        "output": ("ParameterError", "'evolve_output'", "must be False"),
        "redistribution": ("ParameterError", "'redistribute'", "must be False"),
        "phase one": ("ParameterError", "'phase_one_epochs'", "at most", "3", "4"),
        "no phase one": ("ParameterError", "'phase_one_epochs'", "0"),
        "slots": ("ParameterError", "'slots'", "0"),
        "power": ("ParameterError", "Rank 3", "'staleness_power'", "-1"),
        "checkpoint": ("CheckpointError", "nowhere"),
        "no config": ("ParameterError", "Rank 1", "'config'", "TrainingConfig", "int"),
        "augment": ("ParallelError", "augmented", "rank 2 has True"),
        "own error": ("TypeError", "int"),
        "taken": ("CheckpointError", "another training", "--resume"),
        "data": ("DataError", "2", "8"),
        "memory": (
            "MemoryPlanError",
            "neurons with a micro-batch of 6 on 4 ranks with",
            "fewer slots, or a smaller micro-batch, or fewer ranks",
        ),
        "rows": ("ParameterError", "3 workers", "2 training rows", "at most 3 ranks"),
    }.items(),
)
def test_bad_input_is_an_error_that_all_ranks_raise(attempts, name, parts):
    told, err = attempts
    first, *others = told[name]
    assert all(part in first for part in parts), first
    assert others == [first] * 3
    assert "Traceback" not in err


def test_fewer_batches_than_workers(attempts):
    told, err = attempts
    assert told["batches"] == ["trained"] * 4
    assert err.count("the batch size is 2 in place of 5") == 1
    assert len(err.strip().splitlines()) == 1


def test_an_error_that_is_not_caught_is_one_message():
    script = """
        from parallel_cases import Case
        from largesparse.parallel import train_wassp
        train_wassp(None, Case().make_config(), slots=0)
    """
    result = run_mpi(script, 3)
    assert result.status != 0
    assert result.err.count("'slots'") == result.err.count("Traceback") == 1, result


CAUGHT = """
import sys
from parallel_cases import Case
from mpi4py import MPI
from largesparse.errors import LargeSparseError
from largesparse.parallel.comm import leaving
from largesparse.parallel import train_wasap

comm, catches = MPI.COMM_WORLD, sys.argv[1]
leaving.HEAD_START = leaving.UNHEEDED = 1
case = Case(training={"validation_fraction": 0.1})
try:
    given = case.given() if comm.rank == 0 else {}
    train_wasap(case.make_network(), case.make_config(), progress=False, **given)
except LargeSparseError:
    if catches == "rank 0" and comm.rank > 0:
        raise
if catches == "all, and rank 0 waits":
    if comm.rank > 0:
        sys.exit()
    print("waits", flush=True)
comm.Barrier()
"""


def test_an_error_that_a_script_catches_leaves_the_ranks_together():
    assert run_mpi(CAUGHT, 3, arguments=("all",), timeout=30) == (0, "", "")


def test_an_error_that_rank_0_alone_catches_ends_the_job():
    result = run_mpi(CAUGHT, 3, arguments=("rank 0",), timeout=30)
    assert result.status != 0
    assert result.messages and all("'validation_fraction'" in each for each in result.messages)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_rank_that_waits_in_mpi_for_ranks_that_are_gone(number):
    with mpi_run(CAUGHT, 3, arguments=("all, and rank 0 waits",)) as run:
        run.wait_for("waits")
        time.sleep(0.5)
        run.send(number)
        result = run.finish(20)
    assert result.status != 0
    # Open MPI's launcher ends the ranks itself, before they say anything.
    assert set(result.messages) <= {"largesparse: interrupted"}
    assert "Traceback" not in result.err


def test_a_signal_to_a_forked_child_of_rank_0_is_not_the_job_s():
    script = """
        import os, signal, time
        from largesparse.parallel.comm import leaving
        from largesparse.parallel.comm.ranks import get_communicator
        leaving.UNHEEDED = 0.2
        if get_communicator().rank == 0:
            if (child := os.fork()) == 0:
                try:
                    time.sleep(100)
                finally:
                    os._exit(0)
            time.sleep(0.5)
            os.kill(child, signal.SIGTERM)
            assert os.waitpid(child, 0) == (child, 0)
            time.sleep(1)
            print("fine")
    """
    result = run_mpi(script, 2)
    assert (result.status, result.out) == (0, "fine\n"), result.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_rank_that_waits_at_its_end(number):
    script = """
        import time
        from largesparse.parallel.comm.ranks import get_communicator
        comm = get_communicator()
        if comm.rank > 0:
            time.sleep(100)
        print("waits", flush=True)
    """
    with mpi_run(script, 3) as run:
        run.wait_for("waits")
        time.sleep(0.5)
        run.send(number)
        result = run.finish(20)
    assert result.status != 0
    # Open MPI's launcher ends the ranks itself, before they say anything.
    assert set(result.messages) <= {"largesparse: interrupted"}
    assert "Traceback" not in result.err
