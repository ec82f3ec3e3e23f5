"""train --topology and what inspect tells of it; the examples of the documentation."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, pattern

from largesparse import SparseMLPClassifier, load_model
from largesparse.commands.main import main

GENES = [f"G{k}" for k in range(12)]
SETS = {"repair": GENES[:4], "cell cycle": GENES[2:8], "immune": GENES[8:11]}
QUICK = ["--epochs", "4", "--backend", "fused", "--threads", "1", "--quiet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("topologies")
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.standard_normal((120, 12)), columns=GENES)
    repair = table[SETS["repair"]].mean(axis=1)
    table.insert(3, "diagnosis", np.where(repair > 0, "ill", "well"))
    table.to_csv(folder / "expression.csv", index=False)
    lines = [f"{gene},{name}\n" for name, genes in SETS.items() for gene in genes]
    (folder / "pathways.csv").write_text("".join(lines))
    (folder / "groups.csv").write_text("target,source\ngroup,repair\ngroup,cell cycle\n")
    return folder


def train(folder, out, *more):
    data = ["--data", str(folder / "expression.csv"), "--target", "diagnosis"]
    given = ["--topology", str(folder / "pathways.csv")]
    return main(["train", *data, *given, "--out", str(out), *QUICK, *more])


def given_pattern():
    return np.array([[gene in genes for genes in SETS.values()] for gene in GENES])


def test_a_model_has_the_pathways_of_a_file(folder, tmp_path, capsys, caplog):
    assert train(folder, tmp_path / "model") == 0
    assert "1 of the 12 inputs of layer 2 have no connection by its topology: 'G11'" in caplog.text
    network = load_model(tmp_path / "model")
    assert network.config.layer_sizes == (12, 3, 400, 2)
    assert network.neuron_names == {2: list(SETS)} and network.feature_names == GENES
    assert np.array_equal(pattern(network.layers[0]), given_pattern())

    table = tmp_path / "importance.csv"
    assert main(["inspect", str(tmp_path / "model"), "--importance", str(table)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"2 +12 +3 +3 +13 +36.11% .*given, frozen", shown)
    assert re.search(r"3 +3 +400 .*% .*drawn", shown)
    assert "most important neurons of layer 2" in shown and "  cell cycle  " in shown
    found = pd.read_csv(table)
    assert set(found["name"]) == set(SETS) and found["connections"].sum() == 13
    assert found["importance"].is_monotonic_decreasing
    main(["inspect", str(tmp_path / "model"), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert list(told["most important neurons"]["2"]) == found["name"].tolist()

    estimator = SparseMLPClassifier.load(tmp_path / "model")
    assert estimator.topology[2].output_names == tuple(SETS)
    X = pd.read_csv(folder / "expression.csv")
    y = X.pop("diagnosis")
    again = estimator.set_params(max_epochs=1, verbose=False).fit(X, y).network_
    assert np.array_equal(pattern(again.layers[0]), given_pattern())


@pytest.mark.parametrize("evolution", ["free", "within"])
def test_it_may_evolve_and_go_on_in_a_chain(folder, tmp_path, evolution):
    chain = [str(folder / name) for name in ("pathways.csv", "groups.csv")]
    more = ["--topology", *chain, "--topology-evolution", evolution, "--hidden", "3,1", "--folds"]
    assert train(folder, tmp_path / "model", *more, "2") == 0
    network = load_model(tmp_path / "model")
    assert network.neuron_names == {2: list(SETS), 3: ["group"]}
    layer = network.layers[0]
    inside = not (pattern(layer) & ~given_pattern()).any()
    assert inside == (evolution == "within")
    assert layer.nnz == (13 if evolution == "free" else 6)


def test_mistakes_are_a_sentence(folder, tmp_path, capsys):
    (tmp_path / "unknown.csv").write_text("gene,pathway\nG1,a\nG99,a\n")
    for more, told in (
        (["--topology", str(tmp_path / "unknown.csv")], "has 2 of 3 inputs .* 'gene', 'G99'"),
        (["--topology", str(tmp_path / "nowhere.csv")], "cannot be read"),
        (["--hidden", "5"], "layer 2 has 3 neurons, and the layer has 5"),
    ):
        assert train(folder, tmp_path / "model", *more) == 2
        assert re.search(told, capsys.readouterr().err)


def test_the_examples_of_the_page_run(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    page = (ROOT / "docs" / "given-topologies.md").read_text(encoding="utf-8")
    first, second = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    assert len(first.splitlines()) <= 15
    exec(first.replace("random_state=0", "random_state=0, max_epochs=3"), {})
    shown = capsys.readouterr().out
    assert "(12, 3, 400, 2) ['repair', 'cell cycle', 'immune']" in shown
    exec(second.replace("max_epochs=5", "max_epochs=2"), {})
    assert "64-16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--topology-evolution", "within"], "is of the layers of --topology"),
        (["--drop-rule", "nope"], r"--drop-rule.* must be one of"),
    ],
)
def test_flags_are_told_by_their_names(folder, tmp_path, capsys, flags, told):
    data = ["--data", str(folder / "expression.csv"), "--target", "diagnosis"]
    assert main(["train", *data, "--out", str(tmp_path / "model"), *flags]) != 0
    assert re.search(told, capsys.readouterr().err)
