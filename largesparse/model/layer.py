"""One sparse layer: its topology, and its trained arrays with their velocities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..backends.operands import Connections, Counts, Float32, Int32
from ..randomness import seed_sequence, stream
from .activations import TRAINED, activate, initial_shape, left_slope
from .initializers import INITIALIZERS, Sampler
from .recipes import RECIPES, LayerRecipe
from .topology import Topology, erdos_renyi, with_minimum

if TYPE_CHECKING:
    from .config import NetworkConfig
    from .start import LayerStart

LayerArrays = dict[str, NDArray[Any]]
CANDIDATES = ("candidate_indptr", "candidate_indices")  # in files
Zeros = Callable[[tuple[int, ...], Any], NDArray[Any]]  # shape, dtype -> array


class Parameter(NamedTuple):
    """A trained array of a layer: float32, as is its gradient, of one shape."""

    of_connections: bool = False  # one number a connection, in input order; else for neurons
    rows: int = 0  # numbers a neuron, (rows, n_out); 0 is one, (n_out,)
    decays: bool = True  # whether the weight decay applies
    needs: str = ""  # the field of `LayerConfig` without which a layer does not have it
    is_trained: bool = True  # else it is moved towards its gradient: see `normalization`

    def shape(self, nnz: int, n_out: int) -> tuple[int, ...]:
        """Return the shape for a layer with so many connections and neurons."""
        if self.of_connections:
            return (nnz,)
        return (self.rows, n_out) if self.rows else (n_out,)


# All that copies, saves, shares, sums, averages or updates what is trained goes by this. A new
# parameter is a line here, its first values in `initial_layer`, and its kernel.
PARAMETERS = {
    "values": Parameter(of_connections=True),
    "bias": Parameter(),
    "srelu": Parameter(rows=4, decays=False, needs="shape_trained"),
    "scale": Parameter(decays=False, needs="normalised"),
    "running": Parameter(rows=3, needs="normalised", is_trained=False),
}


class Moment(NamedTuple):
    """What is kept beside every number that is trained, in an array of the parameter's shape."""

    dtype: type = np.float32
    of_values: bool = False  # whether new connections begin with their weight; else with 0


# All that copies, saves, shares or moves them goes by this. Which of them a layer has is the
# optimizer's: see `SparseLayer.keep_moments_`.
MOMENTS = {
    "velocity": Moment(),  # of momentum SGD; Adam's mean of the gradients
    "square": Moment(),  # Adam's mean of their squares
    "updates": Moment(np.uint16),  # that a number has had, up to 65535
    "average": Moment(of_values=True),  # of the parameter over the updates: see `averages`
}
Moments = dict[str, LayerArrays]  # kind -> parameter -> array


def moment_bytes(kinds: Sequence[str]) -> int:
    """Return the bytes of these kinds of moments of a number."""
    return sum(np.dtype(MOMENTS[kind].dtype).itemsize for kind in kinds)


def moment_name(parameter: str, kind: str) -> str:
    """Return what a parameter's moment is called in files, and as a layer's attribute."""
    return kind if parameter == "values" else f"{parameter}_{kind}"


