"""Sums over the ranks that own the same layers, of pipelines side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .flow import Links
from .stage import Place


def sum_over_groups_(links: Links, place: Place, arrays: Sequence[NDArray[Any]], tag: int) -> None:
    """Have the sum over the pipelines in flat or other contiguous arrays, in place.

    Each rank sums one part of every array, in the order of the pipelines, and hands it to the
    others: so all have the same bits, and each sends and receives (G - 1)/G of the arrays twice.
    """
    if place.groups == 1:
        return
    flat = [array.reshape(-1) for array in arrays if array.size]
    bounds = [
        [slice(len(each) * g // place.groups, len(each) * (g + 1) // place.groups) for each in flat]
        for g in range(place.groups)
    ]
    parts = [[each[chosen] for each, chosen in zip(flat, own, strict=True)] for own in bounds]
    peers = place.peers
    others = [g for g in range(place.groups) if g != place.group]
    mine = parts[place.group]
    theirs = {g: [np.empty_like(part) for part in mine] for g in others}
    transfers = [links.receive(theirs[g], peers[g], tag) for g in others]
    transfers += [links.send(parts[g], peers[g], tag) for g in others]
    for transfer in transfers:
        links.wait(transfer)
    in_order = [mine if g == place.group else theirs[g] for g in range(place.groups)]
    for k, part in enumerate(mine):
        total = in_order[0][k].copy()
        for other in in_order[1:]:
            total += other[k]
        part[...] = total
    transfers = [links.receive(parts[g], peers[g], tag) for g in others]
    transfers += [links.send(mine, peers[g], tag) for g in others]
    for transfer in transfers:
        links.wait(transfer)
