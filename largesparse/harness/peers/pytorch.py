"""PyTorch: dense weights with a mask, CSR matrices, SparseLab's layers, and ours."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import MemoryPlanError
from ...training.memory import available_memory
from .problem import (
    SGD,
    ZETA,
    Batches,
    Contestant,
    Problem,
    draw_cells,
    evolve_cells,
)


class TorchMLP(Contestant):
    """What the PyTorch contestants share. A subclass makes the layers."""

    dense_bytes = 20  # a cell of a layer's shape at most, as the layer is made

    def __init__(self, problem: Problem, batches: Batches) -> None:
        import torch

        super().__init__(problem, batches)
        torch.manual_seed(problem.seed)
        torch.set_num_threads(problem.threads)
        torch.set_flush_denormal(True)
        self.connections = 0
        self.masked: list[tuple[Any, Any]] = []  # weights, and the mask that keeps them sparse
        self.model = self.make_container()
        sizes = problem.layer_sizes
        for k, density in enumerate(problem.network().probabilities()):
            if k > 0:
                self.model.extend(self.make_activation(k + 1))
            if self.dense_bytes * sizes[k] * sizes[k + 1] > available_memory():
                raise MemoryPlanError(f"layer {k + 2} as a dense matrix does not fit in memory")
            self.model.append(self.make_layer(sizes[k], sizes[k + 1], density))
        self.loss = torch.nn.CrossEntropyLoss()
        parameters = self.model.parameters()
        self.optimizer = torch.optim.SGD(parameters, problem.learning_rate, **SGD, fused=True)

    def make_container(self) -> Any:
        """Return what calls the layers one after the other."""
        import torch

        return torch.nn.Sequential()

    def make_layer(self, n_in: int, n_out: int, density: float) -> Any:
        """Return a layer; count its connections, and note its mask if it needs one."""
        raise NotImplementedError

    def make_activation(self, number: int) -> list[Any]:
        """Return the All-ReLU of a layer, of which the first hidden one is 2, and dropout."""
        import torch

        alpha, dropout = self.problem.alpha, self.problem.dropout
        slope = -alpha if number % 2 == 0 else alpha
        return [torch.nn.LeakyReLU(slope), torch.nn.Dropout(dropout)]

    def train(self, X: NDArray[np.float32], y: NDArray[np.int32]) -> float:
        import torch

        self.optimizer.zero_grad()
        loss = self.loss(self.model(torch.from_numpy(X)), torch.from_numpy(y).long())
        loss.backward()
        self.optimizer.step()
        for weights, mask in self.masked:
            weights.data.mul_(mask)
        return float(loss.item())

    def classes(self, X: NDArray[np.float32]) -> NDArray[np.int64]:
        import torch

        self.model.eval()
        with torch.inference_mode():
            labels: NDArray[np.int64] = self.model(torch.from_numpy(X)).argmax(dim=1).numpy()
        self.model.train()
        return labels

    def velocity(self, weights: Any) -> Any:
        """Return the momentum buffer of a parameter, which its optimiser made in a step."""
        return self.optimizer.state[weights]["momentum_buffer"]

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
            layer.weight.data.mul_(mask)
            self.masked.append((layer.weight, mask))
        return layer

    def evolve(self) -> None:
        import torch

        with torch.no_grad():
            for weights, mask in self.masked:
                if weights is self.model[-1].weight:
                    continue
                kept = torch.zeros_like(mask, dtype=torch.bool)
                for sign in (1, -1):
                    values = weights[weights * sign > 0].abs()
                    if len(values):
                        # A quantile of more than 2^24 values is refused by PyTorch's own.
                        place = max(1, int(ZETA * len(values)))
                        kept |= weights * sign > torch.kthvalue(values, place).values
                count = int(mask.sum()) - int(kept.sum())
                weights.mul_(kept)
                self.velocity(weights).mul_(kept)
                free = (~kept).view(-1).nonzero().squeeze(1)
                grown = free[torch.randperm(len(free))[:count]]
                mask.copy_(kept)
                mask.view(-1)[grown] = 1
                bound = np.sqrt(6 / weights.shape[1])
                weights.view(-1)[grown] = torch.empty(len(grown)).uniform_(-bound, bound)


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

    def evolve(self) -> None:
        """Run the library's own SET, which takes the smallest magnitudes of either sign."""
        import sparselab

        if not hasattr(self, "policy"):
            self.policy = sparselab.SET(sparsity=0.0, drop_fraction=ZETA, seed=self.problem.seed)
            self.model[:-1].apply(self.policy)
        self.policy.update()


