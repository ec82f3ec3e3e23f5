"""Run one training of a table, and return its run record."""

from __future__ import annotations

import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..data.augmentation import ImageAugmenter
from ..data.datasets import Dataset, load_dataset
from ..data.standardizer import Standardizer
from ..errors import CheckpointError, DataError, NumericalError
from ..harness.records import RunRecord
from ..machine.energy import EnergyMeter
from ..machine.usage import cpu_seconds, peak_rss_bytes
from ..model.importance import compact, prune_neurons
from ..model.network import SparseMLP
from ..parallel import train_wasap, train_wassp
from ..parallel.comm.ranks import get_communicator
from ..training.checkpoint import read_checkpoint
from ..training.monitoring import GradientFlow
from ..training.trainer import Trainer
from ..training.warming import warm_up
from .distributions import neuron_distributions
from .recording import Report, make_record, some_rows, training_seconds
from .reported import TABLE_6
from .scores import ScoringTrainer
from .settings import IMAGES
from .trainings import Training

PERCENTILES = tuple(next(iter(TABLE_6.values())))[1:]
MEASUREMENTS = 100  # of the gradient flow in a training, at most
CHANGED_ROWS = 10_000  # that the statistics of augmented images are taken over


def load(training: Training) -> Dataset:
    """Return the data set of a training.

    Raises
    ------
    DataError
        Where it is not there, or has not the features and classes of the paper's network.
    """
    # The paper's part of Leukemia's rows; the other data sets have a split of their own.
    data = load_dataset(training.dataset, test_fraction=1 / 3)
    sizes = training.network.layer_sizes
    found = data.X_train.shape[1], int(data.y_train.max()) + 1
    if found != (sizes[0], sizes[-1]):
        raise DataError(
            f"The data set {training.dataset!r} has {found[0]} features and {found[1]} classes, "
            f"the paper's {sizes[0]} and {sizes[-1]}. Use the paper's data."
        )
    return data


def run_training(
    training: Training, report: Report, checkpoint: Path | None = None
) -> RunRecord | None:
    """Run a training in this process, or in this MPI job; return its record, on rank 0.

    Parameters
    ----------
    training : Training
    report : callable
        Is told of every epoch that is complete.
    checkpoint : path, optional
        The folder that a training in this process goes on from, where it was stopped.
    """
    if training.algorithm == "mlp_classifier":
        from .baseline import run_scikit_learn

        return run_scikit_learn(training, load(training), report)
    if training.ranks > 1:
        return _run_parallel(training, report)
    return run_sequential(training, load(training), report, checkpoint)


def run_sequential(
    training: Training, data: Dataset, report: Report, checkpoint: Path | None = None
) -> RunRecord:
    """Run a training in this process on rows that are given; return its record."""
    config = training.training
    warm_up(config.backend)
    trainer = resumed = go_on(training, checkpoint)
    if trainer is None:
        started = time.perf_counter()
        network = SparseMLP(training.network, threads=1, progress=False)
        trainer = ScoringTrainer(network, config)
        trainer.notes["init_s"] = time.perf_counter() - started
        prepare_augmentation(training, network, data.X_train)
    network, augment = trainer.network, augmenter(training)
    scores = trainer.keep_scores(len(data.y_test))
    rows = some_rows(len(data.y_train))
    flow = GradientFlow(
        data.X_train[rows], data.y_train[rows], every=math.ceil(config.epochs / MEASUREMENTS)
    )
    flow.rows = trainer.notes.setdefault("gradient_flow", [])
    if resumed and trainer.epoch and all(row["epoch"] < trainer.epoch for row in flow.rows):
        flow(trainer, trainer.history.epochs[-1])  # which comes after the checkpoint
    for record in trainer.history.epochs[1:]:  # before it was stopped
        report(record.epoch, record.test_accuracy)
    trainer.cpu_began = cpu_seconds() - trainer.notes.get("cpu_s", 0.0)
    with EnergyMeter() as meter:
        try:
            trainer.fit(
                data.X_train,
                data.y_train,
                test=(data.X_test, data.y_test),
                augment=augment,
                callbacks=[flow, lambda _, epoch: report(epoch.epoch, epoch.test_accuracy)],
                checkpoint=checkpoint,
                progress=False,
            )
        except NumericalError:
            if not trainer.history.epochs:  # before the first update
                raise
    cpu = cpu_seconds() - trainer.cpu_began
    history = trainer.history
    flows: list[float | None] = [None] * (config.epochs + 1)
    for row in flow.rows:
        flows[int(row["epoch"])] = row["gradient_flow"]
    results: dict[str, Any] = {}
    if trainer.epoch == config.epochs:  # it has not diverged
        rows = some_rows(len(data.y_test))
        results["selected_accuracy"] = scores.selected(
            config.epochs, history["validation_accuracy"]
        )
        results["distributions"] = neuron_distributions(network, data.X_test, rows)
        if config.pruning_start is None and not training.dense:
            results["pruned"] = prune_copies(trainer, data)
    return make_record(
        training,
        data,
        network,
        history,
        init_s=trainer.notes["init_s"],
        accuracy=history["test_accuracy"],
        inference_s=history["inference_s"][1:],
        test_loss=scores.loss,
        gradient_flow=flows,
        cpu_s=[cpu],
        energy_j=None if resumed else meter.joules,
        train_s=training_seconds(history),
        peak_rss_bytes=peak_rss_bytes(),
        **results,
    )


