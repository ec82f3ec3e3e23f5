"""What a sparse layer and its activation compute, for PyTorch's autograd and compiler.

Operators take and return columns, contiguous (features, batch), as the kernels do. NumPy arrays of
their arguments are views. While PyTorch compiles or exports, and for subclasses of its tensors,
they are custom operators; else autograd calls them directly, which saves some 0.1 ms each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..backends import Dropout, kernels
from ..backends.operands import NO_DROPOUT, RESOLUTION, Derivative
from ..errors import DataError
from ..machine.threads import kernel_threads
from ..model.network import dropout_key
from .passes import Kept, Link, Numbers, Pattern, backward_pass, forward_pass
from .tensors import (
    array_of,
    custom_operator,
    is_traced,
    keep_freed_memory,
    owned,
    refuse_second,
    share_threads,
)

keep_freed_memory()
share_threads()

# A layer: WᵀX + b. Its weights are in input order.


def _forward(columns: Tensor, values: Tensor, bias: Tensor | None, *pattern: Tensor) -> Tensor:
    link = Link(Pattern(pattern), None)
    _check(columns, values, bias, link.pattern)
    with kernel_threads(torch.get_num_threads()):
        return forward_pass(columns.t(), [link], [values, bias], False)[0].t()


def _check(columns: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern) -> None:
    if not (
        columns.dtype in (torch.float32, torch.bfloat16)
        and (columns.dim(), *columns.shape[:1]) == (2, pattern.n_in)
        and (values.dtype, *values.shape) == (torch.float32, pattern.nnz)
        and (bias is None or (bias.dtype, *bias.shape) == (torch.float32, pattern.n_out))
    ):
        raise DataError(
            "torch.ops.largesparse takes columns (n_in, batch), float32 or bfloat16, and float32 "
            f"values and bias. Got {columns.dtype} of shape {tuple(columns.shape)}, or parameters "
            "that do not fit the pattern. Call SparseLinear instead."
        )


linear = custom_operator(
    "linear",
    "(Tensor columns, Tensor values, Tensor? bias, Tensor indptr, Tensor indices, "
    "Tensor indptr_by_output, Tensor indices_by_output, Tensor to_output_order) -> Tensor",
)(_forward)


@linear.register_fake
def _(columns: Tensor, values: Tensor, bias: Tensor | None, *pattern: Tensor) -> Tensor:
    return columns.new_empty((pattern[2].shape[0] - 1, columns.shape[1]))


def _backward(
    gradient: Tensor, columns: Tensor, values: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of columns, values and bias; those not needed are empty."""
    *pattern, needed = rest
    link, kept = Link(Pattern(tuple(pattern)), None), Kept(columns, columns)  # there is none hidden
    _check(columns, values, None, link.pattern)
    delta = gradient.to(columns.dtype).t()
    with kernel_threads(torch.get_num_threads()):
        of_x, *found = backward_pass(
            delta, columns.t(), kept, [link], [values.contiguous()], needed
        )
    found = [None if of_x is None else of_x.t(), *found]
    empty = columns, values, values
    return tuple(  # type: ignore[return-value]
        kind.new_empty(0) if each is None else each for kind, each in zip(empty, found, strict=True)
    )


