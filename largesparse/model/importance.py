"""Which neurons matter: Importance Pruning (eq. 4, Algorithm 2), and those that take part.

Neurons of little importance die, and stay dead. A dead neuron has no connections, neither incoming
nor outgoing, and a bias of 0. What it would still put out without its incoming weights, f(bias), is
a constant; that moves into the biases of the next layer. So all others compute what they would if
only the incoming weights were removed. Where layers are normalised by batch, importance is by the
weights as they are folded, and the constant moves into the next layer's running means.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ParameterError, check_range
from ..randomness import stream
from .activations import activate
from .evolution import remove_connections
from .folding import fold_layers
from .layer import PARAMETERS, Float32, Int32, LayerArrays, LayerConfig, SparseLayer
from .network import SparseMLP
from .normalization import gain_and_shift
from .ranking import mark_smallest
from .topology import Topology, draw_missing_cells

if TYPE_CHECKING:
    from pandas import DataFrame

Bool = NDArray[np.bool_]


def neuron_importance(layer: SparseLayer) -> Float32:
    """Return each neuron's importance, float32 (n_out,): the sum of |incoming weights| (eq. 4).

    It is 0 for the dead, and for those that no connection leads to. The weights of a normalised
    layer are taken as it predicts with them: times |γ| over the running deviation.
    """
    magnitudes = np.abs(layer.values)
    sums = np.bincount(layer.topology.indices, weights=magnitudes, minlength=layer.n_out)
    if layer.config.normalised:
        sums = sums * np.abs(gain_and_shift(layer.parameters)[0])  # without connections an int64
    return sums.astype(np.float32)


def importance_table(network: SparseMLP, number: int | None = None) -> DataFrame:
    """Return the importance of every neuron (eq. 4) as a table, the most important ones first.

    Parameters
    ----------
    network : SparseMLP
    number : int, optional
        Of the layer, as the paper counts: the first hidden one is 2. By default the layers whose
        neurons have names, or all hidden layers where none have.

    Returns
    -------
    DataFrame
        With the columns layer, neuron (its number within the layer), name (text; the number where
        it has none), importance, connections (that lead to it), and pruned.
    """
    import pandas as pd

    names = network.neuron_names
    if number is None:
        chosen = sorted(names) or range(2, len(network.layers) + 1)
    else:
        high = len(network.layers) + 1
        check_range("number", number, "importance_table", low=2, high=high, integer=True)
        chosen = [number]
    tables = []
    for each in chosen:
        layer = network.layers[each - 2]
        neurons = np.arange(layer.n_out)
        columns: dict[str, Any] = {
            "layer": each,
            "neuron": neurons,
            "name": names.get(each) or list(map(str, neurons)),
            "importance": neuron_importance(layer),
            "connections": np.bincount(layer.topology.indices, minlength=layer.n_out),
            "pruned": False if layer.dead is None else layer.dead,
        }
        table = pd.DataFrame(columns)
        tables.append(table.sort_values("importance", ascending=False, kind="stable"))
    return pd.concat(tables, ignore_index=True)


def prune_neurons(
    network: SparseMLP, percentile: float | None = None, *, threshold: float | None = None
) -> list[Int32]:
    """Kill the hidden neurons of little importance, in place.

    Output neurons are never pruned, and keep the network's `output_minimum` of connections: those
    that they lack grow at living neurons. The importance of all layers is taken before anything is
    removed, as in Algorithm 2. Where the network has a trainer, its next step makes its buffers
    fit.

    Parameters
    ----------
    network : SparseMLP
        Changed in place.
    percentile : float in [0, 100), optional
        In every layer the neurons below this percentile of those alive go: ⌈t(n - 1)/100⌉ of n,
        ties by position. So one at least remains.
    threshold : float >= 0, optional
        In place of `percentile`: neurons of an importance below this go, but never the most
        important one of a layer.

    Returns
    -------
    list of int32 (nnz,), or int64 where int32 does not count the connections
        For every layer: old connection -> its place in the new input order; -1 where it is gone.

    Raises
    ------
    ParameterError
        Where a value is out of range, or not exactly one of the two is given.

    Examples
    --------
    >>> from largesparse import NetworkConfig
    >>> network = SparseMLP(NetworkConfig((20, 40, 30, 2), epsilon=5))
    >>> _ = prune_neurons(network, 20)
    >>> [int(layer.dead.sum()) for layer in network.layers[:-1]]
    [8, 6]
    """
    if (percentile is None) == (threshold is None):
        raise ParameterError(
            "Exactly one of the 'percentile' and 'threshold' parameters of prune_neurons must be "
            f"given. Got {percentile!r} and {threshold!r} instead."
        )
    if percentile is not None:
        check_range("percentile", percentile, "prune_neurons", low=0, high=100, high_open=True)
    else:
        check_range("threshold", threshold, "prune_neurons", low=0)
    dying = [select_dying(layer, percentile, threshold) for layer in network.layers[:-1]]
    return kill_(network, dying)


def kill_(network: SparseMLP, dying: list[Bool]) -> list[Int32]:
    """Kill hidden neurons, by a mask for every hidden layer; return what `prune_neurons` does."""
    layers = network.layers
    bury_(layers, dying)
    none_of_inputs = np.zeros(layers[0].n_in, dtype=bool)
    none_of_outputs = np.zeros(layers[-1].n_out, dtype=bool)
    below = layers[-2].living() if len(layers) > 1 else None
    marks = [none_of_inputs, *dying, none_of_outputs]
    return cut_off_(layers, marks, network.config.seed, below)


def bury_(layers: Sequence[SparseLayer], dying: Sequence[Bool]) -> None:
    """Mark neurons of the first layers as dead, by a mask for each; those above take their place.

    What a layer without another one above it puts out is not moved: see `constants`.
    """
    # From the last layer down: a neuron that dies puts out f of its own bias, without what
    # dying neurons below would add to it.
    for k in reversed(range(len(dying))):
        layer, own = layers[k], dying[k]
        if not own.any():
            continue
        if k + 1 < len(layers):
            take_constants_(layers[k + 1], constants(layer, own))
        for arrays in _predicting(layer):
            if layer.config.normalised:
                arrays["running"][:, own] = 0
        layer.bias[own] = 0
        for moments in layer.moments.values():
            moments["bias"][own] = 0
        layer.dead = own if layer.dead is None else layer.dead | own


def constants(layer: SparseLayer, dying: Bool) -> list[Float32]:
    """Return what dying neurons put out without incoming connections, and 0 for others: (n_out,).

    By the layer's parameters, and by their averages where it has these.
    """
    found = []
    for own in _predicting(layer):
        output = activate(own["bias"], layer.slope, own.get("srelu"))
        output[~dying] = 0
        found.append(output)
    return found


def take_constants_(above: SparseLayer, outputs: Sequence[Float32]) -> None:
    """Move what dying neurons below put out, as `constants` returns it, into a layer's biases."""
    for others, output in zip(_predicting(above), outputs, strict=True):
        moved = output[above.topology.rows()] * others["values"]
        moving = np.bincount(above.topology.indices, weights=moved, minlength=above.n_out)
        if above.dead is not None:
            moving[above.dead] = 0
        if above.config.normalised:  # the mean of Wᵀx becomes less by what is missing
            others["running"][0] -= moving * others["running"][2]
        else:
            others["bias"] += moving


