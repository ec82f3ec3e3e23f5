"""Which plan of a pipeline is taken: the fastest that fits, or a refusal that says what would."""

from __future__ import annotations

import dataclasses
import math

from ...errors import MemoryPlanError, ParameterError, check_range
from ...training.layer_terms import expected_connections
from ...training.memory import USEFUL, MicroBatching, micro_batchings
from ...training.memory_plan import GIB, counted
from .costs import Held, layer_passes, plan_stage
from .plan import SPLITS, Machine, PipelinePlan, Request, make_plan, usable
from .split import Stage, split_layers

FASTEST = 64  # rows of a micro-batch, from which more gain nothing
MANY = 10_000  # layers times stages, above which a split by time and memory takes seconds
SLOWER = 1.2  # what a sample takes in micro-batches of 32, next to larger ones


def choose_pipeline_plan(
    request: Request, *, micro_batch: int | None = None, activation_dtype: str = "float32"
) -> PipelinePlan:
    """Return the fastest plan that fits; a micro-batch that is given is taken.

    Larger micro-batches compute faster, and smaller ones keep the ranks busier. Each is split by
    time and memory first, and by memory alone where that does not fit, unless the request says
    which.

    Raises
    ------
    ParameterError
        Where the ranks cannot be divided into the groups, or are more than the layers.
    MemoryPlanError
        Where nothing fits; the message says how many ranks, or which epsilon, would do.
    """
    check_request(request)
    plan = find_plan(request, micro_batch=micro_batch, activation_dtype=activation_dtype)
    if not plan.fits:
        raise MemoryPlanError(_refusal(plan))
    return plan


def check_stages(request: Request, setting: MicroBatching, stages: tuple[Stage, ...]) -> None:
    """Raise `MemoryPlanError` where stages that have been chosen do not fit into memory."""
    plan = make_plan(request, setting, "time", stages=stages)
    if not plan.fits:
        raise MemoryPlanError(_refusal(plan))


def find_plan(
    request: Request, *, micro_batch: int | None = None, activation_dtype: str = "float32"
) -> PipelinePlan:
    """Return the fastest plan that fits, or the last one that was tried where none does."""
    found = micro_batchings(request.config, request.rows, micro_batch, 1, activation_dtype)
    found.sort(key=lambda setting: _expected_time(request, setting))
    first, costs = None, request.costs()
    fastest = "auto" if len(costs[1]) * request.stages <= MANY else "time"
    splits = (fastest, "memory") if request.split == "auto" else (request.split,)
    for setting in found:
        for split in splits:
            plan = make_plan(request, setting, split, costs)
            if plan.fits:
                return dataclasses.replace(plan, note=_explain(first, plan))
            first = first or plan
    return plan


def check_request(request: Request) -> None:
    """Verify that the ranks form groups, and that every rank of a group has a layer."""
    ranks = sum(len(machine.ranks) for machine in request.machines)
    check_range("groups", request.groups, "a pipeline", low=1, high=ranks, integer=True)
    if ranks % request.groups:
        raise ParameterError(
            f"The 'groups' parameter of a pipeline must divide the number of ranks, {ranks}. Got "
            f"{request.groups} instead."
        )
    if request.batch_size < request.groups:
        raise ParameterError(
            f"The 'batch_size' parameter of a pipeline must be at least the number of groups, "
            f"{request.groups}, which divide it. Got {request.batch_size} instead."
        )
    if request.split not in SPLITS:
        raise ParameterError(
            f"The 'split' parameter of a pipeline must be one of {', '.join(SPLITS)}. Got "
            f"{request.split!r} instead."
        )
    split_layers(layer_passes(request.config), request.stages)


def _expected_time(request: Request, setting: MicroBatching) -> float:
    """Return what a sample is expected to take, by rows of a micro-batch and the bubble."""
    rows = setting.micro_batch
    count = request.micro_batches(rows)
    return sample_cost(rows) * (count + request.stages - 1) / count


