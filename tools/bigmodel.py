"""`largesparse bigmodel` as a script: train extremely large networks, and time every phase."""

import sys

from largesparse.commands.main import run_command
from largesparse.harness.bigmodel import main

if __name__ == "__main__":
    sys.exit(run_command(main))