def cut_off_(
    layers: Sequence[SparseLayer],
    marks: Sequence[Bool],
    seed: int,
    living: NDArray[np.int64] | None,
) -> list[Int32]:
    """Remove the connections from and to neurons; return the slot maps of the layers.

    `marks` are those of the first layer's inputs, and of every layer's neurons. From the neurons
    `living` (None: all) below an output layer with a minimum connections grow that outputs lack.
    """
    slot_maps = []
    for layer, below, own in zip(layers, marks, marks[1:], strict=False):
        keep = ~(below[layer.topology.rows()] | own[layer.topology.indices])
        grown = _missing(layer, keep, seed, living) if layer.config.minimum else ()
        slot_maps.append(remove_connections(layer, keep, *grown))
    return slot_maps


def _predicting(layer: SparseLayer) -> list[LayerArrays]:
    """Return the parameters, and their averages where the layer has these."""
    own = [layer.parameters]
    return [*own, layer.moments["average"]] if "average" in layer.kinds else own


def _missing(
    output: SparseLayer, keep: Bool, seed: int, living: NDArray[np.int64] | None
) -> tuple[Any, ...]:
    """Return the cells in which connections grow that outputs lack, and what draws their values."""
    living = np.arange(output.n_in) if living is None else living
    rng = stream(seed, "minimum", len(living))
    minimum = output.config.minimum
    return draw_missing_cells(output.topology, keep, minimum, rng, living), rng


