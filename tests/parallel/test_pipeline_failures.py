"""Whatever becomes of a rank of a pipeline, the job ends with one message, or goes on."""

import signal
from pathlib import Path

import numpy as np
import pytest
from mpi_runs import mpi_run, run_mpi
from pipeline_cases import Case
from test_pipeline import assert_same_layers, sequential

from largesparse import load_checkpoint

HERE = str(Path(__file__).parent)
SCRIPT = """
    import os, signal, sys
    sys.path.insert(0, sys.argv[4])
    from mpi4py import MPI
    from pipeline_cases import Case
    from largesparse.parallel import train_pipeline

    comm, kind, folder, epochs = MPI.COMM_WORLD, sys.argv[1], sys.argv[2], int(sys.argv[3])
    X, y = Case().data()
    seen = []

    def augment(rows, numbers, epoch):
        seen.append(epoch)
        if kind == "stop" and len(seen) == 13:
            os.kill(os.getpid(), signal.SIGTERM)  # in the middle of the second epoch
        return rows

    def tell(trainer, record):
        print("epoch", record.epoch, flush=True)
        if kind == "raise" and comm.rank == 2 and record.epoch == 1:
            raise RuntimeError("no such picture")

    train_pipeline(
        Case().network_config(), Case().config(epochs=epochs), X, y, augment=augment,
        callbacks=[tell], progress=False, checkpoint=folder or None,
    )
"""


@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_that_is_killed_ends_the_job(rank):
    with mpi_run(SCRIPT, 3, arguments=("run", "", "100000", HERE)) as run:
        run.wait_for("epoch")
        run.rank(rank).kill()
        result = run.finish(20)
    assert result.status != 0
    assert len(result.messages) == 1 and "without a word" in result.err, result.err


def test_a_rank_that_raises_ends_the_job():
    result = run_mpi(SCRIPT, 3, arguments=("raise", "", "100000", HERE))
    assert result.status == 1
    assert len(result.messages) == 1, result.err
    assert "Rank 2: RuntimeError: no such picture" in result.messages[0]


def test_a_job_that_is_stopped_goes_on_to_the_same_bits_by_another_number_of_ranks(tmp_path):
    result = run_mpi(SCRIPT, 3, arguments=("stop", str(tmp_path / "run"), "3", HERE))
    assert result.status == 128 + signal.SIGTERM, result.err
    assert len(result.messages) == 1
    assert "stopped by SIGTERM in epoch 2, after" in result.messages[0]
    expected = sequential(Case(training={"epochs": 3}))
    trainer = load_checkpoint(tmp_path / "run")
    X, y = Case().data()
    trainer.fit(X, y, progress=False)
    assert_same_layers(expected.network, trainer.network.layers)
    np.testing.assert_array_equal(
        expected.history["running_loss"][1:], trainer.history["running_loss"][1:]
    )
