"""What the stages of a pipeline take: bytes of memory, passes over connections, bytes moved.

A rank has the model, gradients and moments of its own layers alone, the activations of the
micro-batches that are in flight on it, and buffers of what comes from and goes to its neighbours.
The terms of its layers are those of one process's plan: `training.layer_terms`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...model.config import NetworkConfig
from ...training.layer_terms import LayerTerms, expected_connections, itemsize, total_of
from ...training.memory import MemoryPlan, MicroBatching, activation_bytes
from ...training.memory_plan import base_bytes
from .split import Stage

PASSES = 3  # over the connections of a layer in a step: forward, back to the inputs, to the weights
BUFFERS = 2  # of a boundary and direction: one is on its way while the other is used


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


def in_flight(stage: int, stages: int, micro_batches: int) -> int:
    """Return the micro-batches whose activations a stage keeps at a time, at the most.

    With one forward and one backward in turn, stage k of K (from 0) has passed on K - k before
    the first of them comes back.
    """
    return min(stages - stage, micro_batches)


def workspace_sizes(config: NetworkConfig, stage: Stage) -> tuple[int, ...]:
    """Return the sizes of the workspace of a stage: inputs, what is kept as hidden, outputs.

    The activations that come from the stage below are kept as those of a hidden layer. Only the
    first stage has inputs, and only the last one outputs; else there are 0.
    """
    sizes = config.layer_sizes
    last = len(sizes) - 1
    hidden = sizes[max(1, stage.first) : min(stage.last + 1, last)]
    return (sizes[0] * (stage.first == 0), *hidden, sizes[-1] * (stage.last == last))


def boundary_sizes(config: NetworkConfig, stage: Stage) -> list[int]:
    """Return the neurons at the boundaries of a stage with other ranks."""
    bounds, last = (stage.first, stage.last), len(config.layer_sizes) - 1
    return [config.layer_sizes[bound] for bound in bounds if 0 < bound < last]


def plan_stage(
    config: NetworkConfig,
    stage: Stage,
    setting: MicroBatching,
    terms: Sequence[LayerTerms],
    *,
    held: int,
    mapped: int = 0,
    once: int = 0,
    backend: str | None = None,
    moments: Sequence[str] = ("velocity",),
) -> MemoryPlan:
    """Return the bytes of the rank that has a stage.

    `terms` are those of all layers, `held` is what `in_flight` returns, `mapped` the bytes of
    memory-mapped data, which the first stage reads.
    """
    model, gradients, passing = total_of(terms[stage.first : stage.last])
    own = activation_bytes(workspace_sizes(config, stage), *setting)
    each = boundary_bytes(boundary_sizes(config, stage), setting)
    return MemoryPlan(
        setting,
        model,
        gradients,
        held * own,
        passing,
        mapped if stage.first == 0 else 0,
        base=base_bytes(backend, passing),
        once=once,
        transfers=BUFFERS * each,
        moments=tuple(moments),
    )


def boundary_bytes(neurons: Sequence[int], setting: MicroBatching) -> int:
    """Return the bytes of a whole micro-batch that cross boundaries of so many neurons, one way.

    Forward go the activations, back their gradients, both in the dtype of stored activations.
    """
    return sum(neurons) * setting.micro_batch * itemsize(setting.activation_dtype)


def step_bytes(
    config: NetworkConfig, stages: Sequence[Stage], activation_dtype: str, samples: int
) -> int:
    """Return the bytes that a step on so many samples moves between the stages of a pipeline."""
    one_way = MicroBatching(samples, activation_dtype=activation_dtype)
    return 2 * boundary_bytes([config.layer_sizes[stage.first] for stage in stages[1:]], one_way)
