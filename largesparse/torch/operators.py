"""What a sparse layer and its activation compute, for PyTorch's autograd and compiler.

Operators take and return columns, contiguous (features, batch), as the kernels do. NumPy arrays of
their arguments are views. While PyTorch compiles or exports, and for subclasses of its tensors,
they are custom operators; else autograd calls them directly, which saves some 0.1 ms each.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..backends import Dropout, get_backend
from ..backends.operands import NO_DROPOUT, NO_STATE, RESOLUTION, Connections, Derivative
from ..machine.threads import kernel_threads
from ..model.network import dropout_key

NO_DERIVATIVE = Derivative(np.float32(1), np.float32(1), NO_STATE)  # there is no activation


class Workspace:
    """The weights of a layer in output order, written before every use."""

    def __init__(self, nnz: int) -> None:
        self.by_output = np.empty(nnz, dtype=np.float32)
        self.lock = threading.Lock()  # threads may predict with one layer


# One for each topology in use, freed with the tensor of its output order.
workspaces: Any = WeakTensorKeyDictionary()


def _workspace(to_output_order: Tensor) -> Workspace:
    found = workspaces.get(to_output_order)
    if found is None:
        found = workspaces.setdefault(to_output_order, Workspace(len(to_output_order)))
    return found


def array_of(tensor: Tensor) -> NDArray[Any]:
    """Return a view; a bfloat16 is a uint16 for the kernels, as is an int32 of bits a uint32."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def operator(name: str, schema: str) -> Any:
    """Return a decorator that registers a custom operator of the CPU."""
    return torch.library.custom_op(
        f"largesparse::{name}", mutates_args=(), device_types="cpu", schema=schema
    )


def is_traced(tensor: Tensor) -> bool:
    """Return whether PyTorch compiles, exports, or passes something that is not a plain tensor."""
    return torch.compiler.is_compiling() or type(tensor) is not Tensor


def refuse_second(ctx: Any, *gradients: Any) -> Any:
    """Raise the error of a second derivative."""
    raise NotImplementedError(
        "Sparse layers have no second derivatives. Call backward() or torch.autograd.grad without "
        "create_graph=True, or make the layer dense first: largesparse.torch.to_dense."
    )


# A layer: WᵀX + b. Its weights are in input order.


def _forward(columns: Tensor, values: Tensor, bias: Tensor | None, *pattern: Tensor) -> Tensor:
    from ..backends.pattern_kernels import reorder

    indptr, indices, to_output_order = pattern[2:]  # of the output order
    n_out, batch = len(indptr) - 1, columns.shape[1]
    out = columns.new_empty((n_out, batch))
    shift = np.zeros(n_out, dtype=np.float32) if bias is None else array_of(bias)
    workspace = _workspace(to_output_order)
    with kernel_threads(torch.get_num_threads()), workspace.lock:
        reorder(array_of(values), array_of(to_output_order), workspace.by_output)
        connections = Connections(array_of(indptr), array_of(indices), workspace.by_output)
        get_backend("fused").forward(
            connections, shift, array_of(columns), slope=1.0, out=array_of(out)
        )
    return out


linear = operator(
    "linear",
    "(Tensor columns, Tensor values, Tensor? bias, Tensor indptr, Tensor indices, "
    "Tensor indptr_by_output, Tensor indices_by_output, Tensor to_output_order) -> Tensor",
)(_forward)


@linear.register_fake
def _(columns: Tensor, values: Tensor, bias: Tensor | None, *pattern: Tensor) -> Tensor:
    return columns.new_empty((pattern[2].shape[0] - 1, columns.shape[1]))


