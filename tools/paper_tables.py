"""`largesparse paper` as a script: the paper's tables and figures beside its own."""

import sys

from largesparse.machine.exit_codes import run_command
from largesparse.paper.command import main

if __name__ == "__main__":
    sys.exit(run_command(main))
