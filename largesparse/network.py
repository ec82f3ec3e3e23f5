"""The sparse multilayer perceptron: a list of layers, and three short loops over it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from .activations import TRAINED, initial_shape, left_slope
from .backends.base import (
    NO_DROPOUT,
    NO_STATE,
    RESOLUTION,
    Backend,
    Connections,
    Derivative,
    Dropout,
    Float32,
)
from .config import NetworkConfig
from .initializers import INITIALIZERS, Sampler
from .layer import Forward, SparseLayer
from .optimizer import MomentumSGD
from .randomness import seed_sequence, stream
from .recipes import RECIPES, LayerRecipe
from .storage import Storage, StoredLayer
from .threads import kernel_threads
from .topology import erdos_renyi
from .workspace import Gradients, Workspace

if TYPE_CHECKING:
    from .preprocessing import Standardizer
    from .tables import FileLayout


Ahead = Callable[[Forward], None]
Visit = Callable[[int, Float32, Float32], None]  # k, X (n_in, batch), delta (n_out, batch)


def layer_settings(config: NetworkConfig, k: int) -> dict[str, Any]:
    """Return what layer k (0 is the first hidden one) is beside its arrays, for `SparseLayer`."""
    is_output = k == len(config.layer_sizes) - 2
    activation = "linear" if is_output else config.activation
    recipe = _recipe(config, k)
    return {
        "slope": left_slope(activation, config.alpha, k + 2),
        "rate_scale": recipe.rate_scale,
        "regrowth": None if (config.regrowth or recipe.regrowth) == "zero" else _sampler(config, k),
        "centered": is_output and recipe.center_output,
        "srelu": initial_shape(activation, config.alpha, config.layer_sizes[k + 1]),
        "srelu_trained": TRAINED.get(activation, ()),
    }


def _recipe(config: NetworkConfig, k: int) -> LayerRecipe:
    n_in, n_out = config.layer_sizes[k : k + 2]
    return RECIPES[config.recipe](n_in, n_out, config.probabilities()[k])


def _sampler(config: NetworkConfig, k: int) -> Sampler:
    recipe = _recipe(config, k)
    return INITIALIZERS[config.initializer](recipe.fan_in, recipe.fan_out)


def _initial_layer(config: NetworkConfig, k: int, threads: int) -> SparseLayer:
    n_in, n_out = config.layer_sizes[k : k + 2]
    seed = seed_sequence(config.seed, "topology", k)
    probability, cover = config.probabilities()[k], config.coverage == "full"
    topology = erdos_renyi(n_in, n_out, probability, seed, cover=cover, threads=threads)
    values = _sampler(config, k)(stream(config.seed, "values", k), topology.nnz)
    if k == len(config.layer_sizes) - 2:
        values *= np.float32(_recipe(config, k).output_scale)
    bias = np.zeros(n_out, dtype=np.float32)
    return SparseLayer(k + 2, topology, values, bias, **layer_settings(config, k))


def forward(
    layers: Sequence[Forward],
    workspace: Workspace,
    batch: int,
    backend: Backend,
    *,
    training: bool = False,
    dropout: Dropout = NO_DROPOUT,
    ahead: Ahead | None = None,
) -> Float32:
    """Return the logits, float32 (n_classes, batch), of the inputs in the workspace.

    Parameters
    ----------
    layers : sequence of layers
    workspace : Workspace
        Its first `batch` input columns are read.
    batch : int
    backend : Backend
    training : bool
        Whether to keep what the backward pass needs, and to drop neurons.
    dropout : Dropout
        Its layer is filled in for each hidden layer.
    ahead : callable, optional
        Called with the layer that comes next.
    """
    last = len(layers) - 1
    workspace.segment = (last - 1) // workspace.keep_every
    return _forward(layers, range(last + 1), workspace, batch, backend, training, dropout, ahead)


def _forward(
    layers: Sequence[Forward],
    numbers: range,
    workspace: Workspace,
    batch: int,
    backend: Backend,
    training: bool,
    dropout: Dropout,
    ahead: Ahead | None,
) -> Float32:
    """Compute the activations of consecutive layers; return the last one's."""
    from .backends.srelu_kernels import activate_srelu

    first = numbers[0]
    X = workspace.activations(first - 1, batch) if first else workspace.inputs(batch)
    for k in numbers:
        layer = layers[k]
        if ahead is not None and k < numbers[-1]:
            ahead(layers[k + 1])
        out = workspace.activations(k, batch)
        hidden = training and k < len(layers) - 1
        shaped = layer.srelu is not None
        Z = workspace.sums(k, batch) if shaped and training else out
        state = workspace.state(k, batch) if hidden else None
        backend.forward(
            Connections(layer.indptr_by_output, layer.indices_by_output, layer.values_by_output),
            layer.bias,
            X,
            slope=layer.slope,
            out=Z,
            state=state,
            dropout=dropout._replace(layer=layer.number) if hidden else NO_DROPOUT,
        )
        if layer.srelu is not None:
            keep_share = dropout.keep_share if hidden else np.float32(1)
            activate_srelu(Z, layer.srelu, keep_share, NO_STATE if state is None else state, out)
        X = out
    return X


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
    file_layout : FileLayout or None
        How the file was read that it was trained on (`tables.FileLayout`).

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
    ) -> None:
        self._prepare(config, storage)
        hide = None if progress is None else not progress
        layers = range(len(config.layer_sizes) - 1)
        for k in tqdm(layers, desc="initialising", unit=" layers", delay=1, disable=hide):
            with kernel_threads(threads):
                layer = _initial_layer(config, k, threads)
                self.layers.append(layer if storage is None else StoredLayer(layer, storage))
                del layer

    def _prepare(self, config: NetworkConfig, storage: Storage | None = None) -> None:
        self.config = config
        self.layers: list[SparseLayer] = []
        self.preprocessing: Standardizer | None = None
        self.classes: NDArray[Any] | None = None
        self.target_mean: NDArray[np.float64] | None = None
        self.target_scale: NDArray[np.float64] | None = None
        self.feature_names: list[str] | None = None
        self.file_layout: FileLayout | None = None
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
        self,
        workspace: Workspace,
        batch: int,
        backend: Backend,
        *,
        training: bool = False,
        dropout: Dropout = NO_DROPOUT,
    ) -> Float32:
        """Return the logits of the inputs in the workspace: see the function `forward`."""
        ahead = None if self.storage is None else self.storage.before_forward
        options: dict[str, Any] = {"training": training, "dropout": dropout, "ahead": ahead}
        return forward(self.layers, workspace, batch, backend, **options)

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
    ) -> None:
        """Compute all gradients into the workspace, after `forward` with `training=True`.

        Parameters
        ----------
        workspace : Workspace
        delta : float32 (n_classes, batch)
            Gradient of the loss with respect to the logits.
        backend : Backend
        dropout : Dropout
            As in `forward`.
        accumulate : bool
            Whether to add to the gradients of the micro-batches before.
        visit : callable, optional
            Called as visit(k, X, delta) with a layer's inputs and dL/dz, from the last layer to
            the first, when the layer is not needed any more: it may change the connections.
        weights : float32 (batch,), optional
            Of the samples in the loss.
        """
        from .backends import kernels
        from .backends.srelu_kernels import differentiate_srelu

        batch = delta.shape[1]
        kernels.sum_rows(delta, workspace.bias_gradients[-1], accumulate)
        if self.layers[-1].centered:
            last = len(self.layers) - 1
            X = workspace.activations(last - 1, batch) if last else workspace.inputs(batch)
            weights = np.empty(0, np.float32) if weights is None else weights
            kernels.sum_inputs(X, weights, workspace.input_sums, accumulate)
        for k in range(len(self.layers) - 1, 0, -1):
            layer, below = self.layers[k], self.layers[k - 1]
            self._recompute(k - 1, workspace, batch, backend, dropout)
            if self.storage is not None:
                self.storage.before_backward(below, workspace, k - 1, batch)
            out_delta = workspace.delta(k - 1, batch)
            bias_gradient = workspace.bias_gradients[k - 1]
            backend.backward(
                Connections(layer.topology.indptr, layer.topology.indices, layer.values),
                workspace.activations(k - 1, batch),
                delta,
                Derivative(
                    np.float32(below.slope), dropout.keep_share, workspace.state(k - 1, batch)
                ),
                out_gradient=workspace.gradients[k],
                out_delta=out_delta,
                out_bias_gradient=(
                    bias_gradient if below.srelu is None else np.empty_like(bias_gradient)
                ),
                accumulate=accumulate,
            )
            if below.srelu is not None:
                differentiate_srelu(
                    out_delta,
                    workspace.sums(k - 1, batch),
                    below.srelu,
                    dropout.keep_share,
                    bias_gradient,
                    workspace.srelu_gradients[k - 1],
                    accumulate,
                )
            if visit is not None:
                visit(k, workspace.activations(k - 1, batch), delta)
            delta = out_delta
        first, X = self.layers[0].topology, workspace.inputs(batch)
        out = workspace.gradients[0]
        kernels.sddmm(first.indptr, first.indices, X, delta, out, accumulate)
        if visit is not None:
            visit(0, X, delta)

    def _recompute(
        self, k: int, workspace: Workspace, batch: int, backend: Backend, dropout: Dropout
    ) -> None:
        """Have the activations of hidden layer k in the workspace, from those that are kept."""
        segment, place = divmod(k, workspace.keep_every)
        if place < workspace.keep_every - 1 and segment < workspace.segment:
            workspace.segment = segment
            first = segment * workspace.keep_every
            layers = self.layers, range(first, k + 1)
            ahead = None if self.storage is None else self.storage.before_forward
            _forward(*layers, workspace, batch, backend, True, dropout, ahead)

    def finish_gradient(self, workspace: Gradients) -> None:
        """Centre the output layer's gradients, where its recipe asks for it.

        Activations with a mean above zero make the direction in which an output moves for all
        samples at once the steepest by far, and a learning rate that suits the others overshoots
        in it. Centred gradients leave it to the bias (Schraudolph, "Centering neural network
        gradient factors", 1998).

        Parameters
        ----------
        workspace : Workspace
            After `backward` of all micro-batches.
        """
        from .backends.kernels import center_gradient

        layer = self.layers[-1]
        if layer.centered:
            center_gradient(
                layer.topology.indptr,
                layer.topology.indices,
                workspace.input_sums,
                layer.rate_scale,
                workspace.bias_gradients[-1],
                workspace.gradients[-1],
            )

    def update_(
        self,
        workspace: Gradients,
        optimizer: MomentumSGD,
        learning_rate: float,
        *,
        both_orders: bool = True,
    ) -> None:
        """Apply the gradients in the workspace, in place: see `MomentumSGD.update_`."""
        gradients = zip(self.layers, workspace.gradients, workspace.bias_gradients, strict=True)
        for k, (layer, gradient, bias_gradient) in enumerate(gradients):
            if self.storage is not None and k + 1 < len(self.layers):
                self.storage.before_update(self.layers[k + 1], workspace.gradients[k + 1])
            optimizer.update_(
                layer, gradient, bias_gradient, learning_rate, both_orders=both_orders
            )
            if layer.srelu is not None:
                optimizer.update_srelu_(layer, workspace.srelu_gradients[k], learning_rate)


def dropout_key(rate: float, seed: int, step: int, first_row: int) -> Dropout:
    """Return what the dropout bits of a micro-batch are a function of.

    Parameters
    ----------
    rate : float in [0, 1)
        Share of the neurons that are dropped.
    seed : int
        Of the training.
    step : int
        Updates before this one.
    first_row : int
        Row of the mini-batch that the micro-batch begins with.
    """
    keep_below = max(1, round((1 - rate) * RESOLUTION))
    return Dropout(keep_below, seed, step, 0, first_row)