def sample_cost(rows: int) -> float:
    """Return what a sample takes in micro-batches of so many rows, next to those of 64.

    Below 32 a connection takes as long whatever the rows: it waits for a cache line.
    """
    return 1.0 if rows >= FASTEST else SLOWER * max(1.0, USEFUL / rows)


def _explain(faster: PipelinePlan | None, chosen: PipelinePlan) -> str:
    """Return why a faster plan was not chosen."""
    if faster is None:
        return ""
    there = usable(faster.fullest)
    return (
        f"a micro-batch of {faster.micro_batching}, split by {faster.by}, would need "
        f"{faster.required / GIB:.1f} GiB, and {there / GIB:.1f} GiB can be used"
    )


def _refusal(plan: PipelinePlan) -> str:
    """Return what is said where the smallest plan does not fit, and what would."""
    request, machine = plan.request, plan.fullest
    config, connections = request.config, expected_connections(request.config)
    ranks, here = counted(plan.ranks, "rank"), counted(len(machine.ranks), "rank")
    can_be_used = f"{usable(machine) / GIB:.1f} GiB can be used there"
    micro = plan.micro_batch
    text = (
        f"{config.neurons} neurons on {ranks} with a micro-batch of {micro} need about "
        f"{plan.required / GIB:.1f} GiB on the machine of {here}, and {can_be_used}"
    )
    least, layer = _largest_alone(plan)
    each = usable(machine) // len(machine.ranks)
    if least > each:
        n_in, n_out = config.layer_sizes[layer : layer + 2]
        text += (
            f". Layer {layer + 2} alone, {n_in} x {n_out} with {connections[layer]} connections, "
            f"needs {least / GIB:.1f} GiB, whatever the number of ranks"
        )
    advice = []
    of_groups = f" in each of {request.groups} groups" if request.groups > 1 else ""
    if more := _enough_ranks(plan, each):
        advice.append(f"{more} ranks{of_groups}, with {each / GIB:.1f} GiB for each, would do")
    elif alone := _enough_ranks(plan, usable(machine), least=request.stages):
        advice.append(f"{alone} ranks{of_groups}, each on a machine like this of its own, would do")
    if epsilon := _fitting_epsilon(plan):
        advice.append(f"epsilon {epsilon:g} would fit")
    advice.append("more hidden layers, which are smaller each")
    return f"{text}: {', or '.join(advice)}."


def _largest_alone(plan: PipelinePlan) -> tuple[int, int]:
    """Return the bytes of a rank with the largest layer alone, at the least, and that layer."""
    config, request = plan.request.config, plan.request
    terms = request.terms
    alone = [
        plan_stage(
            config,
            Stage(k, k + 1),
            plan.micro_batching,
            terms,
            held=Held(),
            backend=request.backend,
        ).required
        for k in range(len(terms))
    ]
    return max((size, k) for k, size in enumerate(alone))


def _enough_ranks(plan: PipelinePlan, each: int, least: int | None = None) -> int:
    """Return the fewest ranks of a group that fit into so many bytes each; 0 where none do."""
    request = plan.request
    layers = len(request.config.layer_sizes) - 1
    for ranks in range(least or request.stages + 1, layers + 1):
        machines = (Machine(tuple(range(ranks)), 2**62),)
        wider = request._replace(machines=machines, groups=1)
        found = make_plan(wider, plan.micro_batching, "memory")
        if max(own.required for own in found.plans) <= each:
            return ranks
    return 0


def _fitting_epsilon(plan: PipelinePlan) -> float:
    """Return the largest epsilon, of two digits, below the present one that fits; 0 for none."""
    request, epsilon = plan.request, plan.request.config.epsilon
    if epsilon is None:
        return 0.0

    def fits(smaller: float) -> bool:
        config = dataclasses.replace(request.config, epsilon=smaller)
        return make_plan(request._replace(config=config), plan.micro_batching, "memory").fits

    low, high = 0, 100  # of epsilon, in hundredths
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(epsilon * middle / 100) else (low, middle)
    return _two_digits(epsilon * low / 100)


def _two_digits(value: float) -> float:
    """Return a number rounded down to two digits."""
    if value <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.floor(value / unit + 1e-9) * unit
