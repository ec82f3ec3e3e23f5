"""The parts of parallel training, each alone and without MPI."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largesparse import NetworkConfig, SparseMLP, Trainer, TrainingConfig, prune_neurons
from largesparse.machine.mapped_memory import (
    KEPT,
    Arena,
    PrivateMemory,
    Segment,
    make_arrays,
    shapes_of,
)
from largesparse.machine.usage import pss_bytes
from largesparse.model.evolution import evolve
from largesparse.model.workspace import Gradients
from largesparse.parallel import ParallelOptions
from largesparse.parallel.shared.slots import Slot, slot_sizes
from largesparse.parallel.shared.weights import (
    ServerLayer,
    Shape,
    SharedTopology,
    SharedWeights,
    shared_size,
)
from largesparse.parallel.wasap.deal import Batch, Deal, Dispatcher
from largesparse.parallel.wasap.job import node_bytes
from largesparse.parallel.wasap.messages import (
    Lease,
    Leased,
    Progress,
    ReplicaTrained,
    Report,
    SendGradient,
    TrainReplica,
)
from largesparse.parallel.wasap.phase_two import train_replicas
from largesparse.parallel.wasap.replicas import (
    RECOVERY_UPDATES,
    exchanges_connections,
    share_of_replica,
    train_replica,
)
from largesparse.parallel.wasap.retention import SlotMaps, retain_valid
from largesparse.parallel.wasap.updating import Updater
from largesparse.parallel.wasap.worker import Worker
from largesparse.training.history import EpochRecord, ParallelReport
from largesparse.training.memory import MicroBatching
from largesparse.training.prepared import TrainingData
from largesparse.training.stepping import Stepper

RANGES = {"rows": st.integers(1, 60), "batch_size": st.integers(1, 20)}


def small_network(activation="all_relu", seed=0, **options) -> SparseMLP:
    config = NetworkConfig((7, 12, 9, 3), epsilon=2.5, activation=activation, seed=seed, **options)
    return SparseMLP(config, progress=False)


# ------------------------------------------------------------------------------- deal
def deal_out(deal: Deal, choices, stop: int | None = None) -> list:
    """Take mini-batches and apply them, in an order that is drawn; stop after some."""
    applied, taken = [], []
    while not deal.is_done and (stop is None or len(applied) < stop):
        workers = [w for w in range(1, deal.workers + 1) if deal.has_more(w)]
        take = workers and (not taken or (len(taken) < 4 and choices.random() < 0.5))
        if take:
            worker = workers[choices.integers(len(workers))]
            lease = deal.lease(worker)
            kept = choices.integers(1, len(lease) + 1)
            taken += lease[:kept]
            deal.give_back(worker, lease[kept:])
        else:
            batch = taken.pop(choices.integers(len(taken)))
            deal.apply(batch)
            applied.append(batch)
    return applied


def rows_of(batches) -> list[tuple[int, int]]:
    """Every (epoch, place in its order) that mini-batches have."""
    return sorted((b.epoch, place) for b in batches for place in range(b.start, b.stop))


def all_rows(rows: int, epochs: int) -> list[tuple[int, int]]:
    return [(epoch, place) for epoch in range(epochs) for place in range(rows)]


@given(
    **RANGES,
    workers=st.integers(1, 7),
    at_a_time=st.integers(1, 7),
    epochs=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_every_sample_is_dealt_once_an_epoch(rows, batch_size, workers, at_a_time, epochs, seed):
    deal = Deal(rows, batch_size, workers, epochs, at_a_time=min(workers, at_a_time))
    applied = deal_out(deal, np.random.default_rng(seed))
    assert rows_of(applied) == all_rows(rows, epochs)
    assert not any(map(deal.has_more, range(1, workers + 1)))
    assert deal.progress == epochs
    steps = -(-rows // batch_size)
    for batch in applied:
        assert batch.step == batch.epoch * steps + batch.start // batch_size


@given(rows=st.integers(1, 8000), workers=st.integers(1, 20), slots=st.integers(1, 20))
def test_a_lease_is_an_eighth_of_what_a_slot_computes_in_an_epoch(rows, workers, slots):
    at_a_time, batches = min(slots, workers), -(-rows // 32)
    lease = Deal(rows, 32, workers, 1, at_a_time=at_a_time).lease(1)
    assert 1 <= len(lease) <= 16
    assert len(lease) == 1 or 8 * len(lease) * at_a_time <= batches
    if at_a_time < workers:  # those that follow each other are dealt together
        assert [batch.step for batch in lease] == list(range(len(lease)))


def test_workers_of_one_slot_take_turns_of_many_mini_batches():
    # each turn costs the pages of a worker's activations
    deals = [Deal(7000, 32, 15, 1, at_a_time=n) for n in (1, 2, 15)]
    assert [len(deal.lease(1)) for deal in deals] == [15, 8, 1]
    assert len(Deal(7000, 32, 15, 1, at_a_time=1, joined=True).next_joined()) == 15


@given(
    rows=st.integers(1, 400),
    batch_size=st.integers(1, 9),
    workers=st.tuples(*[st.integers(2, 17)] * 3),
    pause=st.integers(1, 60),
    stops=st.tuples(*[st.integers(1, 150)] * 2),
)
def test_one_slot_keeps_the_order_of_sequential_training(rows, batch_size, workers, pause, stops):
    """With pauses every so many mini-batches, for points of a curve, and after two restarts."""
    steps, state, epochs = [], None, 3
    batches = -(-rows // batch_size)
    for count, stop in zip(workers, (*stops, None), strict=True):
        dispatcher = Dispatcher([0] * (count + 1), [1])
        own = {"first_epoch": len(steps) // batches, "state": state, "at_a_time": 1}
        deal = Deal(rows, batch_size, count, epochs, **own)
        end = epochs * batches if stop is None else min(epochs * batches, len(steps) + stop)
        while len(steps) < end:
            worker, slot = next(dispatcher.pairs(deal.has_more))
            dispatcher.begin(worker, slot)
            lease = deal.lease(worker)
            done = len(steps)
            limit = min(end, done - done % pause + pause, done - done % batches + batches)
            kept = lease[: limit - done]
            for batch in kept:
                deal.apply(batch)
            steps += [batch.step for batch in kept]
            deal.give_back(worker, lease[len(kept) :])
            dispatcher.end(worker, slot, is_next=len(kept) < len(lease))
        state = json.loads(json.dumps(deal.state(len(steps) // batches)))
    assert steps == list(range(epochs * batches))


@pytest.mark.parametrize(("nodes", "slots", "found"), [
    ([0, 0, 0], [1], 1), ([0, 0, 0], [4], 2), ([0] * 6 + [1] * 2, [4, 4], 6), ([0, 1], [0, 2], 1),
])  # fmt: skip
def test_workers_that_compute_at_a_time(nodes, slots, found):
    for prefetch in (False, True):
        assert Dispatcher(nodes, slots, prefetch=prefetch).at_a_time == found


def test_nodes_compute_alike():
    """Of turns that do not come out even, epochs give the shorter ones to one worker after another.

    31 workers on two nodes, of four slots each.
    """
    shares = Counter()
    deal = Deal(7000, 32, 31, 31, at_a_time=8)
    for worker in range(1, 32):
        while deal.has_more(worker):
            shares[worker] += len(deal.lease(worker))
    assert sum(shares.values()) == 31 * 219
    assert max(shares.values()) <= min(shares.values()) + 8


@given(
    **RANGES,
    workers=st.tuples(*[st.integers(1, 7)] * 3),
    joined=st.booleans(),
    seed=st.integers(0, 99),
    stops=st.tuples(*[st.integers(1, 40)] * 2),
)
def test_other_workers_go_on_with_what_is_left(rows, batch_size, workers, joined, seed, stops):
    epochs, choices = 4, np.random.default_rng(seed)
    applied, state, done = [], None, 0
    for count, stop in zip(workers, (*stops, None), strict=True):
        last = stop is None
        deal = Deal(
            rows,
            batch_size,
            count,
            epochs,
            first_epoch=done,
            joined=joined and last,
            at_a_time=choices.integers(1, count + 1),
            state=state,
        )
        assert deal.samples_applied == len(rows_of(applied))
        if joined and last:
            while not deal.is_done:
                parts = deal.next_joined()
                assert 1 <= len(parts) <= count
                for batch in parts:
                    deal.apply(batch)
                applied += parts
        else:
            applied += deal_out(deal, choices, stop)
        done = deal.samples_applied // rows  # as the server counts its epochs
        state = json.loads(json.dumps(deal.state(done)))
    assert rows_of(applied) == all_rows(rows, epochs)


def test_a_lease_is_a_part_of_an_epoch_and_what_is_given_back_comes_next():
    assert len(Deal(60_000, 128, 2, 9).lease(1)) == 16
    assert len(Deal(60_000, 128, 15, 9).lease(1)) == 3
    assert len(Deal(60_000, 128, 100, 9).lease(1)) == 1
    deal = Deal(10, 1, 2, 2)
    first = deal.next(1)
    deal.give_back(1, [first])
    deal.give_back(1, [])
    assert deal.next(1) == first
    rest = []
    while deal.has_more(1):
        rest += deal.lease(1)
    deal.give_back(1, rest[-3:])
    assert deal.has_more(1)
    assert [deal.next(1) for _ in range(3)] == rest[-3:]
    assert not deal.has_more(1)


@given(**RANGES, workers=st.integers(1, 5))
def test_joined_parts_are_the_batches_of_a_larger_size(rows, batch_size, workers):
    deal = Deal(rows, batch_size, workers, 2, joined=True)
    size = batch_size * workers
    for step in range(2 * -(-rows // size)):
        epoch, number = divmod(step, -(-rows // size))
        parts = deal.next_joined()
        assert {part.step for part in parts} == {step}
        assert rows_of(parts) == [
            (epoch, place) for place in range(number * size, min(rows, (number + 1) * size))
        ]
        for part in parts:
            deal.apply(part)
    assert deal.is_done


def test_the_state_of_another_batch_size_is_left():
    state = {"batch_size": 4, "missing": {"1": [0, 8]}}
    assert Deal(10, 5, 2, 4, first_epoch=2, state=state).samples_applied == 20
    assert Deal(10, 4, 2, 4, first_epoch=2, state=state).samples_applied == 14


# --------------------------------------------------------------------------- dispatcher
def test_slots_go_to_those_who_wait_longest_on_their_node():
    dispatcher = Dispatcher([0, 0, 0, 0, 1, 1], [2, 1])
    assert (dispatcher.workers, dispatcher.slots) == (5, 3)
    begun = []

    def begin(can_work=lambda worker: True):
        for pair in dispatcher.pairs(can_work):
            dispatcher.begin(*pair)
            begun.append(pair)

    begin(lambda worker: worker != 1)
    assert begun == [(2, 0), (3, 1), (4, 0)]
    begin()
    assert len(begun) == 3  # no slot is free
    dispatcher.end(3, 1)
    begin()
    assert begun[3:] == [(1, 1)]  # who waited longer than 3
    dispatcher.end(4, 0)
    begin()
    assert begun[4:] == [(5, 0)]


def test_with_two_slots_for_each_a_worker_has_its_next_task_before_it_is_done():
    for prefetch, slots, expected in (
        (True, 4, [1, 2, 1, 2]),
        (True, 3, [1, 2]),
        (False, 4, [1, 2]),
    ):
        dispatcher = Dispatcher([0, 0, 0], [slots], prefetch=prefetch)
        begun = []
        for pair in dispatcher.pairs(lambda worker: True):
            dispatcher.begin(*pair)
            begun.append(pair)
        assert [worker for worker, _ in begun] == expected
        assert [slot for _, slot in begun] == list(range(len(expected)))


# ------------------------------------------------------------------------------- slot maps
def by_cell(layer, values) -> dict[tuple[int, int], float]:
    """Values of connections by their cell."""
    rows = np.repeat(np.arange(layer.n_in), np.diff(layer.topology.indptr))
    cells = zip(rows.tolist(), layer.topology.indices.tolist(), strict=True)
    return dict(zip(cells, values.tolist(), strict=True))


def random_gradients(network, rng) -> Gradients:
    gradients = Gradients(network.layers)
    for array in gradients.arrays():
        array[...] = rng.normal(size=array.shape)
    return gradients


@given(
    changes=st.lists(st.sampled_from(["evolve", "prune", "both"]), min_size=1, max_size=4),
    activation=st.sampled_from(["all_relu", "srelu"]),
    seed=st.integers(0, 50),
)
@settings(max_examples=25)
def test_a_gradient_reaches_exactly_the_connections_that_survived(changes, activation, seed):
    rng = np.random.default_rng(seed)
    network, maps = small_network(activation, seed), SlotMaps()
    maps.add([], set())  # generations that nobody needs do not matter
    gradients = random_gradients(network, rng)
    before = [
        by_cell(layer, g) for layer, g in zip(network.layers, gradients.gradients, strict=True)
    ]
    alive = [set(cells) for cells in before]  # cells of connections that have lived throughout
    born = maps.generation
    for change in changes:
        steps = []
        if change != "evolve":
            steps.append(prune_neurons(network, 20))
            for k, layer in enumerate(network.layers):
                alive[k] &= set(by_cell(layer, layer.values))
        if change != "prune":
            removed = []
            for layer in network.layers[:-1]:
                layer.values[:] = rng.permutation(np.arange(1, layer.nnz + 1)).astype(np.float32)
                weakest = layer.values <= np.floor(0.4 * layer.nnz)  # all are positive
                removed.append(
                    set(by_cell(layer, weakest))
                    - {cell for cell, gone in by_cell(layer, weakest).items() if not gone}
                )
            steps.append([evolve(layer, 0.4, rng) for layer in network.layers[:-1]])
            for cells, gone in zip(alive, removed, strict=False):
                cells -= gone  # also where a connection has grown at the same place again
        maps.add(steps, {born})
    valid = retain_valid(gradients, maps.since(born), network.layers)
    for k, layer in enumerate(network.layers):
        found = by_cell(layer, valid.gradients[k])
        expected = {cell: before[k][cell] if cell in alive[k] else 0.0 for cell in found}
        assert found == expected
        assert alive[k] <= set(found)
        dead = np.zeros(layer.n_out, bool) if layer.dead is None else layer.dead
        bias = np.where(dead, 0, gradients.bias_gradients[k])
        np.testing.assert_array_equal(valid.bias_gradients[k], bias)
        if layer.srelu is not None:
            shape = np.where(dead, 0, gradients.by_layer[k]["srelu"])
            np.testing.assert_array_equal(valid.by_layer[k]["srelu"], shape)
    np.testing.assert_array_equal(valid.input_sums, gradients.input_sums)


def test_a_connection_that_came_back_has_no_gradient():
    config = NetworkConfig((2, 2, 2), epsilon=100.0)  # dense: what is removed grows again
    network, maps = SparseMLP(config, progress=False), SlotMaps()
    layer = network.layers[0]
    layer.values[:] = [0.1, 0.2, 0.3, 0.4]
    maps.add([[evolve(layer, 0.5, np.random.default_rng(0))]], {0})
    assert layer.nnz == 4
    gradients = random_gradients(network, np.random.default_rng(0))
    valid = retain_valid(gradients, maps.since(0), network.layers)
    np.testing.assert_array_equal(valid.gradients[0][:2], 0)
    np.testing.assert_array_equal(valid.gradients[0][2:], gradients.gradients[0][2:])
    np.testing.assert_array_equal(valid.gradients[1], gradients.gradients[1])


def test_generations_that_nobody_needs_are_forgotten():
    network, maps = small_network(), SlotMaps()
    rng = np.random.default_rng(0)
    for needed in ({0}, {0, 1}, {1}):
        maps.add([[evolve(layer, 0.3, rng) for layer in network.layers[:-1]]], needed)
    assert len(maps.since(1)) == 2
    with pytest.raises(KeyError):
        maps.since(0)


# ------------------------------------------------------------------------------- memory
OPEN = """
import json, sys
from largesparse.machine.mapped_memory import Segment, arrays_of
path, shapes = json.loads(sys.argv[1])
first, second = arrays_of(Segment.open(path), [(tuple(shape), kind) for shape, kind in shapes])
print(first.sum(), second.tolist())
first[1] = 7
"""


def shared_names() -> set[str]:
    """Files in shared memory, but those of MPI's jobs, which other tests may run at this time."""
    names = {path.name for path in Path("/dev/shm").iterdir()}
    return {name for name in names if not name.startswith("mpich")}


