"""tools/compare_peers.py: its contestants, its tables, its processes."""

import importlib
import json
import os
import re
import signal
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from largesparse.machine.versions import version


@pytest.fixture
def compare_peers():
    environment = dict(os.environ)  # which the tool pins threads in
    yield importlib.import_module("compare_peers")
    os.environ.clear()
    os.environ.update(environment)


def test_our_step_is_timed(compare_peers, tmp_path, capsys):
    arguments = ["--layers", "50,30,3", "--peers", "none", "--backends", "scipy"]
    code = compare_peers.main([*arguments, "--repeats", "1", "--json", str(tmp_path / "t.json")])
    assert not code
    assert "ours, scipy" in capsys.readouterr().out
    assert json.loads((tmp_path / "t.json").read_text())


def test_dense_and_row_wise_peers_are_timed(compare_peers, monkeypatch, capsys):
    monkeypatch.setattr(compare_peers, "ENVIRONMENT", ())  # numba's threads have been started
    monkeypatch.setattr(compare_peers, "BLOCK_SECONDS", 0.001)
    sizes = ["--layers", "50,40,30,3", "--epsilon", "4", "--batch-size", "16"]
    compare_peers.main(
        [*sizes, "--peers", "sklearn,scipy", "--backends", "fused,scipy", "--repeats", "2"]
    )
    captured = capsys.readouterr()
    assert "warning" not in captured.err  # all of them train
    for name in ("MLPClassifier, dense", "SciPy and numba, by rows", "ours, fused", "ours, scipy"):
        assert name in captured.out


def test_the_row_wise_peers_gradient_is_that_of_its_loss(compare_peers):
    peers = importlib.import_module("largesparse.harness.peers.cpu")
    problem = peers.Problem((6, 5, 4, 3), epsilon=2, batch_size=8, dropout=0.0)
    batches = problem.batches()
    net = peers.SciPyRows(problem, batches)
    taken = []
    net.update = lambda values, velocity, gradient: taken.append((values, gradient.copy()))
    loss = net.step(0)
    rng = np.random.default_rng(0)
    for values, gradient in taken[:]:
        place = int(rng.integers(len(values)))
        before, step = values[place], np.float32(1e-3)
        values[place] = before + step
        above = net.step(0)
        values[place] = before - step
        below = net.step(0)
        values[place] = before
        assert (above - below) / (2 * step) == pytest.approx(gradient[place], abs=2e-3)
    assert net.step(0) == pytest.approx(loss)


def test_noise_is_what_the_same_step_differs_by(compare_peers, monkeypatch, capsys):
    arguments = ["--layers", "30,20,3", "--batch-size", "8", "--repeats", "20", "--check-noise"]

    def said(spread):
        rng = np.random.default_rng(1)

        def measure(actions, repeats):
            return {name: list(10 * rng.lognormal(0, spread, repeats)) for name in actions}

        monkeypatch.setattr(compare_peers, "measure", measure)
        compare_peers.main(arguments)
        (share,) = re.findall(r"below (\d+\.\d) % are noise", capsys.readouterr().out)
        return float(share)

    assert said(0) == 0
    # The median of n normal values scatters by 1.25 / √n; two of them, 19 times of 20.
    assert said(0.02) == pytest.approx(100 * 0.02 * 1.25 * 1.96 * (2 / 20) ** 0.5, rel=0.8)
    assert said(0.3) > 15


def test_products_and_scaling_stand_beside_steps(compare_peers, monkeypatch, capsys):
    monkeypatch.setattr(compare_peers, "BLOCK_SECONDS", 0.001)
    sizes = ["--layers", "20,30,3", "--epsilon", "3", "--batch-size", "16", "--threads", "2"]
    ours = ["--peers", "none", "--backends", "fused", "--products", "--scaling", "--repeats", "2"]
    compare_peers.main([*sizes, *ours])
    shown = capsys.readouterr().out
    for row in (
        "ours, fused  ",
        "ours, fused, 1 thread",
        "ours, fused: forward products",
        "ours, fused: dX and dW products",
        "ours, fused: reads and writes of forward",
        "SciPy CSR: forward products",
    ):
        assert row in shown
    assert "product / ours" in shown
    if version("aoclda"):
        assert re.search(r"AOCL-Sparse [\d.]+, steps ", shown)
        assert re.search(r"AOCL-Sparse [\d.]+: forward products ", shown)
    if version("torch"):
        assert "torch CSR: forward products" in shown


