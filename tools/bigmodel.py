"""`largesparse bigmodel` as a script: train extremely large networks, and time every phase."""

import sys

from largesparse.harness.bigmodel import main
from largesparse.machine.exit_codes import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
