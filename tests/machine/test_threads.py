"""How many threads there are, and what runs them: quotas, forks, several Python threads."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from largesparse.machine import control_groups, threads
from largesparse.machine.control_groups import cpu_quota
from largesparse.machine.threads import available_threads, core_numbers, usable_cores
from largesparse.parallel.comm.nodes import Host, Nodes

SCRIPT = """
    import multiprocessing, sys, threading
    import numpy as np
    from largesparse import NetworkConfig, SparseMLP, Trainer, TrainingConfig, predict
    from largesparse.machine.threading_layers import threading_layer

    backend, threads = sys.argv[1], 2
    X = np.random.default_rng(0).standard_normal((300, 20), dtype=np.float32)
    y = (X[:, 0] > 0).astype(int)

    def train(seed):
        network = SparseMLP(NetworkConfig((20, 400, 2), epsilon=10, seed=seed))
        config = TrainingConfig(epochs=2, batch_size=32, backend=backend, threads=threads)
        Trainer(network, config).fit(X, y)
        return predict(network, X, backend=backend, threads=threads).tolist()
"""


def run(
    script: str, backend: str = "fused", **environment: str
) -> subprocess.CompletedProcess[str]:
    code = textwrap.dedent(SCRIPT) + textwrap.dedent(script)
    return subprocess.run(
        [sys.executable, "-c", code, backend],
        capture_output=True,
        text=True,
        timeout=300,  # kernels compile
        env={**os.environ, **environment},
    )


def backends() -> list[str]:
    from largesparse.backends import BACKENDS, get_backend
    from largesparse.errors import BackendError

    found = []
    for name in BACKENDS:
        try:
            found.append(get_backend(name).name)
        except BackendError:
            continue
    return found


# How many


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Return a function that lays out control groups of a version, with files by folder."""

    def lay(membership: str, files: dict[str, str]) -> None:
        (tmp_path / "cgroup").write_text(membership)
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        monkeypatch.setattr(control_groups, "MEMBERSHIP", tmp_path / "cgroup")
        monkeypatch.setattr(control_groups, "MOUNTS", tmp_path)

    return lay


def test_quota_of_version_2_is_the_least_of_the_groups(groups):
    groups(
        "0::/batch/job/step\n",
        {
            "batch/cpu.max": "400000 100000\n",
            "batch/job/cpu.max": "150000 100000\n",
            "batch/job/step/cpu.max": "max 100000\n",
        },
    )
    assert cpu_quota() == 1.5
    assert usable_cores() == min(2, len(core_numbers()))


@pytest.mark.parametrize("folder", ["cpu,cpuacct", "cpu"])
def test_quota_of_version_1(groups, folder):
    groups(
        "4:memory:/x\n3:cpu,cpuacct:/docker/1\n0::/\n",
        {
            f"{folder}/docker/1/cpu.cfs_quota_us": "50000\n",
            f"{folder}/docker/1/cpu.cfs_period_us": "100000\n",
            f"{folder}/cpu.cfs_quota_us": "-1\n",
            f"{folder}/cpu.cfs_period_us": "100000\n",
        },
    )
    assert cpu_quota() == 0.5
    assert usable_cores() == 1


def test_a_container_that_sees_its_group_as_the_base(groups):
    groups("0::/not/mounted/here\n", {"cpu.max": "100000 100000\n"})
    assert cpu_quota() == 1


@pytest.mark.parametrize("text", ["max 100000\n", "", "nonsense\n", "100000\n"])
def test_no_quota(groups, text):
    groups("0::/\n", {"cpu.max": text})
    assert cpu_quota() is None
    assert usable_cores() == len(core_numbers())


def test_the_environment_limits_the_default(monkeypatch):
    monkeypatch.setattr(threads, "usable_cores", lambda: 16)
    for name in threads.THREAD_LIMITS:
        monkeypatch.delenv(name, raising=False)
    assert available_threads() == 16
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
    assert available_threads() == 4
    monkeypatch.setenv("NUMBA_NUM_THREADS", "3")
    assert available_threads() == 3
    monkeypatch.setenv("NUMBA_NUM_THREADS", "nonsense")
    assert available_threads() == 4


