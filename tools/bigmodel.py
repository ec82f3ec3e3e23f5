"""Train extremely large sparse networks on synthetic data, and time every phase (section 2.4).

    python tools/bigmodel.py --neurons 1M
    python tools/bigmodel.py --neurons 50M --plan
    python tools/bigmodel.py --neurons 250k --features 4096 --samples 4000 --epochs 5
    mpiexec -n 16 python tools/bigmodel.py --neurons 50M
    python tools/bigmodel.py --neurons 50M --checkpoint run
    python tools/bigmodel.py --resume run

Initialisation, each epoch, inference and each evolution are timed separately and printed beside
the paper's Table 4; one run record is appended to the output file.

Under mpiexec the network is trained by WASAP-SGD (Algorithm 1): rank 0 is the parameter server, the
other ranks are workers. Ranks of one node share the model and the data. They compute in slots, by
default one a core; memory follows the slots, so more ranks than cores cost little.

A run with --checkpoint survives. It saves after every epoch. SIGTERM (status 143) or Ctrl-C (130)
lets it finish the present mini-batch, save, and tell where; --resume goes on from there to the
result that it would have had. A line for batch systems that end jobs and start them again:

    python tools/bigmodel.py --neurons 50M --checkpoint run --resume
"""

from __future__ import annotations

import argparse
import functools
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from largesparse import (
    EpochRecord,
    History,
    NetworkConfig,
    Predictor,
    SparseMLP,
    Trainer,
    TrainingConfig,
    load_checkpoint,
    make_large_classification,
)
from largesparse.backends import get_backend
from largesparse.checkpoint import read_history
from largesparse.cli import run_command
from largesparse.comparison import (
    compare_with_table_4,
    describe_new_epochs,
    describe_plan,
    describe_training,
)
from largesparse.driver_flags import (
    add_data_flags,
    add_model_flags,
    add_ranks_flags,
    add_run_flags,
    add_training_flags,
)
from largesparse.environment import launched_ranks
from largesparse.errors import ParameterError, check_range
from largesparse.inference import MAX_PROCESSES
from largesparse.memory import GIB, MemoryPlan, choose_plan, useful_dtype
from largesparse.parallel import train_wasap, train_wassp
from largesparse.parallel.collectives import broadcast
from largesparse.parallel.nodes import Nodes
from largesparse.parallel.options import ParallelOptions, phase_one_length
from largesparse.parallel.plan import (
    check_disk,
    choose_parallel_plan,
    memory_of_ranks,
    slots_of_nodes,
)
from largesparse.parallel.ranks import Alone, get_communicator, together
from largesparse.presets import (
    HYPERPARAMETERS,
    default_learning_rate,
    hidden_sizes,
    nearest_row,
)
from largesparse.records import (
    RunRecord,
    append_record,
    check_output,
    has_record,
    new_record,
)
from largesparse.resuming import flags_of, parse_resumable
from largesparse.saving import check_checkpoint_folder
from largesparse.storage import Storage
from largesparse.threads import resolve_threads
from largesparse.usage import peak_rss_bytes
from largesparse.warming import warm_up

FLAGS = (add_model_flags, add_data_flags, add_training_flags, add_run_flags, add_ranks_flags)
TRAIN = {
    "wasap": train_wasap,
    "wassp": train_wassp,
    "allreduce": functools.partial(train_wassp, server=False),
}


