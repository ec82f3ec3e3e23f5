"""Kill ranks of parallel trainings at random moments, resume them, and compare the results.

    python -m soak kill_ranks --times 50
    python -m soak kill_ranks --times 5 --algorithm wassp --ranks 4 --target worker
    python -m soak kill_ranks --times 40 --algorithm pipeline

Every time `mpiexec -n RANKS` bigmodel is started with a checkpoint folder, and at a moment drawn
from the seed rank 0, another rank, all of them, or mpiexec itself gets SIGKILL: in the
initialisation, phase one, evaluation, evolution, the writing of a checkpoint, phase two and
averaging in turn. All ranks must have ended within 20 s. What there is of a checkpoint must be
intact, and the training is resumed from it, or begun again. Its last loss and test accuracy must be
within 3 standard deviations of those of 5 trainings that were left alone, and no epoch may be
trained on more often than once for each kill beside the first time. Of 5, up to one training in 13
is outside by chance (Student's t, two figures); of --undisturbed 20, one in 70. A pipeline's last
checkpoint must equal, to the bit, those of the trainings that were left alone.

A row is printed for every time, and at last what the resumed trainings came to beside those that
were left alone; the exit status is 1 if any is wrong. Further flags are those of bigmodel.
Needs Linux, or another system with POSIX signals.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from largesparse import load_checkpoint
from largesparse.errors import CheckpointError, LargeSparseError, check_range
from largesparse.machine.folders import MANIFEST, find
from largesparse.machine.launching import start_ranks
from largesparse.machine.sizes import parse_size
from largesparse.training.checkpoint import has_checkpoint
from soak import program
from soak.announcing import announce_phases

TRAINING = ["--neurons=20k", "--features=400", "--samples=1500", "--epochs=4", "--batch-size=32"]
TRAINING += ["--phase-one-epochs=2", "--learning-rate=0.1", "--backend=scipy"]
TRAINING += ["--optimizer=sgd", "--growth=random"]  # whose rate it is
PIPELINE = "pipeline"
ALGORITHMS = ("wasap", "wassp", PIPELINE)
IN_TURNS = ALGORITHMS[:2]
PHASE_ONE = "--phase-one-epochs="  # no flag of a pipeline
TARGETS = ("rank 0", "worker", "all ranks", "mpiexec")
GONE = 20.0  # seconds after which no rank may be left
LIMIT = 300.0  # seconds that a training may take


class Event(NamedTuple):
    """What a rank has announced: a phase that begins, or "epoch N", or "pid RANK"."""

    at: float  # seconds of the machine's clock
    text: str
    value: int


class Blow(NamedTuple):
    """Whom to kill, and when."""

    target: str
    phase: str
    occurrence: int
    delay: float  # seconds after the phase's beginning


class Outcome(NamedTuple):
    """What came of a training that was killed and resumed."""

    gone_s: float
    verdict: str
    repeated: int = 0  # epochs
    result: tuple[float, float] | None = None  # loss and accuracy


class Run(NamedTuple):
    """What came of one start of a job."""

    events: list[Event]
    status: int
    struck: float | None
    gone_s: float  # from the blow to the end of the last rank
    error: str


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool with the arguments `argv`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--announce"]:
        return train_announcing(Path(arguments[1]), arguments[2:])
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--times", type=parse_size, default=20, metavar="N", help="kills (default %(default)s)")
    add("--ranks", type=parse_size, default=3, help="default %(default)s")
    add("--algorithm", choices=ALGORITHMS, help="default: wasap and wassp in turns")
    add("--target", choices=TARGETS, help="default: drawn")
    add("--undisturbed", type=int, default=5, metavar="N", help="left alone (default %(default)s)")
    add("--seed", type=int, default=0, help="of the moments (default %(default)s)")
    options, flags = parser.parse_known_args(arguments)
    return compare(options, [*TRAINING, *flags])


def compare(options: Any, flags: list[str]) -> int:
    """Kill, resume and compare; return 1 if anything was wrong."""
    check_range("--seed", options.seed, "kill_ranks", low=0)
    check_range("--ranks", options.ranks, "kill_ranks", low=2)
    check_range("--undisturbed", options.undisturbed, "kill_ranks", low=2)
    draw = random.Random(options.seed)
    algorithms = [options.algorithm] if options.algorithm else list(IN_TURNS)
    wrong, places, longest = 0, Counter[str](), 0.0
    with tempfile.TemporaryDirectory(prefix="kill-ranks-") as folder:
        known, resumed = {}, defaultdict(list)
        for name in algorithms:
            whole = options.undisturbed
            known[name] = undisturbed(Path(folder), name, options.ranks, flags, whole)
            print(f"{name}: {describe(known[name][0])}", flush=True)
        print(f"{'time':>4}  {'gone s':>6}  {'repeated':>8}  {'verdict':<9} killed", flush=True)
        for number in range(options.times):
            name = algorithms[number % len(algorithms)]
            results, moments = known[name]
            phase = sorted(moments)[number // len(algorithms) % len(moments)]
            occurrence = draw.randrange(len(moments[phase]))
            delay = draw.random() * moments[phase][occurrence]
            blow = Blow(options.target or draw.choice(TARGETS), phase, occurrence, delay)
            place = Path(folder) / f"run-{number}"
            outcome = strike(place, name, options.ranks, flags, blow, results)
            wrong += outcome.verdict != "right"
            places[phase] += 1
            longest = max(longest, outcome.gone_s)
            if outcome.result is not None:
                resumed[name].append(outcome.result)
            told = f"{blow.target} in {phase} {occurrence + 1} of {name}"
            what = f"{outcome.repeated:>8}  {outcome.verdict:<9} {told}"
            print(f"{number + 1:>4}  {outcome.gone_s:6.1f}  {what}", flush=True)
    for name, results in resumed.items():
        if len(results) > 1:
            print(f"{name}, resumed: {describe(results)}")
            print(f"{name}, left alone: {describe(known[name][0])}")
    print(", ".join(f"{count} in {place}" for place, count in sorted(places.items())))
    print(f"{options.times - wrong} of {options.times} right; ranks were gone in {longest:.1f} s")
    return int(wrong > 0)


def undisturbed(
    folder: Path, algorithm: str, ranks: int, flags: list[str], times: int
) -> tuple[list[tuple[float, float]], dict[str, list[float]]]:
    """Return loss and accuracy of trainings left alone, and how long each phase of one took."""
    results = []
    for k in range(times):
        place = folder / f"{algorithm}-{k}"
        run = start(place, algorithm, ranks, flags, resume=False)
        if run.status != 0:
            raise LargeSparseError(f"bigmodel failed: {run.error[-2000:]}")
        results.append(result_of(place))
    moments: dict[str, list[float]] = {}
    phases = [event for event in run.events if not event.text.startswith(("pid ", "epoch"))]
    for event in phases:
        if not event.text.startswith("end of "):
            end = next(e.at for e in phases if e.text == f"end of {event.text}" and e.at > event.at)
            moments.setdefault(event.text, []).append(end - event.at)
    return results, moments


def strike(
    folder: Path,
    algorithm: str,
    ranks: int,
    flags: list[str],
    blow: Blow,
    results: Sequence[tuple[float, float]],
) -> Outcome:
    """Kill one training and resume it; compare with the results of others."""
    first = start(folder, algorithm, ranks, flags, resume=False, blow=blow)
    if first.struck is None:
        return Outcome(0.0, "MISSED")
    if first.gone_s > GONE:
        return Outcome(first.gone_s, "HANGS")
    resume = has_checkpoint(folder)
    if resume:
        try:
            load_checkpoint(folder)
        except CheckpointError as error:
            print(error, file=sys.stderr)
            return Outcome(first.gone_s, "DAMAGED")
    second = start(folder, algorithm, ranks, flags, resume=resume)
    if second.status != 0:
        print(second.error[-2000:], file=sys.stderr)
        return Outcome(first.gone_s, f"STATUS {second.status}")
    epochs = Counter(e.value for run in (first, second) for e in run.events if e.text == "epoch")
    repeated = sum(count - 1 for epoch, count in epochs.items() if epoch > 0)
    found = result_of(folder)
    verdict = "right" if are_alike(found, results) else "DIFFERENT"
    if algorithm == PIPELINE and files_of(folder) != files_of(folder.with_name(f"{PIPELINE}-0")):
        verdict = "DIFFERENT"
    if verdict == "DIFFERENT":
        print(f"loss {found[0]:.4f}, accuracy {found[1]:.4f}", file=sys.stderr)
    if repeated > 1 and resume:
        verdict = "REPEATED"
    return Outcome(first.gone_s, verdict, repeated, found)


def are_alike(found: tuple[float, float], results: Sequence[tuple[float, float]]) -> bool:
    """Return whether loss and accuracy are within 3 standard deviations of the results."""
    for value, values in zip(found, zip(*results, strict=True), strict=True):
        spread = statistics.stdev(values) * math.sqrt(1 + 1 / len(values))
        if abs(value - statistics.mean(values)) > 3 * spread + 1e-3:  # may not scatter at all
            return False
    return True


def describe(results: Sequence[tuple[float, float]]) -> str:
    """Return mean and standard deviation of losses and accuracies."""
    (losses, accuracies) = zip(*results, strict=True)
    return ", ".join(
        f"{name} {statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"
        for name, values in (("loss", losses), ("accuracy", accuracies))
    )


def result_of(folder: Path) -> tuple[float, float]:
    """Return the last loss and test accuracy that a job's record has."""
    record = json.loads(out_of(folder).read_text().splitlines()[-1])
    return record["loss"][-1], record["accuracy"][-1]


