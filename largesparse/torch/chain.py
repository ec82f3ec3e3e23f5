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
from .tensors import owned, refuse_second, transpose_into, transposed

BLOCK = 128  # rows of models with more axes: those of all inputs together leave the caches


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
        blocks = _flat(x).split(_rows_at_a_time(x, links))
        parts = [forward_pass(block, links, parameters, is_trained) for block in blocks]
        if is_trained:
            kept = [each for _, columns, kept in parts for each in (columns, *kept)]
            ctx.save_for_backward(*kept, *parameters[::2])
            ctx.links, ctx.shape, ctx.sizes = links, x.shape, [len(block) for block in blocks]
        outs = [part[0] for part in parts]
        return outs[0] if x.dim() == 2 else owned(_like(outs, x.shape))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():  # create_graph=True
            refuse_second(ctx)
        with kernel_threads(torch.get_num_threads()):
            return _Chain.differentiate(ctx, gradients[0])

    @staticmethod
    def differentiate(ctx: Any, gradient: Tensor) -> Any:
        """Return the gradients of what `forward` takes."""
        saved = iter([each.contiguous() for each in ctx.saved_tensors])
        blocks = [
            (block, next(saved), Kept(next(saved), next(saved)))
            for block in _flat(gradient).split(ctx.sizes)
        ]
        weights = list(saved)
        needs_x, _, _, *needed = ctx.needs_input_grad
        of_x: list[Tensor] = []
        total: list[Tensor | None] = []
        for block, columns, kept in blocks:
            if {gradient.dtype} != {columns.dtype, kept.hidden.dtype}:
                raise DataError(
                    "Hooks of saved tensors must return those of the dtype that they got."
                )
            first, *found = backward_pass(
                block, columns, kept, ctx.links, weights, [needs_x, *needed]
            )
            if first is not None:
                of_x.append(first.t())
            for one, other in zip(total, found, strict=False):
                if one is not None and other is not None:
                    one += other
            total = total or found
        return _like(of_x, ctx.shape) if needs_x else None, None, None, *total


def _flat(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _rows_at_a_time(x: Tensor, links: Sequence[Link]) -> int:
    """Return how many rows of x are computed together: as many as caches hold, where that is free.

    Of two axes the result is one array of columns, and dropout is drawn for all rows.
    """
    has_dropout = any(link.numbers is not None and link.numbers[2] is not None for link in links)
    is_divided = x.dim() > 2 and x.dtype == torch.float32 and not has_dropout
    return BLOCK if is_divided else max(1, x.numel())


def _like(parts: Sequence[Tensor], shape: torch.Size) -> Tensor:
    """Return (..., n) of blocks of rows, each (batch, n) and a view of columns.

    It stays one where there are two axes: the next such layer takes it as it is. More axes are
    those of models that add and normalise rows, for which views are slow.
    """
    n = parts[0].shape[1]
    if len(shape) <= 2:
        return parts[0].reshape(*shape[:-1], n)
    if len(parts) == 1:
        return transposed(parts[0].t()).reshape(*shape[:-1], n)
    rows = parts[0].new_empty(sum(map(len, parts)), n)
    for part, out in zip(parts, rows.split([len(part) for part in parts]), strict=True):
        transpose_into(part.t(), out)
    return rows.reshape(*shape[:-1], n)


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
