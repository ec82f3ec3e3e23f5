"""A full disk, a folder that cannot be written to, and too little memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT
from mpi_runs import mpiexec

from largesparse import (
    NetworkConfig,
    SparseMLP,
    Trainer,
    TrainingConfig,
    load_checkpoint,
    load_model,
    save_model,
)
from largesparse.errors import CheckpointError
from largesparse.harness.records import read_records

DISK = 2**20  # bytes


@pytest.fixture
def disk(tmp_path):
    """A file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user cannot mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def network(seed=1):
    return SparseMLP(NetworkConfig((50, 400, 300, 2), epsilon=8.0, seed=seed), progress=False)


def fill(disk: Path, leave: int) -> Path:
    """Write a file that leaves so many bytes."""
    path = disk / "filling"
    path.write_bytes(b"\0" * max(0, shutil.disk_usage(disk).free - leave))
    return path


def same(one: SparseMLP, other: SparseMLP) -> bool:
    return all(
        np.array_equal(a.values, b.values) for a, b in zip(one.layers, other.layers, strict=True)
    )


@pytest.mark.parametrize("leave", [0, 4096, 40_000])
def test_the_old_model_survives_a_full_disk(disk, leave):
    old = network()
    save_model(old, disk / "model")
    filling = fill(disk, leave)
    with pytest.raises(CheckpointError, match=r"model.*[Nn]o space left"):
        save_model(network(seed=2), disk / "model")
    assert same(load_model(disk / "model"), old)
    assert sorted(path.name for path in disk.iterdir()) == ["filling", "model"]
    filling.unlink()
    save_model(network(seed=2), disk / "model")  # there is room again
    assert same(load_model(disk / "model"), network(seed=2))


def test_a_training_goes_on_when_the_disk_is_full(disk, caplog):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((64, 50), dtype=np.float32), np.arange(64) % 2
    config = TrainingConfig(epochs=3, batch_size=16, backend="scipy", threads=1)
    trainer = Trainer(network(), config)

    def fill_after_the_first(trainer, record):
        if record.epoch == 1:
            fill(disk, 0)

    trainer.fit(X, y, checkpoint=disk / "run", callbacks=[fill_after_the_first], progress=False)
    assert trainer.epoch == 3
    assert "No space left" in caplog.text
    assert load_checkpoint(disk / "run").epoch == 1  # the last that was saved


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")
def test_a_file_system_that_is_read_only_is_told_before_the_training(disk):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    trainer = Trainer(network(), TrainingConfig(epochs=1, backend="scipy", threads=1))
    with pytest.raises(CheckpointError, match=r"run.*[Rr]ead-only"):
        trainer.fit(np.zeros((8, 50)), np.arange(8) % 2, checkpoint=disk / "run", progress=False)
    assert trainer.step_count == 0