@pytest.mark.parametrize("on_disk", [False, True])
def test_two_processes_share_a_segment_that_leaves_nothing(on_disk, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = shared_names()
    shapes = [((3, 2), "<f4"), ((4,), "<i8")]
    segment = Segment.create(128, on_disk=on_disk)
    arena = Arena(segment.buffer)
    first, second = (arena(shape, kind) for shape, kind in shapes)
    assert (first == 0).all() and first.ctypes.data % 64 == second.ctypes.data % 64 == 0
    first[...], second[...] = 2, [1, 2, 3, 4]
    argument = json.dumps([segment.path, shapes])
    command = [sys.executable, "-c", OPEN, argument]
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    assert out.split("\n")[0] == "12.0 [1, 2, 3, 4]"
    np.testing.assert_array_equal(first, [[2, 2], [7, 7], [2, 2]])
    deadline = time.monotonic() + 30  # what other tests share at this time goes again
    while not shared_names() <= before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert shared_names() <= before
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what a process has")
def test_an_unloaded_file_is_kept_and_is_not_the_process_s_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    segment = Segment.create(2**25, on_disk=True)
    array = Arena(segment.buffer)(2**23)
    array[...] = np.arange(2**23, dtype=np.float32)
    before = pss_bytes()
    segment.unload()
    assert before - pss_bytes() > 0.9 * array.nbytes
    np.testing.assert_array_equal(array, np.arange(2**23, dtype=np.float32))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=5))
