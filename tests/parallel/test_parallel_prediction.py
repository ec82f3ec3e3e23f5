"""Prediction by all ranks of an MPI job, beside prediction in one process."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpi_runs import run_mpi
from prediction_cases import BATCH, CASES, OPTIONS, RANKS, ROWS, as_array, case, function_of
from scipy.sparse import random_array

import largesparse
from largesparse import parallel
from largesparse.errors import DataError, ParameterError
from largesparse.parallel.prediction import rows_of, split_rows

JOB = """
    import json, os, sys
    from pathlib import Path
    import numpy as np
    import prediction_cases as cases
    from largesparse import parallel
    from largesparse.parallel import prediction
    from largesparse.parallel.comm.ranks import get_communicator

    comm = get_communicator()
    folder = Path(sys.argv[1])
    done, compute = [], prediction.compute

    def watched(engine, X, rows, out, look, digest):
        paths = [cases.path_of(array) for array in (engine.layers[0].values_by_output, X)]
        done.append([rows.start, rows.stop, engine.threads, *paths])
        compute(engine, X, rows, out, look, digest)
        assert digest is None or all(len(part) for part in out)

    prediction.compute = watched
    told = {"pid": os.getpid()}
    for per_node, names in cases.CASES.items():
        for name in names:
            network, X = cases.case(name, folder) if comm.rank == 0 else (None, None)
            function = cases.function_of(parallel, name)
            options = cases.OPTIONS | {"ranks_per_node": per_node, "chunk_bytes": 1000}
            if name == "threads":
                options["threads"] = None
            found = function(network, X, **options)
            assert (found is None) == (comm.rank > 0)
            if comm.rank == 0:
                np.save(folder / f"{name}-{per_node}.npy", cases.as_array(found))
            told[f"{name}-{per_node}"], done[:] = list(done), []
        told["descriptors"] = told.get("descriptors", []) + [len(os.listdir("/proc/self/fd"))]
    (folder / f"{comm.rank}.json").write_text(json.dumps(told))
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """The folder of results, and what every rank has told."""
    folder = tmp_path_factory.mktemp("job")
    result = run_mpi(JOB, RANKS, arguments=(str(folder),))
    assert (result.status, result.messages) == (0, []), result.err
    told = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]
    return folder, told


@pytest.mark.parametrize(
    ("per_node", "name"), [(key, name) for key, names in CASES.items() for name in names]
)
def test_the_result_is_that_of_one_process_to_the_bit(job, per_node, name):
    folder, _ = job
    network, X = case(name, folder)
    expected = as_array(function_of(largesparse, name)(network, X, **OPTIONS))
    found = np.load(folder / f"{name}-{per_node}.npy")
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    if name != "few":
        assert len(np.unique(found, axis=0)) > 1


