"""train, predict, evaluate and inspect, as someone at a terminal uses them."""

from __future__ import annotations

import json
import os
import re
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

import largesparse
from largesparse import (
    NetworkConfig,
    SparseMLP,
    SparseMLPClassifier,
    Trainer,
    active_neurons,
    load_model,
    save_checkpoint,
)
from largesparse.commands.learning_curve import text_curve
from largesparse.commands.main import main
from largesparse.model.density import hidden_connections
from largesparse.training import prediction as inference

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


def test_rules_of_evolution_can_be_named(folder, tmp_path):
    data = ["--data", str(folder / "train.csv"), "--target", "level"]
    names = ["--drop-rule", "soft", "--growth", "topology"]
    names += ["--drop-factor", "0.5", "--growth-candidates", "6"]
    assert main(["train", *data, *names, "--out", str(tmp_path / "model"), *QUICK]) == 0
    model = largesparse.SparseMLPClassifier.load(tmp_path / "model")
    assert (model.drop, model.growth) == ("soft", "topology")
    assert (model.drop_factor, model.growth_candidates) == (0.5, 6.0)


def test_a_density_and_a_start_factor_can_be_given(folder, tmp_path, capsys):
    words = ["--data", str(folder / "train.csv"), "--target", "level", *QUICK, "--hidden", "30,20"]
    words += ["--density", "0.2", "--distribution", "erdos_renyi", "--start-factor", "2"]
    when = ["--shrink-start", "3", "--shrink-end", "14"]
    assert main(["train", *words, *when, "--out", str(tmp_path / "model")]) == 0
    assert re.search(
        r"dense network's \d+; \d+\.\d% were there at some time", capsys.readouterr().out
    )
    assert SparseMLPClassifier.load(tmp_path / "model").shrink_start == 3
    network = load_model(tmp_path / "model")
    assert network.layer_connections[:2] == hidden_connections(network.config)
    assert network.config.final_probabilities()[0] > 0.2 > network.config.final_probabilities()[1]
    assert main(["inspect", str(tmp_path / "model")]) == 0
    shares = re.findall(r"(\d+\.\d+)% +(\d+\.\d+)%", capsys.readouterr().out)
    assert len(shares) == 3 and float(shares[0][1]) > 1.5 * float(shares[0][0])
    assert main(["train", *words, "--epochs", "1", "--out", str(tmp_path / "other")]) == 2
    assert "'start_factor' of 2" in capsys.readouterr().err


def test_a_model_has_the_options_of_its_training(folder, tmp_path):
    data = ["--data", str(folder / "train.csv"), "--target", "level", "--out"]
    flags = ["--batch-norm", "--label-smoothing", "0.1", "--average-decay", "0.9", "--seed", "1"]
    assert main(["train", *data, str(tmp_path / "model"), *QUICK, *flags]) == 0
    assert load_model(tmp_path / "model").config.batch_norm
    found = SparseMLPClassifier.load(tmp_path / "model").get_params()
    assert (found["label_smoothing"], found["average_decay"]) == (0.1, 0.9)


@pytest.mark.parametrize("cached", [True, False])
def test_kernels_are_compiled_before_the_training_where_there_are_none(
    folder, tmp_path, monkeypatch, cached
):
    warmed = []
    monkeypatch.setattr("largesparse.backends.compiling.is_cached", lambda: cached)
    monkeypatch.setattr("largesparse.training.warming.warm_up", warmed.append)
    flags = ["--data", str(folder / "train.csv"), "--target", "level", "--backend", "scipy"]
    assert main(["train", *flags, "--epochs", "1", "--out", str(tmp_path / "model")]) == 0
    assert warmed == ([] if cached else ["scipy"])


def test_an_optimizer_is_chosen(folder, tmp_path, capsys):
    data = ["--data", str(folder / "train.csv"), "--target", "level"]
    flags = [*data, "--out", str(tmp_path / "model"), *QUICK, "--clip-norm", "1", "--optimizer"]
    assert main(["train", *flags, "adamw"]) == 0
    assert float(capsys.readouterr().out.split("held out:")[1].split()[0]) > 0.7
    kept = json.loads((tmp_path / "model" / "manifest.json").read_text())["estimator"]["parameters"]
    assert (kept["optimizer"], kept["clip_norm"]) == ("adamw", 1)
    assert_one_sentence(["train", *flags, "adagrad"], "--optimizer.*'adagrad'.*adamw", capsys)


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
    assert re.search(r"layer +inputs +neurons +active +connections +density +explored", shown)


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


