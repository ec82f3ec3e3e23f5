"""PyTorch layers whose topology is given, and models that are masked already."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import pattern, same
from scipy.sparse import csr_array

from largesparse import GivenTopology, NetworkConfig, SparseMLP
from largesparse.errors import ParameterError
from largesparse.model.topology import Topology

torch = pytest.importorskip("torch")

from torch.nn.utils import prune  # noqa: E402

from largesparse.torch import SparseLinear, convert, evolve, to_network, to_torch  # noqa: E402

nn = torch.nn

RNG = np.random.default_rng(0)
MASK = RNG.random((9, 7)) < 0.5


def cells(layer: SparseLinear) -> np.ndarray:
    found = np.zeros((layer.in_features, layer.out_features), bool)
    found.ravel()[layer.topology.cells()] = True
    return found


def test_a_frozen_layer_stays_and_one_with_candidates_grows_within_them():
    frozen = SparseLinear(9, 7, topology=csr_array(MASK), seed=1)
    assert np.array_equal(cells(frozen), MASK)
    free = SparseLinear(9, 7, topology=torch.from_numpy(MASK.T.copy()), seed=1)
    within = SparseLinear(9, 7, topology=GivenTopology(MASK, "within"), seed=1)
    first = cells(within)
    assert first.sum() == round(0.5 * MASK.sum()) and not (first & ~MASK).any()
    for layer in (frozen, free, within):
        evolve(layer, 0.5)
    assert np.array_equal(cells(frozen), MASK)
    assert (cells(free) & ~MASK).any()
    assert not (cells(within) & ~MASK).any() and (cells(within) != first).any()

    other = SparseLinear(9, 7, topology=GivenTopology(~MASK, "within"), seed=2)
    same_size = GivenTopology(candidates=MASK)
    other = SparseLinear(9, 7, topology=same_size, seed=2)
    other.load_state_dict(within.state_dict())
    for layer in (within, other):
        evolve(layer, 0.5)
    assert np.array_equal(cells(within), cells(other))


def test_weights_and_shapes():
    weights = np.where(MASK, RNG.standard_normal((9, 7)), 0)
    layer = SparseLinear(9, 7, topology=GivenTopology(csr_array(weights), weights=True))
    x = torch.randn(4, 9)
    expected = x.double() @ torch.from_numpy(weights)
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ParameterError, match=r"has the shape \(7, 9\)"):
        SparseLinear(9, 7, topology=csr_array(MASK.T))
    damaged = Topology(9, 7, np.array([0, *[1] * 9], np.int32), np.array([7], np.int32))
    with pytest.raises(ParameterError, match=r"outside \[0, 7\)"):
        SparseLinear(9, 7, topology=damaged)
    with pytest.raises(ParameterError, match="Got int instead"):
        SparseLinear(9, 7, topology=3)
    with pytest.raises(ParameterError, match=r"bool, of shape \(7, 9\). Got torch.float32"):
        SparseLinear(9, 7, topology=torch.ones(7, 9))
    for topology in (MASK, lambda n_in, n_out, rng: MASK):
        layer = SparseLinear(9, 7, topology=topology)
        assert np.array_equal(cells(layer), MASK) and layer.config.frozen


def test_a_network_keeps_its_candidates_through_pytorch():
    topology = [GivenTopology(MASK, "within"), np.eye(7, 5)]
    network = SparseMLP(NetworkConfig((9, 7, 5, 2)), progress=False, topology=topology)
    for share in (False, True):
        module = to_torch(network, share=share)
        back = to_network(module)
        assert same(network, back) and back.config.given == network.config.given
        assert back.layers[0].candidates.nnz == MASK.sum() and back.layers[1].config.frozen
    evolve(module, 0.4)
    assert not (cells(module.layers[0]) & ~MASK).any()
    chain = nn.Sequential(SparseLinear(9, 7, topology=csr_array(MASK)), nn.ReLU())
    chain.append(SparseLinear(7, 2, density=0.5))
    given = to_network(chain).config.given
    assert given[0].evolution == "frozen" and given[1] is None


@pytest.mark.parametrize("masked", [True, False])
def test_a_masked_model_becomes_a_sparse_one_with_the_same_outputs(masked):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3))
    for layer in (model[0], model[2]):
        prune.l1_unstructured(layer, "weight", amount=0.6)
        layer(torch.randn(2, layer.in_features))
        if not masked:
            prune.remove(layer, "weight")
    kept = [(layer.weight != 0).T.numpy() for layer in (model[0], model[2])]
    x = torch.randn(5, 9)
    expected = model(x).detach()
    sparse = convert(model, keep="nonzero")
    torch.testing.assert_close(sparse(x), expected)
    for layer, mask in zip((sparse[0], sparse[2]), kept, strict=True):
        assert np.array_equal(cells(layer), mask) and layer.values.requires_grad
    sparse(x).sum().backward()
    assert [pattern(layer).sum() for layer in to_network(sparse).layers] == [m.sum() for m in kept]


def test_a_zero_within_a_mask_is_a_connection():
    def masked() -> nn.Linear:
        layer = nn.Linear(3, 2)
        prune.custom_from_mask(layer, "weight", torch.tensor([[1, 0, 1], [0, 0, 1]]))
        with torch.no_grad():
            layer.weight_orig[0, 0] = 0
        return layer

    sparse = convert(masked(), keep="nonzero")
    assert sparse.connections == 3 and not sparse.config.frozen
    frozen = convert(masked(), keep="nonzero", frozen=True)
    before = cells(frozen)
    evolve(frozen, 0.5)
    assert np.array_equal(cells(frozen), before)
    assert to_network(nn.Sequential(frozen)).config.given[0].evolution == "frozen"


def test_what_cannot_be_taken_is_refused():
    with pytest.raises(ParameterError, match="Leave 'density' and"):
        convert(nn.Linear(3, 2), keep="nonzero", density=0.5)
    dense = nn.Linear(3, 2)
    with torch.no_grad():
        dense.weight.zero_()
    with pytest.raises(ParameterError, match="no weight that is not zero"):
        convert(dense, keep="nonzero")
    masked = prune.random_unstructured(nn.Linear(3, 2), "weight", 0.5)
    with pytest.raises(ParameterError, match="taken with keep='nonzero'"):
        convert(masked, density=0.5)
    biased = prune.random_unstructured(nn.Linear(3, 2), "bias", 1)
    with pytest.raises(ParameterError, match="weight or bias from others"):
        convert(biased, keep="nonzero")


def test_a_state_brings_its_candidates_and_changes_no_other_s():
    network = SparseMLP(
        NetworkConfig((9, 7, 2)), progress=False, topology=GivenTopology(MASK, "within")
    )
    before = network.layers[0].candidates.cells()
    module = to_torch(network, share=True)
    layer, copied = module.layers[0], to_network(module)
    wide = SparseLinear(9, 7, topology=GivenTopology(np.ones((9, 7)), "within"))
    same_count = SparseLinear(9, 7, topology=GivenTopology(MASK[::-1], "within"))
    free = SparseLinear(9, 7, density=0.5)
    for other in (same_count, wide, free):  # also of another number
        state = other.state_dict()
        layer.load_state_dict(state)
        assert np.array_equal(cells(layer), cells(other))
        assert (layer.candidates is None) == (other.candidates is None)
        if other.candidates is not None:
            assert np.array_equal(layer.candidates.cells(), other.candidates.cells())
            assert layer.candidate_indices.data_ptr() != other.candidate_indices.data_ptr()
        for each in (network, copied):
            assert np.array_equal(each.layers[0].candidates.cells(), before)
    layer.load_state_dict(wide.state_dict(), assign=True)
    assert layer.candidates.nnz == 63
    alone = {k: v for k, v in same_count.state_dict().items() if "candidate" in k}
    layer.load_state_dict(alone, strict=False)
    assert layer.candidates.nnz == 63


def test_a_state_with_damaged_candidates_is_refused():
    layer = SparseLinear(9, 7, topology=GivenTopology(MASK, "within"))
    state = layer.state_dict()
    bad = state["candidate_indptr"].clone()
    bad[3] = 60
    with pytest.raises(RuntimeError, match="candidate_indices: indptr does not ascend"):
        layer.load_state_dict(state | {"candidate_indptr": bad})
    other = SparseLinear(9, 7, topology=GivenTopology(~MASK, "within")).state_dict()
    names = ("candidate_indptr", "candidate_indices")
    with pytest.raises(RuntimeError, match="connections that are no candidates"):
        layer.load_state_dict(state | {name: other[name] for name in names})
    del state["candidate_indptr"]
    with pytest.raises(RuntimeError, match="go together"):
        layer.load_state_dict(state, strict=False)


def test_modules_and_names_of_before():
    layer = SparseLinear(9, 7, density=0.5)
    state = layer.__getstate__()
    state["_buffers"] = {k: v for k, v in state["_buffers"].items() if "candidate" not in k}
    old = SparseLinear.__new__(SparseLinear)
    old.__setstate__(state)
    assert old.candidates is None
    evolve(old, 0.3)
    topology = GivenTopology(MASK, output_names=list("abcdefg"))
    names = list("ABCDEFGHI")
    network = SparseMLP(NetworkConfig((9, 7, 2)), topology=topology, feature_names=names)
    back = to_network(to_torch(network))
    assert back.neuron_names == {2: list("abcdefg")} and back.feature_names == names
