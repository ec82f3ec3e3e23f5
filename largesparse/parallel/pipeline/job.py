"""A training by a pipeline from its beginning to its end, on every rank."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import CheckpointError, ParallelError, ParameterError, check_range
from ...machine.signals import Stop, StopRequest, sentence, stop_request, stopped
from ...machine.usage import cpu_seconds, peak_rss_bytes
from ...model.config import NetworkConfig, TrainingConfig
from ...model.layer import initial_layer
from ...model.network import SparseMLP
from ...model.rules import nameless_rule
from ...model.start import described
from ...training.checkpoint import read_checkpoint, read_network_config
from ...training.history import ParallelReport
from ...training.prepared import Augment, TrainingData
from ...training.resumed_settings import resumed_config
from ...training.state import TrainingState
from ...training.trainer import Callback, Run, sample_bar
from ..comm import guard as guarding
from ..comm import leaving
from ..comm.collectives import broadcast, gather
from ..comm.control import RankChannel, RootChannel, RootLost, connect
from ..comm.guard import guard
from ..comm.nodes import Nodes
from ..comm.ranks import agree, get_communicator, together
from ..comm.transfer import CHUNK_BYTES, check_chunk_bytes
from .choice import check_stages
from .costs import bubble_share, layer_passes
from .data import Given, prepare_stage_
from .plan import Request, memory_of_machines
from .split import Stage, split_layers, stages_of
from .stage import Place
from .trainer import StageTrainer

OWNER = "a training by a pipeline"
LOOK_EVERY = 0.1  # seconds between looks at whether the other ranks live
LEAST_ROWS = 8  # of a micro-batch by default
PER_STAGE = 4  # micro-batches of a mini-batch for every stage, by default


class PipelineOptions(NamedTuple):
    """How a training is spread over ranks; see `train_pipeline` for what the fields mean."""

    groups: int = 1
    split: tuple[int, ...] | None = None
    chunk_bytes: int = CHUNK_BYTES

    @classmethod
    def of(cls, groups: int, split: Any, chunk_bytes: int) -> PipelineOptions:
        """Return what a caller has given; `stages` refuses a split that is none."""
        return cls(groups, tuple(split) if isinstance(split, Iterable) else split, chunk_bytes)

    def check(self, size: int) -> PipelineOptions:
        """Return these, where they can be used by so many ranks."""
        check_range("groups", self.groups, OWNER, low=1, high=size, integer=True)
        if size % self.groups:
            raise ParameterError(
                f"The 'groups' parameter of {OWNER} must divide the number of ranks, {size}. "
                f"Got {self.groups} instead."
            )
        check_chunk_bytes(self.chunk_bytes)
        return self

    def stages(self, config: NetworkConfig, size: int) -> tuple[Stage, ...]:
        """Return the layers of the ranks of a group."""
        count = size // self.groups
        if self.split is None:
            return split_layers(layer_passes(config), count)
        stages, layers = stages_of(self.split), len(config.layer_sizes) - 1
        if len(stages) != count or stages[-1].last != layers:
            raise ParameterError(
                f"The 'split' parameter of {OWNER} must have {count + 1} bounds from 0 to "
                f"{layers}, for {count} ranks. Got {self.split} instead."
            )
        return stages


class Wanted(NamedTuple):
    """What a caller has given on a rank."""

    network: NetworkConfig | None
    config: TrainingConfig
    given: Given
    augment: Augment | None
    callbacks: tuple[Callback, ...]
    checkpoint: str | Path | None
    resume: str | Path | None
    progress: bool | None
    notes: dict[str, Any] | None = None
    changes: dict[str, Any] | None = None  # of the configuration of a checkpoint


def train(wanted: Wanted, options: PipelineOptions, comm: Any) -> StageTrainer:
    """Train by all ranks, or in this process where it is alone; every rank calls it."""
    comm = get_communicator(comm)
    trainer = make_trainer(wanted, options, comm)
    checkpoint = broadcast(comm, wanted.checkpoint)
    # What is wrong with what was given is an error on all ranks, which a script may catch.
    if checkpoint is not None:
        trainer.check_saving(checkpoint)
    data = prepare_stage_(trainer, wanted.given)
    together(comm, lambda: trainer.check_rows(data))
    check_memory(trainer)
    with meeting(trainer):
        _run(trainer, data, wanted, checkpoint)
        trainer.history.parallel = report_of(trainer)
    return trainer


def check_memory(trainer: StageTrainer) -> None:
    """Raise `MemoryPlanError` on all ranks where those of a machine do not fit there."""
    comm, config, place = trainer.comm, trainer.config, trainer.place
    if comm.size == 1:
        return
    machines = memory_of_machines(comm, Nodes.of(comm))

    def check() -> None:
        if comm.rank == 0:
            batch, network = config.batch_size, trainer.network.config
            looked_at = config.candidates_per_connection
            kept: dict[str, Any] = {"moments": config.moments, "candidates": looked_at}
            kept["frees_buffers"] = not config.rules.needs_gradient
            request = Request(network, batch, machines, place.groups, **kept)
            check_stages(request, trainer.micro_batching, place.stages)

    together(comm, check)


def make_trainer(wanted: Wanted, options: PipelineOptions, comm: Any) -> StageTrainer:
    """Return the trainer of this rank, with the layers that it is to have; every rank calls it."""
    resume, network = broadcast(comm, (wanted.resume, wanted.network))
    wanted = wanted._replace(resume=resume, network=network)
    together(comm, lambda: _check(wanted, options, comm.size))
    threads = threads_of(comm, wanted.config.threads)

    def load() -> StageTrainer:
        of = network if resume is None else read_network_config(resume)
        place = Place.of(comm.rank, options.groups, options.stages(of, comm.size))
        if resume is None:
            made, config, state = _new(of, wanted.config, place, threads)
        else:
            changes = {"epochs": wanted.config.epochs, "threads": threads} | (wanted.changes or {})
            made, config, state = _resumed(resume, changes, place)
        state.notes.update(wanted.notes or {})
        state.parallel = None
        given: Any = {"chunk_bytes": options.chunk_bytes, "augment": wanted.augment}
        trainer = StageTrainer(made, config, comm, place, state=state, **given)
        trainer.threads = threads
        return trainer

    trainer = together(comm, load)
    facts = {
        "the training configuration": dataclasses.replace(trainer.config, threads=None),
        "the network": trainer.network.config,
        "how layers are divided": (options, trainer.place.stages),
        "whether rows are augmented": wanted.augment is not None,
        "the backend": trainer.backend.name,
    }
    agree(comm, facts)
    return trainer


def threads_of(comm: Any, threads: int | None) -> int:
    """Return the threads of this rank: by default its part of the cores of its node."""
    nodes = Nodes.of(comm)
    node = nodes.node[comm.rank]
    return threads or max(1, nodes.cores[node] // len(nodes.ranks(node)))


def _new(
    network: NetworkConfig, config: TrainingConfig, place: Place, threads: int
) -> tuple[SparseMLP, TrainingConfig, TrainingState]:
    """Return the layers of a rank before training: those that a network of all has."""
    network = described(network, {})
    check_settings(network, config)
    layers = [initial_layer(network, k, threads) for k in place.stage.layers]
    return SparseMLP.from_layers(network, layers), with_micro_batch(config, place), TrainingState()


def _resumed(
    folder: str | Path, changes: dict[str, Any], place: Place
) -> tuple[SparseMLP, TrainingConfig, TrainingState]:
    """Return what a checkpoint has of a rank's layers, and of the training."""
    network, before, state = read_checkpoint(folder, numbers=place.stage.layers)
    assert state.folder is not None
    changes = {"keep_every": 1, **changes}  # the result is the same
    now = resumed_config(before, changes, state.folder, network.config.layer_sizes)
    check_settings(network.config, now)
    if (state.parallel or {}).get("replicas"):
        raise CheckpointError(
            f"{state.folder} has a training by WASAP-SGD or WASSP-SGD, whose epochs are dealt out "
            "otherwise. Go on with the algorithm that wrote it."
        )
    state.watch_anew_(before, now)
    return network, now, state


