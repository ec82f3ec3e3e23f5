"""Every order of events of small asynchronous trainings: no deadlock, no update lost or made twice.

Rank 0's own code runs (`Server`, `Links`, `Dispatcher`, `Deal`, phase two); workers, messages and
transfers are a model of it, in which a scheduler decides at every point what happens next. All its
decisions are gone through, one training each, until none is left.
"""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest

from largesparse import TrainingConfig
from largesparse.model.losses import ScoreSums
from largesparse.parallel.options import ParallelOptions
from largesparse.parallel.wasap import messages, phase_two
from largesparse.parallel.wasap import server as server_module
from largesparse.parallel.wasap.deal import Deal, Dispatcher
from largesparse.parallel.wasap.links import Links
from largesparse.parallel.wasap.server import Server
from largesparse.training.history import EpochRecord, ParallelReport
from largesparse.training.state import TrainingState
from largesparse.training.trainer import Run


class Scheduler:
    """Goes through all sequences of decisions, depth first."""

    def __init__(self):
        self.made: list[list[int]] = []  # [decision, how many there are]
        self.place = 0

    def choose(self, count):
        """Return a number below count: another one in every training that comes here alike."""
        if self.place == len(self.made):
            self.made.append([0, count])
        decision, known = self.made[self.place]
        assert known == count, "the training depends on more than the decisions"
        self.place += 1
        return decision

    def trainings(self):
        """Yield once for every sequence of decisions."""
        while True:
            self.place = 0
            yield
            while self.made and self.made[-1][0] + 1 == self.made[-1][1]:
                self.made.pop()
            if not self.made:
                return
            self.made[-1][0] += 1


class Transfer:
    """Arrays on their way between rank 0 and a worker on another node."""

    nbytes = 0

    def __init__(self, is_ready, at_the_end=lambda: None):
        self.is_ready, self.at_the_end, self.is_done = is_ready, at_the_end, False

    def done(self):
        return self.is_done


class Memory:
    """Where a gradient is; it knows of which mini-batch."""

    batch = None

    def resize_(self, connections):
        pass

    def arrays(self):
        return []


class Machine:
    """Workers, their slots, and what is on its way; the channel of `Links`."""

    def __init__(self, scheduler, nodes, slots):
        self.scheduler, self.nodes = scheduler, nodes
        ranks = range(1, len(nodes))
        self.topology = SimpleNamespace(
            samples=0, version=0, generation=0, stopping=False, connections=[]
        )
        self.slots = [[SimpleNamespace(workspace=Memory(), parameters=[]) for _ in range(n)]
                      for n in slots]  # fmt: skip
        self.users = {}  # (node, slot) -> rank
        self.inboxes = {rank: deque() for rank in ranks}
        self.outboxes = {rank: deque() for rank in ranks}
        self.transfers = []
        self.applied = []
        self.receiving = set()  # ranks that receive weights
        self.ready_to_send = None  # the rank that sends a gradient
        self.waits = {}  # rank -> when it can go on
        self.workers = {rank: self.work(rank) for rank in ranks}
        for rank in ranks:
            self.waits[rank] = next(self.workers[rank])

    # ---------------------------------------------------------------- the channel
    def send(self, rank, message):
        self.inboxes[rank].append(message)

    def receive(self, timeout=None):
        """Let things happen until a message comes to rank 0, or a transfer ends."""
        while True:
            events = [("step", rank) for rank, ready in self.waits.items() if ready()]
            events += [("deliver", rank) for rank, box in self.outboxes.items() if box]
            events += [("end", t) for t in self.transfers if t.is_ready()]
            assert events, "deadlock: nothing can happen, and rank 0 waits"
            kind, what = events[self.scheduler.choose(len(events))]
            if kind == "deliver":
                return what, self.outboxes[what].popleft()
            if kind == "end":
                self.transfers.remove(what)
                what.at_the_end()
                what.is_done = True
                return None
            self.waits[what] = next(self.workers[what])

    # ---------------------------------------------------------------- a worker
    def work(self, rank):
        """Do what is asked for, in its order; yields when others may do something before."""
        inbox, node = self.inboxes[rank], self.nodes[rank]
        always = bool(1).__bool__
        while True:
            yield lambda: bool(inbox)
            task = inbox.popleft()
            if isinstance(task, messages.SendGradient):
                self.ready_to_send = rank
                yield lambda: self.ready_to_send != rank
                continue
            if isinstance(task, messages.TrainReplica):
                yield always
                self.outboxes[rank].append(messages.ReplicaTrained(rank, task, "", [], []))
                continue
            place = node, task.slot
            assert self.users.get(place) is None, "two workers in one slot"
            self.users[place] = rank
            memory = self.slots[node][task.slot].workspace
            if isinstance(task, messages.Lease):
                answer = yield from self.train(rank, task, memory, always)
            else:
                if task.weights.sent:
                    self.receiving.add(rank)
                    yield lambda: rank not in self.receiving
                yield always
                if isinstance(task, messages.Compute):
                    assert memory.batch is None, "a gradient is overwritten"
                    memory.batch = task.batch
                    answer = messages.Push(rank, task, 0.5, task.weights.version, [])
                else:
                    answer = messages.Evaluated(rank, task, 0.0, ScoreSums())
            self.users[place] = None
            self.outboxes[rank].append(answer)

    def train(self, rank, lease, memory, always):
        """As `Worker._train`."""
        topology, updates, push = self.topology, [], None
        assert memory.batch is None, "a gradient is overwritten"
        for batch in lease.batches:
            if topology.samples >= lease.limit or topology.stopping:
                break
            version, generation = topology.version, topology.generation
            memory.batch = batch
            yield always
            assert generation == topology.generation, "an evolution while a worker computes"
            if topology.samples >= lease.limit:
                weights = messages.Weights(version, generation, False)
                task = messages.Compute(lease.slot, weights, batch)
                push = messages.Push(rank, task, 0.5, version, [])
                break
            updates.append((0.5, topology.version - version))
            self.apply(memory)
        return messages.Leased(rank, lease, updates, push)

    def apply(self, memory):
        """An update of the weights by the gradient in a memory."""
        batch, memory.batch = memory.batch, None
        self.applied.append(batch)
        self.topology.version += 1
        self.topology.samples += batch.stop - batch.start


