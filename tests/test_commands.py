"""train, predict, evaluate and inspect, as someone at a terminal uses them."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest

from largesparse import NetworkConfig, SparseMLP, Trainer, active_neurons, inference
from largesparse.checkpoint import load_model, save_checkpoint
from largesparse.cli import main
from largesparse.learning_curve import text_curve

QUICK = ["--epochs", "15", "--hidden", "30", "--backend", "scipy", "--threads", "1", "--quiet"]


def frame(n=240, seed=0):
    """Return a table with named columns of very different scales, and a target of words."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((n, 5))
    names = ["low", "middle", "high"]
    label = np.digitize(values[:, 0] + 0.1 * values[:, 3], [-0.6, 0.6])
    table = pd.DataFrame(
        values * [1000, 1, 0.001, 10, 1] + [5000, 0, 0, 0, 3], columns=list("abcde")
    )
    table["level"] = np.array(names)[label]
    table["amount"] = 100 + 20 * values[:, 0] + 5 * values[:, 1]
    return table


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a table and a model of it."""
    folder = tmp_path_factory.mktemp("commands")
    frame().drop(columns="amount").to_csv(folder / "train.csv", index=False)
    frame(100, seed=1).to_csv(folder / "new.csv", index=False)
    data = ["--data", str(folder / "train.csv"), "--target", "level"]
    assert main(["train", *data, "--out", str(folder / "model"), *QUICK]) == 0
    return folder


def test_training_tells_what_it_did(folder, tmp_path, capsys):
    data = ["--data", str(folder / "train.csv"), "--target", "level"]
    assert main(["train", *data, "--out", str(tmp_path / "model"), *QUICK]) == 0
    shown = capsys.readouterr().out
    assert "192 rows of 5 features to train on, 48 held out" in shown
    assert "15 epochs" in shown and "saved:" in shown and "loss " in shown
    score = float(shown.split("held out:")[1].split()[0])
    assert score > 0.7
    model = load_model(tmp_path / "model")
    assert model.feature_names == list("abcde")
    assert model.classes.tolist() == ["high", "low", "middle"]


def test_columns_are_found_by_name_and_scaled(folder, tmp_path, capsys):
    shuffled = frame(100, seed=1)[["e", "amount", "c", "a", "level", "b", "d"]]
    shuffled.to_csv(tmp_path / "shuffled.csv", index=False)
    predicted = []
    for data in (folder / "new.csv", tmp_path / "shuffled.csv"):
        out = tmp_path / "found.csv"
        options = ["--data", str(data), "--out", str(out), "--backend", "scipy", "--proba"]
        assert main(["predict", str(folder / "model"), *options]) == 0
        predicted.append(pd.read_csv(out))
    pd.testing.assert_frame_equal(*predicted)
    found = predicted[0]
    assert (found["prediction"] == frame(100, seed=1)["level"]).mean() > 0.7
    shares = found.filter(like="probability of ")
    assert list(shares) == [f"probability of {name}" for name in ("high", "low", "middle")]
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
    X = frame(100, seed=1)[list("abcde")].to_numpy(dtype=np.float32)
    expected = inference.predict_proba(load_model(folder / "model"), X)
    np.testing.assert_allclose(shares, expected, atol=1e-5)


def test_predictions_go_to_the_screen(folder, capsys):
    data = ["--data", str(folder / "new.csv"), "--backend", "scipy"]
    assert main(["predict", str(folder / "model"), *data]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "prediction" and len(lines) == 101


def test_evaluation_is_scikit_learns(folder, capsys):
    data = ["--data", str(folder / "new.csv"), "--target", "level", "--backend", "scipy"]
    assert main(["evaluate", str(folder / "model"), *data, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    X = frame(100, seed=1)[list("abcde")].to_numpy(dtype=np.float32)
    right = inference.predict(load_model(folder / "model"), X) == frame(100, seed=1)["level"]
    assert report["accuracy"] == pytest.approx(right.mean())
    assert main(["evaluate", str(folder / "model"), *data]) == 0
    assert "middle" in capsys.readouterr().out


def test_a_model_is_inspected(folder, capsys):
    assert main(["inspect", str(folder / "model"), "--features", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    model = load_model(folder / "model")
    assert found["classes"] == ["high", "low", "middle"]
    assert [layer["connections"] for layer in found["layers"]] == [x.nnz for x in model.layers]
    assert len(found["strongest features"]) == 2
    active = active_neurons(model)
    assert found["hidden neurons"] == model.neurons and found["active neurons"] == sum(active)
    assert [layer["active"] for layer in found["layers"]] == [*active, 3]
    assert main(["inspect", str(folder / "model")]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"layer +inputs +neurons +active +connections +density", shown)


def test_numbers_are_predicted_in_their_units(folder, tmp_path, capsys):
    table = frame(400).drop(columns="level")
    table.to_csv(tmp_path / "numbers.csv", index=False)
    model = str(tmp_path / "model")
    data = ["--data", str(tmp_path / "numbers.csv"), "--target", "amount"]
    assert main(["train", *data, "--out", model, *QUICK, "--epochs", "40"]) == 0
    assert "R² on the rows held out" in capsys.readouterr().out
    options = ["--target", "amount", "--json", "--backend", "scipy"]
    assert main(["evaluate", model, "--data", str(folder / "new.csv"), *options]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["R²"] > 0.6 and scores["mean absolute error"] < 15
    assert main(["predict", model, "--data", str(folder / "new.csv"), "--proba"]) == 2


def test_all_rows_can_be_trained_on(folder, tmp_path, capsys):
    data = ["--data", str(folder / "train.csv"), "--target", "level", "--test-fraction", "0"]
    assert main(["train", *data, "--out", str(tmp_path / "model"), *QUICK]) == 0
    shown = capsys.readouterr().out
    assert "240 rows" in shown and "held out" not in shown


def test_a_column_may_have_a_number_for_a_name(tmp_path, capsys):
    table = frame().drop(columns="amount").rename(columns={"level": "2020"})
    table.to_csv(tmp_path / "years.csv", index=False)
    data = ["--data", str(tmp_path / "years.csv"), "--target", "2020"]
    assert main(["train", *data, "--out", str(tmp_path / "model"), *QUICK]) == 0
    assert load_model(tmp_path / "model").classes.tolist() == ["high", "low", "middle"]


def test_an_archives_own_test_part_is_held_out(tmp_path, capsys):
    X = frame()[list("abcde")].to_numpy(dtype=np.float32)
    y = (X[:, 0] > 5000).astype(int)
    parts = {"x_train": X[:200], "y_train": y[:200], "x_test": X[200:], "y_test": y[200:]}
    np.savez(tmp_path / "data.npz", **parts)
    command = ["train", "--data", str(tmp_path / "data.npz"), "--out", str(tmp_path / "model")]
    assert main([*command, *QUICK]) == 0
    assert "200 rows of 5 features to train on, 40 held out" in capsys.readouterr().out


def test_a_curve_is_drawn(folder, tmp_path):
    pytest.importorskip("matplotlib")
    data = ["--data", str(folder / "train.csv"), "--target", "level"]
    picture = tmp_path / "curve.png"
    model = ["--out", str(tmp_path / "model"), "--plot", str(picture)]
    assert main(["train", *data, *model, *QUICK]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--target", "levle"], "level"),
        (["--target", "a", "--task", "classification"], "column 'level' has"),
        ([], "make it the target"),
        (["--target", "level", "--test-fraction", "1.5"], "test-fraction"),
        (["--target", "level", "--epochs", "0"], "positive"),
        (["--target", "level", "--hidden", "a,b"], "size"),
        (["--target", "level", "--activation", "gelu"], "activation"),
        (["--target", "level", "--zeta", "2"], "zeta"),
    ],
)
def test_mistakes_are_one_sentence(folder, tmp_path, capsys, change, message):
    data = ["--data", str(folder / "train.csv"), "--out", str(tmp_path / "model"), "--quiet"]
    assert_one_sentence(["train", *data, *change], message, capsys)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b,c,d\n1,2,3,4\n", "'e'"),
        ("a,b,c,d,e\n1,2,3,4,\n", "'e'|missing"),
        ("a,b,c,d,e\n1,2,3,4,red\n", "red"),
        ("", "empty"),
    ],
)
def test_bad_tables_are_told(folder, tmp_path, capsys, content, message):
    (tmp_path / "bad.csv").write_text(content)
    command = ["predict", str(folder / "model"), "--data", str(tmp_path / "bad.csv")]
    assert_one_sentence(command, message, capsys)


def archive(path, **changes):
    X = frame()[list("abcde")].to_numpy(dtype=np.float32)
    y = (X[:, 0] > 5000).astype(int)
    parts = {"x_train": X[:200], "y_train": y[:200], "x_test": X[200:], "y_test": y[200:]}
    np.savez(path, **parts | changes)
    return ["train", "--data", str(path), *QUICK]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": np.zeros((40, 4), np.float32)}, "rows to test on: .*4"),
        ({"x_test": np.full((40, 5), np.nan)}, "rows to test on: .*NaN"),
        ({"y_test": np.array(["a", "b"] * 20)}, "rows to test on: .*text"),
        ({"y_test": np.zeros(39, int)}, "rows to test on: .*39|y_test"),
    ],
)
def test_rows_that_cannot_be_tested_on_are_told_before_training(
    tmp_path, capsys, monkeypatch, changes, message
):
    monkeypatch.setattr(Trainer, "fit", lambda *_, **__: pytest.fail("trained"))
    command = archive(tmp_path / "data.npz", **changes)
    assert_one_sentence([*command, "--out", str(tmp_path / "model")], message, capsys)


def test_places_that_cannot_be_written_are_told_before_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Trainer, "fit", lambda *_, **__: pytest.fail("trained"))
    command = archive(tmp_path / "data.npz")
    (tmp_path / "file").write_text("x")
    trained = Trainer(SparseMLP(NetworkConfig((5, 4, 2)), progress=False))
    save_checkpoint(trained, tmp_path / "run")
    for out, message in (
        ("file", "not a folder"),
        ("file/model", "Not a directory|cannot find"),
        ("run", "checkpoint of a training .after epoch 0."),
    ):
        assert_one_sentence([*command, "--out", str(tmp_path / out)], message, capsys)
    pytest.importorskip("matplotlib")
    for plot, message in (("no/curve.png", "does not exist"), ("curve.docx", "no picture format")):
        options = ["--out", str(tmp_path / "model"), "--plot", str(tmp_path / plot)]
        assert_one_sentence([*command, *options], message, capsys)
    assert not (tmp_path / "model").exists()


def test_the_working_directory_can_be_the_model(tmp_path, monkeypatch):
    command = archive(tmp_path / "data.npz")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for _ in range(2):
        assert main([*command, "--out", "."]) == 0
        assert load_model(tmp_path / "here").neurons == 30


def test_a_model_that_cannot_be_saved_at_the_end_is_saved_beside(tmp_path, monkeypatch, capsys):
    command = archive(tmp_path / "data.npz")
    fit = Trainer.fit

    def fit_and_be_in_the_way(*arguments, **options):
        (tmp_path / "model").write_text("precious")
        return fit(*arguments, **options)

    monkeypatch.setattr(Trainer, "fit", fit_and_be_in_the_way)
    assert main([*command, "--out", str(tmp_path / "model")]) == 2
    (place,) = tmp_path.glob("model-*")
    shown = capsys.readouterr()
    assert f"saved: {place}" in shown.out and "held out:" in shown.out
    assert f"The model is in {place}." in shown.err and "Traceback" not in shown.err
    assert load_model(place).neurons == 30
    assert (tmp_path / "model").read_text() == "precious"


def test_a_missing_model_is_told(tmp_path, capsys):
    assert_one_sentence(["inspect", str(tmp_path / "none")], "no model", capsys)


def assert_one_sentence(command, message, capsys):
    try:
        code = main(command)
    except SystemExit as stop:  # argparse's own mistakes
        code = stop.code
    assert code == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert re.search(message, errors), errors


def test_curves_go_from_left_to_right():
    curve = text_curve([4.0, 3.0, 2.0, 1.0])
    assert curve == "loss 4 █▆▃▁ 1"
    assert text_curve([]) == ""
    assert len(text_curve(list(range(500)))) < 90
