"""WASAP-SGD and WASSP-SGD under mpiexec, beside trainings in this process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import parallel_cases
import pytest
from mpi_runs import run_mpi
from parallel_cases import BOTH_PHASES, CASES, JOINED, SEQUENTIAL, Case, save_network, shift

from largesparse import Trainer
from largesparse.checkpoint import load_checkpoint


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


def without_times(epochs):
    names = ("epoch", "loss", "train_accuracy", "test_accuracy", "running_loss", "nnz")
    return [{name: record[name] for name in names} for record in epochs]


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_one_worker_trains_as_one_process_does(jobs, name, tmp_path):
    jobs.run(2, [*SEQUENTIAL, *BOTH_PHASES])
    twin = train_in_one_process(CASES[name])
    if name == "stopped":
        assert [r["epoch"] for r in jobs.told(name)["epochs"]] == [0, 1, 2]
        return
    assert_same(jobs.network(name), arrays_of(twin.network, tmp_path))
    assert without_times(jobs.told(name)["epochs"]) == without_times(twin.history.to_list())
    assert jobs.told(name, 1)["epochs"] == jobs.told(name)["epochs"]


@pytest.mark.parametrize("name", BOTH_PHASES)
def test_one_worker_and_both_phases(jobs, name, tmp_path):
    jobs.run(2, [*SEQUENTIAL, *BOTH_PHASES])
    twin = train_in_one_process(CASES[name])
    arrays = arrays_of(twin.network, tmp_path)
    assert_same(jobs.network(name), arrays, but=("velocity", "bias_velocity"))
    last = jobs.told(name)["epochs"][-1]
    assert without_times([last]) == without_times(twin.history.to_list()[-1:])
