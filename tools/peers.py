"""What trains a sparse network in place of largesparse: the contestants of compare_peers.py."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import psutil
from numpy.typing import NDArray

from largesparse.errors import MemoryPlanError
from largesparse.network import NetworkConfig
from largesparse.threads import kernel_threads

SEED = 0
ALPHA = 0.6  # All-ReLU's slope is -ALPHA in the first hidden layer, ALPHA in the next, ...
DROPOUT = 0.3
LEARNING_RATE = 0.01
SGD: dict[str, Any] = {"momentum": 0.9, "weight_decay": 2e-4}
N_BATCHES = 8  # more than one, or gradients vanish as it is learnt by heart
BATCH_FLOATS = 2**28  # of all batches together, if that leaves two

Batches = list[tuple[NDArray[np.float32], NDArray[np.int32]]]


@dataclass(frozen=True)
class Problem:
    """What all contestants train."""

    layer_sizes: tuple[int, ...]
    epsilon: float = 20.0
    batch_size: int = 128
    threads: int = 1
    recipe: str = "paper"

    def network(self) -> NetworkConfig:
        """Return the net as largesparse describes it, which checks sizes and ε."""
        return NetworkConfig(
            self.layer_sizes, self.epsilon, alpha=ALPHA, seed=SEED, recipe=self.recipe
        )

    def batches(self) -> Batches:
        """Return pairs of random X (batch, n_features) and y (batch,)."""
        rng = np.random.default_rng(SEED)
        size = self.batch_size * self.layer_sizes[0]
        count = int(np.clip(BATCH_FLOATS // size, 2, N_BATCHES))
        shape = (count, self.batch_size, self.layer_sizes[0])
        labels = rng.integers(0, self.layer_sizes[-1], shape[:2], dtype=np.int32)
        return list(zip(rng.standard_normal(shape, dtype=np.float32), labels, strict=True))


PRESETS = {
    "fashion": Problem((784, 1000, 1000, 1000, 10)),
    "cifar": Problem((3072, 4000, 1000, 4000, 10)),
    "madelon": Problem((500, 400, 100, 400, 2), epsilon=10, batch_size=32),
    "leukemia-small": Problem((5000, 2700, 2700, 18), epsilon=10, batch_size=5),
}


class Contestant(Protocol):
    """A net that trains on the batches it was made with."""

    name: str
    connections: int

    def step(self, index: int) -> float:
        """Train one step on batch number `index` and return the loss."""

    def first_weights(self) -> NDArray[np.float32]:
        """Return a copy of the weights of the first layer."""


Maker = Callable[[Problem, Batches], Contestant]


class TorchMLP:
    """What the PyTorch contestants share. A subclass makes the layers."""

    name: str

    def __init__(self, problem: Problem, batches: Batches) -> None:
        import torch

        torch.manual_seed(SEED)
        torch.set_num_threads(problem.threads)
        torch.set_flush_denormal(True)
        self.batches = [(torch.from_numpy(X), torch.from_numpy(y).long()) for X, y in batches]
        self.connections = 0
        self.masked: list[tuple[Any, Any]] = []  # weights, and the mask that keeps them sparse
        self.model = torch.nn.Sequential()
        sizes = problem.layer_sizes
        for k, density in enumerate(problem.network().probabilities()):
            if k > 0:
                self.model.append(torch.nn.LeakyReLU(ALPHA if k % 2 == 0 else -ALPHA))
                self.model.append(torch.nn.Dropout(DROPOUT))
            # All draw dense values and a dense mask, and copy them.
            if 20 * sizes[k] * sizes[k + 1] > psutil.virtual_memory().available:
                raise MemoryPlanError(f"layer {k + 2} as a dense matrix does not fit in memory")
            self.model.append(self.make_layer(sizes[k], sizes[k + 1], density))
        self.loss = torch.nn.CrossEntropyLoss()
        parameters = self.model.parameters()
        self.optimizer = torch.optim.SGD(parameters, LEARNING_RATE, **SGD, fused=True)

    def make_layer(self, n_in: int, n_out: int, density: float) -> Any:
        """Return a layer; count its connections, and note its mask if it needs one."""
        raise NotImplementedError

    def step(self, index: int) -> float:
        X, y = self.batches[index % len(self.batches)]
        self.optimizer.zero_grad()
        loss = self.loss(self.model(X), y)
        loss.backward()
        self.optimizer.step()
        for weights, mask in self.masked:
            weights.mul_(mask)
        return loss.item()

    def first_weights(self) -> NDArray[np.float32]:
        return next(self.model.parameters()).detach().numpy().ravel().copy()


class MaskedDense(TorchMLP):
    """PyTorch with dense weights that a mask keeps sparse."""

    name = "PyTorch, masked dense"

    def make_layer(self, n_in: int, n_out: int, density: float) -> Any:
        import torch

        layer = torch.nn.Linear(n_in, n_out)
        torch.nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        mask = (torch.rand(n_out, n_in) < density).float()
        self.connections += int(mask.count_nonzero())
        if density < 1:
            self.masked.append((layer.weight.data.mul_(mask), mask))
        return layer


class SparseLab(TorchMLP):
    """SparseLab's layers: padded CSR weights, its own SIMD kernels and OpenMP threads."""

    name = "SparseLab"

    def make_layer(self, n_in: int, n_out: int, density: float) -> Any:
        import sparselab
        import torch

        if density == 1:
            self.connections += n_in * n_out
            return torch.nn.Linear(n_in, n_out)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
            layer = sparselab.SparseLinear(n_in, n_out, sparsity=1 - density)
        self.connections += layer.nnz
        return layer


