"""Let what a program does announce itself, for tools that strike it at a known moment."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any


def announce_phases(
    announce: Callable[[str], None],
    phases: Iterable[tuple[Any, str, str]],
    end: Callable[[str], str],
) -> None:
    """Replace functions by ones that announce when they begin and end.

    Parameters
    ----------
    announce : callable
        Takes what is announced.
    phases : iterable of (owner, name, phase)
        Classes or modules, which of their functions, and what it is called.
    end : callable
        end(phase) is announced at the end of a phase, also by an error.
    """
    for owner, name, phase in phases:
        setattr(owner, name, _announced(announce, getattr(owner, name), phase, end(phase)))


def _announced(
    announce: Callable[[str], None], function: Callable[..., Any], begin: str, end: str
) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*values: Any, **named: Any) -> Any:
        announce(begin)
        try:
            return function(*values, **named)
        finally:
            announce(end)

    return call
