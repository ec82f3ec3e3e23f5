"""The decorator of compiled kernels: numba, cached on disk, without the GIL."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

from ..environment import cache_folder

logger = logging.getLogger(__name__)

# Reductions may be reordered and fused, so that they vectorise; NaN and infinity keep their
# meaning (no `nnan`, no `ninf`), so that a diverging run is seen.
FASTMATH = {"reassoc", "contract", "arcp", "nsz"}


def kernel(*, parallel: bool = True) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles a function at its first call and caches it on disk.

    The cache lies in `LARGESPARSE_CACHE`, so that an installation folder that is read-only does
    not matter; `NUMBA_CACHE_DIR` has precedence. Where no folder can be written, every process
    compiles.
    """

    def compile_(function: Callable[..., Any]) -> Any:
        previous = numba.config.CACHE_DIR
        if not os.environ.get("NUMBA_CACHE_DIR"):
            numba.config.CACHE_DIR = str(cache_folder() / "kernels" / _source_digest())
        try:
            dispatcher = _jit(function, parallel=parallel, cache=True)
        except (RuntimeError, OSError):  # numba found no folder that can be written
            dispatcher = _jit(function, parallel=parallel, cache=False)
        finally:
            numba.config.CACHE_DIR = previous
        _tell_of_compiling(dispatcher)
        return dispatcher

    return compile_


@functools.cache
def _source_digest() -> str:
    """Return a digest of the kernels' sources: numba sees a change of a kernel's own file alone."""
    digest = hashlib.blake2b(digest_size=8)
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _jit(function: Callable[..., Any], **options: Any) -> Any:
    return numba.njit(nogil=True, fastmath=FASTMATH, error_model="numpy", **options)(function)


_told = False


def _tell_of_compiling(dispatcher: Any) -> None:
    """Let the first compilation in a process say that it takes a while."""
    compile_here = dispatcher._compiler.compile

    def compile_(arguments: Any, return_type: Any) -> Any:
        global _told
        if not _told:
            logger.warning("Compiling the kernels for this machine, once: up to a minute.")
            _told = True
        return compile_here(arguments, return_type)

    dispatcher._compiler.compile = compile_


# For functions that kernels call; the compiler inlines them.
inline = numba.njit(nogil=True, fastmath=FASTMATH, error_model="numpy")
