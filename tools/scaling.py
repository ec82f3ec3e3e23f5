"""`largesparse scaling` as a script: the paper's Table 4, one size after another, and its plots."""

import sys

from largesparse.harness.scaling import main
from largesparse.machine.exit_codes import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
