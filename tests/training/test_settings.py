"""How the tables' networks are trained: the rule, the published settings, and how it was chosen."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest
from helpers import load_tool

from largesparse import NetworkConfig, SparseMLP, read_records
from largesparse.errors import ParameterError
from largesparse.paper import reported as paper
from largesparse.paper.run import prepare_augmentation
from largesparse.paper.settings import SETTINGS, Rule
from largesparse.paper.trainings import Protocol, rows_of


@pytest.fixture(scope="module")
def tool():
    return load_tool("choose_settings")


def training_of(dataset, **protocol):
    (row,) = rows_of(2, dataset, Protocol(**protocol), only=["all_relu"])
    return row.trainings[0]


@pytest.mark.parametrize("dataset", paper.TASKS)
def test_the_paper_s_settings_are_table_7(dataset):
    used = training_of(dataset, settings="paper")
    rate = 0.005 if dataset == "leukemia" else 0.01
    config = used.training
    assert (config.learning_rate, config.schedule, config.warmup_epochs) == (rate, "constant", 0)
    assert (config.weight_decay, config.zeta, config.zeta_decay) == (2e-4, 0.3, 1)
    assert (config.dropout, config.momentum, config.epochs) == (0.3, 0.9, 500)
    assert used.augment == (dataset == "cifar10")
    assert (
        used.network.initializer
        == {
            "leukemia": "normal",
            "higgs": "xavier",
            "madelon": "normal",
            "fashion_mnist": "he_uniform",
            "cifar10": "he_uniform",
        }[dataset]
    )


def test_what_was_tuned_has_its_own_name():
    used = {name: training_of(name, settings="tuned") for name in paper.TASKS}
    assert {name: one.training.weight_decay for name, one in used.items()} == {
        "leukemia": 2e-4,
        "higgs": 1e-5,
        "madelon": 6e-4,
        "fashion_mnist": 2e-5,
        "cifar10": 2e-4,
    }
    assert used["fashion_mnist"].training.zeta_decay == 0.995


@pytest.mark.parametrize(
    ("dataset", "rate", "last_rate", "decay", "last_zeta", "dropout", "augment"),
    [  # by hand: 60,000, 50,000 and 105,000 rows leave 1/30, 1/25 and 2/105; 2000 and 1397 all
        ("fashion_mnist", 0.0547723, 0.00182574, 7.30297e-5, 0.01, 0.3, False),
        ("cifar10", 0.05, 0.002, 3e-5, 0.012, 0.1, True),
        ("higgs", 0.0724569, 0.00138013, 5.52053e-5, 0.00571429, 0.3, False),
        ("madelon", 0.01, 0.01, 4e-4, 0.3, 0.3, False),
        ("leukemia", 0.005, 0.005, 2.86328e-4, 0.3, 0.3, False),
    ],
)
def test_the_rule_by_hand(dataset, rate, last_rate, decay, last_zeta, dropout, augment):
    for epochs in (500, 30):
        used = training_of(dataset, epochs=epochs)
        config = used.training
        assert config.learning_rate == pytest.approx(rate, rel=1e-5)
        assert config.weight_decay == pytest.approx(decay, rel=1e-5)
        assert config.zeta * config.zeta_decay**epochs == pytest.approx(last_zeta, rel=1e-5)
        rates = config.rates()
        left = last_rate / rate
        end = left ** ((epochs - 1) / epochs)  # in the last epoch
        assert rates.factor(epochs - 1e-9) == pytest.approx(end, rel=1e-4)
        assert rates.factor(0) == (0 if left < 1 else 1)  # η rises where it falls later
        assert (config.dropout, used.augment) == (dropout, augment)
        assert used.network.regrowth == "initial"


def test_fewer_rows_are_regularised_more():
    """λ/η and what is left of ζ and η never rise with the rows."""
    rule, before = Rule(), None
    for rows in (100, 1000, 2000, 2001, 20_000, 10**6):
        found = rule("higgs", rows, 200)
        left = found.zeta_decay**200
        last_rate = found.learning_rate * found.decay_factor**200
        assert found.learning_rate * last_rate == pytest.approx(0.01**2)
        now = found.weight_decay / found.learning_rate, left
        if before is not None:
            assert now[0] < before[0] and now[1] <= before[1]
        before = now
    assert rule("higgs", 2000, 200).schedule == "constant"
    assert math.isclose(rule("higgs", 4000, 200).zeta_decay ** 200, 0.5)


@pytest.mark.parametrize(
    ("table", "name"), [(2, "dense_all_relu"), (2, "mlp_classifier"), (3, "wassp"), (3, "wasap")]
)
def test_dense_networks_and_several_workers_keep_table_7_s_rate(table, name):
    (row,) = rows_of(table, "cifar10", Protocol(), only=[name])
    config = row.trainings[0].training
    assert (config.learning_rate, config.schedule, config.warmup_epochs) == (0.01, "constant", 0)
    assert config.weight_decay == pytest.approx(6e-6)
    assert (config.zeta_decay, config.dropout) == (1, 0.1)


def test_flags_change_the_settings_one_by_one():
    used = training_of("madelon", weight_decay=0.0, schedule="cosine", augment=True)
    assert (used.training.weight_decay, used.training.schedule, used.augment) == (0, "cosine", True)
    assert used.training.learning_rate == 0.01
    fewer_rows = training_of("madelon", train_samples=1000)
    assert fewer_rows.training.weight_decay == pytest.approx(8e-4)
    with pytest.raises(ParameterError, match=r"'decay_factor' .* add --schedule step"):
        training_of("madelon", settings="paper", decay_factor=0.99)
    stepped = training_of("madelon", settings="paper", schedule="step", decay_factor=0.5)
    assert [stepped.training.rates().factor(epoch) for epoch in (0, 1, 2.5)] == [1, 0.5, 0.25]
    assert Protocol().settings == "rule"
    with pytest.raises(ParameterError, match=f"must be one of {re.escape(str(sorted(SETTINGS)))}"):
        Protocol(settings="best")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """An archive under Madelon's name, with a small network; return its training rows."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((120, 12)), np.arange(120) % 2
    X[:, 0] += 3 * y
    parts = {
        "x_train": X,
        "y_train": y,
        "x_test": np.full((9, 12), 9.0),
        "y_test": np.arange(9) % 2,
    }
    np.savez(tmp_path / "madelon.npz", **parts)
    task = paper.TASKS["madelon"]._replace(layer_sizes=(12, 20, 15, 2), batch_size=16)
    monkeypatch.setitem(paper.TASKS, "madelon", task)
    monkeypatch.setenv("LARGESPARSE_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return X


def test_folds_are_of_the_training_part(tool, small):
    data = tool.load(training_of("madelon"))
    parts = [tool.hold_out(data, fold, 5, 60) for fold in range(5)]
    assert all(len(part.y_train) == 60 and len(part.y_test) == 24 for part in parts)
    held = np.concatenate([part.X_test for part in parts])
    np.testing.assert_array_equal(np.sort(held, axis=0), np.sort(small, axis=0))  # once each
    for part in parts:
        assert not set(part.X_test[:, 0]) & set(part.X_train[:, 0])
    with pytest.raises(ParameterError, match="must be at most 96"):
        tool.hold_out(data, 0, 5, 97)


def test_candidates_are_compared_once(tool, small, capsys):
    flags = ["--dataset", "Madelon", "--folds", "4", "--seeds", "2", "--epochs", "4"]
    more = ["--settings", "paper", "--prior", "0", "6"]
    assert tool.main([*flags, *more, "--backend", "scipy"]) == 0
    shown = capsys.readouterr().out
    assert "madelon, 90 training rows, 4 epochs" in shown
    lines = {line.rsplit(maxsplit=6)[0].strip(): line.split() for line in shown.splitlines()[2:]}
    assert list(lines) == ["paper", "prior 0", "prior 6"]
    records = read_records("choice.jsonl")
    assert set(records["dataset"]) == {"madelon, fold 0 of 4", "madelon, fold 1 of 4"}
    assert set(records["test_samples"]) == {30} and set(records["kind"]) == {"choose_settings"}
    decays = [one["training"]["weight_decay"] for one in records["settings"]]
    assert decays == pytest.approx([2e-4] * 2 + [0.0] * 2 + [0.1 * 6 / 90] * 2)
    ours = [one for one in records["accuracy"][4:]]
    best = 100 * np.mean([max(curve[1:]) for curve in ours])
    assert float(lines["prior 6"][3]) == pytest.approx(best, abs=0.006)
    assert tool.main([*flags, *more, "--backend", "scipy"]) == 0
    assert capsys.readouterr().out == shown and len(read_records("choice.jsonl")) == 6


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "mnist"], "'mnist' is no data set of the paper"),
        (["--dataset", "madelon", "--folds", "1"], "--folds must be 2 or more"),
        (["--dataset", "madelon", "--seeds", "9"], "--seeds from 1 to that"),
        (["--dataset", "madelon", "--prior", "-1"], "'prior'"),
        (["--dataset", "madelon", "--annealed-rows", "0"], "'annealed_rows'"),
        (["--dataset", "madelon", "--rows", "5k"], "must be at most 100"),
    ],
)
def test_mistakes_are_told_in_one_sentence(tool, small, flags, message, capsys):
    try:
        code = tool.run_command(lambda: tool.main(flags))
    except SystemExit as end:
        code = end.code
    assert code == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