def _backward(
    gradient: Tensor,
    columns: Tensor,
    values: Tensor,
    indptr: Tensor,
    indices: Tensor,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of columns, values and bias; those not needed are empty."""
    from ..backends import kernels

    found = _new_gradients(gradient, columns, values, indptr, indices, needed)
    if columns.shape[1] == 0:  # no tile of a row is computed
        return tuple(one.zero_() for one in found)  # type: ignore[return-value]
    D, X = array_of(gradient), array_of(columns)
    of_columns, of_values, of_bias = map(array_of, found)
    connections = Connections(array_of(indptr), array_of(indices), array_of(values))
    backend = get_backend("fused")
    with kernel_threads(torch.get_num_threads()):
        if needed[0] and needed[1]:
            backend.backward(
                connections,
                X,
                D,
                NO_DERIVATIVE,
                out_gradient=of_values,
                out_delta=of_columns,
                out_bias_gradient=np.empty(len(X), dtype=np.float32),
                accumulate=False,
            )
        elif needed[0]:
            backend.spmm(*connections, D, out=of_columns)
        elif needed[1]:
            kernels.sddmm(*connections[:2], X, D, of_values, False)
        if needed[2]:
            kernels.sum_rows(D, of_bias, False)
    return found


def _new_gradients(
    gradient: Tensor, columns: Tensor, values: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    kinds = columns, values, values  # the bias has the weights' dtype
    shapes = columns.shape, values.shape, gradient.shape[:1]
    needed: list[bool] = rest[-1]
    return tuple(  # type: ignore[return-value]
        kind.new_empty(shape if wanted else (0,))
        for kind, shape, wanted in zip(kinds, shapes, needed, strict=True)
    )


linear_backward = operator(
    "linear_backward",
    "(Tensor gradient, Tensor columns, Tensor values, Tensor indptr, Tensor indices, "
    "bool[] needed) -> (Tensor, Tensor, Tensor)",
)(_backward)
linear_backward.register_fake(_new_gradients)
linear_backward.register_autograd(refuse_second)


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    columns, values, _, indptr, indices, *_ = inputs
    ctx.save_for_backward(columns, values, indptr, indices)


def _differentiate(ctx: Any, gradient: Tensor, *, run: Any = linear_backward) -> Any:
    needed = list(ctx.needs_input_grad[:3])
    found = run(gradient.contiguous(), *ctx.saved_tensors, needed)
    found = [one if wanted else None for one, wanted in zip(found, needed, strict=True)]
    return (*found, None, None, None, None, None)


linear.register_autograd(_differentiate, setup_context=_save)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _save(ctx, inputs, None)
        return _forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():  # create_graph=True
            refuse_second(ctx)
        return _differentiate(ctx, gradients[0], run=_backward)


def sparse_linear(columns: Tensor, values: Tensor, bias: Tensor | None, *pattern: Tensor) -> Tensor:
    """Return WᵀX + b, (n_out, batch), of X (n_in, batch).

    `values` (nnz,) are in input order, `pattern` is `indptr`, `indices`, `indptr_by_output`,
    `indices_by_output` and `to_output_order` of `Topology`; X and the result are float32 or
    bfloat16, the rest float32 and int32.
    """
    run = linear if is_traced(columns) else _Linear.apply
    out: Tensor = run(columns, values, bias, *pattern)
    return out


# An activation: z for z > 0, slope·z for z <= 0, and dropout.


def _activate(
    rows: Tensor, slope: float, keep_below: int, seed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return activations, and the bits that `backends.kernels` calls their state: flat int32."""
    from ..backends import kernels

    n, batch = rows.shape
    out = rows.clone()
    state = rows.new_empty(n * 2 * ((batch + 31) // 32), dtype=torch.int32)
    dropout = NO_DROPOUT if seed is None else Dropout(keep_below, int(seed), 0, 0, 0)
    bits = _bits(state, out)
    bits[:, :, -1:] = 0  # the kernel writes the last word up to the batch's last column
    with kernel_threads(torch.get_num_threads()):
        zero = np.zeros(n, dtype=np.float32)
        zero.flags.writeable = False
        kernels.activate(array_of(out), zero, np.float32(slope), dropout.for_kernels(), bits)
    return out, state


activation = operator(
    "activation", "(Tensor rows, float slope, int keep_below, Tensor? seed) -> (Tensor, Tensor)"
)(_activate)


@activation.register_fake
def _(rows: Tensor, slope: float, keep_below: int, seed: Tensor | None) -> tuple[Tensor, Tensor]:
    n, batch = rows.shape
    # flat: no guess about the number of words, which depends on the batch
    state = rows.new_empty(n * 2 * ((batch + 31) // 32), dtype=torch.int32)
    return torch.empty_like(rows), state


def _bits(state: Tensor, rows: Tensor) -> NDArray[np.uint32]:
    n, batch = rows.shape
    return array_of(state).view(np.uint32).reshape(n, 2, (batch + 31) // 32)


def _activate_backward(gradient: Tensor, state: Tensor, slope: float, keep_below: int) -> Tensor:
    from ..backends import kernels

    out = gradient.clone(memory_format=torch.contiguous_format)
    share = np.float32(keep_below / RESOLUTION)
    derivative = Derivative(np.float32(slope), share, _bits(state, out))
    with kernel_threads(torch.get_num_threads()):
        kernels.differentiate(array_of(out), derivative, np.empty(len(out), np.float32), False)
    return out


activation_backward = operator(
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
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = _activate(*inputs)
        _save_state(ctx, inputs, output)
        return output[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():
            refuse_second(ctx)
        return _differentiate_activation(ctx, *gradients, run=_activate_backward)


def all_relu(rows: Tensor, slope: float, dropout: float) -> Tensor:
    """Return z where z > 0 and slope·z where not, of a contiguous (n, batch), after dropout.

    The mask of dropout is a function of one number that PyTorch's generator draws.
    """
    keep_below, seed = RESOLUTION, None
    if dropout > 0:
        keep_below, seed = dropout_key(dropout, 0, 0, 0).keep_below, torch.randint(2**62, ())
    if is_traced(rows):
        return activation(rows, slope, keep_below, seed)[0]  # type: ignore[no-any-return]
    out: Tensor = _Activation.apply(rows, slope, keep_below, seed)
    return out
