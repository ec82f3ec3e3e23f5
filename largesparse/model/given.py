"""Topologies that are given, not drawn: of genes and pathways, of local fields, of other models.

Such a layer is *frozen*: its weights are trained, its connections stay. Or evolution replaces its
connections, anywhere (*free*) or *within* a set of candidate cells. Importance Pruning takes the
connections of the neurons that die, of any layer, and no others.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from ..data.edges import read_edges
from ..data.frames import SHOWN, first_doubled, some_of
from ..errors import DataError, ParameterError, check_range
from ..randomness import stream
from .topology import MAX_CONNECTIONS, Topology

if TYPE_CHECKING:
    from .config import NetworkConfig
    from .network import SparseMLP

logger = logging.getLogger(__name__)

Evolution = Literal["frozen", "free", "within"]
EVOLUTIONS = get_args(Evolution)
OWNER = "GivenTopology"
KINDS = (
    "a SciPy sparse matrix or an array (n_in, n_out), a Topology, or a callable of n_in, n_out and "
    "a generator that returns one"
)


@dataclass(frozen=True)
class GivenLayer:
    """What a configuration says of a layer whose connections were given."""

    connections: int  # of it at first
    evolution: Evolution
    candidates: int = 0  # cells in which connections may grow; "within"


@dataclass(frozen=True, eq=False)
class GivenTopology:
    """The connections of a layer, and where evolution may put others.

    Parameters
    ----------
    connections : sparse matrix or array (n_in, n_out), Topology, or callable
        Those that the layer begins with. In a sparse matrix, too, zeros are none, and a cell that
        is there twice is one connection. A callable is given n_in, n_out and a NumPy generator,
        which follows from the network's seed, and returns such a matrix.
    evolution : {"frozen", "free", "within"}
        Whether the connections stay, or are replaced by evolution; "within" only by those of
        `candidates`. By default "within" where candidates are given, else "frozen".
    candidates : as connections
        The cells in which connections may be. By default, if they evolve within it, what is given
        as `connections`.
    share : float in (0, 1]
        Of the candidates, that are drawn as the first connections where only candidates are given.
    weights : bool
        Whether the values of `connections` are the initial weights: then a zero that is stored is
        a connection, and a cell that is there twice an error. By default they are drawn, as in any
        layer.
    input_names, output_names : sequence of str, optional
        Of rows and columns. Rows are found among a table's columns by their names; the names of
        columns become those of the layer's neurons.
    by_name : bool
        Whether inputs are known by their names alone, so that tables need them.

    Raises
    ------
    ParameterError, DataError
        Where these are not possible, or, as the network is made, do not fit it.

    Examples
    --------
    >>> given = GivenTopology.from_edges(["BRCA1", "TP53", "TP53"], ["repair", "repair", "cycle"])
    >>> given.shape, given.output_names
    ((2, 2), ('repair', 'cycle'))
    """

    connections: Any = None
    evolution: Evolution | None = None
    candidates: Any = None
    share: float = 0.5
    weights: bool = False
    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None
    by_name: bool = False

    def __post_init__(self) -> None:
        def set_(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        if self.evolution is None:
            set_("evolution", "frozen" if self.candidates is None else "within")
        if self.evolution not in EVOLUTIONS:
            raise ParameterError(
                f"The 'evolution' parameter of {OWNER} must be one of {sorted(EVOLUTIONS)}. "
                f"Got {self.evolution!r} instead."
            )
        if self.evolution == "within" and self.candidates is None and not self.weights:
            set_("candidates", self.connections)
            set_("connections", None)
        if (self.candidates is not None) != (self.evolution == "within"):
            raise ParameterError(
                f"The 'candidates' parameter of {OWNER} goes with evolution='within', which needs "
                f"it. Got evolution={self.evolution!r}."
            )
        check_range("share", self.share, OWNER, low=0, high=1, low_open=True)
        for name in ("connections", "candidates"):
            if getattr(self, name) is not None:
                _check_kind(getattr(self, name), name)
        if self.connections is None and self.candidates is None:
            raise ParameterError(f"{OWNER} needs 'connections' or 'candidates'.")
        for name in ("input_names", "output_names"):
            if (names := getattr(self, name)) is not None:
                set_(name, tuple(map(str, names)))
                if (twice := first_doubled(list(getattr(self, name)))) is not None:
                    raise DataError(f"The {name!r} of {OWNER} have {twice!r} twice.")
        for axis, names in enumerate((self.input_names, self.output_names)):
            if names is not None and self.shape is not None and len(names) != self.shape[axis]:
                raise DataError(
                    f"{OWNER} has {len(names)} {('input', 'output')[axis]}_names for a matrix of "
                    f"shape {self.shape}. Give as many."
                )

    @classmethod
    def from_edges(
        cls,
        sources: Sequence[Any],
        targets: Sequence[Any],
        weights: Sequence[float] | None = None,
        **options: Any,
    ) -> GivenTopology:
        """Return the topology of connections by the names of what they lead from and to.

        Neurons are numbered as they come first. A connection that comes twice counts once, or is
        an error where there are weights, which are initial ones. `options` are those of the class.
        """
        from scipy.sparse import coo_array

        if len(sources) != len(targets) or (weights is not None and len(weights) != len(sources)):
            raise DataError("Connections need as many sources as targets, and as weights if any.")
        (inputs, rows), (outputs, columns) = _number(sources), _number(targets)
        values = np.ones(len(rows), bool) if weights is None else np.asarray(weights)
        shape = len(inputs), len(outputs)
        names: dict[str, Any] = {"input_names": inputs, "output_names": outputs, "by_name": True}
        matrix = coo_array((values, (rows, columns)), shape=shape)
        if weights is not None:
            _cells_of(matrix, True, inputs, outputs)  # tells doubled ones by their names
        return cls(matrix, weights=weights is not None, **names | options)

    @classmethod
    def read(cls, path: str | Path, **options: Any) -> GivenTopology:
        """Return the topology of a list of connections in a file: see `edges.read_edges`."""
        return cls.from_edges(*read_edges(path), **options)

    @property
    def shape(self) -> tuple[int, int] | None:
        """Inputs and outputs of the matrix; None where a callable returns it."""
        matrix = self.candidates if self.connections is None else self.connections
        if isinstance(matrix, Topology):
            return matrix.n_in, matrix.n_out
        return None if callable(matrix) else tuple(matrix.shape)

    @property
    def n_out(self) -> int | None:
        """Neurons of the layer, where that is known without a network."""
        return None if self.shape is None else self.shape[1]

    def __repr__(self) -> str:
        shape = "callable" if self.shape is None else "{} x {}".format(*self.shape)
        return f"{type(self).__name__}({shape}, {self.evolution})"


class LayerStart(NamedTuple):
    """A layer of a network as it was given."""

    topology: Topology
    evolution: Evolution
    values: NDArray[np.float32] | None  # (nnz,), the weights, in input order, where given
    candidates: Topology | None
    names: list[str] | None  # of the neurons

    def describe(self) -> GivenLayer:
        """Return what a configuration says of it."""
        candidates = 0 if self.candidates is None else self.candidates.nnz
        return GivenLayer(self.topology.nnz, self.evolution, candidates)


def as_topologies(topology: Any) -> dict[int, GivenTopology]:
    """Return what was given, by the place of its layer: 0 is the first hidden one.

    `topology` is that of the first hidden layer, or a list of those from the first one on (None is
    a layer that is drawn), or a dictionary by the paper's numbers, in which that is 2.
    """
    if topology is None:
        return {}
    if isinstance(topology, Mapping):
        for number in topology:
            check_range("topology", number, "a network, by layers,", low=2, integer=True)
        found = {int(number) - 2: each for number, each in topology.items()}
    else:
        several = isinstance(topology, list | tuple)
        found = dict(enumerate(topology if several else [topology]))
    return {k: _as_given(each) for k, each in found.items() if each is not None}


def _as_given(each: Any) -> GivenTopology:
    if isinstance(each, str | Path):
        return GivenTopology.read(each)
    return each if isinstance(each, GivenTopology) else GivenTopology(each)


def resolve(
    topology: Any, config: NetworkConfig, feature_names: Sequence[str] | None = None
) -> dict[int, LayerStart]:
    """Return the layers that `topology` gives of a network, by their places.

    Raises
    ------
    ParameterError, DataError
        Where they do not fit the network, or names are unknown.
    """
    found: dict[int, LayerStart] = {}
    sizes = config.layer_sizes
    given = as_topologies(topology)
    for k, each in sorted(given.items()):
        if k > len(sizes) - 2:
            raise ParameterError(
                f"The 'topology' parameter gives layer {k + 2} of a network that has "
                f"{len(sizes)} layers, the inputs included. Add to 'layer_sizes', or leave it out."
            )
        names = feature_names if k == 0 else (found[k - 1].names if k - 1 in found else None)
        if each.by_name and k == len(sizes) - 2:
            raise ParameterError(
                "The 'topology' parameter gives the output layer by the names of its outputs, whose "
                "order it does not know. Give it as a matrix, or add a hidden layer."
            )
        found[k] = _resolve(each, k, config, names)
    return found


def _resolve(
    given: GivenTopology, k: int, config: NetworkConfig, names: Sequence[str] | None
) -> LayerStart:
    n_in, n_out = config.layer_sizes[k : k + 2]
    rng = stream(config.seed, "topology", k)
    where = None if given.input_names is None else _places(given, n_in, names, k)

    def read(matrix: Any, weights: bool) -> tuple[Topology, NDArray[np.float32] | None]:
        if callable(matrix):
            matrix = matrix(n_in, n_out, rng)
            _check_kind(matrix, "topology", called=True)
        rows = n_in if where is None else len(where)
        _check_shape(matrix, rows, n_out, k)
        if isinstance(matrix, Topology) and not weights and where is None:
            return matrix, None
        i, j, values = _cells_of(matrix, weights, given.input_names, given.output_names)
        cells = (i if where is None else where[i]) * n_out + j
        order = np.argsort(cells, kind="stable")
        topology = Topology.from_cells(n_in, n_out, cells[order])
        return topology, None if values is None else values[order]

    candidates = None
    if given.candidates is not None:
        candidates, _ = read(given.candidates, False)
    if given.connections is None:
        assert candidates is not None
        count = max(1, round(given.share * candidates.nnz))
        chosen = np.sort(rng.choice(candidates.nnz, count, replace=False))
        topology, values = Topology.from_cells(n_in, n_out, candidates.cells()[chosen]), None
    else:
        topology, values = read(given.connections, given.weights)
    if candidates is not None:
        outside = int(np.count_nonzero(~candidates.contains(topology.cells())))
        if outside:
            raise ParameterError(
                f"{outside} of the {topology.nnz} connections of layer {k + 2} are not among the "
                f"{candidates.nnz} 'candidates' of its topology. Add them there."
            )
    _tell_unconnected(candidates or topology, names, k)
    own = None if given.output_names is None else list(given.output_names)
    return LayerStart(topology, given.evolution or "frozen", values, candidates, own)


def _number(names: Sequence[Any]) -> tuple[list[str], NDArray[np.int64]]:
    """Return the distinct names in their order, and the number of each name's place there."""
    numbers: dict[str, int] = {}
    found = [numbers.setdefault(str(name), len(numbers)) for name in names]
    return list(numbers), np.array(found, dtype=np.int64)


