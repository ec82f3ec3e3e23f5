"""What a network's given layers begin with: their topologies fitted to its sizes and names."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import inspect
import logging
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.frames import SHOWN, first_doubled, some_of
from ..errors import DataError, ParameterError, check_range
from ..randomness import stream
from .given import SHARE, Evolution, GivenLayer, GivenTopology
from .matrices import cells_of, check_kind, plain_matrix
from .topology import Topology

if TYPE_CHECKING:
    from .config import NetworkConfig
    from .network import SparseMLP

logger = logging.getLogger(__name__)


class LayerStart(NamedTuple):
    """A layer of a network as it was given."""

    topology: Topology
    evolution: Evolution
    values: NDArray[np.float32] | None  # (nnz,), the weights, in input order, where given
    candidates: Topology | None
    names: list[str] | None  # of the neurons
    by_name: bool = False  # whether inputs are known by their names alone

    def describe(self) -> GivenLayer:
        """Return what a configuration says of it."""
        candidates = 0 if self.candidates is None else self.candidates.nnz
        found = hashlib.blake2b(digest_size=16)
        for pattern in (self.topology, self.candidates):
            for array in () if pattern is None else (pattern.indptr, pattern.indices):
                found.update(np.ascontiguousarray(array).data)
        if self.values is not None:
            found.update(np.ascontiguousarray(self.values).data)
        digest = found.hexdigest()
        return GivenLayer(self.topology.nnz, self.evolution, candidates, digest, self.by_name)


def as_topologies(topology: Any) -> dict[int, GivenTopology]:
    """Return what was given, by the place of its layer: 0 is the first hidden one.

    `topology` is that of the first hidden layer, or a list of those from the first one on (None is
    a layer that is drawn), or a dictionary by the paper's numbers, in which that is 2.
    """
    if topology is None:
        return {}
    if isinstance(topology, Mapping) and not hasattr(topology, "shape"):  # a dok_array is one
        for number in topology:
            check_range("topology", number, "a network, by layers,", low=2, integer=True)
        found = {int(number) - 2: each for number, each in topology.items()}
    else:
        several = isinstance(topology, list | tuple)
        found = dict(enumerate(topology if several else [topology]))
    return {k: _as_given(each) for k, each in found.items() if each is not None}


def with_given_sizes(
    hidden: Sequence[int], topologies: Mapping[int, GivenTopology], n_outputs: int
) -> tuple[int, ...]:
    """Return the sizes of hidden layers with those that topologies give, all of hidden layers.

    ParameterError is raised where the last one may be meant for the output layer.
    """
    last = max(topologies, default=0)
    sizes = list(hidden) + [hidden[-1]] * (last + 1 - len(hidden))
    for k, each in topologies.items():
        sizes[k] = each.n_out or sizes[k]
    n_out = topologies[last].n_out if topologies else 0
    unknown = n_out is None and last >= len(hidden)
    if last and not topologies[last].by_name and (unknown or n_out == n_outputs):
        raise ParameterError(
            f"The 'topology' parameter gives layer {last + 2}, which may be the output layer with "
            f"its {n_outputs} neurons or a hidden layer before it. Say it by hidden_layer_sizes "
            "(--hidden), the neurons of every hidden layer."
        )
    return tuple(sizes)


def _as_given(each: Any) -> Any:
    if isinstance(each, str | Path):
        return GivenTopology.read(each)
    return each if isinstance(each, GivenTopology | LayerStart) else GivenTopology(each)


def resolve(
    given: Mapping[int, Any],
    config: NetworkConfig,
    feature_names: Sequence[str] | None = None,
) -> dict[int, LayerStart]:
    """Return what a network's given layers begin with, by their places, as `as_topologies` has it.

    A `LayerStart` stays as it is.

    Raises
    ------
    ParameterError, DataError
        Where they do not fit the network, or names are unknown.
    """
    found: dict[int, LayerStart] = {}
    sizes = config.layer_sizes
    for k, each in sorted(given.items()):
        if k > len(sizes) - 2:
            raise ParameterError(
                f"The 'topology' parameter gives layer {k + 2} of a network that has "
                f"{len(sizes)} layers, the inputs included. Add to 'layer_sizes', or leave it out."
            )
        if isinstance(each, LayerStart):
            found[k] = each
            continue
        names = feature_names if k == 0 else (found[k - 1].names if k - 1 in found else None)
        if each.by_name and k == len(sizes) - 2:
            raise ParameterError(
                "The 'topology' parameter gives the output layer by the names of its outputs, "
                "whose order it does not know. Give it as a matrix, or add a hidden layer."
            )
        found[k] = _resolve(each, k, config, names)
    return found


def described(config: NetworkConfig, starts: Mapping[int, LayerStart]) -> NetworkConfig:
    """Return a network's configuration with what it says of its given layers."""
    if not starts and not config.given:
        return config
    if not starts:
        raise ParameterError(
            "The configuration is that of a network with given topologies. Pass them as "
            "'topology', or replace its 'given' by ()."
        )
    places = range(max(starts) + 1)
    given = tuple(starts[k].describe() if k in starts else None for k in places)
    return dataclasses.replace(config, given=given)


