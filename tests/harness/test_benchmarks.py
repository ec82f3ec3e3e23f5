"""The asv suite: every benchmark runs, at the smallest size."""

import functools
import importlib
import inspect
import itertools
import os
import pkgutil

import numpy as np
import pytest
from helpers import ROOT, child_path

from largesparse.errors import BackendError, ParameterError
from largesparse.machine.environment import BENCH_MAX

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(ROOT)
    patch.setenv(BENCH_MAX, "1")  # leaves the smallest size only
    MODULES = {
        found.name: importlib.import_module(f"benchmarks.{found.name}")
        for found in pkgutil.iter_modules([str(ROOT / "benchmarks")])
    }
common = MODULES["common"]


def combinations(kind, name):
    """Return the parameters of a benchmark; of those that start processes the last alone."""
    found = list(itertools.product(*getattr(kind, "params", ())))
    names = getattr(kind, "param_names", ())
    alone = name in ("ranks", "transfers") or {"threads", "processes"} & set(names)
    return found[-1:] if alone else found


CASES = [
    pytest.param(kind, method, parameters, id=f"{name}.{method}-{parameters}")
    for name, module in MODULES.items()
    for _, kind in inspect.getmembers(module, inspect.isclass)
    if kind.__module__ == module.__name__
    for method, _ in inspect.getmembers(kind, inspect.isfunction)
    if method.startswith(("time_", "track_"))
    for parameters in combinations(kind, name)
]


@pytest.fixture(autouse=True)
def _children_take_the_package_under_test(monkeypatch):
    """They start in the working copy, which has a package of its own."""
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([child_path(), str(ROOT)]))
    monkeypatch.setenv(BENCH_MAX, "1")


UNITS = [
    "connections",
    "bytes",
    "connections x samples/s",
    "samples/s",
    "bytes/s",
    "GFLOP/s",
    "GB/s",
    "s",
    "%",
    "x SciPy's product",
]


@functools.cache
def setup_cache(kind):
    """Return what asv gives to all benchmarks of a class."""
    return kind().setup_cache()


def call(benchmark, name, *parameters):
    """Call a method that a benchmark need not have."""
    getattr(benchmark, name, lambda *_: None)(*parameters)


@pytest.mark.long
@pytest.mark.parametrize(("kind", "method", "parameters"), CASES)
def test_a_benchmark_runs_and_can_be_set_up_again(monkeypatch, kind, method, parameters):
    monkeypatch.setattr(common, "SECONDS", 0)
    monkeypatch.setattr(MODULES["ranks"], "ROWS", 2 * common.BATCH_SIZE)  # one for each worker
    benchmark = kind()
    if hasattr(kind, "setup_cache"):
        parameters = (setup_cache(kind), *parameters)
    # asv repeats setup before every timing; once is enough where that starts processes.
    again = hasattr(kind, "setup") and kind is not MODULES["inference"].Processes
    for _ in range(2 if again else 1):
        try:
            call(benchmark, "setup", *parameters)
        except NotImplementedError as error:
            pytest.skip(str(error))
        result = getattr(benchmark, method)(*parameters)
        call(benchmark, "teardown", *parameters)
    if method.startswith("track_"):
        # of 10,000 neurons the rows lie in a cache, and memory is no limit
        cached = method == "track_share_of_the_limit" and parameters[-1] == 10_000
        assert np.isnan(result) if cached else result > 0
        assert getattr(benchmark, method).unit in UNITS


def test_the_suite_has_what_every_phase_needs():
    modules = {case.values[0].__module__ for case in CASES}
    phases = ["initialization", "step", "inference", "evolution", "pruning", "averaging"]
    beside = ["transfers", "ranks", "limits", "learning"]
    assert modules == {f"benchmarks.{name}" for name in phases + beside}
    kinds = {case.values[1][:5] for case in CASES}
    assert kinds == {"time_", "track"}


def test_every_benchmark_has_a_name_of_its_own_to_be_read():
    methods = {(case.values[0], case.values[1]) for case in CASES}
    names = {getattr(kind, method).pretty_name for kind, method in methods}
    assert len(names) == len(methods)


def test_pruning_leaves_the_shared_network_as_it_was():
    network = common.make_network(10_000)
    before = network.connections
    benchmark = MODULES["pruning"].Pruning()
    benchmark.setup(10_000)
    benchmark.time_prune_neurons(10_000)
    assert network.connections < before
    benchmark.teardown(10_000)
    assert network.connections == before
    assert all(layer.dead is None or not layer.dead.any() for layer in network.layers)


def test_a_job_that_fails_is_told():
    with pytest.raises(RuntimeError, match="no algorithm"):
        common.run_mpi("ranks", 1, "no algorithm", 10)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        common.in_fresh_process(MODULES["step"].rate_and_peak, 0)


def test_evolution_leaves_the_shared_network_as_it_was():
    layer = common.make_network(10_000).layers[1]
    indices, values = layer.topology.indices.copy(), layer.values.copy()
    benchmark = MODULES["evolution"].Evolution()
    benchmark.setup(10_000)
    benchmark.time_evolve(10_000)
    assert not np.array_equal(layer.topology.indices, indices)
    benchmark.teardown(10_000)
    assert np.array_equal(layer.topology.indices, indices)
    assert np.array_equal(layer.values, values)
    assert np.array_equal(layer.values_by_output[layer.topology.to_output_order], values)


@pytest.mark.parametrize(
    ("limit", "sizes"),
    [
        ("1", (10_000,)),
        ("20000", (10_000,)),
        ("100k", (10_000, 100_000)),
        ("1M", (10_000, 100_000, 1_000_000)),
        ("50M", common.LADDER),
    ],
)
def test_the_limit_leaves_out_larger_sizes_but_not_the_smallest(limit, sizes):
    assert common.sizes_up_to(limit) == sizes


def test_a_limit_that_is_no_size_is_refused():
    with pytest.raises(ParameterError, match="5Q"):
        common.sizes_up_to("5Q")


def test_a_backend_that_cannot_be_loaded_is_skipped(monkeypatch):
    def fail(name):
        raise BackendError("there is no MKL")

    monkeypatch.setattr(common, "get_backend", fail)
    with pytest.raises(NotImplementedError, match="there is no MKL"):
        common.warm_up("missing")
