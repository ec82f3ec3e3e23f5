"""`largesparse paper --rules`: which trainings, what is kept, and the table."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from largesparse import Dataset, read_records
from largesparse.errors import LargeSparseError, NumericalError
from largesparse.paper import command, rules, rules_run
from largesparse.paper import reported as paper
from largesparse.paper.rules import (
    CHOICES,
    DENSE,
    OPTIMIZERS,
    RULES,
    Decayed,
    RuleProtocol,
    make_training,
)

SMALL = paper.Task((12, 20, 15, 20, 3), 5, 0.05, 16, "he_uniform", 0.5, 96, 40, 0.5)
QUICK = ("--dataset", "madelon", "--epochs", "2", "--seeds", "2", "--backend", "scipy")


class InThisProcess:
    """Stands for the pool of processes, and counts what it is given."""

    def __init__(self, *_):
        self.__class__.trainings = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, one):
        from concurrent.futures import Future

        self.trainings.append(one)
        future = Future()
        try:
            future.set_result(function(one))
        except LargeSparseError as error:
            future.set_exception(error)
        return future


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Make Madelon a small task of three classes, trained in this process."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((136, 12)).astype(np.float32)
    y = X[:, :3].argmax(axis=1).astype(np.int32)
    data = Dataset(X[:96], y[:96], X[96:], y[96:], "small")
    monkeypatch.setattr(rules_run, "load_dataset", lambda name: data)
    monkeypatch.setattr(rules_run, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(rules_run, "warm_up", lambda backend, optimizer: None)
    monkeypatch.setattr(rules_run, "ONE_THREAD", {})
    monkeypatch.setitem(paper.TASKS, "madelon", SMALL)
    rules_run.rows_of.cache_clear()
    monkeypatch.chdir(tmp_path)
    yield data
    rules_run.rows_of.cache_clear()


def run(*words):
    return command.main([*QUICK, *words])  # of a flag that is given twice the last counts


def test_every_rule_differs_only_in_its_evolution():
    given = "sgd", 0.05, Decayed(0.1, 1e-3)
    made = [make_training(RuleProtocol(), "madelon", rule, *given) for rule in (*RULES, DENSE)]
    assert len({one.key for one in made}) == len(made)
    own = {"zeta", "drop", "growth", "redistribute"}
    for one in made:
        changed = {
            name
            for name, value in dataclasses.asdict(one.training).items()
            if value != getattr(made[1].training, name)
        }
        assert changed <= own | ({"weight_decay"} if one.rule == DENSE else set())
    cells = 500 * 400 + 400 * 100 * 2 + 800
    by_name = {one.rule: one.network for one in made}
    assert by_name["set"].expected_connections() == pytest.approx(0.05 * cells)
    assert by_name[DENSE].expected_connections() == cells
    granet = by_name["granet"]
    assert granet.expected_connections() > 3 * 0.05 * cells
    assert granet.final_probabilities() == by_name["set"].probabilities()


def test_the_decay_of_sgd_is_that_of_the_loss():
    """λ·η times the recipe's factor, which a dense network has a smaller one of."""
    cells, neurons = 500 * 400 + 400 * 100 * 2 + 800, 400 + 100 + 400 + 2
    for rule, density in (("granet", 0.05), ("static", 0.05), (DENSE, 1.0)):
        for optimizer in OPTIMIZERS:
            one = make_training(
                RuleProtocol(), "madelon", rule, optimizer, density, Decayed(0.5, 0.01)
            )
            factor = 0.5 * min(1, 8 * neurons / (density * cells)) if optimizer == "sgd" else 1
            assert one.training.weight_decay == pytest.approx(0.01 * factor)


def test_what_is_chosen_and_how_long_it_is_trained():
    protocol = RuleProtocol()
    assert protocol.epochs_of("fashion_mnist", 0.01) == 30
    assert protocol.epochs_of("fashion_mnist", 0.05) == 10
    assert protocol.epochs_of("fashion_mnist", 1.0) == 8
    assert (protocol.rows_of("higgs"), protocol.rows_of("madelon")) == (10_000, None)
    found = rules.choosing(RuleProtocol(choices=2), "fashion_mnist", "sgd", 1.0, DENSE)
    assert [one.rows for one in found] == [20_000] * 2 and all(one.chooses for one in found)
    first, second = CHOICES["sgd"][:2]
    assert rules.best_choice("sgd", [0.5, 0.7]) == second
    assert rules.best_choice("sgd", [0.5, 0.5]) == rules.best_choice("sgd", [0.5, None]) == first
    groups = rules.groups(["static", "static_set", "rigl", DENSE], ["sgd"], [0.1])
    assert groups == [
        ("sgd", 0.1, "static", ["static"]),
        ("sgd", 0.1, "set", ["static_set", "rigl"]),
        ("sgd", 1.0, DENSE, [DENSE]),
    ]


