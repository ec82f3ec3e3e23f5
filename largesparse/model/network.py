"""The sparse multilayer perceptron: a list of layers, and three short loops over it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..backends.base import Backend
from ..backends.choice import Choice
from ..backends.operands import (
    NO_DROPOUT,
    RESOLUTION,
    Dropout,
    Float32,
    SparseBatch,
)
from ..errors import ParameterError
from ..machine.threads import kernel_threads
from .backward import backward_inputs, backward_layer, begin_backward, through_activation_
from .config import NetworkConfig
from .folding import fold_layers
from .forward import forward
from .layer import PARAMETERS, SparseLayer, initial_layer
from .lazy_updates import LazyUpdates
from .normalization import RATE, move_
from .optimizer import MomentumSGD, Optimizer, clip_
from .start import as_topologies, checked_names, described, resolve, tell_unconnected
from .storage import Storage, StoredLayer
from .workspace import Gradients, Workspace

if TYPE_CHECKING:
    from ..data.layout import FileLayout
    from ..data.standardizer import Standardizer


Inputs = Float32 | SparseBatch
Visit = Callable[[int, Inputs, Float32], None]  # k, X (n_in, batch), delta (n_out, batch)


class SparseMLP:
    """A truly sparse multilayer perceptron.

    Parameters
    ----------
    config : NetworkConfig
    threads : int
        Threads of the initialisation; the result does not depend on it.
    progress : bool, optional
        Whether to show a progress bar over the layers; by default where standard error is a
        terminal and the initialisation takes more than a second.
    storage : Storage, optional
        Where the arrays of the layers, and of a training, lie; by default in memory.
    topology : optional
        Layers whose connections are given: that of the first hidden layer, a list of those from the
        first one on (None: drawn), or a dictionary by the layers' numbers, as the paper has them
        (the first hidden layer is 2). Each is a `GivenTopology`, a matrix (n_in, n_out), a callable
        or a file, which are frozen: see `GivenTopology`.
    feature_names : list of str, optional
        Names of the inputs' columns, by which a topology may know them.

    Attributes
    ----------
    layers : list of SparseLayer
    preprocessing : Standardizer or None
        Applied to every batch of inputs.
    classes : ndarray or None
        Labels of the classes, in the order of the outputs.
    target_mean, target_scale : float64 (n_targets,) or None
        What predicted numbers are: outputs · target_scale + target_mean, in float64.
    feature_names : list of str or None
        Names of the inputs' columns.
    neuron_names : dict of lists of str
        Names of neurons, by the number of their layer, where its topology has some.
    file_layout : FileLayout or None
        How the file was read that it was trained on (`layout.FileLayout`).
    trained_with : Choice or None
        The backend of its last training, and why that was used.

    Examples
    --------
    >>> network = SparseMLP(NetworkConfig((784, 100, 10), epsilon=10, seed=0))
    >>> network.neurons, network.connections < 11_000
    (100, True)
    """

    def __init__(
        self,
        config: NetworkConfig,
        *,
        threads: int = 1,
        progress: bool | None = None,
        storage: Storage | None = None,
        topology: Any = None,
        feature_names: Sequence[str] | None = None,
    ) -> None:
        if feature_names is not None:
            feature_names = checked_names(feature_names, config.layer_sizes[0])
        starts = resolve(as_topologies(topology), config, feature_names)
        tell_unconnected(starts, feature_names)
        names = {k + 2: each.names for k, each in starts.items() if each.names}
        self._prepare(described(config, starts), storage, feature_names, names)
        hide = None if progress is None else not progress
        layers = range(len(config.layer_sizes) - 1)
        for k in tqdm(layers, desc="initialising", unit=" layers", delay=1, disable=hide):
            with kernel_threads(threads):
                layer = initial_layer(self.config, k, threads, starts.pop(k, None))
                self.layers.append(layer if storage is None else StoredLayer(layer, storage))
                del layer

    def _prepare(
        self,
        config: NetworkConfig,
        storage: Storage | None = None,
        feature_names: Sequence[str] | None = None,
        neuron_names: dict[int, list[str]] | None = None,
    ) -> None:
        if config.batch_norm and storage is not None:
            raise ParameterError(
                "The 'batch_norm' parameter of a network must be False where its arrays lie in "
                "files ('storage'): predicting makes a copy of the weights in memory."
            )
        self.config = config
        self.layers: list[SparseLayer] = []
        self.preprocessing: Standardizer | None = None
        self.classes: NDArray[Any] | None = None
        self.target_mean: NDArray[np.float64] | None = None
        self.target_scale: NDArray[np.float64] | None = None
        self.feature_names = None if feature_names is None else list(feature_names)
        self.neuron_names = neuron_names or {}
        self.file_layout: FileLayout | None = None
        self.trained_with: Choice | None = None
        self.storage = storage

    @classmethod
    def from_layers(
        cls, config: NetworkConfig, layers: Iterable[SparseLayer], storage: Storage | None = None
    ) -> SparseMLP:
        """Return a network with layers that exist already, in a storage where one is given."""
        network = cls.__new__(cls)
        network._prepare(config, storage)
        network.layers.extend(layers)
        return network

    def __repr__(self) -> str:
        sizes, connections = self.config.layer_sizes, self.connections
        cells = sum(n_in * n_out for n_in, n_out in itertools.pairwise(sizes))
        return (
            f"{type(self).__name__}({'-'.join(map(str, sizes))}, {connections:,} connections, "
            f"density {100 * connections / cells:.3g} %, {self.config.activation})"
        )

    @property
    def neurons(self) -> int:
        """Number of neurons, the sum of the hidden layers' sizes."""
        return self.config.neurons

    @property
    def connections(self) -> int:
        """Number of connections of all layers."""
        return sum(layer.nnz for layer in self.layers)

    @property
    def layer_connections(self) -> list[int]:
        """Number of connections of every layer."""
        return [layer.nnz for layer in self.layers]

    @property
    def parameters(self) -> int:
        """Number of connections and biases, those of dead neurons left out."""
        return self.connections + sum(layer.n_living for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(layer.nbytes for layer in self.layers)

    def forward(
        self, workspace: Workspace, batch: int, backend: Backend, **options: Any
    ) -> Float32:
        """Return the logits of the inputs in the workspace: see the function `forward`."""
        layers = self.layers if options.get("training") else fold_layers(self.layers)
        prefetch = None if self.storage is None else self.storage.before_forward
        return forward(layers, workspace, batch, backend, prefetch=prefetch, **options)

    def backward(
        self,
        workspace: Workspace,
        delta: Float32,
        backend: Backend,
        *,
        dropout: Dropout = NO_DROPOUT,
        accumulate: bool = False,
        visit: Visit | None = None,
        weights: Float32 | None = None,
        touched_only: bool = False,
        part: float = 1.0,
    ) -> None:
        """Compute all gradients into the workspace, after `forward` with `training=True`.

        Parameters
        ----------
        workspace, backend, dropout
            As in `forward`.
        delta : float32 (n_classes, batch)
            Gradient of the loss with respect to the logits.
        accumulate : bool
            Whether to add to the gradients of the micro-batches before.
        visit : callable, optional
            Called with each layer's inputs and dL/dz, from the last layer to the first, when the
            layer is not needed any more: it may change the connections.
        weights : float32 (batch,), optional
            Of the samples in the loss, as in `forward`.
        touched_only : bool
            Whether the gradients of the connections of sparse inputs are 0 already where they are
            not left out: those of inputs that are zero in all samples are.
        part : float
            Share of the mini-batch's samples that this micro-batch has.
        """
        batch = delta.shape[1]
        begin_backward(self.layers, workspace, delta, accumulate, weights)
        samples = weights, part
        for k in range(len(self.layers) - 1, 0, -1):
            below = self.layers[k - 1]
            self._recompute(k - 1, workspace, batch, backend, dropout=dropout, weights=weights)
            if self.storage is not None:
                self.storage.before_backward(below, workspace, k - 1, batch)
            out = backward_layer(
                self.layers[k], below, k, workspace, delta, backend, dropout, accumulate
            )
            through_activation_(below, k - 1, workspace, out, dropout, accumulate, samples)
            if visit is not None:
                visit(k, workspace.activations(k - 1, batch), delta)
            delta = out
        backward_inputs(self.layers[0], workspace, delta, accumulate, touched_only)
        if visit is not None:
            visit(0, workspace.below(0, batch), delta)

    def _recompute(
        self, k: int, workspace: Workspace, batch: int, backend: Backend, **options: Any
    ) -> None:
        """Have the activations of hidden layer k in the workspace, from those that are kept."""
        segment, place = divmod(k, workspace.keep_every)
        if place < workspace.keep_every - 1 and segment < workspace.segment:
            workspace.segment = segment
            first = segment * workspace.keep_every
            numbers = range(first, k + 1)
            self.forward(workspace, batch, backend, training=True, numbers=numbers, **options)

    def finish_gradient(self, workspace: Gradients) -> None:
        """Centre the output layer's gradients, after all micro-batches, if its recipe asks for it.

        Activations with a mean above zero make the direction in which an output moves for all
        samples at once the steepest by far, and a learning rate that suits the others overshoots
        in it. Centred gradients leave it to the bias (Schraudolph, "Centering neural network
        gradient factors", 1998).
        """
        from ..backends.kernels import center_gradient

        layer = self.layers[-1]
        if layer.config.centered:
            center_gradient(
                layer.topology.indptr,
                layer.topology.indices,
                workspace.input_sums,
                layer.config.rate_scale,
                workspace.bias_gradients[-1],
                workspace.gradients[-1],
            )

    def update_(
        self,
        workspace: Gradients,
        optimizer: Optimizer,
        learning_rate: float,
        *,
        lazy: LazyUpdates | None = None,
        sparse: bool = False,
        both_orders: bool = True,
    ) -> None:
        """Apply the gradients in the workspace, in place: see `Optimizer.update_`.

        They are clipped first where the optimizer has a `clip_norm`. Weights of the first layer
        that `lazy` is to update are left to it. After `sparse` inputs
        the copy of the layer's weights in output order waits until it is asked for.
        """
        if optimizer.clip_norm is not None:
            clip_(self.layers, workspace.by_layer, optimizer.clip_norm)
        for k, layer in enumerate(self.layers):
            if self.storage is not None and k + 1 < len(self.layers):
                self.storage.before_update(self.layers[k + 1], workspace.gradients[k + 1])
            gradients, both = workspace.by_layer[k], both_orders
            if layer.running is not None:
                move_(layer.running, gradients["running"], RATE)
                gradients = {name: g for name, g in gradients.items() if name != "running"}
            if k == 0 and sparse:
                layer.is_stale, both = True, False
            if k == 0 and lazy is not None and lazy.is_waiting:
                assert isinstance(optimizer, MomentumSGD)  # see `Trainer.lazy_updates`
                sgd = optimizer.numbers(layer, PARAMETERS["values"], learning_rate)
                lazy.update_(gradients["values"], sgd)
                gradients = {name: array for name, array in gradients.items() if name != "values"}
            optimizer.update_(layer, gradients, learning_rate, both_orders=both)


def dropout_key(rate: float, seed: int, step: int, first_row: int) -> Dropout:
    """Return what the dropout bits of a micro-batch are a function of.

    `step` counts the updates before; the micro-batch begins with row `first_row` of its mini-batch.
    """
    keep_below = max(1, round((1 - rate) * RESOLUTION))
    return Dropout(keep_below, seed, step, 0, first_row)
