"""What the ranks of a node share: the topology, the server's weights, and the compute slots.

A slot is what computing a gradient takes: a snapshot of the weights in both orders, the gradient
and the activations. There are as many as gradients are computed at a time, not as many as ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..config import NetworkConfig
from ..errors import ParallelError
from ..layer import Float32, SparseLayer
from ..mapped_memory import Allocate, Arena, Segment
from ..memory import MicroBatching
from ..network import SparseMLP, layer_settings
from ..topology import Topology

try:
    import fcntl
except ImportError:  # Windows; see `check_locks`
    fcntl = None  # type: ignore[assignment]

Arrays = list[NDArray[np.float32]]


def check_locks() -> None:
    """Refuse systems on which ranks cannot take turns at the weights.

    Raises
    ------
    ParallelError
    """
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

    @classmethod
    def of(cls, network: SparseMLP, micro_batching: MicroBatching) -> Shape:
        """Return the shape of a network as it is now: connections only become fewer."""
        room = tuple(layer.nnz for layer in network.layers)
        return cls(network.config, room, micro_batching)


def parameter_arrays(
    config: NetworkConfig, connections: Sequence[int], allocate: Callable[..., NDArray]
) -> list[Arrays]:
    """Return for each layer room for values, bias and the activation's parameters.

    These are float32 (nnz,), (n_out,) and (4, n_out), or (4, 0) where they are not trained.
    """
    found = []
    for k, nnz in enumerate(connections):
        n_out = config.layer_sizes[k + 1]
        shaped = layer_settings(config, k)["srelu"] is not None
        shapes = (nnz, n_out, (4, n_out if shaped else 0))
        found.append([allocate(shape, np.float32) for shape in shapes])
    return found


class SharedTopology:
    """The topology of all layers, once a node.

    Attributes
    ----------
    version : int
        Updates made to the weights; counted on the server's node, as are samples.
    samples : int
        That the weights have been trained on in phase one.
    generation : int
        Evolutions made.
    stopping : bool
        Whether no more mini-batches are begun.
    """

    def __init__(self, shape: Shape, allocate: Allocate) -> None:
        self.shape = shape
        sizes = shape.config.layer_sizes
        self._numbers = allocate(4 + len(shape.room), np.int64)
        self._layers = []
        for k, room in enumerate(shape.room):
            n_in, n_out = sizes[k : k + 2]
            lengths = (n_in + 1, room, n_out + 1, room, room)  # as the fields of Topology
            orders = [allocate(length, np.int32) for length in lengths]
            self._layers.append((orders, allocate(n_out, np.bool_)))

    @property
    def version(self) -> int:
        return int(self._numbers[0])

    @version.setter
    def version(self, value: int) -> None:
        self._numbers[0] = value

    @property
    def generation(self) -> int:
        return int(self._numbers[1])

    @generation.setter
    def generation(self, value: int) -> None:
        self._numbers[1] = value

    @property
    def samples(self) -> int:
        return int(self._numbers[2])

    @samples.setter
    def samples(self, value: int) -> None:
        self._numbers[2] = value

    @property
    def stopping(self) -> bool:
        return bool(self._numbers[3])

    @stopping.setter
    def stopping(self, value: bool) -> None:
        self._numbers[3] = value

    def topology(self, k: int) -> Topology:
        """Return the topology of layer k, as views."""
        nnz, sizes = int(self._numbers[4 + k]), self.shape.config.layer_sizes
        (indptr, indices, *by_output), _ = self._layers[k]
        parts = (indptr, indices[:nnz], by_output[0], by_output[1][:nnz], by_output[2][:nnz])
        return Topology(sizes[k], sizes[k + 1], *parts)

    def dead(self, k: int) -> NDArray[np.bool_] | None:
        """Return which neurons of layer k are dead: bool (n_out,), None if none are."""
        dead = self._layers[k][1]
        return dead if dead.any() else None

    def store(self, k: int, topology: Topology) -> Topology:
        """Copy the topology of layer k here; return the copy."""
        self._numbers[4 + k] = topology.nnz
        stored = self.topology(k)
        for name in Topology.__slots__[2:]:
            np.copyto(getattr(stored, name), getattr(topology, name))
        return stored

    def store_dead(self, k: int, dead: NDArray[np.bool_] | None) -> None:
        """Copy which neurons of layer k are dead."""
        self._layers[k][1][...] = False if dead is None else dead

    def arrays(self) -> list[NDArray]:
        """Return all that another node needs of it."""
        found: list[NDArray] = []
        for k, (_, dead) in enumerate(self._layers):
            found += [getattr(self.topology(k), name) for name in Topology.__slots__[2:]]
            found.append(dead)
        return found

    @property
    def connections(self) -> list[int]:
        """Connections of every layer."""
        return [int(nnz) for nnz in self._numbers[4:]]

    @connections.setter
    def connections(self, counts: Sequence[int]) -> None:
        self._numbers[4:] = counts


class SharedWeights:
    """The weights and velocities of the server, in input order, on its node."""

    def __init__(self, shape: Shape, allocate: Allocate, segment: Segment | None = None) -> None:
        self.parameters = parameter_arrays(shape.config, shape.room, allocate)
        self.velocities = parameter_arrays(shape.config, shape.room, allocate)
        self._segment = segment

    def snapshot(self, connections: Sequence[int]) -> Arrays:
        """Return the parameters of layers with so many connections."""
        return cut(self.parameters, connections)

    def arrays(self, connections: Sequence[int]) -> Arrays:
        """Return parameters, then velocities, of layers with so many connections."""
        return cut(self.parameters, connections) + cut(self.velocities, connections)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep the server from writing; a process that dies lets go."""
        assert self._segment is not None
        fcntl.lockf(self._segment.descriptor, fcntl.LOCK_SH)
        try:
            yield
        finally:
            fcntl.lockf(self._segment.descriptor, fcntl.LOCK_UN)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep all others from reading."""
        assert self._segment is not None
        fcntl.lockf(self._segment.descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._segment.descriptor, fcntl.LOCK_UN)


def show_weights(
    topology: SharedTopology, weights: SharedWeights, by_output: list[Float32] | None = None
) -> SparseMLP:
    """Return a network of a node's topology and weights, as they are now.

    Parameters
    ----------
    topology : SharedTopology
    weights : SharedWeights
    by_output : list of float32 (nnz,), optional
        The copies in output order; by default there are none.
    """
    config, connections = topology.shape.config, topology.connections
    copies = by_output or [np.empty(0, np.float32)] * len(connections)
    layers = []
    for k, nnz in enumerate(connections):
        values, bias, srelu = weights.parameters[k]
        velocity, bias_velocity, srelu_velocity = weights.velocities[k]
        settings = layer_settings(config, k) | {"dead": topology.dead(k)}
        if settings["srelu"] is not None:
            settings |= {"srelu": srelu, "srelu_velocity": srelu_velocity}
        settings |= {"velocity": velocity[:nnz], "bias_velocity": bias_velocity}
        place = k + 2, topology.topology(k), values[:nnz], bias
        layers.append(SparseLayer(*place, values_by_output=copies[k], **settings))
    return SparseMLP.from_layers(config, layers)


class ServerLayer(SparseLayer):
    """A layer of the server's network: topology and weights are shared, in input order only."""

    def __init__(
        self, layer: SparseLayer, k: int, topology: SharedTopology, weights: SharedWeights
    ) -> None:
        self._place = k, topology, weights
        values, bias, srelu = weights.parameters[k]
        velocity, bias_velocity, srelu_velocity = weights.velocities[k]
        bias[...], bias_velocity[...] = layer.bias, layer.bias_velocity
        if layer.srelu is not None and layer.srelu_velocity is not None:
            srelu[...], srelu_velocity[...] = layer.srelu, layer.srelu_velocity
        topology.store_dead(k, layer.dead)
        settings = layer.settings() | {
            "srelu": None if layer.srelu is None else srelu,
            "srelu_velocity": None if layer.srelu is None else srelu_velocity,
            "velocity": _fill(velocity, layer.velocity),
            "bias_velocity": bias_velocity,
            "values_by_output": np.empty(0, np.float32),
        }
        stored = topology.store(k, layer.topology), _fill(values, layer.values)
        super().__init__(layer.number, *stored, bias, **settings)

    def replace(self, topology: Topology, values: Float32, velocity: Float32) -> None:
        """Copy another topology with its weights and velocities to the shared memory."""
        k, shared, weights = self._place
        self.topology = shared.store(k, topology)
        self.values = _fill(weights.parameters[k][0], values)
        self.velocity = _fill(weights.velocities[k][0], velocity)


def in_both_orders(layer: SparseLayer) -> SparseLayer:
    """Return an ordinary layer with the arrays of one that is in input order only."""
    weights = layer.topology, layer.values, layer.bias
    return SparseLayer(layer.number, *weights, **layer.settings())


def cut(parameters: list[Arrays], connections: Sequence[int]) -> Arrays:
    """Return parameter arrays one after another, the values as long as there are connections."""
    found = []
    for (values, *rest), nnz in zip(parameters, connections, strict=True):
        found += [values[:nnz], *rest]
    return found


def shared_size(kind, shape: Shape, *more) -> int:
    """Return the bytes that `kind(shape, *more, allocate)` takes."""
    count = Arena()
    kind(shape, *more, count)
    return count.nbytes


def _fill(room: Float32, values: Float32) -> Float32:
    """Copy values to the start of a buffer; return that part."""
    room[: len(values)] = values
    return room[: len(values)]
