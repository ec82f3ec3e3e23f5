"""What ranks share apart from what they are sent: the arrays of a thing, and the rest of it."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...machine.mapped_memory import Arrays


class _Taker(pickle.Pickler):
    """Pickles a thing without its arrays, which it keeps."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.arrays: Arrays = []

    def persistent_id(self, part: Any) -> int | None:
        if not isinstance(part, np.ndarray):
            return None
        self.arrays.append(part)
        return len(self.arrays) - 1


class _Giver(pickle.Unpickler):
    def __init__(self, rest: bytes, arrays: Sequence[NDArray[Any]]) -> None:
        super().__init__(io.BytesIO(rest))
        self._arrays = arrays

    def persistent_load(self, place: int) -> NDArray[Any]:
        return self._arrays[place]


def take_arrays(thing: Any) -> tuple[bytes, Arrays]:
    """Return what a thing is but for its arrays, and these; `give_arrays` goes back."""
    file = io.BytesIO()
    taker = _Taker(file)
    taker.dump(thing)
    return file.getvalue(), taker.arrays


def give_arrays(rest: bytes, arrays: Sequence[NDArray[Any]]) -> Any:
    """Return the thing that `take_arrays` was given, with these arrays."""
    return _Giver(rest, arrays).load()
