"""What a sparse layer and its activation compute, for PyTorch's autograd and compiler.

Operators take and return columns, contiguous (features, batch), as the kernels do. NumPy arrays of
their arguments are views. While PyTorch compiles or exports, and for subclasses of its tensors,
they are custom operators; else autograd calls them directly, which saves some 0.1 ms each.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..backends import Dropout, fused, kernels
from ..backends.operands import NO_DROPOUT, NO_STATE, RESOLUTION, Connections, Derivative, Int32
from ..backends.pattern_kernels import reorder
from ..machine.threads import kernel_threads
from ..model.network import dropout_key
from .tensors import (
    array_of,
    custom_operator,
    is_traced,
    keep_freed_memory,
    owned,
    refuse_second,
)

keep_freed_memory()
backend = fused.load()  # which has kernels for bfloat16
NO_DERIVATIVE = Derivative(np.float32(1), np.float32(1), NO_STATE)  # there is no activation


# Of an activation: slope for z <= 0; of 2^16, the numbers that dropout keeps; what it draws by
Numbers = tuple[float, int, Tensor | None]

# The weights of a layer in output order, written before every use: one array for each topology,
# freed with the tensor of its output order.
workspaces: Any = WeakTensorKeyDictionary()
_lock = threading.Lock()  # threads may predict with one layer


class Pattern:
    """The topology of a layer as kernels take it: views of its tensors, and its workspace."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.tensors = tensors
        self.places = [tensor.data_ptr() for tensor in tensors]
        arrays = [array_of(tensor) for tensor in tensors]
        self.by_input, self.by_output = (arrays[0], arrays[1]), (arrays[2], arrays[3])
        self.to_output_order = arrays[4]
        self.n_out = len(arrays[2]) - 1
        with _lock:
            if tensors[4] not in workspaces:
                workspaces[tensors[4]] = np.empty(len(arrays[4]), np.float32), threading.Lock()
            self.workspace, self.lock = workspaces[tensors[4]]

    def is_of(self, tensors: tuple[Tensor, ...]) -> bool:
        """Return whether these are its tensors, in the memory that they were in."""
        same = all(map(operator.is_, self.tensors, tensors))
        return same and self.places == [tensor.data_ptr() for tensor in tensors]


# A layer: WᵀX + b. Its weights are in input order. Who calls its functions sets the threads.


def _forward(columns: Tensor, values: Tensor, bias: Tensor | None, *pattern: Tensor) -> Tensor:
    with kernel_threads(torch.get_num_threads()):
        return product(columns.contiguous(), values, bias, Pattern(pattern))


def product(
    columns: Tensor,
    values: Tensor,
    bias: Tensor | None,
    pattern: Pattern,
    numbers: Numbers | None = None,
    state: Tensor | None = None,
) -> Tensor:
    """Return what `linear` does or, with numbers, what an activation makes of that.

    Without a state nothing is dropped.
    """
    n_out = pattern.n_out
    out = columns.new_empty((n_out, columns.shape[1]))
    shift = np.zeros(n_out, dtype=np.float32) if bias is None else array_of(bias)
    options: dict[str, Any] = {"slope": 1.0, "out": array_of(out)}
    if numbers is not None:
        options["slope"] = numbers[0]
        if state is not None:
            options |= {"state": _bits(state, out), "dropout": _dropout(numbers)}
    with pattern.lock:
        reorder(array_of(values), pattern.to_output_order, pattern.workspace)
        connections = Connections(*pattern.by_output, pattern.workspace)
        backend.forward(connections, shift, array_of(columns), **options)
    return out


def _dropout(numbers: Numbers) -> Dropout:
    _, keep_below, seed = numbers
    return NO_DROPOUT if seed is None else Dropout(keep_below, int(seed), 0, 0, 0)


linear = custom_operator(
    "linear",
    "(Tensor columns, Tensor values, Tensor? bias, Tensor indptr, Tensor indices, "
    "Tensor indptr_by_output, Tensor indices_by_output, Tensor to_output_order) -> Tensor",
)(_forward)