def go_on(training: Training, checkpoint: Path | None) -> ScoringTrainer | None:
    """Return the trainer of a training that was stopped, None where it begins."""
    if checkpoint is None or not checkpoint.exists():
        return None
    try:
        network, _, state = read_checkpoint(checkpoint)
    except CheckpointError as error:
        print(f"The training begins anew: {error}", file=sys.stderr)
        shutil.rmtree(checkpoint)
        return None
    return ScoringTrainer(network, training.training, state=state)


def _run_parallel(training: Training, report: Report) -> RunRecord | None:
    leads = get_communicator().rank == 0
    data = network = X = y = test = None
    augment = augmenter(training)
    if leads:
        data = load(training)
        X, y, test = data.X_train, data.y_train, (data.X_test, data.y_test)
    warm_up(training.training.backend)
    started = time.perf_counter()
    if leads:
        network = SparseMLP(training.network, threads=1, progress=False)
        prepare_augmentation(training, network, X)
    init_s = time.perf_counter() - started
    train: Any = {"wasap": train_wasap, "wassp": train_wassp}[training.algorithm]
    with EnergyMeter() as meter:
        history = train(
            network,
            training.training,
            X,
            y,
            phase_one_epochs=training.phase_one_epochs,
            test=test,
            augment=augment,
            callbacks=[lambda _, epoch: report(epoch.epoch, epoch.test_accuracy)],
            progress=False,
        )
    if not leads:
        return None
    found = history.parallel
    assert network is not None and data is not None and found is not None
    return make_record(
        training,
        data,
        network,
        history,
        init_s=init_s,
        accuracy=history["test_accuracy"],
        cpu_s=found.cpu_s,
        energy_j=meter.joules,
        train_s=found.phase_one_s + found.phase_two_s + found.averaging_s,
        peak_rss_bytes=found.peak_rss_bytes,
        node_pss_bytes=found.node_pss_bytes,
        phase_one_epochs=found.phase_one_epochs,
        idle_s=found.idle_s,
        staleness=found.staleness_record(),
    )


def prune_copies(trainer: Trainer, data: Dataset) -> list[dict[str, float]]:
    """Prune copies of a trained network once, at every percentile of Table 6."""
    found = []
    for percentile in (0, *PERCENTILES):
        network = compact(trainer.network)  # nothing is dead: a copy
        prune_neurons(network, percentile)
        _, accuracy = Trainer(network, trainer.config).evaluate(data.X_test, data.y_test)
        found.append(
            {
                "percentile": percentile,
                "accuracy": accuracy,
                "connections": network.connections,
            }
        )
    return found


def augmenter(training: Training) -> ImageAugmenter | None:
    """Return what changes the images of a training, if they are to be changed."""
    if not training.augment:
        return None
    features = training.network.layer_sizes[0]
    if features not in IMAGES:
        raise DataError(
            f"The data set {training.dataset!r} has no images to augment. Leave --augment out."
        )
    return ImageAugmenter(IMAGES[features], seed=training.training.seed)


def prepare_augmentation(training: Training, network: SparseMLP, X: Any) -> ImageAugmenter | None:
    """Return what changes the images, and standardise the network's inputs as the changed are.

    The border of FashionMNIST's images is nearly always 0: an image that is shifted there would be
    thousands of standard deviations of the unchanged from their mean.
    """
    augment = augmenter(training)
    if augment is not None:
        rows = some_rows(len(X), CHANGED_ROWS)
        changed = augment(X[rows].astype(np.float32), rows, 0)
        network.preprocessing = Standardizer.fit(changed)
    return augment
