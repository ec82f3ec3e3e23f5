"""The counter-based generator against published answers, and the statistics of dropout."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from largesparse import NetworkConfig, SparseMLP, Trainer, TrainingConfig
from largesparse.backends import get_backend
from largesparse.backends.operands import RESOLUTION, Connections, Dropout
from largesparse.backends.philox import philox4x32
from largesparse.model.network import dropout_key

UNLIKELY = 1e-4  # p-value below which a statistical test with a fixed seed fails
FULL = 0xFFFFFFFF

# counter, key, answers after 7 and 10 rounds (Random123's kat_vectors)
KNOWN = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (FULL, FULL, FULL, FULL),
        (FULL, FULL),
        (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox_by_the_paper(counter, key, rounds):
    """Philox4x32 in Python's integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(rounds):
        high0, low0 = divmod(c0 * 0xD2511F53, 2**32)
        high1, low1 = divmod(c2 * 0xCD9E8D57, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def compiled(counter, key) -> tuple[int, ...]:
    words = philox4x32(*(np.uint64(word) for word in (*counter, *key)))
    return tuple(int(word) for word in words)


@pytest.mark.parametrize("counter, key, after_7, after_10", KNOWN)
def test_known_answers(counter, key, after_7, after_10):
    assert compiled(counter, key) == after_7
    assert philox_by_the_paper(counter, key, 7) == after_7
    assert philox_by_the_paper(counter, key, 10) == after_10


@settings(max_examples=50)
@given(words=st.lists(st.integers(0, FULL), min_size=6, max_size=6))
def test_any_counter_and_key(words):
    assert compiled(words[:4], words[4:]) == philox_by_the_paper(words[:4], words[4:], 7)


# Dropout: a layer without connections has the activations f(bias), so what it drops is seen.


def activations(neurons, rows, *, keep=0.6, seed=0, step=0, layer=2, first_row=0, threads=1):
    """Return activations (neurons, rows) of a layer in which every z is 1, and its state."""
    backend = get_backend("scipy")
    out = np.full((neurons, rows), np.nan, dtype=np.float32)
    state = np.full((neurons, 2, -(-rows // 32)), 0xDEADBEEF, dtype=np.uint32)
    with backend.threads(threads):
        backend.forward(
            Connections(
                np.zeros(neurons + 1, dtype=np.int32),
                np.zeros(0, dtype=np.int32),
                np.zeros(0, dtype=np.float32),
            ),
            np.ones(neurons, dtype=np.float32),
            np.zeros((1, rows), dtype=np.float32),
            slope=-0.6,
            out=out,
            state=state,
            dropout=Dropout(round(keep * RESOLUTION), seed, step, layer, first_row),
        )
    return out, state


def kept(*arguments, **options) -> np.ndarray:
    return activations(*arguments, **options)[0] != 0


def correlation_score(one, other) -> float:
    """The correlation of two equally long draws, in standard deviations."""
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1] * math.sqrt(one.size))


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.5, 0.6, 0.7, 0.99])
def test_share_kept(keep):
    neurons, rows = 1000, 320
    bits = kept(neurons, rows, keep=keep)
    variance = keep * (1 - keep)
    assert abs(bits.mean() - keep) <= 4 * math.sqrt(variance / bits.size) + 2**-17
    for axis in (0, 1):  # every row of the mini-batch, every neuron
        n = bits.shape[axis]
        squares = np.sum((bits.sum(axis) - n * keep) ** 2) / (n * variance)
        assert UNLIKELY < chi2.cdf(squares, bits.shape[1 - axis]) < 1 - UNLIKELY
    places = bits.reshape(neurons, -1, 32).mean(axis=(0, 1))  # every bit of a word
    squares = np.sum((places - keep) ** 2) * neurons * (rows // 32) / variance
    assert UNLIKELY < chi2.cdf(squares, 32) < 1 - UNLIKELY


@pytest.mark.parametrize("keep", [0.25, 0.6])
def test_inverted_scaling_keeps_the_expectation(keep):
    out, _ = activations(2000, 256, keep=keep)
    np.testing.assert_allclose(np.unique(out), [0, 1 / keep], rtol=2e-5)
    assert abs(out.mean(dtype=np.float64) - 1) <= 4 * math.sqrt((1 - keep) / keep / out.size) + 1e-5


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 100])
def test_no_dropout_keeps_all(rows):
    assert dropout_key(0.0, 1, 2, 3) == Dropout(RESOLUTION, 1, 2, 0, 3)
    out, state = activations(50, rows, keep=1)
    np.testing.assert_array_equal(out, 1)
    bits = np.unpackbits(state[:, 1].copy().view(np.uint8), axis=1, bitorder="little")
    assert bits[:, :rows].all() and not bits[:, rows:].any() and not state[:, 0].any()


