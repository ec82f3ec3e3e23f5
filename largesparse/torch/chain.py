"""Sparse layers that follow each other, with their activations, as one node of autograd's graph.

Between the layers nothing goes through PyTorch: what the backward pass of one writes is the dL/dz
of the layer below it, as in `SparseMLP`. A single layer is a chain of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..machine.threads import kernel_threads
from .operators import (
    NO_DERIVATIVE,
    Numbers,
    Pattern,
    before_activation,
    derivative_of,
    layer_gradients,
    new_state,
    product,
    row_sums,
)
from .tensors import owned, refuse_second, transposed


class Link(NamedTuple):
    """A layer of a chain, but for its parameters."""

    pattern: Pattern
    numbers: Numbers | None  # of its activation


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
        columns = _columns(x)
        inputs: list[Tensor] = []
        states: list[Tensor | None] = []
        for link, values, bias in zip(links, parameters[::2], parameters[1::2], strict=True):
            assert values is not None
            pattern, numbers = link
            state = None
            if numbers is not None and (is_trained or numbers[2] is not None):
                state = new_state(columns, pattern.n_out)
            if is_trained:
                inputs.append(columns)
                states.append(state)
            columns = product(columns, values, bias, pattern, numbers, state)
        if is_trained:
            ctx.save_for_backward(*inputs, *states, *parameters[::2])
            ctx.links, ctx.shape = links, x.shape
        return owned(_rows(columns, x.shape))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():  # create_graph=True
            refuse_second(ctx)
        with kernel_threads(torch.get_num_threads()):
            return _Chain.differentiate(ctx, gradients[0])

    @staticmethod
    def differentiate(ctx: Any, gradient: Tensor) -> Any:
        """Return the gradients of what `forward` takes."""
        links, count = ctx.links, len(ctx.links)
        saved = ctx.saved_tensors
        states, weights = saved[count : 2 * count], saved[2 * count :]
        inputs = [each.contiguous() for each in saved[:count]]  # hooks may return others
        needs_x, _, _, *needed = ctx.needs_input_grad
        found: list[Tensor | None] = [None] * len(needed)
        delta, sums = _columns(gradient), None
        if states[-1] is not None:
            delta, sums = before_activation(delta, states[-1], links[-1].numbers)
        elif needed[-1]:
            sums = row_sums(delta)
        for k in reversed(range(count)):
            if needed[2 * k + 1]:
                found[2 * k + 1] = sums
            goes_on = needs_x or any(needed[: 2 * k])
            below = NO_DERIVATIVE
            if k > 0 and states[k - 1] is not None:
                below = derivative_of(links[k - 1].numbers, states[k - 1], inputs[k])
            wanted = goes_on, needed[2 * k]
            by_input = links[k].pattern.by_input
            delta, of_values, sums = layer_gradients(
                delta, inputs[k], weights[k], by_input, wanted, below
            )
            if needed[2 * k]:
                found[2 * k] = of_values
            if not goes_on:
                break
        return _rows(delta, ctx.shape) if needs_x else None, None, None, *found


def _columns(x: Tensor) -> Tensor:
    return transposed(x.reshape(-1, x.shape[-1]))


def _rows(columns: Tensor, shape: torch.Size) -> Tensor:
    """Return (..., n) of (n, batch): a view of two axes, which the next such layer takes as it is.

    More axes are those of models that add and normalise rows, for which views are slow.
    """
    rows = columns.t() if len(shape) <= 2 else transposed(columns)
    return rows.reshape(*shape[:-1], len(columns))


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