def test_a_quota_limits_the_cores_of_a_machine_however_many_nodes_it_is_split_into():
    a, b = Host("a", "m", "1"), Host("b", "n", "1")
    cores = set(range(16))
    hosts, first = [a, a, b, b], [0, 0, 2, 2]
    quotas = [2.0, 2.0, None, None]
    found = Nodes._split(hosts, first, [cores] * 4, None, quotas)
    assert found == Nodes([0, 0, 1, 1], [2, 16])
    found = Nodes._split(hosts, first, [cores] * 4, 1, quotas)
    assert found == Nodes([0, 1, 2, 3], [1, 1, 8, 8])


# What runs them


def test_tbb_is_found_in_a_virtual_environment():
    pytest.importorskip("numba.np.ufunc.tbbpool", exc_type=ImportError)
    result = run("print(threading_layer().name)", NUMBA_THREADING_LAYER="default")
    assert (result.stdout, result.stderr) == ("tbb\n", "")


@pytest.mark.parametrize("asked", ["nonsense", "safe"])
def test_a_layer_that_is_missing_is_told_and_replaced(asked):
    hide = "from largesparse.machine.threading_layers import MODULES; MODULES['tbb'] = 'missing'; "
    result = run(
        f"{hide}train(0); print(threading_layer().name)",
        NUMBA_THREADING_LAYER=asked,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() in ("omp", "workqueue")
    lines = [line for line in result.stderr.splitlines() if "ompiling" not in line]
    assert len(lines) == 1 and f"asks for {asked!r}" in lines[0], result.stderr


FORKS = """
    expected = train(0)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map_async(train, [0, 0]).get(timeout=60)
    assert found == [expected] * 2
    assert train(0) == expected
"""
THREADS = """
    expected, found = [train(k) for k in range(2)], [None] * 2

    def work(k):
        found[k] = [train(k) for _ in range(3)]

    workers = [threading.Thread(target=work, args=[k]) for k in range(2)]
    for worker in workers: worker.start()
    for worker in workers: worker.join()
    assert found == [[each] * 3 for each in expected]
    print("equal")
"""


def can_fork() -> bool:
    """Whether forked children compute: by TBB's threads."""
    try:
        import numba.np.ufunc.tbbpool  # noqa: F401
    except ImportError:
        return False
    return hasattr(os, "fork")


@pytest.mark.parametrize("backend", backends())
def test_forked_children_and_two_threads_compute_the_same(backend):
    result = run((FORKS if can_fork() else "") + THREADS, backend)
    assert result.stdout == "equal\n", result.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")
def test_threads_take_turns_on_the_work_queue():
    """Numba would end the process; a forked child has the turn, whoever had it at the fork."""
    held = """
    from largesparse.backends.compiling import _InTurn
    holder, holds = threading.Thread(target=lambda: (_InTurn.turn.acquire(), holds.set(),
                                                     done.wait(120), _InTurn.turn.release())), None
    holds, done = threading.Event(), threading.Event()
    holder.start()
    holds.wait()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.map_async(train, [0]).get(timeout=100)
    done.set()
    """
    result = run(THREADS + held, NUMBA_THREADING_LAYER="workqueue")
    assert (result.returncode, result.stdout) == (0, "equal\n"), result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP")
def test_forked_children_that_cannot_compute_say_so_at_once():
    script = """
        train(0)
        if __name__ == "__main__":
            with multiprocessing.get_context("fork").Pool(1) as pool:
                pool.map_async(train, [0]).get(timeout=60)
    """
    result = run(script, "fused", NUMBA_THREADING_LAYER="omp")
    last = result.stderr.splitlines()[-1]
    assert "BackendError" in last and "pip install tbb" in last, result.stderr


def test_mkl_and_the_kernels_share_threads():
    """One pool: two that wait for each other's cores cost a busy machine several times a step."""
    if "mkl" not in backends():
        pytest.skip("no MKL here")
    script = """
        train(0)
        maps = open("/proc/self/maps").read()
        print("libmkl_tbb_thread" in maps, "libiomp5" in maps)
    """
    if sys.platform != "linux":
        pytest.skip("/proc")
    pytest.importorskip("numba.np.ufunc.tbbpool", exc_type=ImportError)
    result = run(script, "mkl", MKL_THREADING_LAYER="")
    assert result.stdout == "True False\n", result.stderr
