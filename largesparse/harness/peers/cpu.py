"""scikit-learn, and SciPy with numba."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import NumericalError
from ...machine.threads import kernel_threads
from .problem import (
    SGD,
    Batches,
    Contestant,
    Problem,
    check_dense,
    evolve_cells,
)


class DenseSklearn(Contestant):
    """scikit-learn's own perceptron, which has no sparsity, no dropout and plain ReLU."""

    name = "MLPClassifier, dense"

    def __init__(self, problem: Problem, batches: Batches) -> None:
        from sklearn.neural_network import MLPClassifier

        super().__init__(problem, batches)
        sizes = problem.layer_sizes
        self.connections = sum(a * b for a, b in itertools.pairwise(sizes))
        check_dense(self.connections)
        self.labels = np.arange(sizes[-1])
        self.model = MLPClassifier(
            sizes[1:-1],
            solver="sgd",
            learning_rate_init=problem.learning_rate,
            momentum=SGD["momentum"],
            nesterovs_momentum=False,
            alpha=SGD["weight_decay"],
            batch_size=problem.batch_size,
            random_state=problem.seed,
        )
        self.step(0)  # makes the weights

    def train(self, X: NDArray[np.float32], y: NDArray[np.int32]) -> float:
        try:
            self.model.partial_fit(X, y, classes=self.labels)
        except ValueError as error:
            if "non-finite" not in str(error):
                raise
            raise NumericalError(str(error)) from error
        return float(self.model.loss_)

    def classes(self, X: NDArray[np.float32]) -> NDArray[np.int64]:
        labels: NDArray[np.int64] = self.model.predict(X)
        return labels

    def first_weights(self) -> NDArray[np.float32]:
        weights: NDArray[np.float32] = self.model.coefs_[0].ravel().copy()
        return weights


class SciPyRows(Contestant):
    """SciPy's CSR products of rows of samples, and numba for the weights' gradient.

    That is how the paper describes its code (section 2.2): written anew, from the description.
    The topology is drawn as a dense mask, where that fits.
    """

    name = "SciPy and numba, by rows"

    def __init__(self, problem: Problem, batches: Batches) -> None:
        from scipy.sparse import csr_array

        super().__init__(problem, batches)
        self.threads = problem.threads
        self.rng = np.random.default_rng(problem.seed)
        sizes = problem.layer_sizes
        self.weights = []
        for k, density in enumerate(problem.network().probabilities()):
            n_in, n_out = sizes[k], sizes[k + 1]
            check_dense(3 * n_in * n_out)
            mask = self.rng.random((n_in, n_out), dtype=np.float32) < density
            W = csr_array(mask.astype(np.float32))
            bound = np.float32(np.sqrt(6 / n_in))
            W.data[:] = self.rng.uniform(-bound, bound, W.nnz)
            self.weights.append(W)
        self.connections = sum(W.nnz for W in self.weights)
        self.biases = [np.zeros(n, dtype=np.float32) for n in sizes[1:]]
        self.velocities = [np.zeros_like(W.data) for W in self.weights]
        self.bias_velocities = [np.zeros_like(b) for b in self.biases]
        self.gradient = sampled_product()

    def train(self, X: NDArray[np.float32], y: NDArray[np.int32]) -> float:
        activations, derivatives = [X], []
        last = len(self.weights) - 1
        for k, (W, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            Z = activations[-1] @ W + b
            if k == last:
                break
            kept = self.rng.random(Z.shape, dtype=np.float32) >= self.problem.dropout
            kept = kept.astype(np.float32) / np.float32(1 - self.problem.dropout)
            slope = self.slope(k)
            derivatives.append(np.where(Z > 0, np.float32(1), slope) * kept)
            activations.append(Z * derivatives[-1])
        Z -= Z.max(axis=1, keepdims=True)
        P = np.exp(Z)
        P /= P.sum(axis=1, keepdims=True)
        loss = -np.log(P[np.arange(len(y)), y]).mean()
        delta = P
        delta[np.arange(len(y)), y] -= 1
        delta /= len(y)
        for k in range(last, -1, -1):
            W = self.weights[k]
            values = np.empty_like(W.data)
            with kernel_threads(self.threads):
                self.gradient(W.indptr, W.indices, activations[k], delta, values)
            bias_gradient = delta.sum(axis=0)
            if k:
                delta = (delta @ W.T) * derivatives[k - 1]
            self.update(W.data, self.velocities[k], values)
            self.update(self.biases[k], self.bias_velocities[k], bias_gradient)
        return float(loss)

    def slope(self, k: int) -> np.float32:
        """Return the left slope of hidden layer k, of which 0 is the first."""
        return np.float32(-self.problem.alpha if k % 2 == 0 else self.problem.alpha)

    def update(
        self,
        values: NDArray[np.float32],
        velocity: NDArray[np.float32],
        gradient: NDArray[np.float32],
    ) -> None:
        """Take a step of momentum SGD with weight decay, in place."""
        rate = self.problem.learning_rate
        velocity *= np.float32(SGD["momentum"])
        velocity -= np.float32(rate) * gradient
        values += velocity - np.float32(SGD["weight_decay"] * rate) * values

    def classes(self, X: NDArray[np.float32]) -> NDArray[np.int64]:
        last = len(self.weights) - 1
        for k, (W, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            X = X @ W + b
            if k < last:
                X = np.where(X > 0, X, self.slope(k) * X)
        labels: NDArray[np.int64] = X.argmax(axis=1)
        return labels

    def evolve(self) -> None:
        """Replace connections by way of the list of their cells, as SciPy's formats are fixed."""
        from scipy.sparse import csr_array

        for k, W in enumerate(self.weights[:-1]):
            n_in, n_out = W.shape
            if W.nnz == n_in * n_out:
                continue
            rows = np.repeat(np.arange(n_in, dtype=np.int64), np.diff(W.indptr))
            bound = float(np.sqrt(6 / n_in))
            cells, values, self.velocities[k] = evolve_cells(
                self.rng, rows * n_out + W.indices, W.data, self.velocities[k], n_in * n_out, bound
            )
            rows, columns = np.divmod(cells, n_out)
            starts = np.zeros(n_in + 1, dtype=W.indptr.dtype)
            np.cumsum(np.bincount(rows, minlength=n_in), out=starts[1:])
            columns = columns.astype(W.indices.dtype)
            self.weights[k] = csr_array((values, columns, starts), shape=W.shape)

    def first_weights(self) -> NDArray[np.float32]:
        weights: NDArray[np.float32] = self.weights[0].data.copy()
        return weights


@functools.cache
def sampled_product() -> Any:
    """Return the compiled kernel out = (Xᵀ·delta) at the connections of a CSR matrix."""
    import numba

    @numba.njit(parallel=True, nogil=True)  # type: ignore[untyped-decorator]
    def kernel(indptr, indices, X, delta, out):  # type: ignore[no-untyped-def]
        for i in numba.prange(len(indptr) - 1):
            for place in range(indptr[i], indptr[i + 1]):
                total = np.float32(0)
                for b in range(X.shape[0]):
                    total += X[b, i] * delta[b, indices[place]]
                out[place] = total

    return kernel