@dataclass(frozen=True)
class LayerConfig:
    """What a layer is beside its arrays."""

    slope: float  # left slope of the activation; 1 is none
    rate_scale: float = 1.0  # the learning rate of the layer's weights is multiplied by this
    regrowth: Sampler | None = None  # draws what connections that grow begin with; None is zero
    centered: bool = False  # whether the gradients are: see `SparseMLP.finish_gradient`
    minimum: int = 0  # connections that evolution and pruning leave every output, where it has them
    shape_trained: tuple[bool, ...] = ()  # which rows of `srelu` are; () where there is none
    frozen: bool = False  # whether evolution leaves the connections as they are
    normalised: bool = False  # by batch: see `normalization`

    @classmethod
    def of(cls, config: NetworkConfig, k: int) -> LayerConfig:
        """Return that of layer k (0 is the first hidden one) of a network."""
        is_output = k == len(config.layer_sizes) - 2
        activation = "linear" if is_output else config.activation
        recipe = _recipe(config, k)
        zero = (config.regrowth or recipe.regrowth) == "zero"
        return cls(
            slope=left_slope(activation, config.alpha, k + 2),
            rate_scale=_rate_scale(config, k, recipe),
            regrowth=None if zero else _sampler(config, k),
            centered=is_output and recipe.center_output,
            minimum=config.output_minimum if is_output else 0,
            shape_trained=TRAINED.get(activation, ()),
            frozen=(given := config.given_layer(k)) is not None and given.evolution == "frozen",
            normalised=config.batch_norm and not is_output,
        )

    def shapes(self, nnz: int, n_out: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the parameters of a layer with so many connections and neurons."""
        return {
            name: parameter.shape(nnz, n_out)
            for name, parameter in PARAMETERS.items()
            if not parameter.needs or getattr(self, parameter.needs)
        }


def _recipe(config: NetworkConfig, k: int) -> LayerRecipe:
    n_in, n_out = config.layer_sizes[k : k + 2]
    return RECIPES[config.recipe](n_in, n_out, config.probabilities()[k])


def _rate_scale(config: NetworkConfig, k: int, recipe: LayerRecipe) -> float:
    """Return the factor of a layer's learning rate: the recipe's, or by the connections a neuron.

    The latter is that of Adam in SμPar (Dey et al., "Sparse maximal update parameterization",
    2024): 1 over width times density, relative to those of the layer that the rate was found on.
    """
    if config.rate_fan_in is None:
        return recipe.rate_scale
    return config.rate_fan_in / max(1.0, config.probabilities()[k] * config.layer_sizes[k])


def _sampler(config: NetworkConfig, k: int) -> Sampler:
    recipe = _recipe(config, k)
    return INITIALIZERS[config.initializer](recipe.fan_in, recipe.fan_out)


def initial_layer(
    config: NetworkConfig, k: int, threads: int, start: LayerStart | None = None
) -> SparseLayer:
    """Return layer k (0 is the first hidden one) of a network before training.

    `start` is what it begins with if its topology is given.
    """
    n_out = config.layer_sizes[k + 1]
    topology = _drawn(config, k, threads) if start is None else start.topology
    if start is not None and start.values is not None:
        values = start.values
    else:
        values = _sampler(config, k)(stream(config.seed, "values", k), topology.nnz)
        if k == len(config.layer_sizes) - 2:
            values *= np.float32(_recipe(config, k).output_scale)
    own = LayerConfig.of(config, k)
    parameters: LayerArrays = {"values": values, "bias": np.zeros(n_out, dtype=np.float32)}
    if own.shape_trained:
        parameters["srelu"] = initial_shape(config.activation, config.alpha, n_out)
    if own.normalised:
        parameters["scale"] = np.ones(n_out, dtype=np.float32)
        parameters["running"] = np.zeros((3, n_out), dtype=np.float32)
    candidates = None if start is None else start.candidates
    return SparseLayer(k + 2, topology, parameters, own, candidates=candidates)


def _drawn(config: NetworkConfig, k: int, threads: int) -> Topology:
    """Return an Erdős–Rényi topology of layer k."""
    n_in, n_out = config.layer_sizes[k : k + 2]
    seed = seed_sequence(config.seed, "topology", k)
    probability, cover = config.probabilities()[k], config.coverage == "full"
    topology = erdos_renyi(n_in, n_out, probability, seed, cover=cover, threads=threads)
    if k == len(config.layer_sizes) - 2 and config.output_minimum:
        rng = stream(config.seed, "minimum")
        topology = with_minimum(topology, config.output_minimum, rng)
    return topology


class SparseLayer:
    """A sparse layer z = Wᵀx + b, with W (n_in, n_out) of which only the connections are kept.

    Layers are numbered as in the paper: the input is layer 1, the first hidden layer 2. A layer
    takes over the parameters, by their names in `PARAMETERS`, their moments (by default a velocity
    of zero), by kind, and the weights in output order, if it is given them.
    """

    values: Float32  # (nnz,), the weights, in input order
    velocity: Float32  # (nnz,)
    bias: Float32  # (n_out,)
    bias_velocity: Float32  # (n_out,)
    srelu: Float32 | None  # (4, n_out), a trained activation's shape: see `srelu_kernels`
    srelu_velocity: Float32 | None
    # Those with a default are younger than the first release, whose pickled layers lack them.
    scale: Float32 | None = None  # (n_out,), γ of batch normalisation
    running: Float32 | None = None  # (3, n_out), its running statistics: see `normalization`
    dead: NDArray[np.bool_] | None  # (n_out,), pruned neurons; never changed in place
    kinds: tuple[str, ...] = ("velocity",)  # of moments
    explored: NDArray[np.uint8] | None = None  # of cells ever connected: see `exploration`
    candidates: Topology | None = None  # the cells in which connections may grow; None is all

    def __init__(
        self,
        number: int,
        topology: Topology,
        parameters: LayerArrays,
        config: LayerConfig,
        *,
        moments: Moments | None = None,
        dead: NDArray[np.bool_] | None = None,
        values_by_output: Float32 | None = None,
        candidates: Topology | None = None,
    ) -> None:
        self.number, self.topology, self.config, self.dead = number, topology, config, dead
        self.candidates = candidates
        for name in PARAMETERS:
            setattr(self, name, parameters.get(name))
        if moments is None:
            zeros = {name: np.zeros_like(array) for name, array in parameters.items()}
            moments = {"velocity": zeros}
        self.kinds = tuple(moments)  # of moments
        for kind, arrays in moments.items():
            for name in PARAMETERS:
                setattr(self, moment_name(name, kind), arrays.get(name))
        self.is_stale = False  # whether `refresh` waits until the output order is asked for
        if values_by_output is None:
            self._copy = np.empty_like(self.values)
            self.refresh()
        else:
            self._copy = values_by_output

    @property
    def values_by_output(self) -> Float32:
        """A copy of the weights in output order, (nnz,), that `refresh` renews."""
        if self.is_stale:
            self.refresh()
        return self._copy

    @values_by_output.setter
    def values_by_output(self, values: Float32) -> None:
        self._copy, self.is_stale = values, False

    @property
    def parameters(self) -> LayerArrays:
        """The trained arrays by their names in `PARAMETERS`; those that the layer has."""
        return {name: array for name in PARAMETERS if (array := getattr(self, name)) is not None}

    @property
    def moments(self) -> Moments:
        """The moments by their kind and the names of what they are of."""
        return {
            kind: {name: getattr(self, moment_name(name, kind)) for name in self.parameters}
            for kind in self.kinds
        }

    @property
    def evaluated(self) -> LayerArrays:
        """The parameters to predict with: their averages, where the layer has these."""
        return self.moments["average"] if "average" in self.kinds else self.parameters

    def keep_moments_(self, kinds: Sequence[str], zeros: Zeros = np.zeros) -> None:
        """Have moments of these kinds, and no others; new ones begin as those of new connections.

        `zeros(shape, dtype)` allocates them.
        """
        old, moments = self.moments, Moments()
        for kind in kinds:
            moments[kind] = old.get(kind) or _first_moments(kind, self.parameters, zeros)
        for kind in set(old) - set(kinds):
            for name in PARAMETERS:
                delattr(self, moment_name(name, kind))
        self.kinds = tuple(kinds)
        for kind, arrays in moments.items():
            for name in PARAMETERS:
                setattr(self, moment_name(name, kind), arrays.get(name))

    @property
    def n_in(self) -> int:
        """Number of inputs."""
        return self.topology.n_in

    @property
    def n_out(self) -> int:
        """Number of neurons."""
        return self.topology.n_out

    @property
    def indptr_by_output(self) -> Counts:
        """Row pointers of the output order."""
        return self.topology.indptr_by_output

    @property
    def indices_by_output(self) -> Int32:
        """Inputs of the connections in output order."""
        return self.topology.indices_by_output

    @property
    def by_input(self) -> Connections:
        """The connections in input order."""
        return Connections(self.topology.indptr, self.topology.indices, self.values)

    @property
    def by_output(self) -> Connections:
        """The connections in output order."""
        return Connections(self.indptr_by_output, self.indices_by_output, self.values_by_output)

    @property
    def slope(self) -> float:
        """Left slope of the activation."""
        return self.config.slope

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
        kept = [array for arrays in self.moments.values() for array in arrays.values()]
        trained = (*self.parameters.values(), *kept, self.values_by_output)
        found = self.topology.nbytes + sum(array.nbytes for array in trained)
        return found + sum(array.nbytes for array in self._candidate_arrays.values())

    @property
    def _candidate_arrays(self) -> LayerArrays:
        """The input order of the candidates as files have it, where there are some."""
        if self.candidates is None:
            return {}
        arrays = self.candidates.indptr, self.candidates.indices
        return dict(zip(CANDIDATES, arrays, strict=True))

    def __repr__(self) -> str:
        activation = (
            "a trained shape" if self.config.shape_trained else f"left slope {self.slope:g}"
        )
        return (
            f"{type(self).__name__}(number {self.number}, {self.n_in}-{self.n_out}, "
            f"{self.nnz:,} connections, density {100 * self.nnz / (self.n_in * self.n_out):.3g} %, "
            f"{activation})"
        )

    def arrays(self, moments: bool = False) -> LayerArrays:
        """Return what the layer can be made from again, as files have it; the layer's own arrays.

        Of the topology that is the input order; `dead` is there only if neurons are. Without
        `moments` the parameters are those `evaluated`.
        """
        arrays: LayerArrays = {"indptr": self.topology.indptr, "indices": self.topology.indices}
        arrays |= (self.parameters if moments else self.evaluated) | self._candidate_arrays
        if self.dead is not None:
            arrays["dead"] = self.dead
        if moments:
            for kind, found in self.moments.items():
                arrays |= {moment_name(name, kind): array for name, array in found.items()}
        return arrays

    def snapshot(self) -> LayerArrays:
        """Return `arrays` that training does not change: topology and `dead` never are in place."""
        return self.arrays() | _copies(self.evaluated)

    def restore_(self, arrays: LayerArrays) -> None:
        """Become what `arrays` or `snapshot` has returned, with moments that begin."""
        pattern = arrays["indptr"], arrays["indices"]
        values = arrays["values"].copy()
        topology = Topology.from_input_order(self.n_in, self.n_out, *pattern)
        firsts = {kind: first_moment(kind, values) for kind in self.kinds}
        self.replace(topology, values, firsts)
        self.dead = arrays.get("dead")
        for name, array in self.parameters.items():
            if not PARAMETERS[name].of_connections:
                array[...] = arrays[name]
                for kind, moments in self.moments.items():
                    moments[name][...] = first_moment(kind, array)

    def copy(self) -> SparseLayer:
        """Return a layer with weights and moments of its own; the topology is shared."""
        layer = SparseLayer(
            self.number,
            self.topology,
            _copies(self.parameters),
            self.config,
            moments={kind: _copies(arrays) for kind, arrays in self.moments.items()},
            dead=self.dead,
            candidates=self.candidates,
        )
        layer.explored = None if self.explored is None else self.explored.copy()
        return layer

    def activate(self, z: Float32) -> Float32:
        """Return f(z), float32 (..., n_out), as z."""
        return activate(z, self.slope, self.srelu)

    def refresh(self) -> None:
        """Renew the copy of the weights in output order, after `values` changed."""
        from ..backends.pattern_kernels import reorder

        copy = self._copy
        if len(copy) != len(self.values):
            copy = np.empty_like(self.values)
        reorder(self.values, self.topology.to_output_order, copy)
        self._copy = copy  # when it is whole: threads that predict may all find it stale
        self.is_stale = False

    def replace(self, topology: Topology, values: Float32, moments: LayerArrays) -> None:
        """Take over another topology with its weights, and their moments by kind."""
        self.topology = topology
        self.values = values
        for kind in self.kinds:
            setattr(self, kind, moments[kind])
        if not self.is_stale:
            self.refresh()


def first_moment(kind: str, array: Float32, zeros: Zeros = np.zeros) -> NDArray[Any]:
    """Return what a moment of a parameter is before the first update."""
    moment = zeros(array.shape, MOMENTS[kind].dtype)
    if MOMENTS[kind].of_values:
        moment[...] = array
    return moment


def _first_moments(kind: str, parameters: LayerArrays, zeros: Zeros) -> LayerArrays:
    return {name: first_moment(kind, array, zeros) for name, array in parameters.items()}


def _copies(arrays: LayerArrays) -> LayerArrays:
    return {name: array.copy() for name, array in arrays.items()}


@dataclass(frozen=True)
class ForwardLayer:
    """A layer that can only predict: 8 bytes a connection, shared by worker processes."""

    number: int
    n_in: int
    n_out: int
    indptr_by_output: Counts
    indices_by_output: Int32
    values_by_output: Float32
    bias: Float32
    slope: float
    srelu: Float32 | None

    @property
    def by_output(self) -> Connections:
        """The connections in output order."""
        return Connections(self.indptr_by_output, self.indices_by_output, self.values_by_output)

    @cached_property
    def by_input(self) -> Connections:
        """The connections in input order: 8 bytes more a connection, where inputs are sparse."""
        from ..backends.pattern_kernels import reorder, transpose_pattern

        by_output = self.indptr_by_output, self.indices_by_output
        indptr, indices, places = transpose_pattern(self.n_in, *by_output)
        values = np.empty_like(self.values_by_output)
        reorder(self.values_by_output, places, values)
        return Connections(indptr, indices, values)


Forward = SparseLayer | ForwardLayer  # what the forward pass takes
