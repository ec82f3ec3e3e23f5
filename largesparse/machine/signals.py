"""SIGTERM and Ctrl-C end a training between two mini-batches, when its state has been saved."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

# What each signal does as long as nobody has arranged something else.
DEFAULTS: dict[signal.Signals, Any] = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
}


class Stop(BaseException):
    """The training is to end here: its state is complete."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C has ended a training, and standard error tells where it was saved."""


class StopRequest:
    """What the process has been asked for so far."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None  # the first that has come
        self._at_once = False

    def note(self, number: int, _: FrameType | None = None) -> None:
        """Note a signal. A second Ctrl-C is not waited for."""
        if number == signal.SIGINT and self.signal is not None:
            raise KeyboardInterrupt
        self.signal = self.signal or signal.Signals(number)
        if self._at_once:
            self.check()

    def check(self) -> None:
        """Raise `Stop` where a signal has come."""
        if self.signal is not None:
            self._at_once = False
            raise Stop

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a signal end a block, which changes nothing, wherever it is."""
        self._at_once = True
        try:
            self.check()
            yield
        finally:
            self._at_once = False


@contextmanager
def stop_request(wanted: bool = True) -> Iterator[StopRequest]:
    """Note SIGTERM and Ctrl-C, if that is wanted, instead of ending by them in the block.

    Signals that the caller has handlers for, or ignores, are left alone, and all of them outside
    the main thread, where handlers cannot be set.
    """
    request = StopRequest()
    mine = []
    if wanted and threading.current_thread() is threading.main_thread():
        mine = [number for number in DEFAULTS if signal.getsignal(number) == DEFAULTS[number]]
    for number in mine:
        signal.signal(number, request.note)
    try:
        yield request
    finally:
        for number in mine:
            signal.signal(number, DEFAULTS[number])
    if request.signal is not None:  # it came after the last look
        signal.raise_signal(request.signal)


def stopped(request: StopRequest, text: str) -> NoReturn:
    """End a training that a signal has stopped, and tell on standard error what has been saved.

    Raised is `Interrupted` after Ctrl-C; `SystemExit` after SIGTERM, with the status that shells
    report then, 143.
    """
    assert request.signal is not None
    sys.stderr.write(sentence(request, text))
    sys.stderr.flush()
    if request.signal == signal.SIGINT:
        raise Interrupted
    raise SystemExit(128 + request.signal)


def sentence(request: StopRequest, text: str) -> str:
    """Return the line that tells of a training that has been stopped."""
    assert request.signal is not None
    cause = "Ctrl-C" if request.signal == signal.SIGINT else request.signal.name
    return f"largesparse: stopped by {cause} {text}\n"


def saved_in(folder: str | Path) -> str:
    """Return where a training has been saved, and how it goes on."""
    place = str(Path(folder))
    return f"saved in {place}. Go on with --resume {place}, in Python with load_checkpoint."
