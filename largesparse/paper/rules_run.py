"""Run the trainings that compare rules of evolution.

Trainings run in processes of one thread each, which are started once; every one that is complete is
kept as a run record, and is not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from multiprocessing import get_context
from typing import Any

from tqdm import tqdm

from ..data.datasets import Dataset, load_dataset
from ..errors import LargeSparseError, NumericalError
from ..harness.noise import NoiseMeter
from ..harness.records import RunRecord, append_record, check_output, new_record, record_rows
from ..harness.scaling import records_of
from ..machine.output import LogLines, is_terminal
from ..machine.sizes import parse_size
from ..machine.threads import available_threads
from ..machine.usage import cpu_seconds
from ..model.network import SparseMLP
from ..training.trainer import Trainer
from ..training.warming import warm_up
from .jobs import ONE_THREAD
from .recording import some_rows, training_seconds
from .rules import (
    DENSITIES,
    EPOCHS,
    NAMES,
    OPTIMIZERS,
    SHORT,
    RuleProtocol,
    RuleTraining,
    best_choice,
    choosing,
    groups,
    make_training,
)
from .rules_table import show, table_of
from .tables import Run
from .trainings import key_of

KIND = "rules"


@lru_cache(maxsize=1)
def rows_of(dataset: str, rows: int | None) -> Dataset:
    """Return a data set with so many training rows at most, the same for all trainings."""
    data = load_dataset(dataset)
    if rows is None or rows >= len(data.y_train):
        return data
    chosen = some_rows(len(data.y_train), rows)
    return data._replace(X_train=data.X_train[chosen], y_train=data.y_train[chosen])


@NoiseMeter()
def run(one: RuleTraining) -> RunRecord:
    """Run a training in this process; return its record.

    Its `accuracy` has one number: that of the test rows after the last epoch, or of the validation
    rows where it chooses a learning rate; None where it has diverged.
    """
    data = rows_of(one.dataset, one.rows)
    warm_up(one.training.backend, optimizer=one.training.optimizer)
    network = SparseMLP(one.network, progress=False)
    trainer = Trainer(network, one.training)
    before, accuracy, started = network.connections, None, cpu_seconds()
    diverged = False
    try:
        trainer.fit(data.X_train, data.y_train, progress=False)
    except NumericalError:
        diverged = True
    cpu_s = cpu_seconds() - started
    if one.chooses and not diverged:
        accuracy = trainer.history["validation_accuracy"][-1]
    elif not diverged:
        accuracy = trainer.evaluate(data.X_test, data.y_test)[1]
    return new_record(
        KIND,
        dataset=one.dataset,
        settings=one.settings,
        algorithm="sequential",
        threads=1,
        seed=one.training.seed,
        backend=trainer.backend.name,
        train_samples=len(data.y_train),
        test_samples=len(data.y_test),
        accuracy=[accuracy],
        train_s=training_seconds(trainer.history),
        cpu_s=[cpu_s],
        nnz=[before, network.connections],
        explored=trainer.history["explored"][-1],
    )


class Kept:
    """The newest record of every training in a file."""

    def __init__(self, path: str) -> None:
        records = records_of(path)
        rows = record_rows(records[records["kind"] == KIND])
        self._by_key = {key_of(row["settings"]): row for row in rows if row["settings"]}

    def get(self, one: RuleTraining) -> Run | None:
        """Return the record of a training, where there is one."""
        return self._by_key.get(one.key)


def run_missing(trainings: Iterable[RuleTraining], out: str, command: str, jobs: int) -> None:
    """Run trainings that are not in a file of records, and append their records.

    Raises
    ------
    LargeSparseError
        Where some failed, after all others have been run.
    """
    kept = Kept(out)
    missing = [one for one in trainings if kept.get(one) is None]
    if not missing:
        return
    check_output(out)
    for dataset in dict.fromkeys(one.dataset for one in missing):
        load_dataset(dataset)  # what is wrong with the data is told before anything runs
    total, failures = sum(one.training.epochs for one in missing), []
    bar: Any = LogLines("trainings", total, " epochs")
    if is_terminal():
        bar = tqdm(total=total, unit=" epochs", smoothing=0.02)
    os.environ.update(ONE_THREAD)  # of the processes that are started
    with bar, ProcessPoolExecutor(jobs, get_context("spawn"), _begin) as pool:
        futures = {pool.submit(run, one): one for one in missing}
        try:
            for future in as_completed(futures):
                one = futures[future]
                try:
                    record = future.result()
                except LargeSparseError as error:
                    failures.append(f"{one}: {error}")
                    tqdm.write(failures[-1], file=sys.stderr)
                else:
                    record.command = command
                    append_record(out, record)
                bar.update(one.training.epochs)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            tqdm.write("Stopped. Repeat the command to go on.", file=sys.stderr)
            raise
    if failures:
        raise LargeSparseError(
            f"{len(failures)} of {len(missing)} trainings failed; repeat the command to run them "
            f"again. The first: {failures[0]}"
        )


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent tells


def add_flags(group: Any) -> None:
    """Add the flags of this table alone."""
    add = group.add_argument
    add(
        "--rules",
        nargs="*",
        choices=NAMES,
        metavar="RULE",
        help="compare rules of evolution, by default all: " + ", ".join(NAMES),
    )
    add("--optimizers", nargs="+", choices=tuple(OPTIMIZERS), metavar="NAME",
        help=f"of --rules: {', '.join(OPTIMIZERS)} (default all)")  # fmt: skip
    add("--densities", type=float, nargs="+", default=list(DENSITIES), metavar="SHARE",
        help="of --rules (default 0.01 0.05)")  # fmt: skip
    add(
        "--rows",
        type=parse_size,
        metavar="N",
        help="of --rules: training rows at most (default all)",
    )
    add("--short", action="store_true",
        help=f"of --rules: {SHORT.epochs} epochs of {SHORT.rows} rows, {len(SHORT.seeds)} seeds, "
        "unless other flags say otherwise")  # fmt: skip


def protocol_of(options: argparse.Namespace) -> RuleProtocol:
    """Return the protocol of the command line."""
    protocol = SHORT if options.short else RuleProtocol()
    given = {"epochs": options.epochs, "rows": options.rows, "backend": options.backend}
    if options.seeds is not None:
        given["seeds"] = tuple(range(options.first_seed, options.first_seed + options.seeds))
    changes = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(protocol, **changes)


def compare_rules(options: argparse.Namespace, command: str) -> None:
    """Do what the command line asks for with --rules: run, print the table, and keep it."""
    protocol = protocol_of(options)
    datasets = options.dataset or list(EPOCHS)
    some = groups(options.rules or NAMES, options.optimizers or OPTIMIZERS, options.densities)
    each = [(dataset, *group) for dataset in datasets for group in some]
    jobs = options.jobs or available_threads()
    first = list(dict.fromkeys(one for group in each for one in choosing(protocol, *group[:4])))
    runs = not (options.plan or options.no_run)
    if runs:
        run_missing(first, options.out, command, jobs)
    kept = Kept(options.out)
    rows = []
    for dataset, optimizer, density, chooser, rules in each:
        candidates = choosing(protocol, dataset, optimizer, density, chooser)
        found = [kept.get(one) for one in candidates]
        scores = [None if run is None else run["accuracy"][0] for run in found]
        chosen = best_choice(optimizer, scores)
        for rule in rules:
            given = protocol, dataset, rule, optimizer, density, chosen
            rows.append((rule, [make_training(*given, seed) for seed in protocol.seeds]))
    wanted = list(dict.fromkeys(one for _, row in rows for one in row))
    if options.plan:
        for one in [one for one in (*first, *wanted) if kept.get(one) is None]:
            connections = one.network.expected_connections()
            print(f"{one}: {one.training.epochs} epochs, {connections:,.0f} connections")
        return
    failure = None
    if runs:
        try:
            run_missing(wanted, options.out, command, jobs)
        except LargeSparseError as error:
            failure = error
    show(table_of(rows, Kept(options.out).get), options.plots, protocol)
    if failure is not None:
        raise failure
