"""A parallel training from its beginning to its end, on every rank."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ...errors import ParameterError
from ...machine.environment import expand_user
from ...machine.mapped_memory import forget_names
from ...machine.signals import Stop, saved_in, sentence
from ...model.config import TrainingConfig
from ...model.network import SparseMLP
from ...model.rules import Rules, nameless_rule
from ...training.history import History, ParallelReport
from ...training.prepared import Augment, TrainingData, prepare_
from ...training.resumed_settings import load_checkpoint
from ...training.trainer import Callback, Run, Trainer, sample_bar, save_checkpoint
from ..comm import leaving
from ..comm.collectives import broadcast
from ..comm.control import RootChannel, connect
from ..comm.guard import guard
from ..comm.nodes import Nodes
from ..comm.ranks import agree, get_communicator, together
from ..options import JOINED, ParallelOptions, check_config, phase_one_length
from ..plan import check_memory, micro_batching_of, slots_of_nodes
from ..shared.weights import Shape, check_locks, in_both_orders
from . import messages
from .allreduce import Representative, split_representatives
from .deal import Deal, Dispatcher
from .links import Links
from .phase_two import average, train_replicas
from .server import Server
from .worker import Worker

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RootArguments:
    """What a caller has given. On other ranks than 0 only the configuration counts."""

    network: SparseMLP | None
    config: TrainingConfig
    X: Any
    y: Any
    test: tuple[Any, Any] | None
    sample_weight: Any
    checkpoint: str | Path | None
    resume: str | Path | Trainer | None
    callbacks: Iterable[Callback]
    progress: bool | None

    def prepare(self) -> tuple[Trainer, TrainingData]:
        """Return the trainer that rank 0 begins with, and the data, checked."""
        trainer = self.trainer()
        if self.checkpoint is not None:
            trainer.check_saving(self.checkpoint)
        check_config(trainer.config)
        given = {"sample_weight": self.sample_weight, "test": self.test}
        data = prepare_(trainer.network, trainer.config, self.X, self.y, **given)
        trainer.check_rows(data)
        place = None if self.checkpoint is None else expand_user(self.checkpoint).resolve()
        state = trainer.state
        if place is not None and state.folder not in (None, place):
            save_checkpoint(trainer, place)  # those of the replicas go into it
            state.folder = place
        return trainer, data

    def trainer(self) -> Trainer:
        """Return a new trainer, or the one of the checkpoint to resume."""
        if self.resume is None:
            if self.network is None:
                raise ParameterError(
                    "The 'network' parameter of parallel training must be a SparseMLP on rank 0. "
                    "Got None instead."
                )
            return Trainer(self.network, self.config)
        if isinstance(self.resume, Trainer):
            return self.resume
        config = self.config
        trainer = load_checkpoint(self.resume, epochs=config.epochs, threads=config.threads)
        if self.network is not None:
            vars(self.network).update(vars(trainer.network))
            trainer.network = self.network
        return trainer


def train(
    given: RootArguments, options: dict[str, Any], comm: Any, augment: Augment | None
) -> History:
    """Train by all ranks, or in this process where it is alone; every rank calls it."""
    comm = get_communicator(comm)
    if comm.size == 1:
        _check(given, options)
        return given.trainer().fit(
            given.X,
            given.y,
            sample_weight=given.sample_weight,
            test=given.test,
            augment=augment,
            callbacks=given.callbacks,
            checkpoint=given.checkpoint,
            progress=given.progress,
        )

    def prepare() -> tuple[ParallelOptions, Trainer | None, TrainingData | None]:
        check_locks()
        checked = _check(given, options)
        if problem := nameless_rule(given.config):
            raise ParameterError(f"{problem}: it is needed on all ranks.")
        if comm.rank > 0:
            return checked, None, None
        trainer, data = given.prepare()
        return checked, _with_fitting_batches(trainer, data, comm.size - 1), data

    checked, trainer, data = together(comm, prepare)
    facts = {
        "the training configuration": given.config,
        "the parallel options": checked,
        "whether rows are augmented": augment is not None,
    }
    agree(comm, facts)
    rules = broadcast(comm, trainer and (trainer.config.drop, trainer.config.growth))
    together(comm, lambda: Rules.of(*rules))  # of a checkpoint: all ranks can import them
    nodes = Nodes.of(comm, checked.ranks_per_node)
    check_memory(comm, nodes, checked, trainer, data)
    channel = connect(comm)
    with guard(comm):
        representatives = split_representatives(comm, nodes)
        if isinstance(channel, RootChannel):
            assert trainer is not None and data is not None
            shared = comm, channel, representatives, nodes, checked
            history = _serve(*shared, given, trainer, data)
        else:
            history = Worker(comm, channel, representatives, augment).run()
    return history


def _check(given: RootArguments, options: dict[str, Any]) -> ParallelOptions:
    """Return the options, where they and the configuration can be used."""
    if not isinstance(given.config, TrainingConfig):
        raise ParameterError(
            "The 'config' parameter of parallel training must be a TrainingConfig. Got "
            f"{type(given.config).__name__} instead."
        )
    length = phase_one_length(given.config.epochs, options["phase_one_epochs"])
    return ParallelOptions(**options | {"phase_one_epochs": length})


def _with_fitting_batches(trainer: Trainer, data: TrainingData, workers: int) -> Trainer:
    """Make the mini-batches so small that every worker has one."""
    rows, config = len(data.train_rows), trainer.config
    if workers > rows:
        raise ParameterError(
            f"There are {workers} workers and {rows} training rows: some would have none. "
            f"Start at most {rows + 1} ranks."
        )
    if -(-rows // config.batch_size) >= workers:
        return trainer
    smaller = rows // workers
    told = workers, rows, smaller, config.batch_size
    logger.warning("%d workers share %d training rows: the batch size is %d in place of %d.", *told)
    trainer.config = dataclasses.replace(config, batch_size=smaller)
    return trainer


def _report(nodes: Nodes, options: ParallelOptions, threads: int | None) -> ParallelReport:
    """Return a report with the slots of every node, and the threads of a worker there."""
    counts = slots_of_nodes(nodes, options.most_slots, each=options.slots_each)
    each = []
    for node, (cores, count) in enumerate(zip(nodes.cores, counts, strict=True)):
        at_a_time = min(count, sum(rank > 0 for rank in nodes.ranks(node)))
        each.append(threads or max(1, cores // max(1, at_a_time)))
    shape = len(nodes.node), len(nodes), counts, each
    return ParallelReport(options.algorithm, *shape, options.phase_one_epochs)


def _serve(
    comm: Any,
    channel: RootChannel,
    representatives: Any,
    nodes: Nodes,
    options: ParallelOptions,
    given: RootArguments,
    trainer: Trainer,
    data: TrainingData,
) -> History:
    """Be the parameter server: lead the training from its beginning to its end."""
    checkpoint = given.checkpoint
    report = _report(nodes, options, trainer.config.threads)
    trainer.threads = nodes.cores[0]
    shape = Shape.of(trainer.network, micro_batching_of(trainer, data))
    links = Links(comm, channel, nodes, trainer.network, shape, report.slots, options)
    own = dataclasses.replace(trainer.config, backend=trainer.backend.name)  # the same everywhere
    links.join(data, own, report.threads)
    forget_names()
    name = f"training by {len(channel.ranks)} workers"
    bar = sample_bar(trainer, len(data.train_rows), given.progress, name)
    representative = None
    if options.algorithm == "allreduce":
        representative = Representative(representatives, options.chunk_bytes)

    def make_dispatcher(prefetch: bool) -> Dispatcher:
        return Dispatcher(nodes.node, report.slots, prefetch=prefetch)

    with leaving.noting(checkpoint is not None) as request:
        run = Run(data, bar, request, checkpoint, list(given.callbacks))
        server = Server(trainer, run, links, make_dispatcher, options, report)
        try:
            with bar:
                _both_phases(server, len(channel.ranks), representative)
            request.check()
            if checkpoint is not None:
                trainer.rescue(checkpoint)
        except Stop:
            leaving.end_job(sentence(request, _save_stopped(server)))
    links.finish()
    history = trainer.history
    history.parallel = report
    report.bytes_moved = links.bytes_moved
    _close(channel, nodes, history, report)
    links.close()
    network = trainer.network
    network.layers[:] = [in_both_orders(layer) for layer in network.layers]
    return history


def _both_phases(server: Server, workers: int, representative: Representative | None) -> None:
    trainer, state, options = server.trainer, server.state, server.options
    if not state.history.epochs:
        server.record()
    elif state.part is None and state.epoch < trainer.config.epochs:
        server.evolve()  # the last epoch of a training that is prolonged now
    deal = _deal(server, workers)
    bar = server.run.bar
    server.links.topology.samples = bar.n = bar.initial = deal.samples_applied
    started = time.perf_counter()
    if deal.samples_applied >= (state.epoch + 1) * deal.rows:  # stopped before its evaluation
        server.finish_epoch(deal)
    if options.algorithm == "wasap":
        server.train_asynchronously(deal)
    else:
        server.train_synchronously(deal, representative)
    server.report.phase_one_s = time.perf_counter() - started
    if server.stopped or state.epoch >= trainer.config.epochs:
        return
    server.replicas_apart = True
    trained = train_replicas(server)
    average(server, trained)
    server.fill_in(state.history.epochs[-1])
    if server.run.checkpoint is not None:
        state.parallel = None
        trainer.save(server.run.checkpoint)
    server.replicas_apart = False
    server.run.call_back(trainer)


def _deal(server: Server, workers: int) -> Deal:
    """Return the mini-batches of phase one that are left."""
    state, options = server.state, server.options
    rows, batch_size = len(server.run.data.train_rows), server.trainer.config.batch_size
    dealt = (state.parallel or {}).get("deal")
    if dealt is None and state.part is not None:  # of a training in one process
        left = [s for s in range(0, rows, batch_size) if s >= state.part.samples]
        dealt = {"batch_size": batch_size, "missing": {state.epoch: left}}
    deal = Deal(
        rows,
        batch_size,
        workers,
        options.phase_one_epochs,
        first_epoch=state.epoch,
        joined=options.algorithm in JOINED,
        at_a_time=server.make_dispatcher(False).at_a_time,
        state=dealt,
    )
    if deal.samples_applied <= state.epoch * rows:
        state.part = None  # the epoch begins anew, with mini-batches of another size
    return deal


def _save_stopped(server: Server) -> str:
    """Save a training that is stopped now, and return what there is to say of it."""
    checkpoint = server.run.checkpoint
    assert checkpoint is not None
    if server.replicas_apart:
        place = saved_in(checkpoint)
        return f"in phase two; the last epochs that the replicas have completed are {place}"
    return server.trainer.save_stopped(checkpoint, len(server.run.data.train_rows))


def node_bytes(reports: Sequence[messages.Report], slots: int) -> int:
    """Return what the ranks of a node took together at most: as many had a slot as there are."""
    beside = sorted((each.slot_bytes for each in reports), reverse=True)
    return sum(each.pss_bytes for each in reports) + sum(beside[:slots])


def _close(channel: RootChannel, nodes: Nodes, history: History, report: ParallelReport) -> None:
    """Add up what all ranks have used, and let the workers go."""
    for rank in channel.ranks:
        channel.send(rank, messages.Count())
    found: dict[int, messages.Report] = channel.answers(channel.ranks)
    used = [messages.Report.of(channel), *(found[rank] for rank in channel.ranks)]
    report.peak_rss_bytes = max(each.rss_bytes for each in used)
    report.idle_s = [each.idle_s for each in used]
    report.idle_cpu_s = [each.idle_cpu_s for each in used]
    report.cpu_s = [each.cpu_s for each in used]
    report.node_pss_bytes = max(
        node_bytes([used[rank] for rank in nodes.ranks(node)], report.slots[node])
        for node in range(len(nodes))
    )
    for rank in channel.ranks:
        channel.send(rank, messages.Finish(history))
