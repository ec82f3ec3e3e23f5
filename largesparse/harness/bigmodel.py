"""Train extremely large sparse networks on synthetic data, and time every phase (section 2.4).

    largesparse bigmodel --neurons 1M
    largesparse bigmodel --neurons 50M --plan
    largesparse bigmodel --neurons 250k --features 4096 --samples 4000 --epochs 5
    mpiexec -n 16 largesparse bigmodel --neurons 50M
    largesparse bigmodel --neurons 50M --checkpoint run
    largesparse bigmodel --resume run

Initialisation, each epoch, inference and each evolution are timed separately and printed, at the
sizes of the paper's Table 4 beside it; one run record is appended to the output file.

Under mpiexec the network is trained by WASAP-SGD (Algorithm 1): rank 0 is the parameter server, the
other ranks are workers. Ranks of one node share the model and the data. They take turns in slots,
with recipe 'width' by default one, of all the node's cores: memory follows the slots, so more ranks
than cores cost little. All epochs have one model (--phase-one-epochs).

With --algorithm pipeline each rank has consecutive layers alone, and micro-batches pass through
them: the size is a matter of how many machines there are. --plan prints which rank has what:

    mpiexec -n 4 largesparse bigmodel --neurons 50M --algorithm pipeline --plan
    mpiexec -n 4 largesparse bigmodel --neurons 50M --algorithm pipeline --groups 2

A run with --checkpoint survives. It saves after every epoch. SIGTERM (status 143) or Ctrl-C (130)
lets it finish the present mini-batch, save, and tell where; --resume goes on from there to the
result that it would have had. A line for batch systems that end jobs and start them again:

    largesparse bigmodel --neurons 50M --checkpoint run --resume

In a clone `python tools/bigmodel.py` is the same.
"""

from __future__ import annotations

import argparse
import functools
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

from tqdm import tqdm

from ..backends import choose_backend, get_backend
from ..data.synthetic import is_made, make_large_classification
from ..errors import ParameterError, check_range
from ..machine.environment import launched_ranks
from ..machine.sizes import show_seconds
from ..machine.threads import resolve_threads
from ..model.config import NetworkConfig, TrainingConfig
from ..model.density import Shrinking
from ..model.layer import moment_bytes
from ..model.network import SparseMLP
from ..model.storage import Storage
from ..parallel import train_wasap, train_wassp
from ..parallel.comm.collectives import broadcast
from ..parallel.comm.nodes import Nodes
from ..parallel.comm.ranks import Alone, get_communicator, together
from ..parallel.options import JOINED, ParallelOptions, check_config, phase_one_length
from ..parallel.pipeline.plan import memory_of_machines
from ..parallel.plan import check_disk, choose_parallel_plan, memory_of_ranks, slots_of_nodes
from ..training.checkpoint import read_history, read_notes, read_training_settings
from ..training.history import EpochRecord, History
from ..training.layer_terms import expected_connections
from ..training.memory import MemoryPlan, bytes_once, choose_plan, useful_dtype
from ..training.prediction import MAX_PROCESSES, Predictor
from ..training.prepared import check_room
from ..training.resumed_settings import load_checkpoint
from ..training.saving import check_checkpoint_folder
from ..training.trainer import Trainer
from ..training.warming import warm_up
from .bigmodel_pipeline import (
    check_flags,
    describe_stages,
    describe_start,
    forget_noted_,
    has_ends,
    is_pipeline,
    plan_pipeline,
    train_stages,
)
from .bigmodel_record import Trained, record_of
from .comparison import (
    compare_with_table_4,
    describe_new_epochs,
    describe_plan,
    describe_training,
    describe_use,
)
from .driver_flags import (
    add_curve_flags,
    add_data_flags,
    add_model_flags,
    add_ranks_flags,
    add_run_flags,
    add_setting_flags,
    add_training_flags,
)
from .noise import NoiseMeter, describe_noise, tick
from .presets import (
    HYPERPARAMETERS,
    default_batch_size,
    default_curve,
    default_learning_rate,
    evaluations,
    hidden_sizes,
    most_slots,
    nearest_row,
)
from .records import RunRecord, append_record, check_output, has_record
from .resuming import check_network, flags_of, parse_resumable
from .setting_flags import DEFAULTS, NETWORK, TRAINING, check_settings, given_settings

