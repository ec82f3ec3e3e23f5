"""Scores beside what chance gives, cross-validation, and the rows held out by epoch."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.dummy import DummyClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from largesparse import SparseMLPClassifier, SparseMLPRegressor, load_model
from largesparse.commands.learning_curve import HeldOutScores
from largesparse.commands.main import main
from largesparse.commands.scores import accuracy, cross_validate

QUICK = ["--epochs", "15", "--hidden", "30", "--backend", "scipy", "--threads", "1", "--quiet"]


def patients(path, n=90, seed=0):
    """Write a table with a name a row, a colour, and a class that both features tell."""
    rng = np.random.default_rng(seed)
    size = rng.normal(size=n)
    colour = rng.choice(["red", "blue"], n)
    kind = np.where(size + (colour == "red") > 0.3, "ill", "well")
    frame = pd.DataFrame({"patient": [f"p{k}" for k in range(n)], "size": size, "colour": colour})
    frame.assign(kind=kind).to_csv(path, index=False)
    return frame.assign(kind=kind)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a table, and a model of it that has encoded text."""
    folder = tmp_path_factory.mktemp("scores")
    patients(folder / "train.csv")
    patients(folder / "new.csv", 40, seed=1)
    flags = ["--target", "kind", "--id", "patient", "--categorical"]
    out = ["--out", str(folder / "model")]
    assert main(["train", "--data", str(folder / "train.csv"), *flags, *out, *QUICK]) == 0
    return folder


def test_names_of_rows_stand_beside_predictions(folder, capsys):
    model, data = str(folder / "model"), ["--data", str(folder / "new.csv")]
    assert load_model(model).feature_names == ["size", "colour=blue", "colour=red"]
    capsys.readouterr()
    assert main(["predict", model, *data, "--backend", "scipy"]) == 0
    lines = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["patient", "prediction"]
    known = pd.read_csv(folder / "new.csv")
    assert [name for name, _ in lines[1:]] == known["patient"].tolist()
    right = np.array([label for _, label in lines[1:]]) == known["kind"]
    assert right.mean() > 0.8
    assert main(["evaluate", model, *data, "--target", "kind", "--backend", "scipy"]) == 0
    found = accuracy(right.to_numpy(), known["kind"].to_numpy())
    shown = capsys.readouterr().out.splitlines()[0]
    assert shown.startswith(f"accuracy {found.share:.4f} of 40 rows (95 % interval {found.low:.4f}")
    assert main(["predict", model, *data, "--missing", "drop"]) == 2
    assert "without a prediction" in capsys.readouterr().err


def test_unseen_categories_are_told_once(folder, tmp_path, capsys):
    frame = pd.read_csv(folder / "new.csv").replace({"colour": {"red": "green"}})
    frame.to_csv(tmp_path / "new.csv", index=False)
    command = ["predict", str(folder / "model"), "--data", str(tmp_path / "new.csv")]
    assert main([*command, "--backend", "scipy"]) == 0
    shown = capsys.readouterr()
    assert shown.err.count("warning:") == 1 and "'colour=green'" in shown.err
    assert len(shown.out.splitlines()) == 41


def test_a_table_of_many_categories(tmp_path, capsys):
    rng = np.random.default_rng(0)
    codes = rng.integers(60, size=(1500, 2))
    likes = rng.standard_normal((2, 60))[[0, 1], codes].sum(axis=1) + 0.3 * rng.logistic(size=1500)
    frame = pd.DataFrame(codes, columns=["town", "trade"]).add_prefix("t").astype(str)
    frame = ("k" + frame).assign(age=rng.normal(50, 9, 1500), y=np.where(likes > 0, "yes", "no"))
    frame.loc[::9, "age"] = np.nan
    frame.loc[::11, "ttown"] = np.nan
    paths = [str(tmp_path / name) for name in ("train.csv", "test.csv", "model", "found.csv")]
    frame[:1200].to_csv(paths[0], index=False)
    new = frame[1200:].assign(ttrade=frame["ttrade"][1200:].where(codes[1200:, 1] > 2, "new"))
    new.loc[1201, "ttown"] = "other"
    new.to_csv(paths[1], index=False)
    command = ["train", "--data", paths[0], "--test", paths[1], "--target", "y", "--out", paths[2]]
    command += ["--categorical", "auto", "--missing", "indicator", *QUICK]
    assert main(command) == 0
    shown = capsys.readouterr().out
    unseen = ((new["ttrade"] == "new") | (new["ttown"] == "other")).sum()
    assert shown.count("warning") == 1 and f"warning: {unseen} rows have a category" in shown
    network = load_model(paths[2])
    assert network.feature_names[0] == "ttown=?" and network.feature_names[-2:] == ["age", "age=?"]
    new.drop(columns="y")[["age", "ttrade", "ttown"]].to_csv(paths[1], index=False)
    predict = ["predict", paths[2], "--data", paths[1], "--out", paths[3], "--backend", "scipy"]
    assert main(predict) == 0
    shown = capsys.readouterr().err
    assert shown.count("warning") == 1 and "'ttown=other', 'ttrade=new'" in shown
    found = (pd.read_csv(paths[3])["prediction"] == new["y"].to_numpy()).mean()
    pipeline = make_pipeline(
        make_column_transformer(
            (OneHotEncoder(handle_unknown="ignore"), ["ttown", "ttrade"]),
            (SimpleImputer(add_indicator=True), ["age"]),
        ),
        LogisticRegression(max_iter=1000),
    )
    reached = pipeline.fit(frame[:1200], frame["y"][:1200]).score(new, new["y"])
    assert found > reached - 0.03 > 0.6


