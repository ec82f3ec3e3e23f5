"""Seconds and joules of training to a stated test accuracy: ours, by ranks, and peers."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from largesparse import load_dataset
from largesparse.backends import BACKENDS
from largesparse.data.datasets import Dataset
from largesparse.data.synthetic import make_large_classification
from largesparse.errors import (
    BackendError,
    LargeSparseError,
    MemoryPlanError,
    ParameterError,
    check_range,
    check_share,
)
from largesparse.harness.noise import NoiseMeter
from largesparse.harness.peers import OURS, PEERS, Maker
from largesparse.harness.peers.phases import make_warm
from largesparse.harness.peers.problem import Problem
from largesparse.harness.peers.reaching import (
    Limits,
    Point,
    best_of,
    first_at,
    learn,
    learn_by_ranks,
    rank_of_trial,
)
from largesparse.harness.records import append_record, check_output, new_record, read_records
from largesparse.harness.uncertainty import ratio_of
from largesparse.machine.environment import expand_user
from largesparse.machine.launching import start_ranks
from largesparse.machine.sizes import parse_size
from largesparse.training.warming import warm_up

from . import PROGRAM, add_figure

KIND = "time_to_accuracy"
ALGORITHMS = ("wasap", "wassp")
SHOWN = {  # by which the peers of compare_peers.py are called here
    "masked": "torch",
    "csr": "csr",
    "sparselab": "sparselab",
    "sklearn": "sklearn",
}
MAKERS: dict[str, Maker] = {
    **{backend: OURS[backend] for backend in ("fused", "mkl", "scipy")},
    "layers": OURS["torch"],
    **{name: PEERS[peer] for name, peer in SHOWN.items()},
}
CONTESTANTS = (*MAKERS, *ALGORITHMS)
DEFAULT = ("fused", "mkl", "scipy", *ALGORITHMS, "masked", "sparselab", "sklearn")


@dataclass(frozen=True)
class Task:
    """What is learned, and what is fixed for every contestant."""

    problem: Problem
    targets: tuple[float, ...]
    points: int  # evaluations an epoch
    seconds: float  # limit of a training
    trial_epochs: int


HIDDEN = (1000, 1000, 1000)
TASKS = {
    "synthetic": Task(
        Problem((2000, 1000, 1000, 2), epsilon=10, batch_size=32, dropout=0.0), (0.70,), 8, 30, 3
    ),
    "higgs": Task(
        Problem((28, *HIDDEN, 2), epsilon=10, alpha=0.05, dropout=0.0), (0.70,), 4, 60, 3
    ),
    "fashion_mnist": Task(Problem((784, *HIDDEN, 10), dropout=0.0), (0.87, 0.89), 4, 60, 2),
}
VALIDATION = 1 / 6  # of the training rows
DIVERGED = "The loss became"  # of NumericalError, which ends a job


def time_to_accuracy(options: argparse.Namespace) -> None:
    """Train every contestant until its accuracy on the test rows is a stated one.

    The rules, which are the same for all:

    - Data, layers, epsilon, batch, momentum 0.9, weight decay 2e-4, no dropout, float32, threads;
      evolution (zeta 0.3) after every epoch where a contestant has one. Features are standardised
      in advance. Rows are trained on in whole mini-batches.
    - Only the learning rate is chosen: of the same rates, one training each, of the same number of
      epochs, with seed 0, on 5/6 of the training rows. The rate is taken that reaches the (highest)
      target on the other 1/6 in the fewest updates, else the one with the best accuracy there. Test
      rows are not looked at.
    - The trainings that count are on all training rows, with every seed, each in a process of its
      own (those of WASAP and WASSP by --ranks ranks, one of which is the server). For every seed
      all contestants take turns.
    - Accuracy is that of all test rows, several times an epoch. The clock runs in training and
      evolution alone; what else the processes take (start, imports, compiling, data,
      initialisation) is listed apart.
    - A target that is not reached within the limit in seconds is said to be so, with the best
      accuracy. The median is over the seeds, those that did not reach it being the slowest.
    - WASAP and WASSP are phase one alone, which ends with the epoch: of phase two nothing can be
      evaluated before its end. Their points have their share of the epoch's time.
    - Joules are the machine's, where its counters can be read, while the clock runs. "CPU s" is the
      processor time of a single process meanwhile, which a busy machine changes less.

    Records are appended to --out; what is there is not run again. Contestants that are not
    installed are left out. The data sets are looked for in LARGESPARSE_DATA.
    """
    check_output(options.out)
    for target in options.targets or ():
        check_share("targets", target, KIND)
    for rate in options.rates:
        check_range("rates", rate, KIND, low=0, low_open=True)
    if options.seconds is not None:
        check_range("seconds", options.seconds, KIND, low=0, low_open=True)
    check_range("ranks", options.ranks, KIND, low=2, remedy="One is the server.")
    given: dict[str, Any] = {
        "targets": tuple(options.targets) if options.targets else None,
        "seconds": options.seconds,
        "trial_epochs": options.trial_epochs,
        "points": options.points,
    }
    for name in options.tasks:
        task = replace(TASKS[name], **{key: value for key, value in given.items() if value})
        contest = Contest(name, task, options)
        contest.run()
        print(contest.table(), flush=True)
        if options.plot:
            draw(contest, expand_user(options.plot) / f"{name}.png")


class Contest:
    """All trainings of a task: those that choose the rates, and those that count."""

    def __init__(self, name: str, task: Task, options: argparse.Namespace) -> None:
        self.name, self.task, self.options = name, task, options
        self.known = {}
        if expand_user(options.out).is_file():
            records = read_records(options.out)
            for record in records[records["kind"] == KIND].to_dict("records"):
                self.known[key_of(record["settings"])] = record
        self.rates: dict[str, float] = {}
        self.found: dict[str, list[dict[str, Any]]] = {}  # in the order of the table

    def run(self) -> None:
        """Run what is not recorded."""
        left = [name for name in self.options.contestants if self.choose_rate(name)]
        self.found = {name: [] for name in left}
        for seed in range(self.options.seeds):
            for contestant in np.random.default_rng(seed).permutation(left):
                limit = {"epochs": None, "seconds": self.task.seconds}
                record = self.train(contestant, self.rates[contestant], seed, limit)
                if record is not None:
                    self.found[contestant].append(record)

    def choose_rate(self, contestant: str) -> bool:
        """Choose the learning rate by trials; return whether the contestant can run here."""
        ranks = {}
        limit = {"epochs": self.task.trial_epochs, "seconds": None}
        for rate in self.options.rates:
            record = self.train(contestant, rate, 0, limit)
            if record is None:
                return False
            ranks[rate] = rank_of_trial(record["curve"], max(self.task.targets))
        self.rates[contestant] = min(ranks, key=lambda rate: ranks[rate])
        return True

    def train(
        self, contestant: str, rate: float, seed: int, limit: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """Return the record of a training, which is run where there is none."""
        options = self.options
        ranks = options.ranks if contestant in ALGORITHMS else 1
        problem = replace(self.task.problem, learning_rate=rate, seed=seed, threads=options.threads)
        settings = {
            "task": self.name,
            "contestant": contestant,
            "problem": asdict(problem),
            "ranks": ranks,
            "points": self.task.points,
            "targets": list(self.task.targets),
            **limit,
        }
        key = key_of(settings)
        if key in self.known:
            return self.known[key]
        with NoiseMeter():
            found = start(settings)
            if isinstance(found, str):
                print(f"{contestant} is left out: {found}", flush=True)
                return None
            record = new_record(
                KIND,
                command=shlex.join(["python", "tools/measure.py", KIND, *sys.argv[2:]]),
                algorithm=contestant if contestant in ALGORITHMS else "sequential",
                backend=contestant if contestant in BACKENDS else None,
                dataset=self.name,
                settings=settings,
                ranks=ranks,
                **found,
            )
        append_record(options.out, record)
        kind = "trial" if limit["epochs"] else f"seed {seed}"
        best, took = best_of(found["curve"]), found["train_s"]
        print(f"{self.name}, {contestant}, {kind}, rate {rate:g}: {best:.4f}, {took:.1f} s")
        sys.stdout.flush()
        self.known[key] = {name: getattr(record, name) for name in ("curve", "settings", "init_s")}
        return self.known[key]

    def table(self) -> str:
        """Return medians over the seeds as a table in Markdown, for every target."""
        limit = self.task.seconds
        lines = [f"{self.name}, {self.options.seeds} seeds, limit {limit:g} s"]
        for target in self.task.targets:
            reached = {
                name: [first_at(record["curve"], target, limit) for record in records]
                for name, records in self.found.items()
            }
            first = next(iter(reached), "")
            head = (
                f"to {target:g} | rate | reached | updates | s | / {first}'s | CPU s | / {first}'s"
            )
            lines += ["", f"| {head} | J | best | apart, s |", f"|{'---|' * 11}"]
            for name, points in reached.items():
                records = self.found[name]
                best = statistics.median(best_of(record["curve"], limit) for record in records)
                apart = statistics.median(record["init_s"] for record in records)
                cells = [name, f"{self.rates[name]:g}", f"{sum(map(bool, points))}/{len(points)}"]
                cells.append(shown_median(points, "updates", ".0f"))
                for kind in ("train_s", "cpu_s"):
                    cells += [shown_median(points, kind), shown_ratio(points, reached[first], kind)]
                cells += [shown_median(points, "energy_j"), f"{best:.4f}", f"{apart:.1f}"]
                lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


def key_of(settings: Mapping[str, Any]) -> str:
    """Return what two trainings are the same by."""
    return json.dumps(settings, sort_keys=True)


def values_of(points: Sequence[Point | None], name: str) -> list[float]:
    """Return a number of points, infinite where there is no point, NaN where it is not known."""
    found = [np.inf if point is None else point.get(name) for point in points]
    return [np.nan if value is None else float(value) for value in found]


def shown_median(points: Sequence[Point | None], name: str, spec: str = ".3g") -> str:
    """Return the median of a number, with its interval where every seed reached the target."""
    values = values_of(points, name)
    median = statistics.median(values)
    if np.isinf(median):
        return "not reached"
    if np.isnan(values).any():
        return "-"
    if np.isinf(max(values)) or min(values) <= 0:
        return format(median, spec)
    return format(ratio_of(values, np.ones(len(values))), spec)


def shown_ratio(points: Sequence[Point | None], others: Sequence[Point | None], name: str) -> str:
    """Return the ratio over seeds that are run in turns, with its interval; else of medians."""
    values, of_others = values_of(points, name), values_of(others, name)
    medians = statistics.median(values), statistics.median(of_others)
    if np.isnan([*values, *of_others]).any() or np.isinf(medians).any() or medians[1] <= 0:
        return "-"
    if len(values) != len(of_others) or np.isinf([*values, *of_others]).any():
        return f"{medians[0] / medians[1]:.2f} (no interval)"
    return str(ratio_of(values, of_others))


def draw(contest: Contest, path: Path) -> None:
    """Draw accuracy over seconds, a line a training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for k, (name, records) in enumerate(contest.found.items()):
        for seed, record in enumerate(records):
            points = [point for point in record["curve"] if point["accuracy"] is not None]
            places = [point["train_s"] for point in points]
            reached = np.maximum.accumulate([point["accuracy"] for point in points])
            axes.plot(places, reached, f"C{k}", lw=1, label=None if seed else name)
    for target in contest.task.targets:
        axes.axhline(target, color="0.6", lw=0.8)
    axes.set(xscale="log", xlabel="seconds of training", ylabel="best test accuracy so far")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def start(settings: Mapping[str, Any]) -> dict[str, Any] | str:
    """Run `learn` in a process or a job; return fields of a record, or why it cannot run here.

    `init_s` is what the process took beside training and evaluation.
    """
    threads = str(settings["problem"]["threads"])
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, threads)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        try:
            command = [*start_ranks(settings["ranks"]), *PROGRAM, "learn", json.dumps(settings)]
        except ParameterError as error:
            return str(error)
        started = time.perf_counter()
        given: dict[str, Any] = {"check": False, "env": environment, "text": True}
        process = subprocess.run([*command, str(out)], stderr=subprocess.PIPE, **given)
        wall = time.perf_counter() - started
        print(process.stderr, end="", file=sys.stderr)
        if out.is_file():
            found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        elif settings["ranks"] > 1 and DIVERGED in process.stderr:
            found = {"curve": [{"accuracy": None, "train_s": 0.0}], "learn_s": 0.0}
        else:
            raise LargeSparseError(f"The training failed with {process.returncode}: see above.")
    if "left_out" in found:
        return str(found["left_out"])
    curve = found["curve"]
    found["train_s"] = curve[-1]["train_s"] if curve else 0.0
    found["init_s"] = wall - found.pop("learn_s")
    return found


