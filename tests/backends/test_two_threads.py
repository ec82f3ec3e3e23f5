"""One object from two threads at once: each gets what it would alone."""

from __future__ import annotations

import copy
import importlib
import multiprocessing
import pickle
import sys
import threading

import numpy as np
import pytest

from largesparse import (
    NetworkConfig,
    Predictor,
    SparseMLP,
    SparseMLPClassifier,
    SparseMLPRegressor,
    Trainer,
    TrainingConfig,
    predict_proba,
)
from largesparse.errors import ParameterError

ROUNDS = 10
PARTS = [np.random.default_rng(k).standard_normal((400, 12), dtype=np.float32) for k in (0, 1)]
LABELS = [np.random.default_rng(k).integers(0, 3, 400).astype(np.int32) for k in (0, 1)]


LOSSES = ["softmax_cross_entropy", "mean_squared_error"]
one_loss = pytest.mark.parametrize("network", LOSSES[:1], indirect=True)  # where it is no matter


@pytest.fixture(scope="module", params=LOSSES)
def network(request):
    config = NetworkConfig((12, 60, 60, 3), epsilon=6.0, loss=request.param)
    return SparseMLP(config, progress=False)


def assert_same_from_two_threads(call, inputs=PARTS):
    """Call with each of the two inputs, in a thread each, many times."""
    expected, found = [call(value) for value in inputs], [[], []]
    barrier = threading.Barrier(2)

    def work(k):
        for _ in range(ROUNDS):
            barrier.wait(60)
            found[k].append(call(inputs[k]))

    threads = [threading.Thread(target=work, args=(k,)) for k in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in (0, 1):
        assert len(found[k]) == ROUNDS
        for each in found[k]:
            np.testing.assert_array_equal(each, expected[k])


@pytest.mark.parametrize("backend", ["fused", "scipy"])
def test_a_predictor(network, backend):
    with Predictor(network, threads=1, batch_size=8, backend=backend) as predictor:
        assert_same_from_two_threads(predictor.predict)
        assert_same_from_two_threads(lambda X: predictor.compute(X))


@one_loss
def test_a_predictor_with_worker_processes(network):
    with Predictor(network, threads=1, batch_size=50, backend="scipy", processes=2) as predictor:
        assert_same_from_two_threads(predictor.predict)


def test_a_predictor_keeps_one_workspace_for_one_thread(network):
    with Predictor(network, threads=1, batch_size=8, backend="scipy") as predictor:
        (before,) = predictor._engine._idle
        predictor.predict(PARTS[0])
        (after,) = predictor._engine._idle
    assert after is before


def test_a_network(network):
    options = {"threads": 1, "batch_size": 8, "backend": "scipy"}
    if network.config.loss == "mean_squared_error":
        pytest.skip("it has no probabilities")
    assert_same_from_two_threads(lambda X: predict_proba(network, X, **options))


def test_a_trainer_that_evaluates(network):
    trainer = Trainer(network, TrainingConfig(batch_size=8, threads=1, backend="scipy"))
    targets = LABELS
    if network.config.loss == "mean_squared_error":
        targets = [np.eye(3, dtype=np.float32)[labels] for labels in LABELS]
    assert_same_from_two_threads(lambda k: trainer.evaluate(PARTS[k], targets[k]), [0, 1])


def test_a_copy_of_a_trainer_trains_its_own_network(network):
    """Whose steps are compiled calls, with tables of addresses."""
    targets = LABELS[0]
    if network.config.loss == "mean_squared_error":
        targets = np.eye(3, dtype=np.float32)[targets]
    trainer = Trainer(
        copy.deepcopy(network), TrainingConfig(batch_size=8, threads=1, backend="fused")
    )
    trainer.step(PARTS[0][:8], targets[:8])
    again = copy.deepcopy(trainer)
    before = trainer.network.layers[0].values.copy()
    again.step(PARTS[0][8:16], targets[8:16])
    np.testing.assert_array_equal(trainer.network.layers[0].values, before)
    trainer.step(PARTS[0][8:16], targets[8:16])
    for one, other in zip(trainer.network.layers, again.network.layers, strict=True):
        np.testing.assert_array_equal(one.values, other.values)


def test_a_predictor_in_this_process_can_be_pickled(network):
    predictor = Predictor(network, threads=1, backend="scipy")
    again = pickle.loads(pickle.dumps(predictor))
    np.testing.assert_array_equal(again.predict(PARTS[0]), predictor.predict(PARTS[0]))


@pytest.mark.parametrize("make", [SparseMLPClassifier, SparseMLPRegressor])
def test_an_estimator(make):
    estimator = make((60, 60), max_epochs=2, n_jobs=1, backend="scipy", random_state=0)
    estimator.fit(PARTS[0], LABELS[0])
    assert_same_from_two_threads(estimator.predict)


def ask(predictor, answers):
    try:
        predictor.predict(PARTS[0])
    except ParameterError as error:
        answers.put(str(error))


@one_loss
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_does_not_talk_to_its_parent_s_worker_processes(network):
    context = multiprocessing.get_context("fork")
    with Predictor(network, threads=1, backend="scipy", processes=2) as predictor:
        expected = predictor.predict(PARTS[0])
        answers = context.Queue()
        child = context.Process(target=ask, args=(predictor, answers))
        child.start()
        assert "a fork of it" in answers.get(timeout=60)
        child.join()
        np.testing.assert_array_equal(predictor.predict(PARTS[0]), expected)


@pytest.fixture
def soak_threads():
    return importlib.import_module("soak.threads")


@pytest.mark.long
def test_the_soak_counts_rounds(soak_threads, capsys):
    options = ["--rounds=3", "--backends=scipy", "--threads=1", "--parts"]
    assert soak_threads.main([*options, "trainer"]) == 0
    _, row = capsys.readouterr().out.splitlines()
    assert row.split()[1:4] == ["trainer", "3", "0"] and row.endswith(" ok")
    for part in ("estimator", "predictor"):  # in this process
        assert soak_threads.main([*options, part, "--alone"]) == 0
        assert capsys.readouterr().out.split() == ["0"] * 3


def test_the_soak_sees_wrong_results_crashes_and_hangs(soak_threads, monkeypatch, capsys, tmp_path):
    program = tmp_path / "part.py"
    monkeypatch.setattr(soak_threads, "program", lambda _: [sys.executable, str(program)])
    options = ["--backends=scipy", "--parts=trainer", "--timeout=1"]
    for text, end in (
        ("print(0); print(7)", "2 1 ok"),
        ("print(0, flush=True); import os; os.abort()", "1 0 crash"),
        ("print(0, flush=True); import time; time.sleep(60)", "1 0 hang"),
    ):
        program.write_text(text)
        assert soak_threads.main(options) == 1
        row = capsys.readouterr().out.splitlines()[-1].split()
        del row[4]  # the seconds
        assert " ".join(row).startswith(f"scipy trainer {end}")
