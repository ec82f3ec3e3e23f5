"""Rank 0: the parameter server of phase one, and what it evaluates and records."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import partial

import numpy as np

from ...model.exploration import explored_share
from ...model.importance import active_neurons
from ...model.losses import ScoreSums
from ...model.workspace import Gradients
from ...training.curve import held_out, is_due, measure, samples_of_next
from ...training.history import EpochRecord, ParallelReport
from ...training.trainer import Run, Trainer
from ..options import ParallelOptions
from . import messages
from .allreduce import Representative, add_
from .deal import Batch, Deal, Dispatcher, samples
from .links import Links
from .replicas import exchanges_connections
from .retention import SlotMaps, retain_valid
from .updating import Updater

SMALL = 1_000_000  # connections up to which one thread updates fastest
PIECES = 2  # of an evaluation, for every slot


class Server:
    """Applies gradients, evolves the topology, evaluates by the workers, and keeps the history.

    The layers of the trainer's network are shared ones. `make_dispatcher(prefetch)` returns a
    Dispatcher.
    """

    def __init__(
        self,
        trainer: Trainer,
        run: Run,
        links: Links,
        make_dispatcher: Callable[[bool], Dispatcher],
        options: ParallelOptions,
        report: ParallelReport,
    ) -> None:
        self.trainer, self.run, self.links = trainer, run, links
        self.options, self.report = options, report
        self.state = trainer.state
        self.stopped = False
        self.replicas_apart = False  # phase two has begun, and its result is not saved yet
        self.make_dispatcher = make_dispatcher
        self._dispatcher = make_dispatcher(options.algorithm == "wasap")
        self.replicas = self._dispatcher.workers
        if self.state.epoch >= options.phase_one_epochs:  # phase two had begun, with as many
            self.replicas = int((self.state.parallel or {}).get("replicas", self.replicas))
        self._maps = SlotMaps()
        self._arrived: deque[messages.Push] = deque()

        self._threads = trainer.threads if trainer.network.connections > SMALL else 1
        self._updater = Updater(
            links.topology,
            links.weights,
            trainer.config,
            options,
            self._dispatcher.workers,
            len(run.data.train_rows),
        )
        self._started = 0.0  # of the epoch

    # ------------------------------------------------------------------ asynchronous
    def train_asynchronously(self, deal: Deal) -> None:
        """Let every gradient be applied as it is ready, until the deal has been trained on (WASAP).

        Workers on this node update the weights themselves; this rank does it by the gradients of
        the others. At the end of an epoch no new gradients are begun; those that are being
        computed then are applied after the evolution, as far as they are still valid.
        """
        self._begin_epoch()
        while not deal.is_done and not self.stopped:
            if self.run.request.signal:
                self._end_leases(deal)
            end, limit = (self.state.epoch + 1) * deal.rows, self._next_pause(deal)
            if self._arrived and self._apply(self._arrived[0], deal, limit):
                self._arrived.popleft()
            elif deal.samples_applied < limit:
                if self.links.topology.samples < limit:
                    self._grant(deal, limit)
                self._take(deal)
            if deal.samples_applied >= limit:
                while self.links.computing:
                    self._take(deal)
                self._add_point(deal)
                if deal.samples_applied >= end:
                    self.finish_epoch(deal)

    def _grant(self, deal: Deal, limit: int) -> None:
        """Let workers that wait begin with their next mini-batches."""

        def can_work(worker: int) -> bool:
            return deal.has_more(worker) and self.links.can_begin(worker)

        for worker, slot in self._dispatcher.pairs(can_work):
            if self.links.is_here(worker):
                self._dispatcher.begin(worker, slot)
                self.links.lease(worker, messages.Lease(slot, deal.lease(worker), limit))
            else:
                self._begin(worker, slot, deal.next(worker))

    def _begin(self, worker: int, slot: int, batch: Batch, *joined: int) -> None:
        self._dispatcher.begin(worker, slot)
        self.links.begin(worker, messages.Compute, slot, batch, *joined)

    def _take(self, deal: Deal, wanted: Callable[[messages.Push], bool] | None = None) -> None:
        """Wait for something to happen; keep a gradient that arrives."""
        message = self.links.next(wanted)
        if isinstance(message, messages.Push):
            self._arrived.append(message)
        elif isinstance(message, messages.Leased):
            self._end_lease(message, deal)

    def _end_lease(self, leased: messages.Leased, deal: Deal) -> None:
        """Count what a worker on this node has done."""
        batches = leased.task.batches
        for batch, (loss, staleness) in zip(batches, leased.updates, strict=False):
            self._count(deal, batch, loss, staleness)
        rest = batches[len(leased.updates) :]
        if leased.push is None:
            self._dispatcher.end(leased.worker, leased.task.slot, is_next=bool(rest))
        else:
            self._arrived.append(leased.push)
            rest = rest[1:]
        deal.give_back(leased.worker, rest)

    def _apply(self, push: messages.Push, deal: Deal, limit: int) -> bool:
        """Update the weights by a gradient that has arrived, unless the epoch is over."""
        trainer, task = self.trainer, push.task
        gradients, snapshot = push.gradients, push.snapshot if push.keeps_snapshot else None
        if task.weights.generation != self._maps.generation:
            maps = self._maps.since(task.weights.generation)
            gradients, snapshot = retain_valid(gradients, maps, trainer.network.layers), None
        with trainer.backend.threads(self._threads):
            staleness = self._updater.update(
                trainer.network,
                gradients,
                samples([task.batch]),
                version=push.version,
                snapshot=snapshot,
                limit=limit,
            )
        if staleness is None:
            return False
        self._count(deal, task.batch, push.loss, staleness)
        self._end(push)
        return True

    def _count(self, deal: Deal, batch: Batch, loss: float, staleness: int) -> None:
        """Count an update."""
        self.state.step += 1
        self.report.count(staleness)
        self._count_samples(deal, batch, loss)

    def _count_samples(self, deal: Deal, batch: Batch, loss: float) -> None:
        rows = samples([batch])
        deal.apply(batch)
        part = self.state.begin_part_()
        part.loss += loss * rows
        part.samples += rows
        self.run.bar.update(rows)

    def _end(self, push: messages.Push) -> None:
        """Let go of a gradient: its slot is free."""
        self.links.release(push)
        self._dispatcher.end(push.worker, push.task.slot)

    # ------------------------------------------------------------------ synchronous
    def train_synchronously(self, deal: Deal, representative: Representative | None = None) -> None:
        """Apply the mean of all workers' gradients, one joined mini-batch after another (WASSP).

        With a representative, by an all-reduce: every node sums its gradients, and updates weights
        of its own.
        """
        update: Callable[[list[Batch], Deal], None]
        if representative is None:
            update = partial(self._update_jointly, Gradients(self.trainer.network.layers))
        else:
            update = partial(self._reduce, representative)
        self._begin_epoch()
        while not deal.is_done and not self.stopped:
            self._look(deal)
            update(deal.next_joined(), deal)
            self.state.step += 1
            self.report.count(0)
            self._add_point(deal)
            if deal.samples_applied >= (self.state.epoch + 1) * deal.rows:
                self.finish_epoch(deal)

    def _reduce(self, representative: Representative, parts: list[Batch], deal: Deal) -> None:
        joined = samples(parts)
        for worker, slot in self._dispatcher.pairs(range(1, len(parts) + 1).__contains__):
            first_row = samples(parts[: worker - 1])
            self._begin(worker, slot, parts[worker - 1], first_row, joined)
        while len(self._arrived) < len(parts):
            self._take(deal)
        pushes = sorted(self._arrived, key=lambda push: push.worker)
        self._arrived.clear()
        self.links.reduce(representative, pushes, joined, self._update)
        for push in pushes:
            self._count_samples(deal, push.task.batch, push.loss)
            self._end(push)

    def _update_jointly(self, total: Gradients, parts: list[Batch], deal: Deal) -> None:
        """Let each worker compute its part of a joined mini-batch; sum the parts in their order."""
        joined = samples(parts)
        total.resize_(self.trainer.network.layer_connections)
        begun = summed = 0

        def is_next(push: messages.Push) -> bool:
            return push.task.batch.start == parts[summed].start

        while summed < len(parts):
            push = next(filter(is_next, self._arrived), None)
            if push is not None:
                self._arrived.remove(push)
                add_(total, push.gradients, is_first=summed == 0)
                summed += 1
                self._count_samples(deal, push.task.batch, push.loss)
                self._end(push)
                continue
            while begun < len(parts):
                worker = begun + 1
                pair = next(self._dispatcher.pairs(worker.__eq__), None)
                if pair is None or not self.links.can_begin(worker):
                    break
                self._begin(*pair, parts[begun], samples(parts[:begun]), joined)
                begun += 1
            self._take(deal, is_next)
        self._update(total, joined)

    def _update(self, total: Gradients, joined: int) -> None:
        """Update the weights by the sum of the gradients of so many samples."""
        network = self.trainer.network
        with self.trainer.backend.threads(self._threads):
            network.finish_gradient(total)
            self._updater.update(network, total, joined)

    # ------------------------------------------------------------------ epochs
    def _begin_epoch(self) -> None:
        """Begin with the next epoch, or go on with it."""
        part = self.state.part
        self._started = time.perf_counter() - (part.seconds if part else 0)

    def _next_pause(self, deal: Deal) -> int:
        """Return the samples after which workers pause: the next point of the curve, or the end."""
        if self._point_is_due(deal):  # it was stopped before its evaluation
            return deal.samples_applied
        before = self.state.epoch * deal.rows
        points = self.trainer.config.curve_points
        return before + samples_of_next(deal.samples_applied - before, deal.rows, points)

    def _point_is_due(self, deal: Deal) -> bool:
        part, done = self.state.part, deal.samples_applied - self.state.epoch * deal.rows
        points = self.trainer.config.curve_points
        return part is not None and is_due(part.curve, done, deal.rows, points)

    def _add_point(self, deal: Deal) -> None:
        """Add a point to the learning curve, if it is due; workers compute no gradient then."""
        if not self._point_is_due(deal):
            return
        self._look(deal, stop=False)
        part, done = self.state.begin_part_(), deal.samples_applied - self.state.epoch * deal.rows
        rows = len(held_out(self.run.data, self.trainer.config).rows)

        def evaluate() -> tuple[float, float]:
            loss, sums = self.evaluate("curve", rows)
            return loss / sums.weight, sums.score()

        done = min(done, deal.rows)  # a mini-batch of the next epoch may have come before the last
        place = {"epoch": self.state.epoch + done / deal.rows, "samples": done}
        point = measure(evaluate, **place, updates=self.state.step)
        self.trainer.check_finite(point["loss"], self.state.step, self.state.present_epoch)
        part.curve.append(point)
        self._started += point["seconds"]

    def finish_epoch(self, deal: Deal) -> None:
        """Evaluate, prune and evolve; let all nodes know."""
        self._look(deal, stop=False)
        self.record()
        self.evolve()
        self._look(deal, stop=False)
        if self.run.checkpoint is not None:
            self.trainer.save(self.run.checkpoint)
        self.stopped = self.run.call_back(self.trainer)
        self._begin_epoch()

    def _look(self, deal: Deal, *, stop: bool = True) -> None:
        """Have at hand what a checkpoint needs, and end here if a signal has come."""
        state, seconds = self.state, time.perf_counter() - self._started
        if state.part is not None:
            state.part.seconds = seconds
        state.parallel = {"deal": deal.state(state.epoch), "replicas": deal.workers}
        if stop:
            self.run.request.check()

    def _end_leases(self, deal: Deal) -> None:
        """Let workers come to the end of their mini-batches, and stop."""
        self.links.topology.stopping = True
        while self.links.computing:
            self._take(deal)
        self._look(deal)

    def evolve(self) -> None:
        """Prune and evolve if that is due, and let all nodes have the new topology."""
        trainer, topology = self.trainer, self.links.topology
        layers = trainer.network.layers
        rules = trainer.config.rules
        if rules.needs_gradient or not rules.are_built_in:  # which may look at all of a layer
            for layer in layers:
                layer.values_by_output = np.empty_like(layer.values)
                layer.refresh()
        config, epoch, rows = trainer.config, self.state.epoch, len(self.run.data.train_rows)
        exchange = True
        if self.options.phase_one_epochs <= epoch < config.epochs:  # replicas have to recover
            exchange = exchanges_connections(epoch, config, rows, self.replicas)
        steps = trainer.evolve_if_due(self.run.data, exchange=exchange)
        for layer in layers:
            layer.values_by_output = np.empty(0, np.float32)
        if not steps:
            return
        for k, layer in enumerate(layers):
            topology.store_dead(k, layer.dead)
        waiting = [*self._arrived, *self.links.waiting]
        self._maps.add(steps, {push.task.weights.generation for push in waiting})
        topology.generation = self._maps.generation
        self.links.send_topology()

    def record(self) -> None:
        """Evaluate by all workers, and complete the epoch, if there was one."""
        found = EpochRecord(self.state.present_epoch, None, None)
        if self.state.part is not None or self.trainer.config.evaluate_first:
            self.fill_in(found)
        names = ("loss", "train_accuracy", "test_accuracy", "inference_s", "active_neurons")
        self.trainer.complete_epoch(**{name: getattr(found, name) for name in names})

    def fill_in(self, record: EpochRecord) -> None:
        """Evaluate the present weights by all workers, for a record."""
        trainer, data = self.trainer, self.run.data
        if len(data.loss_rows):
            loss, sums = self.evaluate("train", len(data.loss_rows))
            record.loss, record.train_accuracy = loss / max(sums.weight, 1e-300), sums.score()
            trainer.check_finite(record.loss, self.state.step, record.epoch)
        else:
            trainer.check_weights()
        trainer.check_moments()
        record.nnz = trainer.network.layer_connections
        record.explored = explored_share(trainer.network.layers)
        with trainer.backend.threads(self._threads):
            record.active_neurons = sum(active_neurons(trainer.network))
        if data.test is not None:
            started = time.perf_counter()
            record.test_accuracy = self.evaluate("test", len(data.test[1]))[1].score()
            record.inference_s = time.perf_counter() - started
        self.run.bar.set_postfix(loss=record.loss, test=record.test_accuracy)

    def evaluate(self, part: str, rows: int) -> tuple[float, ScoreSums]:
        """Return summed loss and score sums of the present weights, computed by all workers.

        Gradients that wait in slots stay there, but not the weights that they were computed on.
        """
        links, dispatcher = self.links, self.make_dispatcher(False)
        for push in [*self._arrived, *links.waiting]:
            push.keeps_snapshot = False
        micro_batch = self.trainer.micro_batch
        pieces = PIECES * dispatcher.slots
        size = -(-rows // (pieces * micro_batch)) * micro_batch
        if part == "curve":  # few rows, while nothing else is computed
            size = min(size, -(-rows // dispatcher.slots))
        starts = deque(range(0, rows, size))
        found: dict[int, messages.Evaluated] = {}
        expected = len(starts)
        while len(found) < expected:
            for worker, slot in dispatcher.pairs(lambda w: bool(starts) and links.can_begin(w)):
                start = starts.popleft()
                place = part, start, min(rows, start + size)
                dispatcher.begin(worker, slot)
                links.begin(worker, messages.Evaluate, slot, *place)
            message = links.next()
            self.run.request.check()
            if isinstance(message, messages.Push):
                self._arrived.append(message)
            elif message is not None:
                found[message.task.start] = message
                dispatcher.end(message.worker, message.task.slot)
        loss, sums = 0.0, ScoreSums()
        for start in sorted(found):
            loss += found[start].loss
            sums.merge(found[start].sums)
        return loss, sums
