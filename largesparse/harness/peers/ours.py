"""largesparse itself, and the bare products of its step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...backends.choice import BackendName
from ...backends.kernels import sddmm
from ...backends.limits import best_distance, gather
from ...backends.operands import Connections, Derivative
from ...machine.threads import kernel_threads
from ...model.config import TrainingConfig
from ...model.network import SparseMLP
from ...training.prediction import predict
from ...training.trainer import Trainer
from .problem import SGD, ZETA, Batches, Contestant, Problem


class Ours(Contestant):
    """largesparse with one of its backends."""

    def __init__(
        self,
        problem: Problem,
        batches: Batches,
        backend: BackendName,
        threads: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(problem, batches)
        self.name, self.backend = f"ours, {backend}", backend
        if threads is not None and threads != problem.threads:
            self.name += f", {threads} thread" + "s" * (threads > 1)
            problem = replace(problem, threads=threads)
        self.network = SparseMLP(problem.network(), threads=problem.threads)
        self.connections = self.network.connections
        same: dict[str, Any] = {"threads": problem.threads, "batch_size": problem.batch_size}
        config = TrainingConfig(
            backend=backend,
            learning_rate=problem.learning_rate,
            dropout=problem.dropout,
            zeta=ZETA,
            seed=problem.seed,
            **same,
            **SGD,
            **settings,
        )
        self.trainer = Trainer(self.network, config)

    def train(self, X: NDArray[np.float32], y: NDArray[np.int32]) -> float:
        return self.trainer.step(X, y)

    def evolve(self) -> None:
        self.trainer.epoch += 1  # by which evolution draws its random numbers
        self.trainer.evolve()

    def predict(self, X: NDArray[np.float32]) -> NDArray[np.int64]:
        options: dict[str, Any] = {"backend": self.backend, "threads": self.problem.threads}
        labels: NDArray[np.int64] = predict(self.network, X, **options)
        return labels

    def classes(self, X: NDArray[np.float32]) -> NDArray[np.int64]:
        return self.predict(X)

    def first_weights(self) -> NDArray[np.float32]:
        return self.network.layers[0].values.copy()


class Products:
    """The bare products of a step of ours, and the reading and writing of memory under them."""

    def __init__(self, ours: Ours) -> None:
        self.trainer, self.layers = ours.trainer, ours.network.layers
        self.batch = len(ours.batches[0][1])
        self.workspace, self.backend = self.trainer.workspace, self.trainer.backend
        self.zeros = [np.zeros(layer.n_out, np.float32) for layer in self.layers]
        self.actions: dict[str, Callable[[int], Any]] = {
            f"{ours.name}: forward products": self.forward,
            f"{ours.name}: dX and dW products": self.backward,
        }
        if self.batch % 16 == 0:
            self.distance = best_distance(*self.gathered(0))
            self.actions[f"{ours.name}: reads and writes of forward"] = self.gather

    def inputs(self, k: int) -> NDArray[np.float32]:
        """Return what layer k (0 is the first hidden one) reads."""
        if k == 0:
            return self.workspace.inputs(self.batch)
        return self.workspace.activations(k - 1, self.batch)

    def gathered(self, k: int) -> tuple[NDArray[Any], ...]:
        """Return what `limits.gather` takes for layer k, its distance apart."""
        layer = self.layers[k]
        out = self.workspace.activations(k, self.batch)
        return layer.indptr_by_output, layer.indices_by_output, self.inputs(k), out

    def forward(self, index: int) -> None:
        """Make the forward product of every layer."""
        with self.backend.threads(self.trainer.threads):
            for k, layer in enumerate(self.layers):
                self.backend.forward(
                    Connections(
                        layer.indptr_by_output, layer.indices_by_output, layer.values_by_output
                    ),
                    self.zeros[k],
                    self.inputs(k),
                    slope=1.0,
                    out=self.workspace.activations(k, self.batch),
                )

    def backward(self, index: int) -> None:
        """Make the products of the backward pass of every layer."""
        last = len(self.layers) - 1
        delta = np.ones((self.layers[last].n_out, self.batch), dtype=np.float32)
        with self.backend.threads(self.trainer.threads):
            for k in range(last, -1, -1):
                layer, gradient = self.layers[k], self.workspace.gradients[k]
                arrays = layer.topology.indptr, layer.topology.indices
                if k == 0:
                    sddmm(*arrays, self.inputs(0), delta, gradient, False)
                    break
                out = self.workspace.delta(k - 1, self.batch)
                self.backend.backward(
                    Connections(*arrays, layer.values),
                    self.inputs(k),
                    delta,
                    Derivative(
                        np.float32(1), np.float32(1), self.workspace.state(k - 1, self.batch)
                    ),
                    out_gradient=gradient,
                    out_delta=out,
                    out_bias_gradient=self.workspace.bias_gradients[k - 1],
                    accumulate=False,
                )
                delta = out

    def gather(self, index: int) -> None:
        """Read and write what the forward products do, and compute nothing."""
        with kernel_threads(self.trainer.threads):
            for k in range(len(self.layers)):
                indptr, indices, X, out = self.gathered(k)
                gather(indptr, indices, X, self.distance, out)