def _check_kind(matrix: Any, name: str, called: bool = False) -> None:
    """Raise where something is no matrix, nor a callable that may return one."""
    from scipy.sparse import issparse

    if isinstance(matrix, Topology) or (callable(matrix) and not called):
        return
    if issparse(matrix) or isinstance(matrix, np.ndarray):
        if matrix.ndim == 2 and matrix.dtype.kind in "biuf":
            return
        got = f"{matrix.dtype} of shape {matrix.shape}"
    else:
        got = type(matrix).__name__
    owner = "of a network, where it is called, must return" if called else f"of {OWNER} must be"
    raise ParameterError(
        f"The {name!r} parameter {owner} {KINDS}, of numbers or booleans. Got {got} instead."
    )


def _check_shape(matrix: Any, n_in: int, n_out: int, k: int) -> None:
    shape = (matrix.n_in, matrix.n_out) if isinstance(matrix, Topology) else tuple(matrix.shape)
    if shape != (n_in, n_out):
        what = f"{n_in} inputs to {n_out} neurons"
        turned = " It may be transposed: rows are inputs." if shape == (n_out, n_in) else ""
        raise ParameterError(
            f"The topology of layer {k + 2} has the shape {shape}, and the layer leads from {what}."
            f"{turned} Make 'layer_sizes' (or hidden_layer_sizes, --hidden) and topology agree."
        )