def learn_once(options: argparse.Namespace) -> None:
    """Train one contestant once, in a process or a job of its own, for `time_to_accuracy`."""
    settings = json.loads(options.settings)
    out = Path(options.out)
    try:
        found = train_once(settings)
    except (ImportError, BackendError, MemoryPlanError) as error:
        found = {"left_out": str(error)}
    if found:
        out.write_text(json.dumps(found), encoding="utf-8")


def train_once(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train as `Contest.train` says; return what a record is to have, of ranks on rank 0."""
    name, points = settings["contestant"], settings["points"]
    sizes = tuple(settings["problem"]["layer_sizes"])
    problem = Problem(**settings["problem"] | {"layer_sizes": sizes})
    trial = settings["epochs"] is not None
    limits = Limits(max(settings["targets"]), settings["seconds"])
    if trial:
        limits = Limits(epochs=settings["epochs"])
    connections = None
    data = read_task(settings["task"], problem, trial)
    if name in ALGORITHMS:
        from mpi4py import MPI

        warm_up("fused", problem.threads)
        given: dict[str, Any] = {"test_rows": len(data.y_test), "points": points}
        is_root = MPI.COMM_WORLD.rank == 0
        started = time.perf_counter()
        curve = learn_by_ranks(name, problem, data if is_root else None, limits, **given)
        if not is_root:
            return {}
    else:
        if name in PACKAGES:
            importlib.metadata.version(PACKAGES[name])
        make_warm(MAKERS[name], problem)
        first = slice(0, problem.batch_size)
        contestant = MAKERS[name](problem, [(data.X_train[first], data.y_train[first])])
        connections = contestant.connections
        started = time.perf_counter()
        curve = learn(contestant, data, limits, seed=problem.seed, points=points)
    return {
        "curve": curve,
        "learn_s": time.perf_counter() - started,
        "connections": connections,
        "batch_size": problem.batch_size,
        "epsilon": problem.epsilon,
        "features": problem.layer_sizes[0],
        "train_samples": len(data.y_train),
        "test_samples": len(data.y_test),
        **{key: getattr(problem, key) for key in ("learning_rate", "seed", "threads", "recipe")},
    }


PACKAGES = {"layers": "torch", "masked": "torch", "csr": "torch", "sparselab": "sparselab"}


def read_task(name: str, problem: Problem, trial: bool) -> Dataset:
    """Return a task's data, standardised; of a trial, held-out training rows are the test rows."""
    if name == "synthetic":
        data = make_large_classification(10_000, problem.layer_sizes[0], progress=False)
    else:
        data = load_dataset(name)
    X = np.asarray(data.X_train, dtype=np.float32)
    mean, deviation = X.mean(axis=0), X.std(axis=0)
    deviation[deviation == 0] = 1
    X = (X - mean) / deviation
    y, X_test, y_test = data.y_train, (data.X_test - mean) / deviation, data.y_test
    if trial:
        order = np.random.default_rng(0).permutation(len(y))
        held, kept = np.split(order, [int(VALIDATION * len(y))])
        X, y, X_test, y_test = X[kept], y[kept], X[held], y[held]
    whole = len(y) // problem.batch_size * problem.batch_size
    X_test = np.ascontiguousarray(X_test, dtype=np.float32)
    return Dataset(np.ascontiguousarray(X[:whole]), y[:whole], X_test, y_test, name)


def add_figures(figures: Any) -> None:
    """Add time_to_accuracy, and learn, which it starts."""
    figure = add_figure(figures, KIND, time_to_accuracy)
    add = figure.add_argument
    tasks, known = list(TASKS), list(CONTESTANTS)
    add("--tasks", nargs="+", choices=tasks, default=tasks, help="default: all")
    text = f"in the order of the table; ratios are to the first ({' '.join(DEFAULT)})"
    add("--contestants", nargs="+", choices=known, default=list(DEFAULT), help=text)
    add("--rates", nargs="+", type=float, default=[0.01, 0.03, 0.1], help="default %(default)s")
    add("--seeds", type=parse_size, default=5, help="trainings that count (default %(default)s)")
    add("--targets", nargs="+", type=float, help="test accuracies, in place of the task's")
    add("--seconds", type=float, help="limit of a training (the task's: 30, 60, 60)")
    add("--trial-epochs", type=parse_size, help="of a training that chooses (3, 3, 2)")
    add("--points", type=parse_size, help="evaluations an epoch (8, 4, 4)")
    add("--threads", type=parse_size, default=1, help="default %(default)s")
    add("--ranks", type=parse_size, default=3, help="of WASAP and WASSP (default %(default)s)")
    add("--out", default="time_to_accuracy.jsonl", metavar="FILE", help="default %(default)s")
    add("--plot", metavar="FOLDER", help="draw accuracy over seconds there")
    child = add_figure(figures, "learn", learn_once)
    child.add_argument("settings", help="as JSON")
    child.add_argument("out", help="file for what was found")
