"""What concerns layers of several ranks, beside activations: norms, paths, and neurons that die."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...model.importance import (
    bury_,
    constants,
    cut_off_,
    mark_fed,
    mark_leading,
    select_dying,
    take_constants_,
)
from ...model.layer import LayerArrays, SparseLayer
from ...model.optimizer import scale_, sum_squares
from .flow import MARKS, SUMS, Links
from .stage import Edge, Place

Layers = Sequence[SparseLayer]
Mask = NDArray[np.bool_]


class Crossing:
    """A rank's part in it; the ranks of a pipeline call its methods together, with their layers."""

    def __init__(self, place: Place, links: Links, before: Edge | None) -> None:
        self.place, self.links, self.before = place, links, before

    def clip_(self, layers: Layers, gradients: Sequence[LayerArrays], norm: float) -> None:
        """Scale the gradients of all ranks, so that their norm together is `norm` at most.

        The squares are added in the order of the layers, from rank to rank.
        """
        total = np.zeros(1)
        if self.place.before is not None:
            self._receive([total], self.place.before, SUMS)
        total[0] = sum_squares(layers, gradients, float(total[0]))
        if self.place.behind is not None:
            self._send([total], self.place.behind, SUMS)
            self._receive([total], self.place.behind, SUMS)
        if self.place.before is not None:
            self._send([total], self.place.before, SUMS)
        scale_(layers, gradients, math.sqrt(total[0]), norm)

    def count_active(self, layers: Layers) -> list[int]:
        """Return how many hidden neurons are on a path: see `active_neurons`.

        Those of every layer that leads to one of this rank's.
        """
        topologies = [layer.topology for layer in layers]
        inputs = None
        if self.before is not None:
            inputs = self._receive_mask(self.before.n_out)
        rises = topologies[:-1] if self.place.is_last else topologies
        fed = mark_fed(rises, inputs)
        outputs = np.ones(topologies[-1].n_out, dtype=bool)
        if self.place.behind is not None:
            self._send([np.packbits(fed.pop())], self.place.behind, MARKS)
            outputs = self._receive_mask(len(outputs), self.place.behind)
        led = topologies[1:] if self.before is None else topologies
        below = fed if inputs is None else [inputs, *fed]
        active, counts = mark_leading(led, outputs, below)
        if self.place.before is not None:
            self._send([np.packbits(active)], self.place.before, MARKS)
        return counts

    def prune(self, layers: Layers, percentile: float, seed: int) -> list[NDArray[np.int32]]:
        """Prune neurons by importance, as `prune_neurons`; return the slot maps of the layers."""
        place = self.place
        hidden = layers[:-1] if place.is_last else layers
        dying = [select_dying(layer, percentile) for layer in hidden]
        sent = None
        if place.behind is not None:
            arrays: list[Any] = [np.packbits(dying[-1]), *constants(layers[-1], dying[-1])]
            sent = self.links.send(arrays, place.behind, MARKS)
        bury_(layers, dying)
        gone = np.zeros(layers[0].n_in, dtype=bool)
        if self.before is not None:
            gone = self._take_dead(layers[0])
        marks = [gone, *dying]
        if place.is_last:
            marks.append(np.zeros(layers[-1].n_out, dtype=bool))
        living = None if self.before is None else self.before.living()
        if len(layers) > 1:
            living = layers[-2].living()
        maps = cut_off_(layers, marks, seed, living)
        if sent is not None:
            self.links.wait(sent)
        return maps

    def _take_dead(self, first: SparseLayer) -> Mask:
        """Take over what neurons put out that die on the rank before; return which they are."""
        before = self.before
        assert before is not None and self.place.before is not None
        bits = np.empty(-(-before.n_out // 8), dtype=np.uint8)
        kinds = 2 if "average" in first.kinds else 1
        outputs = [np.empty(before.n_out, dtype=np.float32) for _ in range(kinds)]
        self._receive([bits, *outputs], self.place.before, MARKS)
        gone = np.unpackbits(bits, count=before.n_out).astype(bool)
        if gone.any():
            take_constants_(first, outputs)
            before.dead = gone if before.dead is None else before.dead | gone
        return gone

    def tell_dead(self, layers: Layers) -> None:
        """Let the rank behind know of the last layer's neurons that are dead."""
        sent = None
        if self.place.behind is not None:
            last = layers[-1]
            dead = np.zeros(last.n_out, dtype=bool) if last.dead is None else last.dead
            sent = self.links.send([np.packbits(dead)], self.place.behind, MARKS)
        if self.before is not None:
            dead = self._receive_mask(self.before.n_out)
            self.before.dead = dead if dead.any() else None
        if sent is not None:
            self.links.wait(sent)

    def _receive_mask(self, count: int, rank: int | None = None) -> Mask:
        """Return a mask of the rank before, or of another."""
        rank = self.place.before if rank is None else rank
        assert rank is not None
        bits = np.empty(-(-count // 8), dtype=np.uint8)
        self._receive([bits], rank, MARKS)
        return np.unpackbits(bits, count=count).astype(bool)

    def _send(self, arrays: Sequence[NDArray[Any]], rank: int, tag: int) -> None:
        self.links.wait(self.links.send(arrays, rank, tag))

    def _receive(self, arrays: Sequence[NDArray[Any]], rank: int, tag: int) -> None:
        self.links.wait(self.links.receive(arrays, rank, tag))
