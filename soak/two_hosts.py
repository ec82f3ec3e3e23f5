"""Run a command under mpiexec on two hosts, which are network namespaces of this machine.

    python -m soak two_hosts -n 4 python script.py

`soak/two_hosts.sh` does it, and says how.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

LAUNCHER = Path(__file__).with_suffix(".sh")


def main() -> None:
    """Become the launcher."""
    os.execv(LAUNCHER, [str(LAUNCHER), *sys.argv[1:]])
