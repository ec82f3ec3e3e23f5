"""PyTorch's threads run the kernels too: each iteration once, whatever forks or starts threads."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP")

SCRIPT = """
    import multiprocessing, os, sys, threading
    import numpy as np
    import torch
    from largesparse.torch import AllReLU, Evolution, SparseLinear, SparseSequential, passes
    from largesparse.torch.tensors import run_loops_on

    def train(seed, threads=2):
        torch.set_num_threads(threads)
        draw = torch.Generator().manual_seed(seed)
        x, y = torch.randn(96, 300, generator=draw), torch.randint(4, (96,), generator=draw)
        model = SparseSequential(
            SparseLinear(300, 700, epsilon=10, seed=1), AllReLU(0.6, 2),
            SparseLinear(700, 4, epsilon=10, seed=2),
        )
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        evolution = Evolution(model, optimizer, every=2)
        for _ in range(6):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            evolution.step()
        return [p.tolist() for p in model.parameters()]
"""


def run(script: str, **environment: str) -> str:
    """Return what a script prints with four threads at most."""
    given = {"NUMBA_NUM_THREADS": "4", "NUMBA_THREADING_LAYER": "default", **environment}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT) + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=300,  # kernels compile
        env={**os.environ, **given},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_iteration_is_run_once_by_pytorchs_threads():
    script = """
        from numba import prange
        from largesparse.backends.compiling import kernel
        from largesparse.backends.loops import divide_evenly, divide_loop
        from largesparse.machine.threads import kernel_threads

        @kernel()
        def count(counts, in_pieces):
            if in_pieces:
                divide_loop(len(counts))
            for k in prange(len(counts)):
                counts[k] += k
            divide_evenly()

        def tasks():
            return len(os.listdir("/proc/self/task"))

        # a loop of more elements than PyTorch leaves to one thread
        torch.set_num_threads(4)
        torch.zeros(2**21).add_(1)
        before = tasks()
        for threads in 1, 2, 3, 4:
            for n in 0, 1, 2, 3, 7, 1000, 100_003:
                for in_pieces in False, True:
                    counts = np.zeros(n, dtype=np.int64)
                    with kernel_threads(threads):
                        count(counts, in_pieces)
                    assert (counts == np.arange(n)).all(), (threads, n, in_pieces)
        print(tasks() - before)
    """
    assert run(script) == "0\n"


def test_the_same_result_as_with_numbas_own_threads():
    script = "print([train(0, threads) for threads in (1, 2, 3)])"
    found = run(script)
    assert found == run(script, NUMBA_THREADING_LAYER="tbb")
    assert found.count("]], [[") == 2 and "nan" not in found


def test_forked_children_and_two_threads_compute_the_same():
    """PyTorch's own loops of several threads hang in a forked child; the kernels' take one."""
    script = """
        expected, found = [train(k) for k in range(2)], [None] * 2
        layer, x = SparseLinear(300, 700, epsilon=10, seed=3), torch.randn(96, 300)

        def predict(_):
            with torch.no_grad():
                return layer(x).numpy().copy()

        before = predict(0)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            for after in pool.map_async(predict, [0, 1]).get(timeout=100):
                assert (after == before).all()
            assert pool.starmap_async(train, [(0, 1), (1, 1)]).get(timeout=100) == expected

        def work(k):
            found[k] = [train(k) for _ in range(3)]

        workers = [threading.Thread(target=work, args=[k]) for k in range(2)]
        for worker in workers: worker.start()
        for worker in workers: worker.join()
        assert found == [[each] * 3 for each in expected]
        print("equal")
    """
    assert run(script) == "equal\n"


@pytest.mark.parametrize(("asked", "expected"), [("default", "True"), ("tbb", "False")])
def test_threads_that_are_asked_for_are_taken(asked, expected):
    script = """
        import ctypes
        from pathlib import Path
        train(0)
        library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
        print(run_loops_on(ctypes.CDLL(str(library))))
    """
    assert run(script, NUMBA_THREADING_LAYER=asked) == f"{expected}\n"


@pytest.mark.parametrize(("first", "spins"), [("largesparse.torch", True), ("torch", False)])
def test_pytorchs_threads_soon_sleep_where_it_is_loaded_here(first, spins):
    """The variable is there while PyTorch is loaded, and not after."""
    code = f"""
import os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("GOMP_SPINCOUNT" in os.environ)

sys.meta_path.insert(0, Watch())
import {first}
from largesparse.torch import AllReLU
assert "GOMP_SPINCOUNT" not in os.environ
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "OMP_WAIT"))}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, env=environment
    )
    assert result.stdout == f"{spins}\n", result.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_pytorchs_own_operations_go_on_in_a_forked_child():
    code = """
import os, signal, torch
import largesparse.torch as lt
torch.set_num_threads(2)
layer = lt.SparseLinear(60, 400, density=0.3, seed=1)
layer(torch.ones(200, 60))
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    total = torch.ones(900, 900).double().sum()
    os._exit(int(total) != 810_000)
print(os.waitpid(pid, 0)[1])
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100
    )
    assert result.stdout == "0\n", result.stderr