class ModelLinks(Links):
    """Rank 0's side of the nodes, without arrays and without MPI."""

    def __init__(self, machine):
        self.machine, self._channel, self.topology = machine, machine, machine.topology
        self._nodes = SimpleNamespace(node=machine.nodes)
        self.slots = machine.slots[0]
        self.weights = SimpleNamespace(snapshot=lambda connections: [])
        self._held, self._outbox, self._offers = {}, [], deque()
        self._keep_snapshots = self._replicated = False
        self._sending = self._receiving = self._inbox_user = None
        self._inbox = Memory()
        self.computing = self.bytes_moved = 0

    def _start_send(self, rank, arrays):
        receiving = self.machine.receiving
        transfer = Transfer(lambda: rank in receiving, lambda: receiving.remove(rank))
        self.machine.transfers.append(transfer)
        return transfer

    def _start_receive(self, rank, arrays):
        push, machine = self._inbox_user, self.machine
        memory = machine.slots[machine.nodes[rank]][push.task.slot].workspace

        def arrive():
            assert memory.batch == push.task.batch, "another gradient than was offered"
            assert self._inbox.batch is None, "a gradient is overwritten as it is received"
            self._inbox.batch, memory.batch = memory.batch, None
            machine.ready_to_send = None

        transfer = Transfer(lambda: machine.ready_to_send == rank, arrive)
        machine.transfers.append(transfer)
        return transfer

    def begin_replica(self, worker, task):
        self.machine.send(worker, task)  # weights are sent while nothing else is

    def send_topology(self):
        assert self.computing == 0, "an evolution while gradients are computed"


class ModelTrainer:
    """A trainer without a network: it counts."""

    threads, micro_batch = 1, 1

    def __init__(self, epochs, phase_two):
        self.config = TrainingConfig(epochs=epochs + phase_two, backend="scipy")
        self.network = SimpleNamespace(
            connections=0, layers=[], config=None, classes=None, layer_connections=[]
        )
        self.backend = SimpleNamespace(threads=lambda count: np.errstate())
        self.state = TrainingState()

    def evolve_if_due(self, data, exchange):
        return [[]]


class ModelServer(Server):
    """Records epochs without losses; its evaluations are real."""

    evaluated_rows = 1  # as many pieces

    def record(self):
        self.evaluate("train", self.evaluated_rows)
        assert self.links.topology.samples == (self.state.epoch + 1) * self.links.rows
        self.state.epoch += 1
        self.state.part = None
        self.state.history.epochs.append(EpochRecord(self.state.epoch, None, None))


