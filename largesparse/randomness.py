"""Named random streams: every use of randomness has a stream of its own, derived from one seed.

A stream depends on (seed, name, rank, key) alone and has no state to keep, so a resumed run
draws what the uninterrupted run would have drawn.
"""

from __future__ import annotations

import numpy as np

STREAMS = {
    "topology": 0,
    "values": 1,
    "shuffle": 2,
    "dropout": 3,
    "evolution": 4,
    "split": 5,
    "augmentation": 6,
    "growth": 7,
    "replica": 8,
    "minimum": 9,
    "curve": 10,
}


def stream(seed: int, name: str, *key: int, rank: int = 0) -> np.random.Generator:
    """Return the generator of a stream of `STREAMS`, as rank 0 or another MPI rank draws from it.

    `key` is what the stream is for within its name, for instance (layer,) or (epoch, layer).
    """
    return np.random.Generator(np.random.PCG64(seed_sequence(seed, name, *key, rank=rank)))


def seed_sequence(seed: int, name: str, *key: int, rank: int = 0) -> np.random.SeedSequence:
    """Return the `SeedSequence` behind `stream`, for those who spawn streams of their own."""
    return np.random.SeedSequence(seed, spawn_key=(STREAMS[name], rank, *key))
