"""A training step as one compiled call, where the backend has one."""

from __future__ import annotations

from operator import attrgetter, is_
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends.base import Backend
from ..backends.operands import SGD, Dropout
from ..model.losses import NO_LABELS, NO_TARGETS
from ..model.network import SparseMLP
from ..model.optimizer import MomentumSGD
from ..model.workspace import Workspace

TOPOLOGY = ["indptr", "indices", "indptr_by_output", "indices_by_output", "to_output_order"]
WEIGHTS = ["values", "velocity", "values_by_output", "bias", "bias_velocity"]

NO_OFFSETS = np.empty((0, 0), dtype=np.float32)

# What a step reads and writes of a layer. Evolution replaces some of it.
_of_layer = attrgetter("topology", *WEIGHTS)


def _arrays(network: SparseMLP, workspace: Workspace) -> list[Any]:
    """Return the objects, in a fixed order, whose arrays stay in place between evolutions."""
    parts: list[Any] = []
    for layer, gradients in zip(network.layers, workspace.by_layer, strict=True):
        parts += _of_layer(layer)
        parts += gradients.values()
    return parts


class WholeStep:
    """The training step of a network on mini-batches of one size, as one compiled call.

    The result is that of `SparseMLP.forward`, `backward`, `finish_gradient` and `update_` with the
    backend, which small networks spend much of their time between the kernels of. The mini-batch is
    written to `inputs`, float32 (n_features, batch), before a step.
    """

    def __init__(
        self, network: SparseMLP, workspace: Workspace, batch: int, backend: Backend
    ) -> None:
        assert not any(layer.topology.is_int64 for layer in network.layers)  # the table has int32
        from ..backends.step_kernel import LAYER

        layers = network.layers
        self._workspace = workspace
        self.inputs = workspace.inputs(batch)
        self._delta = np.empty((layers[-1].n_out, batch), dtype=np.float32)
        self._held = _arrays(network, workspace)  # the table has addresses of their arrays
        self._table = np.zeros(len(layers), dtype=LAYER)
        for k, (layer, record) in enumerate(zip(layers, self._table, strict=True)):
            arrays: dict[str, Any] = {name: getattr(layer.topology, name) for name in TOPOLOGY}
            arrays |= {name: getattr(layer, name) for name in WEIGHTS}
            gradients = workspace.by_layer[k]
            arrays |= {"gradient": gradients["values"], "bias_gradient": gradients["bias"]}
            arrays["activations"] = workspace.activations(k, batch)
            if k < len(layers) - 1:
                arrays["state"] = workspace.state(k, batch)
                arrays["delta"] = workspace.delta(k, batch)
            for name, array in arrays.items():
                record[name] = array.ctypes.data
            record["n_in"], record["n_out"], record["nnz"] = layer.n_in, layer.n_out, layer.nnz
            record["number"], record["centered"] = layer.number, layer.config.centered
            record["multiply"] = backend.multiply
            shape = layer.n_in, layer.n_out
            record["matrix"] = backend.matrix(layer.by_input, shape)
            record["matrix_by_output"] = backend.matrix(layer.by_output, shape[::-1])
            record["slope"], record["rate_scale"] = layer.slope, layer.config.rate_scale

    def fits(self, network: SparseMLP, workspace: Workspace, batch: int) -> bool:
        """Return whether this is the step of that network, as it is now, and batch size."""
        if workspace is not self._workspace or batch != self.inputs.shape[1]:
            return False
        now = _arrays(network, workspace)
        return len(now) == len(self._held) and all(map(is_, now, self._held))

    def run(
        self,
        y: NDArray[Any],
        weights: NDArray[np.float32],
        dropout: Dropout,
        optimizer: MomentumSGD | None = None,
        learning_rate: float = 0.0,
        offsets: NDArray[np.float32] | None = None,
        smoothing: float = 0.0,
    ) -> float:
        """Make one update, and return the summed loss; where that is not finite, update nothing.

        Without an optimizer only the gradient is computed, into the workspace. `y` and `weights`
        are what `Loss.check_y` and `check_weights` return; `offsets`, float32 (n_outputs, batch),
        are added to the outputs; `smoothing` is that of the labels.
        """
        from ..backends.step_kernel import train_step

        momentum = np.float32(optimizer.momentum if optimizer else 0)
        decay = np.float32(optimizer.weight_decay if optimizer else 0)
        looks_ahead = optimizer is not None and optimizer.looks_ahead
        loss: float = train_step(
            self._table,
            self.inputs,
            NO_OFFSETS if offsets is None else np.ascontiguousarray(offsets),
            (y, NO_TARGETS) if y.ndim == 1 else (NO_LABELS, y),
            weights,
            np.float32(smoothing),
            self._delta,
            self._workspace.input_sums,
            dropout.for_kernels(),
            SGD(np.float64(learning_rate), momentum, decay, looks_ahead),
            optimizer is not None,
        )
        return loss
