"""What the processor is called."""

from __future__ import annotations

import platform
import subprocess
import sys
from functools import cache


@cache
def cpu_model() -> str | None:
    """Return the name of the processor, as the operating system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    return value.strip()
    except OSError:
        pass
    if sys.platform == "darwin":
        return output_of("sysctl", "-n", "machdep.cpu.brand_string")
    return platform.processor() or platform.machine() or None


def output_of(*command: str) -> str | None:
    """Return what a command prints; None where that is nothing, or it fails."""
    try:
        run = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None if run.returncode == 0 else None
