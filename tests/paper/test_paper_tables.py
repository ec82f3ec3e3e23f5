"""The paper's tables and figures: its values, the trainings, their records, what is printed."""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT

from largesparse import Dataset, NetworkConfig, SparseMLP, Trainer, read_records
from largesparse.data import publishers
from largesparse.errors import DataError, ParameterError
from largesparse.harness import report, scaling
from largesparse.harness.records import append_record, new_record
from largesparse.harness.series import colour_of
from largesparse.machine.environment import find_mpiexec
from largesparse.machine.exit_codes import run_command
from largesparse.machine.output import LogLines
from largesparse.model.importance import prune_neurons
from largesparse.paper import command, extremes, jobs, run
from largesparse.paper import reported as paper
from largesparse.paper.distributions import neuron_distributions
from largesparse.paper.figures import FIGURES, draw
from largesparse.paper.recording import KIND
from largesparse.paper.run import run_training
from largesparse.paper.scores import ScoringTrainer, TestScores
from largesparse.paper.tables import (
    NOT_MEASURED,
    Runs,
    keras_rows,
    markdown,
    pruning_table,
    results_table,
)
from largesparse.paper.trainings import (
    EXPONENT,
    EXPONENTS,
    PRUNED,
    Protocol,
    Training,
    pruning_schedule,
    rows_of,
)

SMALL = paper.Task((12, 20, 15, 20, 3), 5, 0.05, 16, "he_uniform", 0.5, 96, 40, 0.5)
SHORT = Protocol(epochs=3, backend="scipy")


