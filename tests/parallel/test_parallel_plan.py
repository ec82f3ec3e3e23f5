"""The memory plan of a parallel training: its bytes, what it chooses, and what it refuses."""

from __future__ import annotations

import itertools
import re
from collections import namedtuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largesparse import NetworkConfig, SparseMLP, Trainer, TrainingConfig
from largesparse.errors import MemoryPlanError
from largesparse.harness.presets import hidden_sizes
from largesparse.machine.sizes import parse_size
from largesparse.model.workspace import Workspace
from largesparse.parallel import plan as plan_module
from largesparse.parallel.comm.nodes import Nodes
from largesparse.parallel.comm.ranks import Alone
from largesparse.parallel.options import ParallelOptions
from largesparse.parallel.plan import Workload, choose_parallel_plan, plan_parallel, slots_of_nodes
from largesparse.parallel.shared.weights import Shape
from largesparse.training.layer_terms import expected_connections
from largesparse.training.memory import HEADROOM, MemoryPlan, MicroBatching
from largesparse.training.prepared import prepare_

Disk = namedtuple("Disk", "free")
MILLION = NetworkConfig((2048, 500_000, 500_000, 2), epsilon=10.0)
LOTS = 2**50


def machine(ranks: int, cores: int = 2) -> Nodes:
    return Nodes([0] * ranks, [cores], ["one"])


def plan_of(config: NetworkConfig, micro_batch: int, nodes: Nodes, **options) -> MemoryPlan:
    shape = Shape(config, expected_connections(config), MicroBatching(micro_batch))
    slots = slots_of_nodes(nodes, options.pop("slots", None))
    available = options.pop("available", None)
    return plan_parallel(shape, nodes, slots, Workload(**options), available)


def test_a_worker_has_one_slot_or_two_on_another_node():
    nodes = Nodes([0, 0, 0, 1, 1], [4, 4], ["one", "one"])  # two workers on each
    assert slots_of_nodes(nodes) == [2, 2]
    assert slots_of_nodes(nodes, 1) == [1, 1]
    assert slots_of_nodes(nodes, 9) == [2, 2]
    found = [slots_of_nodes(nodes, most, each=2) for most in (1, 2, 3, 4, 9)]
    assert found == [[1, 1], [2, 2], [2, 2], [2, 4], [2, 4]]


def test_the_bytes_are_those_of_the_design():
    plan = plan_of(MILLION, 64, machine(16))
    connections, sizes = sum(expected_connections(MILLION)), MILLION.layer_sizes
    neurons = sum(sizes[1:])
    pointers = sum(4 * (a + b + 2) for a, b in itertools.pairwise(sizes))
    # both orders, the permutation, weights and velocities; biases, their velocities, dead or not
    model = 20 * connections + pointers + 9 * neurons
    # the snapshot in both orders and the gradient; floats, one buffer of deltas, and two bits
    widest = max(sizes[1:])
    gradient = 12 * connections + 8 * neurons
    activations = 4 * 64 * (sizes[0] + neurons + widest) + 8 * 2 * 1_000_000
    assert plan.model == pytest.approx(model, rel=1e-4)
    assert plan.gradients == pytest.approx(2 * gradient, rel=1e-4)
    assert plan.activations == pytest.approx(2 * activations, rel=1e-4)
    assert plan.slots == (2,)
    slots = plan.gradients + plan.activations
    assert plan.required >= plan.base + plan.model + slots + plan.passing


def test_simulated_nodes_have_a_topology_each_and_other_machines_do_not_count():
    one = plan_of(MILLION, 64, machine(4))
    two = plan_of(MILLION, 64, Nodes([0, 0, 1, 1], [1, 1], ["one", "one"]))
    apart = plan_of(MILLION, 64, Nodes([0, 0, 1, 1], [1, 1], ["one", "two"]))
    topology = 12 * sum(expected_connections(MILLION))
    assert two.model - one.model == pytest.approx(topology, rel=0.1)
    assert (two.slots, apart.slots, apart.ranks) == ((1, 1), (1,), 2)
    assert apart.model == one.model
    weights = 8 * sum(expected_connections(MILLION))
    joined = plan_of(MILLION, 64, Nodes([0, 0, 1, 1], [1, 1], ["one"] * 2), algorithm="allreduce")
    assert joined.model - two.model == pytest.approx(weights, rel=0.1)


def test_growth_by_the_gradient_takes_a_workspace_on_rank_0(monkeypatch):
    network = SparseMLP(NetworkConfig((50, 300, 300, 2), epsilon=8), progress=False)
    X, y = np.ones((64, 50), np.float32), np.arange(64) % 2
    taken = []

    def allocate(shape, dtype=np.float32):
        taken.append(np.zeros(shape, dtype).nbytes)
        return np.zeros(shape, dtype)

    Workspace(network.layers, 32, allocate=allocate)
    by_output = 4 * network.connections  # what evolution on rank 0 makes of the weights
    nodes, options = machine(3), ParallelOptions("wasap", phase_one_epochs=2)
    plans = {}
    monkeypatch.setattr(plan_module, "memory_of_ranks", lambda *_: LOTS)
    for growth in ("random", "gradient"):
        trainer = Trainer(network, TrainingConfig(epochs=3, batch_size=32, growth=growth))
        data = prepare_(network, trainer.config, X, y)
        monkeypatch.setattr(
            plan_module, "check_fits", lambda plan, *_, g=growth: plans.update({g: plan})
        )
        plan_module.check_memory(Alone(), nodes, options, trainer, data)
    random, gradient = plans["random"], plans["gradient"]
    assert random.growth == 0 and "growth" not in str(random)
    assert sum(taken) + by_output <= gradient.growth <= 1.3 * (sum(taken) + by_output)
    assert gradient.required - random.required == (
        gradient.growth + gradient.passing - random.passing
    )
    assert gradient.passing > random.passing
    assert "gradient growth" in str(gradient)