def test_an_accuracy_has_wilsons_interval_and_a_baseline():
    y = np.array(["a"] * 30 + ["b"] * 10)
    found = accuracy(np.arange(40) < 34, y)
    z, p, n = 1.959964, 34 / 40, 40  # Wilson (1927), by hand
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half), abs=1e-5)
    assert found.share == p
    X = np.zeros((40, 1))
    assert found.baseline == DummyClassifier().fit(X, y).score(X, y)
    assert str(found) == "0.8500 (95 % interval 0.7093 to 0.9294; always 'a': 0.7500)"


def test_folds_test_every_row_once(capsys):
    X, y = np.arange(20.0)[:, None], np.array([0, 1] * 10)

    class Remembers:
        class_weight = None

        def fit(self, X, y):
            self.known = set(X[:, 0])
            assert len(X) in (15, 16) and abs(np.mean(y) - 0.5) < 0.05
            return self

        def predict(self, X):
            assert not self.known & set(X[:, 0])
            return np.where(X[:, 0] < 10, X[:, 0].astype(int) % 2, 0)

    told = cross_validate(Remembers, X, y, 4, 0)
    assert told.startswith("accuracy by 4 folds: 0.7500 (95 % interval")
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_a_training_by_folds(folder, tmp_path, capsys):
    flags = ["--target", "kind", "--id", "patient", "--categorical", "colour", "--folds", "3"]
    command = ["train", "--data", str(folder / "train.csv"), *flags, *QUICK]
    assert main([*command, "--out", str(tmp_path / "model")]) == 0
    shown = capsys.readouterr().out
    assert "90 rows of 3 features to train on\n" in shown
    assert "fold 3 of 3: accuracy" in shown and "accuracy by 3 folds: 0." in shown
    assert "always '" in shown.split("on the rows trained on:")[1].splitlines()[0]
    assert main([*command, "--out", str(tmp_path / "model"), "--folds", "1"]) == 2
    assert "'--folds' parameter" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "other"), "--folds", "91"]) == 2
    frame = pd.read_csv(folder / "train.csv").assign(amount=lambda table: 3.5 * table["size"])
    frame.to_csv(tmp_path / "own.csv", index=False)
    drop = ["--target", "amount", "--drop", "patient", "colour", "kind", "--folds", "3"]
    command = ["train", "--data", str(tmp_path / "own.csv"), *drop, *QUICK]
    assert main([*command, "--out", str(tmp_path / "model")]) == 0
    assert "R² by 3 folds: " in capsys.readouterr().out


def test_rows_held_out_are_scored_by_epoch(folder):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4))
    y = (X[:, 0] > 0).astype(int)
    options = {"max_epochs": 4, "hidden_layer_sizes": (20,), "backend": "scipy", "random_state": 0}
    plain = SparseMLPClassifier(**options).fit(X[:40], y[:40])
    regressor = SparseMLPRegressor(**options)
    regressor._callbacks = (HeldOutScores(regressor, X[40:], 9 + X[40:, 0]),)
    regressor.fit(X[:40], 9 + X[:40, 0])
    expected = regressor.score(X[40:], 9 + X[40:, 0])
    assert regressor.history_["test_accuracy"][-1] == pytest.approx(expected)
    watched = SparseMLPClassifier(**options)
    watched._callbacks = (HeldOutScores(watched, X[40:], y[40:]),)
    watched.fit(X[:40], y[:40])
    assert watched.history_["test_accuracy"][-1] == watched.score(X[40:], y[40:])
    assert None not in watched.history_["test_accuracy"][1:]
    np.testing.assert_array_equal(watched.predict_proba(X), plain.predict_proba(X))


