"""How all ranks of a pipeline learn of a signal, so that they end before the same mini-batch."""

from __future__ import annotations

import numpy as np

from ...machine.signals import StopRequest
from .flow import ORDERS, Links
from .stage import Place


class Orders:
    """Passes on which signal rank 0 has noted, from rank to rank."""

    def __init__(self, links: Links, place: Place) -> None:
        self._links, self._place = links, place
        self.agreed = StopRequest()  # what all ranks know of the signals that rank 0 has noted
        self.signals: StopRequest | None = None  # those of rank 0, there

    @property
    def noted(self) -> int:
        """The signal that rank 0 has noted; 0 for none."""
        signals = self.signals
        return 0 if signals is None or signals.signal is None else int(signals.signal)

    def heed(self, number: int) -> None:
        """Note a signal of which all ranks know now."""
        if number and self.agreed.signal is None:
            self.agreed.note(number)

    def pass_on(self, *, may_stop: bool) -> None:
        """Let all ranks know of a signal, and stop all that have one; every rank calls it.

        `may_stop` counts on rank 0: whether it may tell of one now.
        """
        place, links, orders = self._place, self._links, np.zeros(1, dtype=np.int64)
        if place.rank == 0 and may_stop:
            orders[0] = self.noted
        source = 0 if place.is_first and place.group else place.before
        targets = [] if place.behind is None else [place.behind]
        if place.rank == 0:
            targets += place.peers[1:]
        if source is not None:
            links.wait(links.receive([orders], source, ORDERS))
        for transfer in [links.send([orders], target, ORDERS) for target in targets]:
            links.wait(transfer)
        self.heed(int(orders[0]))
        self.agreed.check()
