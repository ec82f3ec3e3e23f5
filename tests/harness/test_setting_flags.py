"""The flags that `train` and `bigmodel` share: each reaches the field of its name."""

from __future__ import annotations

import argparse
from functools import partial
from types import SimpleNamespace

import pytest

from largesparse import NetworkConfig, TrainingConfig
from largesparse.commands import train
from largesparse.errors import ParameterError
from largesparse.harness import bigmodel
from largesparse.harness.setting_flags import NEEDS, NETWORK, SETTINGS, TRAINING, flag_of

VALUES = {  # none is a default
    "density": 0.25,
    "distribution": "erdos_renyi",
    "start_factor": 2.0,
    "batch_norm": True,
    "rate_fan_in": 5.0,
    "optimizer": "adamw",
    "learning_rate": 0.125,
    "schedule": "step",
    "momentum": 0.5,
    "weight_decay": 0.25,
    "beta2": 0.75,
    "adam_epsilon": 1e-3,
    "step_counts": "connection",
    "connection_warmup": 3,
    "clip_norm": 4.0,
    "dropout": 0.0625,
    "label_smoothing": 0.1,
    "average_decay": 0.9,
    "zeta": 0.2,
    "drop": "mest",
    "drop_factor": 2.0,
    "growth": "gradient",
    "growth_candidates": 7.0,
    "redistribute": True,
    "keep_active": True,
    "shrink_start": 2,
    "shrink_end": 4,
}
GLOBAL = {"optimizer": "adam", "step_counts": "global"}  # which excludes a warm-up


def words(values):
    found = []
    for name, value in values.items():
        found += [flag_of(name)] if value is True else [flag_of(name), str(value)]
    return found


def of_train(values):
    parser = argparse.ArgumentParser()
    train.add_train(parser.add_subparsers())
    asked = ["train", "--data", "x", "--out", "y", "--activation", "relu", *words(values)]
    options = parser.parse_args(asked)
    train._check_hyperparameters(options)
    return train._make_estimator(options, SimpleNamespace(task="classification", feature_names=[]))


def of_bigmodel(values, recipe="width"):
    asked = ["--neurons", "400", "--epochs", "9", "--recipe", recipe, *words(values)]
    options = bigmodel.parse(bigmodel.make_parser(), asked, 1)
    return bigmodel.network_config(options), bigmodel.training_config(options)


@pytest.mark.parametrize("values", [VALUES, GLOBAL])
def test_every_flag_reaches_its_field(values):
    assert set(VALUES) == set(SETTINGS)
    model, (network, training) = of_train(values), of_bigmodel(values)
    for name, value in values.items():
        assert getattr(model, name) == value
        assert getattr(network if name in NETWORK else training, name) == value
    assert (model.epsilon is None) == (network.epsilon is None) == ("density" in values)


def test_what_is_not_given_is_the_command_s():
    model, (network, training) = of_train({}), of_bigmodel({})
    fields = {name: getattr(NetworkConfig((2, 2)), name) for name in NETWORK}
    fields |= {name: getattr(TrainingConfig(), name) for name in TRAINING}
    own = {"schedule": ("cosine", "cosine"), "dropout": ("auto", 0.0)}
    own |= {"keep_active": (False, True), "optimizer": ("sgd", "adamw")}
    own |= {"growth": ("random", "gradient"), "weight_decay": ("auto", 0.01)}
    own["learning_rate"] = ("auto", 0.001)  # without a plan, that of the optimizer
    for name, default in fields.items():
        of_either = model, network if name in NETWORK else training
        expected = own.get(name, (default, default))
        assert tuple(getattr(one, name) for one in of_either) == expected, name
    assert (model.epsilon, network.epsilon) == (20, 10)


@pytest.mark.parametrize("of", [of_train, partial(of_bigmodel, recipe="paper")])
def test_flags_that_count_for_nothing_are_refused(of):
    for name, (other, values) in NEEDS.items():
        given = {name: VALUES[name]}
        with pytest.raises(ParameterError, match=f"{flag_of(name)} counts only with"):
            of(given)
        of(given | {other: values[0]})
    for name in ("shrink_start", "shrink_end"):
        with pytest.raises(ParameterError, match="--start-factor"):
            of({name: VALUES[name]})
    of({"drop": "largesparse.model.drops:drop_by_magnitude", "drop_factor": 2.0})


def test_from_files_bigmodel_has_the_papers_optimizer(tmp_path):
    for ranks, more, expected in (
        (1, [], ("adamw", "gradient")),
        (1, ["--recipe", "paper"], ("sgd", "random")),
        (1, ["--storage", str(tmp_path)], ("sgd", "random")),
        (1, ["--storage", str(tmp_path), "--optimizer", "adamw"], ("adamw", "random")),
        (3, [], ("adamw", "gradient")),
        (3, ["--recipe", "paper"], ("sgd", "random")),
        (3, ["--algorithm", "pipeline"], ("adamw", "gradient")),
        (3, ["--algorithm", "wassp", "--optimizer", "sgd"], ("sgd", "gradient")),
    ):
        options = bigmodel.parse(bigmodel.make_parser(), ["--neurons", "400", *more], ranks)
        assert (options.optimizer, options.growth) == expected