def test_dropout_key():
    assert dropout_key(0.25, 2**64 - 1, 7, 96) == Dropout(49152, 2**64 - 1, 7, 0, 96)
    assert dropout_key(0.3, 0, 0, 0).keep_share == pytest.approx(0.7, abs=2**-17)


@pytest.mark.parametrize("rows", [1, 7, 32, 33, 90])
def test_state_tells_what_was_kept(rows):
    out, state = activations(100, rows)
    bits = np.unpackbits(state[:, 1].copy().view(np.uint8), axis=1, bitorder="little")
    np.testing.assert_array_equal(bits[:, :rows], out != 0)
    assert not bits[:, rows:].any() and not state[:, 0].any()


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 128])
def test_rows_and_neurons_are_independent(lag):
    bits = kept(600, 512)
    assert abs(correlation_score(bits[:, lag:], bits[:, :-lag])) < 4
    assert abs(correlation_score(bits[lag:], bits[:-lag])) < 4


VARIANTS = [
    {"layer": 3},
    {"layer": 2 + 2**16},
    {"step": 1},
    {"step": 2},
    {"step": 2**16},
    {"step": 2**31},
    {"step": 2, "layer": 0},
    {"seed": 1},
    {"seed": 2**32},
    {"seed": 2**63},
    {"seed": 2**64 - 1},
    {"first_row": 320},
    {"first_row": 2**20},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_layers_steps_and_seeds_are_independent(options):
    assert abs(correlation_score(kept(600, 320), kept(600, 320, **options))) < 4


def test_step_and_layer_are_not_interchangeable():
    one, other = kept(600, 320, step=3, layer=2), kept(600, 320, step=2, layer=3)
    assert abs(correlation_score(one, other)) < 4


@pytest.mark.parametrize("first_row", [0, 1, 7, 8, 31, 32, 33, 45, 63, 64, 100])
@pytest.mark.parametrize("rows", [1, 20, 32, 33, 100])
def test_micro_batches_are_slices_of_the_mini_batch(first_row, rows):
    options = {"seed": 2**40 + 5, "step": 9, "layer": 4}
    whole = kept(40, 224, **options)
    part = kept(40, rows, first_row=first_row, **options)
    np.testing.assert_array_equal(part, whole[:, first_row : first_row + rows])


def test_bits_depend_on_nothing_else():
    whole = kept(100, 96)
    np.testing.assert_array_equal(kept(30, 50), whole[:30, :50])  # the sizes
    np.testing.assert_array_equal(kept(100, 96, threads=2), whole)
    more = kept(100, 96, keep=0.8)  # what a smaller share keeps, a larger one keeps
    assert more.sum() > whole.sum() and np.all(more[whole])


@pytest.mark.parametrize("micro_batch", [None, 13])
def test_a_training_drops_by_its_seed_step_and_layers(micro_batch):
    network = SparseMLP(NetworkConfig((5, 60, 60, 60, 2), epsilon=5), progress=False)
    config = TrainingConfig(
        batch_size=40, micro_batch=micro_batch, dropout=0.4, seed=2**33 + 1, backend="scipy"
    )
    trainer = Trainer(network, config)
    X = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
    for step in range(3):
        trainer.step(X, np.arange(40) % 2)
        first_row = 0 if micro_batch is None else 39  # of the last micro-batch
        rows = 40 - first_row
        for k in range(3):
            state = trainer.workspace.state(k, rows)
            bits = np.ascontiguousarray(state[:, 0] | state[:, 1]).view(np.uint8)
            expected = kept(60, rows, seed=2**33 + 1, step=step, layer=k + 2, first_row=first_row)
            actual = np.unpackbits(bits, axis=1, bitorder="little")[:, :rows]
            np.testing.assert_array_equal(actual, expected)
