"""Repeat the paper's tables and figures on this machine, beside the paper's own values.

    largesparse paper --table 2 --dataset madelon --seeds 5
    largesparse paper --table 2 --dataset fashionmnist --only all_relu all_relu+pruning
    largesparse paper --table 3 --dataset fashionmnist --epochs 60
    largesparse paper --table 5 6 --dataset fashionmnist --epochs 50
    largesparse paper --figure 5 6 7 --dataset madelon --seeds 5
    largesparse paper --extremes
    largesparse paper --rules --jobs 2

Table 2 is SET-MLP with ReLU, All-ReLU and SReLU, with and without Importance Pruning, and dense
baselines; 3 sequential, synchronous and asynchronous training (by mpiexec, which this starts); 5
the slopes of All-ReLU; 6 pruning after the training. The networks are the paper's (Tables 1 and 7),
how they are trained is one rule for all data sets, or with --settings paper the paper's settings
to the letter. 500 epochs take hours to days: see --plan first, and take fewer --epochs.

Every training is a process of its own with one thread, and appends a run record to the output file.
One that is there with the same settings is not run again, so a command that was stopped goes on
where it is repeated; tables that share trainings run them once. Figures are drawn from the records
of the trainings of Table 2 (4 to 12) and Table 5 (19) with the same settings.

"best" is the best test accuracy over the epochs, as the paper reports, which takes the test rows
to choose the epoch; "last" is that of the last epoch. For "selected" each half of the test rows
chooses the epoch at which the other half is scored, so that no row takes part in its own choice.
With --validation-fraction that share of the training rows chooses it.

--rules compares rules of evolution, optimizers and densities on FashionMNIST, Madelon and HIGGS,
beside dense networks: test accuracy after the last epoch, ± the standard deviation over the seeds.
--short is a quarter of an hour of it. The table is also written as CSV and HTML, to --plots.

Data sets are found through LARGESPARSE_DATA.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from ..backends import BACKENDS, get_backend
from ..errors import DataError, LargeSparseError, MemoryPlanError, ParameterError
from ..harness.pages import check_matplotlib, make_folder, save_figures
from ..harness.records import check_output
from ..harness.scaling import BIGMODEL, records_of
from ..machine.sizes import parse_size
from ..machine.threads import available_threads
from ..model.config import REGROWTH
from ..model.optimizer import SCHEDULES
from ..training.memory import choose_plan
from ..training.warming import warm_up
from . import extremes, rules_run
from . import reported as paper
from .figures import FIGURES, draw
from .jobs import Children
from .run import load
from .settings import SETTINGS
from .tables import Runs, keras_rows, markdown, pruning_table, results_table
from .trainings import ROWS, TABLES, Protocol, Row, Training, rows_of

Tables = dict[tuple[int, str], list[Row]]  # of a table and a data set
CHOOSING = ("--table", "--figure", "--extremes", "--plan", "--no-run", "--again")
SEEDS = 1
NAMES = tuple(dict.fromkeys(name for names in ROWS.values() for name in names))


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_argument_group("what")
    add_result_flags(what)
    rules_run.add_flags(what)
    add_protocol_flags(parser.add_argument_group("training"))
    add_run_flags(parser.add_argument_group("how"))
    return parser


def add_result_flags(group: Any) -> None:
    """Add the flags that say which tables and figures."""
    group.add_argument("--table", type=int, nargs="+", choices=TABLES, default=[])
    group.add_argument("--figure", type=int, nargs="+", choices=FIGURES, default=[])
    group.add_argument(
        "--extremes",
        type=parse_size,
        nargs="*",
        metavar="N",
        help="time networks of so many neurons on a task of Leukemia's shape, 1397 and 699 rows "
        "of 54675 features (default 10M; section 2.4)",
    )
    group.add_argument(
        *("--dataset", "--datasets"),
        type=paper.parse_dataset,
        nargs="+",
        default=[],
        metavar="NAME",
        help=", ".join(paper.TASKS),
    )
    group.add_argument(
        "--only",
        nargs="+",
        choices=NAMES,
        metavar="ROW",
        help="rows of Tables 2 and 3 (default all): " + ", ".join(NAMES),
    )
    group.add_argument(
        "--slopes",
        type=float,
        nargs="+",
        default=list(paper.TABLE_5),
        metavar="ALPHA",
        help="of Table 5; 0 is ReLU (default the paper's ten)",
    )


def add_run_flags(group: Any) -> None:
    """Add the flags about what is run, and where it is kept."""
    group.add_argument(
        "--jobs",
        type=parse_size,
        metavar="N",
        help="trainings at once, of one thread each (default: the cores). Energy is measured with "
        "1 only, and times are surest so",
    )
    group.add_argument("--plan", action="store_true", help="list what would be run, and stop")
    group.add_argument("--no-run", action="store_true", help="only show what is in the records")
    group.add_argument("--again", action="store_true", help="run also what has been run")
    group.add_argument(
        "--out", default="paper.jsonl", metavar="FILE", help="records (default %(default)s)"
    )
    group.add_argument(
        "--plots", default="paper", metavar="DIR", help="of the PNGs (default %(default)s)"
    )


def add_protocol_flags(group: Any) -> None:
    """Add the flags that are the fields of `Protocol`."""
    add, default = group.add_argument, Protocol()
    told = f"default {default.epochs}; of --rules by data set and density, 8 to 100"
    add("--epochs", type=parse_size, help=told)
    told = f"default {SEEDS}, of --rules 3; the paper has 5"
    add("--seeds", type=parse_size, metavar="N", help=told)
    add("--first-seed", type=int, default=0, metavar="S", help="default 0: seeds 0, 1, ...")
    add("--backend", choices=BACKENDS, default=default.backend, help="default %(default)s")
    add(
        "--settings",
        choices=SETTINGS,
        default=default.settings,
        help="what the next flags default to: one rule for all data sets (default); the paper's "
        "Table 7 to the letter; or what was tuned on FashionMNIST, HIGGS and Madelon",
    )
    add("--learning-rate", type=float, metavar="η")
    add("--schedule", choices=SCHEDULES, help="of η and λ")
    add("--decay-factor", type=float, metavar="FACTOR", help="of both after an epoch; step")
    add("--warmup-epochs", type=float, metavar="N", help="over which η and λ rise")
    add("--weight-decay", type=float, metavar="λ", help="of an update")
    add("--dropout", type=float, metavar="SHARE")
    add("--zeta-decay", type=float, metavar="FACTOR", help="of ζ, after every epoch")
    add(
        "--augment",
        action=argparse.BooleanOptionalAction,
        help="shift, flip and rotate images",
    )
    add("--zeta", type=float, default=default.zeta, help="default %(default)s")
    add(
        "--regrowth",
        choices=REGROWTH,
        default=default.regrowth,
        help="values of new connections: from the initial distribution (default) or 0",
    )
    add("--validation-fraction", type=float, default=0.0, help="of the training rows (default 0)")
    add("--pruning-start", type=int, metavar="EPOCH", help="default 0.4 of the epochs: 200 of 500")
    add("--pruning-every", type=int, metavar="EPOCHS", help="default 0.1 of the epochs")
    add(
        "--pruning-percentile",
        type=float,
        help="of a layer's living neurons that die (default: what leaves about as many "
        "connections as Table 2 has at the end)",
    )
    add("--workers", type=parse_size, default=default.workers, help="of Table 3 (%(default)s)")
    add("--phase-one-epochs", type=parse_size, metavar="N", help="default 0.7 of the epochs")


def protocol_of(options: argparse.Namespace) -> Protocol:
    """Return the settings of the command line."""
    names = set(Protocol.__dataclass_fields__) - {"seeds", "train_samples"}
    seeds = tuple(range(options.first_seed, options.first_seed + options.seeds))
    return Protocol(seeds=seeds, **{name: getattr(options, name) for name in names})


def fits(name: str, training: Training) -> bool:
    """Say whether a training fits into the memory; tell of one that does not."""
    batch_size = training.training.batch_size
    try:
        choose_plan(training.network, batch_size, micro_batch=batch_size)
    except MemoryPlanError as error:
        print(f"{name}: left out, {str(error).partition(':')[0]}", file=sys.stderr)
        return False
    return True


def check_drawable(
    options: argparse.Namespace, protocol: Protocol, tables: Tables, words: Sequence[str]
) -> None:
    """Raise a DataError, before any work, for a figure whose trainings are not and will not be."""
    runs = Runs(records_of(options.out))
    planned = {} if options.no_run else tables
    coming = {one.key for rows in planned.values() for row in rows for one in row.trainings}
    for number in options.figure:
        table, names = FIGURES[number][:2]
        for dataset in options.dataset:
            rows = rows_of(table, dataset, protocol, only=names)
            if not any(one in runs or one.key in coming for row in rows for one in row.trainings):
                wanted = ["--table", str(table), *(["--only", *names] if names else [])]
                raise DataError(
                    f"Figure {number} has no data: no training of {dataset} with these settings is "
                    f"in {options.out}. Make it by: {command_for(words, wanted)}"
                )


def command_for(words: Sequence[str], wanted: Sequence[str]) -> str:
    """Return a command that runs what is `wanted`, with the other flags of this one."""
    kept, dropped = [], False
    for word in words:
        if word.startswith("--"):
            dropped = word.partition("=")[0] in (*CHOOSING, *wanted)
        if not dropped:
            kept.append(word)
    return shlex.join(["largesparse", "paper", *wanted, *kept])


def run_missing(
    tables: Tables, options: argparse.Namespace, command: str, words: Sequence[str]
) -> str | None:
    """Run the trainings that the records lack, or list them; return what went wrong."""
    runs = Runs(records_of(options.out))
    wanted: dict[str, tuple[str, Training]] = {}
    for (_, dataset), rows in tables.items():
        for row in rows:
            for one in row.trainings:
                wanted.setdefault(one.key, (f"{dataset} {row.name}, seed {one.training.seed}", one))
    missing = {name: one for name, one in wanted.values() if options.again or one not in runs}
    there = sum(one in runs for _, one in wanted.values())
    print(f"{len(wanted)} trainings, {there} of them in {options.out} already", file=sys.stderr)
    if options.no_run and not there:
        making = command_for(words, ["--table", *map(str, options.table)])
        print(f"Make them by: {making}", file=sys.stderr)
    if options.plan:
        for name, one in missing.items():
            ranks = f", {one.ranks} ranks" if one.ranks > 1 else ""
            connections = one.network.expected_connections()
            print(f"{name}: {one.training.epochs} epochs, {connections:,.0f} connections{ranks}")
    if options.plan or options.no_run or not missing:
        return None
    for name in [name for name, one in missing.items() if not fits(name, one)]:
        del missing[name]
    if not missing:
        return None
    check_output(options.out)
    for one in {training.dataset: training for training in missing.values()}.values():
        load(one)  # what is wrong with the data is told before anything runs
    warm_up(get_backend(options.backend).name)
    jobs = options.jobs or available_threads()
    failures = Children(options.out, command, jobs).run(missing)
    if not failures:
        return None
    return (
        f"{len(failures)} of {len(missing)} trainings failed; repeat the command to run them "
        f"again. The first: {failures[0]}"
    )


def show(table: int, dataset: str, rows: list[Row], runs: Runs) -> None:
    """Print a table of a data set."""
    task = paper.TASKS[dataset]
    done = [run for row in rows for run in runs.of(row)]
    epochs = rows[0].trainings[0].training.epochs if rows else 0
    print(f"\nTable {table}, {dataset}, {'-'.join(map(str, task.layer_sizes))}: {epochs} epochs")
    train, test = (done[0][f"{part}_samples"] if done else None for part in ("train", "test"))
    beside = not (train and test and train != task.train_samples)
    if not beside:
        print(
            f"Rows: {train:,.0f} training, {test:,.0f} test; the paper {task.train_samples:,} and "
            f"{task.test_samples:,}: its values, which do not compare, are left out."
        )
    if table == 6:
        print(markdown(*pruning_table(rows[0], runs, beside=beside)))
    else:
        theirs = keras_rows(dataset) if table == 3 and beside else []
        print(markdown(*results_table([*rows, *theirs], runs, beside=beside)))


def run_extremes(sizes: list[int], options: argparse.Namespace) -> None:
    """Run section 2.4's sequential networks, and print their times beside the paper's."""
    for neurons in sizes:
        flags = extremes.flags_of(neurons, min(options.epochs, 2), options.backend)
        if not options.again and extremes.find_run(records_of(options.out), flags):
            continue
        command = extremes.command_of(BIGMODEL, flags, options.out)
        if options.plan:
            print(shlex.join(command))
            subprocess.run([*command, "--plan"], check=False)
        elif not options.no_run:
            check_output(options.out)
            if code := subprocess.run(command, check=False).returncode:
                raise LargeSparseError(f"{shlex.join(command)} failed with {code}: see above.")
    if not options.plan:
        print("\nSection 2.4, one thread")
        epochs = min(options.epochs, 2)
        records = records_of(options.out)
        print(markdown(*extremes.extremes_table(records, sizes, epochs, options.backend)))


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Do what the command line asks for."""
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    tables_too = options.table or options.figure or options.extremes is not None
    if not tables_too and options.rules is None:
        parser.error("say what: --table, --figure, --extremes or --rules (--help has examples)")
    words = sys.argv[1:] if argv is None else argv
    command = shlex.join(["largesparse", "paper", *words])
    if options.rules is not None:
        if tables_too:
            parser.error("--rules is made by itself, without --table, --figure and --extremes")
        rules_run.compare_rules(options, command)
        return 0
    options.epochs = options.epochs or Protocol().epochs
    options.seeds = options.seeds or SEEDS
    if (options.table or options.figure) and not options.dataset:
        parser.error(f"--table and --figure need --dataset: {', '.join(paper.TASKS)}")
    protocol = protocol_of(options)
    tables = {
        (table, dataset): rows_of(
            table, dataset, protocol, only=options.only, slopes=options.slopes
        )
        for table in options.table
        for dataset in options.dataset
    }
    for (table, _), rows in tables.items():
        if not rows:
            raise ParameterError(
                f"None of the rows of --only is in Table {table}, which has "
                f"{', '.join(ROWS[table])}."
            )
    if options.figure and not options.plan:
        check_matplotlib()
        check_drawable(options, protocol, tables, words)
    failed = run_missing(tables, options, command, words) if tables else None
    if not options.plan:
        runs = Runs(records_of(options.out))
        for (table, dataset), rows in tables.items():
            show(table, dataset, rows, runs)
        for number in options.figure:
            for dataset in options.dataset:
                figure = draw(number, dataset, protocol, runs)
                folder = make_folder(options.plots)
                (path,) = save_figures({dataset: figure}, folder, f"figure-{number}")
                print(path)
    if options.extremes is not None:
        run_extremes(options.extremes or [paper.EXTREMES[0].neurons], options)
    if failed:
        raise LargeSparseError(failed)
    return 0