NOTES = "bigmodel.py"  # what checkpoints keep the run's flags under
FLAGS = (
    *(add_model_flags, add_data_flags, add_training_flags, add_setting_flags),
    *(add_curve_flags, add_run_flags, add_ranks_flags),
)
TRAIN: dict[str, Callable[..., Any]] = {
    "wasap": train_wasap,
    "wassp": train_wassp,
    "allreduce": functools.partial(train_wassp, server=False),
}


class Job(NamedTuple):
    """What all ranks know of the run."""

    options: argparse.Namespace
    config: NetworkConfig
    training: TrainingConfig
    plan: Any  # MemoryPlan, or PipelinePlan


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for add_flags in FLAGS:
        add_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Plan, make the data, initialise, train, predict; print the table and record the run."""
    comm = get_communicator() if launched_ranks()[1] > 1 else Alone()
    leads = comm.rank == 0
    if not leads:
        logging.getLogger("largesparse").setLevel(logging.CRITICAL)  # rank 0 warns for all
    parsed = together(comm, lambda: parse(make_parser(prog), argv, comm.size) if leads else None)
    options = broadcast(comm, parsed)
    if isinstance(options, int):
        raise SystemExit(options)
    nodes = Nodes.of(comm, options.ranks_per_node)
    by_stages = is_pipeline(options, comm.size)
    memory = memory_of_machines(comm, nodes) if by_stages else memory_of_ranks(comm, nodes)
    plan = functools.partial(plan_run, options, nodes, memory)
    job = broadcast(comm, together(comm, lambda: plan() if leads else None))
    if options.plan:
        return 0
    data = together(comm, lambda: prepare(job, leads))
    with NoiseMeter() if leads else nullcontext():
        return run_stages(job, comm, data) if by_stages else measure(job, comm, data)


def measure(job: Job, comm: Any, data: Any) -> int:
    """Initialise, train, predict; print the table and record the run."""
    options, leads = job.options, comm.rank == 0
    started = time.perf_counter()
    trainer = together(comm, lambda: initialise(job) if leads else None)
    init_s = time.perf_counter() - started
    if trainer is not None:  # on rank 0
        connections = trainer.network.connections
        print(describe_training(trainer.config, trainer.state, resumed=bool(options.resume)))
        print(f"initialised in {show_seconds(init_s)}: {connections:,} connections", flush=True)
    history = train(job, comm, trainer, data)
    if trainer is not None:
        processes_s = time_processes(options.processes, trainer, data.X_test)
        trained = Trained.of(trainer)
        record = record_of(job.config, job.plan, trained, history, data, init_s)
        report(job, record, history)
        if processes_s is not None:
            print(f"inference with {options.processes} processes: {show_seconds(processes_s)}")
        print(describe_use(record, history))
        print(f"noise of the machine: {describe_noise(record.noise)}")
        print(f"record appended to {options.out}")
    return 0


def run_stages(job: Job, comm: Any, data: Any) -> int:
    """Train by a pipeline, and record it."""
    options, leads = job.options, comm.rank == 0
    mine = leads or has_ends(job.plan, comm.rank)
    make = functools.partial(make_large_classification, **data_parameters(options))
    data = together(comm, lambda: data or make() if mine else None)  # rank 0 has made it
    own: dict[str, Any] = {"resume": options.resume, "changes": changes_of(options)}
    if leads:
        print(describe_start(options.resume, job.training, own["changes"]), flush=True)
        own |= {"checkpoint": options.checkpoint, "callbacks": [print_epochs]}
        chosen = job.plan.micro_batching.settings() | {"backend": job.plan.request.backend}
        own["notes"] = {NOTES: flags_of(options) | chosen}
    found = train_stages(options, job.plan, job.config, job.training, data, comm=comm, **own)
    if found is not None:
        record, history = found
        report(job, record, history)
        print(describe_stages(job.plan, record))
        print(f"noise of the machine: {describe_noise(record.noise)}")
        print(f"record appended to {options.out}")
    return 0


def report(job: Job, record: RunRecord, history: History) -> None:
    """Append the record, and print the epochs and the run next to Table 4."""
    append_record(job.options.out, record)
    print(history.to_frame().drop(columns=["nnz", "validation_accuracy"]).round(4).to_string())
    print(f"\n{compare_with_table_4(record, job.config)}")


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, ranks: int
) -> argparse.Namespace | int:
    """Return the options, or the exit code where all has been said that there is to say."""
    try:
        options = parse_resumable(parser, argv, required="neurons", notes=NOTES)
    except SystemExit as end:
        return int(end.code or 0)
    if options.resume:
        forget_noted_(options, read_notes(options.resume).get(NOTES, {}), ranks)
    fill_in(options, ranks)
    if ranks > 1 and options.processes > 1:
        raise ParameterError(
            "The 'processes' parameter of bigmodel must be 1 under mpiexec, where all ranks "
            f"predict the test rows together. Got {options.processes} instead."
        )
    check_flags(options, ranks)
    check_settings(options)
    if ranks > 1 and not is_pipeline(options, ranks):
        parallel_options(options)
    if ranks > 1 and options.storage is not None:
        raise ParameterError(
            "The 'storage' parameter of bigmodel is for one process: under mpiexec the ranks keep "
            f"what they have in memory. Got {options.storage!r}. Start it without mpiexec, or "
            "leave it out."
        )
    if options.storage is not None:
        Storage(options.storage)  # checks the folder
    if options.resume and not options.plan and is_done(options):
        print(
            f"{options.resume} has trained its {options.epochs} epochs, and the record is in "
            f"{options.out}: there is nothing to go on with. More --epochs prolong the run."
        )
        return 0
    return options


def fill_in(options: argparse.Namespace, ranks: int) -> None:
    """Give flags that were not given the values that follow from recipe and size of the run."""
    hyper = HYPERPARAMETERS[options.recipe]
    options.coverage = given(options.coverage, hyper.coverage)
    options.keep_active = given(options.keep_active, hyper.keep_active)
    # from files the paper's, with which these were measured
    usual = hyper if options.storage is None else HYPERPARAMETERS["paper"]
    known = {"optimizer": usual.optimizer, "growth": usual.growth}
    if options.resume:  # one that was begun without these flags, perhaps with other defaults
        config = read_training_settings(options.resume)
        known = {name: config.get(name, DEFAULTS[name]) for name in known}
        by_server = ranks > 1 and not is_pipeline(options, ranks)
        if by_server and "evaluate_first" not in config and options.phase_one_epochs is None:
            options.phase_one_epochs = phase_one_length(options.epochs)
    options.optimizer = given(options.optimizer, known["optimizer"])
    options.growth = given(options.growth, known["growth"])
    rows = training_rows(options)
    by_stages = is_pipeline(options, ranks)
    options.batch_size = given(options.batch_size, default_batch_size(options.recipe, rows))
    points, curve_rows = default_curve(options.neurons, rows)
    options.curve_points = given(options.curve_points, 0 if by_stages else points)
    options.curve_rows = given(options.curve_rows, curve_rows)


def training_rows(options: argparse.Namespace) -> int:
    """Return how many of the rows are trained on."""
    fraction = options.test_fraction
    check_range("test_fraction", fraction, "bigmodel", low=0, high=1, low_open=True, high_open=True)
    return int(options.samples - math.ceil(fraction * options.samples))


def is_done(options: argparse.Namespace) -> bool:
    """Return whether the run to resume is complete and recorded: no two have the same times."""
    history, whole = read_history(options.resume)
    if not whole or len(history) <= options.epochs:
        return False
    return has_record(options.out, loss=history["loss"], epoch_s=history["epoch_s"][1:])


def parallel_options(options: argparse.Namespace) -> ParallelOptions:
    """Return how the training is spread over ranks, checked."""
    all_epochs = options.epochs if options.recipe == "width" else None
    phase_one = phase_one_length(options.epochs, given(options.phase_one_epochs, all_epochs))
    names = ("algorithm", "slots", "ranks_per_node", "chunk_bytes")
    return ParallelOptions(phase_one_epochs=phase_one, **{n: getattr(options, n) for n in names})


def plan_run(options: argparse.Namespace, nodes: Nodes, memory: Any) -> Job:
    """Check what can be checked before any work, choose the rest, and print the plan."""
    config = network_config(options)
    check_range("processes", options.processes, "bigmodel", high=MAX_PROCESSES)
    train_samples = training_rows(options)
    if options.batch_size > train_samples:
        raise ParameterError(
            f"The 'batch_size' parameter must be at most the number of training rows, "
            f"{train_samples}. Got {options.batch_size} instead. Give more --samples."
        )
    plan = plan_memory(options, config, nodes, memory)
    slots = 1
    if plan.slots and options.algorithm == "wasap":
        slots = sum(slots_of_nodes(nodes, plan.most_slots))
    ranks = len(nodes.node)
    joined = ranks - 1 if ranks > 1 and options.algorithm in JOINED else 1
    steps = options.epochs * -(-train_samples // (joined * options.batch_size))
    rate = default_learning_rate(
        options.recipe,
        config.layer_sizes[1:-1],
        steps,
        optimizer=options.optimizer,
        slots=slots,
        batch_size=options.batch_size,
        joined=joined,
    )
    training = training_config(options, plan, rate)
    if not options.resume and config.probabilities() != config.final_probabilities():
        Shrinking.planned(config, training)  # refuse what cannot be
    most = max(expected_connections(config))
    backend = choose_backend(options.backend, config.layer_sizes, most)
    print(f"{describe_plan(config, plan)}\nbackend {backend.name}: {backend.reason}", flush=True)
    if not options.plan:
        check_output(options.out)
        if options.checkpoint:
            each = 8 + moment_bytes(training.moments)
            nbytes = int(each * config.expected_connections())
            check_checkpoint_folder(options.checkpoint, going_on=options.resume, nbytes=nbytes)
        get_backend(backend.name)
        if plan.slots:
            check_disk(plan)
    return Job(options, config, training, plan)


def network_config(options: argparse.Namespace) -> NetworkConfig:
    """Return the network; what is not given follows the nearest row of Table 4."""
    row = nearest_row(options.neurons)
    hidden = hidden_sizes(options.neurons, options.layers or row.hidden_layers)
    return NetworkConfig(
        layer_sizes=(options.features, *hidden, 2),
        epsilon=given(options.epsilon, row.epsilon if options.density is None else None),
        **given_settings(options, NETWORK),
        alpha=given(options.alpha, HYPERPARAMETERS[options.recipe].alpha),
        recipe=options.recipe,
        coverage=options.coverage,
        seed=options.seed,
    )


def plan_memory(
    options: argparse.Namespace, config: NetworkConfig, nodes: Nodes, memory: Any
) -> Any:
    """Choose the micro-batch and how activations are kept, of one process or of all ranks."""
    ranks = len(nodes.node)
    wanted = training_config(options)
    if ranks > 1 and not is_pipeline(options, ranks):
        check_config(wanted)
    check_room(wanted, options.storage)
    most = max(expected_connections(config))
    backend = choose_backend(options.backend, config.layer_sizes, most).name
    dtype = options.activation_dtype or useful_dtype(config, options.backend)
    made = is_made(**data_parameters(options))
    once = bytes_once(backend, dtype, made, wanted.optimizer)
    if is_pipeline(options, ranks):
        known: dict[str, Any] = {"activation_dtype": dtype, "backend": backend, "once": once}
        return plan_pipeline(options, config, wanted, memory, **known)
    choose: Callable[..., MemoryPlan]
    choose = functools.partial(
        choose_plan,
        storage=options.storage,
        backend=backend,
        once=once,
    )
    if ranks > 1:
        spread, at_most = parallel_options(options), None
        if spread.algorithm == "wasap":  # the others have no staleness
            at_most = most_slots(options.recipe)
        choose = functools.partial(
            choose_parallel_plan,
            nodes=nodes,
            slots=spread.most_slots,
            at_most=at_most,
            available=memory,
            algorithm=spread.algorithm,
            replicas=ranks - 1 if spread.phase_one_epochs < options.epochs else 0,
            evolving=options.epochs - spread.phase_one_epochs > 1,
            needs_gradient=wanted.rules.needs_gradient,
        )
    return choose(
        config,
        options.batch_size,
        moments=wanted.moments,
        candidates=wanted.candidates_per_connection,
        micro_batch=options.micro_batch,
        keep_every=options.keep_every,
        activation_dtype=dtype,
        mapped=4 * options.samples * options.features,
    )


def training_config(
    options: argparse.Namespace, plan: Any = None, rate: float | None = None
) -> TrainingConfig:
    """Return the settings of the training, or those that do not depend on the plan.

    `rate` is the learning rate, unless one is given.
    """
    hyper, threads = HYPERPARAMETERS[options.recipe], options.threads
    settings = given_settings(options, TRAINING)
    chosen = {"learning_rate": rate, "dropout": hyper.dropout, "schedule": hyper.schedule}
    if plan is not None:
        chosen |= plan.micro_batching.settings()
        if threads or (not plan.slots and plan.ranks == 1):
            threads = resolve_threads(threads, "bigmodel")
    return TrainingConfig(
        epochs=options.epochs,
        batch_size=options.batch_size,
        warmup_epochs=hyper.warmup_epochs,
        evolve_last=True,  # to time it
        **evaluations(options.neurons),
        curve_points=options.curve_points,
        curve_rows=options.curve_rows,
        seed=options.seed,
        backend=options.backend or "auto",
        threads=threads,
        **(chosen | settings),
    )


def prepare(job: Job, leads: bool) -> Any:
    """Have the kernels at hand, and on rank 0 the data."""
    options, data = job.options, None
    if leads:
        data = make_large_classification(**data_parameters(options))
    training = job.training
    most = max(expected_connections(job.config))
    warm_up(
        get_backend(options.backend, job.config.layer_sizes, most).name,
        threads=training.threads or 1,
        activation_dtype=training.activation_dtype,
        whole=training.micro_batch == training.batch_size,
        optimizer=training.optimizer,
    )
    return data


def data_parameters(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the data follows from."""
    return {
        "n_samples": options.samples,
        "n_features": options.features,
        "n_informative": options.informative,
        "n_redundant": options.redundant,
        "test_fraction": options.test_fraction,
        "random_state": options.seed,
    }


