"""What the ranks of a node share: the topology, and the server's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import ParallelError
from ...machine.mapped_memory import Allocate, Arena, Segment
from ...model.config import NetworkConfig
from ...model.layer import (
    MOMENTS,
    PARAMETERS,
    Float32,
    LayerArrays,
    LayerConfig,
    Moments,
    SparseLayer,
)
from ...model.network import SparseMLP
from ...model.topology import Topology
from ...training.memory import MicroBatching

try:
    import fcntl
except ImportError:  # Windows; see `check_locks`
    fcntl = None  # type: ignore[assignment]


def check_locks() -> None:
    """Raise `ParallelError` on systems on which ranks cannot take turns at the weights."""
    if fcntl is None:
        raise ParallelError(
            "Training by several ranks needs the file locks of POSIX, which this system does not "
            "have. Train in one process, with as many 'threads' as there are cores."
        )


class Shape(NamedTuple):
    """What the sizes of shared arrays follow from; the same on all ranks."""

    config: NetworkConfig
    room: tuple[int, ...]  # connections that each layer may have at most
    micro_batching: MicroBatching
    moments: tuple[str, ...] = ("velocity",)  # kinds that the optimizer keeps

    @classmethod
    def of(cls, network: SparseMLP, micro_batching: MicroBatching) -> Shape:
        """Return the shape of a network as it is now: connections only become fewer."""
        room = tuple(layer.nnz for layer in network.layers)
        return cls(network.config, room, micro_batching, network.layers[0].kinds)


def parameter_room(
    config: NetworkConfig,
    k: int,
    nnz: int,
    allocate: Callable[..., NDArray],
    dtype: type = np.float32,
) -> LayerArrays:
    """Return room for the parameters of layer k with so many connections, by their names."""
    shapes = LayerConfig.of(config, k).shapes(nnz, config.layer_sizes[k + 1])
    return {name: allocate(shape, dtype) for name, shape in shapes.items()}


def parameter_arrays(
    config: NetworkConfig,
    connections: Sequence[int],
    allocate: Callable[..., NDArray],
    dtype: type = np.float32,
) -> list[LayerArrays]:
    """Return room for the parameters of each layer."""
    return [parameter_room(config, k, nnz, allocate, dtype) for k, nnz in enumerate(connections)]


def counter(place: int) -> property:
    """Return a number in its owner's array `numbers`, which the ranks of a node share."""

    def store(owner: SharedTopology, value: int) -> None:
        owner.numbers[place] = value

    return property(lambda owner: int(owner.numbers[place]), store)


class SharedTopology:
    """The topology of all layers, once a node."""

    version = counter(0)  # updates made to the weights; counted on the server's node, as samples
    generation = counter(1)  # evolutions made
    samples = counter(2)  # that the weights have been trained on in phase one
    stopping = counter(3)  # 1 where no more mini-batches are begun

    def __init__(self, shape: Shape, allocate: Allocate) -> None:
        self.shape = shape
        sizes = shape.config.layer_sizes
        self.numbers = allocate(4 + len(shape.room), np.int64)
        self._layers = []
        for k, room in enumerate(shape.room):
            n_in, n_out = sizes[k : k + 2]
            lengths = (n_in + 1, room, n_out + 1, room, room)  # as the fields of Topology
            orders = [allocate(length, np.int32) for length in lengths]
            self._layers.append((orders, allocate(n_out, np.bool_)))

    def topology(self, k: int) -> Topology:
        """Return the topology of layer k, as views."""
        nnz, sizes = int(self.numbers[4 + k]), self.shape.config.layer_sizes
        (indptr, indices, *by_output), _ = self._layers[k]
        parts = (indptr, indices[:nnz], by_output[0], by_output[1][:nnz], by_output[2][:nnz])
        return Topology(sizes[k], sizes[k + 1], *parts)

    def dead(self, k: int) -> NDArray[np.bool_] | None:
        """Return which neurons of layer k are dead: bool (n_out,), None if none are."""
        dead = self._layers[k][1]
        return dead if dead.any() else None

    def store(self, k: int, topology: Topology) -> Topology:
        """Copy the topology of layer k here; return the copy."""
        self.numbers[4 + k] = topology.nnz
        stored = self.topology(k)
        for own, array in zip(stored.arrays, topology.arrays, strict=True):
            np.copyto(own, array)
        return stored

    def store_dead(self, k: int, dead: NDArray[np.bool_] | None) -> None:
        """Copy which neurons of layer k are dead."""
        self._layers[k][1][...] = False if dead is None else dead

    def arrays(self) -> list[NDArray]:
        """Return all that another node needs of it."""
        found: list[NDArray] = []
        for k, (_, dead) in enumerate(self._layers):
            found += [*self.topology(k).arrays, dead]
        return found

    @property
    def connections(self) -> list[int]:
        """Connections of every layer."""
        return [int(nnz) for nnz in self.numbers[4:]]

    @connections.setter
    def connections(self, counts: Sequence[int]) -> None:
        self.numbers[4:] = counts


