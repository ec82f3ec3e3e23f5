"""One sparse layer: its topology, weights, biases and their velocities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .initializers import Sampler
from .topology import Topology

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]


class Forward(Protocol):
    """What the forward pass needs of a layer; see `SparseLayer` for the attributes."""

    @property
    def number(self) -> int: ...
    @property
    def n_in(self) -> int: ...
    @property
    def n_out(self) -> int: ...
    @property
    def indptr_by_output(self) -> Int32: ...
    @property
    def indices_by_output(self) -> Int32: ...
    @property
    def values_by_output(self) -> Float32: ...
    @property
    def bias(self) -> Float32: ...
    @property
    def slope(self) -> float: ...
    @property
    def srelu(self) -> Float32 | None: ...


@dataclass(frozen=True)
class ForwardLayer:
    """A layer that can only predict: 8 bytes a connection, shared by worker processes."""

    number: int
    n_in: int
    n_out: int
    indptr_by_output: Int32
    indices_by_output: Int32
    values_by_output: Float32
    bias: Float32
    slope: float
    srelu: Float32 | None = None


class LayerWeights(NamedTuple):
    """Topology and weights of a layer at some time; see `SparseLayer` for the fields."""

    topology: Topology
    values: Float32
    bias: Float32
    dead: NDArray[np.bool_] | None
    srelu: Float32 | None


class SparseLayer:
    """A sparse layer z = Wᵀx + b, with W (n_in, n_out) of which only the connections are kept.

    Attributes
    ----------
    number : int
        The layer's number as the paper counts: the input is layer 1, the first hidden layer 2.
    topology : Topology
    values, velocity : float32 (nnz,)
        Weights and their velocities, in input order.
    values_by_output : float32 (nnz,)
        A copy of the weights in output order; `refresh` renews it. One that is given is taken
        as it is.
    bias, bias_velocity : float32 (n_out,)
    slope : float
        Left slope of the activation; 1 is none.
    srelu, srelu_velocity : float32 (4, n_out) or None
        Parameters of an activation whose shape is trained, applied where slope is 1: see
        `backends.srelu_kernels`.
    srelu_trained : four bools
        Which of the parameters are trained.
    rate_scale : float
        The learning rate of the layer's weights is multiplied by this.
    regrowth : Sampler or None
        Draws the values of connections that evolution adds; None is zero.
    centered : bool
        Whether the gradients are centred: see `SparseMLP.finish_gradient`.
    dead : bool (n_out,) or None
        The neurons that Importance Pruning has killed, which have no connections and a bias of 0.
        Never changed in place.
    """

    def __init__(
        self,
        number: int,
        topology: Topology,
        values: Float32,
        bias: Float32,
        *,
        slope: float,
        rate_scale: float = 1.0,
        regrowth: Sampler | None = None,
        centered: bool = False,
        dead: NDArray[np.bool_] | None = None,
        srelu: Float32 | None = None,
        srelu_trained: tuple[bool, ...] = (),
        velocity: Float32 | None = None,
        bias_velocity: Float32 | None = None,
        srelu_velocity: Float32 | None = None,
        values_by_output: Float32 | None = None,
    ) -> None:
        self.number = number
        self.topology = topology
        self.values = values
        self.velocity = np.zeros_like(values) if velocity is None else velocity
        self.bias = bias
        self.bias_velocity = np.zeros_like(bias) if bias_velocity is None else bias_velocity
        self.slope = slope
        self.rate_scale = rate_scale
        self.regrowth = regrowth
        self.centered = centered
        self.dead = dead
        self.srelu = srelu
        self.srelu_velocity = srelu_velocity
        if srelu is not None and srelu_velocity is None:
            self.srelu_velocity = np.zeros_like(srelu)
        self.srelu_trained = srelu_trained
        if values_by_output is None:
            self.values_by_output = np.empty_like(values)
            self.refresh()
        else:
            self.values_by_output = values_by_output

    @property
    def n_in(self) -> int:
        """Number of inputs."""
        return self.topology.n_in

    @property
    def n_out(self) -> int:
        """Number of neurons."""
        return self.topology.n_out

    @property
    def indptr_by_output(self) -> Int32:
        """Row pointers of the output order."""
        return self.topology.indptr_by_output

    @property
    def indices_by_output(self) -> Int32:
        """Inputs of the connections in output order."""
        return self.topology.indices_by_output

    @property
    def nnz(self) -> int:
        """Number of connections."""
        return self.topology.nnz

    @property
    def n_living(self) -> int:
        """Number of neurons that are not dead."""
        return self.n_out if self.dead is None else self.n_out - int(np.count_nonzero(self.dead))

    def living(self) -> NDArray[np.int64]:
        """Return the numbers of the neurons that are not dead, ascending."""
        return np.arange(self.n_out) if self.dead is None else np.flatnonzero(~self.dead)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        weights = self.values.nbytes + self.velocity.nbytes + self.values_by_output.nbytes
        shape = 0 if self.srelu is None else 2 * self.srelu.nbytes
        return self.topology.nbytes + weights + 2 * self.bias.nbytes + shape

    def settings(self) -> dict[str, Any]:
        """Return what the layer is beside topology, weights and their copy, for another one."""
        names = ["slope", "rate_scale", "regrowth", "centered", "dead", "srelu", "srelu_trained"]
        names += ["velocity", "bias_velocity", "srelu_velocity"]
        return {name: getattr(self, name) for name in names}

    def weights(self) -> LayerWeights:
        """Return the present topology and weights; the arrays are the layer's own."""
        return LayerWeights(self.topology, self.values, self.bias, self.dead, self.srelu)

    def snapshot(self) -> LayerWeights:
        """Return a copy of the weights. The topology is not changed in place, and is shared."""
        srelu = None if self.srelu is None else self.srelu.copy()
        now = self.weights()
        return now._replace(values=now.values.copy(), bias=now.bias.copy(), srelu=srelu)

    def restore_(self, weights: LayerWeights) -> None:
        """Go back to a copy of weights, with zero velocities."""
        values = weights.values.copy()
        self.replace(weights.topology, values, np.zeros_like(values))
        self.bias[...], self.bias_velocity[...] = weights.bias, 0
        self.dead = weights.dead
        if self.srelu is not None and self.srelu_velocity is not None:
            self.srelu[...], self.srelu_velocity[...] = weights.srelu, 0

    def copy(self) -> SparseLayer:
        """Return a layer with weights and velocities of its own; the topology is shared."""
        names = ("velocity", "bias_velocity", "srelu", "srelu_velocity")
        arrays = {name: getattr(self, name) for name in names}
        owned = {name: array if array is None else array.copy() for name, array in arrays.items()}
        weights = self.values.copy(), self.bias.copy()
        return SparseLayer(self.number, self.topology, *weights, **(self.settings() | owned))

    def refresh(self) -> None:
        """Renew the copy of the weights in output order, after `values` changed."""
        from .backends.pattern_kernels import reorder

        reorder(self.values, self.topology.to_output_order, self.values_by_output)

    def replace(self, topology: Topology, values: Float32, velocity: Float32) -> None:
        """Take over another topology with its weights and velocities."""
        self.topology = topology
        self.values = values
        self.velocity = velocity
        if len(self.values_by_output) != len(values):
            self.values_by_output = np.empty_like(values)
        self.refresh()