def changes_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the flags that replace what the run which goes on had."""
    names = ("micro_batch", "keep_every", "activation_dtype", "backend")
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def initialise(job: Job) -> Trainer:
    """Make the network, or read the checkpoint."""
    options, training = job.options, job.training
    storage = None if options.storage is None else Storage(options.storage)
    if not options.resume:
        threads = resolve_threads(training.threads, "bigmodel")
        trainer = Trainer(SparseMLP(job.config, threads=threads, storage=storage), training)
    else:
        changes = {"epochs": options.epochs, "threads": training.threads, **changes_of(options)}
        trainer = load_checkpoint(options.resume, storage=storage, **changes)
        check_network(trainer.network.config, job.config)
    names = ("micro_batch", "activation_dtype")
    used = {name: getattr(trainer.micro_batching, name) for name in names}
    used["backend"] = trainer.backend.name
    trainer.notes[NOTES] = flags_of(options) | used
    return trainer


def train(job: Job, comm: Any, trainer: Trainer | None, data: Any) -> Any:
    """Train in this process or, under mpiexec, by all ranks; return the history, on rank 0."""
    options = job.options
    own: dict[str, Any] = {}
    if trainer is not None:  # on rank 0
        own = {"X": data.X_train, "y": data.y_train, "test": (data.X_test, data.y_test)}
        own |= {"checkpoint": options.checkpoint, "callbacks": [print_epochs]}
        if comm.size == 1:
            return trainer.fit(**own)
        own["resume"] = trainer
    return TRAIN[options.algorithm](
        None,
        job.training,
        comm=comm,
        phase_one_epochs=parallel_options(options).phase_one_epochs,
        slots=job.plan.most_slots,
        ranks_per_node=options.ranks_per_node,
        chunk_bytes=options.chunk_bytes,
        **own,
    )


def time_processes(processes: int, trainer: Trainer, X: Any) -> float | None:
    """Return the seconds that several worker processes take to predict rows; None for one."""
    if processes == 1:
        return None
    used: Any = {"backend": trainer.backend.name}
    used["activation_dtype"] = trainer.config.activation_dtype
    with Predictor(trainer.network, processes=processes, **used) as predictor:
        started = time.perf_counter()
        predictor.predict(X)
        return time.perf_counter() - started


def given(value: float | None, default: Any) -> Any:
    """Return a value of the command line, or the default where it was not given."""
    return default if value is None else value


def print_epochs(trainer: Trainer, _: EpochRecord) -> None:
    """Print a line an epoch, for runs whose progress bar nobody watches; look at the noise."""
    for line in describe_new_epochs(trainer.history.epochs, trainer.config.epochs):
        tqdm.write(line)
    sys.stdout.flush()
    tick()