def test_the_table_is_run_kept_and_shown(small, capsys, tmp_path):
    chosen = ("--rules", "static", "set", "granet", "dense", "--optimizers", "sgd")
    assert run(*chosen, "--densities", "0.2") == 0
    table = pd.read_csv(tmp_path / "paper" / "rules.csv")
    assert table["rule"].tolist() == ["static", "set", "granet", "dense"]
    assert table["seeds"].tolist() == [2] * 4
    assert table["density"].tolist() == [0.2] * 3 + [1.0]
    assert all("±" in cell for cell in table["accuracy %"])
    records = read_records(tmp_path / "paper.jsonl")
    assert len(records) == 3 * 4 + 4 * 2  # choices of static, set and dense; rules
    assert sum(seconds[0] for seconds in records["cpu_s"]) > 0
    granet = records.iloc[[row["rule"] == "granet" for row in records["settings"]]].iloc[0]
    assert granet["nnz"][0] > 1.5 * granet["nnz"][1]
    assert "granet: GraNet" in (tmp_path / "paper" / "rules.html").read_text()
    shown = capsys.readouterr().out
    heading = "### madelon, 12-20-15-20-3, 20% of the connections: 2 epochs of all training rows"
    assert f"{heading}\n\nSGD η " in shown and "| dense" in shown
    assert "rule   | SGD: accuracy % | CPU s | connections | explored % |" in shown
    # Nothing is run again; a further rule is
    InThisProcess.trainings = []
    assert run(*chosen, "--densities", "0.2") == 0
    assert InThisProcess.trainings == []
    assert run("--rules", "rigl", "--optimizers", "sgd", "--densities", "0.2") == 0
    assert [one.rule for one in InThisProcess.trainings] == ["rigl"] * 2


def test_what_is_chosen_is_that_of_the_best_validation_rows(small, monkeypatch, tmp_path):
    trained = rules_run.Trainer.fit

    def fit(self, *arguments, **options):
        history = trained(self, *arguments, **options)
        if self.config.validation_fraction:
            static, best = self.config.zeta == 0, self.config.learning_rate == 0.3
            history.epochs[-1].validation_accuracy = float(static != best)
        return history

    monkeypatch.setattr(rules_run.Trainer, "fit", fit)
    run("--rules", "static", "static_set", "set", "--optimizers", "sgd", "--densities", "0.2")
    assert pd.read_csv(tmp_path / "paper" / "rules.csv")["rate"].tolist() == [1, 0.3, 0.3]


def test_optimizers_stand_next_to_each_other(small, capsys, tmp_path):
    run("--rules", "static", "set", "--densities", "0.2", "--seeds", "1")
    capsys.readouterr()
    run("--rules", "static", "set", "--densities", "0.2", "--no-run")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0][:2] == ["rule", "SGD: accuracy %"] and cells[0][5] == "AdamW: accuracy %"
    assert [row[0] for row in cells[2:]] == ["static", "set"]
    table = pd.read_csv(tmp_path / "paper" / "rules.csv")
    assert cells[2][1::4] + cells[3][1::4] == table["accuracy %"].iloc[[0, 2, 1, 3]].tolist()
    assert all("(1 of 2 seeds)" in cell for cell in table["accuracy %"])
    assert (tmp_path / "paper" / "rules.html").read_text().count("explored %") == 2
    run("--rules", "static", "--densities", "0.3", "--no-run")
    assert capsys.readouterr().out.split("rows\n\n")[1].startswith("not measured yet\n")


def test_trainings_that_fail_or_diverge_are_told(small, monkeypatch, tmp_path, capsys):
    trained = rules_run.Trainer.fit

    def fit(self, *arguments, **options):
        if self.config.seed == 1:
            raise LargeSparseError("no more")
        history = trained(self, *arguments, **options)
        if not self.config.validation_fraction:
            raise NumericalError("too far")
        return history

    monkeypatch.setattr(rules_run.Trainer, "fit", fit)
    with pytest.raises(LargeSparseError, match=r"1 of 2 trainings failed.*no more"):
        run("--rules", "set", "--optimizers", "sgd", "--densities", "0.2")
    table = pd.read_csv(tmp_path / "paper" / "rules.csv")
    assert table["accuracy %"].tolist() == ["- (1 diverged)"] and table["seeds"].tolist() == [1]


def test_it_can_be_planned_and_made_short(small, capsys):
    assert run("--rules", "--plan") == 0
    lines = capsys.readouterr().out.splitlines()
    optimizers = len(OPTIMIZERS)
    assert len(lines) == optimizers * (5 * 4 + 2 * (2 * len(RULES) + 1))
    assert "madelon granet 5% sgd, seed 1: 2 epochs" in "\n".join(lines)
    command.main(["--rules", "--short", "--plan", "--dataset", "madelon"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == optimizers * (5 * 2 + 2 * (2 * len(RULES) + 1))
    assert all(": 8 epochs" in line for line in lines)
    with pytest.raises(SystemExit):
        command.main(["--rules", "--table", "2", "--dataset", "madelon"])
