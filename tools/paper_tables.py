"""`largesparse paper` as a script: the paper's tables and figures beside its own."""

import sys

from largesparse.cli import run_command
from largesparse.reproduction.command import main

if __name__ == "__main__":
    sys.exit(run_command(main))
