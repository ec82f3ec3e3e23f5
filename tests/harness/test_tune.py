"""`largesparse tune`, and the limits of the machine that results are compared with."""

from __future__ import annotations

import json
import os

import numpy as np
import pandas as pd
import pytest

from largesparse import NetworkConfig
from largesparse.backends import limits
from largesparse.backends.choice import choose_backend, shape_class, stored_choices
from largesparse.commands import main as cli
from largesparse.errors import LargeSparseError
from largesparse.harness import tune
from largesparse.machine.environment import BACKEND, CACHE
from largesparse.machine.threading_layers import threading_layer
from largesparse.model.topology import erdos_renyi
from largesparse.randomness import seed_sequence

SMALL = ["tune", "--layers", "20,30,3", "--batch-size", "16", "--threads", "1", "--repeats", "2"]
SMALL += ["--no-store"]


@pytest.mark.long
def test_tune_lists_backends_and_threading_layers(capsys, monkeypatch):
    monkeypatch.setattr(tune, "BLOCK_SECONDS", 0)
    monkeypatch.setattr(limits, "sequential_bandwidth", lambda threads: 1e10)
    monkeypatch.setattr(limits, "arithmetic_peak", lambda threads: 1e11)
    found = []
    compare = tune.compare_backends
    monkeypatch.setattr(
        tune,
        "compare_backends",
        lambda *given, **options: found.append(compare(*given, **options)) or found[-1].copy(),
    )
    before, stored = dict(os.environ), stored_choices()
    assert cli.main(SMALL) == 0
    shown = capsys.readouterr().out
    assert "20-30-3" in shown and "10.0 GB/s" in shown and "100 GFLOP/s" in shown
    lines = [line.split() for line in shown.splitlines() if line.split()[2:3] == ["workqueue"]]
    assert {"fused", "scipy"} <= {line[1] for line in lines}
    assert all(float(line[3]) > 0 for line in lines)
    assert dict(os.environ) == before
    assert shown.splitlines()[-1] == "not stored" and stored_choices() == stored

    monkeypatch.setattr(tune, "compare_backends", lambda *_, **__: found[0])
    assert cli.main([*SMALL, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    medians = [row["median_ms"] for row in found]
    assert medians == sorted(medians)
    assert all(row["q25_ms"] <= row["median_ms"] <= row["q75_ms"] for row in found)


def timings(*rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["shapes", "backend", "median_ms"])


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """A machine on which typical networks have been timed."""
    found = timings(("small", "mkl", 2.0), ("small", "fused", 1.0), ("wide", "mkl", 3.0))
    monkeypatch.setattr(tune, "measure_classes", lambda *, threads: found)
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.delenv(BACKEND, raising=False)


def test_what_is_fastest_is_stored_and_used(measured, capsys):
    assert cli.main(["tune"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "stored; these backends will be used"
    assert lines[-2] == "small networks: fused, wide networks: mkl"
    assert choose_backend(None, (5000, 30, 3)).name == "mkl"


def test_where_the_environment_chooses_that_is_told(measured, capsys, monkeypatch):
    monkeypatch.setenv(BACKEND, "scipy")
    assert cli.main(["tune"]) == 0
    assert f"{BACKEND} is set" in capsys.readouterr().out.splitlines()[-1]


def test_a_cache_that_cannot_be_written_is_told(measured, capsys, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE, str(tmp_path / "file" / "cache"))
    assert cli.main(["tune"]) == 2
    said = capsys.readouterr()
    assert "small networks: fused" in said.out  # what was measured is not lost
    assert "Not stored" in said.err and CACHE in said.err


def test_typical_networks_are_of_their_classes():
    for kind, (network, batch_size) in tune.TYPICAL.items():
        assert shape_class(network.layer_sizes) == kind and batch_size == 32


@pytest.mark.long
def test_every_class_is_measured(monkeypatch):
    def compare(network, *, batch_size, threads, backends, layers, **_):
        assert batch_size == 32 and threads == 1 and backends == ("mkl", "fused")
        assert layers == (threading_layer().name,)
        seen.append(shape_class(network.layer_sizes))
        return pd.DataFrame({"backend": ["fused", "mkl"], "median_ms": [1.0, 2.0]})

    seen: list[str] = []
    monkeypatch.setattr(tune, "compare_backends", compare)
    table = tune.measure_classes(threads=1, progress=False)
    assert seen == list(table["shapes"].unique()) == ["small", "wide", "extreme"]


def test_a_threading_layer_that_is_not_there_is_left_out():
    network = NetworkConfig((20, 30, 3), epsilon=3)
    with pytest.raises(LargeSparseError, match="None of numba's threading layers nonsense works"):
        tune.compare_backends(network, batch_size=8, threads=1, layers=["nonsense"], repeats=1)


BAD = [["--layers", "20"], ["--epsilon", "-1"], ["--threads", "5000"], ["--batch-size", "1e15"]]


@pytest.mark.parametrize("bad", BAD)
def test_bad_shapes_are_refused(bad, capsys):
    assert cli.main([*SMALL, *bad]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_limits_are_numbers_above_zero():
    assert limits.sequential_bandwidth(1, megabytes=4) > 0
    assert limits.arithmetic_peak(1, size=64) > 0


@pytest.mark.parametrize("ahead", [0, 8])
def test_gathering_reads_and_writes_what_the_product_does(ahead):
    topology = erdos_renyi(300, 200, 0.05, seed_sequence(0, "topology", 0))
    X = np.random.default_rng(0).standard_normal((300, 32), dtype=np.float32)
    out = np.full((200, 32), np.nan, dtype=np.float32)
    arrays = topology.indptr_by_output, topology.indices_by_output
    limits.gather(*arrays, X, ahead, out)
    for j in range(200):  # the last row that was gathered
        start, stop = topology.indptr_by_output[j : j + 2]
        if stop > start:
            np.testing.assert_array_equal(out[j], X[topology.indices_by_output[stop - 1]])
    limits.gather(*arrays, X, ahead)
    assert limits.best_distance(*arrays, X, out) in limits.DISTANCES


def die(*_):
    os._exit(9)


def test_a_process_that_dies_is_told(monkeypatch):
    monkeypatch.setattr(tune, "_prepare", die)
    network = NetworkConfig((20, 30, 3), epsilon=3)
    with pytest.raises(LargeSparseError, match="out of memory is the usual cause"):
        tune.compare_backends(network, batch_size=8, threads=1, layers=["workqueue"], repeats=1)


def test_repeats_end_when_two_agree():
    assert tune.is_clear([[1.0, 1.1], [2.0, 1.2]])
    assert not tune.is_clear([[1.0, 1.3], [2.0, 1.2]])
    assert not tune.is_clear([[1.0], [2.0]])