def _resolve(
    given: GivenTopology, k: int, config: NetworkConfig, names: Sequence[str] | None
) -> LayerStart:
    n_in, n_out = config.layer_sizes[k : k + 2]
    rng = stream(config.seed, "topology", k)
    where = None if given.input_names is None else _places(given, n_in, names, k)

    rows = n_in if where is None else len(where)

    def read(matrix: Any, weights: bool) -> tuple[Topology, NDArray[np.float32] | None]:
        if callable(matrix):
            matrix = plain_matrix(_called(matrix, rows, n_out, rng))
            check_kind(matrix, "topology", called=True)
        _check_shape(matrix, rows, n_out, k, where is not None)
        if isinstance(matrix, Topology) and not weights and where is None and matrix.nnz:
            return matrix, None
        i, j, values = cells_of(matrix, weights, given.input_names, given.output_names)
        cells = (i if where is None else where[i]) * n_out + j
        order = np.argsort(cells, kind="stable")
        topology = Topology.from_cells(n_in, n_out, cells[order])
        return topology, None if values is None else values[order]

    candidates = None
    if given.candidates is not None:
        candidates, _ = read(given.candidates, False)
    if given.connections is None:
        assert candidates is not None
        share = SHARE if given.share is None else given.share
        count = max(1, round(share * candidates.nnz))
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
    if given.output_names is not None and len(given.output_names) != n_out:
        raise DataError(
            f"The topology of layer {k + 2} has {len(given.output_names)} 'output_names', and the "
            f"layer has {n_out} neurons. Give as many."
        )
    own = None if given.output_names is None else list(given.output_names)
    evolution = given.evolution or "frozen"
    return LayerStart(topology, evolution, values, candidates, own, given.by_name)


def _called(topology: Any, *arguments: Any) -> Any:
    try:
        inspect.signature(topology).bind(*arguments)
    except ValueError:  # one that cannot be asked
        pass
    except TypeError as error:
        raise ParameterError(
            "A callable as 'topology' is called with n_in, n_out and a generator, and "
            f"{topology!r} cannot be: {error}."
        ) from None
    return topology(*arguments)


def _check_shape(matrix: Any, n_in: int, n_out: int, k: int, named: bool) -> None:
    shape = (matrix.n_in, matrix.n_out) if isinstance(matrix, Topology) else tuple(matrix.shape)
    if shape == (n_in, n_out):
        return
    layer = f"leads from {n_in} inputs to {n_out} neurons"
    found = f"the shape {shape}"
    if named and shape[0] == n_in:
        found, layer = f"{shape[1]} neurons", f"has {n_out}"
    elif named:
        layer = f"leads from the {n_in} inputs that it names to {n_out} neurons"
    turned = " It may be transposed: rows are inputs." if shape == (n_out, n_in) else ""
    raise ParameterError(
        f"The topology of layer {k + 2} has {found}, and the layer {layer}.{turned} Make "
        "'layer_sizes' (hidden_layer_sizes of estimators, --hidden) and topology agree."
    )