def test_augmented_images_are_standardised_as_they_are_trained_on():
    """Images whose border is nearly always 0 have other pixels there once they are shifted."""
    rng = np.random.default_rng(0)
    X = np.zeros((300, 28, 28), np.uint8)
    X[:, 2:26, 2:26] = rng.integers(0, 256, (300, 24, 24))
    X[7, 0, 14] = 1  # of this pixel's column the only row that is not 0
    X = X.reshape(300, 784)
    training = training_of("fashion_mnist", augment=True)
    network = SparseMLP(NetworkConfig((784, 5, 10)))
    augment = prepare_augmentation(training, network, X)
    rows = np.arange(300)
    changed = augment(X.astype(np.float32), rows, 0)
    np.testing.assert_allclose(network.preprocessing.mean, changed.mean(axis=0), rtol=1e-4)
    expected = 1 / changed.std(axis=0, dtype=np.float64)
    np.testing.assert_allclose(network.preprocessing.scale, expected, rtol=1e-4)
    later = augment(X.astype(np.float32), rows, 5)[:, 14]
    mean, scale = network.preprocessing.mean[14], network.preprocessing.scale[14]
    assert np.abs((later - mean) * scale).max() < 10
    assert np.abs((later - X[:, 14].mean()) / X[:, 14].std()).max() > 1000  # what it was
    plain = dataclasses.replace(training, augment=False)
    network = SparseMLP(NetworkConfig((784, 5, 10)))
    assert prepare_augmentation(plain, network, X) is None and network.preprocessing is None
