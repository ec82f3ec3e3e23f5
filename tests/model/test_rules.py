"""Rules of evolution: each next to its definition in NumPy, and rules of one's own."""

from __future__ import annotations

import json
import pickle
import sys

import numpy as np
import pytest
from helpers import ROOT, make_trainer, pattern, same
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from largesparse import TrainingConfig, load_checkpoint
from largesparse.errors import CheckpointError, ParameterError
from largesparse.machine.threads import kernel_threads
from largesparse.model import growth, ranking, rules
from largesparse.model.cells import are_in
from largesparse.model.drops import drop_softly
from largesparse.model.evolution import evolve
from largesparse.model.growth import PATHS, grow_by_paths, reconnect, score_by_paths
from largesparse.model.layer import LayerConfig, SparseLayer
from largesparse.model.ranking import mark_largest
from largesparse.model.rule_state import RuleState, needs_gradient
from largesparse.model.rules import DROPS, GROWTHS, Rules
from largesparse.model.topology import Topology

UNLIKELY = 1e-4  # p-value below which a statistical test with a fixed seed fails
BUILT_IN = [("set", growth) for growth in GROWTHS] + [(drop, "random") for drop in DROPS]


@pytest.fixture(autouse=True)
def one_thread():
    with kernel_threads(1):
        yield


def layer_of(cells: np.ndarray, *, seed=0, minimum=0, dead=None) -> SparseLayer:
    """A layer with a connection where the matrix `cells` is true, with no two equal weights."""
    topology = Topology.from_cells(*cells.shape, np.flatnonzero(cells))
    rng = np.random.default_rng(seed)
    values = rng.permutation(np.arange(1, topology.nnz + 1)) * rng.choice([-1, 1], topology.nnz)
    bias = np.zeros(cells.shape[1], dtype=np.float32)
    parameters = {"values": values.astype(np.float32), "bias": bias}
    layer = SparseLayer(2, topology, parameters, LayerConfig(0.0, minimum=minimum), dead=dead)
    layer.velocity[:] = layer.values / 2
    return layer


