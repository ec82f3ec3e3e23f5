"""A training across two hosts, which are network namespaces, beside one on simulated nodes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from mpi_runs import mpiexec

LAUNCHER = ROOT / "soak" / "two_hosts.sh"

SCRIPT = """
import socket, sys
import numpy as np
from mpi4py import MPI
from largesparse import NetworkConfig, SparseMLP, TrainingConfig
from largesparse.parallel import train_wassp

comm = MPI.COMM_WORLD
out, ranks_per_node = sys.argv[1], int(sys.argv[2]) or None
X = np.random.default_rng(0).standard_normal((120, 30), dtype=np.float32)
y = (X[:, 0] > 0).astype(int)
arrays = {}
for name, options in (
    ("wassp", {}),
    ("allreduce", {"server": False}),
):
    network = None
    if comm.rank == 0:
        network = SparseMLP(NetworkConfig((30, 80, 80, 2), epsilon=5), progress=False)
    config = TrainingConfig(epochs=2, batch_size=16, backend="scipy", threads=1)
    history = train_wassp(
        network, config, X, y, ranks_per_node=ranks_per_node, progress=False, **options
    )
    assert history.parallel.nodes == 2
    if comm.rank == 0:
        assert history["loss"][-1] < 1
        for k, layer in enumerate(network.layers):
            arrays |= {f"{name}-{k}": layer.values, f"{name}-{k}-indices": layer.topology.indices}
hosts = comm.gather(socket.gethostname())
if comm.rank == 0:
    np.savez(out, hosts=hosts, **arrays)
"""


PIPELINE = """
import socket, sys
import numpy as np
from mpi4py import MPI
from largesparse import NetworkConfig, TrainingConfig
from largesparse.parallel import train_pipeline
from largesparse.parallel.pipeline.plan import Machine, Request, make_plan
from largesparse.training.memory import MicroBatching

comm = MPI.COMM_WORLD
out = sys.argv[1]
X = np.random.default_rng(0).standard_normal((120, 30), dtype=np.float32)
y = (X[:, 0] > 0).astype(int)
network = NetworkConfig((30, 80, 60, 90, 70, 2), epsilon=5)
config = TrainingConfig(
    epochs=2, batch_size=16, micro_batch=4, dropout=0.2, backend="scipy", threads=1
)
arrays = {}
for groups in (1, 2):
    trained = train_pipeline(network, config, X, y, groups=groups, progress=False)
    arrays |= {
        f"{groups}-{layer.number}-{name}": array
        for layer in trained.network.layers
        for name, array in (("values", layer.values), ("indices", layer.topology.indices))
    }
    report = trained.history.parallel
    request = Request(network, 16, (Machine((0, 1, 2, 3), 2**40),), groups)
    plan = make_plan(request, MicroBatching(4), "time")
    planned = 2 * (7 * plan.bytes_between(16) + plan.bytes_between(8))
    if groups == 1:
        assert plan.summed_bytes == 0
        arrays["bytes"] = np.array([report.steps_bytes, planned])
    else:
        sums = 2 * 8 * plan.summed_bytes  # of the expected connections
        assert abs(report.steps_bytes / (planned + sums) - 1) < 0.1, (report, planned, sums)
hosts = comm.gather(socket.gethostname())
everyone = comm.gather(arrays)
if comm.rank == 0:
    joined = {name: array for part in everyone for name, array in part.items()}
    np.savez(out, hosts=hosts, **joined)
"""


def run_on_hosts(script, folder, runs):
    """Run a script by four ranks; `runs` are of a launcher, and the words behind the output."""
    (folder / "script.py").write_text(script)
    path = os.pathsep.join([str(Path(mpiexec()).parent), os.environ.get("PATH", "")])
    for number, (launcher, words) in enumerate(runs):
        out = folder / f"{number}.npz"
        command = [*launcher, "-n", "4", sys.executable, folder / "script.py", out, *words]
        root = LAUNCHER.parents[1]
        result = subprocess.run(
            list(map(str, command)),
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root), "PATH": path},
            capture_output=True,
            text=True,
            timeout=100,
        )
        if result.returncode == 77:
            pytest.skip(result.stderr)
        assert result.returncode == 0, result.stdout + result.stderr
        yield np.load(out)


TWO_HOSTS = ["timeout", "90", LAUNCHER]


@pytest.mark.long
@pytest.mark.skipif(shutil.which("timeout") is None, reason="there is no 'timeout' command")
def test_a_training_across_two_hosts_equals_one_on_simulated_nodes(tmp_path):
    runs = (TWO_HOSTS, [0]), ([mpiexec()], [2])
    check_equal(*run_on_hosts(SCRIPT, tmp_path, runs))


@pytest.mark.long
@pytest.mark.skipif(shutil.which("timeout") is None, reason="there is no 'timeout' command")
def test_a_pipeline_across_two_hosts_equals_one_on_a_host_and_moves_the_planned_bytes(tmp_path):
    across, here = run_on_hosts(PIPELINE, tmp_path, ((TWO_HOSTS, []), ([mpiexec()], [])))
    check_equal(across, here)
    moved, planned = across["bytes"]
    assert moved == planned > 0


def check_equal(across, here):
    assert len(set(across["hosts"])) == 2 and len(set(here["hosts"])) == 1
    for name in set(across.files) - {"hosts"}:
        np.testing.assert_array_equal(across[name], here[name], err_msg=name)