@pytest.mark.skipif(version("aoclda") is None, reason="aoclda is not installed")
def test_steps_by_aocl_are_those_by_scipy():
    vendors = importlib.import_module("largesparse.harness.peers.vendors")
    ours = importlib.import_module("largesparse.harness.peers.ours")
    problem = importlib.import_module("largesparse.harness.peers.problem").Problem(
        (30, 40, 20, 3), epsilon=4, batch_size=16
    )
    batches = problem.batches()
    one, other = vendors.AOCLSteps(problem, batches), ours.Ours(problem, batches, "scipy")
    for k in range(2):
        one.trainer.workspace.activations(k, 16)[:] = np.nan  # as memory that is new may be
    losses = [(one.step(k), other.step(k)) for k in range(5)]  # by weights that have changed
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-5)
    np.testing.assert_allclose(one.first_weights(), other.first_weights(), atol=1e-5)


def test_a_vendor_that_computes_something_else_is_left_out(compare_peers, monkeypatch, capsys):
    vendors = importlib.import_module("largesparse.harness.peers.vendors")
    ours = importlib.import_module("largesparse.harness.peers.ours")
    problem = importlib.import_module("largesparse.harness.peers.problem").Problem((8, 6, 3))
    products = ours.Products(ours.Ours(problem, problem.batches(), backend="fused"))
    wrong = {"wrong": lambda matrix, X, out, threads: lambda: out.fill(1e6)}
    monkeypatch.setattr(vendors, "VENDORS", wrong)
    assert vendors.vendor_products(products) == {}
    assert "the product by wrong is not SciPy's" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--backends", "cuda"], ["--layers", "5Q,3"], ["--peers", "tensorflow"]]
)
def test_mistakes_are_told_in_one_sentence(compare_peers, arguments, capsys):
    from largesparse.machine.exit_codes import run_command

    try:
        code = run_command(lambda: compare_peers.main(arguments))
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.long
def test_every_phase_is_measured_in_a_process_of_its_own(compare_peers, tmp_path, capsys):
    sizes = ["--layers", "60,40,30,3", "--epsilon", "4", "--batch-size", "16", "--phases"]
    rows = ["--rows", "48", "--test-rows", "20", "--repeats", "1"]
    contestants = ["--peers", "sklearn,scipy", "--backends", "fused"]
    file = tmp_path / "phases.json"
    assert not compare_peers.main([*sizes, *rows, *contestants, "--json", str(file)])
    assert "MLPClassifier, dense" in capsys.readouterr().out
    (problem,) = json.loads(file.read_text())["problems"]
    found = {row.pop("contestant"): row for row in problem["results"]}
    assert len(found) == 3
    for name, row in found.items():
        evolution = row.pop("evolution_s")
        assert (evolution > 0) == ("sparse" not in name and "dense" not in name)
        assert all(value >= 0 for value in row.values())
        assert row["epoch_s"] > 0 and row["initialisation_s"] > 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("function", "argument", "kind", "message"),
    [
        (np.ones, 2**50, MemoryError, "allocate"),
        (signal.raise_signal, 9, MemoryError, "ended the process"),
        (time.sleep, 60, TimeoutError, "longer than 3 s"),
        (int, "a word", RuntimeError, "ValueError: .* 'a word'"),
    ],
)
def test_how_a_process_fails_is_told(compare_peers, function, argument, kind, message):
    phases = importlib.import_module("largesparse.harness.peers.phases")
    with pytest.raises(kind, match=message):
        phases.run_alone(function, argument, seconds=3 if function is time.sleep else 60)


def test_what_a_process_returns_is_returned(compare_peers):
    phases = importlib.import_module("largesparse.harness.peers.phases")
    assert phases.run_alone(len, "four", seconds=60) == 4


def size_up_to_100(make, problem):
    neurons = sum(problem.layer_sizes[1:-1])
    if neurons > 100:
        raise MemoryError("no more than 100")
    return {"contestant": "it", "neurons": neurons}