def _places(
    given: GivenTopology, n_in: int, names: Sequence[str] | None, k: int
) -> NDArray[np.int64] | None:
    """Return where the rows of a topology stand among a layer's inputs; None if they are these."""
    wanted, owner = given.input_names or (), "the table" if k == 0 else f"layer {k + 1}"
    if names is None:
        if not given.by_name and len(wanted) == n_in:
            return None
        where = {str(place): place for place in range(n_in)}
        if (first := next((name for name in wanted if name not in where), None)) is not None:
            raise DataError(
                f"The topology of layer {k + 2} names its inputs, such as {first!r}, and the "
                f"inputs, 0 to {n_in - 1}, have no names. Pass named columns (a data frame, a file "
                "with a header), or name them by their positions."
            )
        return np.array([where[name] for name in wanted], dtype=np.int64)
    where = {name: place for place, name in enumerate(names)}
    if unknown := [name for name in wanted if name not in where]:
        near = difflib.get_close_matches(unknown[0], list(names), 1)
        meant = f" {unknown[0]!r} may be its {near[0]!r}." if near else ""
        raise DataError(
            f"The topology of layer {k + 2} has {len(unknown)} of {len(wanted)} inputs that "
            f"{owner} does not have: {some_of(unknown, SHOWN)}.{meant} Correct them, or leave "
            "their connections out; a first line with names of columns says source,target."
        )
    counts = Counter(names)
    if (twice := next((name for name in wanted if counts[name] > 1), None)) is not None:
        raise DataError(f"{owner} has {twice!r} twice. Rename or remove one.")
    return np.array([where[name] for name in wanted], dtype=np.int64)


def checked_names(names: Any, n_in: int) -> list[str]:
    """Return the names of a network's inputs, or raise where they are not that."""
    found = [] if isinstance(names, str) or not isinstance(names, Iterable) else list(names)
    if len(found) != n_in or not all(isinstance(name, str) for name in found):
        raise ParameterError(
            f"The 'feature_names' parameter of a network must be {n_in} strings, a name of every "
            f"input. Got {reprlib.repr(names)} instead."
        )
    return list(map(str, found))


def tell_unconnected(starts: Mapping[int, LayerStart], feature_names: Sequence[str] | None) -> None:
    """Log which inputs of given layers can have no connection."""
    for k, start in starts.items():
        names = feature_names if k == 0 else (starts[k - 1].names if k - 1 in starts else None)
        topology = start.candidates or start.topology
        empty = np.flatnonzero(topology.indptr[1:] == topology.indptr[:-1])
        if len(empty) and start.evolution != "free":
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
            topology, candidates, by_name = layer.topology, layer.candidates, False
            if record.by_name and inputs is not None:
                by_name, rows = True, np.flatnonzero(np.diff((candidates or topology).indptr))
                inputs = [inputs[i] for i in rows.tolist()]
                topology, candidates = _rows_of(topology, rows), _rows_of(candidates, rows)
            if inputs is not None and first_doubled(inputs) is not None:
                inputs = None  # they are told by their places
            outputs = network.neuron_names.get(k + 2)
            names: dict[str, Any] = {"input_names": inputs, "output_names": outputs}
            names["by_name"] = by_name
            found[k + 2] = GivenTopology(topology, record.evolution, candidates, **names)
    return found or None


def _rows_of(topology: Topology | None, rows: NDArray[np.int64]) -> Any:
    """Return the topology of some inputs, outside of which no connections are."""
    if topology is None:
        return None
    indptr = topology.indptr[np.append(rows, topology.n_in)]
    return Topology(len(rows), topology.n_out, indptr, topology.indices)
