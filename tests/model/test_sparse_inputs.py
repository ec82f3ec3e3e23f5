"""Sparse inputs: the same numbers as with dense ones, from the nonzeros alone."""

from __future__ import annotations

import signal
import tracemalloc

import numpy as np
import pytest
from helpers import backend_or_skip, dense_gradients, make_network, make_trainer, same
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, hstack, random_array

from largesparse import Predictor, SparseMLPClassifier, load_checkpoint, predict_proba
from largesparse.backends import BACKENDS
from largesparse.data import standardizer
from largesparse.data.batches import load_batch, load_sparse_batch
from largesparse.data.standardizer import Standardizer
from largesparse.errors import ParameterError
from largesparse.model import lazy_updates
from largesparse.model.cells import score_cells
from largesparse.training.trainer import Trainer


@pytest.fixture(autouse=True)
def all_sparse(monkeypatch):
    """Compute CSR inputs as sparse, whatever the share of their nonzeros."""
    monkeypatch.setattr(standardizer, "SPARSE", np.inf)


@pytest.fixture
def as_dense(monkeypatch):
    """Return a function that switches to the dense path."""
    return lambda: monkeypatch.setattr(standardizer, "SPARSE", -1.0)


@pytest.fixture
def shifted(monkeypatch):
    """Leave means to the bias where more than a tenth of the features have some."""
    monkeypatch.setattr(standardizer, "SPARSE", 0.1)


def untidy(rng, n_samples, n_features, density, *, index=np.int32):
    """Return CSR with empty rows and columns, explicit zeros, duplicates and unsorted indices."""
    n = round(density * n_samples * n_features)
    rows = np.sort(rng.integers(n_samples, size=n))
    columns = rng.integers(n_features, size=n)
    values = rng.standard_normal(n).astype(np.float32)
    values[rng.random(n) < 0.2] = 0
    indptr = np.searchsorted(rows, np.arange(n_samples + 1)).astype(index)
    return csr_array((values, columns.astype(index), indptr), shape=(n_samples, n_features))


def text(n_samples=200, n_features=600, per_row=5, seed=0):
    """Return rows of few words, and classes that some of the words tell."""
    rng = np.random.default_rng(seed)
    y = np.arange(n_samples) % 2
    words = rng.integers(n_features // 2, size=(n_samples, per_row)) * 2
    words[:, :2] += y[:, None]
    indptr = per_row * np.arange(n_samples + 1)
    shape = n_samples, n_features
    X = csr_array((np.ones(words.size, np.float32), words.ravel(), indptr), shape=shape)
    X.sum_duplicates()
    return X, y


def fit(X, y, sizes=(20, 12), checkpoint=None, **options):
    """Return a trainer of X that has been fitted."""
    defaults = {"epsilon": 4.0, "epochs": 3, "batch_size": 20, "standardize": False}
    layer_sizes = (X.shape[1], *sizes, int(y.max()) + 1)
    trainer = make_trainer(layer_sizes, **defaults | {"dropout": 0.1} | options)
    trainer.fit(X, y, progress=False, checkpoint=checkpoint)
    return trainer


def assert_close(one, other):
    """Compare the networks of two trainers: the same topology, and weights up to rounding."""
    for layer, dense in zip(one.network.layers, other.network.layers, strict=True):
        np.testing.assert_array_equal(layer.topology.indices, dense.topology.indices)
        np.testing.assert_array_equal(layer.topology.indptr, dense.topology.indptr)
        for name in ("values", "velocity", "values_by_output", "bias", "bias_velocity"):
            found, expected = getattr(layer, name), getattr(dense, name)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=name)