def _cells_of(
    matrix: Any, weights: bool, inputs: Sequence[str] | None, outputs: Sequence[str] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32] | None]:
    """Return rows, columns and weights of the distinct cells of a matrix, row-major."""
    from scipy.sparse import coo_array, issparse

    if isinstance(matrix, Topology):
        rows, columns = matrix.rows().astype(np.int64), matrix.indices.astype(np.int64)
        if weights:
            raise ParameterError(f"A Topology has no weights for {OWNER}. Pass weights=False.")
        return rows, columns, None
    if issparse(matrix):
        found = coo_array(matrix)
        rows, columns, values = found.row, found.col, found.data
    else:
        rows, columns = np.nonzero(matrix)
        values = matrix[rows, columns]
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise DataError("The matrix of a topology has values that are not finite in float32.")
    rows, columns = rows.astype(np.int64), columns.astype(np.int64)
    if not weights:
        rows, columns = rows[values != 0], columns[values != 0]
    cells, first, counts = np.unique(
        rows * matrix.shape[1] + columns, return_index=True, return_counts=True
    )
    if weights and (counts > 1).any():
        i, j = divmod(int(cells[counts > 1][0]), matrix.shape[1])
        pair = (i if inputs is None else inputs[i]), (j if outputs is None else outputs[j])
        raise DataError(
            f"{np.count_nonzero(counts > 1)} connections of a topology with weights are there "
            f"twice, such as that from {pair[0]!r} to {pair[1]!r}. Leave one of each."
        )
    if not 0 < len(cells) <= MAX_CONNECTIONS:
        raise ParameterError(
            f"A topology has 1 to {MAX_CONNECTIONS} connections. Got {len(cells)} instead."
        )
    return rows[first], columns[first], numbers[first] if weights else None