@linear.register_fake
def _(columns: Tensor, values: Tensor, bias: Tensor | None, *pattern: Tensor) -> Tensor:
    return columns.new_empty((pattern[2].shape[0] - 1, columns.shape[1]))


def layer_gradients(
    D: Tensor,
    X: Tensor,
    values: Tensor,
    by_input: tuple[Int32, Int32],
    needed: Sequence[bool],
    below: Derivative = NO_DERIVATIVE,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dL/dz of the layer below, (n_in, batch), dL/dW, and the row sums of the former.

    D, (n_out, batch), is dL/dz of this layer, X, (n_in, batch), its inputs, `below` what they are
    made by. `needed` says which of the two first are wanted; the others are empty.
    """
    below_too, weights_too = needed[:2]
    of_columns = torch.empty_like(X) if below_too else X.new_empty(0)
    of_values = torch.empty_like(values) if weights_too else values.new_empty(0)
    sums = values.new_empty(len(X) if below_too else 0)
    if X.shape[1] == 0:  # no tile of a row is computed
        return of_columns, of_values.zero_(), sums.zero_()
    if below_too and weights_too:
        backend.backward(
            Connections(*by_input, array_of(values)),
            array_of(X),
            array_of(D),
            below,
            out_gradient=array_of(of_values),
            out_delta=array_of(of_columns),
            out_bias_gradient=array_of(sums),
            accumulate=False,
        )
    elif below_too:
        backend.spmm(*by_input, array_of(values), array_of(D), out=array_of(of_columns))
        kernels.differentiate(array_of(of_columns), below, array_of(sums), False)
    elif weights_too:
        kernels.sddmm(*by_input, array_of(X), array_of(D), array_of(of_values), False)
    return of_columns, of_values, sums


def row_sums(D: Tensor) -> Tensor:
    """Return the sums of the rows of D, (n, batch): float32 (n,)."""
    out = torch.empty(len(D), dtype=torch.float32)
    kernels.sum_rows(array_of(D), array_of(out), False)
    return out


def _backward(
    gradient: Tensor,
    columns: Tensor,
    values: Tensor,
    indptr: Tensor,
    indices: Tensor,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of columns, values and bias; those not needed are empty."""
    by_input, D = (array_of(indptr), array_of(indices)), gradient.contiguous()
    with kernel_threads(torch.get_num_threads()):
        found = layer_gradients(D, columns.contiguous(), values, by_input, needed)
        return found[0], found[1], row_sums(D) if needed[2] else values.new_empty(0)


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
    "bool[] needed) -> (Tensor, Tensor, Tensor)",
)(_backward)
linear_backward.register_fake(_new_gradients)
linear_backward.register_autograd(refuse_second)


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    columns, values, _, indptr, indices, *_ = inputs
    ctx.save_for_backward(columns, values, indptr, indices)


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


def _activate(
    rows: Tensor, slope: float, keep_below: int, seed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return activations, and the bits that `backends.kernels` calls their state: flat int32."""
    out = rows.clone()
    state = new_state(rows, len(rows))
    with kernel_threads(torch.get_num_threads()):
        zero = np.zeros(len(rows), dtype=np.float32)
        zero.flags.writeable = False
        dropout = _dropout((slope, keep_below, seed)).for_kernels()
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
    slope, keep_below, seed = activation_numbers(slope, dropout)
    out: Tensor
    if is_traced(z):
        rows, turned = _contiguous(z)
        out = activation(rows, slope, keep_below, seed)[0]
        return _turned_back(out, turned, z.shape)
    out = _Activation.apply(z, slope, keep_below, seed)
    return out


def activation_numbers(slope: float, dropout: float) -> Numbers:
    """Return the numbers of an activation, with a new mask for its dropout."""
    if dropout == 0:
        return slope, RESOLUTION, None
    return slope, dropout_key(dropout, 0, 0, 0).keep_below, torch.randint(2**62, ())
