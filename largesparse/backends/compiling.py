"""The decorator of compiled kernels: numba, cached on disk, without the GIL."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

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
    compiles. Of processes that need the same function at once, one compiles and the others wait.
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
        _compile_once(dispatcher)
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


def _compile_once(dispatcher: Any) -> None:
    """Let one process at a time compile a kernel, and the others find it in the cache then."""
    compiler, cache = dispatcher._compiler, dispatcher._cache
    compile_here = compiler.compile
    folder = getattr(cache, "cache_path", None)  # there is none without a cache

    def compile_(arguments: Any, return_type: Any) -> Any:
        with _compiling(folder):
            result = cache.load_overload(arguments, dispatcher.targetctx)
            if result is None:
                _tell()
                result = compile_here(arguments, return_type)
                cache.save_overload(arguments, result)  # before the others look again
            return result

    compiler.compile = compile_


_depth = 0  # of compilations within compilations; numba allows one thread at a time
_told = False


def _tell() -> None:
    """Say once in a process that compiling takes a while."""
    global _told
    if not _told:
        logger.warning("Compiling the kernels for this machine, once: up to a minute.")
        _told = True


@contextmanager
def _compiling(folder: str | None) -> Iterator[None]:
    """Hold the lock of a cache folder."""
    global _depth
    lock = None
    if _depth == 0 and folder is not None:
        lock = _lock(Path(folder))
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if lock is not None:
            lock.close()


def _lock(folder: Path) -> IO[bytes] | None:
    """Wait for the lock of a folder, and return the open file that holds it, where there is one."""
    try:
        import fcntl

        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "ab")  # noqa: SIM115  it stays open while it is held
        fcntl.flock(file, fcntl.LOCK_EX)
        return file
    except (ImportError, OSError):  # not POSIX, or a file system without locks
        return None


# For functions that kernels call; the compiler inlines them.
inline = numba.njit(nogil=True, fastmath=FASTMATH, error_model="numpy")
