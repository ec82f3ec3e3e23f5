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


@pytest.mark.long
@pytest.mark.skipif(shutil.which("timeout") is None, reason="there is no 'timeout' command")
def test_a_training_across_two_hosts_equals_one_on_simulated_nodes(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    found = []
    path = os.pathsep.join([str(Path(mpiexec()).parent), os.environ.get("PATH", "")])
    for launcher, ranks_per_node in ((["timeout", "90", LAUNCHER], 0), ([mpiexec()], 2)):
        out = tmp_path / f"{ranks_per_node}.npz"
        command = [*launcher, "-n", "4", sys.executable, tmp_path / "script.py", out]
        root = LAUNCHER.parents[1]
        result = subprocess.run(
            [*map(str, command), str(ranks_per_node)],
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root), "PATH": path},
            capture_output=True,
            text=True,
            timeout=100,
        )
        if result.returncode == 77:
            pytest.skip(result.stderr)
        assert result.returncode == 0, result.stdout + result.stderr
        found.append(np.load(out))
    across, simulated = found
    assert len(set(across["hosts"])) == 2 and len(set(simulated["hosts"])) == 1
    for name in set(across.files) - {"hosts"}:
        np.testing.assert_array_equal(across[name], simulated[name], err_msg=name)
