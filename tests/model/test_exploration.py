"""Sketches of the cells that were ever connected."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import make_network, make_trainer, normal_rows, pattern

from largesparse import load_checkpoint, load_model, save_model
from largesparse.backends import get_backend
from largesparse.commands.models import describe
from largesparse.model import exploration
from largesparse.model.exploration import REGISTERS, add_cells, estimate, explored_share, sketch_of

ERROR = 1.04 / REGISTERS**0.5  # standard error, of the number
MASK = 2**64 - 1


def sketch(*parts):
    found = np.zeros(REGISTERS, dtype=np.uint8)
    for part in parts:
        add_cells(found, np.asarray(part, dtype=np.int64))
    return found


def test_the_registers_are_those_of_the_definition():
    cells = [*range(300), 2**40 + 7, 2**62 - 1]
    expected = np.zeros(REGISTERS, dtype=np.uint8)
    for cell in cells:
        z = (cell + 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        z ^= z >> 31
        zeros = 52 - (z & (2**52 - 1)).bit_length()
        expected[z >> 52] = max(expected[z >> 52], zeros + 1)
    np.testing.assert_array_equal(sketch(cells), expected)


@pytest.mark.parametrize("count", [0, 1, 50, 3000, 10_000, 20_000, 300_000])
def test_the_error_is_as_stated(count):
    rng = np.random.default_rng(count)
    errors = []
    for _ in range(12 if count < 10**5 else 6):
        cells = rng.integers(2**61, size=count)  # distinct but for an unlikely few
        errors.append(estimate(sketch(cells)) / max(1, count) - 1)
    if count == 0:
        assert errors == [-1] * 12
        return
    assert np.abs(errors).max() < 4 * ERROR
    assert abs(np.mean(errors)) < 2 * ERROR


def test_unions_orders_repetitions_and_threads():
    rng = np.random.default_rng(0)
    one, other = rng.integers(10**9, size=(2, 700_000))
    whole = sketch(one, other)
    np.testing.assert_array_equal(np.maximum(sketch(one), sketch(other)), whole)
    np.testing.assert_array_equal(sketch(other[::-1].copy(), one, one), whole)
    with get_backend("fused").threads(2):
        np.testing.assert_array_equal(sketch(one, other), whole)


def test_a_topology_is_its_cells():
    layer = make_network((900, 700, 2), density=0.5).layers[0]
    cells = np.flatnonzero(pattern(layer))
    assert len(cells) == layer.nnz > 2**18
    np.testing.assert_array_equal(sketch_of(layer.topology), sketch(cells))
    empty = make_network((5, 4, 2), density=1e-9).layers[0]
    assert empty.nnz == 0 and not sketch_of(empty.topology).any()


def train(tmp_path=None, epochs=6, **options):
    seen: list[list[set[int]]] = []
    X = normal_rows(96, 30)
    trainer = make_trainer((30, 60, 50, 3), density=0.1, epochs=epochs, batch_size=32, **options)

    def note(trainer, record):
        layers = trainer.network.layers
        seen.append([set(np.flatnonzero(pattern(layer)).tolist()) for layer in layers])

    note(trainer, None)
    trainer.fit(X, X[:, :3].argmax(axis=1), callbacks=[note], checkpoint=tmp_path, progress=False)
    return trainer, seen


def test_the_history_has_what_was_explored(tmp_path):
    trainer, seen = train()
    cells = 30 * 60 + 60 * 50 + 50 * 3
    shares = trainer.history["explored"]
    for epoch in range(7):  # a record is of before its evolution
        known = seen[: max(1, epoch)]
        exact = sum(len(set().union(*(each[k] for each in known))) for k in range(3)) / cells
        assert shares[epoch] == pytest.approx(exact, rel=4 * ERROR)
    assert shares == sorted(shares) and shares[6] > 2 * shares[0]
    save_model(trainer.network, tmp_path / "model")
    network = load_model(tmp_path / "model")
    assert explored_share(network.layers) == shares[6]
    of_layers = [layer["explored"] for layer in describe(network, 3)["layers"]]
    assert of_layers[0] > of_layers[2] == pytest.approx(0.1, abs=0.05)
    assert describe(make_network(), 3)["layers"][0]["explored"] is None


def test_full_layers_are_explored():
    trainer, _ = train(epochs=2, network={"output_density": 1.0}, zeta=0.0)
    assert trainer.history["explored"][0] == trainer.history["explored"][2]
    assert explored_share(trainer.network.layers[2:]) == 1


def test_checkpoints_go_on_with_it(tmp_path):
    whole, _ = train()
    train(tmp_path / "c", epochs=3, evolve_last=True)
    resumed = load_checkpoint(tmp_path / "c", epochs=6, evolve_last=False)
    X = normal_rows(96, 30)
    resumed.fit(X, X[:, :3].argmax(axis=1), progress=False)
    assert resumed.history["explored"] == whole.history["explored"]


def test_texts_of_sketches():
    found = sketch(range(1000))
    text = json.loads(json.dumps(exploration.to_text(found)))
    np.testing.assert_array_equal(exploration.from_text(text), found)
    assert exploration.to_text(None) is exploration.from_text(None) is None
    for damaged in ("", text[:-8], "?" * len(text), "/" * len(text)):
        with pytest.raises(ValueError):
            exploration.from_text(damaged)