def with_micro_batch(config: TrainingConfig, place: Place) -> TrainingConfig:
    """Return a configuration with the micro-batch of a pipeline, where none is given.

    It is so small that `PER_STAGE` of them for every stage keep the ranks busy.
    """
    stages = len(place.stages)
    if config.micro_batch is not None or stages == 1:
        return config
    rows = -(-config.batch_size // place.groups)
    size = max(min(LEAST_ROWS, rows), -(-rows // (PER_STAGE * stages)))
    return dataclasses.replace(config, micro_batch=size)


def _check(wanted: Wanted, options: PipelineOptions, size: int) -> None:
    """Raise a ParameterError where what a rank is given cannot be used."""
    for name, kind in (("config", TrainingConfig), ("network", NetworkConfig)):
        found = getattr(wanted, name)
        if not isinstance(found, kind) and not (name == "network" and wanted.resume is not None):
            remedy = " No rank holds a whole network." if name == "network" else ""
            raise ParameterError(
                f"The {name!r} parameter of {OWNER} must be a {kind.__name__}. Got "
                f"{type(found).__name__} instead.{remedy}"
            )
    options.check(size)
    if problem := nameless_rule(wanted.config):
        raise ParameterError(f"{problem}: it is needed on all ranks.")
    if wanted.config.batch_size < options.groups:
        raise ParameterError(
            f"The 'batch_size' parameter of {OWNER} must be at least the number of groups, which "
            f"divide it: {options.groups}. Got {wanted.config.batch_size} instead."
        )


def check_settings(network: NetworkConfig, config: TrainingConfig) -> None:
    """Raise a ParameterError for what layers on several ranks cannot do."""
    possible = {
        "keep_every": (config, 1, "its ranks keep the activations of few layers each"),
        "redistribute": (config, False, "connections would move between layers of two ranks"),
        "curve_points": (config, 0, "its ranks are busy with other micro-batches within an epoch"),
        "start_factor": (network, 1.0, "which layers shrink depends on those of all ranks"),
    }
    for name, (of, value, reason) in possible.items():
        if getattr(of, name) != value:
            raise ParameterError(
                f"The {name!r} parameter must be {value} in {OWNER}: {reason}. Got "
                f"{getattr(of, name)} instead."
            )


class StageRun(Run):
    """A call that trains; callbacks of all ranks count, and signals of rank 0."""

    def call_back(self, trainer: Any) -> bool:
        """Call this rank's callbacks; return, on all ranks, whether any ends the training."""
        own = super().call_back(trainer)
        everyone = gather(trainer.comm, own)
        stop, number = broadcast(trainer.comm, (any(everyone or [own]), trainer.orders.noted))
        trainer.orders.heed(number)
        return bool(stop)


def _run(
    trainer: StageTrainer, data: TrainingData, wanted: Wanted, checkpoint: str | Path | None
) -> None:
    """Train to the end, or until a signal has come to rank 0."""
    rows, alone = len(data.train_rows), trainer.comm.size == 1
    shown = wanted.progress if trainer.place.rank == 0 else False
    name = "training" if alone else f"training by {trainer.comm.size} ranks"
    bar = sample_bar(trainer, rows, shown, name)
    noting: Callable[[bool], Any] = stop_request if alone else leaving.noting
    with noting(checkpoint is not None) as signals:
        trainer.orders.signals = signals if trainer.place.rank == 0 else None
        run = StageRun(data, bar, trainer.orders.agreed, checkpoint, wanted.callbacks)
        try:
            with bar:
                trainer.run(run)
        except Stop:
            assert checkpoint is not None
            _end(trainer, signals, trainer.save_stopped(checkpoint, rows))
    if checkpoint is not None:
        trainer.rescue(checkpoint)
    trainer.settle()


def _end(trainer: StageTrainer, signals: StopRequest, text: str) -> None:
    """End the job, which a signal has stopped and which is saved."""
    if trainer.comm.size == 1:
        stopped(signals, text)
    if trainer.place.rank == 0:
        leaving.end_job(sentence(signals, text))
    threading.Event().wait()  # for rank 0 to do it


@contextmanager
def meeting(trainer: StageTrainer) -> Iterator[None]:
    """Connect the ranks, and let an error of any of them end the job, while the block runs."""
    channel = trainer.channel
    if channel is None or channel.is_closed:
        channel = trainer.channel = connect(trainer.comm)
    with guard(trainer.comm), watching(channel):
        trainer.meet()
        yield


@contextmanager
def watching(channel: RootChannel | RankChannel) -> Iterator[None]:
    """End the job when another rank has failed or ended, whatever this one waits for.

    A thread looks, as a rank that computes or waits for MPI does not.
    """
    over = threading.Event()

    def watch_all() -> None:
        assert isinstance(channel, RootChannel)
        try:
            while not over.is_set():
                if channel.receive(LOOK_EVERY) is not None:
                    raise ParallelError("A rank has sent what nobody waits for.")
        except ParallelError as error:
            leaving.end_job(guarding.message(error, 0))

    def watch_root() -> None:
        assert isinstance(channel, RankChannel)
        try:
            while not over.wait(LOOK_EVERY):
                channel.check()
        except RootLost:
            leaving.leave_at_once()

    if not channel.ranks:
        yield
        return
    own = watch_all if isinstance(channel, RootChannel) else watch_root
    thread = threading.Thread(target=own, daemon=True, name="watching other ranks")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def report_of(trainer: StageTrainer) -> ParallelReport | None:
    """Return what the training took, on all ranks; None in a process alone."""
    comm, place, config = trainer.comm, trainer.place, trainer.config
    if comm.size == 1:
        return None
    links = trainer.links
    own = {
        "threads": trainer.threads,
        "step_s": trainer.steps_s,
        "waiting_share": trainer.steps_waiting_s / max(trainer.steps_s, 1e-9),
        "idle_s": links.waiting_s,
        "cpu_s": cpu_seconds(),
        "rss_bytes": peak_rss_bytes(),
        "bytes_sent": links.bytes_sent,
        "steps_bytes": trainer.steps_bytes,
    }
    everyone = gather(comm, own)
    nodes = Nodes.of(comm)
    report = None
    if everyone is not None:
        lists: Any = {name: [each[name] for each in everyone] for name in own}
        moved, of_steps = lists.pop("bytes_sent"), lists.pop("steps_bytes")
        micro_batches = trainer.micro_batches
        report = ParallelReport(
            "pipeline",
            comm.size,
            len(nodes),
            [len(nodes.ranks(node)) for node in range(len(nodes))],
            phase_one_epochs=config.epochs,
            updates=trainer.state.step,
            bytes_moved=sum(moved),
            steps_bytes=sum(of_steps),
            peak_rss_bytes=max(lists["rss_bytes"]),
            stages=[list(stage) for stage in place.stages],
            micro_batches=micro_batches,
            bubble=bubble_share(len(place.stages), micro_batches),
            **lists,
        )
    found: ParallelReport = broadcast(comm, report)
    return found