def _places(
    given: GivenTopology, n_in: int, names: Sequence[str] | None, k: int
) -> NDArray[np.int64] | None:
    """Return where the rows of a topology stand among a layer's inputs; None if they are these."""
    wanted, owner = given.input_names or (), "the table" if k == 0 else f"layer {k + 1}"
    if names is None:
        if not given.by_name and len(wanted) == n_in:
            return None
        if all(name.isdecimal() and int(name) < n_in for name in wanted):
            return np.array(list(map(int, wanted)))
        first = next(name for name in wanted if not (name.isdecimal() and int(name) < n_in))
        raise DataError(
            f"The topology of layer {k + 2} names its inputs, such as {first!r}, and the inputs, "
            f"0 to {n_in - 1}, have no names. Pass named columns (a data frame, a file with a "
            "header), or name them by their positions."
        )
    where = {name: place for place, name in enumerate(names)}
    if unknown := [name for name in wanted if name not in where]:
        near = difflib.get_close_matches(unknown[0], list(names), 1)
        meant = f" {unknown[0]!r} may be its {near[0]!r}." if near else ""
        raise DataError(
            f"The topology of layer {k + 2} has {len(unknown)} of {len(wanted)} inputs that "
            f"{owner} does not have: {some_of(unknown, SHOWN)}.{meant} Correct them, or leave their "
            "connections out; a first line with names of columns says source,target."
        )
    if (twice := first_doubled(list(names))) is not None and twice in wanted:
        raise DataError(f"{owner} has {twice!r} twice. Rename or remove one.")
    return np.array([where[name] for name in wanted])


def _tell_unconnected(topology: Topology, names: Sequence[str] | None, k: int) -> None:
    empty = np.flatnonzero(topology.indptr[1:] == topology.indptr[:-1])
    if len(empty):
        shown = [i if names is None else names[i] for i in empty[: SHOWN + 1].tolist()]
        logger.warning(
            "%d of the %d inputs of layer %d have no connection by its topology: %s",
            *(len(empty), topology.n_in, k + 2, some_of(shown, SHOWN)),
        )


def given_topologies(network: SparseMLP) -> dict[int, GivenTopology] | None:
    """Return the given layers of a network as they are now, for another network; None if none are.

    They are without weights, by the layers' numbers.
    """
    found = {}
    for k, record in enumerate(network.config.given):
        if record is not None:
            layer = network.layers[k]
            inputs = network.feature_names if k == 0 else network.neuron_names.get(k + 1)
            outputs = network.neuron_names.get(k + 2)
            names = {"input_names": inputs, "output_names": outputs}
            candidates = layer.candidates
            found[k + 2] = GivenTopology(layer.topology, record.evolution, candidates, **names)
    return found or None


def receptive_fields(height: int, width: int, size: int, stride: int = 1) -> Any:
    """Return the pattern of neurons that each see a square of an image, as a bool CSR.

    It is (height·width, n_out) with pixels row by row. Neurons stand `stride` pixels apart, at
    ⌈height/stride⌉ · ⌈width/stride⌉ places, each in the middle of its square of `size` pixels a
    side, which ends at the border.

    Examples
    --------
    >>> receptive_fields(28, 28, 5, stride=2).shape
    (784, 196)
    """
    from scipy.sparse import csr_array, kron

    for name, value in {"height": height, "width": width, "size": size, "stride": stride}.items():
        check_range(name, value, "receptive_fields", low=1, integer=True)

    def along(length: int) -> csr_array:
        centres = np.arange(0, length, stride)
        first = np.arange(length)[:, None] - centres + size // 2
        return csr_array((first >= 0) & (first < size))

    return csr_array(kron(along(height), along(width)), dtype=bool)