@settings(max_examples=40, deadline=None)
@given(
    n_samples=st.integers(1, 50),
    n_features=st.integers(1, 40),
    density=st.sampled_from([0.0, 0.05, 0.5, 1.5]),
    index=st.sampled_from([np.int32, np.int64]),
    hidden=st.sampled_from([(), (9,), (17, 5)]),
    centred=st.booleans(),
    seed=st.integers(0, 99),
)
def test_gradients_are_those_of_dense_arithmetic(
    n_samples, n_features, density, index, hidden, centred, seed
):
    rng = np.random.default_rng(seed)
    X = untidy(rng, n_samples, n_features, density, index=index)
    y = rng.integers(3, size=n_samples)
    trainer = make_trainer((n_features, *hidden, 3), epsilon=2.0, batch_size=50, micro_batch=16)
    network = trainer.network
    mean = np.where(rng.random(n_features) < 0.3, rng.standard_normal(n_features), 0) * centred
    network.preprocessing = Standardizer(mean, rng.uniform(0.5, 2, n_features))
    rows = X.toarray()
    expected = dense_gradients(network, (rows - mean) * network.preprocessing.scale, y)
    trainer.gradient(X, y.astype(np.int32), np.arange(n_samples), plain=True)
    assert trainer.workspace.sparse is not None
    for layer, found, cells in zip(
        network.layers, trainer.workspace.gradients, expected, strict=True
    ):
        wanted = cells[layer.topology.rows(), layer.topology.indices]
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    n_samples=st.integers(1, 50),
    n_features=st.integers(4, 40),
    density=st.sampled_from([0.05, 0.2, 0.5]),
    wide=st.booleans(),
    hidden=st.sampled_from([(), (9,), (17, 5)]),
    recipe=st.sampled_from(["paper", "width"]),
    seed=st.integers(0, 99),
)
def test_centring_by_the_bias_is_that_of_dense_arithmetic(
    n_samples, n_features, density, wide, hidden, recipe, seed
):
    rng = np.random.default_rng(seed)
    X = untidy(rng, n_samples, n_features, density).astype(np.float64 if wide else np.float32)
    y = rng.integers(3, size=n_samples)
    options = {"epsilon": 2.0, "batch_size": 50, "micro_batch": 16, "recipe": recipe}
    network = (trainer := make_trainer((n_features, *hidden, 3), **options)).network
    scale = rng.uniform(0.5, 2, n_features)
    mean = rng.uniform(-1, 1, n_features) / scale
    mean[: n_features // 5] *= 300  # these are not left to the bias
    network.preprocessing = Standardizer(mean, scale)
    rows = (X.toarray() - mean) * scale
    expected = dense_gradients(network, rows, y)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(standardizer, "SPARSE", 1.0)
        trainer.gradient(X, y.astype(np.int32), np.arange(n_samples), plain=True)
        found = predict_proba(network, X, backend="scipy")
        batch = trainer.workspace.sparse
    assert batch is None or len(batch.shift) in (0, n_features)
    for layer, gradient, cells in zip(
        network.layers, trainer.workspace.gradients, expected, strict=True
    ):
        wanted = cells[layer.topology.rows(), layer.topology.indices]
        atol = 1e-5 * max(1, abs(wanted).max(initial=0))
        np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=atol)
    network.preprocessing = None
    np.testing.assert_allclose(found, predict_proba(network, rows, backend="scipy"), atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    n_features=st.integers(1, 70), density=st.floats(0, 1.5), wide=st.booleans(), seed=st.integers()
)
def test_a_batch_has_the_values_of_a_dense_one(n_features, density, wide, seed):
    rng = np.random.default_rng(abs(seed))
    X = untidy(rng, 12, n_features, density).astype(np.float64 if wide else np.float32)
    mean = np.where(rng.random(n_features) < 0.5, 0.7, 0)
    scaling = Standardizer(mean, rng.uniform(0.5, 2, n_features)) if seed % 3 else None
    rows = rng.integers(12, size=9)
    expected = np.empty((n_features, 9), np.float32)
    load_batch(X, rows, scaling, out=expected)
    starts, features, values, shift = load_sparse_batch(X, rows, scaling, n_features)
    assert not len(shift)
    found = csr_array((values, features, np.append(starts[:, 0], starts[-1, -1])), (9, n_features))
    np.testing.assert_allclose(found.toarray().T, expected, rtol=1e-6, atol=1e-6)
    blocks = starts.shape[1] - 1
    width = -(-n_features // blocks)
    for b in range(9):
        for q in range(blocks):
            part = features[starts[b, q] : starts[b, q + 1]]
            assert ((part // width) == q).all() and (np.diff(part) > 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sizes", [(20, 12), ()], ids=["deep", "flat"])
def test_a_training_is_that_of_dense_inputs(backend, threads, sizes, as_dense):
    backend_or_skip(backend)
    X, y = text()
    options = {"backend": backend, "threads": threads, "weight_decay": 1e-3}
    options |= {"pruning_start": 1, "pruning_every": 1, "validation_fraction": 0.2}
    sparse = fit(X, y, sizes, **options)
    assert sparse.workspace._inputs is None
    as_dense()
    dense = fit(X, y, sizes, **options)
    assert dense.workspace._inputs is not None and sparse.step_count == dense.step_count >= 20
    as_dense()
    assert_close(sparse, dense)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    n_samples=st.integers(20, 60),
    n_features=st.integers(2, 60),
    density=st.sampled_from([0.02, 0.2, 1.2]),
    index=st.sampled_from([np.int32, np.int64]),
    backend=st.sampled_from(BACKENDS),
    threads=st.sampled_from([1, 2]),
    standardize=st.sampled_from([False, "centered"]),
    seed=st.integers(0, 99),
)
def test_twenty_steps_on_untidy_rows_are_those_of_dense_inputs(
    n_samples, n_features, density, index, backend, threads, standardize, seed
):
    backend_or_skip(backend)
    X = untidy(np.random.default_rng(seed), n_samples, n_features, density, index=index)
    y = np.arange(n_samples) % 2
    options = {"batch_size": n_samples // 4, "epochs": 5, "standardize": standardize}
    options |= {"backend": backend, "threads": threads, "pruning_start": 1, "pruning_every": 2}
    trainers, found = [], []
    with pytest.MonkeyPatch.context() as patch:
        for share in (1.0, -1.0):
            patch.setattr(standardizer, "SPARSE", share)
            trainers.append(fit(X, y, **options))
            network = trainers[-1].network
            found.append(predict_proba(network, X, backend=backend, threads=threads))
    sparse, dense = trainers
    assert sparse.step_count >= 20 and any(layer.dead is not None for layer in network.layers)
    assert (sparse.workspace._inputs is None) or standardize  # far means may be too many
    assert_close(sparse, dense)
    np.testing.assert_allclose(*found, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sizes", [(20, 12), ()], ids=["deep", "flat"])
def test_a_training_on_centred_rows_is_that_of_dense_inputs(
    backend, threads, sizes, shifted, as_dense
):
    backend_or_skip(backend)
    X, y = text()
    X = hstack([X, np.random.default_rng(1).normal(1990, 5, (len(y), 2))], "csr")
    options = {"backend": backend, "threads": threads, "standardize": "centered"}
    options |= {"pruning_start": 1, "pruning_every": 1, "validation_fraction": 0.2}
    sparse = fit(X, y, sizes, **options)
    assert sparse.workspace._inputs is None and len(sparse.workspace.sparse.shift)
    assert sparse.network.preprocessing.far.tolist() == [600, 601]
    found = predict_proba(sparse.network, X, backend=backend, threads=threads)
    as_dense()
    dense = fit(X, y, sizes, **options)
    assert dense.workspace._inputs is not None and sparse.step_count == dense.step_count
    assert_close(sparse, dense)
    expected = predict_proba(dense.network, X.toarray(), backend=backend)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_centring_by_the_bias_does_not_depend_on_threads(shifted):
    X, y = text(n_features=9000)
    options = {"epochs": 4, "standardize": "centered"}
    one, two = (fit(X, y, threads=threads, **options) for threads in (1, 2))
    assert len(one.workspace.sparse.shift) and same(one.network, two.network)


@pytest.mark.parametrize(
    ("options", "backend"),
    [
        ({"activation_dtype": "bfloat16"}, "fused"),
        ({"activation": "srelu"}, "scipy"),
        ({"growth": "gradient"}, "scipy"),
        ({"micro_batch": 8}, "scipy"),
        ({"recipe": "width"}, "fused"),
    ],
    ids=lambda option: next(iter(option)) if isinstance(option, dict) else option,
)
def test_other_settings(options, backend, as_dense):
    X, y = text()
    options = {"epochs": 2, "backend": backend} | options
    sparse = fit(X, y, **options)
    as_dense()
    dense = fit(X, y, **options)
    if "activation_dtype" in options:  # sums are rounded to 8 bits
        pairs = zip(sparse.network.layers, dense.network.layers, strict=True)
        assert all(np.abs(a.bias - b.bias).max() < 2e-2 for a, b in pairs)
    else:
        assert_close(sparse, dense)


def test_rows_that_are_augmented_are_dense(as_dense):
    X, y = text(n_features=3000, per_row=3)

    def augment(part, rows, epoch):
        assert part.shape == (20, 3000) and part.dtype == np.float32
        np.testing.assert_array_equal(part, X[rows].toarray())
        return part

    trainer = make_trainer((3000, 20, 2), epsilon=4.0, epochs=2, batch_size=20)
    trainer.fit(X, y, progress=False, augment=augment)
    as_dense()
    plain = make_trainer((3000, 20, 2), epsilon=4.0, epochs=2, batch_size=20)
    plain.network.preprocessing = trainer.network.preprocessing
    plain.fit(X, y, progress=False)
    assert_close(trainer, plain)


def test_results_do_not_depend_on_threads():
    X, y = text()
    one, two = (fit(X, y, threads=threads, epochs=5) for threads in (1, 2))
    assert same(one.network, two.network)


# Weights of absent inputs


@pytest.fixture
def lazily(monkeypatch):
    """Return a list of the updates that left weights for later, by their numbers in a group."""
    made = []
    original = lazy_updates.LazyUpdates.update_

    def update_(self, *arguments):
        made.append(len(self._lags) - 1)
        original(self, *arguments)

    monkeypatch.setattr(lazy_updates.LazyUpdates, "update_", update_)
    return made


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_weights_left_for_later_are_those_of_the_dense_update(schedule, lazily, as_dense):
    X, y = text(n_samples=300, n_features=3000, per_row=3)
    options = {"batch_size": 4, "weight_decay": 1e-2, "schedule": schedule, "warmup_epochs": 1.0}
    sparse = fit(X, y, **options)
    assert max(lazily) == lazy_updates.GROUP - 1 and len(lazily) == sparse.step_count == 225
    as_dense()
    assert_close(sparse, fit(X, y, **options))
    assert len(lazily) == 225


def test_a_step_of_ones_own_leaves_nothing_for_later(lazily):
    X, y = text(n_features=3000, per_row=3)
    trainer = make_trainer((3000, 20, 2), epsilon=2.0, batch_size=4)
    layer = trainer.network.layers[0]
    layer.velocity[:] = 1
    before = layer.values.copy()
    trainer.step(X, y.astype(np.int32), np.arange(4))
    assert not lazily and (layer.values != before).all()
    np.testing.assert_array_equal(
        layer.values_by_output[layer.topology.to_output_order], layer.values
    )


class Stopped(Trainer):
    """Is told to stop during its 40th step."""

    def step(self, *arguments, **options):
        if self.step_count == 39:
            signal.raise_signal(signal.SIGTERM)
        return super().step(*arguments, **options)


def test_a_training_goes_on_from_within_an_epoch_with_the_same_bits(tmp_path):
    X, y = text(n_samples=300, n_features=3000, per_row=3)
    options = {"batch_size": 4, "epochs": 2}
    whole = fit(X, y, **options)
    with pytest.raises(SystemExit):
        fit(X, y, trainer=Stopped, checkpoint=tmp_path / "run", **options)
    resumed = load_checkpoint(tmp_path / "run")
    assert resumed.state.samples == 2 * lazy_updates.GROUP * 4  # all weights are up to date there
    resumed.fit(X, y, progress=False)
    assert same(whole.network, resumed.network)


# Prediction, growth and standardisation


def test_prediction_of_sparse_rows_makes_none_dense(as_dense):
    X, y = text()
    network = fit(X, y).network
    with Predictor(network, backend="scipy", batch_size=30) as predictor:
        found = predictor.predict_proba(X)
        engine = predictor._engine
        assert all(workspace._inputs is None for workspace in engine._idle)
        np.testing.assert_allclose(found, predictor.predict_proba(X.toarray()), rtol=1e-5)
    with Predictor(network, backend="scipy", batch_size=30, processes=2, threads=1) as workers:
        np.testing.assert_array_equal(workers.predict_proba(X), found)  # they have one order only
    as_dense()
    np.testing.assert_allclose(predict_proba(network, X, backend="scipy"), found, rtol=1e-5)


@pytest.mark.parametrize("mean", [0.0, 0.7])
def test_scores_of_cells_to_grow_in(mean, monkeypatch):
    monkeypatch.setattr(standardizer, "SPARSE", 1.0)
    rng = np.random.default_rng(0)
    X, D = untidy(rng, 11, 9, 0.5), rng.standard_normal((7, 11)).astype(np.float32)
    batch = load_sparse_batch(X, np.arange(11), Standardizer(np.full(9, mean), np.ones(9)), 9)
    assert len(batch.shift) == 9 * bool(mean)
    scores = score_cells(np.arange(63), 9, batch, D)
    np.testing.assert_allclose(scores, ((X.toarray() - mean).T @ D.T).ravel(), atol=1e-5)


def test_zeros_stay_but_in_columns_that_are_mostly_stored(as_dense):
    rng = np.random.default_rng(0)
    X = random_array((50, 8), density=0.2, format="lil", rng=rng)
    X[:, 2] = rng.normal(1990, 5, (50, 1))
    X[:, 5] = 3.0
    X[:, 6] = 0.0
    X, rows = csr_array(X), X.toarray()
    found = Standardizer.fit(X, np.arange(10, 50))
    assert found.centred.tolist() == [2, 5]
    rows = rows[10:]
    np.testing.assert_allclose(found.mean[[2, 5]], rows.mean(0)[[2, 5]])
    np.testing.assert_allclose(found.scale[2], 1 / rows.std(0)[2])
    assert found.scale[5] == found.scale[6] == 1
    others = [0, 1, 3, 4, 7]
    energies = ((rows * found.scale) ** 2).mean(0)[others]
    np.testing.assert_allclose(energies.mean(), 1)
    roots = np.sqrt((rows != 0).mean(0))[others]
    np.testing.assert_allclose(energies, roots / roots.mean())
    as_dense()
    assert len(Standardizer.fit(X).centred) == 7


def test_an_estimator_fits_and_predicts_wide_rows_in_little_memory():
    X, y = text(n_samples=64, n_features=2_000_000, per_row=30)
    tracemalloc.start()
    model = SparseMLPClassifier(random_state=0, max_epochs=2, linear_start=False).fit(X, y)
    assert np.isfinite(model.predict_proba(X)).all()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500e6  # a dense mini-batch of 64 rows has 512 MB


def test_an_estimator_centres_wide_rows_in_little_memory(monkeypatch):
    monkeypatch.undo()
    X, y = text(n_samples=64, n_features=1_000_000, per_row=30)
    options = {"random_state": 0, "max_epochs": 2, "linear_start": False, "epsilon": 1.0}
    tracemalloc.start()
    model = SparseMLPClassifier(standardize="centered", **options).fit(X, y)
    assert np.isfinite(model.predict_proba(X)).all()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert model.network_.preprocessing.mean.all() == (X.sum(axis=0) > 0).all()
    assert peak < 250e6  # a dense mini-batch of 64 rows has 256 MB


@pytest.mark.parametrize("wrong", ["center", "True", None])
def test_another_standardisation_is_refused(wrong):
    with pytest.raises(ParameterError, match=r"'standardize'.*True, False or 'centered'"):
        SparseMLPClassifier(standardize=wrong).fit(*text())


def test_a_thread_never_sees_half_of_the_output_order(monkeypatch):
    """Two threads that predict may find the copy of the weights stale at the same time."""
    from largesparse.backends import pattern_kernels

    layer = make_network((9, 20, 3)).layers[0]
    expected, reorder = layer.values_by_output.copy(), pattern_kernels.reorder
    layer._copy, layer.is_stale = layer._copy[:0], True
    seen = []

    def observed(values, places, out):
        seen.append(layer._copy is out)
        reorder(values, places, out)

    monkeypatch.setattr(pattern_kernels, "reorder", observed)
    assert np.array_equal(layer.values_by_output, expected)
    assert seen == [False] and not layer.is_stale


def test_features_with_a_shift_are_updated_though_a_batch_lacks_them(shifted, as_dense):
    """Their gradient is not 0 where they are."""
    X, y = text(n_samples=200, n_features=3000)
    options = {"standardize": "centered", "batch_size": 8, "dropout": 0.0}
    sparse = fit(X, y, **options)
    batch = load_sparse_batch(X, np.arange(8), sparse.network.preprocessing, 3000)
    assert len(batch.shift) and lazy_updates.FEW * len(batch.features) < 3000
    as_dense()
    assert_close(sparse, fit(X, y, **options))
