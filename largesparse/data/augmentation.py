"""Random shifts, flips and small rotations of images, batch by batch.

The changes of an image follow from (seed, epoch, its row in the data set) alone, whatever the
batches are, so that nothing has to be stored and a resumed run continues as if never stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, ParameterError, check_range
from ..randomness import seed_sequence
from .checks import row_blocks

BLOCK_BYTES = 2**19  # of an image block: its temporaries, a few times this, stay in the cache
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # the increment of SplitMix64
DRAWS = 4  # numbers an image: vertical and horizontal shift, flip, angle


@dataclass(frozen=True)
class ImageAugmenter:
    """Shift, flip and rotate images at random: the augmentation of the paper's CIFAR10 runs.

    An image is mirrored left to right with probability 1/2, rotated about its centre (bilinear
    interpolation) and then shifted by whole pixels. Pixels from outside the image are those
    nearest to them on its border. Pass rows as they are in the data set, before standardisation,
    whose statistics belong to the places of pixels.

    Parameters
    ----------
    shape : tuple of int
        (height, width, channels) of an image.
    channels_first : bool
        Whether a row is a plane a channel, as CIFAR10's are, or the channels of one pixel after
        the other.
    shift : int
        The largest shift in pixels, in each direction; every shift up to it is equally probable.
    flip : bool
        Whether images are mirrored.
    rotation : float
        The largest angle in degrees, either way; angles are uniform. 0 is faster than any other.
    seed : int

    Raises
    ------
    ParameterError
        If a parameter is out of range.

    Examples
    --------
    >>> augment = ImageAugmenter((32, 32, 3), seed=1)
    >>> rows = np.array([7, 2])
    >>> augment(np.zeros((2, 3072), np.float32), rows, epoch=0).shape
    (2, 3072)
    """

    shape: tuple[int, int, int]
    channels_first: bool = True
    shift: int = 4  # pixels
    flip: bool = True
    rotation: float = 10.0  # degrees
    seed: int = 0

    def __post_init__(self) -> None:
        owner = "ImageAugmenter"
        if len(self.shape) != 3:
            raise ParameterError(
                "The 'shape' parameter of ImageAugmenter must be (height, width, channels). "
                f"Got {self.shape!r} instead. Grey images have 1 channel."
            )
        for size in self.shape:
            check_range("shape", size, owner, low=1, integer=True)
        check_range("shift", self.shift, owner, low=0, high=min(self.shape[:2]) - 1, integer=True)
        check_range("rotation", self.rotation, owner, low=0, high=180)
        check_range("seed", self.seed, owner, low=0, integer=True)

    def __call__(
        self, batch: NDArray[Any], rows: NDArray[np.int64], epoch: int
    ) -> NDArray[np.float32]:
        """Return changed copies of images, float32 (batch, height * width * channels).

        `rows`, int64 (batch,), are those of the data set that these images are.

        Raises
        ------
        DataError
            If the rows have another length than `shape` says, or are of another number.
        """
        n_features = int(np.prod(self.shape))
        if batch.ndim != 2 or batch.shape[1] != n_features or rows.shape != batch.shape[:1]:
            raise DataError(
                f"ImageAugmenter got a batch of shape {batch.shape} with {rows.shape} row "
                f"numbers; images of {self.shape} need (batch, {n_features}) and (batch,). "
                "Set its shape to (height, width, channels) of the images."
            )
        result = np.empty(batch.shape, np.float32)
        for part in row_blocks(len(batch), 4 * n_features, BLOCK_BYTES):
            self._change(batch[part], self._draw(rows[part], epoch), result[part])
        return result

    def _draw(self, rows: NDArray[np.int64], epoch: int) -> NDArray[np.float64]:
        """Return numbers in [0, 1), float64 (4, batch): SplitMix64 at counters of the rows."""
        (key,) = seed_sequence(self.seed, "augmentation", epoch).generate_state(1, np.uint64)
        draws = np.arange(1, DRAWS + 1, dtype=np.uint64)[:, None]
        z = key + (rows.astype(np.uint64) * np.uint64(DRAWS) + draws) * GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        return (z >> np.uint64(11)) * 2.0**-53

    def _change(
        self, batch: NDArray[Any], uniform: NDArray[np.float64], out: NDArray[np.float32]
    ) -> None:
        """Look up for every pixel of `out` where in the image it comes from."""
        height, width, _ = self.shape
        down, right = np.floor(uniform[:2] * (2 * self.shift + 1)).astype(np.int64) - self.shift
        y = np.arange(height)[None, :, None] - down[:, None, None]
        x = np.arange(width)[None, None, :] - right[:, None, None]
        if self.rotation:
            angle = np.deg2rad((2 * uniform[3] - 1) * self.rotation)[:, None, None]
            cosine, sine = np.cos(angle), np.sin(angle)
            middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
            y, x = y - middle_y, x - middle_x
            y, x = cosine * y - sine * x + middle_y, sine * y + cosine * x + middle_x
        if self.flip:
            mirrored = uniform[2] < 0.5
            x = np.where(mirrored[:, None, None], width - 1 - x, x)
        y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)

        images = np.ascontiguousarray(self._planes(batch).swapaxes(0, 1))
        changed = self._planes(out).swapaxes(0, 1)
        if not self.rotation:
            changed[...] = _at(images, y, x)
            return
        top, left = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
        bottom, beside = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
        below, aside = (y - top).astype(np.float32), (x - left).astype(np.float32)
        upper = _at(images, top, left) * (1 - aside) + _at(images, top, beside) * aside
        lower = _at(images, bottom, left) * (1 - aside) + _at(images, bottom, beside) * aside
        changed[...] = upper * (1 - below) + lower * below

    def _planes(self, batch: NDArray) -> NDArray:
        """View rows as (batch, channels, height, width)."""
        height, width, channels = self.shape
        if self.channels_first:
            return batch.reshape(-1, channels, height, width)
        return batch.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)


def _at(images: NDArray, y: NDArray[np.int64], x: NDArray[np.int64]) -> NDArray:
    """Return the pixels at (y, x), each (batch, height, width) or broadcasting to it.

    `images` and the result are (channels, batch, height, width), the images contiguous: one flat
    index serves all channels.
    """
    channels, n_images, height, width = images.shape
    first = np.arange(n_images)[:, None, None] * (height * width)
    return images.reshape(channels, -1).take(first + y * width + x, axis=1, mode="clip")