def _new_gradients(
    gradient: Tensor, columns: Tensor, values: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    kinds = columns, values, values  # the bias has the weights' dtype
    shapes = columns.shape, values.shape, gradient.shape[:1]
    needed: Sequence[bool] = rest[-1]
    return tuple(  # type: ignore[return-value]
        kind.new_empty(shape if wanted else (0,))
        for kind, shape, wanted in zip(kinds, shapes, needed, strict=True)
    )


linear_backward = custom_operator(
    "linear_backward",
    "(Tensor gradient, Tensor columns, Tensor values, Tensor indptr, Tensor indices, "
    "Tensor indptr_by_output, Tensor indices_by_output, Tensor to_output_order, bool[] needed) "
    "-> (Tensor, Tensor, Tensor)",
)(_backward)
linear_backward.register_fake(_new_gradients)
linear_backward.register_autograd(refuse_second)


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    columns, values, _, *pattern = inputs
    ctx.save_for_backward(columns, values, *pattern)


def _differentiate(ctx: Any, gradient: Tensor) -> Any:
    needed = list(ctx.needs_input_grad[:3])
    found = linear_backward(gradient.contiguous(), *ctx.saved_tensors, needed)
    found = [one if wanted else None for one, wanted in zip(found, needed, strict=True)]
    return (*found, None, None, None, None, None)


linear.register_autograd(_differentiate, setup_context=_save)


def traced_linear(x: Tensor, values: Tensor, bias: Tensor | None, *pattern: Tensor) -> Tensor:
    """Return x W + b, (..., n_out), by the custom operator; the pattern is as `Topology.arrays`."""
    columns = linear(x.reshape(-1, x.shape[-1]).t().contiguous(), values, bias, *pattern)
    rows = columns.t() if x.dim() <= 2 else columns.t().contiguous()
    return rows.reshape(*x.shape[:-1], len(columns))


# An activation: z for z > 0, slope·z for z <= 0, and dropout.


def _dropout(numbers: Numbers) -> Dropout:
    _, keep_below, seed = numbers
    return NO_DROPOUT if seed is None else Dropout(keep_below, seed, 0, 0, 0)


def _activate(
    rows: Tensor, slope: float, keep_below: int, seed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return activations, and the bits that `backends.kernels` calls their state: flat int32."""
    out = rows.clone()
    state = new_state(rows, len(rows))
    with kernel_threads(torch.get_num_threads()):
        zero = np.zeros(len(rows), dtype=np.float32)
        zero.flags.writeable = False
        number = None if seed is None else int(seed)
        dropout = _dropout((slope, keep_below, number)).for_kernels()
        kernels.activate(array_of(out), zero, np.float32(slope), dropout, _bits(state, out))
    return out, state


activation = custom_operator(
    "activation", "(Tensor rows, float slope, int keep_below, Tensor? seed) -> (Tensor, Tensor)"
)(_activate)


@activation.register_fake
def _(rows: Tensor, slope: float, keep_below: int, seed: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(rows), new_state(rows, rows.shape[0])


def new_state(columns: Tensor, n: int) -> Tensor:
    """Return the bits of an activation, flat: while it is traced, nothing hangs on their shape."""
    words = (columns.shape[1] + 31) // 32
    return columns.new_zeros(n * 2 * words, dtype=torch.int32)


def _bits(state: Tensor, rows: Tensor) -> NDArray[np.uint32]:
    n, batch = rows.shape
    return array_of(state).view(np.uint32).reshape(n, 2, (batch + 31) // 32)


def derivative_of(numbers: Numbers, state: Tensor, rows: Tensor) -> Derivative:
    """Return what the kernels need of an activation that made the rows (n, batch)."""
    slope, keep_below, _ = numbers
    return Derivative(np.float32(slope), np.float32(keep_below / RESOLUTION), _bits(state, rows))


def before_activation(gradient: Tensor, state: Tensor, numbers: Numbers) -> tuple[Tensor, Tensor]:
    """Return dL/dz of a gradient (n, batch), and the sums of its rows, float32 (n,)."""
    out = gradient.clone(memory_format=torch.contiguous_format)
    sums = torch.empty(len(out), dtype=torch.float32)
    derivative = derivative_of(numbers, state, out)
    kernels.differentiate(array_of(out), derivative, array_of(sums), False)
    return out, sums


def _activate_backward(gradient: Tensor, state: Tensor, slope: float, keep_below: int) -> Tensor:
    with kernel_threads(torch.get_num_threads()):
        return before_activation(gradient, state, (slope, keep_below, None))[0]


activation_backward = custom_operator(
    "activation_backward",
    "(Tensor gradient, Tensor state, float slope, int keep_below) -> Tensor",
)(_activate_backward)


@activation_backward.register_fake
def _(gradient: Tensor, state: Tensor, slope: float, keep_below: int) -> Tensor:
    return torch.empty_like(gradient, memory_format=torch.contiguous_format)


activation_backward.register_autograd(refuse_second)


def _save_state(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.numbers = inputs[1:3]
    ctx.save_for_backward(output[1])


def _differentiate_activation(
    ctx: Any, gradient: Tensor, *_: Any, run: Any = activation_backward
) -> Any:
    return run(gradient, *ctx.saved_tensors, *ctx.numbers), None, None, None


activation.register_autograd(_differentiate_activation, setup_context=_save_state)


class _Activation(torch.autograd.Function):
    """The activation of any shape, by rows or by columns, whichever follow each other."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, slope: float, keep_below: int, seed: Tensor | None) -> Tensor:
        rows, turned = _contiguous(z)
        out, state = _activate(rows, slope, keep_below, seed)
        ctx.numbers, ctx.turned, ctx.shape = (slope, keep_below), turned, z.shape
        ctx.save_for_backward(state)
        return owned(_turned_back(out, turned, z.shape))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():
            refuse_second(ctx)
        gradient = gradients[0].reshape(-1, ctx.shape[-1] if ctx.shape else 1)
        gradient = gradient.t() if ctx.turned else gradient
        out = _activate_backward(gradient, *ctx.saved_tensors, *ctx.numbers)
        return _turned_back(out, ctx.turned, ctx.shape), None, None, None


def _contiguous(z: Tensor) -> tuple[Tensor, bool]:
    rows = z.reshape(-1, z.shape[-1]) if z.dim() else z.reshape(1, 1)
    turned = not rows.is_contiguous()
    return (rows.t() if turned else rows).contiguous(), turned


def _turned_back(rows: Tensor, turned: bool, shape: torch.Size) -> Tensor:
    return (rows.t() if turned else rows).reshape(shape)


def all_relu(z: Tensor, slope: float, dropout: float) -> Tensor:
    """Return z where z > 0 and slope·z where not, after dropout.

    The mask of dropout is a function of one number that PyTorch's generator draws.
    """
    keep_below, seed = _keep_below(dropout), torch.randint(2**62, ()) if dropout > 0 else None
    out: Tensor
    if is_traced(z):
        rows, turned = _contiguous(z)
        out = activation(rows, slope, keep_below, seed)[0]
        return _turned_back(out, turned, z.shape)
    out = _Activation.apply(z, slope, keep_below, seed)
    return out


def activation_numbers(shapes: Sequence[tuple[float, float] | None]) -> list[Numbers | None]:
    """Return the numbers of activations of these slopes and dropouts, with a new mask for each.

    PyTorch's generator draws in one call what it would draw for one after the other.
    """
    count = sum(shape is not None and shape[1] > 0 for shape in shapes)
    seeds = iter(torch.randint(2**62, (count,)).tolist() if count else ())
    return [
        shape and (shape[0], _keep_below(shape[1]), next(seeds) if shape[1] > 0 else None)
        for shape in shapes
    ]


def _keep_below(dropout: float) -> int:
    return dropout_key(dropout, 0, 0, 0).keep_below
