"""The buffers of a stage: those of a training step, for several micro-batches at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...machine.mapped_memory import aligned_zeros
from ...model.workspace import ACTIVATION_DTYPES, Gradients, Workspace

PASSING = 2  # deltas on their way to or from a neighbour, one of which is computed or used
KEPT = ("_activations", "_states", "_sums", "found", "_inputs", "sparse")  # by a micro-batch


class StageWorkspace(Workspace):
    """Buffers for the layers of a stage, with an `Edge` in place of each neighbour.

    The backward pass of a micro-batch comes after the forward passes of some others, so activations
    are there several times: `in_flight` times, and once more those that come from the rank before.
    Gradients, and the buffers of the backward pass, are there once. `turn_to_` says which
    micro-batch the buffers are of.
    """

    def __init__(
        self,
        chain: Sequence[Any],
        micro_batch: int,
        *,
        in_flight: int,
        has_before: bool,
        has_behind: bool,
        activation_dtype: str = "float32",
    ) -> None:
        options: dict[str, Any] = {"activation_dtype": activation_dtype, "sparse_inputs": True}
        super().__init__(chain, micro_batch, **options)
        self.in_flight, self._has_before, self._has_behind = in_flight, has_before, has_behind
        self._number = 0
        self._sets = [{name: getattr(self, name, None) for name in KEPT}]
        for _ in range(in_flight - 1):
            copies = {
                name: [
                    np.empty(0) if place == 0 and has_before else self._like(array)
                    for place, array in enumerate(getattr(self, name))
                ]
                for name in ("_activations", "_states", "_sums", "found")
            }
            self._sets.append(copies | {"_inputs": None, "sparse": None})
        dtype = ACTIVATION_DTYPES[activation_dtype]
        self._arrivals = [(self._activations[0], self._states[0])] if has_before else []
        while has_before and len(self._arrivals) <= in_flight:
            self._arrivals.append((self._like(self._activations[0]), self._like(self._states[0])))
        before = self._sizes[0] * micro_batch if has_before else 0
        behind = self._sizes[-2] * micro_batch if has_behind else 0
        self._sent = [aligned_zeros(before, dtype) for _ in range(PASSING)]
        self._received = [aligned_zeros(behind, dtype) for _ in range(PASSING)]

    @staticmethod
    def _like(array: NDArray[Any]) -> NDArray[Any]:
        return aligned_zeros(array.shape, array.dtype)

    @property
    def arrivals(self) -> int:
        """Micro-batches that may have come from the rank before at a time."""
        return self.in_flight + 1

    def turn_to_(self, number: int) -> None:
        """Have the buffers of a micro-batch: its own ones, if it has been here since."""
        self._sets[self._number % self.in_flight].update(
            {name: getattr(self, name) for name in KEPT}
        )
        self._number = number
        for name, value in self._sets[number % self.in_flight].items():
            setattr(self, name, value)
        if self._has_before:
            self._activations[0], self._states[0] = self._arrivals[number % self.arrivals]

    def arriving(self, number: int, batch: int, *, training: bool = True) -> list[NDArray[Any]]:
        """Return what the activations of the layer before, and their state bits, come into."""
        words, size = -(-batch // 32), self._sizes[0]
        activations, states = self._arrivals[number % self.arrivals]
        found = [activations[: size * batch]]
        return [*found, states[: size * 2 * words]] if training else found

    def leaving(self, k: int, batch: int, *, training: bool = True) -> list[NDArray[Any]]:
        """Return the activations of layer k, and their state bits, as `arriving` takes them."""
        found = [self.activations(k, batch)]
        return [*found, self.state(k, batch)] if training else found

    def delta(self, k: int, batch: int) -> NDArray[Any]:
        """Return the buffer of dL/dz of a layer: see `Workspace.delta`.

        Those that pass between ranks have buffers of their own, used in turn.
        """
        if self._has_before and k == 0:
            return self._columns_of(self._sent, k, self._number, batch)
        if self._has_behind and k == len(self._sizes) - 2:
            return self.delta_from_behind(self._number, batch)
        return super().delta(k, batch)

    def delta_from_behind(self, number: int, batch: int) -> NDArray[Any]:
        """Return what dL/dz of the stage's last layer comes into."""
        return self._columns_of(self._received, len(self._sizes) - 2, number, batch)

    def _columns_of(
        self, buffers: Sequence[NDArray[Any]], k: int, number: int, batch: int
    ) -> NDArray[Any]:
        size = self._sizes[k]
        return buffers[number % PASSING][: size * batch].reshape(size, batch)

    def own_gradients(self) -> Gradients:
        """Return the gradients of the stage's own layers; the arrays are the same."""
        own = Gradients.__new__(Gradients)
        count = len(self.by_layer)
        own.by_layer = self.by_layer[int(self._has_before) : count - int(self._has_behind)]
        own.input_sums = self.input_sums
        return own