class DenseSklearn:
    """scikit-learn's own perceptron, which has no sparsity, no dropout and plain ReLU."""

    name = "MLPClassifier, dense"

    def __init__(self, problem: Problem, batches: Batches) -> None:
        from sklearn.neural_network import MLPClassifier

        sizes = problem.layer_sizes
        self.connections = sum(a * b for a, b in itertools.pairwise(sizes))
        check_dense(self.connections)
        self.batches, self.classes = batches, np.arange(sizes[-1])
        self.model = MLPClassifier(
            sizes[1:-1],
            solver="sgd",
            learning_rate_init=LEARNING_RATE,
            momentum=SGD["momentum"],
            nesterovs_momentum=False,
            alpha=SGD["weight_decay"],
            batch_size=problem.batch_size,
            random_state=SEED,
        )
        self.step(0)  # makes the weights

    def step(self, index: int) -> float:
        X, y = self.batches[index % len(self.batches)]
        self.model.partial_fit(X, y, classes=self.classes)
        return float(self.model.loss_)

    def first_weights(self) -> NDArray[np.float32]:
        weights: NDArray[np.float32] = self.model.coefs_[0].ravel().copy()
        return weights


class SciPyRows:
    """SciPy's CSR products of rows of samples, and numba for the weights' gradient.

    That is how the paper describes its code (section 2.2): written anew, from the description.
    The topology is drawn as a dense mask, where that fits.
    """

    name = "SciPy and numba, by rows"

    def __init__(self, problem: Problem, batches: Batches) -> None:
        from scipy.sparse import csr_array

        self.batches, self.threads = batches, problem.threads
        self.rng = np.random.default_rng(SEED)
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

    def step(self, index: int) -> float:
        X, y = self.batches[index % len(self.batches)]
        activations, derivatives = [X], []
        last = len(self.weights) - 1
        for k, (W, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            Z = activations[-1] @ W + b
            if k == last:
                break
            kept = self.rng.random(Z.shape, dtype=np.float32) >= DROPOUT
            kept = kept.astype(np.float32) / np.float32(1 - DROPOUT)
            slope = np.float32(-ALPHA if k % 2 == 0 else ALPHA)
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

    @staticmethod
    def update(
        values: NDArray[np.float32], velocity: NDArray[np.float32], gradient: NDArray[np.float32]
    ) -> None:
        """Take a step of momentum SGD with weight decay, in place."""
        velocity *= np.float32(SGD["momentum"])
        velocity -= np.float32(LEARNING_RATE) * gradient
        values += velocity - np.float32(SGD["weight_decay"] * LEARNING_RATE) * values

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


def check_dense(cells: int) -> None:
    """Raise `MemoryPlanError` where arrays of so many floats, and a copy or two, do not fit."""
    if 3 * 4 * cells > psutil.virtual_memory().available:
        raise MemoryPlanError(f"{cells:,} dense numbers do not fit in memory")


PEERS: dict[str, Maker] = {
    "torch": MaskedDense,
    "sparselab": SparseLab,
    "sklearn": DenseSklearn,
    "scipy": SciPyRows,
}