def wide(path, rows=24, numbers=False):
    """Write more features than rows, of which the first two tell the target."""
    X = np.random.default_rng(0).normal(size=(rows, 60)).round(3)
    X[:, 1] = 0.2 * X[:, 1] - X[:, 0]
    y = X[:, 0] - X[:, 1]
    table = pd.DataFrame(X, columns=[f"g{k}" for k in range(60)])
    table.assign(y=y if numbers else np.where(y > 0, "up", "down")).to_csv(path, index=False)


def train_wide(folder, *more, numbers=False, rows=24):
    wide(folder / "wide.csv", rows, numbers)
    command = ["train", "--data", str(folder / "wide.csv"), "--target", "y", "--backend", "scipy"]
    return main([*command, "--hidden", "30", "--out", str(folder / "model"), *more])


@pytest.mark.parametrize(("numbers", "name"), [(False, "logistic"), (True, "ridge")])
def test_a_linear_start_is_told_and_one_epoch_is_no_curve(tmp_path, capsys, numbers, name):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "curve.svg"
    assert train_wide(tmp_path, "--plot", str(plot), "--folds", "2", numbers=numbers) == 0
    out, err = capsys.readouterr()
    assert f"\n{name} regression and 1 epoch in " in out
    assert err.splitlines()[-1].startswith("epoch 1 of 20: loss ")
    losses = [line for line in out.splitlines() if line.startswith("loss ")]
    assert len(losses) == 1 and float(losses[0].removeprefix("loss ")) >= 0
    picture = plot.read_text()
    assert "<!-- 1 -->" in picture and "legend" not in picture  # folds hold nothing out
    assert "fill: #1f77b4" in picture  # a marker: a line of one point is not seen


def test_inspect_finds_the_features_of_a_linear_start(tmp_path, capsys):
    assert train_wide(tmp_path, "--quiet", rows=50) == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "model"), "--features", "2", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["strongest features"]) == {"g0", "g1"}


@pytest.mark.parametrize(
    ("rows", "folds", "message"), [(9, "5", r"range \[2, 4\]"), (3, "2", "3 rows are too few")]
)
def test_folds_of_a_regression_have_two_rows(tmp_path, capsys, rows, folds, message):
    assert train_wide(tmp_path, "--folds", folds, numbers=True, rows=rows) == 2
    assert re.search(message, capsys.readouterr().err)


def test_evaluations_in_json_have_an_interval(folder, capsys):
    command = ["evaluate", str(folder / "model"), "--data", str(folder / "new.csv")]
    capsys.readouterr()
    assert main([*command, "--target", "kind", "--json", "--backend", "scipy"]) == 0
    report = json.loads(capsys.readouterr().out)
    low, high = report["95 % interval of the accuracy"]
    assert low < report["accuracy"] <= high
    assert report["always the most frequent class"] == pytest.approx(
        pd.read_csv(folder / "new.csv")["kind"].value_counts(normalize=True).max()
    )


def test_genes_in_rows_from_the_shell(tmp_path, capsys):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 40))
    samples = [f"s{k}" for k in range(40)]
    genes = pd.DataFrame(values, index=[f"g{k}" for k in range(5)], columns=samples)
    genes.to_csv(tmp_path / "genes.txt", sep="\t", index_label="gene")
    labels = pd.DataFrame(
        {"sample": samples[::-1], "kind": np.where(values[0] > 0, "a", "b")[::-1]}
    )
    labels.to_csv(tmp_path / "labels.csv", index=False)
    data = ["--data", str(tmp_path / "genes.txt"), "--labels", str(tmp_path / "labels.csv")]
    command = ["train", *data, "--out", str(tmp_path / "model"), *QUICK]
    assert main(command) == 2  # rows are taken for samples, which have names of text
    assert "pass transpose=True (--transpose)" in capsys.readouterr().err
    command.append("--transpose")
    assert main([*command, "--test-fraction", "0"]) == 0
    capsys.readouterr()
    model = str(tmp_path / "model")
    assert main(["evaluate", model, *data, "--backend", "scipy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] > 0.8
    assert main(["predict", model, "--data", data[1], "--backend", "scipy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "sample,prediction" and lines[1].startswith("s0,")


def test_a_guess_is_one_line(tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.random((40, 2)).round(3), np.arange(40) % 2])
    pd.DataFrame(rows).to_csv(tmp_path / "own.data", index=False, header=False)
    data = ["--data", str(tmp_path / "own.data"), "--target", "2", "--task", "classification"]
    out = ["--out", str(tmp_path / "model"), *QUICK]
    assert main(["train", *data, *out]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "first line" in line]
    assert len(told) == 1 and "--header yes" in told[0] and "0 to 2" in told[0]
    assert main(["train", *data, *out, "--no-header"]) == 0
    assert "first line" not in capsys.readouterr().out