def test_an_arena_without_a_buffer_counts_what_one_with_a_buffer_gives(shapes):
    arrays = [np.arange(a * b, dtype=np.float32).reshape(a, b) for a, b in shapes]
    segment, copies = make_arrays(shapes_of(arrays))
    for copy, array in zip(copies, arrays, strict=True):
        copy[...] = array
    count = Arena()
    for shape in shapes:
        assert count(shape).shape == shape
    assert count.nbytes <= max(len(segment.buffer), 1) or not shapes
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(copy, array)


class Node:
    """The server's memory of a node, and a slot, in this process."""

    def __init__(self, network: SparseMLP, micro_batch: int = 4) -> None:
        shape = Shape.of(network, MicroBatching(micro_batch))
        self.topology = SharedTopology(
            shape, Arena(Segment.create(shared_size(SharedTopology, shape)).buffer)
        )
        segment = Segment.create(shared_size(SharedWeights, shape))
        self.weights = SharedWeights(shape, Arena(segment.buffer), segment)
        for k, layer in enumerate(network.layers):
            network.layers[k] = ServerLayer(layer, k, self.topology, self.weights)
        size = shared_size(Slot, shape, self.topology)
        self.segment = Segment.create(size)
        self.slot, self.other = (
            Slot(shape, self.topology, Arena(self.segment.buffer)) for _ in range(2)
        )


