"""What runs the threads of the compiled kernels: TBB, OpenMP or numba's own work queue.

Numba starts one of them, once in a process, and finds TBB only where the system's linker looks.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from ..errors import BackendError
from .versions import wheel_file

logger = logging.getLogger(__name__)

VARIABLE = "NUMBA_THREADING_LAYER"
# The modules of numba that run threads; one can be imported only if its library is found.
MODULES = {"tbb": "tbbpool", "omp": "omppool", "workqueue": "workqueue"}
# Kinds of layers that numba can be asked for in place of a layer
KINDS = {
    "safe": ("tbb",),
    "threadsafe": ("tbb", "omp"),
    "forksafe": ("tbb", "workqueue"),
}
SPINS = 2000  # of a waiting thread of GNU OpenMP before it sleeps, some microseconds


class ThreadingLayer(NamedTuple):
    """What runs the threads of the compiled kernels."""

    name: str  # "tbb", "omp" or "workqueue"
    reason: str  # why it was taken
    is_asked_for: bool = False  # by NUMBA_THREADING_LAYER


@functools.cache
def threading_layer() -> ThreadingLayer:
    """Choose what runs the kernels' threads, before numba starts any, and return it.

    TBB where there is its library: idle threads sleep, so that they cost little on a busy machine,
    two Python threads may start kernels at a time, and a forked child can go on computing.
    NUMBA_THREADING_LAYER may ask for another. What is asked for and cannot be loaded is told, and
    replaced.
    """
    from numba import config
    from numba.np.ufunc import parallel

    # Without /dev/shm numba has no lock between processes that start their threads, and warns.
    warnings.filterwarnings("ignore", message="Could not obtain multiprocessing lock")

    if parallel._is_initialized:
        return ThreadingLayer(parallel.threading_layer(), "numba had started it before")
    asked = str(config.THREADING_LAYER).lower()
    preferred = list(config.THREADING_LAYER_PRIORITY)
    if asked == "default":
        reason = "the first of " + ", ".join(preferred) + " that can be loaded"
        name = next(filter(_can_load, preferred))  # the work queue always can
    elif found := [name for name in KINDS.get(asked, (asked,)) if _can_load(name)]:
        name, reason = found[0], f"{VARIABLE} asks for {asked!r}"
    else:
        name = next(filter(_can_load, preferred))
        reason = f"{VARIABLE} asks for {asked!r}, which cannot be loaded here"
        logger.warning("%s: %r runs the threads of the kernels.", reason, name)
    config.THREADING_LAYER = name  # so that numba takes it too
    return ThreadingLayer(name, reason, is_asked_for=asked != "default")


def _can_load(name: str) -> bool:
    """Load a layer of numba and its library; return whether there are both."""
    if name not in MODULES:
        return False
    try:
        if name == "tbb":
            _load_tbb()
        with waiting_threads_sleep():
            importlib.import_module(f"numba.np.ufunc.{MODULES[name]}")
    except ImportError as error:
        logger.debug("The threading layer %r cannot be loaded: %s", name, error)
        return False
    return True


def _load_tbb() -> None:
    """Load TBB: that of the wheel, which the linker does not see in an environment, or another.

    ImportError is raised where there is none, or it is too old for numba.
    """
    from numba.np.ufunc import parallel

    library = wheel_file("tbb", r"libtbb\.so\.12|libtbb\.12\.dylib|tbb12\.dll")
    if library is not None:
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            logger.debug("TBB's library cannot be loaded: %s", error)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a version that is too old, which raises as well
        parallel._check_tbb_version_compatible()


@contextmanager
def waiting_threads_sleep() -> Iterator[None]:
    """Let GNU OpenMP, if it is loaded now, wait for hardly any time before its threads sleep.

    By default they wait actively for milliseconds, which on a machine that does something else
    takes the cores from the threads that are waited for.
    """
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


class _GlobalControl(ctypes.Structure):
    """`tbb::global_control` as its header lays it out: a limit holds while the object lives."""

    _fields_ = (
        ("value", ctypes.c_size_t),
        ("reserved", ctypes.c_ssize_t),
        ("parameter", ctypes.c_int),  # 0: how many threads may compute at a time
    )


@functools.cache
def _global_control() -> tuple[Any, Any] | None:
    """Return TBB's functions that begin and end a limit; None where they cannot be had."""
    if threading_layer().name != "tbb" or sys.platform != "linux":
        return None
    library = ctypes.CDLL("libtbb.so.12")  # loaded before
    try:
        begin = library["_ZN3tbb6detail2r16createERNS0_2d114global_controlE"]
        end = library["_ZN3tbb6detail2r17destroyERNS0_2d114global_controlE"]
    except AttributeError:
        return None
    begin.restype = end.restype = None
    return begin, end


def can_limit_tbb() -> bool:
    """Return whether `limit_tbb` works here."""
    return _global_control() is not None


@contextmanager
def limit_tbb(count: int) -> Iterator[None]:
    """Let TBB, in all of the process, use at most `count` threads."""
    functions = _global_control()
    assert functions is not None  # can_limit_tbb()
    begin, end = functions
    control = _GlobalControl(count, 0, 0)
    begin(ctypes.byref(control))
    try:
        yield
    finally:
        end(ctypes.byref(control))


_forked = False


def _before_fork() -> None:
    """Keep numba from ending TBB with the process: on one core it would wait for ever after a fork.

    It waits for a task that a worker thread was to run, and where one core is there are none.
    """
    if module := sys.modules.get("numba.np.ufunc.tbbpool"):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(module))  # so it is never unloaded


def check_fork() -> None:
    """Raise `BackendError` where kernels would end this process, as it was forked."""
    if _forked:
        raise BackendError(
            "The compiled kernels of this process run on OpenMP, which does not survive a fork: "
            "install TBB ('pip install tbb'), or start processes by 'spawn' or 'forkserver' "
            "(multiprocessing.set_start_method)."
        )


def _after_fork() -> None:
    global _forked
    parallel: Any = sys.modules.get("numba.np.ufunc.parallel")
    if sys.platform == "linux" and parallel is not None and parallel._is_initialized:
        _forked = parallel.threading_layer() == "omp"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
