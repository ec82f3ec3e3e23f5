"""The decorator of compiled kernels: numba, cached on disk, without the GIL."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numba
from numba.core.compiler_lock import global_compiler_lock
from numba.core.cpu_options import ParallelOptions
from numba.core.registry import CPUDispatcher

from ..errors import BackendError, ParameterError
from ..machine.environment import cache_folder, temporary_cache_folder
from ..machine.garbage import no_collection
from ..machine.output import is_terminal, speaks, tell_once
from ..machine.threading_layers import threading_layer

logger = logging.getLogger(__name__)

if numba.config.DISABLE_JIT:
    raise BackendError(
        "The kernels need numba's compiler, which NUMBA_DISABLE_JIT turns off. Unset it."
    )
threading_layer()  # chosen before the first kernel lets numba start its threads

# What sums may be reordered and fused in, so that they vectorise; NaN and infinity keep their
# meaning (no `nnan`, no `ninf`), so that a diverging run is seen.
REORDERED = {"reassoc", "contract", "arcp", "nsz"}
# Only what is written as `prange` is parallel: an array expression would be compiled as a loop of
# threads too, for a second each.
WHOLE = ("comprehension", "reduction", "inplace_binop", "setitem", "numpy", "stencil", "fusion")
PARALLEL = ParallelOptions(dict.fromkeys(WHOLE, False))

OPTIONS = {"nogil": True, "error_model": "numpy"}
inline = numba.njit(**OPTIONS)  # for functions that kernels call; the compiler inlines them


def kernel(*, parallel: bool = True, reorder: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles a function at its first call and caches it on disk.

    The cache lies in `LARGESPARSE_CACHE`, so that an installation folder that is read-only does
    not matter; `NUMBA_CACHE_DIR` has precedence. Where that folder cannot be written, the cache is
    among the temporary files, and where that fails too, every process compiles.

    Arithmetic is done as it is written. A kernel that others call exists several times, in a
    library of its own and in those of its callers, each of them optimised for itself; the linker
    takes the copy that is loaded first, which is another one in the process that has compiled them
    than in those that find them in the cache. So all copies have to give the same bits. Only a
    kernel that no other one calls may `reorder` its sums: see `REORDERED`.
    """
    fastmath = REORDERED if reorder else False
    options = OPTIONS | {"parallel": PARALLEL if parallel else False, "fastmath": fastmath}

    def compile_(function: Callable[..., Any]) -> Any:
        previous = numba.config.CACHE_DIR
        folder = _folder()
        try:
            numba.config.CACHE_DIR = str(folder)
            dispatcher = numba.njit(cache=folder is not None, **options)(function)
        except (RuntimeError, OSError):  # numba found no folder that can be written
            dispatcher = numba.njit(**options)(function)
        finally:
            numba.config.CACHE_DIR = previous
        _survive_damage(dispatcher._cache)
        _compile_once(dispatcher)
        if threading_layer().name == "workqueue":
            dispatcher.__class__ = _InTurn
        return dispatcher

    return compile_


class _InTurn(CPUDispatcher):  # type: ignore[misc]
    """A kernel that waits while another thread runs one: numba's work queue would end the process.

    It runs the threads where there is neither TBB nor OpenMP.
    """

    turn = threading.RLock()

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        with _InTurn.turn:
            return super().__call__(*arguments, **named)


def _after_fork() -> None:
    _InTurn.turn = threading.RLock()  # a thread that only the parent has may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _folder() -> Path | None:
    """Return the folder of compiled kernels, None if there is none."""
    named = os.environ.get("NUMBA_CACHE_DIR")
    return Path(named) if named else _kernel_folder()


@functools.cache
def _kernel_folder() -> Path | None:
    """Return the first folder for compiled kernels that can be written, None if there is none."""
    reason = ""
    for find in (cache_folder, temporary_cache_folder):
        try:
            folder = find() / "kernels" / _source_digest()
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except (OSError, ParameterError) as error:
            reason = reason or str(error)
            continue
        if reason:
            tell_once(logger, f"Compiled kernels are kept in {folder}, because of this: {reason}")
        return folder
    tell_once(
        logger,
        f"Every process compiles its kernels, for up to a minute, because of this: {reason}",
    )
    return None


def _survive_damage(cache: Any) -> None:
    """Compile again where a file of the cache is damaged, as by a full disk or a crash.

    What cannot be saved is compiled all the same.
    """
    load, save = cache.load_overload, cache.save_overload

    def load_overload(signature: Any, context: Any) -> Any:
        try:
            return load(signature, context)
        except Exception as error:  # pickle raises anything on damaged bytes
            logger.debug("A compiled kernel in %s is damaged: %r", cache.cache_path, error)
            with suppress(OSError):
                cache.flush()
            return None

    def save_overload(signature: Any, compiled: Any) -> None:
        try:
            save(signature, compiled)
        except Exception as error:  # as above: the index is read before
            logger.debug("A compiled kernel cannot be kept in %s: %r", cache.cache_path, error)

    cache.load_overload, cache.save_overload = load_overload, save_overload


@functools.cache
def _source_digest() -> str:
    """Return a digest of the kernels' sources: numba sees a change of a kernel's own file alone."""
    digest = hashlib.blake2b(digest_size=8)
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