class OursInTorch(TorchMLP):
    """largesparse's layers in PyTorch."""

    name = "ours, torch"
    dense_bytes = 0

    def make_container(self) -> Any:
        from ...torch import SparseSequential

        return SparseSequential()

    def make_layer(self, n_in: int, n_out: int, density: float) -> Any:
        from ...torch import AllReLU, SparseLinear

        problem, k = self.problem, len(self.model)
        last = len(problem.layer_sizes) - 2
        layer = SparseLinear(
            n_in,
            n_out,
            density=density,
            activation=AllReLU(self.problem.alpha, k + 2, self.problem.dropout)
            if k < last
            else None,
            recipe=problem.recipe,
            seed=problem.seed + k,
        )
        self.connections += layer.connections
        return layer

    def make_activation(self, number: int) -> list[Any]:
        return []  # the layer has it

    def evolve(self) -> None:
        from ...torch import evolve

        evolve(self.model[:-1], ZETA, optimizer=self.optimizer)


class SparseCSR(TorchMLP):
    """PyTorch's CSR tensors.

    Its own autograd makes a dense gradient of a CSR matrix, so the products stand in a function
    that uses `sampled_addmm`. Values are the parameters; a transposed copy serves dL/dX.
    """

    name = "PyTorch, sparse CSR"
    dense_bytes = 0

    def make_layer(self, n_in: int, n_out: int, density: float) -> Any:
        import torch

        if density == 1:
            self.connections += n_in * n_out
            return torch.nn.Linear(n_in, n_out)
        layer = csr_layer()(n_in, n_out, density, seed=(self.problem.seed, len(self.model)))
        self.connections += len(layer.values)
        return layer

    def evolve(self) -> None:
        for layer in self.model[:-1]:
            if hasattr(layer, "evolve"):
                layer.evolve(self.velocity(layer.values))


@functools.cache
def csr_layer() -> Any:
    """Return the layer of `SparseCSR`, a class that can only be made where PyTorch is."""
    import torch

    warnings.filterwarnings("ignore", message="Sparse CSR tensor support")

    class Product(torch.autograd.Function):
        """Y (batch, n_out) = X (batch, n_in) · Wᵀ."""

        @staticmethod
        def forward(ctx: Any, values: Any, X: Any, layer: Any) -> Any:
            ctx.layer, columns = layer, X.t().contiguous()
            ctx.save_for_backward(values, columns)
            return (layer.matrix(values) @ columns).t()

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            values, columns = ctx.saved_tensors
            delta, layer = gradients[0].t().contiguous(), ctx.layer
            sampled = torch.sparse.sampled_addmm(
                layer.matrix(values), delta, columns.t(), beta=0.0
            ).values()
            below = (layer.transposed(values) @ delta).t() if ctx.needs_input_grad[1] else None
            return sampled, below, None

    class CSRLinear(torch.nn.Module):
        """A sparse layer whose cells are drawn in O(connections)."""

        def __init__(self, n_in: int, n_out: int, density: float, seed: tuple[int, int]) -> None:
            super().__init__()
            self.n_in, self.n_out = n_in, n_out
            self.rng = np.random.default_rng(seed)
            count = round(density * n_in * n_out)
            cells = draw_cells(self.rng, count, n_in * n_out)
            self.values = torch.nn.Parameter(torch.empty(count))
            bound = np.sqrt(6 * n_out / count)
            torch.nn.init.uniform_(self.values, -bound, bound)
            self.bias = torch.nn.Parameter(torch.zeros(n_out))
            self.set_cells(cells)

        def set_cells(self, cells: NDArray[np.int64]) -> None:
            """Take sorted cells, row · n_in + column, as the pattern."""
            self.cells = cells
            rows, columns = np.divmod(cells, self.n_in)
            order = np.lexsort((rows, columns))
            self.pattern = compressed(rows, columns, self.n_out)
            self.pattern_below = compressed(columns[order], rows[order], self.n_in)
            self.order = torch.from_numpy(order)

        def matrix(self, values: Any) -> Any:
            shape = self.n_out, self.n_in
            return torch.sparse_csr_tensor(*self.pattern, values, shape, check_invariants=False)

        def transposed(self, values: Any) -> Any:
            values = values[self.order]
            shape = self.n_in, self.n_out
            return torch.sparse_csr_tensor(
                *self.pattern_below, values, shape, check_invariants=False
            )

        def forward(self, X: Any) -> Any:
            return Product.apply(self.values, X, self) + self.bias

        def evolve(self, velocity: Any) -> None:
            values, moving = self.values.detach().numpy(), velocity.numpy()
            total, bound = self.n_in * self.n_out, np.sqrt(6 * self.n_out / len(values))
            cells, values[:], moving[:] = evolve_cells(
                self.rng, self.cells, values, moving, total, bound
            )
            self.set_cells(cells)

    return CSRLinear


def compressed(major: NDArray[np.int64], minor: NDArray[np.int64], n_major: int) -> tuple[Any, Any]:
    """Return CSR's two int32 index tensors of cells that are sorted by their major index."""
    import torch

    starts = np.zeros(n_major + 1, dtype=np.int32)
    np.cumsum(np.bincount(major, minlength=n_major), out=starts[1:])
    return torch.from_numpy(starts), torch.from_numpy(minor.astype(np.int32))
