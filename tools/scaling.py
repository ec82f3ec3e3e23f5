"""`largesparse scaling` as a script: the paper's Table 4, one size after another, and its plots."""

import sys

from largesparse.commands.main import run_command
from largesparse.harness.scaling import main

if __name__ == "__main__":
    sys.exit(run_command(main))
