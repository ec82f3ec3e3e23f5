"""How objects are shown: their representations, and the errors of looking into them."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from largesparse import History, NetworkConfig, SparseMLP, Trainer, TrainingConfig
from largesparse.model import config as choices
from largesparse.model.activations import ACTIVATIONS
from largesparse.model.initializers import INITIALIZERS
from largesparse.model.losses import LOSSES
from largesparse.model.optimizer import OPTIMIZERS, SCHEDULES
from largesparse.model.recipes import RECIPES
from largesparse.model.workspace import ACTIVATION_DTYPES
from largesparse.training.history import EpochRecord


@pytest.fixture(scope="module")
def trainer():
    network = SparseMLP(NetworkConfig((6, 10, 10, 2), density=0.5, seed=0))
    config = TrainingConfig(epochs=2, batch_size=8, backend="fused", threads=1)
    trainer = Trainer(network, config)
    X = np.random.default_rng(0).standard_normal((24, 6))
    trainer.fit(X, X[:, 0] > 0, progress=False)
    return trainer


def test_a_network_shows_its_sizes_connections_density_and_activation(trainer):
    network = trainer.network
    cells = 6 * 10 + 10 * 10 + 10 * 2
    density = f"{100 * network.connections / cells:.3g} %"
    assert repr(network) == (
        f"SparseMLP(6-10-10-2, {network.connections} connections, density {density}, all_relu)"
    )


def test_a_layer_shows_what_it_is(trainer):
    layer = trainer.network.layers[0]
    assert repr(layer) == (
        f"SparseLayer(number 2, 6-10, {layer.nnz} connections, "
        f"density {layer.nnz / 60 * 100:.3g} %, left slope -0.6)"
    )
    shaped = SparseMLP(NetworkConfig((6, 4, 2), activation="srelu")).layers[0]
    assert repr(shaped).endswith("a trained shape)")


def test_a_trainer_shows_how_far_it_is(trainer):
    assert repr(trainer) == f"Trainer({trainer.network!r}, epoch 2 of 2, backend fused, 1 thread)"


def test_a_history_shows_its_epochs_and_last_figures(trainer):
    history = trainer.history
    shown = repr(history)
    assert shown.startswith(f"History(epochs 0 to 2, {trainer.network.connections} connections; ")
    assert repr(History()) == "History(no epochs)"
    last = history.epochs[-1]
    if last.loss is not None:
        assert f"loss {last.loss:.4g}" in shown
    assert "validation" not in shown and "None" not in shown


def test_a_history_names_its_fields_where_there_is_none_of_a_name(trainer):
    with pytest.raises(KeyError, match=r"no 'lossx'.* epoch, loss, .*test_accuracy"):
        trainer.history["lossx"]
    with pytest.raises(KeyError):
        History()["nothing"]


@pytest.mark.parametrize(
    ("choice", "known"),
    [
        (choices.Activation, ACTIVATIONS),
        (choices.Initializer, INITIALIZERS),
        (choices.Recipe, RECIPES),
        (choices.Loss, LOSSES),
        (choices.Schedule, SCHEDULES),
        (choices.OptimizerName, OPTIMIZERS),
        (choices.ActivationDtype, ACTIVATION_DTYPES),
    ],
)
def test_the_types_of_choices_have_all_that_there_are(choice, known):
    assert set(get_args(choice)) == set(known)


def test_a_history_without_evaluations_shows_the_running_loss():
    record = EpochRecord(1, None, None, running_loss=0.25, nnz=[3, 4])
    history = History([EpochRecord(0, None, None, nnz=[3, 4]), record])
    assert repr(history) == "History(epochs 0 to 1, 7 connections; running loss 0.25)"
    assert repr(History(history.epochs[:1])) == "History(epochs 0 to 0, 7 connections)"