def compact(network: SparseMLP) -> SparseMLP:
    """Return a network without the dead neurons, in the same number of layers.

    Its outputs are the same, up to rounding. What is left of weights, moments, classes, names,
    candidates and preprocessing is kept; the inputs all stay. `config.layer_sizes` has the new
    sizes, and what a recipe derives from them (rates of the layers, values of new connections)
    follows. Its number of connections stays in further training (`config.start_factor` is 1).
    """
    sizes = [network.layers[0].n_in, *(layer.n_living for layer in network.layers)]
    given = [
        None if each is None else dataclasses.replace(each, connections=layer.nnz)
        for each, layer in zip(network.config.given, network.layers, strict=False)
    ]
    config = dataclasses.replace(
        network.config, layer_sizes=tuple(sizes), given=tuple(given), start_factor=1.0
    )
    layers, names = [], dict(network.neuron_names)
    inputs = np.ones(sizes[0], dtype=bool)
    for k, layer in enumerate(network.layers):
        outputs = np.ones(layer.n_out, dtype=bool) if layer.dead is None else ~layer.dead
        # Rows and columns of the dead are empty: the order of the connections stays.
        indptr = np.concatenate([[0], layer.topology.indptr[1:][inputs]])
        new_number = np.cumsum(outputs, dtype=np.int32) - np.int32(1)
        topology = Topology.from_input_order(
            sizes[k], sizes[k + 1], indptr, new_number[layer.topology.indices]
        )
        kept = _keep(layer.parameters, outputs)
        moments = {kind: _keep(arrays, outputs) for kind, arrays in layer.moments.items()}
        own, candidates = LayerConfig.of(config, k), layer.candidates
        if candidates is not None:
            rows, columns = candidates.rows(), candidates.indices
            there = inputs[rows] & outputs[columns]
            cells = (np.cumsum(inputs) - 1)[rows[there]] * sizes[k + 1] + new_number[columns[there]]
            candidates = Topology.from_cells(sizes[k], sizes[k + 1], cells)
            record = given[k]
            assert record is not None
            given[k] = dataclasses.replace(record, candidates=candidates.nnz)
        rest: dict[str, Any] = {"moments": moments, "candidates": candidates}
        layers.append(SparseLayer(layer.number, topology, kept, own, **rest))
        if layer.number in names:
            names[layer.number] = list(itertools.compress(names[layer.number], outputs))
        inputs = outputs
    result = copy.copy(network)
    result.config = dataclasses.replace(config, given=tuple(given))
    result.layers, result.storage = layers, None
    result.classes, result.neuron_names = copy.copy(network.classes), names
    return result


def _keep(arrays: LayerArrays, neurons: Bool) -> LayerArrays:
    """Return copies of a layer's parameters or moments, of some of its neurons."""
    return {
        name: array.copy() if PARAMETERS[name].of_connections else array[..., neurons].copy("C")
        for name, array in arrays.items()
    }


