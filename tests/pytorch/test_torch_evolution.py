"""SET of PyTorch's models: exact counts, and the optimizer's state follows its connections."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest

from largesparse.errors import ParameterError

torch = pytest.importorskip("torch")

from largesparse.torch import AllReLU, Evolution, SparseLinear, evolve, recording  # noqa: E402

OPTIMIZERS = {
    "SGD": {"lr": 0.001, "momentum": 0.9},
    "Adam": {"lr": 0.01, "amsgrad": True},
    "AdamW": {"lr": 0.01},
    "RMSprop": {"lr": 0.01, "momentum": 0.5},
    "Adagrad": {"lr": 0.1},
    "Adadelta": {},
    "NAdam": {},
    "Rprop": {},
    "ASGD": {},
}


def cells_of(layer):
    topology = layer.topology
    return topology.rows().astype(np.int64) * layer.out_features + topology.indices


def by_cell(layer, tensor):
    return dict(zip(cells_of(layer).tolist(), tensor.detach().tolist(), strict=True))


def chain(recipe="width"):
    return torch.nn.Sequential(
        SparseLinear(20, 30, density=0.3, recipe=recipe, seed=1),
        AllReLU(),
        SparseLinear(30, 4, density=0.3, recipe=recipe, seed=2),
    )


def train(model, optimizer, steps=3):
    torch.manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 20)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_every_optimizer_follows_its_connections(name):
    model = chain()
    optimizer = getattr(torch.optim, name)(model.parameters(), **OPTIMIZERS[name])
    train(model, optimizer)
    layer = model[0]

    def everything():
        state = optimizer.state[layer.values]
        found = {"values": layer.values, "grad": layer.values.grad}
        found |= {k: v for k, v in state.items() if torch.is_tensor(v) and v.numel() > 1}
        return {key: by_cell(layer, tensor) for key, tensor in found.items()}

    before, parameter, version = everything(), layer.values, layer.values._version
    steps = copy.deepcopy(optimizer.state[layer.values].get("step"))
    evolve(model, 0.3, optimizer=optimizer)
    after = everything()
    assert layer.values is parameter and parameter._version > version
    stay = before["values"].keys() & after["values"].keys()
    assert len(after["values"].keys() - stay) > 0
    for key in before:
        for cell, number in after[key].items():
            # what goes and grows again at the same cell begins anew
            assert number in (before[key].get(cell, 0.0), 0.0), key
    moved = [cell for cell in stay if after["values"][cell] == before["values"][cell] != 0]
    assert len(moved) >= 0.69 * len(before["values"])
    for key in before:
        assert all(after[key][cell] == before[key][cell] for cell in moved)
    assert optimizer.state[layer.values].get("step") == steps
    train(model, optimizer)  # goes on
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_counts_are_exactly_those_of_set():
    layer = SparseLinear(50, 60, density=0.2, seed=3)
    values = layer.values.detach().numpy().copy()
    places = evolve(layer, 0.3)[""].numpy()
    gone = places < 0
    for sign in (values >= 0, values < 0):
        assert np.count_nonzero(gone & sign) == math.floor(0.3 * np.count_nonzero(sign))
        assert np.abs(values[gone & sign]).max() <= np.abs(values[~gone & sign]).min()
    assert layer.connections == len(values)
    np.testing.assert_array_equal(layer.values.detach().numpy()[places[~gone]], values[~gone])
    cells = cells_of(layer)
    assert (np.diff(cells) > 0).all()
    dense = layer.to_dense()
    x = torch.randn(7, 50)
    torch.testing.assert_close(layer(x), dense(x))


def test_evolution_is_that_of_the_network():
    from helpers import make_network

    from largesparse.model.evolution import evolve as evolve_layer
    from largesparse.randomness import stream

    network = make_network((30, 20, 3), epsilon=4, seed=5)
    layer = SparseLinear(30, 20, epsilon=4, recipe="paper", seed=5)
    for number in range(2):
        evolve(layer, 0.4)
        evolve_layer(network.layers[0], 0.4, stream(5, "evolution", number))
    np.testing.assert_array_equal(layer.values.detach(), network.layers[0].values)
    np.testing.assert_array_equal(cells_of(layer) % 20, network.layers[0].topology.indices)
    assert layer.random_state.tolist() == [5, 2]


@pytest.mark.parametrize("recipe", ["paper", "width"])
def test_new_connections_begin_as_the_recipe_says(recipe):
    layer = SparseLinear(50, 60, density=0.2, recipe=recipe, seed=3)
    places = evolve(layer, 0.3)[""]
    new = torch.ones(layer.connections, dtype=torch.bool)
    new[places[places >= 0].long()] = False
    assert bool((layer.values[new] == 0).all()) == (recipe == "width")


def test_equal_models_evolve_equally_and_go_on_from_a_state():
    one = chain()
    other = copy.deepcopy(one)
    for model in (one, other):
        evolve(model, 0.3)
    resumed = chain()
    resumed.load_state_dict(one.state_dict())
    for model in (one, other, resumed):
        evolve(model, 0.3)
    for model in (other, resumed):
        assert all(map(torch.equal, one.state_dict().values(), model.state_dict().values()))
    before = one[0].indices.clone()
    evolve(one, 0.0)
    assert torch.equal(one[0].indices, before)


def largest_gradients(layer, x, delta, keep):
    gradient = (x.double().t() @ delta.double()).abs().reshape(-1).numpy()
    gradient[cells_of(layer)[keep]] = -1
    return gradient


def test_gradient_growth_takes_cells_with_large_gradients():
    model = torch.nn.Sequential(torch.nn.Linear(9, 20), SparseLinear(20, 30, density=0.1, seed=1))
    layer, x = model[1], torch.randn(16, 9)
    with recording(model):
        for part in x.split(6):  # micro-batches add up
            model(part).square().sum().backward()
    inputs = model[0](x).detach()
    delta = 2 * layer(inputs).detach()
    old = cells_of(layer)
    places = evolve(layer, 0.5, growth="gradient")[""].numpy()
    scores = largest_gradients(layer, inputs, delta, np.zeros(0, dtype=int))
    new = np.setdiff1d(cells_of(layer), old[places >= 0])
    free = np.setdiff1d(np.arange(600), old[places >= 0])
    assert scores[new].mean() > 1.5 * scores[free].mean()
    with pytest.raises(ParameterError, match="Nothing was recorded of the layer '1'"):
        evolve(model, 0.5, growth="gradient")


@pytest.mark.parametrize(
    ("rules", "name", "low", "seen"),
    [
        ({"drop": "soft"}, "drop_factor", -0.1, 0.25),
        ({"growth": "topology"}, "growth_candidates", 0.5, 9.0),
    ],
)
def test_rules_are_given_their_options(rules, name, low, seen, monkeypatch):
    from largesparse.model import rules as known

    found = []
    kind, rule = next(iter(rules.items()))
    original = known.KINDS[kind][rule]

    def watched(layer, state, count, rng):
        found.append((state.candidates, state.drop_factor))
        return original(layer, state, count, rng)

    monkeypatch.setitem(known.KINDS[kind], rule, watched)
    model = chain()
    evolve(model, 0.3, **rules)
    evolve(model, 0.3, **rules, **{name: seen})
    assert Evolution(model, every=1, **rules, **{name: seen}).step()
    changed = (seen, 1.0) if name == "growth_candidates" else (4.0, seen)
    assert found == [(4.0, 1.0)] * 2 + [changed] * 4
    for call in (evolve, Evolution):
        with pytest.raises(ParameterError, match=f"'{name}'.* {call.__name__} .*{low}"):
            call(model, zeta=0.3, **{name: low})


@pytest.mark.parametrize("growth", ["topology", "reconnect"])
def test_rules_without_gradients_need_no_recording(growth):
    layer = SparseLinear(20, 30, density=0.05, seed=0)
    before = cells_of(layer)
    evolve(layer, 0.3, growth=growth, drop="soft")
    assert len(cells_of(layer)) == len(before) and not np.array_equal(cells_of(layer), before)
    assert (np.diff(cells_of(layer)) > 0).all()


def test_what_goes_and_where_grows_may_be_chosen():
    layer = SparseLinear(10, 10, density=0.3, seed=0)

    def drop(record, state, count, rng):
        keep = np.ones(record.nnz, dtype=bool)
        keep[:4] = False
        return keep

    chosen = []

    def growth(record, state, count, rng):
        free = np.setdiff1d(np.arange(100), cells_of(layer)[state.keep])
        chosen.append(free[-count:])
        return free[-count:]

    old = cells_of(layer)
    places = evolve(layer, 0.3, drop=drop, growth=growth)[""]
    assert (places[:4] == -1).all() and (places[4:] >= 0).all()
    assert len(chosen[0]) == 4
    np.testing.assert_array_equal(cells_of(layer), np.union1d(old[4:], chosen[0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"zeta": 1.0}, "'zeta'"),
        ({"growth": "best"}, "'growth'.*Got 'best'"),
        ({"growth": lambda layer, state, count, rng: [0]}, "different free cells.*Got list"),
        ({"drop": lambda layer, state, count, rng: np.ones(3)}, "'drop'.*must return a bool"),
    ],
)
def test_mistakes_are_named(options, message):
    layer = SparseLinear(10, 10, density=0.3, seed=0)
    before = layer.state_dict()
    with pytest.raises(ParameterError, match=message):
        evolve(layer, **{"zeta": 0.3} | options)
    assert all(map(torch.equal, before.values(), layer.state_dict().values()))


def test_a_wrong_optimizer_or_model_is_named():
    model = chain()
    with pytest.raises(ParameterError, match="does not have the values"):
        evolve(model, 0.3, optimizer=torch.optim.SGD(chain().parameters()))
    with pytest.raises(ParameterError, match="LBFGS keeps"):
        evolve(model, 0.3, optimizer=torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ParameterError, match="no SparseLinear"):
        evolve(torch.nn.Linear(3, 3), 0.3)


def test_a_backward_pass_from_before_an_evolution_fails():
    layer = SparseLinear(10, 10, density=0.3, seed=0)
    y = layer(torch.randn(3, 10)).sum()
    evolve(layer, 0.3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@pytest.mark.parametrize("rules", [{}, {"growth": "gradient"}, {"drop": "mest"}])
def test_the_helper_evolves_every_n_steps(rules):
    model = chain()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    evolution = Evolution(model, optimizer, zeta=0.3, every=3, until=7, **rules)
    due = []
    for _ in range(10):
        train(model, optimizer, 1)
        before = model[0].indices.clone()
        due.append(evolution.step())
        assert torch.equal(model[0].indices, before) != due[-1]
    assert due == [step in (3, 6) for step in range(1, 11)]
    again = Evolution(model, optimizer, every=3)
    again.load_state_dict(evolution.state_dict())
    assert again.steps == 10


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_momentum_lands_on_other_connections_in_sparselab():
    """The defect that largesparse does not have."""
    sparselab = pytest.importorskip("sparselab")
    layer = sparselab.SparseLinear(40, 30, sparsity=0.8)
    optimizer = torch.optim.SGD(layer.parameters(), 0.01, momentum=0.9)
    policy = sparselab.SET(sparsity=0.0, drop_fraction=0.3, seed=0)
    layer.apply(policy)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(16, 40)).square().sum().backward()
        optimizer.step()
    values = next(layer.parameters())
    momentum = optimizer.state[values]["momentum_buffer"]
    pairs = dict(zip(values.tolist(), momentum.tolist(), strict=True))
    policy.update()
    after = dict(zip(next(layer.parameters()).tolist(), momentum.tolist(), strict=True))
    stay = [w for w in after if w in pairs and w != 0]
    assert stay
    assert any(after[w] != pairs[w] for w in stay)


def test_no_input_or_output_loses_its_last_connection():
    def idle(layer):
        topology = layer.topology
        empty = [(np.diff(p) == 0).sum() for p in (topology.indptr, topology.indptr_by_output)]
        return np.array(empty)

    for keep_active in (False, True):
        model = torch.nn.Sequential(*(SparseLinear(200, 200, epsilon=0.8, seed=k) for k in (1, 2)))
        before = [idle(layer) for layer in model]
        helper = Evolution(model, zeta=0.5, every=1, keep_active=keep_active)
        assert helper.step()
        worse = [(idle(layer) > old).any() for layer, old in zip(model, before, strict=True)]
        assert not any(worse) if keep_active else all(worse)
    with pytest.raises(ParameterError, match="'keep_active'"):
        evolve(model, 0.1, keep_active=1)


def test_a_rule_that_fails_changes_nothing():
    model = chain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    with recording(model):
        train(model, optimizer, steps=1)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    fails = []

    def growth(layer, state, count, rng):
        state.gradient()
        if layer.n_in == 30 and fails.append(1) is None and len(fails) == 1:
            raise RuntimeError("of the second layer")
        return state.draw(count, rng)

    growth.needs_gradient = True
    with pytest.raises(RuntimeError, match="of the second layer"):
        evolve(model, 0.3, optimizer=optimizer, growth=growth)
    now = model.state_dict(), optimizer.state_dict()["state"]
    assert all(torch.equal(now[0][name], before[0][name]) for name in now[0])
    for one, other in zip(now[1].values(), before[1].values(), strict=True):
        assert torch.equal(one["momentum_buffer"], other["momentum_buffer"])
    evolve(model, 0.3, optimizer=optimizer, growth=growth)  # what was recorded is still there
    assert model[0].random_state[1] == model[2].random_state[1] == 1
