"""Losses over many outputs: binary cross-entropy, and softmax without a second array."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.metrics import log_loss

from largesparse import NetworkConfig, SparseMLP, Trainer, TrainingConfig
from largesparse.backends.kernels import are_below
from largesparse.data.label_sets import LabelSets, check_label_sets
from largesparse.errors import DataError
from largesparse.model import losses
from largesparse.model.losses import binary_cross_entropy, sigmoid, softmax_cross_entropy
from largesparse.model.losses import softmax as own_softmax


def draw(n, batch, seed, share=0.3):
    """Return logits (n, batch), an indicator (batch, n), and weights of samples and labels."""
    rng = np.random.default_rng(seed)
    logits = (4 * rng.standard_normal((n, batch))).astype(np.float32)
    Y = rng.random((batch, n)) < share
    return logits, Y, *(rng.uniform(0, 2, size).astype(np.float32) for size in (batch, n))


@given(st.integers(1, 600), st.integers(1, 40), st.integers(0, 99), st.booleans(), st.booleans())
def test_binary_cross_entropy_is_that_of_scipy(n, batch, seed, of_samples, of_labels):
    logits, Y, weights, label_weights = draw(n, batch, seed)
    sets = check_label_sets(Y)
    sets = LabelSets(sets.indptr, sets.indices, n, label_weights if of_labels else None)
    factors = np.ones((batch, n))
    if of_samples:
        factors *= weights[:, None]
    if of_labels:
        factors *= label_weights
    given_logits = logits.copy()
    loss, delta = binary_cross_entropy(given_logits, sets, 10, weights if of_samples else None)
    Z = logits.T.astype(float)
    expected = -(factors * np.where(Y, log_expit(Z), log_expit(-Z))).sum()
    assert loss == pytest.approx(expected, rel=1e-5, abs=1e-5)
    np.testing.assert_allclose(delta.T, factors * (expit(Z) - Y) / 10, rtol=1e-4, atol=1e-7)
    assert delta is given_logits  # no second array


def test_its_gradient_is_the_difference_quotient():
    logits, Y, weights, _ = draw(5, 4, 1)
    _, delta = binary_cross_entropy(logits.copy(), check_label_sets(Y), 4, weights)
    for place in np.ndindex(logits.shape):
        up, down = logits.copy(), logits.copy()
        up[place] += 0.05
        down[place] -= 0.05
        ends = [binary_cross_entropy(z, check_label_sets(Y), 4, weights)[0] for z in (up, down)]
        assert delta[place] == pytest.approx((ends[0] - ends[1]) / 0.1 / 4, abs=2e-4)


@pytest.mark.parametrize("batch", [1, 16, 33])
@pytest.mark.parametrize(("of_samples", "of_labels"), [(False, False), (True, False), (True, True)])
def test_it_is_that_of_pytorch(batch, of_samples, of_labels):
    torch = pytest.importorskip("torch")
    logits, Y, weights, label_weights = draw(700, batch, 4)
    sets = check_label_sets(Y)
    factors = torch.ones(batch, 700)
    if of_samples:
        factors *= torch.tensor(weights)[:, None]
    if of_labels:
        sets = LabelSets(sets.indptr, sets.indices, 700, label_weights)
        factors *= torch.tensor(label_weights)
    z = torch.tensor(logits.T.copy(), requires_grad=True)
    function = torch.nn.functional.binary_cross_entropy_with_logits
    expected = function(z, torch.tensor(Y).float(), weight=factors, reduction="sum")
    (expected / 10).backward()
    loss, delta = binary_cross_entropy(logits, sets, 10, weights if of_samples else None)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(delta.T, z.grad.numpy(), rtol=1e-4, atol=1e-7)


def test_it_is_that_of_scikit_learn():
    logits, Y, _, _ = draw(1, 50, 2)
    loss, _ = binary_cross_entropy(logits.copy(), check_label_sets(Y))
    assert loss == pytest.approx(50 * log_loss(Y[:, 0], expit(logits[0].astype(float))), rel=1e-5)


def test_extreme_logits_are_safe():
    logits = np.array([[1e4, -1e4, 200, -200]], dtype=np.float32)
    Y = np.array([[1], [0], [0], [1]])
    loss, delta = binary_cross_entropy(logits.copy(), check_label_sets(Y))
    assert loss == 400
    np.testing.assert_allclose(delta, [[0, 0, 0.25, -0.25]], atol=1e-30)
    assert np.all(sigmoid(logits.copy()) > 0)
    assert not np.isfinite(binary_cross_entropy(logits * np.nan, check_label_sets(Y))[0])


@pytest.mark.parametrize("threads", [1, 2])
def test_the_result_does_not_depend_on_threads(threads):
    from largesparse.machine.threads import kernel_threads

    logits, Y, weights, _ = draw(2000, 33, 3)
    alone = binary_cross_entropy(logits.copy(), check_label_sets(Y), 33, weights)
    with kernel_threads(threads):
        loss, delta = binary_cross_entropy(logits.copy(), check_label_sets(Y), 33, weights)
    assert loss == alone[0]
    assert np.array_equal(delta, alone[1])


@given(st.integers(2, 600), st.integers(1, 20), st.integers(0, 99), st.booleans())
def test_softmax_over_many_classes_has_no_second_array(n, batch, seed, of_samples):
    logits, _, weights, _ = draw(n, batch, seed)
    labels = np.random.default_rng(seed).integers(n, size=batch)
    before = losses.MANY
    try:
        losses.MANY = 1
        given_logits = logits.copy()
        weights = weights if of_samples else np.ones(batch, np.float32)
        loss, delta = softmax_cross_entropy(given_logits, labels, 10, weights)
        probabilities = own_softmax(logits.copy())
    finally:
        losses.MANY = before
    Z = logits.astype(float)
    columns = np.arange(batch)
    expected = softmax(Z, axis=0)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5, atol=1e-25)
    assert loss == pytest.approx(-(weights * log_softmax(Z, axis=0)[labels, columns]).sum(), 1e-5)
    expected[labels, columns] -= 1
    np.testing.assert_allclose(delta, expected * weights / 10, rtol=1e-4, atol=1e-7)
    assert delta is given_logits


@pytest.mark.parametrize("hidden", [(), (30,), (20, 20)])
@pytest.mark.parametrize("micro_batch", [None, 7])
def test_the_gradient_of_a_network_is_the_difference_quotient(hidden, micro_batch):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((20, 12)).astype(np.float32)
    Y = check_label_sets(rng.random((20, 9)) < 0.3)
    config = NetworkConfig((12, *hidden, 9), density=0.7, loss="binary_cross_entropy")
    network = SparseMLP(config)
    options = {"dropout": 0.0, "micro_batch": micro_batch, "backend": "fused", "threads": 1}
    trainer = Trainer(network, TrainingConfig(batch_size=20, standardize=False, **options))
    trainer.gradient(X, Y, np.arange(20))
    found = [gradient.copy() for gradient in trainer.workspace.gradients]
    for layer, gradient in zip(network.layers, found, strict=True):
        for place in range(0, layer.nnz, max(1, layer.nnz // 5)):
            ends = []
            for step in (0.01, -0.01):
                layer.values[place] += step
                layer.refresh()
                ends.append(trainer.evaluate(X, Y)[0])
                layer.values[place] -= step
            layer.refresh()
            assert gradient[place] == pytest.approx((ends[0] - ends[1]) / 0.02, abs=3e-3, rel=3e-2)


@given(st.integers(1, 30), st.integers(1, 20), st.integers(0, 99))
def test_rows_of_label_sets_are_those_of_the_matrix(n, n_labels, seed):
    rng = np.random.default_rng(seed)
    Y = (rng.random((n, n_labels)) < 0.3).astype(int)
    sets = check_label_sets(Y)
    rows = rng.integers(n, size=7)
    assert np.array_equal(sets[rows].to_csr().toarray(), Y[rows])
    assert np.array_equal(sets[1:].to_csr().toarray(), Y[1:])
    assert np.array_equal(sets.counts(), Y.sum(axis=0))
    assert are_below(sets.indices, n_labels)


@pytest.mark.parametrize("value", [2, -1, 0.5, np.nan])
def test_values_that_indicate_nothing_are_refused(value):
    from scipy.sparse import csr_array

    Y = np.array([[1.0, 0], [0, value]])
    for form in (Y, csr_array(Y)):
        with pytest.raises(DataError, match="indicator of labels is 0 or 1"):
            check_label_sets(form)


def test_sparse_labels_may_be_in_any_order_and_doubled_zeros_do_not_count():
    from scipy.sparse import csr_array

    Y = csr_array(([1, 0, 1], [2, 1, 0], [0, 3, 3]), shape=(2, 3))
    assert check_label_sets(Y).to_csr().toarray().tolist() == [[1, 0, 1], [0, 0, 0]]
