"""WASAP-SGD and WASSP-SGD under mpiexec, beside trainings in this process."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import parallel_cases
import pytest
from mpi_runs import run_mpi
from parallel_cases import (
    ASYNCHRONOUS,
    BOTH_PHASES,
    CASES,
    JOINED,
    REPLICAS,
    ROWS,
    SEQUENTIAL,
    Case,
    save_network,
    shift,
)

from largesparse import Trainer, load_checkpoint
from largesparse.parallel.replicas import replica_seed
from largesparse.training_data import epoch_batches, prepare


class Jobs:
    """Runs of `parallel_cases` under mpiexec, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: set[str] = set()
        self.failed: set[str] = set()

    def run(self, ranks: int, names) -> None:
        """Train the cases that have not been trained yet, in one job."""
        missing = [name for name in names if name not in self.done]
        if self.failed & set(missing):
            pytest.fail("the job has failed for another test")
        if missing:
            self.failed.update(missing)
            program = (parallel_cases.__file__, str(self.folder), *missing)
            result = run_mpi("", ranks, program=program, timeout=120)
            assert result.status == 0, f"{result.out}\n{result.err}"
            self.failed.difference_update(missing)
            self.done.update(missing)

    def network(self, name: str) -> dict[str, np.ndarray]:
        with np.load(self.folder / name / "network.npz") as arrays:
            return dict(arrays)

    def told(self, name: str, rank: int = 0) -> dict:
        """The history and the report that a rank has returned."""
        return json.loads((self.folder / name / f"history-{rank}.json").read_text())


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
        assert (record["epoch"], record["nnz"]) == (other["epoch"], other["nnz"])
        for name in measured:
            one, two = np.array([record[name], other[name]], float)  # None is NaN
            np.testing.assert_allclose(one, two, rtol=tolerance, err_msg=name)


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_one_worker_trains_as_one_process_does(jobs, name, tmp_path):
    jobs.run(2, [*SEQUENTIAL, *BOTH_PHASES])
    twin = train_in_one_process(CASES[name])
    if name == "stopped":
        assert [r["epoch"] for r in jobs.told(name)["epochs"]] == [0, 1, 2]
        return
    assert_same(jobs.network(name), arrays_of(twin.network, tmp_path))
    assert_same_history(jobs.told(name)["epochs"], twin.history.to_list())
    assert jobs.told(name, 1)["epochs"] == jobs.told(name)["epochs"]


@pytest.mark.parametrize("name", BOTH_PHASES)
def test_one_worker_and_both_phases(jobs, name, tmp_path):
    jobs.run(2, [*SEQUENTIAL, *BOTH_PHASES])
    twin = train_in_one_process(CASES[name])
    arrays = arrays_of(twin.network, tmp_path)
    assert_same(jobs.network(name), arrays, but=("velocity", "bias_velocity"))
    last = jobs.told(name)["epochs"][-1]
    assert_same_history([last], twin.history.to_list()[-1:])


@pytest.fixture(scope="module")
def joined_twin():
    """Sequential training with the mini-batches of three workers joined, step by step."""
    case = CASES["joined-one-node"]
    trainer = Trainer(case.make_network(), case.make_config(batch_size=18))
    given = case.given()
    data = prepare(trainer.network, trainer.config, given["X"], given["y"])
    losses = [trainer.evaluate(data.X, data.y)[0]]
    with pytest.MonkeyPatch.context() as patch:
        for epoch in range(trainer.config.epochs):
            for number, rows in enumerate(epoch_batches(data.train_rows, trainer.config, epoch)):
                progress = epoch + number * 18 / ROWS
                rate = 0.05 * (1 + 2 * min(1.0, progress / 5))  # up to three times the rate
                patch.setattr(
                    trainer, "config", dataclasses.replace(trainer.config, learning_rate=rate)
                )
                trainer.step(data.X, data.y, rows)
            trainer.epoch += 1
            losses.append(trainer.evaluate(data.X, data.y)[0])
            if trainer.epoch < trainer.config.epochs:
                trainer.evolve(data)
    return trainer.network, losses


@pytest.mark.parametrize("name", JOINED)
def test_synchronous_training_is_sequential_with_joined_batches(jobs, name, joined_twin, tmp_path):
    jobs.run(4, JOINED)
    network, losses = joined_twin
    assert_same(jobs.network(name), arrays_of(network, tmp_path), tolerance=2e-6)
    told = jobs.told(name)
    assert [record["loss"] for record in told["epochs"]] == pytest.approx(losses, rel=1e-5)
    assert told["report"]["staleness"] == {"0": 7 * 3}


