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
}


def stream(seed: int, name: str, *key: int, rank: int = 0) -> np.random.Generator:
    """Return the generator of the stream `name`.

    Parameters
    ----------
    seed : int
        The seed of the run, >= 0.
    name : str
        A key of `STREAMS`.
    *key : int
        What the stream is for within its name, for instance (layer,) or (epoch, layer).
    rank : int
        The MPI rank that draws; 0 in one process.
    """
    return np.random.Generator(np.random.PCG64(seed_sequence(seed, name, *key, rank=rank)))


def seed_sequence(seed: int, name: str, *key: int, rank: int = 0) -> np.random.SeedSequence:
    """Return the `SeedSequence` behind `stream`, for those who spawn streams of their own."""
    return np.random.SeedSequence(seed, spawn_key=(STREAMS[name], rank, *key))
