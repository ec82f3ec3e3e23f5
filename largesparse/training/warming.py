"""Compiling the kernels before anything is timed."""

from __future__ import annotations

import numpy as np

from ..backends.choice import BackendName
from ..model.config import ActivationDtype, NetworkConfig, TrainingConfig
from ..model.network import SparseMLP
from .trainer import Trainer


def warm_up(
    backend: BackendName | None = None,
    threads: int = 1,
    activation_dtype: ActivationDtype = "float32",
) -> None:
    """Compile every kernel, or load it from the cache, by training a tiny network.

    Timings that follow are then of the work alone.
    """
    X = np.random.default_rng(0).standard_normal((64, 8), dtype=np.float32)
    config = TrainingConfig(
        epochs=2,
        batch_size=32,
        activation_dtype=activation_dtype,
        evolve_last=True,
        backend=backend,
        threads=threads,
    )
    network = SparseMLP(NetworkConfig((8, 64, 64, 2), epsilon=1, coverage="full"), progress=False)
    Trainer(network, config).fit(X, np.arange(64) % 2, test=(X, np.arange(64) % 2), progress=False)