def files_of(folder: Path) -> dict[str, Any]:
    """Return sizes and checksums of the files of a checkpoint, where it is read."""
    place = find(folder)  # not in the folder itself, where a process was killed as it moved files
    assert place is not None
    files: dict[str, Any] = json.loads((place / MANIFEST).read_text())["files"]
    return files


def out_of(folder: Path) -> Path:
    return folder.with_suffix(".jsonl")


def start(
    folder: Path,
    algorithm: str,
    ranks: int,
    flags: Sequence[str],
    *,
    resume: bool,
    blow: Blow | None = None,
) -> Run:
    """Start a job once, kill what is to be killed, and wait for the end of all its processes."""
    log, errors = folder.with_suffix(".events"), folder.with_suffix(".err")
    log.write_text("")
    command = [*start_ranks(ranks), *program("kill_ranks"), "--announce", str(log)]
    if algorithm == PIPELINE:
        flags = [flag for flag in flags if not flag.startswith(PHASE_ONE)]
    if algorithm == "wasap":  # workers that compute at a time
        flags = ["--slots=2", *flags]
    command += [] if resume else [*flags, f"--algorithm={algorithm}"]
    command += ["--resume" if resume else "--checkpoint", str(folder), "--out", str(out_of(folder))]
    struck: float | None = None
    with open(errors, "w") as stream:
        job = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stream
        )
        began = time.monotonic()
        while job.poll() is None:
            if time.monotonic() - began > LIMIT:
                kill([job.pid, *pids_of(read(log)).values()])
                raise LargeSparseError(f"A training took longer than {LIMIT:g} s: {command}")
            if blow is not None and struck is None:
                begun = [e for e in read(log) if e.text == blow.phase]
                if len(begun) > blow.occurrence:
                    time.sleep(max(0.0, begun[blow.occurrence].at + blow.delay - time.monotonic()))
                    struck = time.monotonic()
                    kill(aims(blow.target, job.pid, pids_of(read(log))))
            time.sleep(0.005)
    ranks_left = list(pids_of(read(log)).values())
    while any(map(is_running, ranks_left)) and time.monotonic() - (struck or began) < LIMIT:
        time.sleep(0.05)
    gone_s = 0.0 if struck is None else time.monotonic() - struck
    return Run(read(log), job.returncode, struck, gone_s, errors.read_text(errors="replace"))


