"""The smaller tools, at tiny sizes: they run, and print what they say they measure."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest
import sklearn.datasets
import sklearn.linear_model
from helpers import TOOLS
from sklearn.neural_network import MLPClassifier

from largesparse.data.synthetic import make_large_classification
from largesparse.machine.counters import Counters, Event
from largesparse.machine.environment import find_mpiexec
from largesparse.machine.exit_codes import run_command


def load(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def measure():
    return load("measure")


@pytest.mark.long
@pytest.mark.skipif(find_mpiexec() is None, reason="no mpiexec")
def test_a_pipeline_is_measured_next_to_one_process_and_its_bound(measure, capsys):
    small = ["--neurons=2k", "--features=100", "--samples=300", "--rounds=1", "--epochs=1"]
    sizes = ["--layers=3", "--batch-size=64", "--micro-batch=16", "--backend=scipy"]
    measure.main(["pipeline", *small, *sizes])
    out = capsys.readouterr().out
    assert "losses are equal" in out
    assert re.search(r"time, ratio +\d+\.\d{3} \(", out)
    rows = [line.split() for line in out.splitlines() if re.match(r"[01] ", line)]
    assert [row[-1] for row in rows] == ["0.2", "0.2"]  # the least bubble, of 2 ranks and 4
    for row in rows:
        step, computing, bubble = float(row[1]), float(row[2]), float(row[4])
        assert computing == pytest.approx(step * (1 - bubble), rel=0.01, abs=0.01)


def test_active_neurons_are_counted(measure, capsys):
    measure.main(["active", "--width", "300", "--layers", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9
    rows = [line.split() for line in lines[1:]]
    assert [row[:2] for row in rows[:2]] == [["1", "random"], ["1", "full"]]
    assert float(rows[0][3][:-1]) < 80 < 99 < float(rows[1][3][:-1])
    assert rows[0][2] == rows[1][2] and rows[-1][4:] == ["1.000"] * 3


def test_a_fresh_process_is_timed(measure, monkeypatch, capsys):
    starting = importlib.import_module("measuring.starting")
    shorter = starting.PROGRAM.replace("random_state=0", "random_state=0, max_epochs=1")
    monkeypatch.setattr(starting, "PROGRAM", shorter)
    measure.main(["start", "--repeats", "1", "--backend", "fused"])
    rows = capsys.readouterr().out.splitlines()[2:]
    median = {row.rsplit(None, 3)[0].strip(): float(row.split()[-3]) for row in rows}
    assert len(rows) == 6 and all(0 < seconds < 300 for seconds in median.values())
    parts = [seconds for name, seconds in median.items() if name not in ("all", "second fit")]
    assert median["all"] > sum(parts) - 0.01


def test_categories_are_compared_with_one_hot_codes(measure, capsys):
    sizes = ["--rows", "1500", "--columns", "2", "--kinds", "30", "--repeats", "1"]
    measure.main(["categories", *sizes])
    row = list(map(float, capsys.readouterr().out.splitlines()[1].split()))
    assert len(row) == 7 and row[0] == 0 and row[2] > row[1] - 0.05 > 0.6
    assert row[4] > 50 < row[5]


def test_a_layer_is_initialised_and_evolved(measure, capsys):
    measure.main(["layer", "--width", "3000", "--epsilon", "2", "--backend", "scipy"])
    out = capsys.readouterr().out
    assert out.startswith("3000 x 3000, ")
    assert out.count("evolution ") == 3


def test_rules_are_timed_next_to_sets(measure, capsys):
    measure.main(["rules", "--sizes", "60,50", "--epsilon", "3", "--repeats", "1"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows[0][:2] == ["set", "random"] and float(rows[0][3]) == 1
    assert {row[1] for row in rows[:4]} == {"random", "gradient", "topology", "reconnect"}
    assert {row[0] for row in rows[4:]} == {"magnitude", "mest", "soft"}


def test_optimizers_are_timed_and_followed_after_an_evolution(
    measure, monkeypatch, capsys, tmp_path
):
    tool = importlib.import_module("measuring.optimizers")
    monkeypatch.setitem(tool.NETS, "fashion", ((20, 30, 3), {"epsilon": 4}, 16))
    flags = ["optimizers", "--backend", "scipy"]
    measure.main([*flags, "--optimizers", "sgd", "adamw", "--repeats", "3"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["sgd", "adamw"] and rows[0][2] == "1.000"
    assert 0 < float(rows[1][2]) < 100
    rng = np.random.default_rng(0)
    data = types.SimpleNamespace(X_train=rng.normal(size=(2600, 20)).astype(np.float32))
    data.y_train = (data.X_train[:, :3]).argmax(1)
    monkeypatch.setattr(tool, "load_dataset", lambda name: data)
    monkeypatch.setattr(tool, "FASHION", (20, 30, 3))
    more = ["--evolution", "--seeds", "2", "--epochs", "2", "--plot", str(tmp_path / "loss.png")]
    measure.main([*flags, *more])
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1][:4] == ["counts", "connection", "global", "no"]
    losses = np.array([line[1:4] for line in lines[2:]], float)
    assert losses.shape == (21, 3) and (losses[0, 0] == losses[0, 1]) and (losses > 0).all()


@pytest.mark.parametrize("tiny", [2e-38, 1.0])  # the second takes what is normal for subnormal
def test_subnormal_velocities_after_idle_steps_are_counted(measure, tiny, monkeypatch, capsys):
    steps = importlib.import_module("measuring.steps")
    monkeypatch.setattr(steps, "LAYER_SIZES", (20, 30, 3))
    monkeypatch.setattr(steps, "TINY", tiny)
    measure.main(["idle_steps", "--steps", "5", "--backends", "scipy"])
    header, row = capsys.readouterr().out.splitlines()[-2:]
    assert header.split()[-1] == "subnormal"
    assert (int(row.split()[-1]) > 0) == (tiny == 1)


def test_prediction_is_timed_with_equal_results(measure, capsys):
    sizes = ["--neurons", "2k", "--samples", "40", "--batch-size", "16", "--repeats", "1"]
    measure.main(["prediction", *sizes, "--backend", "scipy"])
    out = capsys.readouterr().out
    assert "median speed-up" in out
    assert "differ" not in out


def test_twins_stand_beside_logistic_regression(measure, monkeypatch, capsys):
    make = sklearn.datasets.make_classification
    fewer = lambda rows, *columns, **options: make(rows // 10, *columns, **options)  # noqa: E731
    monkeypatch.setattr("sklearn.datasets.make_classification", fewer)
    measure.main(["twins", "--epochs", "1", "--width", "50", "--backend", "scipy"])
    lines = capsys.readouterr().out.splitlines()
    for name in ("logistic regression", "2 layers, epsilon 10", "10 layers, epsilon 1"):
        row = next(line for line in reversed(lines) if line.strip().startswith(name))
        values = [float(word) for word in row.split()[-4:]]
        assert values[3] == pytest.approx(sum(values[:3]) / 3, abs=2e-3)


def test_logistic_regression_has_the_rows_of_bigmodel(measure, capsys):
    measure.main(["linear", "--samples", "400", "--features", "100", "--seeds", "2", "3"])
    lines = capsys.readouterr().out.splitlines()
    for line, seed in zip(lines, (2, 3), strict=True):
        data = make_large_classification(400, 100, random_state=seed)
        fitted = sklearn.linear_model.LogisticRegression(max_iter=1000)
        fitted.fit(data.X_train, data.y_train)
        score = fitted.score(data.X_test, data.y_test)
        assert line.startswith(f"seed {seed}: {score:.3f} ± ")


def test_real_data_is_trained_on(measure, shared_data, monkeypatch, capsys):
    monkeypatch.setenv("LARGESPARSE_DATA", str(shared_data))
    settings = ["--learning-rate", "0.02", "--dropout", "0.1", "--weight-decay", "0"]
    measure.main(["madelon", "--epochs", "2", "--backend", "scipy", *settings])
    assert "test accuracy: best" in capsys.readouterr().out


def test_pruning_on_real_data(measure, shared_data, monkeypatch, capsys):
    monkeypatch.setenv("LARGESPARSE_DATA", str(shared_data))
    settings = ["--pruning", "--pruning-start", "1", "--pruning-every", "1"]
    settings += ["--pruning-percentile", "50"]
    measure.main(["madelon", "--epochs", "2", "--backend", "scipy", *settings])
    assert "neurons: 400-100-400 -> 200-50-200" in capsys.readouterr().out


def test_a_step_is_profiled(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(TOOLS))
    profile = load("profile_step")
    sizes = ["--layers", "20,30,3", "--epsilon", "3", "--batch-size", "16", "--steps", "3"]
    for backend, kernel in (("fused", "train_step"), ("scipy", "spmm")):
        profile.main([*sizes, "--backend", backend])
        lines = capsys.readouterr().out.splitlines()
        assert any(line.startswith(kernel) for line in lines)
        assert any(line.startswith("outside kernels") for line in lines)
        assert lines[-1].startswith("a step without this timing")
    clock = {"task clock": Event(1, 1)}  # of the kernel's software: most machines have it
    monkeypatch.setattr(profile, "Counters", lambda: Counters(clock))
    profile.main([*sizes, "--counters"])
    shown = capsys.readouterr().out
    counted = re.search(r"^train_step +(\S+)$", shown.partition("a step")[2], re.MULTILINE)
    assert counted or "no hardware counters: " in shown
    assert run_command(lambda: profile.main([*sizes, "--counters", "--threads", "2"])) == 2


@pytest.fixture
def small_images(monkeypatch):
    """Let the tools find a small classification task under every name."""
    from largesparse import Dataset

    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 784)).astype(np.float32)
    y = (X[:, :10].argmax(axis=1)).astype(np.int32)

    def give(module):
        data = Dataset(X[:200], y[:200], X[200:], y[200:], "small")
        monkeypatch.setattr(module, "load_dataset", lambda name: data)

    return give


def test_a_compact_network_is_compared(measure, small_images, capsys):
    small_images(importlib.import_module("measuring.networks"))
    measure.main(["compaction", "--epochs", "1", "--repeats", "1", "--backend", "scipy"])
    shown = capsys.readouterr().out
    assert re.search(r"pruned +1000-1000-1000", shown) and re.search(r"compact +400-400-400", shown)
    assert float(shown.split("probability ")[1].split()[0]) < 1e-5


def test_slopes_are_compared(measure, small_images, capsys):
    small_images(importlib.import_module("measuring.learning"))
    options = ["--data", "fashion", "--epochs", "1", "--grid", "0.5", "--seeds", "1"]
    measure.main(["slopes", *options, "--backend", "scipy"])
    shown = capsys.readouterr().out
    assert "0.50" in shown and "(auto)" in shown


@pytest.mark.long
@pytest.mark.parametrize("model", ["sparse", "mlp", "logistic", "forest"])
def test_a_model_is_fitted_to_a_fold(small_images, monkeypatch, capsys, model):
    tool = load("evaluate_tables")
    small_images(sys.modules["evaluate_tables"])
    monkeypatch.setattr("sklearn.neural_network.MLPClassifier", quick_mlp)
    options = ["--tables", "genes", "--models", model, "--fold", "0", "--backend", "fused"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of convergence
        tool.main(options)
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"accuracy", "fit_s", "predict_s", "fit_mib", "code_mib"}
    assert 0 <= found["accuracy"] <= 1 and found["fit_s"] > 0


def test_several_tables_make_a_panel(monkeypatch, capsys):
    tool = load("evaluate_tables")
    folds = {("a", "sparse"): [0.5, 0.7], ("a", "mlp"): [0.4, 0.4], ("b", "sparse"): [1.0, 1.0],
             ("b", "mlp"): [0.8, 1.0]}  # fmt: skip

    def fit(table, model, fold, options):
        accuracy = folds[table.removesuffix(".npz"), model][fold]
        return {"accuracy": accuracy, "fit_s": 0.25, "predict_s": 0, "fit_mib": 0, "code_mib": 0}

    monkeypatch.setattr(tool, "in_its_own_process", fit)
    tool.main(["--tables", "a.npz", "b.npz", "--folds", "2", "--models", "sparse", "mlp"])
    panel = capsys.readouterr().out.split("\naccuracy\n")[1]
    # standard errors: of two values half their distance; of the mean √(Σ se²) / 2
    assert re.search(r"^a +0.600 ± 0.100 +0.400 ± 0.000$", panel, re.MULTILINE)
    assert re.search(r"^b +1.000 ± 0.000 +0.900 ± 0.100$", panel, re.MULTILINE)
    assert re.search(r"^mean +0.800 ± 0.050 +0.650 ± 0.050$", panel, re.MULTILINE)
    assert re.search(r"^b +0.25 +0.25$", panel, re.MULTILINE)


def quick_mlp(**options):
    return MLPClassifier((5,), max_iter=2, **options)


def test_the_width_ladder_has_a_line_a_size(measure, capsys):
    sizes = ["--widths", "1024", "64", "--depths", "3", "2"]
    measure.main(["width_ladder", *sizes, "--threads", "1", "--steps", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert "1 threads" in lines[0] and len(lines) == 6
    rows = [line.split() for line in lines[2:]]
    assert [row[:2] for row in rows] == [["1024", "3"], ["1024", "2"], ["64", "3"], ["64", "2"]]
    assert rows[0][-1] == "626" and all(len(row) == 7 for row in rows[1:])  # what Nerva logged
    connections = int(rows[0][2].replace(",", ""))
    dense = 3072 * 1024 + 2 * 1024**2 + 1024 * 10
    assert connections == pytest.approx(0.01 * dense, rel=0.05)
    step, rate = float(rows[0][3]), float(rows[0][4])
    assert rate == pytest.approx(connections * 100 / step / 1000, rel=0.05)


@pytest.mark.long
def test_threading_layers_are_compared_idle_and_busy(measure, capsys):
    short = ["--rounds=1", "--seconds=0.01", "--busy=1"]
    measure.main(["threading", "--net=madelon", "--layers=default,1", *short])
    header, *rows = capsys.readouterr().out.splitlines()
    assert "median ms" in header and "of 1" in header
    assert [row.split()[:2] for row in rows] == [
        ["0", "default"],
        ["0", "1"],
        ["1", "default"],
        ["1", "1"],
    ]
    assert all(float(row.split()[2]) > 0 for row in rows)
    with pytest.raises(SystemExit, match="2"):
        measure.main(["threading", "--layers=default,nonsense"])
    assert "'nonsense'" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_parts_of_a_step_of_a_layer_are_timed(measure, capsys, dtype):
    words = ["--sizes", "300,200", "--batch-size", "7", "--repeats", "2", "--threads", "1"]
    measure.main(["layer_step", *words, "--activation-dtype", dtype])
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"\d+ connections, 7 samples, {dtype}", lines[0])
    rows = {line[:16].strip(): line[16:].split() for line in lines[2:]}
    assert list(rows) == ["forward pass", "backward pass", "update", "update and copy"]
    shares = {name: int(share.rstrip("%")) for name, (_, _, share) in rows.items()}
    assert 98 <= sum(shares.values()) - shares["update"] <= 102


def test_a_gradient_is_timed_by_the_micro_batch(measure, capsys):
    sizes = ["--neurons=200", "--layers=2", "--features=20", "--repeats=1", "--backend=scipy"]
    measure.main(["micro_batch", *sizes, "--settings", "8", "4/2"])
    shown, head, *rows = capsys.readouterr().out.splitlines()
    assert shown.startswith("200 neurons") and head.startswith("micro-batch")
    assert len(rows) == 2 and rows[0].split()[-3:] == ["1.00", "(no", "interval)"]


def test_every_figure_is_listed(measure, capsys):
    with pytest.raises(SystemExit, match="0"):
        measure.main(["--help"])
    listed = capsys.readouterr().out
    assert all(name in listed for names in measure.MODULES.values() for name in names)


def test_the_soak_tools_are_listed(tmp_path):
    command = [sys.executable, str(TOOLS.parent / "soak")]
    for argument, status in (("--help", 0), ("nothing", 2)):
        done = subprocess.run([*command, argument], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert re.search("^  kill_ranks +Kill ranks", done.stdout + done.stderr, re.MULTILINE)


def test_a_layer_of_many_labels_is_trained_for_some_time(measure, capsys):
    sizes = "--rows 300 --test-rows 50 --features 200 --labels 400 --wide 50 --per-feature 10"
    flags = "--seconds 1 --batch-size 100 --threads 2 --learning-rate 1"
    measure.main(["extreme_labels", *sizes.split(), *flags.split()])
    shown = capsys.readouterr().out
    for found in ("2 threads:", "s for 490,449 rows", "estimate for 10 such cores", "evolution"):
        assert found in shown
    scores = re.findall(r"(network|most frequent labels): P@1, 3, 5 ([\d.]+), ", shown)
    assert len(scores) == 2
    assert all(0 <= float(score) <= 100 for _, score in scores)
    assert re.search(r"peak 0\.\d\d GiB", shown)