def train(scheduler, nodes, slots, batches, epochs, replicas):
    """Train once, by the scheduler's decisions; return the machine."""
    machine = Machine(scheduler, nodes, slots)
    links = ModelLinks(machine)
    links.rows = batches
    trainer = ModelTrainer(epochs, bool(replicas))
    data = SimpleNamespace(train_rows=np.arange(batches))
    bar = SimpleNamespace(update=lambda rows: None, set_postfix=lambda **named: None)
    request = SimpleNamespace(signal=None, check=lambda: None)
    server = ModelServer(
        trainer,
        Run(data, bar, request, checkpoint=None, callbacks=[]),
        links,
        lambda prefetch: Dispatcher(nodes, slots, prefetch=prefetch),
        ParallelOptions("wasap", phase_one_epochs=epochs),
        ParallelReport("wasap", len(nodes), 1, slots, [1], epochs),
    )

    def update(network, gradients, samples, *, limit, **_):
        if machine.topology.samples >= limit:
            return None
        machine.apply(gradients)
        return 0

    server._updater = SimpleNamespace(update=update)
    at_a_time = Dispatcher(nodes, slots).at_a_time
    deal = Deal(batches, 1, len(nodes) - 1, epochs, at_a_time=at_a_time)
    server.train_asynchronously(deal)
    assert deal.is_done and links.computing == 0
    assert not server._arrived and not links.waiting
    if replicas:
        server.replicas = replicas
        trained = phase_two.train_replicas(server)
        assert [each.task.replica for each in trained] == list(range(replicas))
    return machine


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    monkeypatch.setattr(server_module, "retain_valid", lambda gradients, maps, layers: gradients)
    monkeypatch.setattr(phase_two, "result_bytes", lambda connections, config: 0)
    monkeypatch.setattr(phase_two, "_summary", lambda epoch, found, server: None)


HERE, APART, BOTH = [0, 0, 0], [0, 1, 1], [0, 0, 1]
CASES = {  # nodes of the ranks, slots of the nodes, mini-batches, epochs of phase one, replicas
    "two workers here, one slot": (HERE, [1], 3, 2, 2),
    "two workers here, two slots": (HERE, [2], 2, 2, 0),
    "two workers here, phase two": (HERE, [2], 2, 1, 2),
    "one worker here, two slots": ([0, 0], [2], 3, 2, 1),
    "one here, one apart": (BOTH, [1, 1], 2, 1, 0),
    "two apart, one slot": (APART, [0, 1], 2, 2, 0),
    "one apart, two slots": ([0, 1], [0, 2], 2, 2, 0),
}
LARGER = {
    "two workers here": (HERE, [2], 5, 3, 2),
    "four workers here, three slots": ([0] * 5, [3], 9, 3, 4),
    "one here, one apart": (BOTH, [1, 1], 5, 3, 2),
    "two apart": (APART, [0, 2], 5, 3, 2),
    "on three nodes": ([0, 0, 1, 1, 2], [1, 1, 2], 9, 3, 4),
}


def check(machine, batches, epochs):
    """Every mini-batch was applied, and once."""
    applied = sorted((batch.epoch, batch.start) for batch in machine.applied)
    assert applied == [(epoch, start) for epoch in range(epochs) for start in range(batches)]


@pytest.mark.parametrize("case", CASES)
def test_every_order_of_events_applies_every_gradient_once(case):
    nodes, slots, batches, epochs, _ = CASES[case]
    scheduler, orders = Scheduler(), set()
    for _ in scheduler.trainings():
        machine = train(scheduler, *CASES[case])
        check(machine, batches, epochs)
        orders.add(tuple(machine.applied))
    assert (len(orders) > 1) == (len(nodes) > 2 and sum(slots) > 1)


@pytest.mark.parametrize("case", LARGER)
def test_many_orders_of_events_of_larger_trainings(case, monkeypatch):
    late = []

    def retain(gradients, maps, layers):
        late.append(gradients.batch)
        return gradients

    monkeypatch.setattr(server_module, "retain_valid", retain)
    monkeypatch.setattr(ModelServer, "evaluated_rows", 4)
    rng = np.random.default_rng(0)
    dice = SimpleNamespace(choose=lambda count: int(rng.integers(count)))
    _, _, batches, epochs, _ = LARGER[case]
    for _ in range(200):
        check(train(dice, *LARGER[case]), batches, epochs)
    assert late  # some gradients were applied after an evolution that they had not seen
