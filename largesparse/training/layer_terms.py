"""What each layer of a network takes: bytes, and its share of the time of a step.

The terms of a layer with nnz connections, n_in inputs and n_out neurons::

    model        (20 + m)·nnz (indices and weights in both orders, permutation, moments)
                 + 4·(n_in + n_out + 2) row pointers + (4 + m)·n_out (biases and their moments);
                 m is 4 for a velocity, 10 for Adam's mean, square and count, and 4 for an average;
                 + 4·candidates + 4·(n_in + 1), where a set of candidates is given;
                 row pointers and permutation take twice that where int32 does not count nnz
    gradient     4·nnz + 4·n_out
    passing      what initialisation, evolution or a checkpoint needs beside, once at a time

Batch normalisation takes 80 bytes more a hidden neuron. It and an average of the weights take
FOLDED bytes a connection of all layers, passing, to evaluate.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..backends.operands import count_dtype
from ..model.config import NetworkConfig
from ..model.layer import moment_bytes
from ..model.workspace import ACTIVATION_DTYPES

EVOLUTION = 36  # bytes a connection that evolving takes, with a velocity; sampling takes 24
CANDIDATE = 33  # bytes that growth by a score takes for every cell that it looks at
INT64 = 12  # bytes a connection more, where int64 counts them: slot map, permutation, a temporary
WITHIN = 48  # that drawing takes for every cell of a given candidate set
NORMALISED = 4  # numbers a neuron: γ and the running statistics; each has moments
NORMALISED_GRADIENT = 48  # of their gradients, and of what a micro-batch has found
FOLDED = 12  # bytes a connection of all layers, folded to be evaluated: weights in both orders


class LayerTerms(NamedTuple):
    """What a layer takes, in bytes."""

    model: int  # weights, moments and both orders of the topology
    gradient: int
    passing: int  # beside, while it is made or evolves
    folded: int = 0  # beside, with all other layers, while it is evaluated


def layer_terms(
    config: NetworkConfig, moments: Sequence[str] = ("velocity",), candidates: float = 0.0
) -> list[LayerTerms]:
    """Return what every layer takes, from the first hidden one to the output layer.

    `moments` are the kinds that the training keeps (`TrainingConfig.moments`), `candidates` the
    cells that growth by a score looks at for a connection.
    """
    kept, found = moment_bytes(moments), []
    folds = "average" in moments or config.batch_norm
    sizes, connections = config.layer_sizes, expected_connections(config)
    for k, ((n_in, n_out), nnz) in enumerate(
        zip(itertools.pairwise(sizes), connections, strict=True)
    ):
        within = given.candidates if (given := config.given_layer(k)) is not None else 0
        model = (20 + kept) * nnz + 4 * (n_in + n_out + 2) + (4 + kept) * n_out
        model += 4 * (nnz + n_in + n_out + 2) if is_int64(nnz) else 0
        model += 4 * (n_in + 1 + within) if within else 0
        model += 4 * (n_in + 1) if is_int64(within) else 0
        gradient = 4 * nnz + 4 * n_out
        if config.batch_norm and k < len(connections) - 1:
            model += (4 + kept) * NORMALISED * n_out
            gradient += NORMALISED_GRADIENT * n_out
        evolving = int(evolution_bytes(moments, candidates) * nnz) + WITHIN * within
        evolving += INT64 * nnz if is_int64(nnz) else 0
        passing = evolving + 8 * (n_in + n_out)
        found.append(LayerTerms(model, gradient, passing, FOLDED * nnz if folds else 0))
    return found


def total_of(terms: Sequence[LayerTerms]) -> tuple[int, int, int]:
    """Return the bytes of model, gradients and what is passing of layers that are together."""
    folded = sum(each.folded for each in terms)
    passing = max(folded, *(each.passing for each in terms))
    return sum(each.model for each in terms), sum(each.gradient for each in terms), passing


def evolution_bytes(moments: Sequence[str], candidates: float = 0.0) -> float:
    """Return the bytes a connection that evolving a layer with these moments takes beside it.

    Growth by a score looks at so many `candidates` a connection: see `TrainingConfig`.
    """
    moving = EVOLUTION + moment_bytes(moments) - moment_bytes(["velocity"])
    return max(moving, CANDIDATE * candidates)


def is_int64(connections: int) -> bool:
    """Return whether int64 counts the connections of a layer with so many."""
    return count_dtype(connections) is np.int64


def expected_connections(config: NetworkConfig) -> tuple[int, ...]:
    """Return the connections that each layer will hardly have more of."""
    sizes, found = config.layer_sizes, []
    for k, probability in enumerate(config.probabilities()):
        expected = probability * sizes[k] * sizes[k + 1]
        if (given := config.given_layer(k)) is not None:
            found.append(given.connections)
        else:
            found.append(math.ceil(expected + 3 * math.sqrt(expected * (1 - probability))))
    found[-1] += min(config.output_minimum, sizes[-2]) * sizes[-1]  # at most
    return tuple(found)


def itemsize(activation_dtype: str) -> int:
    """Return the bytes of an activation."""
    return np.dtype(ACTIVATION_DTYPES[activation_dtype]).itemsize
