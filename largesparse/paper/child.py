"""One training in a process of its own, which `jobs` starts by python -m with an ORDER.

ORDER is JSON: the `settings` of a training, the `command` that asked for it, the file `out` that
its record is appended to, and whether it runs `alone`. A line on standard output tells of every
epoch: its number and the test accuracy. Under mpiexec all ranks run this.
"""

from __future__ import annotations

import json
import sys

from ..harness.records import append_record
from ..machine.exit_codes import run_command
from .run import run_training
from .trainings import Training


def main(order: str) -> None:
    """Run the training, and append its record."""
    given = json.loads(order)
    record = run_training(Training.from_settings(given["settings"]), report)
    if record is None:
        return
    record.command = given["command"]
    if not given["alone"]:
        record.energy_j = None  # it is that of all that ran
    append_record(given["out"], record)


def report(epoch: int, accuracy: float | None) -> None:
    """Tell the parent of an epoch."""
    print(epoch, "-" if accuracy is None else accuracy, flush=True)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1])))
