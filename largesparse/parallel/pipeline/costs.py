"""What the stages of a pipeline take: bytes of memory, passes over connections, bytes moved.

A rank has the model, gradients and moments of its own layers alone, the activations of the
micro-batches that are in flight on it, and buffers of what comes from and goes to its neighbours.
The terms of its layers are those of one process's plan: `training.layer_terms`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ...backends.operands import count_parts
from ...model.activations import TRAINED
from ...model.config import NetworkConfig
from ...training.layer_terms import LayerTerms, expected_connections, itemsize, total_of
from ...training.memory import MemoryPlan, MicroBatching, activation_bytes, has_sums
from ...training.memory_plan import base_bytes
from .split import Stage
from .workspace import Deltas

PASSES = 3  # over the connections of a layer in a step: forward, back to the inputs, to the weights


def bubble_share(stages: int, micro_batches: int) -> float:
    """Return the share of a step that a rank waits, at the least: (K - 1) / (M + K - 1)."""
    return (stages - 1) / (micro_batches + stages - 1)


def layer_passes(config: NetworkConfig) -> list[int]:
    """Return what the time of every layer in a step follows from: connections that are passed.

    Nothing is computed for the inputs, so the first layer has a pass less.
    """
    first, *rest = expected_connections(config)
    return [(PASSES - 1) * first, *(PASSES * nnz for nnz in rest)]


def stage_passes(config: NetworkConfig, stages: Sequence[Stage]) -> list[int]:
    """Return what the time of every stage in a step follows from, as `layer_passes` has it."""
    passes = layer_passes(config)
    return [sum(passes[stage.first : stage.last]) for stage in stages]


class Held(NamedTuple):
    """The micro-batches whose activations a stage has at a time."""

    in_flight: int = 1
    arrivals: int = 1  # those whose activations may have come from the rank before

    @classmethod
    def by(cls, stage: int, stages: int, micro_batches: int) -> Held:
        """Return those of a stage, at the most.

        With one forward and one backward in turn, stage k of K (from 0) has passed on K - k before
        the first of them comes back; one more arrives meanwhile.
        """
        count = stages - stage
        return cls(min(count, micro_batches), min(count + 1, micro_batches))


def workspace_sizes(config: NetworkConfig, stage: Stage) -> tuple[int, ...]:
    """Return the sizes of the workspace of a stage: inputs, what is kept as hidden, outputs.

    The activations that come from the stage below are kept as those of a hidden layer. Only the
    first stage has inputs, and only the last one outputs; else there are 0.
    """
    sizes = config.layer_sizes
    last = len(sizes) - 1
    hidden = sizes[max(1, stage.first) : min(stage.last + 1, last)]
    return (sizes[0] * (stage.first == 0), *hidden, sizes[-1] * (stage.last == last))


def stage_activations(
    config: NetworkConfig, stage: Stage, setting: MicroBatching, held: Held
) -> tuple[int, int]:
    """Return the bytes of a stage's activations, and of what passes: see `StageWorkspace`.

    What passes are deltas from the rank behind, and for the one before.
    """
    sizes, rows = workspace_sizes(config, stage), setting.micro_batch
    last = len(config.layer_sizes) - 1
    has_before, has_behind = stage.first > 0, stage.last < last
    trained, dtype = has_sums(config), setting.activation_dtype
    if not (has_before or has_behind):
        return activation_bytes(sizes, *setting, trained=trained), 0
    hidden = sizes[1:-1]
    own = sum(hidden[has_before:])
    times = own * held.in_flight
    times -= hidden[-1] * (held.in_flight - 1) * has_behind
    times += hidden[0] * held.arrivals * has_before
    deltas = Deltas.of(hidden, has_before, has_behind)
    floats = sizes[-1] + held.in_flight * (0 if setting.sparse_inputs else sizes[0])
    floats += held.in_flight * own if trained else 0
    if hidden and dtype == "float32":
        floats += count_parts(hidden[-1], sizes[-1], rows) * hidden[-1]
    numbers = 4 * floats + itemsize(dtype) * (times + sum(deltas.turns))
    bits = 8 * -(-rows // 32) * times
    return numbers * rows + bits, (deltas.received + deltas.sent) * itemsize(dtype) * rows


def plan_stage(
    config: NetworkConfig,
    stage: Stage,
    setting: MicroBatching,
    terms: Sequence[LayerTerms],
    *,
    held: Held,
    groups: int = 1,
    mapped: int = 0,
    once: int = 0,
    backend: str | None = None,
    moments: Sequence[str] = ("velocity",),
    frees_buffers: bool = True,
) -> MemoryPlan:
    """Return the bytes of the rank that has a stage.

    `terms` are those of all layers, `mapped` the bytes of memory-mapped data, which the first stage
    reads, `groups` the pipelines that sum gradients. `frees_buffers` says whether those of a step
    are free while the layers evolve.
    """
    own = terms[stage.first : stage.last]
    model, gradients, passing = total_of(own)
    folded, base = sum(each.folded for each in own), base_bytes(backend, passing)
    activations, deltas = stage_activations(config, stage, setting, held)
    if stage.first > 0:
        gradients += 4 * config.layer_sizes[stage.first]  # of the biases before
    transfers = deltas + gradients * (groups - 1) // groups
    if frees_buffers:
        passing = max(folded, passing - gradients - activations - transfers, 0)
    return MemoryPlan(
        setting,
        model,
        gradients,
        activations,
        passing,
        mapped if stage.first == 0 else 0,
        base=base,
        once=once,
        transfers=transfers,
        moments=tuple(moments),
    )


def step_bytes(
    config: NetworkConfig, stages: Sequence[Stage], setting: MicroBatching, samples: int
) -> int:
    """Return the bytes that a step on so many samples moves between the stages of one pipeline.

    At every boundary and for every micro-batch: forward the activations and two bits for each,
    back their gradients, both in the dtype of stored activations; once a step the gradient of
    the biases, and an order of 8 bytes.
    """
    whole, rest = divmod(samples, setting.micro_batch)
    words = whole * -(-setting.micro_batch // 32) + -(-rest // 32)
    each = 2 * samples * itemsize(setting.activation_dtype) + 8 * words
    each += 0 if config.activation in TRAINED else 4
    neurons = sum(config.layer_sizes[stage.first] for stage in stages[1:])
    return neurons * each + 8 * (len(stages) - 1)


def summed_bytes(terms: Sequence[LayerTerms], groups: int) -> int:
    """Return the bytes that a step moves between groups, to sum the gradients of these layers.

    The loss is summed with them, and an order is passed on, 8 bytes each.
    """
    return (groups - 1) * (2 * sum(each.gradient for each in terms) + 3 * 8)