def run_limited(limit: str, flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the driver in a shell that a command has limited."""
    driver = f"{sys.executable} {ROOT / 'tools' / 'bigmodel.py'} {flags}"
    return subprocess.run(
        ["bash", "-c", f"{limit} && exec {driver}"],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )


MEMORY_GROUPS = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")  # version 1, version 2


@pytest.fixture
def limited_group():
    """A function that makes a control group of so many bytes; and what moves a shell into it."""
    made = []

    def make(limit: int) -> str:
        for root in MEMORY_GROUPS:
            group = root / f"largesparse-{os.getpid()}"
            name = "memory.limit_in_bytes" if root.name == "memory" else "memory.max"
            try:
                group.mkdir()
                made.append(group)
                with open(group / name, "r+") as file:  # not there where memory is not controlled
                    file.write(str(limit))
            except OSError:
                continue
            return f"echo $$ > {group / 'cgroup.procs'}"
        pytest.skip("this user cannot make a control group with a limit of memory")

    yield make
    for group in made:
        group.rmdir()


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
@pytest.mark.parametrize(("neurons", "status"), [("400k", 0), ("20M", 2)])
def test_a_control_group_s_limit_bounds_the_plan(neurons, status, limited_group, tmp_path):
    limit = 600 * 2**20
    flags = "--epsilon 1 --features 64 --samples 300 --epochs 1"
    if status == 0:  # what is compiled first needs memory of its own
        small = run_limited("true", f"--neurons 100k {flags} --out {tmp_path / 'first'}")
        assert small.returncode == 0, small.stderr
    flags = f"--neurons {neurons} {flags}"
    result = run_limited(limited_group(limit), f"{flags} --out {tmp_path / 'runs'}")
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    if status == 0:  # the micro-batch is what fits; it would be 128
        (record,) = read_records(tmp_path / "runs").itertuples()
        assert record.micro_batch < 128
        assert record.peak_rss_bytes < record.planned_bytes * 1.1 < limit
    else:
        (line,) = [each for each in result.stderr.splitlines() if "error:" in each]
        assert "GiB" in line and "neurons would fit" in line


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
def test_what_a_sibling_uses_is_not_free(limited_group):
    """A process of 300 MiB and this library, in a group of a GiB."""
    move = limited_group(2**30)
    ask = """if True:
        import subprocess, sys
        occupy = "data = bytearray(300 * 2**20); print(flush=True); input()"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        sibling = subprocess.Popen([sys.executable, "-c", occupy], **pipes)
        sibling.stdout.readline()
        from largesparse.training.memory import available_memory
        print(available_memory())
        sibling.communicate(b"\\n")
    """
    script = f"{move} && exec {sys.executable} -c '{ask}'"
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = int(done.stdout)
    assert 400 * 2**20 < found < 725 * 2**20, done


def in_small_shared_memory(size: str, program: str, *command: str, **variables: str) -> Any:
    """Run a Python program where /dev/shm has a size of its own, or none at all ("0")."""
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    if size == "0":
        mount = "mount -t tmpfs tmpfs /dev && mknod -m 666 /dev/null c 1 3 && "
        mount += "mknod -m 666 /dev/urandom c 1 9"
    isolated = ["unshare", "--mount", "bash", "-c"]
    try:
        subprocess.run([*isolated, mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user cannot mount another /dev/shm")
    return subprocess.run(
        [*isolated, f'{mount} && exec "$@"', "bash", *command, sys.executable, program],
        capture_output=True,
        text=True,
        env=os.environ | variables,
        check=False,
        timeout=300,  # a process that forked must end
    )


def test_the_first_fit_needs_neither_home_nor_shared_memory_nor_a_second_core(tmp_path):
    """As in a container: under joblib, in a forked child."""
    program = tmp_path / "program.py"
    program.write_text("""
import os, sys
import numpy as np
heavy = {"numba", "pandas", "sklearn", "scipy", "mpi4py", "torch", "matplotlib"}
import largesparse
assert not heavy & set(sys.modules)
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
from sklearn.model_selection import cross_val_score
from largesparse import SparseMLPClassifier
X = np.random.default_rng(0).standard_normal((60, 8))
def score():
    model = SparseMLPClassifier((20,), max_epochs=2, random_state=0)
    return cross_val_score(model, X, X[:, 0] > 0, cv=2, n_jobs=2).tolist()
found = score()
assert not {"mpi4py", "torch", "matplotlib", "sparse_dot_mkl"} & set(sys.modules)
child = os.fork()
if not child:
    os._exit(score() != found)
assert os.waitpid(child, 0)[1] == 0
""")
    home = tmp_path / "home"
    home.write_text("")  # so nothing can be made in it
    places = {"HOME": str(home), "XDG_CACHE_HOME": "", "TMPDIR": str(tmp_path)}
    done = in_small_shared_memory("0", str(program), **places, LARGESPARSE_CACHE="")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "NumbaSystemWarning" not in done.stderr


@pytest.mark.parametrize("size", ["0", "8m"])
def test_processes_predict_where_shared_memory_is_small(size, tmp_path):
    program = tmp_path / "program.py"
    program.write_text("""
import numpy as np
from largesparse import NetworkConfig, Predictor, SparseMLP, predict

if __name__ == "__main__":
    network = SparseMLP(NetworkConfig((2000, 50, 2), epsilon=5), progress=False)
    X = np.random.default_rng(0).standard_normal((2000, 2000), dtype=np.float32)  # 16 MB
    with Predictor(network, processes=2, threads=1, backend="scipy") as predictor:
        assert (predictor.predict(X) == predict(network, X, threads=1, backend="scipy")).all()
""")
    done = in_small_shared_memory(size, str(program), TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("largesparse-*"))


def test_ranks_start_where_ucx_ends_in_a_segmentation_fault(tmp_path):
    """Eight ranks in 32 MiB: MPICH goes without UCX, which needs more."""
    program = tmp_path / "program.py"
    program.write_text("""
from largesparse.parallel.comm.collectives import gather
from largesparse.parallel.comm.ranks import get_communicator
if (found := gather(get_communicator(), 1)) is not None:
    print(sum(found))
""")
    done = in_small_shared_memory("32m", str(program), mpiexec(), "-n", "8")
    assert (done.returncode, done.stdout) == (0, "8\n"), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the address space is limited")
@pytest.mark.parametrize("limit", [2_000_000, 3_000_000])  # KiB
def test_too_little_address_space_is_told_in_a_sentence(limit, tmp_path):
    flags = f"--neurons 20M --features 512 --samples 600 --epochs 1 --out {tmp_path / 'runs'}"
    result = run_limited(f"ulimit -v {limit}", flags, OMP_NUM_THREADS="1")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    (line,) = [each for each in result.stderr.splitlines() if "error:" in each]
    assert "GiB" in line and "neurons would fit" in line
    assert not (tmp_path / "runs").exists()
