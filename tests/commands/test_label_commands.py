"""train, evaluate and predict on rows that have several labels."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import save_npz

from largesparse import load_model, make_extreme_classification, precision_at_k
from largesparse.commands.main import main
from largesparse.training.prediction import predict_top

QUICK = ["--epochs", "8", "--hidden", "60", "--backend", "fused", "--threads", "1", "--quiet"]


def write_text(path, X, Y):
    """Write text of extreme classification."""
    lines = [f"{X.shape[0]} {X.shape[1]} {Y.shape[1]}"]
    for i in range(X.shape[0]):
        part = slice(X.indptr[i], X.indptr[i + 1])
        pairs = zip(X.indices[part], X.data[part], strict=True)
        labels = ",".join(map(str, Y.indices[Y.indptr[i] : Y.indptr[i + 1]]))
        lines.append(f"{labels} {' '.join(f'{j}:{value:.8g}' for j, value in pairs)}")
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def made():
    return make_extreme_classification(600, 150, 20, nonzeros=15, labels_per_row=2)


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    """Return a folder with text to train on and to test on, and a model."""
    folder = tmp_path_factory.mktemp("labels")
    write_text(folder / "train.txt", made.X_train, made.y_train)
    write_text(folder / "test.txt", made.X_test, made.y_test)
    data = ["--data", str(folder / "train.txt"), "--test", str(folder / "test.txt")]
    assert main(["train", *data, "--out", str(folder / "model"), *QUICK]) == 0
    return folder


def test_training_on_text_tells_its_precision(folder, made, tmp_path, capsys):
    data = ["--data", str(folder / "train.txt"), "--test", str(folder / "test.txt")]
    assert main(["train", *data, "--out", str(tmp_path / "model"), *QUICK]) == 0
    shown = capsys.readouterr().out
    assert "480 rows of 150 features to train on, 120 held out" in shown
    assert "has 20 labels, 1.91 a row" in shown
    network = load_model(tmp_path / "model")
    labels, _ = predict_top(network, made.X_test, 5)
    found = [f"P@{k} {precision_at_k(made.y_test, labels, k):.4f}" for k in (1, 3, 5)]
    assert f"precision on the rows held out:    {', '.join(found)}" in shown


def test_evaluation_of_labels(folder, made, capsys):
    arguments = ["evaluate", str(folder / "model"), "--data", str(folder / "test.txt")]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    labels, _ = predict_top(load_model(folder / "model"), made.X_test, 5)
    for k in (1, 3, 5):
        assert found[f"P@{k}"] == pytest.approx(precision_at_k(made.y_test, labels, k))
    assert found["rows"] == 120
    assert main(arguments) == 0
    assert f"P@1     {found['P@1']:.6g}" in capsys.readouterr().out


@pytest.mark.parametrize("top", [None, 3])
def test_prediction_of_labels(folder, made, tmp_path, top):
    arguments = ["predict", str(folder / "model"), "--data", str(folder / "test.txt")]
    flags = [] if top is None else ["--top", str(top)]
    assert main([*arguments, *flags, "--out", str(tmp_path / "out.csv")]) == 0
    table = pd.read_csv(tmp_path / "out.csv")
    labels, scores = predict_top(load_model(folder / "model"), made.X_test, top or 5)
    assert list(table)[:2] == ["label 1", "probability 1"]
    assert np.array_equal(table.iloc[:, ::2].to_numpy(), labels)
    np.testing.assert_allclose(table.iloc[:, 1::2].to_numpy(), scores, rtol=1e-5)


def test_labels_in_a_file_of_their_own(made, tmp_path, capsys):
    save_npz(tmp_path / "X.npz", made.X_train)
    save_npz(tmp_path / "Y.npz", made.y_train)
    data = ["--data", str(tmp_path / "X.npz"), "--labels", str(tmp_path / "Y.npz")]
    assert main(["train", *data, "--out", str(tmp_path / "model"), *QUICK]) == 0
    shown = capsys.readouterr().out
    assert "384 rows of 150 features to train on, 96 held out" in shown
    assert "precision on the rows held out:    P@1 0." in shown
    assert main(["inspect", str(tmp_path / "model")]) == 0
    assert "multilabel" in capsys.readouterr().out


def test_arff_of_several_labels(tmp_path, capsys):
    rng = np.random.default_rng(0)
    Y = rng.random((60, 3)) < 0.5
    X = np.hstack([Y, rng.random((60, 2))]).round(3)
    head = ["@RELATION 'own: -C 3'", *(f"@ATTRIBUTE label{k} {{0,1}}" for k in range(3))]
    head += [f"@ATTRIBUTE x{k} NUMERIC" for k in range(5)]
    rows = [",".join([*map(str, y), *map(str, x)]) for y, x in zip(Y.astype(int), X, strict=True)]
    path = tmp_path / "rows.arff"
    path.write_text("\n".join([*head, "@DATA", *rows, ""]))
    out = str(tmp_path / "model")
    assert main(["train", "--data", str(path), "--out", out, *QUICK]) == 0
    assert "48 rows of 5 features to train on, 12 held out" in capsys.readouterr().out
    assert main(["evaluate", out, "--data", str(path), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) >= {"P@1", "P@3"}
    few = [line.split(",", 3)[-1] for line in rows]  # without labels
    path.write_text("\n".join([head[0], *head[4:], "@DATA", *few, ""]))
    table = str(tmp_path / "out.csv")
    assert main(["predict", out, "--data", str(path), "--top", "1", "--out", table]) == 0
    assert len(pd.read_csv(table)) == 60


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--folds", "3"], "--folds is for one label a row"),
        (["--balanced"], "--balanced is for one label a row"),
        (["--task", "regression"], "--task regression does not fit"),
        (["--test", "{}/test.txt", "--test-fraction", "0.5"], "Leave one of the flags out"),
        (["--test", "{}/test.txt", "--folds", "3"], "--folds and --test exclude each other"),
        (["--test", "{}/none.txt"], "There is no file"),
    ],
)
def test_flags_that_do_not_fit_are_refused(folder, tmp_path, capsys, flags, message):
    flags = [flag.format(folder) for flag in flags]
    data = ["--data", str(folder / "train.txt"), "--out", str(tmp_path / "model")]
    assert main(["train", *data, *flags, *QUICK]) == 2
    assert message in capsys.readouterr().err


def test_flags_of_prediction_that_do_not_fit_are_refused(folder, capsys):
    arguments = ["predict", str(folder / "model"), "--data", str(folder / "test.txt")]
    assert main([*arguments, "--proba"]) == 2
    assert "Say --top 20" in capsys.readouterr().err
    assert main([*arguments, "--top", "21"]) == 2
    assert "'k' parameter of predict_top" in capsys.readouterr().err


def test_rows_to_test_on_may_be_a_table_of_columns(tmp_path, capsys):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.standard_normal((120, 3)), columns=list("abc"))
    table["y"] = np.where(table.a > 0, "yes", "no")
    table[:80].to_csv(tmp_path / "train.csv", index=False)
    table[80:].iloc[:, ::-1].to_csv(tmp_path / "test.csv", index=False)
    data = ["--data", str(tmp_path / "train.csv"), "--test", str(tmp_path / "test.csv")]
    out = ["--out", str(tmp_path / "model")]
    assert main(["train", *data, "--target", "y", *out, *QUICK]) == 0
    shown = capsys.readouterr().out
    assert "80 rows of 3 features to train on, 40 held out" in shown
    assert float(shown.split("held out:")[1].split()[0]) > 0.8
