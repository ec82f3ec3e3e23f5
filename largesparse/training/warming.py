"""Compiling the kernels before anything is timed."""

from __future__ import annotations

import numpy as np

from ..backends import compiling
from ..backends.choice import BackendName
from ..model.config import ActivationDtype, NetworkConfig, OptimizerName, TrainingConfig
from ..model.network import SparseMLP
from ..model.ranking import FEW, survivors
from .memory import kind_of_kernels
from .trainer import Trainer


def warm_up(
    backend: BackendName | None = None,
    threads: int = 1,
    activation_dtype: ActivationDtype = "float32",
    *,
    whole: bool = True,
    optimizer: OptimizerName = "sgd",
) -> None:
    """Compile the kernels of a training, or load them from the cache, by training a tiny network.

    Timings that follow are then of the work alone. Mini-batches that are not computed `whole`, but
    in micro-batches, have kernels of their own.
    """
    X = np.random.default_rng(0).standard_normal((64, 8), dtype=np.float32)
    config = TrainingConfig(
        epochs=2,
        batch_size=32,
        micro_batch=32 if whole else 16,
        activation_dtype=activation_dtype,
        evolve_last=True,
        optimizer=optimizer,
        backend=backend,
        threads=threads,
    )
    network = SparseMLP(NetworkConfig((8, 64, 64, 2), epsilon=1, coverage="full"), progress=False)
    trainer = Trainer(network, config)
    trainer.fit(X, np.arange(64) % 2, test=(X, np.arange(64) % 2), progress=False)
    survivors(
        np.linspace(-1, 1, FEW + 1, dtype=np.float32), zeta=0.3
    )  # of layers that are not tiny
    compiling.note_cached(
        kind_of_kernels(trainer.backend.name, activation_dtype, trainer.config.optimizer)
    )


def warm_up_once(backend: BackendName | None = None) -> None:
    """Compile the kernels at once, before a training, where this machine has none yet."""
    if not compiling.is_cached():
        warm_up(backend)