def input_strength(network: SparseMLP, *, paths: bool = False) -> NDArray[np.float32]:
    """Return the strength of every input, float32 (n_features,): the sum of |outgoing weights|.

    With `paths` each of them is multiplied by the strength of the neuron that it leads to: a sum
    over all paths to the outputs. After a linear start only that tells the inputs apart: most
    neurons of the first layer may lead nowhere yet, by their weights.
    """
    strength: NDArray[np.generic] = np.ones(network.layers[-1].n_out)
    layers = fold_layers(network.layers)
    for layer in layers[::-1] if paths else layers[:1]:
        weights = np.abs(layer.values)
        if paths:
            weights = weights * strength[layer.topology.indices]
        strength = np.bincount(layer.topology.rows(), weights=weights, minlength=layer.n_in)
    return strength.astype(np.float32)


def active_neurons(network: SparseMLP) -> list[int]:
    """Return how many neurons of every hidden layer are on a path from an input to an output.

    The others cannot matter: without a path from an input a neuron's output is a constant, and
    without a path to an output nothing depends on it. Weights do not matter here: zeros count as
    connections. One sweep goes up the layers and one down: O(connections) time, a byte a hidden
    neuron.

    Examples
    --------
    >>> from largesparse import NetworkConfig, SparseMLP
    >>> sizes = 100, 500, 500, 2
    >>> active_neurons(SparseMLP(NetworkConfig(sizes, epsilon=1, coverage="full")))
    [500, 500]
    >>> sum(active_neurons(SparseMLP(NetworkConfig(sizes, epsilon=1)))) < 700
    True
    """
    topologies = [layer.topology for layer in network.layers]
    fed = mark_fed(topologies[:-1], None)
    outputs = np.ones(topologies[-1].n_out, dtype=bool)
    return mark_leading(topologies[1:], outputs, fed)[1]


def mark_fed(topologies: Sequence[Topology], inputs: Bool | None) -> list[Bool]:
    """Return which neurons of consecutive layers a path leads to, (n_out,) of each.

    It begins at the marked `inputs` of the first layer, or at any (None).
    """
    from ..backends.coverage_kernels import mark_reaching

    fed: list[Bool] = []
    for topology in topologies:
        below = fed[-1] if fed else inputs
        found = np.zeros(topology.n_out, dtype=bool)
        if below is None:  # without the output order, which few nonzeros do without
            found[topology.indices] = True
        else:
            order = topology.indptr_by_output, topology.indices_by_output
            mark_reaching(*order, below, found)
        fed.append(found)
    return fed


def mark_leading(
    topologies: Sequence[Topology], outputs: Bool, fed: Sequence[Bool]
) -> tuple[Bool, list[int]]:
    """Return how many inputs of each of consecutive layers are on a path, and those of the first.

    The path leads from an input that is `fed`, (n_in,) for every layer, to the marked `outputs` of
    the last layer.
    """
    from ..backends.coverage_kernels import mark_reaching

    counts = []
    active = outputs
    for topology, below in zip(reversed(topologies), reversed(fed), strict=True):
        reaching = np.empty(topology.n_in, dtype=bool)
        mark_reaching(topology.indptr, topology.indices, active, reaching)
        active = reaching & below
        counts.append(int(np.count_nonzero(active)))
    return active, counts[::-1]


def select_dying(
    layer: SparseLayer, percentile: float | None, threshold: float | None = None
) -> Bool:
    """Return which neurons of a layer, alive so far, are to die: bool (n_out,)."""
    living = layer.living()
    importance = neuron_importance(layer)[living]
    if threshold is None:
        assert percentile is not None
        marked = mark_smallest(importance, math.ceil(percentile * (len(living) - 1) / 100))
    else:
        marked = importance < threshold
        if marked.all():
            marked[importance.argmax()] = False
    dying = np.zeros(layer.n_out, dtype=bool)
    dying[living[marked]] = True
    return dying