def state_of(layer, zeta=0.3, *, batch=5, seed=0, **known) -> RuleState:
    """A state with a mini-batch."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((layer.n_in, batch)).astype(np.float32)
    delta = rng.standard_normal((layer.n_out, batch)).astype(np.float32)
    return RuleState(layer, zeta, X=X, delta=delta, **known)


def dense(layer, numbers) -> np.ndarray:
    """A number of every connection, as a matrix."""
    matrix = np.zeros((layer.n_in, layer.n_out))
    matrix[layer.topology.rows(), layer.topology.indices] = numbers
    return matrix


def random_cells(shape, density, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < density


# What all rules have in common


@settings(max_examples=60)
@given(
    pair=st.sampled_from(BUILT_IN),
    shape=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    density=st.sampled_from([0, 0.1, 0.4, 0.6, 0.95, 1]),
    zeta=st.sampled_from([0.1, 0.3, 0.9]),
    dying=st.sampled_from([0, 0.3]),
    minimum=st.sampled_from([0, 2]),
    seed=st.integers(0, 2**32),
)
def test_counts_are_kept_and_nothing_grows_at_the_dead(
    pair, shape, density, zeta, dying, minimum, seed
):
    rng = np.random.default_rng(seed)
    cells = rng.random(shape) < density
    dead_inputs, dead = (rng.random(size) < dying for size in shape)
    cells[dead_inputs] = cells[:, dead] = False
    layer = layer_of(cells, seed=seed, minimum=minimum, dead=dead)
    before, velocity = dense(layer, layer.values), dense(layer, layer.velocity)
    fewest = np.minimum(cells.sum(axis=0), minimum)
    state = state_of(layer, zeta, dead_inputs=dead_inputs)
    slot_map = evolve(layer, zeta, rng, rules=Rules.of(*pair), state=state)
    gone = np.count_nonzero(slot_map < 0)
    going = int(zeta * cells.sum())
    assert layer.nnz == cells.sum() and gone <= going
    if not minimum:
        assert gone >= going - (pair[0] == "set")
    found = pattern(layer)
    assert found.sum() == layer.nnz  # no cell twice
    assert not found[dead_inputs].any() and not found[:, dead].any()
    assert (found.sum(axis=0) >= fewest).all()
    stays = np.zeros(shape, dtype=bool)
    stays.flat[np.flatnonzero(cells)[slot_map >= 0]] = True
    np.testing.assert_array_equal(dense(layer, layer.values)[stays], before[stays])
    np.testing.assert_array_equal(dense(layer, layer.velocity)[stays], velocity[stays])
    assert not dense(layer, layer.velocity)[~stays].any()


@pytest.mark.parametrize("pair", BUILT_IN, ids="-".join)
def test_threads_do_not_change_what_evolves(pair, monkeypatch):
    monkeypatch.setattr(ranking, "FEW", 0)  # as in large layers
    results = []
    for threads in (1, 2):
        with kernel_threads(threads):
            layer = layer_of(random_cells((150, 120), 0.1))
            state = state_of(layer)
            evolve(layer, 0.3, np.random.default_rng(3), rules=Rules.of(*pair), state=state)
            results.append((layer.topology.indptr, layer.topology.indices, layer.values))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


# What goes


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    counted=st.booleans(),
    name=st.sampled_from(["magnitude", "mest"]),
    factor=st.sampled_from([0.0, 1.0, 30.0]),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_the_smallest_scores_go(shape, counted, name, factor, share, seed):
    layer = layer_of(random_cells(shape, 0.6, seed), seed=seed)
    layer.values[:] = np.round(layer.values / 3)  # ties
    state = state_of(layer, seed=seed, drop_factor=factor)
    count = int(share * layer.nnz)
    with pytest.MonkeyPatch.context() as patch:
        if counted:
            patch.setattr(ranking, "FEW", 0)
        keep = DROPS[name](layer, state, count, np.random.default_rng(0))
    scores = np.abs(layer.values.astype(np.float64))
    if name == "mest":
        gradient = state.X.astype(np.float64) @ state.delta.T.astype(np.float64)
        scores += factor * np.abs(gradient[layer.topology.rows(), layer.topology.indices])
    assert np.count_nonzero(~keep) == count
    if 0 < count < layer.nnz:
        assert scores[~keep].max() <= scores[keep].min() + 1e-3
    if name == "magnitude":
        assert np.flatnonzero(~keep).tolist() == sorted(np.argsort(scores, kind="stable")[:count])


def test_soft_dropping_draws_by_the_magnitude():
    layer = layer_of(np.ones((2, 3)))
    layer.values[:] = [0, 0.5, -1, 2, -3, 0.1]
    strength = np.abs(layer.values) / np.abs(layer.values).mean() / 0.8
    rates = np.exp(-strength)
    draws, rng = 20_000, np.random.default_rng(1)
    state = RuleState(layer, 0.3, drop_factor=0.8)
    first = np.zeros(6)
    both = np.zeros((6, 6))
    for _ in range(draws):
        first[np.flatnonzero(~drop_softly(layer, state, 1, rng))] += 1
        i, j = np.flatnonzero(~drop_softly(layer, state, 2, rng))
        both[i, j] += 1
    expected = draws * rates / rates.sum()
    assert chi2.sf(np.sum((first - expected) ** 2 / expected), 5) > UNLIKELY
    one_by_one = rates[:, None] / rates.sum() * rates / (rates.sum() - rates[:, None])
    pairs = np.triu_indices(6, 1)
    expected = draws * (one_by_one + one_by_one.T)[pairs]
    assert chi2.sf(np.sum((both[pairs] - expected) ** 2 / expected), 14) > UNLIKELY


def test_soft_dropping_at_temperature_zero_is_by_magnitude():
    layer = layer_of(random_cells((20, 30), 0.5))
    kept = [
        DROPS[name](layer, RuleState(layer, 0.3, drop_factor=0.0), 90, np.random.default_rng(0))
        for name in ("soft", "magnitude")
    ]
    np.testing.assert_array_equal(*kept)


# Where connections grow


def paths_of(layer, keep) -> np.ndarray:
    """Σ over paths i - h - g - j of 1/√(d_h·d_g), of the connections that are kept."""
    kept = dense(layer, keep)
    by_input = 1 / np.sqrt(np.maximum(kept.sum(axis=1), 1))
    by_output = 1 / np.sqrt(np.maximum(kept.sum(axis=0), 1))
    return (kept * by_output) @ (kept.T * by_input) @ kept


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    density=st.floats(0.05, 0.9),
    seed=st.integers(0, 2**32),
)
def test_growth_by_topology_takes_the_cells_with_most_paths(shape, density, seed):
    rng = np.random.default_rng(seed)
    layer = layer_of(rng.random(shape) < density, seed=seed)
    keep = rng.random(layer.nnz) < 0.7
    count = int(np.count_nonzero(~keep))
    state = RuleState(layer, 0.3, keep=keep, candidates=1e6)  # all free cells
    cells = grow_by_paths(layer, state, count, rng)
    scores, taken = paths_of(layer, keep), dense(layer, keep).astype(bool)
    assert len(cells) == count and (np.diff(cells) > 0).all() and not taken.flat[cells].any()
    best = np.sort(scores[~taken])[::-1][:count]
    np.testing.assert_allclose(np.sort(scores.flat[cells])[::-1], best, rtol=1e-4, atol=1e-6)


def test_paths_of_neurons_with_many_connections_are_estimated():
    layer = layer_of(random_cells((4 * PATHS, 5 * PATHS), 0.5))
    keep = np.ones(layer.nnz, dtype=bool)
    cells = np.arange(0, layer.n_in * layer.n_out, 97)
    scores = score_by_paths(layer, RuleState(layer, 0.3, keep=keep), cells)
    expected = paths_of(layer, keep).flat[cells]
    assert abs(scores.mean() / expected.mean() - 1) < 0.02
    np.testing.assert_allclose(scores, expected, rtol=0.5)


def test_ties_among_the_largest_are_spread():
    rng = np.random.default_rng(0)
    values = np.repeat([3.0, 1.0, 0.0], [5, 90, 5]).astype(np.float32)
    counts = sum(mark_largest(values, 35, rng).astype(int) for _ in range(2000))
    assert (counts[:5] == 2000).all() and not counts[95:].any()
    assert np.abs(counts[5:95] - 2000 / 3).max() < 120
    assert not mark_largest(values, 0, rng).any() and mark_largest(values, 100, rng).all()


@pytest.mark.parametrize("dying", [0, 0.2])
@pytest.mark.parametrize("zeta", [0.3, 0.9])
def test_neurons_without_connections_get_one_first(dying, zeta):
    rng = np.random.default_rng(0)
    cells = rng.random((60, 50)) < 0.1
    cells[:20] = cells[:, 40:] = False  # without outputs, without inputs
    dead_inputs, dead = rng.random(60) < dying, rng.random(50) < dying
    cells[dead_inputs] = cells[:, dead] = False
    layer = layer_of(cells, dead=dead)
    state = RuleState(layer, zeta, dead_inputs=dead_inputs)
    evolve(layer, zeta, rng, rules=Rules.of("set", "reconnect"), state=state)
    kept, found = dense(layer, 1).astype(bool), pattern(layer)
    assert found.sum() == cells.sum()
    lonely = np.count_nonzero(~found.any(axis=1) & ~dead_inputs) + np.count_nonzero(
        ~found.any(axis=0) & ~dead
    )
    assert lonely == 0 and kept.sum() == layer.nnz


def test_some_neurons_are_reconnected_where_few_connections_grow():
    cells = np.zeros((40, 30), dtype=bool)
    cells[0] = True
    layer = layer_of(cells)
    counts = np.zeros(40)
    for seed in range(300):
        keep = np.ones(30, dtype=bool)
        keep[:9] = False
        grown = reconnect(layer, RuleState(layer, 0.3, keep=keep), 9, np.random.default_rng(seed))
        assert len(np.unique(grown)) == 9
        counts[np.unique(grown // 30)] += 1
    assert counts[1:].min() > 0.4 * counts[1:].mean()


def test_numbers_are_found_among_others():
    assert are_in(np.array([0, 3, 9]), np.array([3, 8])).tolist() == [False, True, False]
    assert are_in(np.array([0, 3]), np.array([], dtype=int)).tolist() == [False, False]


# Rules of one's own


def grow_first(layer, state, count, rng):
    """The first free cells."""
    cells = np.arange(layer.n_in * layer.n_out)
    return cells[state.is_free(cells)][:count]


@needs_gradient
def grow_by_score(layer, state, count, rng):
    cells = state.draw(min(state.n_free, 3 * count), rng)
    return np.sort(cells[np.argsort(-(state.score(cells) ** 2), kind="stable")[:count]])


def drop_oldest(layer, state, count, rng):
    keep = np.ones(layer.nnz, dtype=bool)
    keep[:count] = False
    return keep


HERE = __name__


def trained(epochs=3, **options):
    checkpoint = options.pop("checkpoint", None)
    options = {"seed": 2, "batch_size": 20, "epsilon": 3.0} | options
    trainer = make_trainer(epochs=epochs, **options)
    fit(trainer, checkpoint)
    return trainer


def fit(trainer, checkpoint=None):
    X = np.random.default_rng(0).standard_normal((60, 12)).astype(np.float32)
    trainer.fit(X, np.arange(60) % 3, checkpoint=checkpoint, progress=False)


@pytest.mark.parametrize(
    ("drop", "growth"),
    [
        ("set", grow_first),
        ("set", f"{HERE}:grow_by_score"),
        (drop_oldest, "random"),
        ("mest", grow_by_score),
        ("soft", "topology"),
        ("magnitude", "reconnect"),
    ],
)
def test_a_training_by_a_rule_is_the_same_by_two_threads_and_resumed(drop, growth, tmp_path):
    own = {"drop": drop, "growth": growth}
    one = trained(**own, pruning_start=1, pruning_every=1)
    two = trained(**own, pruning_start=1, pruning_every=1, threads=2)
    trained(2, **own, pruning_start=1, pruning_every=1, checkpoint=tmp_path)
    resumed = load_checkpoint(tmp_path, epochs=3)
    assert isinstance(resumed.config.growth, str) and isinstance(resumed.config.drop, str)
    fit(resumed)
    assert same(one.network, two.network) and same(one.network, resumed.network)


def test_the_rule_of_the_docs_trains_as_it_says(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    section = page.partition("### A growth rule of your own\n")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    assert len(code.split("config =")[0].strip().splitlines()) <= 15
    (tmp_path / "my_rules.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    one, two = (trained(growth="my_rules:grow_at_the_strong", threads=n) for n in (1, 2))
    trained(2, growth="my_rules:grow_at_the_strong", checkpoint=tmp_path / "run")
    resumed = load_checkpoint(tmp_path / "run", epochs=3)
    fit(resumed)
    assert same(one.network, two.network) and same(one.network, resumed.network)
    assert not same(one.network, trained().network)
    monkeypatch.delitem(sys.modules, "my_rules")


@pytest.mark.parametrize("kind", ["drop", "growth"])
def test_a_rule_that_takes_other_arguments_is_refused(kind):
    with pytest.raises(ParameterError, match=rf"{kind}.* \(layer, state, count, rng\): too many"):
        TrainingConfig(**{kind: lambda layer, state: None})


def test_a_rule_of_a_module_is_kept_by_its_name():
    config = TrainingConfig(growth=grow_first, drop=GROWTHS and DROPS["mest"])
    assert config.growth == f"{HERE}:grow_first" and config.drop == "mest"
    assert config == TrainingConfig(growth=f"{HERE}:grow_first", drop="mest")
    assert json.loads(json.dumps(config.as_dict())) == config.as_dict()
    assert pickle.loads(pickle.dumps(config)).rules.grow is grow_first


def test_a_rule_without_a_name_trains_but_is_not_saved(tmp_path):
    def grow(layer, state, count, rng):
        return grow_first(layer, state, count, rng)

    one = trained(growth=grow)
    assert same(one.network, trained(growth=grow_first).network)
    assert one.config.as_dict()["growth"].endswith("<locals>.grow")
    with pytest.raises(CheckpointError, match=r"<locals>\.grow, cannot be found .* top level"):
        trained(growth=grow, checkpoint=tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_rule_goes_on_and_is_told(tmp_path, caplog, monkeypatch):
    trained(2, growth=grow_first, checkpoint=tmp_path)
    load_checkpoint(tmp_path)
    load_checkpoint(tmp_path, growth=grow_first)
    assert not caplog.records
    resumed = load_checkpoint(tmp_path, growth="random")
    assert resumed.config.growth == "random"
    assert f"'{HERE}:grow_first' for growth and goes on with 'random'" in caplog.text
    monkeypatch.delattr(sys.modules[HERE], "grow_first")
    with pytest.raises(CheckpointError, match=r"cannot be imported.*load_checkpoint\(folder, gr"):
        load_checkpoint(tmp_path)
    assert load_checkpoint(tmp_path, growth="random").config.growth == "random"


def test_reading_a_checkpoint_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / "own_rules.py").write_text(
        "def grow(layer, state, count, rng):\n    return state.draw(count, rng)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    trained(2, growth="own_rules:grow", checkpoint=tmp_path / "run")
    monkeypatch.delitem(sys.modules, "own_rules")
    with pytest.raises(CheckpointError, match=r"imports nothing.*growth='own_rules:grow'"):
        load_checkpoint(tmp_path / "run")
    assert "own_rules" not in sys.modules
    resumed = load_checkpoint(tmp_path / "run", growth="own_rules:grow")
    assert resumed.config.growth == "own_rules:grow"


def wrong(change):
    def grow(layer, state, count, rng):
        return change(state.draw(count, rng), layer, state)

    return grow


WRONG_CELLS = {
    "list": lambda cells, *_: cells.tolist(),
    "float64 of shape": lambda cells, *_: cells.astype(float),
    r"int64 of shape \(\d+, 1\)": lambda cells, *_: cells[:, None],
    "8 cells": lambda cells, *_: cells[:8],
    "cells from .*, outside": lambda cells, *_: np.append(cells[1:], 30 * 20),
    "cells from -1 to": lambda cells, *_: np.append(-1, cells[1:]),
    "cells that do not ascend": lambda cells, *_: cells[::-1],
    "1 cells twice": lambda cells, *_: np.sort(np.append(cells[1:], cells[1])),
    "1 cells with connections": lambda cells, layer, state: np.sort(
        np.append(
            cells[1:],
            (layer.topology.rows() * 20 + layer.topology.indices)[state.keep][0],
        )
    ),
}


@pytest.mark.parametrize("message", WRONG_CELLS)
def test_wrong_cells_are_named(message):
    layer = layer_of(random_cells((30, 20), 0.2))
    before = layer.topology
    own = Rules.of(growth=wrong(WRONG_CELLS[message]))
    named = rf"'growth', '.*grow', must .* of layer 2.*Got {message}"
    with pytest.raises(ParameterError, match=named):
        evolve(layer, 0.3, np.random.default_rng(0), rules=own)
    assert layer.topology is before


def test_cells_at_dead_neurons_are_named():
    cells = random_cells((30, 20), 0.2)
    dead = np.arange(20) == 3
    cells[:, dead] = False
    layer = layer_of(cells, dead=dead)
    own = Rules.of(growth=wrong(lambda cells, *_: np.append(3, cells[cells > 3])[: len(cells)]))
    with pytest.raises(ParameterError, match=r"Got (1 cells with connections or dead|\d+ cells\.)"):
        evolve(layer, 0.3, np.random.default_rng(0), rules=own)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (lambda layer: np.ones(layer.nnz), "float64 of shape"),
        (lambda layer: np.ones(3, dtype=bool), r"bool of shape \(3,\)"),
        (lambda layer: None, "NoneType"),
        (lambda layer: np.zeros(layer.nnz, dtype=bool), "that go"),
    ],
)
def test_a_wrong_mask_is_named(keep, message):
    layer = layer_of(random_cells((30, 20), 0.2))
    own = Rules.of(drop=lambda layer, state, count, rng: keep(layer))
    with pytest.raises(ParameterError, match=rf"'drop', .*must return a bool array.*{message}"):
        evolve(layer, 0.3, np.random.default_rng(0), rules=own)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("best", r"one of \['gradient', 'random', 'reconnect', 'topology'\].*Got 'best'"),
        (3, "Got 3"),
        ("no_such_module:grow", "cannot be imported.*PYTHONPATH"),
        (".x:grow", "cannot be imported: TypeError.*'module:function'"),
        (":grow", "cannot be imported: ValueError"),
        (f"{HERE}:no_such_rule", "cannot be imported"),
        (f"{HERE}:HERE", "must be one of"),
    ],
)
def test_what_is_no_rule_is_refused(rule, message):
    with pytest.raises(ParameterError, match=rf"'growth' parameter of a training.*{message}"):
        TrainingConfig(growth=rule)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def grow(:\n", "SyntaxError"),
        ("raise OSError('no disk')\n", "OSError: no disk"),
        ("1 / 0\n", "ZeroDivisionError"),
    ],
)
def test_a_module_of_rules_that_fails_is_named(text, message, tmp_path, monkeypatch):
    (tmp_path / "failing_rules.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    named = rf"'growth' parameter.*'failing_rules:grow', cannot be imported: {message}"
    with pytest.raises(ParameterError, match=named):
        TrainingConfig(growth="failing_rules:grow")


def test_cells_outside_of_a_layer_are_not_free():
    layer = layer_of(random_cells((9, 11), 0.3))
    state = RuleState(layer, 0.3, keep=np.ones(layer.nnz, dtype=bool))
    cells = np.arange(-200, 300)
    expected = np.zeros(500, dtype=bool)
    expected[200:299] = ~pattern(layer).ravel()
    np.testing.assert_array_equal(state.is_free(cells), expected)
    np.testing.assert_array_equal(state.is_free(cells[::-1]), expected[::-1])
    far = np.array([2**62, -(2**62), 99])
    assert not state.is_free(far).any()


@pytest.mark.parametrize("cells", [[3, 1, 2], [5, 4], [-1, 3], [3, 221], [221], [-1], [2**40]])
def test_a_score_is_of_cells_that_ascend_within_the_layer(cells):
    state = state_of(layer_of(random_cells((13, 17), 0.3)))
    with pytest.raises(ParameterError, match=r"must ascend, from 0 to 220\. Sort"):
        state.score(np.array(cells))
    assert state.score(np.array([0, 7, 7, 220])).shape == (4,)
    assert state.score(np.array([], dtype=np.int64)).shape == (0,)


def test_what_a_state_has_not_is_said():
    layer = layer_of(random_cells((10, 10), 0.2))
    state = RuleState(layer, 0.3)
    with pytest.raises(ParameterError, match="only after it"):
        state.draw(1, np.random.default_rng(0))
    state.keep = np.ones(layer.nnz, dtype=bool)
    assert state.n_free == 100 - layer.nnz
    with pytest.raises(ParameterError, match=r"at most state\.n_free"):
        state.draw(state.n_free + 1, np.random.default_rng(0))
    for ask in (state.gradient, lambda: state.score(np.array([0]))):
        with pytest.raises(ParameterError, match="needs_gradient = True"):
            ask()


def test_gradients_of_connections_and_cells_are_the_dense_ones():
    layer = layer_of(random_cells((13, 17), 0.3))
    state = state_of(layer)
    expected = state.X @ state.delta.T
    np.testing.assert_allclose(
        dense(layer, state.gradient()), expected * pattern(layer), rtol=1e-4, atol=1e-5
    )
    cells = np.flatnonzero(~pattern(layer))
    np.testing.assert_allclose(state.score(cells), expected.flat[cells], rtol=1e-4, atol=1e-5)
    assert rules.SET.needs_gradient is False and Rules.of("mest").needs_gradient is True


def test_growth_by_topology_looks_at_less_of_wide_layers(monkeypatch):
    layer = layer_of(random_cells((60, 50), 0.6))
    state = RuleState(layer, 0.3, keep=np.ones(layer.nnz, dtype=bool))
    cells = np.flatnonzero(~pattern(layer))
    drawn = []
    monkeypatch.setattr(
        state, "draw", lambda n, rng: drawn.append(n) or RuleState.draw(state, n, rng)
    )
    scores = []
    for names in ({}, {"PATHS": growth.PATHS_OF_WIDE}, {"WIDE": 59}):
        with monkeypatch.context() as patch:
            for name, value in names.items():
                patch.setattr(growth, name, value)
            scores.append(score_by_paths(layer, state, cells))
            grow_by_paths(layer, state, 80, np.random.default_rng(0))
    assert drawn == [160, 160, 120]
    np.testing.assert_array_equal(scores[1], scores[2])
    assert not np.allclose(scores[0], scores[1])


def test_growth_by_topology_is_at_random_where_cells_have_no_paths():
    layer = layer_of(random_cells((400, 400), 0.0004))
    keep = np.ones(layer.nnz, dtype=bool)
    grown = [
        rule(layer, RuleState(layer, 0.3, keep=keep), 20, np.random.default_rng(0))
        for rule in (grow_by_paths, GROWTHS["random"])
    ]
    np.testing.assert_array_equal(*grown)