def assert_like(network: SparseMLP, other: SparseMLP) -> None:
    for layer, twin in zip(network.layers, other.layers, strict=True):
        assert by_cell(layer, layer.values) == by_cell(twin, twin.values)
        order = layer.topology.to_output_order
        np.testing.assert_array_equal(layer.values_by_output[order], layer.values)
        np.testing.assert_array_equal(layer.bias, twin.bias)
        np.testing.assert_array_equal(
            np.zeros(0) if layer.dead is None else layer.dead,
            np.zeros(0) if twin.dead is None else twin.dead,
        )


def test_a_slot_takes_the_weights_as_they_are():
    server, rng = small_network("srelu"), np.random.default_rng(0)
    node = Node(server)
    assert node.slot.version == -1
    for change in ("nothing", "update", "evolve", "prune", "nothing"):
        if change == "update":
            for layer in server.layers:
                layer.values += rng.normal(size=layer.nnz).astype(np.float32)
                layer.bias += 1
            node.topology.version += 1
        elif change != "nothing":
            if change == "prune":
                prune_neurons(server, 20)
            else:
                for layer in server.layers[:-1]:
                    evolve(layer, 0.3, rng)
            for k, layer in enumerate(server.layers):
                node.topology.store_dead(k, layer.dead)
            node.topology.generation += 1
        node.slot.take(node.weights)
        assert_like(node.slot.network, server)
        assert node.slot.version == node.topology.version
        assert [g.size for g in node.slot.workspace.gradients] == server.layer_connections
        node.other.take(node.weights)  # another worker finds the slot up to date
        assert_like(node.other.network, server)


