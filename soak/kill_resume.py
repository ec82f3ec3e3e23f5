"""Kill a training at random moments, resume it, and compare with one that was left alone.

    python -m soak kill_resume
    python -m soak kill_resume --signal TERM --times 5
    python -m soak kill_resume --times 3 --neurons 100k --backend fused

Every time bigmodel is started with a checkpoint folder, gets the signal at a moment drawn from
the seed, and is started again with `--resume`, until it comes to its end. The moments fall into all
phases in turn: before the initialisation, in it, in epochs, evaluation, evolution, and the writing
of checkpoints. The final checkpoint must equal that of the uninterrupted training, to the bit.
After SIGTERM, moreover, no mini-batch may be trained on twice.

A table has a row for every time; the exit status is 1 if any result differs. Further flags are
those of bigmodel.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from largesparse.errors import LargeSparseError, check_range
from largesparse.machine.exit_codes import run_command
from largesparse.machine.folders import MANIFEST
from largesparse.machine.sizes import parse_size
from largesparse.training.checkpoint import has_checkpoint
from soak import program
from soak.announcing import announce_phases

TRAINING = ["--neurons=20k", "--features=400", "--samples=1500", "--epochs=3", "--batch-size=32"]
TRAINING += ["--learning-rate=0.1", "--dropout=0.2", "--threads=1", "--backend=scipy"]
TRAINING += ["--optimizer=sgd", "--growth=random"]  # whose rate it is
LIMIT = 600  # seconds that a training may take
START = "start"  # imports, the plan, the data, the kernels
BETWEEN = "between"  # two phases


class Moment(NamedTuple):
    """When a training is struck."""

    phase: str
    occurrence: int  # of the phase, from 0
    delay: float  # seconds after its beginning


@dataclass
class Process:
    """What one start of the training was.

    Attributes
    ----------
    events : list of (seconds of the machine's clock, phase or "step N")
        What it has announced: every phase as it begins, `BETWEEN` as it ends.
    struck : float or None
        When it got the signal.
    status : int
        Negative where a signal ended it.
    """

    events: list[tuple[float, str]] = field(default_factory=lambda: [(time.monotonic(), START)])
    struck: float | None = None
    status: int = 0
    error: str = ""

    @property
    def steps(self) -> list[str]:
        """The updates that it has completed."""
        return [event for _, event in self.events if event.startswith("step ")]

    @property
    def phases(self) -> list[tuple[float, str]]:
        """The beginnings of its phases."""
        return [(at, event) for at, event in self.events if not event.startswith("step ")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool with the arguments `argv`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--announce"]:
        return train_announcing(int(arguments[1]), arguments[2:])
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--times", type=parse_size, default=20, metavar="N", help="trainings (default %(default)s)")
    add("--signal", choices=("KILL", "TERM"), default="KILL", help="default %(default)s")
    add("--strikes", type=parse_size, default=2, metavar="N",
        help="signals that a training gets at most (default %(default)s)")  # fmt: skip
    add("--seed", type=int, default=0, help="of the moments (default %(default)s)")
    options, flags = parser.parse_known_args(arguments)
    return run_command(lambda: compare(options, [*TRAINING, *flags]))


def compare(options: Any, flags: list[str]) -> int:
    """Strike trainings and compare them; return 1 if a result differs."""
    check_range("--seed", options.seed, "kill_resume", low=0)
    number = signal.Signals[f"SIG{options.signal}"]
    draw = random.Random(options.seed)
    wrong, places = 0, Counter[str]()
    with tempfile.TemporaryDirectory(prefix="kill-resume-") as folder:
        whole = Path(folder) / "whole"
        undisturbed = run(whole, flags, resume=False)
        if undisturbed.status != 0:
            raise LargeSparseError(f"bigmodel failed:\n{undisturbed.error}")
        expected = result_of(whole)
        seconds = undisturbed.phases[-1][0] - undisturbed.phases[0][0]
        print(f"undisturbed: {len(undisturbed.steps)} mini-batches, {seconds:.1f} s", flush=True)
        print(f"{'time':>4}  {'repeated':>8}  {'result':<10}SIG{options.signal} in")
        draw_moment = moments(undisturbed, draw)
        for time_ in range(1, options.times + 1):
            place = Path(folder) / f"run-{time_}"
            strikes = [draw_moment() for _ in range(draw.randint(1, options.strikes))]
            done = strike(place, flags, strikes, number)
            verdict = judge(done, place, expected, number)
            wrong += verdict != "equal"
            struck = [process for process in done if process.struck is not None]
            places.update(map(where, struck))
            steps = [step for process in done for step in process.steps]
            repeated = len(steps) - len(set(steps))
            print(f"{time_:>4}  {repeated:>8}  {verdict:<10}{describe(struck)}", flush=True)
    print(", ".join(f"{count} in {place}" for place, count in sorted(places.items())))
    print(f"{options.times - wrong} of {options.times} equal the undisturbed training, to the bit")
    return 1 if wrong else 0


def moments(undisturbed: Process, draw: random.Random) -> Callable[[], Moment]:
    """Return what draws moments: phases in turn, an occurrence and a place in it at random."""
    found: dict[str, list[float]] = {}
    phases = undisturbed.phases
    for (begin, phase), (end, _) in itertools.pairwise(phases):
        if phase != BETWEEN:
            found.setdefault(phase, []).append(end - begin)
    turn: list[str] = []

    def next_moment() -> Moment:
        if not turn:
            turn.extend(draw.sample(sorted(found), len(found)))
        phase = turn.pop()
        occurrence = draw.randrange(len(found[phase]))
        return Moment(phase, occurrence, draw.random() * found[phase][occurrence])

    return next_moment


def strike(
    folder: Path, flags: list[str], strikes: Sequence[Moment], number: signal.Signals
) -> list[Process]:
    """Start and strike a training, and resume it until it has come to its end."""
    done = []
    for moment in [*strikes, None]:
        resume = has_checkpoint(folder)
        process = run(folder, flags, resume=resume, moment=moment, number=number)
        done.append(process)
        if process.status not in (-number, 128 + number):
            break
    return done


def judge(
    done: Sequence[Process], folder: Path, expected: dict[str, Any], number: signal.Signals
) -> str:
    """Return "equal", or what is wrong."""
    if done[-1].status != 0:
        print(done[-1].error, file=sys.stderr)
        return f"status {done[-1].status}"
    if result_of(folder) != expected:
        return "DIFFERENT"
    steps = [step for process in done for step in process.steps]
    if number == signal.SIGTERM and len(steps) > len(set(steps)):
        return "REPEATED"
    return "equal"


def where(process: Process) -> str:
    """Return the phase in which a process was struck."""
    assert process.struck is not None
    return [phase for at, phase in process.phases if at <= process.struck][-1]


def describe(struck: Sequence[Process]) -> str:
    """Return where processes were struck, after which update, and how they ended."""
    texts = []
    for process in struck:
        step = f" after {process.steps[-1]}" if process.steps else ""
        texts.append(f"{where(process)}{step} ({process.status})")
    return "; ".join(texts)


def result_of(folder: Path) -> dict[str, Any]:
    """Return checksums of all arrays of a final checkpoint, and all it tells but the times."""
    manifest = json.loads((folder / MANIFEST).read_text())
    training = manifest["training"]
    history = [
        {name: value for name, value in record.items() if not name.endswith("_s")}
        for record in training["history"]
    ]
    return manifest["files"] | {"epoch": training["epoch"], "step": training["step"], "": history}


def run(
    folder: Path,
    flags: Sequence[str],
    *,
    resume: bool,
    moment: Moment | None = None,
    number: signal.Signals = signal.SIGKILL,
) -> Process:
    """Start a training once, and send it a signal at a moment, if it comes to that."""
    command = ["--resume", str(folder)] if resume else [*flags, "--checkpoint", str(folder)]
    command += ["--out", str(folder.parent / "runs.jsonl")]
    reading, writing = os.pipe()
    child = subprocess.Popen(
        [*program("kill_resume"), "--announce", str(writing), *command],
        pass_fds=[writing],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    process = Process()
    with os.fdopen(reading) as events:
        while True:
            if moment is not None and process.struck is None and has_come(process, moment):
                time.sleep(moment.delay)
                process.struck = time.monotonic()
                child.send_signal(number)
            line = events.readline()
            if not line:
                break
            at, event = line.rstrip("\n").split(" ", 1)
            process.events.append((float(at), event))
    process.error = child.communicate(timeout=LIMIT)[1]
    process.status = child.returncode
    return process


def has_come(process: Process, moment: Moment) -> bool:
    """Return whether the phase that a moment is in has begun."""
    begun = [event for _, event in process.events if event == moment.phase]
    return len(begun) > moment.occurrence


def train_announcing(descriptor: int, arguments: list[str]) -> int:
    """Be bigmodel, and write to a pipe which phase begins and which update is done."""
    from largesparse.harness import bigmodel
    from largesparse.model.network import SparseMLP
    from largesparse.training import trainer as training
    from largesparse.training.trainer import Trainer

    def announce(text: str) -> None:
        os.write(descriptor, f"{time.monotonic()} {text}\n".encode())

    def step(trainer: Trainer, *values: Any, **named: Any) -> float:
        loss = one_step(trainer, *values, **named)
        announce(f"step {trainer.step_count}")
        return loss

    def initialise(job: Any) -> Trainer:
        Trainer.step = step  # type: ignore[method-assign]
        phases = (
            (SparseMLP, "__init__", "initialisation"),
            (bigmodel, "load_checkpoint", "reading"),
            (Trainer, "run_epoch", "epoch"),
            (Trainer, "evaluate", "evaluation"),
            (Trainer, "evolve", "evolution"),
            (training, "save_checkpoint", "writing"),
        )
        announce_phases(announce, phases, end=lambda phase: BETWEEN)
        return make_trainer(job)

    one_step = Trainer.step
    make_trainer, bigmodel.initialise = bigmodel.initialise, initialise
    return bigmodel.main(arguments)