@pytest.fixture
def small(monkeypatch):
    """Make Madelon a small task of three classes."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((136, 12)).astype(np.float32)
    y = X[:, :3].argmax(axis=1).astype(np.int32)
    data = Dataset(X[:96], y[:96], X[96:], y[96:], "small")
    monkeypatch.setattr(run, "load_dataset", lambda name, **options: data)
    monkeypatch.setitem(paper.TASKS, "madelon", SMALL)
    return data


def training_of(name, dataset="madelon", protocol=SHORT, table=2):
    (row,) = rows_of(table, dataset, protocol, only=[name])
    return row.trainings[0]


# What the paper states


@pytest.mark.parametrize("dataset", paper.TASKS)
def test_the_dense_parameters_are_those_of_the_architecture(dataset):
    sizes = paper.TASKS[dataset].layer_sizes
    found = paper.result(paper.TABLE_2, dataset, "dense_relu", False)
    assert found.start == sum(a * b + b for a, b in itertools.pairwise(sizes))


@pytest.mark.parametrize("dataset", paper.TASKS)
def test_the_tables_agree_where_they_overlap(dataset):
    whole = paper.result(paper.TABLE_2, dataset, "all_relu", False)
    assert paper.TABLE_6[dataset][0].accuracy == whole.accuracy
    for pruning in (False, True):
        again = paper.result(paper.TABLE_3, dataset, "sequential", pruning)
        assert again is None or again.accuracy == (
            paper.result(paper.TABLE_2, dataset, "all_relu", pruning).accuracy
        )


def test_table_5_agrees_with_table_2():
    for alpha, variant in ((0.0, "relu"), (0.6, "all_relu")):
        found = paper.result(paper.TABLE_2, "fashion_mnist", variant, False)
        assert paper.TABLE_5[alpha] == found.accuracy


# Trainings


def test_the_rows_have_the_paper_s_settings():
    protocol = Protocol("paper", seeds=(3, 4))
    rows = {row.name: row for row in rows_of(2, "fashion_mnist", protocol)}
    assert list(rows)[:4] == ["relu", "relu+pruning", "all_relu", "all_relu+pruning"]
    one = rows["all_relu+pruning"].trainings[1]
    assert (one.network.alpha, one.network.epsilon, one.network.initializer) == (
        0.6,
        20,
        "he_uniform",
    )
    used = one.training
    assert (used.epochs, used.batch_size, used.learning_rate) == (500, 128, 0.01)
    assert (used.momentum, used.dropout, used.zeta, used.seed) == (0.9, 0.3, 0.3, 4)
    assert used.pruning_start == 200
    assert rows["relu"].trainings[0].network.activation == "relu"
    assert rows["all_relu"].trainings[0].training.pruning_start is None
    assert rows["srelu"].trainings[0].network.activation == "srelu"
    assert rows["all_relu+pruning"].paper.accuracy == 90.12
    dense = rows["dense_all_relu"].trainings[0]
    assert dense.dense and dense.training.zeta == 0 and dense.network.alpha == 0.25
    assert dense.network.expected_connections() == 2_794_000
    assert rows["mlp_classifier"].trainings[0].algorithm == "mlp_classifier"


def test_parallel_rows_have_the_paper_s_ranks():
    rows = {row.name: row for row in rows_of(3, "fashion_mnist", Protocol())}
    assert {name: row.trainings[0].ranks for name, row in rows.items()} == {
        "sequential": 1,
        "sequential+pruning": 1,
        "wassp": 6,
        "wassp+pruning": 6,
        "wasap": 6,
        "wasap+pruning": 6,
    }
    assert rows["wasap"].paper.minutes == 87.25


def test_tables_share_their_trainings():
    def keys(table):
        rows = rows_of(table, "fashion_mnist", Protocol())
        return {one.key for row in rows for one in row.trainings}

    assert len(keys(2) & keys(3)) == 2  # sequential
    assert len(keys(2) & keys(5)) == 2  # α 0.6 and 0
    assert keys(6) < keys(2)


@pytest.mark.parametrize("name", ["all_relu+pruning", "dense_relu", "mlp_classifier"])
def test_a_training_is_found_again_by_its_settings(name):
    one = training_of(name)
    assert Training.from_settings(json.loads(json.dumps(one.settings))) == one
    for changes in ({"epochs": 4}, {"seeds": (1,)}, {"weight_decay": 0.0}, {"backend": "mkl"}):
        other = training_of(
            name, protocol=Protocol(**({"epochs": 3, "backend": "scipy"} | changes))
        )
        assert other.key != one.key


@pytest.mark.parametrize("epochs", [500, 100, 10])
@pytest.mark.parametrize(
    ("dataset", "share"), [("madelon", 2_737 / 19_000), ("fashion_mnist", 25_759 / 126_302)]
)
def test_pruning_leaves_about_the_paper_s_share(dataset, share, epochs):
    used = pruning_schedule(dataset, Protocol(epochs=epochs))
    assert used["pruning_start"] == 0.4 * epochs
    left, after = 1.0, []
    for epoch in range(1, epochs):  # as `Trainer.evolve_if_due` has it
        if epoch >= used["pruning_start"] and epoch % used["pruning_every"] == 0:
            left *= 1 - used["pruning_percentile"] / 100
            after.append(epoch)
    assert len(after) == 6
    assert left ** EXPONENTS.get(dataset, EXPONENT) == pytest.approx(share, abs=0.005)


def test_pruning_that_never_happens_is_refused():
    with pytest.raises(ParameterError, match="never happens in 2 epochs"):
        training_of("relu+pruning", protocol=Protocol(epochs=2, pruning_start=2))


# What is measured


def test_each_half_chooses_the_epoch_of_the_other():
    scores = TestScores(5)
    first, second = scores.halves
    assert sorted([*first, *second]) == [0, 1, 2, 3, 4]
    assert (len(first), len(second)) == (2, 3)
    for accuracies in ((1.0, 1.0), (0.5, 1 / 3), (1.0, 0.0), (0.0, 2 / 3)):
        scores.add(lambda rows, of=accuracies: (len(rows), of[len(rows) - 2]))
    assert scores.accuracy == pytest.approx([1.0, 0.4, 0.4, 0.4])
    assert scores.loss == pytest.approx([13 / 5] * 4)
    # The first half's best epoch is the second, where the other half has 0; and the third, 0.
    # The first scores are those before training.
    assert scores.selected(3) == 0.0
    assert scores.selected(3, [0.9, 0.1, 0.3, 0.2]) == scores.accuracy[2]
    scores.accuracy[3] = 0.7
    assert scores.selected(3, [0.9, 0.1, 0.2, 0.3]) == 0.7


@pytest.mark.parametrize("activation", ["all_relu", "relu", "srelu"])
def test_distributions_are_those_of_a_dense_computation(activation):
    config = NetworkConfig((8, 30, 20, 2), epsilon=4, activation=activation, alpha=0.3)
    network = SparseMLP(config)
    X = np.random.default_rng(1).standard_normal((50, 8)).astype(np.float32)
    rows = np.arange(0, 50, 2)
    prune_neurons(network, 20)
    found = neuron_distributions(network, X, rows, bins=7)
    values = X[rows]
    for k, layer in enumerate(network.layers[:-1]):
        dense = np.zeros((layer.n_in, layer.n_out), dtype=np.float32)
        dense[layer.topology.rows(), layer.topology.indices] = layer.values
        z = values @ dense + layer.bias
        slope = {"all_relu": -0.3 if k == 0 else 0.3, "relu": 0.0, "srelu": 0.3}[activation]
        values = np.where(z > 0, z, slope * z)
        for name, array in (("pre_activation", z), ("activation", values)):
            counts, edges = np.histogram(array.mean(axis=0)[~layer.dead], bins=7)
            assert found[name][k]["counts"] == counts.tolist()
            np.testing.assert_allclose(found[name][k]["edges"], edges, atol=1e-6)


def test_a_record_has_what_the_tables_need(small):
    told = []
    one = training_of("all_relu")
    record = run_training(one, lambda epoch, accuracy: told.append((epoch, accuracy)))
    assert [epoch for epoch, _ in told] == [1, 2, 3]
    assert [accuracy for _, accuracy in told] == record.accuracy[1:]
    assert record.settings == one.settings
    for name in ("accuracy", "loss", "test_loss", "train_accuracy", "nnz", "gradient_flow"):
        assert len(getattr(record, name)) == 4
    assert record.nnz[0] == record.nnz[-1] == record.connections
    assert all(value > 0 for value in record.gradient_flow[1:])
    assert record.train_s > 0 and record.cpu_s[0] > 0 and record.peak_rss_bytes > 2**24
    assert record.pruned[0]["accuracy"] == pytest.approx(record.accuracy[-1])
    assert [entry["percentile"] for entry in record.pruned] == [0, 5, 10, 15, 20, 25]
    counts = [entry["connections"] for entry in record.pruned]
    assert counts == sorted(counts, reverse=True) and counts[0] == record.connections > counts[-1]
    # The same as the trainer says by itself, which scores before the evolution of an epoch
    trainer = Trainer(SparseMLP(one.network), one.training)
    test = small.X_test, small.y_test
    history = trainer.fit(small.X_train, small.y_train, test=test, progress=False)
    assert record.accuracy == pytest.approx(history["test_accuracy"])
    loss, _ = trainer.evaluate(*test)
    assert record.test_loss[-1] == pytest.approx(loss, rel=1e-5)


def test_pruned_trainings_end_with_fewer_connections(small):
    record = run_training(training_of("srelu+pruning"), lambda *_: None)
    assert record.nnz[-1] < 0.6 * record.nnz[0]
    assert record.pruned is None


def test_the_dense_baselines(small):
    ours = run_training(training_of("dense_relu"), lambda *_: None)
    sizes = SMALL.layer_sizes
    assert ours.nnz == [sum(a * b for a, b in itertools.pairwise(sizes))] * 4
    theirs = run_training(training_of("mlp_classifier", protocol=Protocol(epochs=20)), print)
    assert theirs.backend == "scikit-learn"
    assert theirs.nnz[0] == ours.nnz[0]
    assert theirs.accuracy[-1] > 0.6 and theirs.loss[-1] < theirs.loss[1]


def test_a_training_that_diverges_is_a_result(small):
    one = training_of("relu", protocol=Protocol(epochs=3, learning_rate=1e30, backend="scipy"))
    record = run_training(one, lambda *_: None)
    assert record.accuracy[-1] is None and len(record.accuracy) == len(record.loss) == 4
    assert record.pruned is None


def test_other_data_are_refused(small, monkeypatch):
    other = paper.Task((11, 20, 3), 5, 0.05, 16, "normal", 0.5, 96, 40, 0.5)
    monkeypatch.setitem(paper.TASKS, "madelon", other)
    with pytest.raises(DataError, match="12 features and 3 classes, the paper's 11 and 3"):
        run.load(training_of("relu"))


def test_cifar10_from_its_publisher_s_files(tmp_path, monkeypatch):
    monkeypatch.setattr(publishers, "CIFAR10_RECORDS", 10)
    monkeypatch.setenv("LARGESPARSE_DATA", str(tmp_path))
    rng = np.random.default_rng(0)
    (tmp_path / "cifar-10-batches-bin").mkdir()
    for name in [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]:
        images = rng.integers(0, 256, (10, 3073), dtype=np.uint8)
        images[:, 0] = np.arange(10)
        images.tofile(tmp_path / "cifar-10-batches-bin" / name)
    one = training_of("all_relu+pruning", "cifar10", Protocol(backend="scipy"))
    assert one.augment and one.network.layer_sizes == (3072, 4000, 1000, 4000, 10)
    task = paper.TASKS["cifar10"]._replace(layer_sizes=(3072, 20, 10, 20, 10), batch_size=16)
    monkeypatch.setitem(paper.TASKS, "cifar10", task)
    record = run_training(training_of("all_relu", "cifar10"), lambda *_: None)
    assert (record.train_samples, record.test_samples) == (50, 10)


# Tables and figures from records


@pytest.fixture
def recorded(tmp_path):
    """Write records of trainings, with made-up results; return the runs."""

    def write(*results):
        path = tmp_path / "runs.jsonl"
        for one, values in results:
            epochs = one.training.epochs
            histogram = {"edges": [0.0, 1.0, 2.0], "counts": [3, 4]}
            made = {
                "accuracy": [None, *np.linspace(0.5, 0.7, epochs)],
                "test_loss": [None, *np.linspace(2, 1, epochs)],
                "loss": np.linspace(2, 0.5, epochs + 1),
                "train_accuracy": np.linspace(0.3, 0.8, epochs + 1),
                "gradient_flow": [None, 0.5, *[None] * (epochs - 2), 0.25],
                "nnz": [1000] * (epochs + 1),
                "selected_accuracy": 0.65,
                "train_s": 90.0,
                "cpu_s": [80.0, 40.0],
                "ranks": 1,
                "peak_rss_bytes": 2**29,
                "train_samples": 2000,
                "test_samples": 600,
                "distributions": {
                    name: [histogram] * 3 for name in ("activation", "pre_activation")
                },
                "pruned": [
                    {"percentile": 5 * k, "accuracy": 0.7 - 0.01 * k, "connections": 1000 - 50 * k}
                    for k in range(6)
                ],
            }
            append_record(path, new_record(KIND, settings=one.settings, **(made | values)))
        return Runs(read_records(path))

    return write


def cells(head, lines, row):
    return dict(zip(head, next(line for line in lines if line[0] == row), strict=True))


def test_a_table_has_means_and_what_the_paper_has(recorded):
    protocol = Protocol(epochs=5, seeds=(0, 1))
    rows = {row.name: row for row in rows_of(2, "madelon", protocol)}
    pruned = rows["all_relu+pruning"].trainings
    runs = recorded(
        (pruned[0], {"accuracy": [0.5, 0.8, 0.6, 0.6, 0.6, 0.6], "nnz": [1000] * 5 + [200]}),
        (pruned[1], {"accuracy": [0.5, 0.7, 0.6, 0.6, 0.6, 0.5], "nnz": [1000] * 5 + [100]}),
        (rows["relu"].trainings[0], {"accuracy": [0.5, 0.4, None, None, None, None]}),
    )
    head, lines = results_table(list(rows.values()), runs)
    found = cells(head, lines, "all_relu+pruning")
    assert found["seeds"] == "2"
    assert (found["best %"], found["paper %"]) == ("75.00 ± 7.07", "77.00")
    assert (found["last %"], found["selected %"]) == ("55.00 ± 7.07", "65.00 ± 0.00")
    assert (found["at the end"], found["left %"], found["paper left %"]) == ("150", "15.0", "14.4")
    assert (found["minutes"], found["paper minutes"], found["CPU s"]) == ("1.5", "3.2", "120")
    assert found["GiB"] == "0.50"
    assert "energy kJ" not in head  # nowhere measured
    assert cells(head, lines, "relu")["best %"] == "40.00 (1 diverged)"
    assert cells(head, lines, "srelu")["best %"] == "not measured yet"
    text = markdown(head, lines).splitlines()
    assert len(text) == 2 + len(rows) and len({len(line) for line in text}) == 1


def test_table_3_has_the_memory_of_all_ranks_and_keras(recorded):
    rows = rows_of(3, "fashion_mnist", Protocol(epochs=5), only=["wasap"])
    several = {"ranks": 6, "node_pss_bytes": 2**30, "energy_j": 2500.0}
    runs = recorded((rows[0].trainings[0], several))
    head, lines = results_table([*rows, *keras_rows("fashion_mnist")], runs)
    found = cells(head, lines, "wasap")
    assert (found["GiB"], found["paper GiB"], found["energy kJ"]) == ("1.00", "3.07", "2.5")
    assert cells(head, lines, "keras, GPU")["paper minutes"] == "65"
    assert cells(head, lines, "keras, GPU")["best %"] == "-"


def test_table_6(recorded):
    (row,) = rows_of(6, "madelon", Protocol(epochs=5))
    head, lines = pruning_table(row, recorded((row.trainings[0], {})))
    assert head[1:6] == ["seeds", "accuracy %", "lost", "connections", "left %"]
    assert lines[5][:6] == ["25", "1", "65.00", "5.00", "750", "75.0"]
    assert lines[5][6:] == ["65.33", "6.00", "15,297", "80.5"]
    _, lines = pruning_table(row, Runs(read_records()))
    assert [line[2] for line in lines] == ["not measured yet"] * 6


def test_the_newest_record_of_the_same_settings_counts(recorded):
    one = training_of("relu")
    row = rows_of(2, "madelon", SHORT, only=["relu"])[0]
    runs = recorded((one, {"train_s": 1.0}), (one, {"train_s": 2.0}))
    assert [found["train_s"] for found in runs.of(row)] == [2.0]


@pytest.mark.parametrize("number", FIGURES)
def test_figures_have_the_curves(recorded, number):
    pytest.importorskip("matplotlib")
    protocol = Protocol(epochs=4, seeds=(0, 1))
    table = FIGURES[number][0]
    rows = rows_of(table, "madelon", protocol)[:4]
    runs = recorded(*((one, {}) for row in rows for one in row.trainings))
    figure = draw(number, "madelon", protocol, runs)
    lines = figure.axes[0].get_lines()
    names = [row.name for row in rows]  # one activation, one colour, in whatever figure
    colours = {line.get_label(): line.get_color() for line in lines if line.get_label() in names}
    assert all(colours[name] == colour_of(name.removesuffix(PRUNED)) for name in colours)
    if number in (9, 12):
        assert len(figure.axes) == 3 * 2  # layers, and ReLU and All-ReLU without pruning
        (drawn,) = figure.axes[0].patches
        assert drawn.get_data().values.tolist() == [3, 4]
        return
    assert len(lines) == (2 if number == 5 else 4)
    if number == 5:
        assert lines[0].get_xydata().tolist() == [[1, 0.5], [4, 0.25]]
    elif number in (6, 19):
        np.testing.assert_allclose(lines[0].get_xdata(), [1, 2, 3, 4])
        np.testing.assert_allclose(lines[0].get_ydata(), np.linspace(0.5, 0.7, 4))
    elif number == 4:
        assert lines[0].get_xydata().tolist() == [[1, 1]]


LACKING = ["accuracy", "nnz", "loss", "test_loss", "train_accuracy", "gradient_flow", "train_s"]
LACKING += ["distributions", "cpu_s", "ranks", "pruned", "peak_rss_bytes", "train_samples"]


@pytest.mark.parametrize("field", LACKING)
def test_a_record_that_lacks_a_field_is_tabled(recorded, field):
    row = rows_of(2, "madelon", Protocol(epochs=4))[0]
    (one,) = row.trainings
    runs = recorded((one, {field: None}))
    _, (line,) = results_table([row], runs)
    needed = field in ("accuracy", "nnz")
    assert (line[2] == NOT_MEASURED) == needed
    pruning_table(row, runs)
    for number in (4, 5, 6, 7, 9):
        try:
            draw(number, "madelon", Protocol(epochs=4), runs)
        except DataError:
            assert needed or field in FIGURES[number][2]


def test_a_figure_without_data_says_what_to_run():
    with pytest.raises(DataError, match="Run --table 5 --dataset higgs"):
        draw(19, "higgs", SHORT, Runs(read_records()))


def test_extremes_stand_beside_the_paper_s(tmp_path):
    flags = extremes.flags_of(10_000_000, 2, "fused")
    assert "--layers=2" in flags and "--features=54675" in flags
    assert "--layers=10" in extremes.flags_of(50_000_000, 2, "fused")
    command = " ".join(["bigmodel.py", *flags, "--out=a.jsonl"])
    times = {
        "init_s": 3.0,
        "epoch_s": [100.0, 90.0],
        "inference_s": [20.0],
        "evolution_s": [5, None],
    }
    values = {"connections": 20_000_000, "peak_rss_bytes": 2**31, "command": command}
    append_record(tmp_path / "a", new_record("bigmodel", **times, **values))
    records = read_records(tmp_path / "a")
    _, (ours, later) = extremes.extremes_table(records, [10_000_000, 50_000_000], 2, "fused")
    assert ours[1:] == ["20,000,000", "3.0", "95.0", "1,998", "20.0", "729", "5.0", "30", "2.00"]
    assert later[1] == "not measured yet" and later[4] == "4,500"


def test_extremes_are_run_once(tmp_path, monkeypatch, capsys):
    commands = []

    def finish(command, **_):
        commands.append(command)
        times = {"init_s": 1.0, "epoch_s": [2.0], "inference_s": [0.5], "evolution_s": [0.1]}
        values = {"connections": 100, "peak_rss_bytes": 2**30, "command": " ".join(command[1:])}
        append_record(tmp_path / "x.jsonl", new_record("bigmodel", **times, **values))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(command.subprocess, "run", finish)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert command.main(["--extremes", "20k", "--out", "x.jsonl"]) == 0
    assert len(commands) == 1 and "--neurons=20000" in commands[0]
    assert "| 20,000  | 100 " in capsys.readouterr().out


SAME = ("accuracy", "loss", "test_loss", "train_accuracy", "gradient_flow", "nnz", "distributions")
SAME += ("selected_accuracy", "pruned", "active_neurons")


@pytest.mark.parametrize("how", ["killed after its checkpoint", "SIGTERM", "SIGTERM at its end"])
@pytest.mark.parametrize("name", ["srelu", "all_relu+pruning"])
def test_a_training_that_is_stopped_goes_on_to_the_same_record(
    small, tmp_path, monkeypatch, name, how
):
    one = training_of(name, protocol=Protocol(epochs=6, backend="scipy"))
    whole = run_training(one, lambda *_: None)
    folder, told = tmp_path / "unfinished" / "one", []
    last = 6 if how.endswith("end") else 3

    def stop(epoch, accuracy):
        told.append(epoch)
        if epoch == last and len(told) == last:
            if how.startswith("SIGTERM"):
                signal.raise_signal(signal.SIGTERM)
            else:
                raise KeyboardInterrupt

    if how.startswith("killed"):
        monkeypatch.setattr(ScoringTrainer, "SECONDS", 0)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run_training(one, stop, folder)
    record = run_training(one, stop, folder)
    assert told == [*range(1, last + 1), *range(1, 7)]  # all are reported again
    for field in SAME:
        assert getattr(record, field) == getattr(whole, field), field
    assert len(record.epoch_s) == 6 and record.energy_j is None


def test_a_damaged_checkpoint_begins_anew(small, tmp_path, capsys):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "manifest.json").write_text("{")
    record = run_training(training_of("relu"), lambda *_: None, tmp_path / "one")
    assert len(record.epoch_s) == 3 and "begins anew" in capsys.readouterr().err


# As a user runs it


@pytest.fixture
def madelon(tmp_path, monkeypatch):
    """A small archive under Madelon's name; return a function that calls the tool."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((90, 500)), np.arange(90) % 2
    X[:, 0] += 3 * y
    parts = {"x_train": X[:70], "y_train": y[:70], "x_test": X[70:], "y_test": y[70:]}
    np.savez(tmp_path / "madelon.npz", **parts)
    monkeypatch.setenv("LARGESPARSE_DATA", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)


