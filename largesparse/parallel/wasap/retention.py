"""RetainValidUpdates (Algorithm 1): what of a gradient fits a topology that has evolved since."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...model.layer import PARAMETERS, SparseLayer
from ...model.workspace import Gradients

Int32 = NDArray[np.int32]


class SlotMaps:
    """Where the connections of earlier generations of a topology are now."""

    def __init__(self) -> None:
        self.generation = 0  # evolutions so far
        self._since: dict[int, list[Int32]] = {}  # generation -> maps of all layers to the newest

    def add(self, steps: Sequence[Sequence[Int32]], needed: set[int]) -> None:
        """Begin a new generation, by `steps` as `Trainer.evolve_if_due` returns them.

        Gradients are still to come of the earlier generations that are `needed`.
        """
        kept = {old: maps for old, maps in self._since.items() if old in needed}
        if self.generation in needed:
            kept[self.generation] = []
        for maps in kept.values():
            for step in steps:
                compose_(maps, step)
        self._since = kept
        self.generation += 1

    def since(self, generation: int) -> list[Int32]:
        """Return the maps of the layers that have changed since a generation."""
        return self._since[generation]


def compose_(maps: list[Int32], step: Sequence[Int32]) -> None:
    """Let a step follow the maps of the layers, in place; -1 stays -1."""
    for k, later in enumerate(step):  # an evolution's has no output layer
        if k == len(maps):
            maps.append(later)
        else:
            maps[k] = np.where(maps[k] >= 0, later[maps[k]], np.int32(-1))


def retain_valid(
    gradients: Gradients, maps: Sequence[Int32], layers: Sequence[SparseLayer]
) -> Gradients:
    """Return a gradient of an earlier generation as one of the present topology.

    What belongs to a connection that has gone is dropped, and a connection that has come since
    has a gradient of 0, even where there was one at its place before. `maps` are from its
    generation to the present one; layers beyond their number have not changed.
    """
    valid = Gradients(layers)
    for k, layer in enumerate(layers):
        for name, found in valid.by_layer[k].items():
            given, of_connections = gradients.by_layer[k][name], PARAMETERS[name].of_connections
            if of_connections and k < len(maps):
                remains = maps[k] >= 0
                found[maps[k][remains]] = given[remains]
            else:
                found[...] = given
            if not of_connections and layer.dead is not None:
                found[..., layer.dead] = 0
    valid.input_sums[...] = gradients.input_sums
    return valid
