"""Image augmentation against SciPy's interpolation, and its invariants."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from largesparse.data import augmentation
from largesparse.data.augmentation import ImageAugmenter
from largesparse.errors import DataError, ParameterError


def images(n, shape, seed=0):
    return np.random.default_rng(seed).random((n, int(np.prod(shape))), dtype=np.float32)


def expected_image(image, down, right, mirrored, degrees):
    """Mirror, rotate about the centre, shift: (height, width), with SciPy."""
    if mirrored:
        image = image[:, ::-1]
    angle = np.deg2rad(degrees)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = (np.array(image.shape) - 1) / 2
    offset = middle - matrix @ (middle + np.array([down, right]))
    return ndimage.affine_transform(image, matrix, offset, order=1, mode="nearest")


@given(
    shape=st.tuples(st.integers(2, 9), st.integers(2, 9), st.integers(1, 3)),
    n=st.integers(1, 5),
    rotation=st.sampled_from([0.0, 10.0, 180.0]),
    flip=st.booleans(),
    channels_first=st.booleans(),
    data=st.data(),
)
def test_pixels_are_those_of_scipy(shape, n, rotation, flip, channels_first, data):
    height, width, channels = shape
    shift = data.draw(st.integers(0, min(height, width) - 1))
    augment = ImageAugmenter(shape, channels_first, shift, flip, rotation, seed=3)
    batch, rows = images(n, shape), np.arange(n) * 7
    result = augment(batch, rows, epoch=2)
    draws = augment._draw(rows, 2)
    down, right = np.floor(draws[:2] * (2 * shift + 1)) - shift
    order = (n, channels, height, width) if channels_first else (n, height, width, channels)
    axes = (0, 1, 2, 3) if channels_first else (0, 3, 1, 2)
    before, after = (part.reshape(order).transpose(axes) for part in (batch, result))
    for i in range(n):
        degrees = (2 * draws[3, i] - 1) * rotation
        for channel in range(channels):
            expected = expected_image(
                before[i, channel], down[i], right[i], flip and draws[2, i] < 0.5, degrees
            )
            np.testing.assert_allclose(after[i, channel], expected, atol=2e-6)


@given(
    st.lists(st.integers(0, 2**40), min_size=2, max_size=12),
    st.integers(1, 11),
    st.integers(0, 50),
)
def test_an_image_does_not_depend_on_its_batch(rows, cut, epoch):
    augment = ImageAugmenter((5, 6, 2), seed=1)
    rows, batch = np.array(rows), images(len(rows), (5, 6, 2))
    whole = augment(batch, rows, epoch)
    parts = [augment(batch[s], rows[s], epoch) for s in (slice(cut), slice(cut, None))]
    np.testing.assert_array_equal(np.vstack(parts), whole)
    np.testing.assert_array_equal(augment(batch[::-1], rows[::-1], epoch), whole[::-1])


def test_seed_epoch_and_row_change_the_result():
    batch = images(1, (8, 8, 1))
    results = [
        ImageAugmenter((8, 8, 1), seed=seed)(batch, np.array([row]), epoch).tobytes()
        for seed in range(3)
        for epoch in range(3)
        for row in range(3)
    ]
    assert len(set(results)) == 27


def test_every_change_is_equally_probable():
    """One bright pixel in the middle: where it goes is uniform over the shifts."""
    image = np.zeros((1, 49), np.float32)
    image[0, 3 * 7 + 3] = 1
    n, augment = 18000, ImageAugmenter((7, 7, 1), shift=1, flip=False, rotation=0)
    result = augment(np.repeat(image, n, axis=0), np.arange(n), 0)
    places = result.mean(axis=0).reshape(7, 7)
    np.testing.assert_allclose(places[2:5, 2:5], 1 / 9, atol=0.01)  # four standard deviations
    assert places.sum() == pytest.approx(1)
    mirrored = ImageAugmenter((1, 2, 1), shift=0, rotation=0)
    result = mirrored(np.tile(np.float32([0, 1]), (n, 1)), np.arange(n), 0)
    assert result[:, 0].mean() == pytest.approx(0.5, abs=0.015)
    angles = ImageAugmenter((7, 7, 1))._draw(np.arange(n), 0)
    np.testing.assert_allclose(angles.mean(axis=1), 0.5, atol=0.01)
    assert np.abs(np.corrcoef(angles) - np.eye(4)).max() < 0.03


def test_nothing_to_do_changes_nothing():
    batch = images(3, (4, 5, 3))
    augment = ImageAugmenter((4, 5, 3), shift=0, flip=False, rotation=0)
    result = augment(batch, np.arange(3), 0)
    np.testing.assert_array_equal(result, batch)
    assert not np.shares_memory(result, batch)


@pytest.mark.parametrize("rotation", [0.0, 10.0])
def test_values_stay_in_their_range_and_the_input_as_it_is(rotation):
    batch = np.random.default_rng(0).integers(0, 256, (20, 3072), np.uint8)
    copy = batch.copy()
    result = ImageAugmenter((32, 32, 3), rotation=rotation)(batch, np.arange(20), 0)
    assert result.dtype == np.float32 and result.flags.c_contiguous
    assert result.min() >= 0 and result.max() <= 255
    np.testing.assert_array_equal(batch, copy)


def test_temporaries_are_bounded_by_the_block(monkeypatch):
    monkeypatch.setattr(augmentation, "BLOCK_BYTES", 2**18)
    augment, peaks = ImageAugmenter((16, 16, 3)), []
    for n in (400, 1600):
        batch = images(n, (16, 16, 3))
        tracemalloc.start()
        result = augment(batch, np.arange(n), 0)
        peaks.append(tracemalloc.get_traced_memory()[1] - result.nbytes)
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 16 * 2**18


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"shape": (32, 32)}, "shape"),
        ({"shape": (32, 0, 3)}, "shape"),
        ({"shift": 32}, "shift"),
        ({"shift": 0.5}, "shift"),
        ({"rotation": -1}, "rotation"),
        ({"rotation": float("nan")}, "rotation"),
        ({"seed": -1}, "seed"),
    ],
)
def test_parameters_out_of_range(parameters, name):
    with pytest.raises(ParameterError, match=f"'{name}' parameter of ImageAugmenter"):
        ImageAugmenter(**{"shape": (32, 32, 3)} | parameters)


@pytest.mark.parametrize(("shape", "n_rows"), [((2, 47), 2), ((2, 48), 3), ((2, 4, 12), 2)])
def test_batches_of_another_shape_are_refused(shape, n_rows):
    with pytest.raises(DataError, match=r"images of \(4, 4, 3\) need \(batch, 48\)"):
        ImageAugmenter((4, 4, 3), shift=1)(np.zeros(shape, np.float32), np.arange(n_rows), 0)
