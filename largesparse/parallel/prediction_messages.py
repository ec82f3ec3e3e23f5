"""What rank 0 and the others tell each other in a prediction."""

from __future__ import annotations

from typing import NamedTuple

from ..inference import ForwardLayout
from ..sharing import SharedArray

Shapes = list[tuple[tuple[int, ...], str]]


class Host(NamedTuple):
    """To the first rank of another node: make a segment of arrays of these shapes."""

    shapes: Shapes


class Receive:
    """To the same rank: receive the arrays, and tell where they are."""


class Share(NamedTuple):
    """To every rank that has rows: predict them."""

    layout: ForwardLayout
    X_shape: tuple[int, ...] | None  # of sparse rows of the node; None is dense ones
    arrays: list[SharedArray]  # of the layers, then of the rows
    start: int  # among the rows of the node
    stop: int
    settings: tuple[int, int, str, bool]  # of the engine
    outputs: tuple[str, Shapes] | None  # a segment to write to; None is to send them


class SendOutputs:
    """To a rank on another node: send the outputs."""


class Finish:
    """To every rank: all is done."""
