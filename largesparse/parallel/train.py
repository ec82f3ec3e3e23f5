"""WASAP-SGD and WASSP-SGD (Algorithm 1): training by all ranks of an MPI job."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..model.config import TrainingConfig
from ..model.network import SparseMLP
from ..training.history import History
from ..training.prepared import Augment
from ..training.trainer import Callback, Trainer
from .comm.transfer import CHUNK_BYTES
from .wasap.job import RootArguments, train


def train_wasap(
    network: SparseMLP | None,
    config: TrainingConfig,
    X: Any = None,
    y: Any = None,
    *,
    comm: Any = None,
    phase_one_epochs: int | None = None,
    test: tuple[Any, Any] | None = None,
    sample_weight: Any = None,
    augment: Augment | None = None,
    callbacks: Iterable[Callback] = (),
    checkpoint: str | Path | None = None,
    resume: str | Path | Trainer | None = None,
    progress: bool | None = None,
    slots: int | None = None,
    ranks_per_node: int | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    staleness_power: float = 0.0,
    delay_compensation: float = 0.0,
    initial_rate_factor: float = 1.0,
    initial_rate_epochs: float = 0.0,
) -> History:
    """Train a network by all ranks of an MPI job with WASAP-SGD (Algorithm 1).

    In phase one the ranks 1, 2, ... compute gradients of their mini-batches, and rank 0 applies
    each as it arrives, and evolves the topology after every epoch. In phase two as many replicas
    are trained alone, each on its part of the rows and with its own evolution, as often as they
    recover from it by 64 updates. Their average, pruned to the size of one, is the result. All
    ranks call this; one rank alone trains as `Trainer` does.

    Parameters
    ----------
    network : SparseMLP or None
        Trained in place. It counts on rank 0, and may be None on the others, as X, y, test,
        sample_weight, callbacks, checkpoint and resume may.
    config : TrainingConfig
        The same on all ranks. `threads` is that of a worker; by default the cores of its node
        divided by its slots.
    X, y, test, sample_weight, augment, callbacks, checkpoint, progress
        As for `Trainer.fit`. X should be a memory-mapped file where it is large: it is not
        copied then on rank 0's node. `augment` is given on all ranks.
    comm : mpi4py.MPI.Comm, optional
        By default COMM_WORLD.
    phase_one_epochs : int, optional
        By default 0.7 of the epochs, at least 1. The rest is phase two.
    resume : path or Trainer, optional
        A checkpoint of such a training, by any number of ranks, to go on from. Its configuration
        counts, but for `epochs` and `threads`. Or what `load_checkpoint` made of one: its network
        is trained then.
    slots : int, optional
        Gradients that a node computes at a time; by default its cores, or its workers where
        these are fewer. Memory and staleness follow the slots. With two for every worker a worker
        begins its next gradient without waiting for the update by its last: faster, and staler.
    ranks_per_node : int, optional
        Splits a machine into simulated nodes, between which arrays go by MPI.
    chunk_bytes : int
        Largest message of a transfer between nodes.
    staleness_power : float
        The learning rate of an update is multiplied by (1 + staleness)^-power.
    delay_compensation : float
        λ of delay compensation (Zheng et al., 2017): λ·g²·(w - w_then) is added to g, but for
        gradients that are applied after the end of the epoch in which they were computed.
    initial_rate_factor, initial_rate_epochs : float
        The learning rate is multiplied by this for the first epochs.

    Returns
    -------
    history : History
        On all ranks. Epochs of phase two have no loss or accuracy, but for the last, which is the
        average's. `history.parallel` is the ParallelReport.

    Raises
    ------
    LargeSparseError
        On all ranks, where something given to any of them cannot be used. Where nobody catches
        it, rank 0 tells it. Where a rank fails later, the whole job ends with one message.
    """
    options: dict[str, Any] = {
        "algorithm": "wasap",
        "phase_one_epochs": phase_one_epochs,
        "slots": slots,
        "ranks_per_node": ranks_per_node,
        "chunk_bytes": chunk_bytes,
        "staleness_power": staleness_power,
        "delay_compensation": delay_compensation,
        "initial_rate_factor": initial_rate_factor,
        "initial_rate_epochs": initial_rate_epochs,
    }
    sources = network, config, X, y, test, sample_weight, checkpoint, resume, callbacks, progress
    return train(RootArguments(*sources), options, comm, augment)


def train_wassp(
    network: SparseMLP | None,
    config: TrainingConfig,
    X: Any = None,
    y: Any = None,
    *,
    comm: Any = None,
    phase_one_epochs: int | None = None,
    test: tuple[Any, Any] | None = None,
    sample_weight: Any = None,
    augment: Augment | None = None,
    callbacks: Iterable[Callback] = (),
    checkpoint: str | Path | None = None,
    resume: str | Path | Trainer | None = None,
    progress: bool | None = None,
    slots: int | None = None,
    ranks_per_node: int | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    server: bool = True,
) -> History:
    """Train a network by all ranks of an MPI job with WASSP-SGD, the synchronous variant.

    In phase one every update is by the mean of all workers' gradients. The learning rate grows
    from its own value to as many times that as there are workers over the first 5 epochs (Goyal
    et al., 2017). Phase two is that of `train_wasap`, as are the parameters.

    With `server=False` no gradients are sent to rank 0: the nodes add them by an all-reduce, and
    each updates weights of its own. Every worker then has a slot.
    """
    options: dict[str, Any] = {
        "algorithm": "wassp" if server else "allreduce",
        "phase_one_epochs": phase_one_epochs,
        "slots": slots,
        "ranks_per_node": ranks_per_node,
        "chunk_bytes": chunk_bytes,
    }
    sources = network, config, X, y, test, sample_weight, checkpoint, resume, callbacks, progress
    return train(RootArguments(*sources), options, comm, augment)
