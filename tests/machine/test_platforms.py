"""What the package does where Linux's and POSIX's own things are missing."""

import json
import subprocess
import sys

import pytest
from helpers import ROOT
from mpi_runs import run_mpi

from largesparse.errors import ParallelError
from largesparse.parallel.shared import weights as shared

OF_ESTIMATORS = "import joblib, pandas, sklearn.base, sklearn.datasets"
# Taken away after the libraries have been imported, which look at the platform too.
TAKEN = """
import os, signal, sys
import numba, numpy, psutil, safetensors.numpy, scipy.sparse, threadpoolctl, tqdm.auto

modules, functions, signals, platform = {taken}
sys.modules.update(dict.fromkeys(modules))
for owner, names in ((os, functions), (signal, signals)):
    for name in names:
        if hasattr(owner, name):
            delattr(owner, name)
sys.platform = platform
"""
LINUX = ["memfd_create", "sched_getaffinity", "posix_fallocate"]
POSIX_MODULES = ["fcntl", "resource", "pwd", "grp", "termios"]
MACOS = [], LINUX, [], "darwin"
WINDOWS = POSIX_MODULES, [*LINUX, "fork", "getuid", "uname"], ["SIGHUP", "SIGKILL"], "win32"


def run_without(taken, program, *arguments):
    before = OF_ESTIMATORS + TAKEN.replace("{taken}", repr(taken))
    return subprocess.run(
        [sys.executable, "-c", before + program, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("taken", [MACOS, WINDOWS], ids=["macos", "windows"])
def test_a_training_and_the_driver_by_one_process(taken, tmp_path):
    program = f"""
import largesparse as ls

rng = numpy.random.default_rng(0)
X = rng.standard_normal((200, 30), dtype=numpy.float32)
model = ls.SparseMLPClassifier((40,), max_epochs=2, backend="fused", random_state=0)
model.fit(X, X[:, 0] > 0)
folder = {str(tmp_path / "model")!r}
model.save(folder)
again = ls.SparseMLPClassifier.load(folder)
assert (again.predict(X) == model.predict(X)).all()

import runpy
sys.path.insert(0, {str(ROOT / "tools")!r})
runpy.run_path({str(ROOT / "tools" / "bigmodel.py")!r}, run_name="__main__")
"""
    flags = ["--neurons=2k", "--features=64", "--samples=200", "--epochs=1", "--backend=fused"]
    files = [f"--out={tmp_path / 'runs'}", f"--checkpoint={tmp_path / 'run'}"]
    result = run_without(taken, program, *flags, *files)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "runs").read_text())["neurons"] == 2000


def test_several_ranks_without_file_locks_are_refused(monkeypatch):
    monkeypatch.setattr(shared, "fcntl", None)
    with pytest.raises(ParallelError, match=r"file locks of POSIX.*one process"):
        shared.check_locks()


def test_several_ranks_without_what_linux_alone_has():
    result = run_mpi(
        "from mpi4py import MPI\n"
        + TAKEN.replace("{taken}", repr(MACOS))
        + """
import numpy as np
from largesparse import NetworkConfig, SparseMLP, TrainingConfig
from largesparse.parallel import train_wasap

rng = np.random.default_rng(0)
X = rng.standard_normal((96, 20), dtype=np.float32)
network = SparseMLP(NetworkConfig((20, 30, 2), epsilon=5.0, seed=1), progress=False)
config = TrainingConfig(epochs=2, batch_size=16, backend="fused", threads=1)
history = train_wasap(network, config, X, (X[:, 0] > 0) * 1, progress=False)
assert len(history) == 3
""",
        2,
        timeout=300,
    )
    assert result.status == 0, result.err


def test_several_ranks_without_file_locks_get_one_message():
    result = run_mpi(
        "import multiprocessing.connection, multiprocessing.shared_memory\n"
        + TAKEN.replace("{taken}", repr(WINDOWS))
        + """
import numpy as np
from largesparse import NetworkConfig, SparseMLP, TrainingConfig
from largesparse.machine.exit_codes import run_command
from largesparse.parallel import train_wasap

def main(argv=None):
    network = SparseMLP(NetworkConfig((20, 30, 2), epsilon=5.0, seed=1), progress=False)
    X = np.zeros((96, 20), np.float32)
    train_wasap(network, TrainingConfig(epochs=2), X, np.arange(96) % 2, progress=False)

sys.exit(run_command(main))
""",
        2,
        timeout=300,
    )
    assert result.status != 0
    assert result.err.count("file locks of POSIX") == 1
    assert "Traceback" not in result.err