COMPLETE = "largesparse.complete-"  # a file that is there where all kernels of a kind are


class _NotCached(Exception):
    """A kernel is neither compiled nor in the cache, and this process has not got its lock."""


class _Watch:
    """Watches a process compile: tells of it, and keeps the seconds beside the kernels.

    The process that compiles first on this machine says that it takes a while. Later ones, that
    lack a few kernels, say so where it takes long. A terminal shows each kernel; logs get a line
    now and then.
    """

    TOLD = "largesparse.told"  # a file that is there where the first process has said so
    SECONDS = "largesparse.seconds"  # a file with a line for each compilation: process and seconds
    SILENCE = 15.0  # seconds without a line, about

    def __init__(self) -> None:
        self.depth = 0  # of kernels that are compiled for the kernel that calls them
        self.kernels = 0
        self.seconds = self.told = 0.0  # by this process, and when it said something

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Watch the compilation of a kernel."""
        if self.depth == 0:
            self.started = time.perf_counter() - self.seconds
            if self.kernels == 0:
                self._begin()
        self.depth += 1
        self.kernels += 1
        self._show()
        try:
            yield
        finally:
            self.depth -= 1
            if self.depth == 0:
                self._end()

    def _begin(self) -> None:
        folder, took = _folder(), "up to a minute"
        if not speaks():
            return
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / self.TOLD).touch(exist_ok=False)
                if last := _last_seconds(folder.parent.glob(f"*/{self.SECONDS}")):
                    took = f"it took {last:.0f} s the last time"
        except FileExistsError:
            return
        except OSError as error:
            logger.debug("The seconds of compiling are not kept: %s", error)
        tell_once(logger, f"Compiling the kernels for this machine, once: {took}.")

    def _show(self) -> None:
        seconds = time.perf_counter() - self.started
        said = f"compiling kernels for this machine: {self.kernels} in {seconds:.0f} s"
        if is_terminal() and speaks():
            print(f"\r{said}", end="", file=sys.stderr, flush=True)
        elif seconds - self.told >= self.SILENCE:
            self.told = seconds
            tell_once(logger, f"Still {said}.")

    def _end(self) -> None:
        before, self.seconds = self.seconds, time.perf_counter() - self.started
        if is_terminal() and speaks():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        if (folder := _folder()) is not None:
            with suppress(OSError), open(folder / self.SECONDS, "a", encoding="ascii") as file:
                file.write(f"{os.getpid()} {self.seconds - before:.3f}\n")


def is_cached(kind: str = "") -> bool:
    """Return whether kernels, or all of a kind, have been compiled and kept on this machine."""
    folder, name = _folder(), f"{COMPLETE}{kind}" if kind else _Watch.SECONDS
    return folder is not None and (folder / name).exists()


def note_cached(kind: str) -> None:
    """Keep in mind that all kernels of a kind have been compiled and kept on this machine."""
    if is_cached():
        with suppress(OSError):
            (_folder() / f"{COMPLETE}{kind}").touch()  # type: ignore[operator]


def _last_seconds(files: Iterable[Path]) -> float:
    """Return the seconds of the process that compiled most of the newest kernels, or 0."""
    kept = [file for file in files if file.stat().st_size]
    seconds: dict[str, float] = defaultdict(float)
    if kept:
        newest = max(kept, key=lambda file: file.stat().st_mtime)
        for line in newest.read_text(encoding="ascii", errors="replace").splitlines():
            process, _, number = line.partition(" ")
            with suppress(ValueError):  # of a line that a full disk has cut
                seconds[process] += float(number)
    return max(seconds.values(), default=0)


_watch = _Watch()


def _compile_once(dispatcher: Any) -> None:
    """Let one process at a time compile a kernel, so that the others find it in the cache.

    Others compile other kernels meanwhile. Those that a kernel calls are locked within its lock;
    as no call leads back, no two processes wait for each other.
    """
    load_or_compile = dispatcher.compile
    compile_here = dispatcher._compiler.compile
    locked = False

    def compile_(arguments: Any, return_type: Any) -> Any:
        if not locked:
            raise _NotCached
        with _watch.compiling():
            return compile_here(arguments, return_type)

    def compile_once(signature: Any) -> Any:
        nonlocal locked
        try:
            with no_collection():
                return load_or_compile(signature)
        except _NotCached:
            with _lock(dispatcher):
                locked = True
                try:
                    return load_or_compile(signature)
                finally:
                    locked = False

    dispatcher._compiler.compile = compile_
    dispatcher.compile = compile_once


@contextmanager
def _lock(dispatcher: Any) -> Iterator[None]:
    """Hold the lock of a kernel, where there is a cache folder that can be locked."""
    with ExitStack() as stack:
        stack.enter_context(global_compiler_lock)  # first: another thread may compile
        if dispatcher._cache.cache_path is not None:
            try:
                import fcntl

                folder = Path(dispatcher._cache.cache_path)
                folder.mkdir(parents=True, exist_ok=True)
                name = f"{dispatcher.__module__}.{dispatcher.__qualname__}.lock"
                file = stack.enter_context(open(folder / name, "wb"))
                fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed, or the process ends
            except (ImportError, OSError) as error:
                logger.debug("Compiling without a lock: %s", error)
        yield
