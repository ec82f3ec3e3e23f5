"""SparseSequential next to torch.nn.Sequential of the same modules, and next to dense layers."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largesparse.errors import DataError

torch = pytest.importorskip("torch")

from torch.utils.checkpoint import checkpoint  # noqa: E402

from largesparse.torch import (  # noqa: E402
    AllReLU,
    SparseLinear,
    SparseSequential,
    chain,
    convert,
    evolve,
    linear,
    passes,
    recording,
    to_dense,
)

nn = torch.nn
EPSILON = torch.finfo(torch.float32).eps


def make(sizes=(12, 30, 20, 5), followed_by=None, dropout=0.0, bias=True, density=0.3):
    """Return layers with All-ReLU within them, or with a module after each but the last."""
    layers = []
    for k, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        hidden = k < len(sizes) - 2
        own = AllReLU(0.6, k + 2, dropout) if hidden and followed_by is None else None
        options = {"activation": own, "bias": bias, "density": density}
        layers.append(SparseLinear(n_in, n_out, seed=k, **options))
        if bias:
            nn.init.normal_(layers[-1].bias)
        if hidden and followed_by is not None:
            layers.append(followed_by(k))
    return SparseSequential(*layers)


AFTER = {
    "within": None,
    "AllReLU": lambda k: AllReLU(0.6, k + 2),
    "ReLU": lambda k: nn.ReLU(inplace=k % 2 == 0),
    "LeakyReLU": lambda k: nn.LeakyReLU(0.1),
    "Tanh": lambda k: nn.Tanh(),
    "Identity": lambda k: nn.Identity(),
}


def plain(model):
    """Return a torch.nn.Sequential of copies of the modules."""
    return nn.Sequential(*copy.deepcopy(model))


def gradients(model, x, run=None, seed=0, slopes=(-1, 1)):
    """Return y, and the gradients of x and of the parameters, of a loss with a fixed slope."""
    torch.manual_seed(seed)
    model.zero_grad()
    x = x.detach().requires_grad_(x.requires_grad)
    y = (run or model)(x)
    slope = torch.linspace(*slopes, y.numel()).reshape(y.shape).to(y)
    if y.requires_grad:
        (y * slope).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in model.parameters())]


def same(found, expected, tolerance=1e-6, terms=None):
    """Compare tensors; an element may differ by the rounding of the sum of its absolute terms."""
    for k, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert (one is None) == (other is None)
        if one is not None and one.numel():
            allowed = torch.full_like(other, tolerance * max(1.0, other.abs().max().item()))
            if terms is not None:
                allowed += 4 * EPSILON * terms[k].to(other)
            wrong = (one.to(other) - other).abs() / allowed
            assert wrong.max() <= 1, f"tensor {k}: {wrong.max():.3g} times what rounding may do"


def without_all_relu(module):
    """Replace All-ReLU, which is not of float64, by what PyTorch has."""
    for name, child in module.named_children():
        if isinstance(child, AllReLU):
            setattr(module, name, nn.LeakyReLU(child.slope))


def absolute_terms(dense, x):
    """Return what `gradients` does, of sums whose terms do not cancel: none is smaller.

    A gradient may be a sum over hundreds of rows of both signs. Its rounding, which depends on the
    order, is relative to the sum of the absolute terms.
    """
    model = copy.deepcopy(dense).requires_grad_()
    for layer in [m for m in model.modules() if isinstance(m, nn.Linear)]:
        for parameter in layer.parameters():
            parameter.data.abs_()
    linear_only = nn.Sequential(*(m for m in model.modules() if isinstance(m, nn.Linear)))
    return gradients(linear_only, x.abs().requires_grad_(), slopes=(1, 1))


@pytest.fixture
def lengths(monkeypatch):
    """Return the lengths of the chains that are computed, as they come."""
    found, original = [], linear.sparse_chain
    monkeypatch.setattr(
        linear,
        "sparse_chain",
        lambda x, links, p: found.append(len(links)) or original(x, links, p),
    )
    return found


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=5),
    lead=st.lists(st.integers(0, 9), max_size=3),
    density=st.floats(0.05, 1),
    after=st.sampled_from(list(AFTER)),
    bias=st.booleans(),
    data=st.data(),
)
def test_results_are_those_of_the_layers_and_of_dense_ones(sizes, lead, density, after, bias, data):
    torch.manual_seed(0)
    model = make(sizes, AFTER[after], bias=bias, density=density)
    for parameter in model.parameters():
        parameter.requires_grad_(data.draw(st.booleans()))
    x = torch.randn(*lead, sizes[0], requires_grad=data.draw(st.booleans()))
    dense = to_dense(copy.deepcopy(model)).double().apply(without_all_relu)
    exact = gradients(dense, x.detach().double().requires_grad_(x.requires_grad))
    terms = absolute_terms(dense, x.detach().double())
    rows = [torch.from_numpy(m.topology.rows()).long() for m in model if hasattr(m, "topology")]
    layers = [m for m in model if isinstance(m, SparseLinear)]
    places = []
    for layer, row in zip(layers, rows, strict=True):  # of the connections in (n_out, n_in)
        places += [(layer.indices.long(), row)] + [...] * bias
    for each in (exact, terms):
        each[2:] = [g if g is None else g[at] for g, at in zip(each[2:], places, strict=True)]
    found = gradients(model, x)
    same(found, gradients(plain(model), x), terms=terms)
    same(found, exact, 1e-5, terms)


@pytest.mark.parametrize(
    ("after", "runs"),
    [
        ("within", [3]),
        ("AllReLU", [3]),
        ("ReLU", [3]),
        ("LeakyReLU", [3]),
        ("Tanh", [1, 1, 1]),
    ],
)
def test_layers_that_follow_each_other_are_one_node(lengths, after, runs):
    model, x = make(followed_by=AFTER[after]), torch.randn(7, 12)
    y = model(x)
    assert lengths == runs
    below = {type(node).__name__ for node, _ in y.grad_fn.next_functions}
    assert (below == {"AccumulateGrad", "NoneType"}) == (runs == [3])
    model(torch.randn(2, 3, 12))
    assert lengths == 2 * runs
    assert [name for name, _ in model.named_parameters()] == [
        name for name, _ in plain(model).named_parameters()
    ]
    assert isinstance(model[:-1], SparseSequential)


@pytest.mark.parametrize("followed_by", [None, lambda k: AllReLU(0.6, k + 2, 0.3)])
def test_dropout_draws_what_the_layers_draw(followed_by):
    model, x = make(followed_by=followed_by, dropout=0.3), torch.randn(40, 12)
    found = gradients(model, x)
    same(found, gradients(plain(model), x))
    assert (gradients(model, x, seed=1)[0] - found[0]).abs().max() > 0.01
    torch.manual_seed(0)
    with torch.no_grad():
        assert torch.equal(model(x), found[0])
    model.eval()
    same(gradients(model, x), gradients(plain(model), x))


class Twice(SparseLinear):
    def forward(self, x):
        return 2 * super().forward(x)


class Absolute(AllReLU):
    def forward(self, z):
        return z.abs()


def hooked(register):
    def change(model, calls):
        getattr(model[1], register)(lambda *_: calls.append(1) and None)

    return change


def replaced(model, calls):
    original = model[1].forward
    model[1].forward = lambda x: calls.append(1) or original(x)


def within(model, calls):
    model[1].activation.register_forward_hook(lambda *_: calls.append(1) and None)


def everywhere(model, calls):
    handle = nn.modules.module.register_module_forward_hook(lambda *_: calls.append(1) and None)
    model.handle = handle.remove


def derived(model, calls):
    model[1].__class__ = Twice


def derived_activation(model, calls):
    model[1].activation = Absolute()


OTHERWISE = {
    "forward": hooked("register_forward_hook"),
    "forward_pre": hooked("register_forward_pre_hook"),
    "backward": hooked("register_full_backward_hook"),
    "backward_pre": hooked("register_full_backward_pre_hook"),
    "replaced": replaced,
    "within": within,
    "everywhere": everywhere,
    "derived": derived,
    "derived_activation": derived_activation,
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_is_more_than_a_layer_is_called_by_itself(lengths, name):
    model, x, calls = make(), torch.randn(6, 12), []
    expected = gradients(model, x)
    lengths.clear()
    twin = plain(model)
    for each in (model, twin):
        OTHERWISE[name](each, calls)
        each.found = gradients(each, x)
        getattr(each, "handle", lambda: None)()
    assert max(lengths) == 1
    same(model.found, twin.found)
    if name.startswith("derived"):
        assert (model.found[0] - expected[0]).abs().max() > 0.01
    else:
        same(model.found, expected)
        assert len(calls) % 2 == 0 and calls


def test_recording_sees_every_layer(lengths):
    models = [make(), plain(make())]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(16, 12)
    for model in models:
        with recording(model):
            gradients(model, x)
        evolve(model, 0.3, growth="gradient")
    assert set(lengths) == {1}
    states = [model.state_dict() for model in models]
    assert all(map(torch.equal, *(state.values() for state in states)))
    gradients(models[0], x)
    assert lengths[-1] == 3


def test_a_layer_that_is_used_twice_sums_its_gradients():
    layer = SparseLinear(9, 9, density=0.4, seed=0)
    model = SparseSequential(layer, nn.ReLU(), layer, SparseLinear(9, 3, density=0.5, seed=1))
    twin = copy.deepcopy(model)
    twin.__class__ = nn.Sequential
    x = torch.randn(5, 9, requires_grad=True)
    same(gradients(model, x), gradients(twin, x))


def test_gradients_are_not_copied(monkeypatch):
    model, seen, original = make(), [], chain.backward_pass

    def spy(*arguments):
        found = original(*arguments)
        seen.extend(None if each is None else each.data_ptr() for each in found)
        return found

    monkeypatch.setattr(chain, "backward_pass", spy)
    model(torch.randn(6, 12)).sum().backward()
    assert [None, *(p.grad.data_ptr() for p in model.parameters())] == seen


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("ends", [False, True])  # with an activation after the last layer
def test_blocks_of_rows_are_computed_as_all_rows_at_once(monkeypatch, dropout, ends, autocast):
    model, x = make(dropout=dropout), torch.randn(3, 100, 12, requires_grad=True)
    if ends:
        model.append(AllReLU(0.6, 4, dropout))

    def run(x, block):
        monkeypatch.setattr(passes, "BLOCK", block)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return gradients(model, x, slopes=(0.5, 1))  # sums of gradients do not cancel

    of_rows = run(x.flatten(0, 1), 1000)
    for block in (24, 64, 128, 300):
        y, of_x, *others = run(x, block)
        assert y.is_contiguous() and of_x.is_contiguous()
        same([y.flatten(0, 1), of_x.flatten(0, 1)], of_rows[:2])
        same(others, of_rows[2:], 1e-5)


def test_blocks_of_rows_keep_inputs_and_no_copy_of_them():
    model, x, packed = make(bias=False), torch.randn(2, 500, 12, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: packed.append(tensor) or tensor, lambda tensor: tensor
    ):
        model(x)
    assert packed[0].data_ptr() == x.data_ptr()
    words = sum(each.numel() for each in packed[1:3])  # hidden activations, and bits
    assert words <= (1000 + passes.BLOCK) * (30 + 20) * (1 + 2 / 32)
    y = model(x).sum()
    with torch.no_grad():
        x += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_the_graph_is_kept_and_watched_as_others_are():
    model, x = make(), torch.randn(6, 12)
    y = model(x).sum()
    y.backward(retain_graph=True)
    once = [p.grad.clone() for p in model.parameters()]
    y.backward()
    same([p.grad for p in model.parameters()], [2 * each for each in once])
    y = model(x).sum()
    with torch.no_grad():
        model[1].values.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        torch.autograd.grad(model(x).sum(), model[0].values, create_graph=True)
    y = model(x)
    y += 1  # it is no view
    with torch.no_grad():
        model[1].values.data.mul_(2)  # which autograd does not see
    same(gradients(model, x), gradients(plain(model), x))


def test_checkpoints_and_hooks_of_saved_tensors():
    model, x = make(dropout=0.3), torch.randn(6, 12, requires_grad=True)
    expected = gradients(model, x)
    for reentrant in (False, True):
        run = lambda x: checkpoint(model, x, use_reentrant=reentrant)  # noqa: B023, E731
        same(gradients(model, x, run), expected)
    packed = []

    def pack(tensor):
        packed.append(tensor)
        return tensor.t().contiguous().t() if tensor.dim() == 2 else tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        same(gradients(model, x), expected)
    assert packed


def test_parameters_from_elsewhere_are_taken():
    model, x = make(), torch.randn(6, 12)
    other = {name: 2 * p.detach() for name, p in model.named_parameters()}
    found = torch.func.functional_call(model, other, (x,))
    twin = plain(model)
    twin.load_state_dict(other, strict=False)
    same([found], [twin(x)])


def test_autocast_is_that_of_the_layers():
    model, x = make(), torch.randn(64, 12, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
        expected = plain(model)(x)
        found, wanted = gradients(model, x), gradients(plain(model), x)
    assert y.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(y, expected)
    for one, other in zip(found[1:], wanted[1:], strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= 0.01 * other.norm()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_exported_and_traced_models_compute_the_same(lengths):
    from torch.fx.experimental.proxy_tensor import make_fx

    torch._dynamo.reset()
    model, x = make(followed_by=AFTER["ReLU"]), torch.randn(7, 12)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = gradients(model, x, compiled)
    with torch.no_grad():
        exported = torch.export.export(model.eval(), (x,)).module()(x)
        traced = make_fx(model)(x)(x)
    assert not lengths
    expected = gradients(model, x)
    same(found, expected, 1e-5)
    same([exported, traced], [expected[0]] * 2, 1e-5)


def test_threads_change_nothing():
    model, x, before = make((300, 400, 400, 10)), torch.randn(50, 300), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            both = gradients(model, x) + gradients(model, x.repeat(4, 1).view(4, 50, 300))
            found.append([each.clone() for each in both if each is not None])
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


def test_inference_keeps_nothing():
    model, x = make(), torch.randn(6, 12)
    expected = model(x).detach()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            y = model(x)
        assert not y.requires_grad and torch.equal(y, expected)
    assert not model.requires_grad_(False)(x).requires_grad


def test_copies_and_pickles_are_whole():
    model, x = make(), torch.randn(6, 12)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is SparseSequential and torch.equal(other(x), model(x))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model: model[1].double(), "must be float32"),
        (lambda model: model[1].to("meta"), "Its weights are on 'meta'"),
        (lambda model: model.append(SparseLinear(9, 2, density=0.5)), r"shape \(..., 9\)"),
        (lambda model: setattr(model[1], "bias", nn.Parameter(torch.ones(3))), "do not fit"),
    ],
)
def test_layers_that_cannot_compute_are_named(spoil, message):
    model = make()
    spoil(model)
    with pytest.raises(DataError, match=message):
        model(torch.randn(4, 12))
    with pytest.raises(DataError, match="takes float32"):
        make()(torch.randn(4, 12).double())


def test_converted_models_chain_their_layers_and_become_dense_again(lengths):
    model = nn.Sequential(nn.Linear(12, 30), nn.ReLU(), nn.Linear(30, 9), nn.Linear(9, 2))
    called = []
    model.register_forward_hook(lambda *_: called.append(1) and None)
    assert convert(model, density=0.3, include=["0", "2"]) is model
    assert type(model) is SparseSequential
    model(torch.randn(5, 12))
    assert lengths == [2] and called == [1]
    assert type(to_dense(model)) is nn.Sequential
