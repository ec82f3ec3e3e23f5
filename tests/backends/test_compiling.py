"""Compiled kernels: cached on disk, and told of when they are compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from largesparse.backends import compiling

PROGRAM = """
import sys
import numpy as np
from largesparse.backends.kernels import are_below

assert are_below(np.arange(5, dtype=np.int32), 5) and not are_below(np.arange(5, dtype=np.int32), 4)
hits = sum(are_below.stats.cache_hits.values())
print(hits)
"""


# of the cache; and what this process has been told, which its children are not told again
PLACES = ("NUMBA_CACHE_DIR", "LARGESPARSE_CACHE", "XDG_CACHE_HOME", "HOME", "LARGESPARSE_TOLD")


def start(
    cache: Path | None = None, before: str = "", program: str = PROGRAM, **variables: str
) -> subprocess.Popen:
    environment = {key: value for key, value in os.environ.items() if key not in PLACES}
    if cache is not None:
        environment["LARGESPARSE_CACHE"] = str(cache)
    return subprocess.Popen(
        [sys.executable, "-c", before + program, PROGRAM],
        env=environment | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def errors_of(process: subprocess.Popen, hits: str = "") -> str:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert hits in ("", output.strip())
    return errors


SHAPES = """
import largesparse.backends.kernels as kernels
from largesparse.backends.compiling import _Watch
import numpy as np
kernels.are_below(np.arange(5, dtype=np.int64), 5)  # another kernel than that of int32
"""


def test_a_kernel_is_compiled_once_and_that_is_told(tmp_path):
    (old := tmp_path / "kernels" / "older").mkdir(parents=True)
    (old / "largesparse.seconds").write_text("7 20.0\n8 3.5\n7 21.4\n7 cut")
    told = errors_of(start(tmp_path), hits="0")
    assert told.count("\n") == told.count("Compiling the kernels") == 1
    assert "once: it took 41 s the last time." in told
    assert errors_of(start(tmp_path), hits="1") == ""
    # Other shapes and dtypes are compiled silently.
    assert errors_of(start(tmp_path, SHAPES)) == ""
    (old / "largesparse.seconds").unlink()
    (kept,) = tmp_path.rglob("largesparse.seconds")
    assert [float(line.split()[1]) > 0 for line in kept.read_text().splitlines()] == [True] * 2


def test_ranks_and_workers_leave_it_to_the_first(tmp_path):
    ranks = {"OMPI_COMM_WORLD_SIZE": "2"}
    assert errors_of(start(tmp_path, OMPI_COMM_WORLD_RANK="1", **ranks)) == ""
    told = errors_of(start(tmp_path, SHAPES, OMPI_COMM_WORLD_RANK="0", **ranks))
    assert told.count("Compiling the kernels") == 1


@pytest.mark.parametrize(
    ("before", "shown"),
    [
        ("from largesparse.backends import compiling; compiling._Watch.SILENCE = 0", "Still c"),
        ("import sys; sys.stderr.isatty = lambda: True", "\nc"),
    ],
)
def test_it_shows_that_it_is_alive(tmp_path, before, shown):
    errors = errors_of(start(tmp_path, before))
    assert f"{shown}ompiling kernels for this machine: 1 in " in errors
    assert ("\x1b[K" in errors) == (shown == "\nc")


WARMED = """
import importlib, pkgutil, sys
import numpy as np
from numba.core.dispatcher import Dispatcher
from largesparse import NetworkConfig, SparseMLP, Trainer, TrainingConfig, backends
from largesparse.training.warming import warm_up

def signatures():
    names = [module.name for module in pkgutil.iter_modules(backends.__path__)]
    found = [vars(importlib.import_module("largesparse.backends." + name)) for name in names]
    found = {id(k): k for those in found for k in those.values() if isinstance(k, Dispatcher)}
    return {(k.__qualname__, str(s)) for k in found.values() for s in k.signatures}

size = int(sys.argv[2])
warm_up(sys.argv[1], whole=size == 128)
before = signatures()
X = np.random.default_rng(0).standard_normal((300, 20), dtype=np.float32)
y = np.arange(300) % 3
config = TrainingConfig(epochs=2, batch_size=128, micro_batch=size, dropout=0.3,
                        backend=sys.argv[1], threads=1, evolve_last=True)
network = SparseMLP(NetworkConfig((20, 9000, 9000, 3), epsilon=20), progress=False)
Trainer(network, config).fit(X, y, test=(X, y), progress=False)
assert len(before) > 10
print(sorted(signatures() - before))
"""


@pytest.mark.parametrize("micro_batch", [128, 32])
def test_warming_up_compiles_what_a_training_needs(micro_batch):
    command = [sys.executable, "-c", WARMED, "fused", str(micro_batch)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
def test_processes_that_start_together_compile_once(tmp_path):
    processes = [start(tmp_path) for _ in range(3)]
    results = [process.communicate(timeout=300) for process in processes]
    assert sorted(output.strip() for output, _ in results) == ["0", "1", "1"]
    assert sum(errors.count("Compiling the kernels") for _, errors in results) == 1


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
def test_a_kernel_does_not_wait_for_another_one(tmp_path):
    before = """
from largesparse.backends import compiling, kernels
lock = compiling._lock(kernels.has_columns)
lock.__enter__()
"""
    output, errors = start(tmp_path, before).communicate(timeout=300)
    assert output.strip() == "0", errors


DAMAGED = """
import os
from pathlib import Path

