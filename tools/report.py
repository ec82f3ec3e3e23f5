"""`largesparse report` as a script: one page of what asv and the drivers have measured."""

import sys

from largesparse.commands.main import run_command
from largesparse.harness.report import main

if __name__ == "__main__":
    sys.exit(run_command(main))
