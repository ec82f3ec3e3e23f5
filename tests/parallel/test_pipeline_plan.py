"""The memory plan of a pipeline: what each rank takes, how layers are split, what is refused."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largesparse import NetworkConfig, SparseMLP
from largesparse.errors import MemoryPlanError, ParameterError
from largesparse.parallel.pipeline.choice import choose_pipeline_plan
from largesparse.parallel.pipeline.costs import Held, plan_stage
from largesparse.parallel.pipeline.plan import Machine, Request, make_plan
from largesparse.parallel.pipeline.split import Stage, split_stages
from largesparse.parallel.pipeline.stage import Edge
from largesparse.parallel.pipeline.workspace import StageWorkspace
from largesparse.training.layer_terms import layer_terms
from largesparse.training.memory import MicroBatching, plan_training

GIB = 2**30
LOTS = 2**50
NETWORK = NetworkConfig((300, 4000, 1000, 6000, 2000, 2), epsilon=8.0)
LAYERS = 5
SETTING = MicroBatching(32)


def request_of(config=NETWORK, ranks=2, available=LOTS, batch_size=128, **fields):
    return Request(config, batch_size, (Machine(tuple(range(ranks)), available),), **fields)


def divisions(layers, ranks):
    for cuts in itertools.combinations(range(1, layers), ranks - 1):
        yield tuple(itertools.starmap(Stage, itertools.pairwise((0, *cuts, layers))))


@settings(max_examples=60, deadline=None)
@given(
    costs=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=7),
    data=st.data(),
)
def test_costs_that_depend_on_the_rank_are_split_best_too(costs, data):
    ranks = data.draw(st.integers(1, len(costs)))

    def cost(rank, first, last):
        return sum(fixed + (ranks - rank) * held for fixed, held in costs[first:last])

    def dearest(stages):
        return max(cost(rank, *stage) for rank, stage in enumerate(stages))

    found = split_stages(cost, len(costs), ranks)
    assert dearest(found) == min(map(dearest, divisions(len(costs), ranks)))


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_no_other_split_has_a_smaller_largest_memory_or_longest_step(ranks):
    nnz = [layer.nnz for layer in SparseMLP(NETWORK, progress=False).layers]
    terms = layer_terms(NETWORK)

    def memory(stages):
        held = [Held.by(rank, ranks, 4) for rank in range(ranks)]
        plans = (
            plan_stage(NETWORK, stage, SETTING, terms, held=count)
            for stage, count in zip(stages, held, strict=True)
        )
        return max(plan.required for plan in plans)

    def time(stages):  # nothing is computed for the inputs
        return max(3 * sum(nnz[a:b]) - nnz[0] * (a == 0) for a, b in stages)

    fastest = min(map(time, divisions(LAYERS, ranks)))
    fast = [each for each in divisions(LAYERS, ranks) if time(each) <= 1.05 * fastest]
    plan = make_plan(request_of(ranks=ranks), SETTING, "auto")
    assert time(plan.stages) <= 1.06 * fastest
    assert memory(plan.stages) == pytest.approx(min(map(memory, fast)), rel=0.01)
    for split, cost in (("memory", memory), ("time", time)):
        plan = make_plan(request_of(ranks=ranks), SETTING, split)
        assert [k for stage in plan.stages for k in stage.layers] == list(range(LAYERS))
        best = min(map(cost, divisions(LAYERS, ranks)))
        assert cost(plan.stages) == pytest.approx(best, rel=0.01)  # nnz are drawn


def test_one_rank_takes_what_one_process_does_and_several_divide_it():
    alone = plan_training(NETWORK, 32)
    (one,) = make_plan(request_of(ranks=1, frees_buffers=False), SETTING, "time").plans
    for name in ("model", "gradients", "activations", "passing", "required"):
        assert getattr(one, name) == getattr(alone, name), name
    assert one.transfers == 0
    (freed,) = make_plan(request_of(ranks=1), SETTING, "time").plans
    beside = alone.gradients + alone.activations
    assert freed.required == alone.required - min(alone.passing, beside)
    for ranks in (2, 3, 5):
        plan = make_plan(request_of(ranks=ranks), SETTING, "time")
        assert sum(own.model for own in plan.plans) == alone.model
        biases = 4 * sum(NETWORK.layer_sizes[stage.first] for stage in plan.stages[1:])
        assert sum(own.gradients for own in plan.plans) == alone.gradients + biases
        assert all(own.passing <= alone.passing for own in plan.plans)
        assert [own.mapped for own in plan.plans] == [0] * ranks


def test_the_table_and_the_bytes_moved_are_those_worked_out_by_hand():
    config = NetworkConfig((8, 100, 100, 100, 2), density=1.0)
    plan = choose_pipeline_plan(
        request_of(config, ranks=4, batch_size=100, groups=2, mapped=5 * GIB), micro_batch=32
    )
    assert (plan.stages, plan.micro_batches) == ((Stage(0, 2), Stage(2, 4)), 2)
    assert plan.bubble == 1 / 3
    # both ways 100 rows of 100 floats; bits of 32 and 18 rows by words, two each; biases; orders
    assert plan.step_bytes == 2 * 4 * 100 * 100 + 2 * (100 * 2 * 4 * 2 + 4 * 100 + 8)
    parameters = 100 * (8 + 100 + 100 + 2) + 302
    assert plan.summed_bytes == 2 * 4 * parameters + 24
    assert [own.mapped for own in plan.plans] == [5 * GIB, 0]
    assert plan.total - plan.required == 5 * GIB
    text = str(plan)
    assert re.search(r"pipeline of 2 ranks, 2 groups; split by time and memory", text)
    assert re.search(r"\n +0 +2-3 +200 +10,800 ", text)
    assert re.search(r"\n +1 +4-5 +102 +10,200 ", text)
    assert re.search(r"required by 4 ranks .* GiB", text)


def array_bytes(thing):
    """The bytes of the arrays in an object, its lists and dictionaries; each counts once."""
    found, values = {}, list(vars(thing).values())
    while values:
        value = values.pop()
        if isinstance(value, list | tuple | dict):
            values += value.values() if isinstance(value, dict) else value
        elif isinstance(value, np.ndarray) and value.nbytes:
            found[value.ctypes.data] = max(found.get(value.ctypes.data, 0), value.nbytes)
    return sum(found.values())


@pytest.mark.parametrize("setting", [(32,), (5,), (33, 1, "bfloat16")], ids=str)
@pytest.mark.parametrize("widths", [(50, 20, 60, 40), (50, 50, 50, 50, 50)], ids=len)
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_the_plan_is_what_the_buffers_of_a_stage_take(ranks, widths, setting):
    config = NetworkConfig((30, *widths, 7), density=1.0, coverage="random")
    layers = SparseMLP(config, progress=False).layers
    plan = make_plan(request_of(config, ranks=ranks), MicroBatching(*setting), "memory")
    for rank, (stage, own) in enumerate(zip(plan.stages, plan.plans, strict=True)):
        first, last = stage.first == 0, stage.last == len(layers)
        before = [] if first else [Edge.before(config, stage.first - 1)]
        chain = [*before, *layers[slice(*stage)], *([] if last else [Edge.behind(stage.last)])]
        held = Held.by(rank, ranks, plan.micro_batches)
        ends = {"has_before": not first, "has_behind": not last}
        dtype = own.micro_batching.activation_dtype
        space = StageWorkspace(chain, own.micro_batch, *held, activation_dtype=dtype, **ends)
        for number in range(held.in_flight if first else 0):
            space.turn_to_(number)
            space.inputs(own.micro_batch)
        sums = space.input_sums.nbytes  # of the centring; not planned
        assert own.gradients + own.activations + own.transfers == array_bytes(space) - sums


def test_memory_alone_decides_the_split_only_where_time_and_memory_do_not_fit():
    config = NetworkConfig((1000, *[1_000_000] * 10, 2), epsilon=1.0)

    def request(available, **fields):
        machines = tuple(Machine((rank,), available) for rank in range(4))
        return Request(config, 128, machines, **fields)

    by_both = choose_pipeline_plan(request(LOTS), micro_batch=32)
    assert (by_both.split, by_both.note) == ("auto", "")
    by_time = make_plan(request(LOTS), MicroBatching(32), "time")
    least = make_plan(request(LOTS), MicroBatching(32), "memory")
    assert least.required < by_both.required < by_time.required
    assert by_both.imbalance <= 1.05 * by_time.imbalance
    tight = request(int(by_both.required / 0.9) - 2**20)
    chosen = choose_pipeline_plan(tight, micro_batch=32)
    assert chosen.split == "memory" and "by time and memory, would need" in chosen.note
    with pytest.raises(MemoryPlanError):
        choose_pipeline_plan(tight._replace(split="time"), micro_batch=32)


def test_a_refusal_says_how_many_ranks_or_which_epsilon_would_do():
    config = NetworkConfig((1000, *[1_000_000] * 6, 2), epsilon=20.0)
    with pytest.raises(MemoryPlanError, match=r"epsilon ([\d.]+) would fit") as caught:
        choose_pipeline_plan(request_of(config, available=8 * GIB))
    epsilon = float(re.search(r"epsilon ([\d.]+) would", str(caught.value))[1])
    smaller = NetworkConfig(config.layer_sizes, epsilon=epsilon)
    choose_pipeline_plan(request_of(smaller, available=8 * GIB))  # fits
    more = int(re.search(r"(\d+) ranks, with 3.6 GiB for each", str(caught.value))[1])
    machines = tuple(Machine((rank,), 4 * GIB) for rank in range(more))
    choose_pipeline_plan(Request(config, 128, machines))  # fits
    alone = NetworkConfig((10, 10_000_000, 10_000_000, 2), epsilon=50.0)
    with pytest.raises(MemoryPlanError, match="Layer 3 alone, 10000000 x 10000000"):
        choose_pipeline_plan(request_of(alone, available=8 * GIB))


def test_ranks_that_cannot_be_divided_are_refused():
    for ranks, fields, word in (
        (6, {}, "1 to 5 ranks"),
        (3, {"groups": 2}, "must divide the number of ranks, 3"),
        (2, {"groups": 3}, "'groups'"),
        (2, {"split": "best"}, "'split'"),
        (4, {"groups": 4, "batch_size": 3}, "'batch_size'"),
    ):
        with pytest.raises(ParameterError, match=word):
            choose_pipeline_plan(request_of(ranks=ranks, **fields))
