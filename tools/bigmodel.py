"""Train extremely large sparse networks on synthetic data, and time every phase (section 2.4).

    python tools/bigmodel.py --neurons 1M
    python tools/bigmodel.py --neurons 50M --plan
    python tools/bigmodel.py --neurons 250k --features 4096 --samples 4000 --epochs 5

Initialisation, each epoch, inference and each evolution are timed separately and printed beside
the paper's Table 4; one run record is appended to the output file.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from largesparse import (
    EpochRecord,
    NetworkConfig,
    Predictor,
    SparseMLP,
    Trainer,
    TrainingConfig,
    load_checkpoint,
    make_large_classification,
)
from largesparse.backends import BACKENDS, get_backend
from largesparse.checkpoint import check_folder
from largesparse.cli import parse_size, run_command
from largesparse.environment import launched_ranks
from largesparse.errors import ParameterError, check_range
from largesparse.inference import MAX_PROCESSES
from largesparse.memory import MemoryPlan, choose_plan
from largesparse.presets import (
    HYPERPARAMETERS,
    Table4Row,
    default_learning_rate,
    hidden_sizes,
    nearest_row,
    nominal_parameters,
)
from largesparse.records import (
    RunRecord,
    append_record,
    check_output,
    new_record,
    peak_rss_bytes,
)
from largesparse.threads import resolve_threads
from largesparse.warming import warm_up


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model = parser.add_argument_group("model (defaults follow the nearest row of Table 4)")
    model.add_argument(
        "--neurons",
        type=parse_size,
        required=True,
        metavar="N",
        help="hidden neurons of all layers together: 250k, 1M, 2.5M, 50M",
    )
    model.add_argument("--layers", type=parse_size, metavar="N", help="number of hidden layers")
    model.add_argument(
        "--epsilon",
        type=float,
        help="density control: about epsilon*(n_in+n_out) connections a layer",
    )
    model.add_argument("--alpha", type=float, help="All-ReLU's slope (default 0.6)")
    model.add_argument(
        "--recipe",
        choices=sorted(HYPERPARAMETERS),
        default="width",
        help="initial values and learning rates: 'width' learns at any width, "
        "'paper' is the paper's (default %(default)s)",
    )
    data = parser.add_argument_group("data: make_classification with two classes")
    data.add_argument(
        "--features", type=parse_size, default=65536, metavar="N", help="default %(default)s"
    )
    data.add_argument(
        "--samples",
        type=parse_size,
        default=10000,
        metavar="N",
        help="training and test rows together (default %(default)s)",
    )
    data.add_argument(
        "--informative", type=parse_size, default=32, metavar="N", help="default %(default)s"
    )
    data.add_argument(
        "--redundant", type=parse_size, default=32, metavar="N", help="default %(default)s"
    )
    data.add_argument("--test-fraction", type=float, default=0.3, help="default %(default)s")
    training = parser.add_argument_group("training")
    training.add_argument(
        "--epochs", type=parse_size, default=2, metavar="N", help="default %(default)s"
    )
    training.add_argument(
        "--batch-size",
        type=parse_size,
        default=128,
        metavar="N",
        help="samples per update (default %(default)s)",
    )
    training.add_argument(
        "--micro-batch",
        type=parse_size,
        metavar="N",
        help="samples computed at once (default: what the memory allows)",
    )
    training.add_argument(
        "--learning-rate",
        type=float,
        help="default: by depth, width and length, 4 at most (width); 0.01 (paper)",
    )
    training.add_argument("--dropout", type=float, help="default: 0 (width), 0.4 (paper)")
    training.add_argument("--momentum", type=float, default=0.9, help="default %(default)s")
    training.add_argument("--weight-decay", type=float, default=2e-4, help="default %(default)s")
    training.add_argument(
        "--zeta",
        type=float,
        default=0.3,
        help="fraction that evolution replaces (default %(default)s)",
    )
    training.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the data, the model and the training (default %(default)s)",
    )
    run = parser.add_argument_group("run")
    run.add_argument("--backend", choices=BACKENDS, help="default: LARGESPARSE_BACKEND, else mkl")
    run.add_argument("--threads", type=parse_size, metavar="N", help="default: all cores")
    run.add_argument(
        "--processes",
        type=parse_size,
        default=1,
        metavar="N",
        help="also time inference with this many worker processes",
    )
    run.add_argument(
        "--out",
        default="runs.jsonl",
        metavar="FILE",
        help="receives the run record, one JSON line (default %(default)s)",
    )
    run.add_argument("--checkpoint", metavar="DIR", help="write a checkpoint after every epoch")
    run.add_argument("--resume", metavar="DIR", help="go on from a checkpoint")
    run.add_argument("--plan", action="store_true", help="print the memory plan and stop")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Plan, make the data, initialise, train, predict; print the table and record the run."""
    options = make_parser().parse_args(argv)
    rank, ranks = launched_ranks()
    if ranks > 1:
        if rank > 0:
            return 2  # rank 0 says why
        raise ParameterError(
            f"bigmodel runs in one process for now, and mpiexec started {ranks}: "
            "leave mpiexec out, and use --threads for more cores."
        )
    row = nearest_row(options.neurons)
    hyper = HYPERPARAMETERS[options.recipe]
    config = NetworkConfig(
        layer_sizes=(
            options.features,
            *hidden_sizes(options.neurons, options.layers or row.hidden_layers),
            2,
        ),
        epsilon=row.epsilon if options.epsilon is None else options.epsilon,
        alpha=hyper.alpha if options.alpha is None else options.alpha,
        recipe=options.recipe,
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
    plan = choose_plan(
        config,
        options.batch_size,
        micro_batch=options.micro_batch,
        mapped=4 * options.samples * options.features,
    )
    training = TrainingConfig(
        epochs=options.epochs,
        batch_size=options.batch_size,
        micro_batch=plan.micro_batch,
        learning_rate=given(
            options.learning_rate,
            default_learning_rate(options.recipe, config.layer_sizes[1:-1], steps),
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
        threads=resolve_threads(options.threads, "bigmodel"),
    )
    print_plan(config, plan)
    if options.plan:
        return 0
    out = check_output(options.out)
    if options.checkpoint:
        check_folder(options.checkpoint)
    backend = get_backend(options.backend)
    data = make_large_classification(
        options.samples,
        options.features,
        n_informative=options.informative,
        n_redundant=options.redundant,
        test_fraction=options.test_fraction,
        random_state=options.seed,
    )
    warm_up(backend.name, threads=training.threads)

    started = time.perf_counter()
    if options.resume:
        changes = {"epochs": options.epochs, "threads": training.threads}
        trainer = load_checkpoint(options.resume, **changes)
        if trainer.network.config != config:
            raise ParameterError(
                f"The 'resume' parameter names a checkpoint of another network: "
                f"{trainer.network.config}. Repeat the command that wrote it."
            )
    else:
        trainer = Trainer(SparseMLP(config, threads=training.threads), training)
    init_s = time.perf_counter() - started
    network = trainer.network
    used = trainer.config
    print(
        f"training: learning rate {used.learning_rate:g} ({used.schedule}), batch "
        f"{used.batch_size}, micro-batch {used.micro_batch}, momentum {used.momentum:g}, dropout "
        f"{used.dropout:g}, weight decay {used.weight_decay:g}, zeta {used.zeta:g}"
        + (", as in the checkpoint" if options.resume else "")
    )
    print(f"initialised in {init_s:.1f} s: {network.connections:,} connections")
    history = trainer.fit(
        data.X_train,
        data.y_train,
        test=(data.X_test, data.y_test),
        checkpoint=options.checkpoint,
        callbacks=[print_epoch],
    )
    processes_s = None
    if options.processes > 1:
        with Predictor(network, processes=options.processes, backend=backend.name) as predictor:
            started = time.perf_counter()
            predictor.predict(data.X_test)
            processes_s = time.perf_counter() - started

    record = new_record(
        "bigmodel",
        algorithm="sequential",
        neurons=network.neurons,
        layers=len(network.layers) - 1,
        epsilon=config.epsilon,
        parameters=network.parameters,
        connections=network.connections,
        ranks=1,
        threads=trainer.threads,
        backend=trainer.backend.name,
        recipe=config.recipe,
        batch_size=trainer.config.batch_size,
        micro_batch=trainer.workspace.micro_batch,
        train_samples=len(data.y_train),
        test_samples=len(data.y_test),
        seed=config.seed,
        init_s=init_s,
        epoch_s=history["epoch_s"][1:],
        inference_s=history["inference_s"][1:],
        evolution_s=history["evolution_s"][1:],
        loss=history["loss"],
        accuracy=history["test_accuracy"],
        planned_bytes=plan.total,
        peak_rss_bytes=peak_rss_bytes(),
    )
    append_record(out, record)
    print(history.to_frame().drop(columns=["nnz", "validation_accuracy"]).round(4).to_string())
    print_comparison(record, row, config)
    if processes_s is not None:
        print(f"inference with {options.processes} processes: {processes_s:.1f} s")
    print(f"peak memory {record.peak_rss_bytes / 2**30:.2f} GiB, planned {plan.total / 2**30:.2f}")
    print(f"record appended to {out}")
    return 0


def given(value: float | None, default: float) -> float:
    """Return a value of the command line, or the default where it was not given."""
    return default if value is None else value


def print_epoch(trainer: Trainer, record: EpochRecord) -> None:
    """Print a line an epoch, for runs whose progress bar nobody watches."""
    tqdm.write(
        f"epoch {record.epoch}/{trainer.config.epochs}: loss {record.loss:.4f}, test accuracy "
        f"{record.test_accuracy:.3f}, training {record.epoch_s:.1f} s, inference "
        f"{record.inference_s:.1f} s, evolution {record.evolution_s or 0:.1f} s"
    )
    sys.stdout.flush()


def print_plan(config: NetworkConfig, plan: MemoryPlan) -> None:
    """Print the size of the problem and the memory that it takes."""
    sizes = config.layer_sizes
    assert config.epsilon is not None
    nominal = nominal_parameters(sizes, config.epsilon)
    print(f"architecture {'-'.join(map(str, sizes))}: {config.neurons:,} neurons")
    print(
        f"epsilon {config.epsilon:g}: {nominal:,.0f} parameters as Table 4 counts, "
        f"{config.expected_connections():,.0f} connections expected"
    )
    for number, probability in enumerate(config.probabilities(), start=2):
        if probability == 1:
            print(f"layer {number} is fully connected at this epsilon")
    print(f"memory plan\n{plan}", flush=True)


def print_comparison(record: RunRecord, row: Table4Row, config: NetworkConfig) -> None:
    """Print the times and sizes of a run beside those of the nearest row of Table 4."""
    assert config.epsilon is not None

    def median(values: list[float | None]) -> str:
        measured = [value for value in values if value is not None]
        return f"{statistics.median(measured):.1f} s" if measured else "-"

    nominal = nominal_parameters(config.layer_sizes, config.epsilon)
    rows = [
        ("neurons", f"{record.neurons:,}", f"{row.neurons:,}"),
        ("hidden layers", str(record.layers), str(row.hidden_layers)),
        ("epsilon", f"{record.epsilon:g}", f"{row.epsilon:g}"),
        (
            "parameters, as Table 4 counts",
            f"{nominal / 1e6:.1f} M",
            f"{row.parameters / 1e6:.1f} M",
        ),
        ("connections and biases", f"{record.parameters / 1e6:.1f} M", "-"),
        ("initialisation", f"{record.init_s:.1f} s", f"{row.init_min:g} min"),
        ("epoch (median)", median(record.epoch_s), f"{row.epoch_min:g} min"),
        ("inference (median)", median(record.inference_s), f"{row.inference_min:g} min"),
        ("evolution (median)", median(record.evolution_s), f"{row.evolution_min:g} min"),
        ("workers or threads", str(record.threads), str(row.workers)),
        ("training rows", f"{record.train_samples:,}", "7,000"),
        ("test rows", f"{record.test_samples:,}", "3,000"),
    ]
    print(f"\n{'':<32}{'this run':>16}{'paper, Table 4':>18}")
    for name, ours, paper in rows:
        print(f"{name:<32}{ours:>16}{paper:>18}")
    print(
        f"\ntest accuracy {record.accuracy[-1]:.3f} after the last epoch, "
        f"{max(record.accuracy[1:]):.3f} at best; loss {record.loss[0]:.4f} -> "
        f"{record.loss[-1]:.4f}"
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