def train_alone(start: Path, replica: int, replicas: int, case: Case):
    """Train a replica from a checkpoint on its share of the rows, by the steps of a trainer."""
    found = load_checkpoint(start)
    seed = replica_seed(found.config.seed, replica)
    trainer = Trainer(found.network, dataclasses.replace(found.config, seed=seed))
    trainer.epoch, trainer.step_count = found.epoch, found.step_count
    trainer.history = found.history
    given = case.given()
    data = prepare(trainer.network, found.config, given["X"], given["y"])
    while trainer.epoch < 4:
        batches = epoch_batches(data.train_rows, found.config, trainer.epoch)[replica::replicas]
        for rows in batches:
            trainer.step(data.X, data.y, rows)
        trainer.epoch += 1
        if trainer.epoch < 4:
            trainer.prune()
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
    if layers[0].srelu is not None:
        found["srelu"] = np.mean([layer.srelu for layer in layers], axis=0)
    if layers[0].dead is not None:
        found["dead"] = np.all([layer.dead for layer in layers], axis=0)
    return found


@pytest.fixture(scope="module")
def replicas_twin(jobs):
    """Replicas that were trained one after another in this process, averaged with NumPy."""
    run_replicas(jobs)
    case = CASES["start"]
    networks = [train_alone(jobs.folder / "start-checkpoint", r, 3, case) for r in range(3)]
    return [mean_of(layers) for layers in zip(*(n.layers for n in networks), strict=True)]


def run_replicas(jobs) -> None:
    jobs.run(4, [name for name in REPLICAS if name != "replicas-fewer"])
    jobs.run(3, ["replicas-fewer"])


@pytest.mark.parametrize("name", [name for name in REPLICAS if name != "start"])
def test_phase_two_is_the_mean_of_trainings_alone(jobs, name, replicas_twin):
    run_replicas(jobs)
    found = jobs.network(name)
    for k, expected in enumerate(replicas_twin):
        n_out = len(found[f"bias-{k}"])
        rows = np.repeat(np.arange(len(found[f"indptr-{k}"]) - 1), np.diff(found[f"indptr-{k}"]))
        np.testing.assert_array_equal(rows * n_out + found[f"indices-{k}"], expected["cells"])
        for part in set(expected) - {"cells"}:
            np.testing.assert_allclose(
                found[f"{part}-{k}"], expected[part], rtol=1e-6, atol=1e-7, err_msg=part
            )
    assert found["dead-0"].sum() > 0


def test_every_row_is_used_once_an_epoch(jobs):
    jobs.run(4, ASYNCHRONOUS)
    for name in ("noted-one-node", "noted-four-nodes"):
        lines = [
            (jobs.folder / name / f"rows-{rank}.txt").read_text().splitlines() for rank in (1, 2, 3)
        ]
        assert all(lines)
        used = Counter(tuple(map(int, line.split())) for part in lines for line in part)
        assert used == Counter((epoch, row) for epoch in range(3) for row in range(ROWS))


@pytest.mark.parametrize("name", [n for n in ASYNCHRONOUS if CASES[n].rows > ROWS])
def test_asynchronous_training_learns_and_reports(jobs, name):
    jobs.run(4, ASYNCHRONOUS)
    case, told = CASES[name], jobs.told(name)
    for rank in (1, 2, 3):
        assert jobs.told(name, rank) == told
    epochs, report = told["epochs"], told["report"]
    assert [record["epoch"] for record in epochs] == list(range(7))
    assert epochs[-1]["loss"] < 0.7 * epochs[0]["loss"]
    nodes = case.options.get("ranks_per_node")
    assert report["nodes"] == {None: 1, 2: 2, 1: 4}[nodes]
    assert (report["bytes_moved"] > 0) == (nodes is not None)
    assert report["updates"] == sum(report["staleness"].values()) == 4 * 100
    assert max(map(int, report["staleness"])) <= 2 * sum(report["slots"])
    for times in ("idle_s", "idle_cpu_s", "cpu_s"):
        assert len(report[times]) == 4
    assert all(record["loss"] is not None for record in epochs[:5])
    nnz = [record["nnz"] for record in epochs if record["nnz"]]
    if case.training.get("pruning_start") is None:
        assert all(each == nnz[0] for each in nnz)
    else:
        assert sum(nnz[-1]) < sum(nnz[0])
    assert jobs.network(name)["values-0"].shape == (nnz[-1][0],)
