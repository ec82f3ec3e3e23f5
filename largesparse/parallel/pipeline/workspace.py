"""The buffers of a stage: those of a training step, for several micro-batches at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from ...machine.mapped_memory import aligned_zeros
from ...model.workspace import ACTIVATION_DTYPES, Gradients, Workspace

KEPT = ("_activations", "_states", "_sums", "found", "_inputs", "sparse")  # by a micro-batch


class Deltas(NamedTuple):
    """Neurons of the buffers of dL/dz in a stage.

    Where all layers are as wide, one between others writes its own over the activations of the
    next, as in one process.
    """

    received: int  # of the top layer, from the rank behind; 0 where there is none
    turns: tuple[int, ...]  # of those computed here, which take turns
    sent: int  # of the layer before; 0 where there is none, or one of `turns` serves

    @classmethod
    def of(cls, hidden: Sequence[int], has_before: bool, has_behind: bool) -> Deltas:
        """Return those of a stage whose hidden layers, with the one before, have these neurons."""
        inner = hidden[int(has_before) : len(hidden) - int(has_behind)]
        received, sent = has_behind * hidden[-1], has_before * hidden[0]
        if len(set(hidden)) > 1:
            return cls(received, (max(inner, default=0),) * min(2, len(inner)), sent)
        # what is sent comes last in a backward pass, and what `turns` has first
        return cls(received, tuple(inner[:1]), sent if len(inner) < 2 else 0)


class StageWorkspace(Workspace):
    """Buffers for the layers of a stage, with an `Edge` in place of each neighbour.

    The backward pass of a micro-batch comes after the forward passes of some others, so activations
    are there `in_flight` times, and those that come from the rank before `arrivals` times. Those
    that go to the rank behind are needed there alone: they are here once, as are gradients and the
    buffers of the backward pass. `turn_to_` says which micro-batch the buffers are of.
    """

    def __init__(
        self,
        chain: Sequence[Any],
        micro_batch: int,
        in_flight: int,
        arrivals: int,
        *,
        has_before: bool,
        has_behind: bool,
        activation_dtype: str = "float32",
    ) -> None:
        options: dict[str, Any] = {"activation_dtype": activation_dtype, "sparse_inputs": True}
        super().__init__(chain, micro_batch, **options)
        self.in_flight, self.arrivals = in_flight, arrivals
        self._has_before, self._has_behind = has_before, has_behind
        self._number = 0
        if has_before or has_behind:
            self._divide(ACTIVATION_DTYPES[activation_dtype])
        self._sets = [{name: getattr(self, name, None) for name in KEPT}]
        shared = {0: has_before, len(chain) - 2: has_behind}
        for _ in range(in_flight - 1):
            copies: dict[str, Any] = {
                name: [
                    array
                    if name in ("_activations", "_states") and shared.get(place)
                    else self._like(array)
                    for place, array in enumerate(getattr(self, name))
                ]
                for name in ("_activations", "_states", "_sums", "found")
            }
            self._sets.append(copies | {"_inputs": None, "sparse": None})
        self._arrivals = [(self._activations[0], self._states[0])] if has_before else []
        while has_before and len(self._arrivals) < arrivals:
            self._arrivals.append((self._like(self._activations[0]), self._like(self._states[0])))

    def _divide(self, dtype: Any) -> None:
        """Have buffers of activations, and of the backward pass, of a stage between others."""
        rows, hidden = self.micro_batch, self._sizes[:-1]
        self._activations[:-1] = [aligned_zeros(size * rows, dtype) for size in hidden]
        deltas = Deltas.of(hidden, self._has_before, self._has_behind)
        self._are_written_above = len(set(hidden)) == 1
        self._received = aligned_zeros(deltas.received * rows, dtype)
        self._deltas = [aligned_zeros(size * rows, dtype) for size in deltas.turns]
        self._sent = aligned_zeros(deltas.sent * rows, dtype)

    @staticmethod
    def _like(array: NDArray[Any]) -> NDArray[Any]:
        return aligned_zeros(array.shape, array.dtype)

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
        """Return the buffer of dL/dz of a layer: see `Workspace.delta`, and `Deltas`."""
        top = len(self._sizes) - 2
        if self._has_behind and k == top:
            buffer = self._received
        elif self._has_before and k == 0:
            buffer = self._sent if len(self._sent) else self._deltas[0]
        elif not self._has_behind or not self._are_written_above:
            return super().delta(k, batch)
        else:
            buffer = self._activations[k + 1] if k + 1 < top else self._deltas[0]
        return buffer[: self._sizes[k] * batch].reshape(self._sizes[k], batch)

    def own_gradients(self) -> Gradients:
        """Return the gradients of the stage's own layers; the arrays are the same."""
        own = Gradients.__new__(Gradients)
        count = len(self.by_layer)
        own.by_layer = self.by_layer[int(self._has_before) : count - int(self._has_behind)]
        own.input_sums = self.input_sums
        return own