def spectra(path, names, labels, n=160):
    """Write a table of two features that say the label, and return it."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, len(labels), n)
    table = pd.DataFrame(rng.normal(size=(n, 3)), columns=names)
    table[names[0]] += 4 * (kind == 1)
    table[names[2]] += 4 * (kind == 2)
    table["label"] = np.array(labels)[kind]
    table.to_csv(path, index=False)
    return table


def test_a_header_of_numbers_is_a_header_when_predicting_too(tmp_path, capsys):
    data, model = str(tmp_path / "spectra.csv"), str(tmp_path / "model")
    table = spectra(data, ["400.5", "401", "402"], ["a", "b"])
    train = ["train", "--data", data, "--target", "label", "--out", model, *QUICK]
    assert main(train) == 0
    expected = inference.predict(load_model(model), table, backend="scipy")
    assert (expected == table["label"]).mean() > 0.9
    table[["401", "402", "400.5"]].to_csv(tmp_path / "new.csv", index=False)
    found = tmp_path / "found.csv"
    command = ["predict", model, "--data", str(tmp_path / "new.csv"), "--out", str(found)]
    assert main([*command, "--backend", "scipy"]) == 0
    assert pd.read_csv(found)["prediction"].tolist() == expected.tolist()
    table[["400.5", "401", "402"]].to_csv(tmp_path / "new.csv", index=False, header=False)
    assert_one_sentence(command, "none of the column names.*--header no", capsys)
    assert main([*command, "--header", "no", "--backend", "scipy"]) == 0
    assert pd.read_csv(found)["prediction"].tolist() == expected.tolist()


def test_a_model_of_a_file_without_names_reads_such_files(tmp_path, capsys):
    data, model = str(tmp_path / "spectra.csv"), str(tmp_path / "model")
    table = spectra(data, list("pqr"), ["7", "8"])
    table.to_csv(data, index=False, header=False)
    train = ["train", "--data", data, "--target", "-1", "--out", model, *QUICK]
    assert main(train) == 0
    rows = np.vstack([[1, 2, 3], table[list("pqr")]])  # a first line like a header
    pd.DataFrame(rows).to_csv(tmp_path / "new.csv", index=False, header=False)
    capsys.readouterr()
    command = ["predict", model, "--data", str(tmp_path / "new.csv"), "--backend", "scipy"]
    assert main(command) == 0
    expected = inference.predict(load_model(model), rows, backend="scipy")
    assert capsys.readouterr().out.split()[1:] == [str(label) for label in expected]
    assert main(["predict", model, "--data", data, "--backend", "scipy"]) == 0  # by positions
    rows = table[list("pqr")].to_numpy()
    expected = inference.predict(load_model(model), rows, backend="scipy")
    assert capsys.readouterr().out.split()[1:] == [str(label) for label in expected]
    rows = np.hstack([rows[:, :2], rows])
    pd.DataFrame(rows[:, :2]).to_csv(tmp_path / "new.csv", index=False, header=False)
    assert_one_sentence(command, "2 columns.*3 features", capsys)


@pytest.mark.parametrize("labels", [["007", "7", "07"], ["NA", "None", "null"], ["1.0", "3.0"]])
def test_predictions_print_labels_as_they_stand(tmp_path, capsys, labels):
    data, model = str(tmp_path / "spectra.csv"), str(tmp_path / "model")
    table = spectra(data, list("pqr"), labels)
    options = ["--task", "classification", "--out", model, *QUICK]
    assert main(["train", "--data", data, "--target", "label", *options]) == 0
    capsys.readouterr()
    assert main(["predict", model, "--data", data, "--backend", "scipy"]) == 0
    found = capsys.readouterr().out.split()[1:]
    assert (np.array(found) == table["label"]).mean() > 0.9
    options = ["--target", "label", "--backend", "scipy", "--json"]
    assert main(["evaluate", model, "--data", data, *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["accuracy"] == pytest.approx((np.array(found) == table["label"]).mean())
    assert report.keys() > set(labels)
    table[table["label"] == labels[1]].to_csv(data, index=False)  # "7" alone reads as a number
    assert main(["evaluate", model, "--data", data, *options]) == 0
    assert json.loads(capsys.readouterr().out)[labels[1]]["recall"] > 0.8


def test_svmlight_without_the_first_and_last_features(tmp_path, capsys):
    table = spectra(tmp_path / "spectra.csv", list("pqr"), ["1", "2"])
    lines = [f"{y} 0:{p} 1:{q} 2:{r}\n" for p, q, r, y in table.itertuples(index=False)]
    (tmp_path / "own.svm").write_text("".join(lines))
    model = str(tmp_path / "model")
    assert main(["train", "--data", str(tmp_path / "own.svm"), "--out", model, *QUICK]) == 0
    (tmp_path / "new.svm").write_text("1 1:0.5\n1 1:-2\n")
    capsys.readouterr()
    options = ["--data", str(tmp_path / "new.svm"), "--backend", "scipy", "--proba"]
    assert main(["predict", model, *options]) == 0
    shares = [line.split(",")[1:] for line in capsys.readouterr().out.split("\n")[1:-1]]
    rows = np.array([[0, 0.5, 0], [0, -2, 0]])
    expected = inference.predict_proba(load_model(model), rows, backend="scipy")
    np.testing.assert_allclose(np.array(shares, float), expected, atol=1e-6)


def test_an_archives_own_test_part_is_held_out(tmp_path, capsys):
    X = frame()[list("abcde")].to_numpy(dtype=np.float32)
    y = (X[:, 0] > 5000).astype(int)
    parts = {"x_train": X[:200], "y_train": y[:200], "x_test": X[200:], "y_test": y[200:]}
    np.savez(tmp_path / "data.npz", **parts)
    command = ["train", "--data", str(tmp_path / "data.npz"), "--out", str(tmp_path / "model")]
    assert main([*command, *QUICK]) == 0
    assert "200 rows of 5 features to train on, 40 held out" in capsys.readouterr().out


@pytest.fixture
def parts(folder, tmp_path):
    """Return an archive whose training part has wrong labels, and right ones in the test part."""
    X = frame(100, seed=1)[list("abcde")].to_numpy(dtype=np.float32)
    found = inference.predict(load_model(folder / "model"), X)
    wrong = np.where(found == "low", "high", "low")
    arrays = {"x_train": X[:70], "y_train": wrong[:70], "x_test": X[70:], "y_test": found[70:]}
    np.savez(tmp_path / "parts.npz", **arrays)
    return tmp_path / "parts.npz"


@pytest.mark.parametrize(("part", "rows", "accuracy"), [(None, 30, 1), ("train", 70, 0)])
def test_an_archives_test_part_is_evaluated_and_predicted(
    folder, parts, capsys, part, rows, accuracy
):
    options = ["--data", str(parts), "--backend", "scipy", *(["--part", part] if part else [])]
    assert main(["evaluate", str(folder / "model"), *options]) == 0
    shown = capsys.readouterr()
    assert f"accuracy {accuracy:.4f} of {rows} rows" in shown.out
    assert f"the {part or 'test'} part is taken, {rows} rows; --part" in shown.err
    assert main(["predict", str(folder / "model"), *options]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 1 + rows
    assert f"the {part or 'test'} part is taken" in shown.err


def test_a_part_that_is_not_there_is_refused(folder, parts, capsys):
    model = str(folder / "model")
    command = ["predict", model, "--data", str(folder / "new.csv"), "--part", "test"]
    assert_one_sentence(command, "no part 'test'", capsys)
    arrays = dict(np.load(parts))
    del arrays["x_train"], arrays["y_train"], arrays["y_test"]
    np.savez(parts, **arrays)
    assert main(["predict", model, "--data", str(parts), "--backend", "scipy"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 31
    assert_one_sentence(["evaluate", model, "--data", str(parts)], "no known values", capsys)
    command = ["predict", model, "--data", str(parts), "--part", "train"]
    assert_one_sentence(command, "no array 'x_train'", capsys)


def train(path, *options, data=(), out="model"):
    """Train for a moment on a table that is written first."""
    pd.DataFrame(data).to_csv(path, index=False)
    command = ["train", "--data", str(path), "--out", str(path.parent / out), *QUICK]
    return main([*command, "--epochs", "1", *options])


def test_train_tells_what_it_makes_of_the_target(tmp_path, capsys):
    rng = np.random.default_rng(0)
    data = {"a": rng.random(60), "few": np.arange(60) % 4, "price": rng.permutation(60) * 7 + 100}
    path = tmp_path / "data.csv"
    assert train(path, "--target", "few", data=data) == 0
    assert "'few' has 4 classes (classification; --task regression" in capsys.readouterr().out
    assert train(path, "--target", "price", data=data, out="asked") == 2
    error = capsys.readouterr().err
    assert "'price' has 60 different whole numbers in 60 rows, 100 to 513" in error
    assert not (tmp_path / "asked").exists()
    assert train(path, "--target", "price", "--task", "regression", data=data) == 0
    assert "'price' is predicted as numbers" in capsys.readouterr().out


def test_a_class_of_one_row_is_trained_on(tmp_path, capsys):
    data = {"a": np.arange(41.0), "y": [*["x", "y"] * 20, "alone"]}
    assert train(tmp_path / "data.csv", "--target", "y", data=data) == 0
    shown = capsys.readouterr().out
    assert "1 of the classes has one row only" in shown and "'alone'" in shown
    assert load_model(tmp_path / "model").classes.tolist() == ["alone", "x", "y"]


def test_a_score_of_one_row_is_not_made_up(tmp_path, capsys):
    data = {"a": [1.0, 2.0, 4.0], "y": [0.5, 1.5, 2.0]}
    assert train(tmp_path / "data.csv", "--target", "y", data=data) == 0
    assert "R² on the rows held out:    one row has none" in capsys.readouterr().out


def test_several_numbers_are_predicted_and_evaluated(tmp_path, capsys):
    X = np.random.default_rng(0).random((60, 3)).astype(np.float32)
    np.savez(tmp_path / "data.npz", X=X, y=X[:, :2] * 3 + 0.25)
    data, model = ["--data", str(tmp_path / "data.npz")], str(tmp_path / "model")
    assert main(["train", *data, "--out", model, *QUICK]) == 0
    capsys.readouterr()
    assert main(["evaluate", model, *data, "--json", "--backend", "scipy"]) == 0
    found = inference.predict(load_model(model), X)
    expected = np.abs(found - (X[:, :2] * 3 + 0.25)).mean()
    score = json.loads(capsys.readouterr().out)["mean absolute error"]
    assert score == pytest.approx(expected, rel=1e-5)


def test_labels_of_a_file_that_has_numbers_only(tmp_path, capsys):
    data = {"a": np.arange(40.0), "y": ["1", "2", "1", "x"] * 10}
    assert train(tmp_path / "data.csv", "--target", "y", data=data) == 0
    (tmp_path / "new.csv").write_text("a,y\n1,1\n2,2\n3,1\n")
    options = ["--data", str(tmp_path / "new.csv"), "--target", "y", "--backend", "scipy"]
    assert main(["evaluate", str(tmp_path / "model"), *options]) == 0
    assert "of 3 rows" in capsys.readouterr().out


def test_predictions_do_not_replace_their_data(folder, tmp_path, capsys):
    data = tmp_path / "new.csv"
    frame(9).to_csv(data, index=False)
    before = data.read_bytes()
    command = ["predict", str(folder / "model"), "--data", str(data), "--out", str(data)]
    assert_one_sentence(command, "is the file of --data", capsys)
    assert data.read_bytes() == before


def test_a_feature_is_no_target_to_evaluate(folder, capsys):
    command = ["evaluate", str(folder / "model"), "--data", str(folder / "new.csv")]
    assert_one_sentence([*command, "--target", "a"], "one of the features", capsys)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("dates", r"'y' has values of the type timestamp\[\w+\]"),
        ("lists", "'y' has values of the type list<"),
        ("bytes", "'y' has values of the type binary"),
        ("decimals", None),
    ],
    ids=["dates", "lists", "bytes", "decimals"],
)
def test_targets_of_parquet(tmp_path, capsys, values, message):
    pytest.importorskip("pyarrow")
    y = {
        "lists": [[k % 2] * (k % 3) for k in range(20)],
        "bytes": [b"a", b"b"] * 10,
        "decimals": [Decimal(k) / 4 for k in range(20)],
    }.get(values, pd.Series(np.arange(20).astype("datetime64[s]")))
    pd.DataFrame({"a": np.arange(20.0), "y": y}).to_parquet(tmp_path / "data.parquet")
    data = ["--data", str(tmp_path / "data.parquet"), "--target", "y"]
    command = ["train", *data, "--out", str(tmp_path / "model"), *QUICK]
    if message is not None:
        assert_one_sentence(command, message, capsys)
        return
    assert main(command) == 0
    assert load_model(tmp_path / "model").classes is None


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
        (["--target", "level", "--density", "2"], "'density' parameter"),
        (["--target", "level", "--distribution", "erdos_renyi"], "Give 'density'"),
        (["--target", "level", "--start-factor", "0.5"], "'start_factor' parameter"),
        (["--target", "level", "--growth", "best"], "'growth' parameter .* 'topology'"),
        (["--target", "level", "--drop-rule", "nowhere:rule"], "cannot be imported.*PYTHONPATH"),
        (["--target", "level", "--average-decay", "1"], "average_decay"),
        (["--target", "level", "--batch-norm", "--activation", "srelu"], "batch_norm"),
        (["--target", "level", "--task", "regression"], "holds text such as '(low|middle|high)'"),
        (["--target", "level", "--seed", "-1"], "'--seed' parameter"),
        (["--target", "level", "--hidden", "0"], "--hidden: A size"),
        (["--target", "level", "--hidden", "2e9,2e9"], "4000000000 neurons .* need about"),
        (["--target", "level", "--hidden", ",".join(40 * ["5e7"])], "neurons .* need about"),
        (["--target", "level", "--alpha", "0.5", "--activation", "relu"], "no slope"),
        (["--target", "level", "--plot", "no/such/folder.png"], "does not exist"),
        (["--target", "level", "--plot", "curve.xyz"], "no picture format"),
    ],
)
def test_mistakes_are_one_sentence(folder, tmp_path, capsys, change, message):
    data = ["--data", str(folder / "train.csv"), "--out", str(tmp_path / "model"), "--quiet"]
    assert_one_sentence(["train", *data, *change], message, capsys)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "classification"], "holds fractions, .* in row 1"),
        (["--balanced"], "--balanced weighs classes"),
        (["--label-smoothing", "0.1"], "--label-smoothing shares"),
    ],
)
def test_what_does_not_fit_numbers_is_refused(tmp_path, capsys, flags, message):
    frame().drop(columns="level").to_csv(tmp_path / "numbers.csv", index=False)
    data = ["--data", str(tmp_path / "numbers.csv"), "--target", "amount"]
    command = ["train", *data, "--out", str(tmp_path / "model"), "--quiet", *flags]
    assert_one_sentence(command, message, capsys)


@pytest.mark.parametrize("value", ["inf", "1e400", "-inf"])
def test_a_target_that_is_not_finite_is_told(tmp_path, capsys, value):
    data = {"a": np.arange(9.0), "y": ["0.5", "1.5", value] * 3}
    assert train(tmp_path / "data.csv", "--target", "y", data=data) == 2
    assert "'y' has " in capsys.readouterr().err


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
    train = Trainer.train

    def train_and_be_in_the_way(*arguments, **options):
        (tmp_path / "model").write_text("precious")
        return train(*arguments, **options)

    monkeypatch.setattr(Trainer, "train", train_and_be_in_the_way)
    assert main([*command, "--out", str(tmp_path / "model")]) == 2
    (place,) = tmp_path.glob("model-*")
    shown = capsys.readouterr()
    assert f"saved: {place}" in shown.out and "held out:" in shown.out
    assert f"The model is in {place}." in shown.err and "Traceback" not in shown.err
    assert load_model(place).neurons == 30
    assert (tmp_path / "model").read_text() == "precious"


def test_a_missing_model_is_told(tmp_path, capsys):
    assert_one_sentence(["inspect", str(tmp_path / "none")], "no model", capsys)


@pytest.mark.skipif(os.name != "posix", reason="Windows makes up homes of users")
def test_a_home_that_is_not_there_is_told(tmp_path, capsys):
    command = ["train", "--data", "~no-such-user/table.csv", "--out", str(tmp_path / "model")]
    assert_one_sentence(command, "no file ~no-such-user/table.csv", capsys)


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
