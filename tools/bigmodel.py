"""`largesparse bigmodel` as a script: train extremely large networks, and time every phase."""

import sys

from largesparse.cli import run_command
from largesparse.harness.bigmodel import main

if __name__ == "__main__":
    sys.exit(run_command(main))