def test_a_gradient_is_sent_as_it_was_computed_though_neurons_were_pruned_since():
    server = small_network()
    node, rng = Node(server), np.random.default_rng(0)
    node.slot.take(node.weights)
    connections = server.layer_connections
    for array in node.slot.workspace.arrays():
        array[...] = rng.normal(size=array.shape)
    expected = [array.copy() for array in node.slot.workspace.arrays()]
    expected += [array.copy() for array in node.slot.arrays()]
    prune_neurons(server, 40)
    node.topology.generation += 1
    node.slot._show_topology()  # as an evaluation does
    assert server.connections < sum(connections)
    sent: list[np.ndarray] = []
    worker = SimpleNamespace(_slots=[node.slot], _send=sent.extend)
    Worker._send_gradient(worker, SendGradient(0, connections, True))  # type: ignore[arg-type]
    for array, other in zip(sent, expected, strict=True):
        np.testing.assert_array_equal(array, other)


def test_a_snapshot_stays_as_it_is_while_the_server_updates():
    server = small_network()
    node = Node(server)
    node.slot.take(node.weights)
    kept = [layer.values.copy() for layer in server.layers]
    for layer in server.layers:
        layer.values[...] = 0
    node.topology.version += 1
    for layer, values in zip(node.slot.network.layers, kept, strict=True):
        np.testing.assert_array_equal(layer.values, values)
    assert node.slot.version == 0


@pytest.mark.parametrize("backend", ["scipy", "fused"])
def test_the_gradient_of_a_slot_is_that_of_the_network(backend):
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(10, 7)).astype(np.float32), rng.integers(0, 3, 10).astype(np.int32)
    config = TrainingConfig(batch_size=10, micro_batch=4, backend=backend, threads=1)
    plain, server = small_network("srelu"), small_network("srelu")
    node = Node(server)
    node.slot.take(node.weights)
    expected, found = Trainer(plain, config), None
    found = Trainer(node.slot.network, config, workspace=node.slot.workspace)
    losses = [trainer.gradient(X, y, np.arange(10)) for trainer in (expected, found)]
    assert losses[0] == losses[1]
    pairs = zip(expected.workspace.arrays(), node.slot.workspace.arrays(), strict=True)
    for array, other in pairs:
        np.testing.assert_array_equal(other, array)