def call(*flags):
    common = ["--dataset", "Madelon", "--epochs", "3", "--backend", "scipy"]
    return run_command(lambda: command.main([*common, *flags]))


def test_a_table_is_run_once_and_drawn(madelon, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    only = ["--table", "2", "--only", "relu", "all_relu+pruning"]
    assert call(*only, "--plan") == 0
    assert "madelon all_relu+pruning, seed 0: 3 epochs" in capsys.readouterr().out
    assert not Path("paper.jsonl").exists()
    monkeypatch.setattr(LogLines, "SECONDS", 0)
    assert call(*only, "--jobs", "2") == 0
    shown, logged = capsys.readouterr()
    assert re.search(r"(?m)^trainings: \d of 6 epochs, \d+ min.* epoch \d, accuracy 0.\d+$", logged)
    assert not list(Path().glob("*unfinished*"))
    assert (
        "do not compare, are left out" in shown
        and "| paper" not in shown
        and "| all_relu+pruning | 1 " in shown
    )
    records = read_records("paper.jsonl")
    assert sorted(settings["network"]["activation"] for settings in records["settings"]) == [
        "all_relu",
        "relu",
    ]
    assert records["command"][0].startswith("largesparse paper --dataset Madelon")
    monkeypatch.delattr(command.Children, "run")  # nothing is left to run
    assert call(*only, "--figure", "4", "6") == 0
    assert Path("paper/figure-6-madelon.png").read_bytes().startswith(b"\x89PNG")
    assert call("--table", "2", "--no-run") == 0
    assert "not measured yet" in capsys.readouterr().out


def test_a_figure_without_records_says_what_makes_them_before_any_work(madelon, capsys):
    pytest.importorskip("matplotlib")
    assert call("--table", "5", "--figure", "19", "--no-run") == 2
    assert call("--table", "5", "--slopes", "0.3", "--figure", "5", "--seeds=2") == 2
    first, second = (line for line in capsys.readouterr().err.splitlines() if "error" in line)
    assert first.startswith("largesparse: error: Figure 19 has no data")
    common = "--dataset Madelon --epochs 3 --backend scipy"
    assert first.endswith(f"Make it by: largesparse paper --table 5 {common}")
    wanted = "largesparse paper --table 2 --only relu all_relu srelu"
    assert second.endswith(f"{wanted} {common} --slopes 0.3 --seeds=2")
    assert not Path("paper.jsonl").exists()
    assert call("--table", "2", "--no-run") == 0
    assert f"Make them by: largesparse paper --table 2 {common}" in capsys.readouterr().err


def test_matplotlib_is_asked_for_before_a_run(madelon, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delattr(command.Children, "run")
    monkeypatch.delattr(scaling, "climb")
    assert call("--table", "2", "--figure", "5") == 2
    assert run_command(lambda: scaling.main([])) == 2
    assert run_command(lambda: report.main([])) == 2
    assert capsys.readouterr().err.count("Plots need matplotlib: ") == 3


def test_a_child_that_fails_is_told_of(madelon, capsys):
    assert call("--table", "2", "--only", "relu", "--augment") == 2
    err = capsys.readouterr().err
    assert "1 of 1 trainings failed" in err and "no images to augment" in err
    assert "Traceback" not in err


def test_ctrl_c_ends_the_children(tmp_path, monkeypatch, capsys):
    (tmp_path / "sleeper.py").write_text("import time\nopen('begun', 'w')\ntime.sleep(300)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(jobs, "CHILD", "sleeper")
    ended = []

    def interrupted(futures):
        ended.extend(futures)
        while not Path("begun").exists():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "as_completed", interrupted)
    trainings = {"first": training_of("relu"), "second": training_of("all_relu")}
    with pytest.raises(KeyboardInterrupt):
        jobs.Children("out.jsonl", "command", jobs=1).run(trainings)
    assert all(future.done() for future in ended)
    assert "Repeat the command to go on" in capsys.readouterr().err


def test_what_does_not_fit_into_the_memory_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr("largesparse.training.memory.available_memory", lambda: 2**30)
    flags = ["--table", "2", "--dataset", "leukemia", "--only", "dense_relu"]  # 2.3e9 connections
    assert run_command(lambda: command.main(flags)) == 0
    found = capsys.readouterr()
    assert "leukemia dense_relu, seed 0: left out, " in found.err
    assert "not measured yet" in found.out


def test_a_parallel_training(madelon, capsys):
    if find_mpiexec() is None:
        pytest.skip("needs mpiexec: pip install '.[mpi]'")
    pytest.importorskip("mpi4py")
    assert call("--table", "3", "--only", "wasap", "--workers", "2") == 0
    assert "| wasap | 1 " in " ".join(capsys.readouterr().out.split())
    record = read_records("paper.jsonl").iloc[0]
    assert record["ranks"] == 3 and len(record["cpu_s"]) == 3
    assert record["phase_one_epochs"] == 2 and record["train_s"] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--table", "2", "--dataset", "mnist"], "'mnist' is no data set of the paper"),
        (["--table", "2"], "need --dataset"),
        (["--dataset", "higgs"], "say what"),
        (["--table", "2", "--only", "wasap", "--dataset", "higgs"], "None of the rows of --only"),
    ],
)
def test_mistakes_are_told_in_one_sentence(flags, message, capsys):
    try:
        code = run_command(lambda: command.main(flags))
    except SystemExit as end:
        code = end.code
    assert code == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err
