"""Whatever becomes of a rank in the middle of a training, the job ends, and nothing is left."""

import os
import signal
import time
from pathlib import Path

import pytest
from mpi_runs import mpi_run, run_mpi

from largesparse import load_checkpoint

SCRIPT = """
    import os, sys, time
    import numpy as np
    from largesparse import NetworkConfig, SparseMLP, TrainingConfig
    from largesparse.parallel import train_wasap
    from mpi4py import MPI

    comm, kind = MPI.COMM_WORLD, sys.argv[1]
    X = np.random.default_rng(0).standard_normal((600, 20), dtype=np.float32)
    network = SparseMLP(NetworkConfig((20, 50, 50, 2), epsilon=5)) if comm.rank == 0 else None
    phases = {"phase_one_epochs": 100000 if kind != "phase two" else 1}

    def augment(rows, numbers, epoch):
        if kind == "raise" and comm.rank == 2 and epoch == 30:
            raise RuntimeError("no such picture")
        if kind == "exit" and comm.rank == 2 and epoch == 30:
            sys.exit("gone")
        return rows

    def tell(trainer, record):
        print("epoch", record.epoch, flush=True)

    config = TrainingConfig(epochs=100000, batch_size=16, backend="scipy", threads=1)
    train_wasap(
        network, config, X, np.arange(600) % 2, augment=augment, callbacks=[tell], progress=False,
        checkpoint=sys.argv[2] or None, **phases,
    )
"""


def shared_files(process):
    """Paths of the files in shared memory that a process has mapped, whether they exist or not."""
    lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
    names = {line.split(maxsplit=5)[-1].removesuffix(" (deleted)") for line in lines}
    own = {f"/dev/shm/__KMP_REGISTERED_LIB_{process.pid}_{os.getuid()}"}
    return own | {name for name in names if name.startswith("/dev/shm/mpich")}


def end(kind, strike=None, checkpoint=""):
    """Start 3 ranks, let `strike` happen in the middle, and return how the job ended."""
    with mpi_run(SCRIPT, 3, arguments=(kind, str(checkpoint))) as run:
        run.wait_for("epoch")
        files = set.union(*(shared_files(run.rank(rank)) for rank in range(3)))
        assert any("mpich" in name for name in files)
        if kind == "phase two":
            time.sleep(1)
        if strike is not None:
            strike(run)
        result = run.finish(20)
    assert result.status != 0
    assert len(result.messages) == 1, result.err
    assert not [name for name in files if os.path.exists(name)]
    return result


@pytest.mark.parametrize(("kind", "rank"), [("phase one", 0), ("phase one", 2), ("phase two", 2)])
def test_a_rank_that_is_killed_ends_the_job(kind, rank):
    for _ in range(3):  # see test_parallel_control.test_a_killed_rank_ends_the_job
        result = end(kind, lambda run: run.rank(rank).send_signal(signal.SIGKILL))
        if f"rank {rank}" in result.messages[0].lower():
            return
    raise AssertionError(result.messages)


def test_a_rank_that_raises_ends_the_job_with_its_error():
    result = end("raise")
    assert "Rank 2: RuntimeError: no such picture" in result.messages[0]


def test_a_rank_that_exits_ends_the_job():
    assert "Rank 2" in end("exit").messages[0]


def test_ctrl_c_ends_the_job():
    result = end("phase one", lambda run: run.send(signal.SIGINT))
    assert "interrupted" in result.messages[0]
    assert "Traceback" not in result.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_job_with_a_checkpoint_is_saved_before_it_ends(tmp_path, number):
    folder = tmp_path / "run"
    result = end("phase one", lambda run: run.send(number), checkpoint=folder)
    cause = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert result.messages[0].startswith(f"largesparse: stopped by {cause} ")
    assert f"--resume {folder}" in result.messages[0] and "Traceback" not in result.err
    if number == signal.SIGTERM:  # mpiexec has a status of its own after Ctrl-C
        assert result.status == 143
    assert load_checkpoint(folder).epoch > 0


STOPPED = """
    import hashlib, os, signal, sys, time
    import numpy as np
    from largesparse import NetworkConfig, SparseMLP, TrainingConfig
    from largesparse.parallel import train_wasap, train_wassp
    from mpi4py import MPI

    comm, (algorithm, what, folder) = MPI.COMM_WORLD, sys.argv[1:]
    train = train_wasap if algorithm == "wasap" else train_wassp
    X = np.random.default_rng(0).standard_normal((600, 20), dtype=np.float32)
    leader = comm.bcast(os.getpid())
    batches = []

    def augment(rows, numbers, epoch):
        batches.append(epoch)
        if what == "stop" and comm.rank == 1 and epoch == 1 and batches.count(1) == 6:
            os.kill(leader, signal.SIGTERM)
            time.sleep(2)
        return rows

    config = TrainingConfig(
        epochs=3, batch_size=16, learning_rate=0.1, dropout=0.2, backend="scipy", threads=1
    )
    for options in {
        "stop": [{"checkpoint": folder}],
        "go on, and train without a stop": [{"checkpoint": folder, "resume": folder}, {}],
    }[what]:
        network = SparseMLP(NetworkConfig((20, 50, 50, 2), epsilon=5)) if comm.rank == 0 else None
        history = train(
            network, config, X, np.arange(600) % 2, phase_one_epochs=3, augment=augment,
            progress=False, **options
        )
        if comm.rank == 0:
            arrays = [array for layer in network.layers for array in (layer.values, layer.velocity)]
            digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
            print(digest, history["loss"], history["running_loss"])
"""


@pytest.mark.parametrize(("algorithm", "ranks"), [("wasap", 2), ("wassp", 3)])
def test_a_job_that_is_stopped_within_an_epoch_comes_to_the_same_bits(tmp_path, algorithm, ranks):
    """One worker, or joined mini-batches: the order of updates is the same every time."""

    def run(what):
        arguments = (algorithm, what, str(tmp_path / "run"))
        return run_mpi(STOPPED, ranks, arguments=arguments, timeout=60)

    stopped = run("stop")
    assert stopped.status == 143, stopped.err
    assert f"in epoch 2, after {96 * (ranks - 1)} of 600 samples; saved in" in stopped.messages[0]
    done = run("go on, and train without a stop")
    assert done.status == 0, done.err
    resumed, whole = done.out.splitlines()
    assert resumed == whole


def test_phase_two_goes_on_from_the_replicas(tmp_path):
    folder = tmp_path / "run"
    result = end("phase two", lambda run: run.send(signal.SIGTERM), checkpoint=folder)
    assert result.status == 143
    assert "stopped by SIGTERM in phase two" in result.messages[0]
    assert load_checkpoint(folder).epoch == 1
    replica = load_checkpoint(folder / "replica-001")
    assert replica.epoch > 1 and replica.state.part is None


@pytest.mark.parametrize("rank", [0, 2])
def test_an_error_before_the_training_ends_the_job(rank):
    script = """
        import sys
        from largesparse import TrainingConfig
        from largesparse.parallel import train_wasap
        from mpi4py import MPI

        if MPI.COMM_WORLD.rank == int(sys.argv[1]):
            open("no such folder/data.npy")
        train_wasap(None, TrainingConfig())
    """
    result = run_mpi(script, 3, timeout=20, arguments=(str(rank),))
    assert result.status != 0
    assert result.err.count("Traceback") == 1
    assert "FileNotFoundError" in result.err