@pytest.mark.parametrize("activation", ["all_relu", "srelu"])
def test_a_worker_updates_the_shared_weights_as_the_server_does(activation):
    rng = np.random.default_rng(3)
    config = TrainingConfig(learning_rate=0.1, backend="scipy", threads=1)
    options = ParallelOptions("wasap", 1)
    plain, server = small_network(activation), small_network(activation)
    node = Node(server)
    updater = Updater(node.topology, node.weights, config, options, 2, 10)
    for step in range(3):
        if step == 2:  # the topology changes, and the worker sees it
            prune_neurons(plain, 30), prune_neurons(server, 30)
            node.topology.generation += 1
        node.slot.take(node.weights)
        gradients = node.slot.workspace
        for array in gradients.arrays():
            array[...] = rng.normal(size=array.shape)
        plain.update_(gradients, config.optimizer_at(), 0.1)
        network = node.slot.updated(node.weights)
        found = updater.update(network, gradients, 4, version=step, slot=node.slot)
        assert found == 0
        assert (node.topology.version, node.topology.samples) == (step + 1, 4 * (step + 1))
        assert node.slot.version == step + 1
        for own, theirs, taken in zip(plain.layers, server.layers, network.layers, strict=True):
            for name in ("values", "velocity", "bias", "bias_velocity"):
                np.testing.assert_array_equal(getattr(theirs, name), getattr(own, name))
            np.testing.assert_array_equal(taken.values_by_output, own.values_by_output)
            assert own.srelu is None or np.array_equal(theirs.srelu, own.srelu)
    for own, taken in zip(plain.layers, node.slot.network.layers, strict=True):
        np.testing.assert_array_equal(taken.values, own.values)
        np.testing.assert_array_equal(taken.bias, own.bias)


def test_nothing_is_updated_when_the_epoch_is_over():
    server = small_network()
    node = Node(server)
    node.slot.take(node.weights)
    options = ParallelOptions("wasap", 1)
    updater = Updater(node.topology, node.weights, TrainingConfig(), options, 2, 10)
    node.topology.samples = 10
    before = [layer.values.copy() for layer in server.layers]
    arguments = node.slot.updated(node.weights), node.slot.workspace, 4
    assert updater.update(*arguments, version=0, slot=node.slot, limit=10) is None
    assert (node.topology.version, node.topology.samples) == (0, 10)
    for layer, values in zip(server.layers, before, strict=True):
        np.testing.assert_array_equal(layer.values, values)
    assert updater.update(*arguments, version=0, slot=node.slot, limit=11) == 0


class LeasedWorker(Worker):
    """A worker on a node in this process, which keeps what it sends."""

    def __init__(self, node: Node, config: TrainingConfig, X, y) -> None:
        self.sent: list[Leased] = []
        line = SimpleNamespace(send=self.sent.append)
        comm = SimpleNamespace(rank=1, size=3)
        super().__init__(comm, line, None)  # type: ignore[arg-type]
        self._config, self._topology, self._weights = config, node.topology, node.weights
        rows, none = np.arange(len(y)), np.arange(0)
        self._data = TrainingData(X, y, None, rows, rows, none, None)
        self._slots, self._activations = [node.slot], PrivateMemory(0)
        self._steppers = [Stepper(node.slot.network, config, workspace=node.slot.workspace)]
        options = ParallelOptions("wasap", 1)
        self._updater = Updater(node.topology, node.weights, config, options, 2, len(y))


def test_a_lease_ends_with_the_epoch():
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(40, 7)).astype(np.float32), rng.integers(0, 3, 40).astype(np.int32)
    config = TrainingConfig(batch_size=4, backend="scipy", threads=1)
    node = Node(small_network())
    worker = LeasedWorker(node, config, X, y)
    batches = [Batch(0, start, start + 4, start // 4) for start in range(0, 40, 4)]

    worker._train(Lease(0, batches[:3], limit=40))
    assert [staleness for _, staleness in worker.sent[0].updates] == [0, 0, 0]
    assert worker.sent[0].push is None

    worker._train(Lease(0, batches[3:], limit=20))  # two fill the epoch: the third is not begun
    assert len(worker.sent[1].updates) == 2 and worker.sent[1].push is None
    assert (node.topology.samples, node.topology.version) == (20, 5)

    gradient = worker._gradient

    def slowly(stepper, batch):
        loss = gradient(stepper, batch)
        node.topology.samples += 4  # another worker was faster
        node.topology.version += 1
        return loss

    worker._gradient = slowly  # type: ignore[method-assign]
    worker._train(Lease(0, batches[5:], limit=32))
    (_, staleness), push = worker.sent[2].updates[0], worker.sent[2].push
    assert len(worker.sent[2].updates) == 1 and staleness == 1
    assert push is not None and push.task.batch == batches[6] and push.version == 7
    assert node.topology.samples == 32

    worker._gradient = gradient  # type: ignore[method-assign]
    node.topology.stopping = True  # the job is to be saved: nothing is begun
    worker._train(Lease(0, batches[7:], limit=40))
    assert worker.sent[3].updates == [] and worker.sent[3].push is None


# ------------------------------------------------------------------------------- options
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("phase_one_epochs", 0),
        ("phase_one_epochs", 1.5),
        ("slots", 0),
        ("slots", True),
        ("ranks_per_node", 0),
        ("chunk_bytes", 0),
        ("chunk_bytes", 2**31),
        ("staleness_power", -0.1),
        ("staleness_power", float("nan")),
        ("delay_compensation", -1),
        ("initial_rate_factor", 0),
        ("initial_rate_epochs", -1),
    ],
)
def test_options_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        ParallelOptions(**{"algorithm": "wasap", "phase_one_epochs": 1} | {name: value})