class SharedWeights:
    """The weights and moments of the server, in input order, on its node."""

    def __init__(self, shape: Shape, allocate: Allocate, segment: Segment | None = None) -> None:
        self.parameters = parameter_arrays(shape.config, shape.room, allocate)
        self.moments = {
            kind: parameter_arrays(shape.config, shape.room, allocate, MOMENTS[kind].dtype)
            for kind in shape.moments
        }
        self._segment = segment

    def snapshot(self, connections: Sequence[int]) -> list[Float32]:
        """Return the parameters of layers with so many connections."""
        return cut(self.parameters, connections)

    def arrays(self, connections: Sequence[int]) -> list[Float32]:
        """Return parameters, then each kind of moments, of layers with so many connections."""
        rooms = self.parameters, *self.moments.values()
        return [array for arrays in rooms for array in cut(arrays, connections)]

    def moments_of(self, k: int, nnz: int) -> Moments:
        """Return the moments of layer k with so many connections."""
        return {kind: cut_layer(rooms[k], nnz) for kind, rooms in self.moments.items()}

    def reading(self) -> AbstractContextManager[None]:
        """Keep the server from writing; a process that dies lets go."""
        return self._locked(fcntl.LOCK_SH)

    def writing(self) -> AbstractContextManager[None]:
        """Keep all others from reading."""
        return self._locked(fcntl.LOCK_EX)

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        assert self._segment is not None
        fcntl.lockf(self._segment.descriptor, kind)
        try:
            yield
        finally:
            fcntl.lockf(self._segment.descriptor, fcntl.LOCK_UN)

    def network(
        self, topology: SharedTopology, by_output: Sequence[Float32 | None] | None = None
    ) -> SparseMLP:
        """Return a network of a node's topology and these weights, as they are now.

        `by_output` are the copies in output order, made where it has None; by default there are
        none.
        """
        config, connections = topology.shape.config, topology.connections
        copies = by_output or [np.empty(0, np.float32)] * len(connections)
        layers = []
        for k, nnz in enumerate(connections):
            layer = SparseLayer(
                k + 2,
                topology.topology(k),
                cut_layer(self.parameters[k], nnz),
                LayerConfig.of(config, k),
                moments=self.moments_of(k, nnz),
                dead=topology.dead(k),
                values_by_output=copies[k],
            )
            layers.append(layer)
        return SparseMLP.from_layers(config, layers)


class ServerLayer(SparseLayer):
    """A layer of the server's network: topology and weights are shared, in input order only."""

    def __init__(
        self, layer: SparseLayer, k: int, topology: SharedTopology, weights: SharedWeights
    ) -> None:
        self._place = k, topology, weights
        topology.store_dead(k, layer.dead)
        super().__init__(
            layer.number,
            topology.store(k, layer.topology),
            _fill_all(weights.parameters[k], layer.parameters),
            layer.config,
            moments={
                kind: _fill_all(weights.moments[kind][k], arrays)
                for kind, arrays in layer.moments.items()
            },
            dead=layer.dead,
            values_by_output=np.empty(0, np.float32),
        )

    def replace(self, topology: Topology, values: Float32, moments: LayerArrays) -> None:
        """Copy another topology with its weights and moments to the shared memory."""
        k, shared, weights = self._place
        self.topology = shared.store(k, topology)
        self.values = _fill(weights.parameters[k]["values"], values)
        for kind in self.kinds:
            setattr(self, kind, _fill(weights.moments[kind][k]["values"], moments[kind]))


def in_both_orders(layer: SparseLayer) -> SparseLayer:
    """Return an ordinary layer with the arrays of one that is in input order only."""
    parts = layer.number, layer.topology, layer.parameters, layer.config
    return SparseLayer(*parts, moments=layer.moments, dead=layer.dead)


def cut(rooms: Sequence[LayerArrays], connections: Sequence[int]) -> list[Float32]:
    """Return the parameters of layers with so many connections one after another."""
    pairs = zip(rooms, connections, strict=True)
    return [array for room, nnz in pairs for array in cut_layer(room, nnz).values()]


def cut_layer(room: LayerArrays, nnz: int) -> LayerArrays:
    """Return a layer's parameters, those of connections only as long as there are connections."""
    return {
        name: array[:nnz] if PARAMETERS[name].of_connections else array
        for name, array in room.items()
    }


def shared_size(kind, shape: Shape, *more) -> int:
    """Return the bytes that `kind(shape, *more, allocate)` takes."""
    count = Arena()
    kind(shape, *more, count)
    return count.nbytes


def _fill(room: Float32, values: Float32) -> Float32:
    """Copy values to the start of a buffer; return that part."""
    room[: len(values)] = values
    return room[: len(values)]


def _fill_all(rooms: LayerArrays, arrays: LayerArrays) -> LayerArrays:
    return {name: _fill(room, arrays[name]) for name, room in rooms.items()}
