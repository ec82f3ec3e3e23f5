"""One training in a process of its own, which `jobs` starts by python -m with an ORDER.

ORDER is JSON: the `settings` of a training, the `command` that asked for it, the file `out` that
its record is appended to, and whether it runs `alone`. Until then a folder beside that file has
its checkpoint, which it goes on from. A line on standard output tells of every
epoch: its number and the test accuracy. Under mpiexec all ranks run this.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from ..harness.noise import NoiseMeter, tick
from ..harness.records import append_record
from ..machine.environment import expand_user
from ..machine.exit_codes import run_command
from .run import run_training
from .trainings import Training


def main(order: str) -> None:
    """Run the training, and append its record."""
    given = json.loads(order)
    training = Training.from_settings(given["settings"])
    digest = hashlib.blake2b(training.key.encode(), digest_size=8).hexdigest()
    folder = Path(f"{expand_user(given['out'])}.unfinished") / digest
    with NoiseMeter():
        record = run_training(training, report, folder)
    if record is None:
        return
    record.command = given["command"]
    if not given["alone"]:
        record.energy_j = None  # it is that of all that ran
    append_record(given["out"], record)
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # others are unfinished
        folder.parent.rmdir()


def report(epoch: int, accuracy: float | None) -> None:
    """Tell the parent of an epoch."""
    tick()
    print(epoch, "-" if accuracy is None else accuracy, flush=True)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1])))