class Job(NamedTuple):
    """What all ranks know of the run."""

    options: argparse.Namespace
    config: NetworkConfig
    training: TrainingConfig
    plan: MemoryPlan


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="bigmodel.py",  # checkpoints know the run's flags by it
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for add_flags in FLAGS:
        add_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Plan, make the data, initialise, train, predict; print the table and record the run."""
    comm = get_communicator() if launched_ranks()[1] > 1 else Alone()
    leads = comm.rank == 0
    if not leads:
        logging.getLogger("largesparse").setLevel(logging.CRITICAL)  # rank 0 warns for all
    options = broadcast(comm, together(comm, lambda: parse(argv, comm.size) if leads else None))
    if isinstance(options, int):
        raise SystemExit(options)
    nodes = Nodes.of(comm, options.ranks_per_node)
    memory = memory_of_ranks(comm, nodes)
    plan = functools.partial(plan_run, options, nodes, memory)
    job = broadcast(comm, together(comm, lambda: plan() if leads else None))
    if options.plan:
        return 0
    data = together(comm, lambda: prepare(job, leads))
    started = time.perf_counter()
    trainer = together(comm, lambda: initialise(job) if leads else None)
    init_s = time.perf_counter() - started
    if comm.size > 1:
        train = functools.partial(
            TRAIN[options.algorithm],
            None,
            job.training,
            comm=comm,
            phase_one_epochs=options.phase_one_epochs,
            slots=job.plan.most_slots,
            ranks_per_node=options.ranks_per_node,
            chunk_bytes=options.chunk_bytes,
        )
        if not leads:
            train()
            return 0
        train = functools.partial(train, resume=trainer)
    else:
        train = trainer.fit
    network = trainer.network
    print(describe_training(trainer, resumed=options.resume is not None))
    print(f"initialised in {init_s:.1f} s: {network.connections:,} connections", flush=True)
    history = train(
        X=data.X_train,
        y=data.y_train,
        test=(data.X_test, data.y_test),
        checkpoint=options.checkpoint,
        callbacks=[print_epochs],
    )
    processes_s = None
    if options.processes > 1:
        backend = trainer.backend.name
        dtype = trainer.config.activation_dtype
        used = {"backend": backend, "activation_dtype": dtype}
        with Predictor(network, processes=options.processes, **used) as predictor:
            started = time.perf_counter()
            predictor.predict(data.X_test)
            processes_s = time.perf_counter() - started

    config = job.config
    record = new_record(
        "bigmodel",
        neurons=network.neurons,
        layers=len(network.layers) - 1,
        features=config.layer_sizes[0],
        epsilon=config.epsilon,
        parameters=network.parameters,
        connections=network.connections,
        backend=trainer.backend.name,
        recipe=config.recipe,
        batch_size=trainer.config.batch_size,
        micro_batch=trainer.micro_batch,
        keep_every=trainer.config.keep_every,
        activation_dtype=trainer.config.activation_dtype,
        train_samples=len(data.y_train),
        test_samples=len(data.y_test),
        seed=config.seed,
        init_s=init_s,
        epoch_s=history["epoch_s"][1:],
        inference_s=history["inference_s"][1:],
        evolution_s=history["evolution_s"][1:],
        loss=history["loss"],
        accuracy=history["test_accuracy"],
        coverage=config.coverage,
        active_neurons=history["active_neurons"],
        planned_bytes=job.plan.total,
        **of_ranks(trainer, history),
    )
    append_record(options.out, record)
    print(history.to_frame().drop(columns=["nnz", "validation_accuracy"]).round(4).to_string())
    print(f"\n{compare_with_table_4(record, config)}")
    if processes_s is not None:
        print(f"inference with {options.processes} processes: {processes_s:.1f} s")
    print_use(record, history)
    print(f"record appended to {options.out}")
    return 0


def parse(argv: Sequence[str] | None, ranks: int) -> argparse.Namespace | int:
    """Return the options, or the exit code where all has been said that there is to say."""
    try:
        options = parse_resumable(make_parser(), argv, required="neurons")
    except SystemExit as end:
        return end.code
    if ranks > 1 and options.processes > 1:
        raise ParameterError(
            "The 'processes' parameter of bigmodel must be 1 under mpiexec, where all ranks "
            f"predict the test rows together. Got {options.processes} instead."
        )
    if ranks > 1:
        parallel_options(options)
    if ranks > 1 and options.storage is not None:
        raise ParameterError(
            "The 'storage' parameter of bigmodel is for one rank: under mpiexec the ranks share "
            f"memory. Got {options.storage!r}. Start it without mpiexec, or leave it out."
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


def is_done(options: argparse.Namespace) -> bool:
    """Return whether the run to resume is complete and recorded: no two have the same times."""
    history, whole = read_history(options.resume)
    if not whole or len(history) <= options.epochs:
        return False
    return has_record(options.out, loss=history["loss"], epoch_s=history["epoch_s"][1:])


def parallel_options(options: argparse.Namespace) -> ParallelOptions:
    """Return how the training is spread over ranks, checked."""
    phase_one = phase_one_length(options.epochs, options.phase_one_epochs)
    names = ("algorithm", "slots", "ranks_per_node", "chunk_bytes")
    return ParallelOptions(phase_one_epochs=phase_one, **{n: getattr(options, n) for n in names})


def plan_run(options: argparse.Namespace, nodes: Nodes, memory: int) -> Job:
    """Check what can be checked before any work, choose the rest, and print the plan."""
    row = nearest_row(options.neurons)
    hyper = HYPERPARAMETERS[options.recipe]
    ranks = len(nodes.node)
    config = NetworkConfig(
        layer_sizes=(
            options.features,
            *hidden_sizes(options.neurons, options.layers or row.hidden_layers),
            2,
        ),
        epsilon=row.epsilon if options.epsilon is None else options.epsilon,
        alpha=hyper.alpha if options.alpha is None else options.alpha,
        recipe=options.recipe,
        coverage=options.coverage,
        seed=options.seed,
    )
    check_range(
        "test_fraction",
        options.test_fraction,
        "bigmodel",
        low=0,
        high=1,
        low_open=True,
        high_open=True,
    )
    check_range("processes", options.processes, "bigmodel", high=MAX_PROCESSES)
    train_samples = options.samples - math.ceil(options.test_fraction * options.samples)
    if options.batch_size > train_samples:
        raise ParameterError(
            f"The 'batch_size' parameter must be at most the number of training rows, "
            f"{train_samples}. Got {options.batch_size} instead. Give more --samples."
        )
    steps = options.epochs * -(-train_samples // options.batch_size)
    choose: Callable[..., MemoryPlan]
    choose = functools.partial(choose_plan, storage=options.storage)
    if ranks > 1:
        spread = parallel_options(options)
        choose = functools.partial(
            choose_parallel_plan,
            nodes=nodes,
            slots=spread.most_slots,
            available=memory,
            algorithm=spread.algorithm,
            replicas=ranks - 1 if spread.phase_one_epochs < options.epochs else 0,
            evolving=options.epochs - spread.phase_one_epochs > 1,
        )
    plan = choose(
        config,
        options.batch_size,
        micro_batch=options.micro_batch,
        keep_every=options.keep_every,
        activation_dtype=options.activation_dtype or useful_dtype(config, options.backend),
        mapped=4 * options.samples * options.features,
    )
    stale = 1
    if plan.slots and options.algorithm == "wasap":
        stale = sum(slots_of_nodes(nodes, plan.most_slots))
    threads, sizes = options.threads, config.layer_sizes[1:-1]
    training = TrainingConfig(
        epochs=options.epochs,
        batch_size=options.batch_size,
        **plan.micro_batching._asdict(),
        learning_rate=given(
            options.learning_rate,
            default_learning_rate(options.recipe, sizes, steps, slots=stale),
        ),
        dropout=given(options.dropout, hyper.dropout),
        schedule=hyper.schedule,
        warmup_epochs=hyper.warmup_epochs,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        zeta=options.zeta,
        evolve_last=True,  # to time it
        seed=options.seed,
        backend=options.backend,
        threads=None if ranks > 1 and not threads else resolve_threads(threads, "bigmodel"),
    )
    print(describe_plan(config, plan), flush=True)
    if not options.plan:
        check_output(options.out)
        if options.checkpoint:
            nbytes = int(12 * config.expected_connections())
            check_checkpoint_folder(options.checkpoint, going_on=options.resume, nbytes=nbytes)
        get_backend(options.backend)
        if plan.slots:
            check_disk(plan)
    return Job(options, config, training, plan)


def prepare(job: Job, leads: bool) -> Any:
    """Have the kernels at hand, and on rank 0 the data."""
    options, data = job.options, None
    if leads:
        data = make_large_classification(
            options.samples,
            options.features,
            n_informative=options.informative,
            n_redundant=options.redundant,
            test_fraction=options.test_fraction,
            random_state=options.seed,
        )
    training = job.training
    warm_up(
        get_backend(options.backend).name,
        threads=training.threads or 1,
        activation_dtype=training.activation_dtype,
    )
    return data


def initialise(job: Job) -> Trainer:
    """Make the network, or read the checkpoint."""
    options, training = job.options, job.training
    storage = None if options.storage is None else Storage(options.storage)
    if not options.resume:
        threads = resolve_threads(training.threads, "bigmodel")
        trainer = Trainer(SparseMLP(job.config, threads=threads, storage=storage), training)
    else:
        changes = {"epochs": options.epochs, "threads": training.threads}
        for name in ("micro_batch", "keep_every", "activation_dtype", "backend"):
            if getattr(options, name) is not None:
                changes[name] = getattr(options, name)
        trainer = load_checkpoint(options.resume, storage=storage, **changes)
        if trainer.network.config != job.config:
            raise ParameterError(
                f"The 'resume' parameter names a checkpoint of another network: "
                f"{trainer.network.config}. Repeat the command that wrote it."
            )
    names = ("micro_batch", "activation_dtype")
    used = {name: getattr(trainer.micro_batching, name) for name in names}
    used["backend"] = trainer.backend.name
    trainer.notes[make_parser().prog] = flags_of(options) | used
    return trainer


def of_ranks(trainer: Trainer, history: History) -> dict[str, Any]:
    """Return what the record has about the ranks."""
    report = history.parallel
    if report is None:
        return {
            "algorithm": "sequential",
            "ranks": 1,
            "threads": trainer.threads,
            "peak_rss_bytes": peak_rss_bytes(),
        }
    names = ("algorithm", "ranks", "peak_rss_bytes", "node_pss_bytes", "phase_one_epochs")
    names += ("idle_s", "bytes_moved", "cpu_s")
    found = {name: getattr(report, name) for name in names}
    return found | {"threads": report.threads[0], "staleness": report.staleness_record()}


def given(value: float | None, default: float) -> float:
    """Return a value of the command line, or the default where it was not given."""
    return default if value is None else value


def print_epochs(trainer: Trainer, _: EpochRecord) -> None:
    """Print a line an epoch, for runs whose progress bar nobody watches."""
    for line in describe_new_epochs(trainer.history.epochs, trainer.config.epochs):
        tqdm.write(line)
    sys.stdout.flush()


def print_use(record: RunRecord, history: History) -> None:
    """Print the memory beside the plan, and what the ranks did."""
    assert record.peak_rss_bytes is not None and record.planned_bytes is not None
    planned = record.planned_bytes / GIB
    report = history.parallel
    if report is None:
        print(f"peak memory {record.peak_rss_bytes / GIB:.2f} GiB, planned {planned:.2f}")
        return
    slots = ", ".join(map(str, report.slots))
    print(
        f"{report.ranks} ranks, {report.nodes} nodes with {slots} slots: staleness "
        f"{report.mean_staleness:.1f} in the mean, {report.max_staleness} at most; "
        f"{report.bytes_moved / GIB:.2f} GiB between nodes; {sum(report.cpu_s):.0f} s of processors"
    )
    print(
        f"memory of the largest node {report.node_pss_bytes / GIB:.2f} GiB, planned {planned:.2f}"
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
