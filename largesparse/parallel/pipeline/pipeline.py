"""What a pipeline's ranks have of a network: prediction, evaluation and saving by all of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...data.checks import check_targets, check_X
from ...data.frames import align_frame
from ...model.config import TrainingConfig
from ...model.losses import LOSSES
from ...training.checkpoint import load_layers, read_network_config
from ...training.memory import prediction_batch
from ...training.outputs import Outputs, check_outputs
from ...training.prepared import Augment, encode
from ...training.trainer import Callback
from ..comm.ranks import agree, get_communicator, together
from ..comm.transfer import CHUNK_BYTES
from .data import Elsewhere, Given, count_rows
from .flow import OUTPUTS
from .job import PipelineOptions, Wanted, meeting, threads_of, train
from .saving import place_of, write_stages
from .stage import Place
from .trainer import StageTrainer


class Pipeline:
    """A network whose layers are divided over the ranks of an MPI job.

    All ranks call its methods, in the same order. Inputs count on the ranks with the first layer
    (rank 0, and the first one of every group), targets on those with the last one.

    Attributes
    ----------
    network : SparseMLP
        With the layers of this rank alone: `layer.number` says which.
    history : History
        The same on all ranks; `history.parallel` says what each rank took.
    stages : tuple of Stage
        The layers [first, last) of every rank of a group, 0 the first hidden one.
    """

    def __init__(self, trainer: StageTrainer) -> None:
        self.trainer = trainer
        self.network, self.history = trainer.network, trainer.history
        self.stages = trainer.place.stages

    def __repr__(self) -> str:
        first, last = self.trainer.place.stage
        return (
            f"{type(self).__name__}(rank {self.trainer.place.rank} of {self.trainer.comm.size}, "
            f"layers {first + 2} to {last + 1} of {self.stages[-1].last + 1})"
        )

    def outputs(self, X: Any = None) -> NDArray[np.float32] | None:
        """Return probabilities or numbers, float32 (n_samples, n_outputs), on rank 0; else None.

        To the bit those of `Predictor` with the micro-batch of the training as `batch_size`, its
        backend and its `activation_dtype`.

        Parameters
        ----------
        X : (n_samples, n_features) dense or CSR
            Not looked at on ranks without the first layer.

        Raises
        ------
        DataError
            On all ranks, where X cannot be used.
        NumericalError
            On all ranks, where an output is not finite.
        """
        trainer, place, comm = self.trainer, self.trainer.place, self.trainer.comm
        X = together(comm, lambda: self._inputs(X) if place.is_first else None)
        count = count_rows(trainer, (X,), "X")
        assert count is not None
        to_outputs = LOSSES[self.network.config.loss].to_outputs
        found = np.empty((count if place.is_last else 0, self._n_outputs), dtype=np.float32)

        def take(rows: NDArray[np.int64], logits: Any) -> None:
            found[rows] = to_outputs(logits).T

        parts = place.parts_of_groups(np.arange(count), trainer.micro_batch)
        with meeting(trainer):
            trainer.pass_rows(X, parts[place.group], take)
            out = self._collect(found, parts)
        return together(comm, lambda: None if out is None else check_outputs(out))

    def _collect(self, found: Any, parts: list[Any]) -> NDArray[np.float32] | None:
        """Return on rank 0 what the last ranks have found of their rows."""
        links, place = self.trainer.links, self.trainer.place
        if place.is_last and place.rank > 0 and len(parts[place.group]):
            rows = parts[place.group]
            links.wait(links.send([found[rows[0] : rows[-1] + 1]], 0, OUTPUTS))
        if place.rank > 0:
            return None
        out = found
        if not place.is_last:
            out = np.empty((sum(map(len, parts)), self._n_outputs), dtype=np.float32)
        for group, rows in enumerate(parts):
            source = (group + 1) * len(self.stages) - 1
            if source and len(rows):
                links.wait(links.receive([out[rows[0] : rows[-1] + 1]], source, OUTPUTS))
        return out  # type: ignore[no-any-return]

    def predict(self, X: Any = None) -> NDArray[Any] | None:
        """Return class labels, or numbers, on rank 0, as `Predictor.predict`; else None.

        For X and errors see `outputs`.
        """
        found = self.outputs(X)
        return None if found is None else Outputs.of(self.network).to_predictions(found)

    def evaluate(self, X: Any = None, y: Any = None) -> tuple[float, float]:
        """Return mean loss and score over rows, on all ranks: see `Stepper.evaluate`.

        y is in the units of `predict`; the loss is in those of the outputs, where these are others.

        Raises
        ------
        DataError
            On all ranks, where X or y cannot be used, or they have not as many rows.
        """
        trainer, place, comm = self.trainer, self.trainer.place, self.trainer.comm

        def check() -> tuple[Any, Any]:
            inputs = self._inputs(X) if place.is_first else None
            targets = encode(self.network, self._in_outputs(y))[0] if place.is_last else None
            return inputs, targets

        inputs, targets = together(comm, check)
        count = count_rows(trainer, (inputs, targets), "X and y")
        assert count is not None
        rows = Elsewhere(count)
        with meeting(trainer):
            given = rows if inputs is None else inputs, rows if targets is None else targets
            return trainer.evaluate(*given, np.arange(count))

    def save(self, folder: str | Path) -> None:
        """Write the network as a model, which `load_model` and `load_pipeline` read.

        Raises
        ------
        CheckpointError
            On all ranks, where one cannot write to the folder, which all must see.
        """
        write_stages(self.trainer, place_of(folder, self.trainer.comm), training=False)

    def _in_outputs(self, y: Any) -> Any:
        """Return targets in the units of the outputs: see `SparseMLP.target_mean`."""
        mean, scale = self.network.target_mean, self.network.target_scale
        if mean is None and scale is None:
            return y
        targets = check_targets(y, self._n_outputs)
        return (targets - (0.0 if mean is None else mean)) / (1.0 if scale is None else scale)

    @property
    def _n_outputs(self) -> int:
        return self.network.config.layer_sizes[-1]

    def _inputs(self, X: Any) -> Any:
        names, n_features = self.network.feature_names, self.network.config.layer_sizes[0]
        return check_X(align_frame(X, names), n_features)


def train_pipeline(
    network: Any,
    config: TrainingConfig,
    X: Any = None,
    y: Any = None,
    *,
    comm: Any = None,
    groups: int = 1,
    split: Iterable[int] | None = None,
    test: tuple[Any, Any] | None = None,
    sample_weight: Any = None,
    augment: Augment | None = None,
    callbacks: Iterable[Callback] = (),
    checkpoint: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    notes: dict[str, Any] | None = None,
    changes: dict[str, Any] | None = None,
) -> Pipeline:
    """Train a network whose layers are divided over the ranks of an MPI job.

    Each rank makes, trains, evolves and saves consecutive layers, and never has any other's: the
    size of a network is a matter of how many machines there are. The micro-batches of a mini-batch
    follow each other through the ranks, which pass on activations, and deltas back, while they
    compute. The result is that of `Trainer` with the same configuration, to the bit, whatever the
    number of ranks of a group. All ranks call this; one alone trains by itself.

    Parameters
    ----------
    network : NetworkConfig
        Of the whole network. It counts on rank 0, and is not needed with `resume`.
    config : TrainingConfig
        The same on all ranks. `micro_batch` is by default so small that there are four of them a
        stage, of 8 rows at least. `threads` is that of a rank; by default the cores of its node
        divided by the ranks there. `keep_every` is 1, `redistribute` False.
    X : (n_samples, n_features) dense or CSR
        Looked at on ranks with the first layer alone: rank 0, and the first one of every group.
    y : (n_samples,) or (n_samples, n_targets)
        Looked at on ranks with the last layer alone.
    comm : mpi4py.MPI.Comm, optional
        By default COMM_WORLD.
    groups : int
        Pipelines side by side, each of consecutive ranks. They divide the rows of every mini-batch,
        and sum the gradients over the ranks with the same layers.
    split : iterable of int, optional
        Bounds of the layers of the ranks of a group, such as (0, 3, 5); by default the longest step
        is as short as can be.
    test : (X, y), optional
        Rows whose score is recorded after every epoch; each part is looked at as X and y.
    sample_weight : (n_samples,), optional
        As for `Trainer.fit`; it counts on the last rank of the first group.
    augment : callable, optional
        As for `Trainer.fit`, given on all ranks.
    callbacks : iterable of callables
        As for `Trainer.fit`; each rank's own, with a trainer whose network has its layers. One that
        returns True ends the training on all ranks.
    checkpoint, resume : path, optional
        As for `train_wasap`, on rank 0; all ranks must see the folder. A checkpoint is read and
        written by any number of ranks, or by `load_checkpoint`.
    progress : bool, optional
        As for `Trainer.fit`, on rank 0.
    chunk_bytes : int
        Largest message.
    notes : dict, optional
        What checkpoints keep: see `Trainer.notes`.
    changes : dict, optional
        Fields of the configuration of `resume` to replace, as of `load_checkpoint`; the same on all
        ranks.

    Returns
    -------
    Pipeline
        This rank's layers, which predict together with those of the others, and the history.

    Raises
    ------
    LargeSparseError
        On all ranks, where something given to any of them cannot be used. Where a rank fails later,
        the whole job ends with one message.

    Examples
    --------
    >>> pipeline = train_pipeline(config, training, X, y)  # doctest: +SKIP
    >>> labels = pipeline.predict(X_test)  # on rank 0  # doctest: +SKIP
    """
    given = Given(X, y, test, sample_weight)
    own = augment, tuple(callbacks), checkpoint, resume, progress, notes, changes
    options = PipelineOptions.of(groups, split, chunk_bytes)
    return Pipeline(train(Wanted(network, config, given, *own), options, comm))


def load_pipeline(
    folder: str | Path,
    *,
    comm: Any = None,
    groups: int = 1,
    split: Iterable[int] | None = None,
    batch_size: int | None = None,
    backend: Any = "auto",
    threads: int | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Pipeline:
    """Read a saved model or a checkpoint to predict by several ranks, each its own layers alone.

    Every rank calls it with the same arguments, and sees the folder. `batch_size` are the samples
    computed at once on a rank; the rest is as for `train_pipeline` and `load_model`.
    """
    comm = get_communicator(comm)
    options = PipelineOptions.of(groups, split, chunk_bytes)
    threads = threads_of(comm, threads)

    def load() -> StageTrainer:
        options.check(comm.size)
        of = read_network_config(folder)
        place = Place.of(comm.rank, groups, options.stages(of, comm.size))
        network = load_layers(folder, place.stage.layers)
        size = batch_size or max(1, prediction_batch(of.layer_sizes) // len(place.stages))
        config = TrainingConfig(batch_size=size, backend=backend, threads=threads)
        return StageTrainer(network, config, comm, place, chunk_bytes=chunk_bytes)

    trainer = together(comm, load)
    facts = {
        "the network": trainer.network.config,
        "how layers are divided": (options, trainer.place.stages),
        "the batch size": trainer.config.batch_size,
        "the backend": trainer.backend.name,
    }
    agree(comm, facts)
    return Pipeline(trainer)
