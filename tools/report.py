"""`largesparse report` as a script: one page of what asv and the drivers have measured."""

import sys

from largesparse.harness.report import main
from largesparse.machine.exit_codes import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