@pytest.mark.parametrize("per_node", [None, 1, 2])
def test_every_rank_predicts_whole_batches(job, per_node):
    _, told = job
    parts = [each[f"dense-{per_node}"][0] for each in told]
    offsets = [0] * RANKS  # other nodes have their own rows only
    nodes = [rank // (per_node or RANKS) for rank in range(RANKS)]
    for rank in range(1, RANKS):
        new = nodes[rank] != nodes[rank - 1]
        offsets[rank] = offsets[rank - 1] + parts[rank - 1][1] if new else offsets[rank - 1]
    starts = [offset + part[0] for offset, part in zip(offsets, parts, strict=True)]
    stops = [offset + part[1] for offset, part in zip(offsets, parts, strict=True)]
    assert starts == [0, *stops[:-1]] and stops[-1] == ROWS
    assert all(start % BATCH == 0 for start in starts)
    sizes = np.subtract(stops, starts)
    assert sizes.min() > 0 and sizes.max() - sizes.min() <= 2 * BATCH


@pytest.mark.parametrize(
    ("per_node", "makers"), [(None, [0, 0, 0]), (1, [0, 1, 2]), (2, [0, 0, 2])]
)
def test_a_node_has_one_copy(job, per_node, makers):
    folder, told = job
    for rank in range(1, RANKS):
        segment = f"/proc/{told[makers[rank]]['pid']}/fd/"
        for name in ("dense", "mapped"):
            layers, X = told[rank][f"{name}-{per_node}"][0][3:]
            assert layers.startswith(segment)
            if name == "mapped" and makers[rank] == 0:
                assert Path(X) == folder / "X.npy"
            else:
                assert Path(X) == Path(layers)


def test_ranks_without_a_batch_do_nothing(job):
    _, told = job
    for per_node in (None, 1):
        assert [len(each[f"few-{per_node}"]) for each in told] == [1, 0, 0]


def test_the_cores_of_a_node_are_divided_by_its_ranks(job):
    _, told = job
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for each in told:
        assert each["threads-None"][0][2] == max(1, cores // RANKS)


def test_nothing_stays_open(job):
    _, told = job
    for each in told:
        counts = each["descriptors"]  # after each of several groups of predictions
        assert max(counts) - min(counts) <= 2


def test_a_wrong_X_is_raised_by_all_ranks_and_told_once():
    script = """
        import numpy as np
        import prediction_cases as cases
        from largesparse.errors import LargeSparseError
        from largesparse.parallel import predict
        from largesparse.parallel.comm.collectives import barrier
        from largesparse.parallel.comm.ranks import get_communicator
        comm = get_communicator()
        network, X = cases.case("dense", None)
        try:
            predict(network, X[:, :-1] if comm.rank == 0 else None)
        except LargeSparseError as error:
            print(type(error).__name__, error, flush=True)
        barrier(comm)  # the next error ends the others
        predict(network, X[:, :-1] if comm.rank == 0 else None)
    """
    result = run_mpi(script, RANKS)
    assert result.status != 0
    first, *others = result.out.splitlines()
    assert first.startswith("DataError X has 14 features") and others == [first] * (RANKS - 1)
    assert result.err.count("Traceback") == result.err.count("X has 14 features") == 1


def test_one_rank_predicts_as_one_process(tmp_path):
    network, X = case("labels", tmp_path)
    expected = largesparse.predict(network, X, **OPTIONS)
    np.testing.assert_array_equal(parallel.predict(network, X, **OPTIONS), expected)
    expected = largesparse.predict_proba(network, X, **OPTIONS)
    np.testing.assert_array_equal(parallel.predict_proba(network, X, **OPTIONS), expected)


def test_one_rank_finds_the_columns_of_a_frame(tmp_path):
    network, X = case("labels", tmp_path)
    expected = parallel.predict_proba(network, X, **OPTIONS)
    network.feature_names = [f"x{k}" for k in range(X.shape[1])]
    frame = pd.DataFrame(X, columns=network.feature_names)[network.feature_names[::-1]]
    np.testing.assert_array_equal(parallel.predict_proba(network, frame, **OPTIONS), expected)


def test_errors_of_one_rank(tmp_path):
    network, X = case("regression", tmp_path)
    with pytest.raises(ParameterError, match="has no classes"):
        parallel.predict_proba(network, X)
    with pytest.raises(DataError, match="14 features"):
        parallel.predict(network, X[:, :-1])
    with pytest.raises(ParameterError, match="'network' parameter"):
        parallel.predict(None, X)
    for wrong in ("threads", "batch_size", "ranks_per_node", "chunk_bytes"):
        with pytest.raises(ParameterError, match=f"'{wrong}' parameter"):
            parallel.predict(network, X, **{wrong: 0})


@given(st.integers(1, 500), st.integers(1, 60), st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_shares_are_whole_batches_in_proportion(n_rows, batch_size, weights):
    shares = split_rows(n_rows, batch_size, weights)
    assert [row for share in shares for row in share] == list(range(n_rows))
    assert len(shares[0]) > 0
    n_batches = -(-n_rows // batch_size)
    for share, weight in zip(shares, weights, strict=True):
        assert share.start % batch_size == 0 or not share
        exact = n_batches * weight / sum(weights)
        assert abs(-(-len(share) // batch_size) - exact) < 1


@given(st.data(), st.integers(1, 20), st.booleans())
def test_rows_of_an_array(data, n_rows, sparse):
    start = data.draw(st.integers(0, n_rows))
    stop = data.draw(st.integers(start, n_rows))
    X = random_array((n_rows, 7), density=0.3, format="csr", random_state=n_rows)
    X = X if sparse else X.toarray()
    found, expected = rows_of(X, start, stop), X[start:stop]
    np.testing.assert_array_equal(*(a.toarray() if sparse else a for a in (found, expected)))