from largesparse.backends import kernels

def hits():  # of a process that has called no kernel yet
    if (child := os.fork()) == 0:
        try:
            exec(sys.argv[1])
        finally:
            sys.stdout.flush()
            os._exit(0)
    os.waitpid(child, 0)

def cut(data):
    return data[: len(data) // 2]

hits()
for name, damage in [("nbi", cut), ("nbc", cut), ("nbi", len), ("nbc", len)]:
    (file,) = Path(os.environ["LARGESPARSE_CACHE"]).rglob(f"kernels.are_below-*.{name}")
    file.write_bytes(bytes(damage(file.read_bytes())))  # cut, or as many zeros
    hits()
hits()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_damaged_cache_is_compiled_again(tmp_path):
    output, errors = start(tmp_path, program="import sys" + DAMAGED).communicate(timeout=300)
    assert output.split() == [*"000001"] and "Traceback" not in errors, errors


# Where the kernels are kept


HOMELESS = """
import pwd
def nobody(uid):
    raise KeyError(uid)
pwd.getpwuid = nobody
"""


def kept_in_temporary_files(folder: Path, times: int, **variables: str) -> list[str]:
    """Start without a usable cache folder; return the hits, and check what is told."""
    found = []
    for _ in range(times):
        process = start(TMPDIR=str(folder), **variables)
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0 and "Traceback" not in errors, errors
        assert "because of this:" in errors
        found.append(output.strip())
    return found


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_user_without_a_home_has_a_cache(tmp_path):
    process = start(before=HOMELESS, TMPDIR=str(tmp_path))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    (folder,) = tmp_path.glob("largesparse-*")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.rglob("kernels.are_below-*.nbc"))


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_cache_that_cannot_be_written(tmp_path):
    file = tmp_path / "file"
    file.write_text("not a folder")
    for place, hits in {"HOME": "01", "XDG_CACHE_HOME": "0", "LARGESPARSE_CACHE": "0"}.items():
        (folder := tmp_path / place).mkdir()
        assert kept_in_temporary_files(folder, len(hits), **{place: str(file)}) == [*hits]
    assert file.read_text() == "not a folder"


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_temporary_folder_that_others_can_write_into_is_not_used(tmp_path):
    """What lies there is code."""
    (folder := tmp_path / f"largesparse-{os.getuid()}").mkdir()
    folder.chmod(0o777)
    (tmp_path / "file").touch()
    assert kept_in_temporary_files(tmp_path, 1, HOME=str(tmp_path / "file")) == ["0"]
    assert list(folder.iterdir()) == []


def test_a_compiler_that_is_turned_off_is_told_in_a_sentence(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n" + "1,0\n2,1\n" * 20)
    files = ["--data", "x.csv", "--target", "b", "--out", "model"]
    done = subprocess.run(
        [sys.executable, "-m", "largesparse", "train", *files],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "NUMBA_DISABLE_JIT" in done.stderr


# Bits


CALLER = """
import hashlib
import numpy as np
from largesparse.backends import kernels as k
from largesparse.backends.compiling import kernel


@kernel(parallel=False)
def everything(X, labels, targets, weights, sums, delta, numbers):
    k.sum_inputs(X, weights, sums, False)
    k.sum_rows(X, delta[:, 0], False)
    numbers[0] = k.softmax_cross_entropy(
        X, labels, weights, len(labels), np.float32(0.1), delta
    )
    k.sum_rows(delta, sums[: len(X)], True)
    numbers[1] = k.mean_squared_error(X, targets, weights, len(labels), delta)


rng = np.random.default_rng(0)
digest = hashlib.sha256()
for batch in (16, 32, 50, 100, 128) * 10:
    n = rng.integers(2, 12)
    X = rng.standard_normal((n, batch), dtype=np.float32)
    labels = rng.integers(0, n, batch, dtype=np.int32)
    targets = rng.standard_normal((batch, n), dtype=np.float32)
    weights = rng.uniform(0.1, 2, batch).astype(np.float32)
    sums, delta, numbers = np.zeros(n + 1, np.float32), np.zeros_like(X), np.zeros(2)
    everything(X, labels, targets, weights, sums, delta, numbers)
    for array in (sums, delta, numbers):
        digest.update(array.tobytes())
print(sum(everything.stats.cache_hits.values()), digest.hexdigest())
"""


@pytest.mark.long
def test_copies_of_a_kernel_give_the_same_bits(tmp_path):
    (program := tmp_path / "caller.py").write_text(CALLER)
    environment = {key: value for key, value in os.environ.items() if key not in PLACES}
    environment["LARGESPARSE_CACHE"] = str(tmp_path / "cache")

    def run() -> list[str]:
        done = subprocess.run(
            [sys.executable, str(program)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    (compiled, first), (loaded, second) = run(), run()
    assert (compiled, loaded) == ("0", "1")
    assert first == second  # linked to the kernel's own library, and to the caller's copy


def sum_of(a, b):
    return a + b


def test_kernels_that_take_turns_take_arguments_by_name(monkeypatch):
    monkeypatch.setattr(compiling, "threading_layer", lambda: SimpleNamespace(name="workqueue"))
    assert compiling.kernel(parallel=False)(sum_of)(1, b=2) == 3
