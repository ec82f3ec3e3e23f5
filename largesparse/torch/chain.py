"""Sparse layers that follow each other, with their activations, as one node of autograd's graph.

Between the layers nothing goes through PyTorch: what the backward pass of one writes is the dL/dz
of the layer below it, as in `SparseMLP`. A single layer is a chain of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from ..machine.threads import kernel_threads
from .passes import Kept, Link, backward_pass, forward_pass
from .tensors import owned, refuse_second, transposed


class _Chain(torch.autograd.Function):
    """Layers on rows, (..., n_in) to (..., n_out), with the transposed views around them."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        links: Sequence[Link],
        is_trained: bool,
        *parameters: Tensor | None,  # values and bias of every layer
    ) -> Any:
        out, columns, kept = forward_pass(_flat(x), links, parameters, is_trained)
        if is_trained:
            ctx.save_for_backward(columns, *kept, *parameters[::2])
            ctx.links, ctx.shape = links, x.shape
        return out if x.dim() == 2 else owned(_like(out, x.shape))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():  # create_graph=True
            refuse_second(ctx)
        with kernel_threads(torch.get_num_threads()):
            return _Chain.differentiate(ctx, gradients[0])

    @staticmethod
    def differentiate(ctx: Any, gradient: Tensor) -> Any:
        """Return the gradients of what `forward` takes."""
        columns, hidden, states, *weights = (each.contiguous() for each in ctx.saved_tensors)
        if {gradient.dtype} != {columns.dtype, hidden.dtype}:
            raise DataError("Hooks of saved tensors must return those of the dtype that they got.")
        needs_x, _, _, *needed = ctx.needs_input_grad
        kept = Kept(hidden, states)
        links, wanted = ctx.links, [needs_x, *needed]
        of_x, *found = backward_pass(_flat(gradient), columns, kept, links, weights, wanted)
        return None if of_x is None else _like(of_x.t(), ctx.shape), None, None, *found


def _flat(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _like(rows: Tensor, shape: torch.Size) -> Tensor:
    """Return (..., n) of rows (batch, n) that are a view of columns.

    It stays one where there are two axes: the next such layer takes it as it is. More axes are
    those of models that add and normalise rows, for which views are slow.
    """
    if len(shape) <= 2:
        return rows.reshape(*shape[:-1], rows.shape[1])
    return transposed(rows.t()).reshape(*shape[:-1], rows.shape[1])


def sparse_chain(x: Tensor, links: Sequence[Link], parameters: Sequence[Tensor | None]) -> Tensor:
    """Return what layers make of x (..., n_in): (..., n_out); of two axes it is a transposed view.

    `parameters` are values (nnz,), in input order, and bias (n_out,) or None of every layer. x and
    the result are float32 or bfloat16. Each layer applies the activation that its link has.
    """
    is_trained = torch.is_grad_enabled() and any(
        each is not None and each.requires_grad for each in (x, *parameters)
    )
    with kernel_threads(torch.get_num_threads()):
        out: Tensor = _Chain.apply(x, links, is_trained, *parameters)
    return out
