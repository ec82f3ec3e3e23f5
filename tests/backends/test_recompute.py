"""Activations that are computed again in the backward pass."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import normal_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from largesparse import NetworkConfig, SparseMLP, Trainer, TrainingConfig
from largesparse.backends import get_backend
from largesparse.errors import ParameterError
from largesparse.model.workspace import (
    activation_buffers,
    are_written_above,
    buffer_of,
    delta_buffers,
)
from largesparse.training.stepping import Stepper


def data_of(rows: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    X = normal_rows(rows, features)
    return X, (X[:, 0] > 0).astype(np.int32)


def trained(keep_every: int, *, activation="all_relu", **training) -> tuple[Trainer, list]:
    config = NetworkConfig(
        (12, 30, 41, 22, 37, 25, 2), epsilon=4, activation=activation, recipe="width"
    )
    defaults = {"epochs": 2, "batch_size": 24, "micro_batch": 10, "dropout": 0.2, "threads": 1}
    settings = TrainingConfig(keep_every=keep_every, **{"backend": "scipy"} | defaults | training)
    trainer = Trainer(SparseMLP(config, progress=False), settings)
    trainer.fit(*data_of(60, 12), progress=False)
    names = ("values", "velocity", "bias", "bias_velocity", "srelu")
    arrays = [getattr(layer, name) for layer in trainer.network.layers for name in names]
    return trainer, [array for array in arrays if array is not None]


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("scipy", {}),
        ("scipy", {"activation": "srelu"}),
        ("scipy", {"growth": "gradient"}),
        ("fused", {"micro_batch": 24}),
        ("fused", {}),
    ],
)
def test_the_result_does_not_depend_on_it(backend, options):
    all_kept, expected = trained(1, backend=backend, **options)
    for keep_every in (2, 3, 4, 5, 9):
        trainer, found = trained(keep_every, backend=backend, **options)
        assert trainer.workspace.keep_every == keep_every
        assert trainer.history["loss"] == all_kept.history["loss"]
        for array, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(array, other)


@settings(max_examples=60, deadline=None)
@given(hidden=st.lists(st.integers(1, 9), min_size=0, max_size=9), keep_every=st.integers(1, 10))
def test_layers_share_buffers_with_their_segments_only(hidden, keep_every):
    """At any time a segment's layers and all kept ones have buffers of their own, large enough."""
    buffers = activation_buffers(hidden, keep_every)
    places = [buffer_of(k, keep_every) for k in range(len(hidden))]
    assert set(places) == set(range(len(buffers)))
    assert all(buffers[place] >= size for place, size in zip(places, hidden, strict=True))
    kept = {k for k in range(len(hidden)) if k % keep_every == keep_every - 1}
    for start in range(0, len(hidden), keep_every):
        present = sorted(kept | set(range(start, min(len(hidden), start + keep_every))))
        assert len({places[k] for k in present}) == len(present)
    if keep_every == 1 and are_written_above(hidden, 1):
        assert all(below <= size for below, size in zip(hidden, buffers[1:], strict=False))
    elif keep_every == 1:
        assert buffers == hidden
    everything = sum(buffers) + sum(delta_buffers(hidden, keep_every))
    if keep_every == 1 and hidden:
        assert everything <= sum(hidden) + min(2, len(hidden)) * max(hidden)


def test_every_layer_is_computed_twice_at_most(monkeypatch):
    X, y = data_of(10, 12)
    network = SparseMLP(NetworkConfig((12, *[20] * 10, 2), epsilon=4), progress=False)
    config = TrainingConfig(batch_size=10, keep_every=3, backend="scipy", threads=1)
    stepper, widths = Stepper(network, config), []
    forward = type(get_backend("scipy")).forward

    def counted(self, connections, *args, **kwargs):
        widths.append(id(connections.indptr))
        return forward(self, connections, *args, **kwargs)

    monkeypatch.setattr(type(stepper.backend), "forward", counted)
    stepper.gradient(X, y, np.arange(10))
    times = [widths.count(id(layer.indptr_by_output)) for layer in network.layers]
    assert times == [2, 2, 1, 2, 2, 1, 2, 2, 1, 1, 1]


@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_what_is_out_of_range_is_refused(value):
    with pytest.raises(ParameterError, match="keep_every"):
        TrainingConfig(keep_every=value)