def test_the_rate_falls_with_staleness_or_grows_with_the_workers():
    adaptive = ParallelOptions(
        "wasap", 9, staleness_power=0.5, initial_rate_factor=3, initial_rate_epochs=2
    )
    assert adaptive.rate_factor(1.9, 3, 5) == pytest.approx(3 / 2)
    assert adaptive.rate_factor(2.0, 3, 5) == pytest.approx(1 / 2)
    assert ParallelOptions("wasap", 9).rate_factor(0.0, 9, 5) == 1
    for algorithm in ("wassp", "allreduce"):
        factors = [ParallelOptions(algorithm, 9).rate_factor(p, 0, 4) for p in (0, 2.5, 5, 8)]
        assert factors == pytest.approx([1, 2.5, 4, 4])


def test_delayed_gradients_are_compensated():
    network, rng = small_network("srelu"), np.random.default_rng(0)
    node = Node(network)
    then = [array.copy() for array in node.weights.snapshot(node.topology.connections)]
    for array in node.weights.snapshot(node.topology.connections):
        array += rng.normal(size=array.shape).astype(np.float32)
    now = [array.copy() for array in node.weights.snapshot(node.topology.connections)]
    gradients = random_gradients(network, rng)
    flat = [array for arrays in gradients.by_layer for array in arrays.values()]
    expected = [
        g + 0.5 * g.astype(np.float64) ** 2 * (w - old)
        for g, w, old in zip(flat, now, then, strict=True)
    ]
    options = ParallelOptions("wasap", 1, delay_compensation=0.5)
    updater = Updater(node.topology, node.weights, TrainingConfig(), options, 1, 10)
    updater._compensate(gradients, then)
    for found, other in zip(flat, expected, strict=True):
        np.testing.assert_allclose(found, other, rtol=1e-5, atol=1e-6)


def test_running_statistics_have_no_delay_to_compensate():
    network, rng = small_network(batch_norm=True), np.random.default_rng(0)
    node = Node(network)
    then = [array.copy() for array in node.weights.snapshot(node.topology.connections)]
    for arrays in node.weights.parameters:
        for array in arrays.values():
            array += 1
    gradients = random_gradients(network, rng)
    before = [arrays["running"].copy() for arrays in gradients.by_layer[:-1]]
    options = ParallelOptions("wasap", 1, delay_compensation=0.5)
    Updater(node.topology, node.weights, TrainingConfig(), options, 1, 10)._compensate(
        gradients, then
    )
    for arrays, running in zip(gradients.by_layer, before, strict=False):
        np.testing.assert_array_equal(arrays["running"], running)


def test_the_report_counts_staleness():
    report = ParallelReport("wasap", ranks=4, nodes=1, slots=[3], threads=[1], phase_one_epochs=2)
    assert (report.mean_staleness, report.max_staleness) == (0, 0)
    for staleness in (0, 2, 2, 4):
        report.count(staleness)
    assert report.staleness_record() == {"mean": 2.0, "max": 4, "histogram": [1, 0, 2, 0, 1]}


