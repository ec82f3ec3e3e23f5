"""Tools that strike, starve and repeat: hours of what the tests do for a moment."""

import sys
from pathlib import Path

MAIN = Path(__file__).with_name("__main__.py")


def program(name: str) -> list[str]:
    """Return the words that begin a command of a tool, in whatever folder it is started."""
    return [sys.executable, str(MAIN), name]
