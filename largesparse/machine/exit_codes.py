"""How a command ends: its exit code, and an error as one line."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

from ..errors import LargeSparseError
from .output import print_anything
from .signals import Interrupted


def run_command(function: Callable[[], int | None]) -> int:
    """Call `function` and return the exit code of the process.

    It is what `function` returned (None is 0); 2 after a `LargeSparseError` or an error of the
    operating system's, which is printed as one line on standard error; 130 after Ctrl-C; 141
    where the reader of the output has gone, both as shells report it.
    """
    print_anything()
    try:
        code = function() or 0
        if sys.stdout is not None:  # None where it is closed
            sys.stdout.flush()
        return code
    except LargeSparseError as error:
        if not error.is_told_elsewhere:
            print(f"largesparse: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"largesparse: error: out of memory: {error}", file=sys.stderr)
        return 2
    except Interrupted:
        return 130
    except KeyboardInterrupt:
        print("largesparse: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _silence_output()
        return 141
    except OSError as error:  # a file's or a folder's, which its reader did not foresee
        print(f"largesparse: error: {' '.join(str(error).split())}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except (OSError, AttributeError):  # it was standard output that failed: a full disk
            _silence_output()
        return 2


def _silence_output() -> None:
    """Let the interpreter succeed, which flushes standard output once more at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a test's, or closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