@given(
    epochs=st.integers(1, 60),
    interval=st.integers(1, 7),
    rows=st.integers(1, 20_000),
    batch_size=st.integers(1, 300),
    count=st.integers(1, 20),
)
def test_replicas_recover_from_every_evolution(epochs, interval, rows, batch_size, count):
    count, batch_size = min(count, rows), min(batch_size, max(1, rows // count))
    config = TrainingConfig(epochs=epochs, batch_size=batch_size, evolution_interval=interval)
    due = range(interval, epochs, interval)
    chosen = [e for e in due if exchanges_connections(e, config, rows, count)]
    if count == 1:
        assert chosen == list(due)
        return
    shares = (share_of_replica(range(rows), batch_size, r, count) for r in range(count))
    updates = min(map(len, shares))
    recovery = -(-RECOVERY_UPDATES // updates)  # epochs
    gaps = np.diff(chosen)
    assert (updates * gaps >= RECOVERY_UPDATES).all()
    assert all(updates * (epochs - epoch) >= RECOVERY_UPDATES for epoch in chosen)
    assert (gaps < recovery + interval).all()  # no rarer than that
    if epochs >= 2 * (recovery + interval):
        assert chosen


def test_a_resumed_phase_two_counts_what_its_replicas_had_trained():
    """Three replicas of 2 epochs, two at a time; the first two had trained one of them."""
    config = TrainingConfig(epochs=4, batch_size=8, backend="scipy", threads=1)
    trainer, rows = Trainer(small_network(), config), 50
    trainer.state.epoch = 2
    tasks, todo = [], []

    class Links:
        def begin_replica(self, worker, task):
            tasks.append(task)
            for epoch in (3, 4):
                resumed = epoch == 3 and task.replica < 2
                record = EpochRecord(epoch, None, None, running_loss=task.replica, epoch_s=7.0)
                todo.append(Progress(task.replica, record, resumed))
            todo.append(ReplicaTrained(worker, task, "", [], []))

        def next(self):
            return todo.pop(0)

    bar = SimpleNamespace(n=100, set_postfix=lambda **_: None)
    bar.update = lambda count: setattr(bar, "n", bar.n + count)
    server = SimpleNamespace(
        trainer=trainer,
        links=Links(),
        make_dispatcher=lambda prefetch: Dispatcher([0, 0, 0], [2], prefetch=prefetch),
        report=SimpleNamespace(phase_two_s=0.0),
        replicas=3,
        run=SimpleNamespace(
            data=SimpleNamespace(train_rows=np.arange(rows)),
            request=SimpleNamespace(check=lambda: None),
            checkpoint=None,
            bar=bar,
        ),
    )
    train_replicas(server)
    assert [task.replica for task in tasks] == [0, 1, 2]
    assert bar.n == 4 * rows
    third, fourth = trainer.history
    assert (third.epoch, fourth.epoch, third.running_loss, fourth.running_loss) == (3, 4, 1, 1)
    assert third.epoch_s == pytest.approx((2 * 7 / 2 + server.report.phase_two_s) / 2)


def test_a_replica_tells_of_the_epochs_that_its_checkpoint_has():
    trainer = Trainer(small_network(), TrainingConfig(epochs=4, backend="scipy", threads=1))
    trainer.state.epoch = 4  # all of them
    trainer.history.epochs += [EpochRecord(epoch, None, None) for epoch in (2, 3, 4)]
    task = TrainReplica(0, 0, 3, 2, 10, None, False, None)
    told = list(train_replica(trainer, task, None, None, None))
    assert [record.epoch for record in told] == [3, 4]


def test_replicas_that_are_not_trained_at_once_do_not_add_up():
    reports = [
        Report(0, 0, 0, pss_bytes=10, slot_bytes=extra, rss_bytes=0) for extra in (0, 5, 7, 6)
    ]
    assert node_bytes(reports, slots=2) == 4 * 10 + 7 + 6
    assert node_bytes(reports, slots=8) == 4 * 10 + 18


def test_private_memory_is_given_back_where_it_is_much():
    for size, kept in ((KEPT, True), (KEPT + 2**20, False)):
        memory = PrivateMemory(size)
        (array,) = [Arena(memory.buffer)(1000)]
        array[:] = 1
        memory.release()
        assert np.all(array == (1 if kept else 0))
        array[:] = 2  # it can be used again
        assert Arena(memory.buffer)(1000)[999] == 2


def test_activations_of_a_slot_are_its_user_s():
    network = small_network()
    shape = Shape.of(network, MicroBatching(8))
    topology = SharedTopology(shape, Arena(Segment.create(2**20).buffer))
    shared, own = slot_sizes(shape, topology)
    assert shared + own == pytest.approx(shared_size(Slot, shape, topology), abs=1024)
    segment, memory = Segment.create(shared), PrivateMemory(own)
    users = [Slot(shape, topology, Arena(segment.buffer), Arena(memory.buffer)) for _ in range(2)]
    others = Slot(shape, topology, Arena(segment.buffer), Arena(PrivateMemory(own).buffer))
    users[0].workspace.activations(0, 8)[:] = 3
    users[0].workspace.gradients[0][:] = 4
    assert np.all(users[1].workspace.activations(0, 8) == 3)
    assert np.all(others.workspace.activations(0, 8) == 0)
    assert np.all(others.workspace.gradients[0] == 4)