def test_trained_replicas_wait_on_the_disk_where_they_would_take_too_much():
    roomy = plan_of(MILLION, 64, machine(16), replicas=15, available=64 * 2**30)
    tight = plan_of(MILLION, 64, machine(16), replicas=15, available=8 * 2**30)
    assert roomy.results > 15 * 8 * sum(expected_connections(MILLION))
    assert (roomy.on_disk, tight.results, tight.on_disk) == (0, 0, roomy.results)
    assert roomy.replicas == tight.replicas > 2 * 24 * sum(expected_connections(MILLION))
    assert plan_of(MILLION, 64, machine(16)).replicas == 0


def test_a_disk_that_is_too_full_for_them_is_told(monkeypatch, tmp_path):
    plan = plan_of(MILLION, 64, machine(16), replicas=15, available=8 * 2**30)
    monkeypatch.setattr(plan_module.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(plan_module.shutil, "disk_usage", lambda _: Disk(plan.on_disk))
    plan_module.check_disk(plan)
    monkeypatch.setattr(plan_module.shutil, "disk_usage", lambda _: Disk(plan.on_disk - 1))
    with pytest.raises(MemoryPlanError, match=f"{tmp_path} has .* set TMPDIR"):
        plan_module.check_disk(plan)


def test_with_memory_enough_all_cores_and_the_whole_batch_are_used():
    plan = choose_parallel_plan(MILLION, 128, machine(16, cores=4), available=LOTS, replicas=15)
    assert (plan.slots, plan.micro_batch, plan.most_slots, plan.note) == ((4,), 128, None, "")
    assert choose_parallel_plan(MILLION, 128, machine(3, 8), available=LOTS).slots == (2,)
    few = choose_parallel_plan(MILLION, 128, machine(9, 8), slots=3, available=LOTS)
    assert (few.slots, few.most_slots) == ((3,), 3)
    own = choose_parallel_plan(MILLION, 128, machine(9, 8), slots=6, at_most=4, available=LOTS)
    assert own.slots == (6,)


def test_at_most_so_many_slots():
    options = {"micro_batch": 128, "at_most": 4}
    half = choose_parallel_plan(MILLION, 128, machine(9, 8), available=LOTS, **options)
    assert (half.slots, half.most_slots, half.note) == ((4,), 4, "")
    less = int(half.required / HEADROOM) - 2**20
    found = choose_parallel_plan(MILLION, 128, machine(9, 8), available=less, **options)
    assert (found.slots, found.most_slots) == ((3,), 3)
    # where there are no more workers, nothing is limited: other nodes may prefetch
    one = choose_parallel_plan(MILLION, 128, machine(3, 8), available=LOTS, **options)
    assert (one.slots, one.most_slots) == ((2,), None)


def test_a_slot_is_given_up_before_rows_of_128_bytes_are():
    wide = NetworkConfig((2048, 5_000_000, 5_000_000, 2), epsilon=1.0, recipe="width")
    for dtype, least in (("float32", 32), ("bfloat16", 64)):
        two = choose_parallel_plan(
            wide, 128, machine(16), activation_dtype=dtype, micro_batch=least, available=LOTS
        )
        options = {"activation_dtype": dtype, "available": int(two.required / HEADROOM) - 2**20}
        found = choose_parallel_plan(wide, 128, machine(16), **options)
        assert (found.slots, found.micro_batch) == ((1,), least)
        assert "1 slot and a micro-batch of" in found.note


@settings(max_examples=25)
@given(st.integers(2, 32), st.integers(1, 8), st.floats(0.05, 1.5), st.booleans())
def test_no_better_setting_would_fit(ranks, cores, share, phase_two):
    nodes, options = machine(ranks, cores), {"replicas": (ranks - 1) * phase_two}
    available = int(plan_of(MILLION, 128, nodes, **options).required / HEADROOM * share)
    budget = int(HEADROOM * available)

    def fits(slots: int, size: int) -> bool:
        options_here = options | {"slots": slots, "available": budget}
        return plan_of(MILLION, size, nodes, **options_here).required <= budget

    try:
        plan = choose_parallel_plan(MILLION, 128, nodes, available=available, **options)
    except MemoryPlanError:
        assert not fits(1, 1)
        return
    assert plan.required <= budget
    (slots,) = plan.slots
    if plan.micro_batch >= 32:
        assert not fits(slots, 2 * plan.micro_batch) or plan.micro_batch == 128
        assert slots == min(cores, ranks - 1) or not fits(slots + 1, 32)
    else:
        assert slots == 1
        assert not fits(1, 2 * plan.micro_batch)
    assert (plan.note == "") == (plan.micro_batch == 128 and slots == min(cores, ranks - 1))


def test_what_does_not_fit_is_refused_with_what_would():
    config = NetworkConfig((2048, *hidden_sizes(10**9, 10), 2), epsilon=1.0)
    nodes, available = machine(16), 22 * 2**30
    with pytest.raises(MemoryPlanError, match=r"16 ranks with 1 slot need about \d+") as caught:
        choose_parallel_plan(config, 128, nodes, available=available, replicas=15)
    neurons = parse_size(re.search(r"about (\S+) neurons would fit", str(caught.value))[1])
    smaller = NetworkConfig((2048, *hidden_sizes(neurons, 10), 2), epsilon=1.0)
    choose_parallel_plan(smaller, 128, nodes, available=available, replicas=15)
    with pytest.raises(MemoryPlanError, match="fewer slots, or a smaller micro-batch, or about"):
        choose_parallel_plan(
            config, 128, nodes, micro_batch=64, slots=2, available=available, replicas=15
        )
