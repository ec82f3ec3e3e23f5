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
from .tensors import refuse_second


class _Chain(torch.autograd.Function):
    """Layers, (..., n_in) to (..., n_out)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        links: Sequence[Link],
        is_trained: bool,
        *parameters: Tensor | None,  # values and bias of every layer
    ) -> Any:
        out, kept = forward_pass(x, links, parameters, is_trained)
        if is_trained:
            ctx.save_for_backward(x, *kept, *parameters[::2])
            ctx.links = links
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():  # create_graph=True
            refuse_second(ctx)
        with kernel_threads(torch.get_num_threads()):
            return _Chain.differentiate(ctx, gradients[0])

    @staticmethod
    def differentiate(ctx: Any, gradient: Tensor) -> Any:
        """Return the gradients of what `forward` takes."""
        x, *saved = ctx.saved_tensors
        hidden, states, *weights = [each.contiguous() for each in saved]
        if {gradient.dtype} != {x.dtype, hidden.dtype}:
            raise DataError("Hooks of saved tensors must return those of the dtype that they got.")
        needs_x, _, _, *needed = ctx.needs_input_grad
        kept = Kept(hidden, states)
        of_x, *found = backward_pass(gradient, x, kept, ctx.links, weights, [needs_x, *needed])
        return of_x, None, None, *found


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