def aims(target: str, mpiexec: int, pids: dict[int, int]) -> list[int]:
    """Return the processes to kill."""
    workers = [pid for rank, pid in sorted(pids.items()) if rank > 0]
    return {
        "rank 0": [pids[0]],
        "worker": workers[-1:],
        "all ranks": list(pids.values()),
        "mpiexec": [mpiexec],
    }[target]


def kill(pids: Sequence[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pids_of(events: Sequence[Event]) -> dict[int, int]:
    """Return the processes by their ranks."""
    return {int(e.text.split()[1]): e.value for e in events if e.text.startswith("pid ")}


def read(log: Path) -> list[Event]:
    """Return what has been announced so far."""
    found = []
    for line in log.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            at, value, text = line.rstrip("\n").split(" ", 2)
            found.append(Event(float(at), text, int(value)))
    return found


def train_announcing(log: Path, arguments: list[str]) -> int:
    """Be bigmodel, and write to a file who this is, what begins, which epoch is done."""
    from mpi4py import MPI

    from largesparse.harness import bigmodel
    from largesparse.model.network import SparseMLP
    from largesparse.parallel.pipeline import job as pipeline
    from largesparse.parallel.pipeline.trainer import StageTrainer
    from largesparse.parallel.wasap import job
    from largesparse.parallel.wasap.server import Server
    from largesparse.training.trainer import Trainer

    rank = MPI.COMM_WORLD.rank

    def announce(text: str, value: int = 0) -> None:
        with open(log, "a") as file:
            file.write(f"{time.monotonic()} {value} {text}\n")

    def record(server: Server) -> None:
        recorded(server)
        announce("epoch", server.trainer.epoch)

    def complete(trainer: StageTrainer, **measured: Any) -> Any:
        found = completed(trainer, **measured)
        announce("epoch", trainer.epoch)
        return found

    announce(f"pid {rank}", os.getpid())
    if rank == 0:
        completed = StageTrainer.complete_epoch
        StageTrainer.complete_epoch = complete  # type: ignore[method-assign]
        recorded = Server.record
        Server.record = record  # type: ignore[method-assign]
        phases = (
            (SparseMLP, "__init__", "initialisation"),
            (pipeline, "initial_layer", "initialisation"),
            (StageTrainer, "run_epoch", "training"),
            (StageTrainer, "sum_scores", "evaluation"),
            (StageTrainer, "evolve", "evolution"),
            (StageTrainer, "save", "writing"),
            (Server, "train_asynchronously", "phase one"),
            (Server, "train_synchronously", "phase one"),
            (Server, "evaluate", "evaluation"),
            (Server, "evolve", "evolution"),
            (Trainer, "save", "writing"),
            (job, "train_replicas", "phase two"),
            (job, "average", "averaging"),
        )
        announce_phases(announce, phases, end="end of {}".format)
    return bigmodel.main(arguments)