@pytest.mark.long
def test_layers_are_doubled_until_one_does_not_fit(compare_peers, monkeypatch):
    phases = importlib.import_module("largesparse.harness.peers.phases")
    monkeypatch.setattr(phases, "try_size", size_up_to_100)
    here = lambda function, *arguments, seconds: function(*arguments)  # noqa: E731
    monkeypatch.setattr(phases, "run_alone", here)  # tested above
    problem = phases.Problem((10, 32, 16, 2))
    found = phases.find_largest(problem, {"it": None}, 60).to_dict("records")
    assert found == [{"contestant": "it", "neurons": 96, "next": "no more than 100"}]
    assert phases.find_largest(phases.Problem((10, 101, 2)), {"it": None}, 60).empty


@given(st.integers(2, 400), st.floats(0.05, 0.8), st.integers(0, 2**32))
def test_evolution_of_a_peer_keeps_the_strong_and_the_number(total, density, seed):
    problem = importlib.import_module("largesparse.harness.peers.problem")
    rng = np.random.default_rng(seed)
    cells = problem.draw_cells(rng, max(1, int(density * total)), total)
    assert np.all(np.diff(cells) > 0) and cells[0] >= 0 and cells[-1] < total
    values = rng.standard_normal(len(cells)).astype(np.float32)
    velocity = values * 2
    new_cells, new_values, new_velocity = problem.evolve_cells(
        rng, cells, values, velocity, total, bound=1.0
    )
    assert len(new_cells) == len(cells) and np.all(np.diff(new_cells) > 0)
    assert new_cells[-1] < total
    removed = 0
    for sign in (1, -1):
        mine = np.sort(abs(values[values * sign > 0]))
        weak = int(0.3 * len(mine))
        removed += weak
        strong = set(mine[weak:])
        assert strong <= set(abs(new_values[new_values * sign > 0]))
    kept = dict(zip(cells.tolist(), values.tolist(), strict=True))
    same = [kept.get(c) == v for c, v in zip(new_cells.tolist(), new_values.tolist(), strict=True)]
    assert sum(same) == len(cells) - removed
    assert np.array_equal(new_velocity[same], 2 * new_values[same])
    assert not np.any(new_velocity[~np.array(same)])


def test_rows_of_several_labels_are_compared(compare_peers, tmp_path, capsys):
    from largesparse import make_extreme_classification

    made = make_extreme_classification(240, 120, 20, nonzeros=15, labels_per_row=2)
    parts = {"train_X": made.X_train, "train_Y": made.y_train}
    parts |= {"test_X": made.X_test, "test_Y": made.y_test}
    arrays = {}
    for name, part in parts.items():
        for key in ("data", "indices", "indptr", "shape"):
            arrays[f"{name}_{key}"] = getattr(part, key)
    np.savez(tmp_path / "made.npz", **arrays)
    report = tmp_path / "report.json"
    data = ["--data", str(tmp_path / "made.npz"), "--json", str(report)]
    compare_peers.main(["--task", "labels", "--peers", "ours,sklearn", *data])
    shown = capsys.readouterr().out
    assert "made: 192 and 48 rows, 120 features, 20 labels, 1 threads" in shown
    results = {row["contestant"]: row for row in json.loads(report.read_text())["results"]}
    assert set(results) == {"ours", "sklearn"}
    for row in results.values():
        assert row["P@1"] > 50
        assert row["P@1"] > row["P@3"] > row["P@5"]
        assert row["fit_s"] > 0 < row["model_MiB"]
    archive = compare_peers.read_task(str(tmp_path / "made.npz"))
    assert (made.y_train != archive.Y).nnz == 0
    labels = importlib.import_module("largesparse.harness.peers.labels")
    labels.write_extreme(tmp_path / "made.txt", archive.X, archive.Y)
    table = importlib.import_module("largesparse.data.tables").read_table(tmp_path / "made.txt")
    assert (table.y != made.y_train).nnz == 0
    assert abs(table.X - archive.X).max() < 1e-5


def test_peers_that_are_not_installed_are_skipped(compare_peers, capsys):
    labels = importlib.import_module("largesparse.harness.peers.labels")
    task = labels.read_task("extreme")
    missing = {}

    class Sender:
        @staticmethod
        def send(found):
            missing["found"] = found

    def train(X, Y, threads):
        raise ImportError("No module named 'omikuji'")

    known = labels.LABEL_PEERS
    try:
        labels.LABEL_PEERS = {"omikuji": train}
        labels._measure(Sender, task, "omikuji", 1)
    finally:
        labels.LABEL_PEERS = known
    assert missing["found"] == "No module named 'omikuji'"
