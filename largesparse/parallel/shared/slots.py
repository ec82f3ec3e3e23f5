"""Where a gradient is computed: a snapshot of the weights, buffers, and the gradient.

A node has as many slots as gradients are computed at a time, not as many as ranks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...machine.mapped_memory import Allocate, Arena, Segment
from ...model.layer import Float32, LayerConfig, SparseLayer
from ...model.network import SparseMLP
from ...model.topology import Topology
from ...model.workspace import Workspace
from .weights import (
    Shape,
    SharedTopology,
    SharedWeights,
    cut,
    cut_layer,
    parameter_arrays,
    shared_size,
)


class Slot:
    """What computing a gradient takes; the ranks of a node use its slots in turn.

    It has the snapshot of the weights as `parameters` of each layer, with room for all connections,
    and as a `network`; and a `workspace` for activations and gradients. `allocate` gives what is
    shared, `allocate_activations` what only the rank needs that computes, meanwhile.
    """

    def __init__(
        self,
        shape: Shape,
        topology: SharedTopology,
        allocate: Allocate,
        allocate_activations: Allocate | None = None,
    ) -> None:
        self._topology = topology
        self._generation = -1  # of the topology that the network has in this process
        self._updated: SparseMLP | None = None
        self._numbers = allocate(2, np.int64)  # version + 1 and generation of the snapshot
        self.parameters = parameter_arrays(shape.config, shape.room, allocate)
        self._by_output = [allocate(room) for room in shape.room]
        layers = []
        empty = np.empty(0, np.float32)  # every rank would have its own
        for k, parameters in enumerate(self.parameters):
            n_in, n_out = shape.config.layer_sizes[k : k + 2]
            nothing = Topology(n_in, n_out, *[np.empty(0, np.int32)] * 5)  # until `use` shows it
            layer = SparseLayer(
                k + 2,
                nothing,
                parameters,
                LayerConfig.of(shape.config, k),
                moments={"velocity": dict.fromkeys(parameters, empty)},
                values_by_output=empty,
            )
            layers.append(layer)
        self.network = SparseMLP.from_layers(shape.config, layers)
        room: dict[str, Any] = {"allocate": allocate, "allocate_activations": allocate_activations}
        self.workspace = Workspace(layers, **shape.micro_batching._asdict(), **room)

    @property
    def version(self) -> int:
        """Updates that the snapshot has seen; -1 before the first."""
        return int(self._numbers[0]) - 1

    def is_of(self, version: int, generation: int) -> bool:
        """Return whether the snapshot is of this version of the weights and of the topology."""
        return self._numbers.tolist() == [version + 1, generation]

    def take(self, weights: SharedWeights) -> None:
        """Copy the server's weights, as they are now, unless nothing has changed."""
        topology = self._topology
        with weights.reading():
            version, generation = topology.version, topology.generation
            if not self.is_of(version, generation):
                self._copy(weights)
        self.use(version, generation)

    def renew(self, weights: SharedWeights) -> None:
        """Copy the server's weights right after an update of them, and of `values_by_output`."""
        self._copy(weights)
        self._numbers[:] = self._topology.version + 1, self._topology.generation

    def _copy(self, weights: SharedWeights) -> None:
        theirs = weights.snapshot(self._topology.connections)
        for own, array in zip(self.arrays(), theirs, strict=True):
            own[...] = array

    def use(self, version: int, generation: int) -> None:
        """Make a network of the snapshot in `parameters`, which is of this version."""
        if generation != self._generation:
            self._show_topology()
            self._generation = generation
        if not self.is_of(version, generation):
            for layer in self.network.layers:
                layer.refresh()
            self._numbers[:] = version + 1, generation

    def _show_topology(self) -> None:
        """Let the network have the node's topology as it is now."""
        for k, layer in enumerate(self.network.layers):
            topology = self._topology.topology(k)
            layer.topology, layer.dead = topology, self._topology.dead(k)
            for name, array in cut_layer(self.parameters[k], topology.nnz).items():
                setattr(layer, name, array)
            layer.values_by_output = self._by_output[k][: topology.nnz]
        self._updated = None
        self.workspace.resize_(self.network.layer_connections)

    def updated(self, weights: SharedWeights) -> SparseMLP:
        """Return the shared weights as a network whose copy in output order is this slot's."""
        if self._updated is None:
            by_output = [layer.values_by_output for layer in self.network.layers]
            self._updated = weights.network(self._topology, by_output)
        return self._updated

    def arrays(self) -> list[Float32]:
        """Return the arrays that the snapshot consists of."""
        return cut(self.parameters, self._topology.connections)


def create_segments(shape: Shape, slots: int, *, has_weights: bool) -> list[Segment]:
    """Return a node's segments: of the topology, of the weights where it has them, of each slot."""
    shared = [SharedTopology, SharedWeights] if has_weights else [SharedTopology]
    slot, _ = slot_sizes(shape, SharedTopology(shape, Arena()))
    sizes = [shared_size(kind, shape) for kind in shared] + [slot] * slots
    return [Segment.create(size) for size in sizes]


def slot_sizes(shape: Shape, topology: SharedTopology) -> tuple[int, int]:
    """Return the bytes of a slot that are shared, and those of its activations."""
    shared, activations = Arena(), Arena()
    Slot(shape, topology, shared, activations)
    return shared.nbytes, activations.nbytes
