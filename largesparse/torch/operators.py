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
    transposed,
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


# A layer: WᵀX + b. Its weights are in input order.


def _forward(columns: Tensor, values: Tensor, bias: Tensor | None, *pattern: Tensor) -> Tensor:
    return _product(columns.contiguous(), values, bias, Pattern(pattern))


def _product(
    columns: Tensor,
    values: Tensor,
    bias: Tensor | None,
    pattern: Pattern,
    numbers: Numbers | None = None,
    state: Tensor | None = None,
) -> Tensor:
    """Return what `linear` does or, with numbers and a state, what its activation makes of that."""
    n_out = pattern.n_out
    out = columns.new_empty((n_out, columns.shape[1]))
    shift = np.zeros(n_out, dtype=np.float32) if bias is None else array_of(bias)
    options: dict[str, Any] = {"slope": 1.0, "out": array_of(out)}
    if numbers is not None and state is not None:
        options |= {"slope": numbers[0], "state": _bits(state, out), "dropout": _dropout(numbers)}
    with kernel_threads(torch.get_num_threads()), pattern.lock:
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


def _backward(
    gradient: Tensor,
    columns: Tensor,
    values: Tensor,
    indptr: Tensor,
    indices: Tensor,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of columns, values and bias; those not needed are empty."""
    by_input = array_of(indptr), array_of(indices)
    return _gradients(gradient.contiguous(), columns.contiguous(), values, by_input, needed)


def _gradients(
    gradient: Tensor,
    columns: Tensor,
    values: Tensor,
    by_input: tuple[Int32, Int32],
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    found = _new_gradients(gradient, columns, values, needed)
    if columns.shape[1] == 0:  # no tile of a row is computed
        return tuple(one.zero_() for one in found)  # type: ignore[return-value]
    D, X = array_of(gradient), array_of(columns)
    of_columns, of_values, of_bias = map(array_of, found)
    with kernel_threads(torch.get_num_threads()):
        if needed[0] and needed[1]:
            backend.backward(
                Connections(*by_input, array_of(values)),
                X,
                D,
                NO_DERIVATIVE,
                out_gradient=of_values,
                out_delta=of_columns,
                out_bias_gradient=np.empty(len(X), dtype=np.float32),
                accumulate=False,
            )
        elif needed[0]:
            backend.spmm(*by_input, array_of(values), D, out=of_columns)
        elif needed[1]:
            kernels.sddmm(*by_input, X, D, of_values, False)
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


class _Linear(torch.autograd.Function):
    """The layer on rows, (..., n_in) to (..., n_out), with the transposed views around it."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        pattern: Pattern,
        numbers: Numbers | None,
    ) -> Any:
        columns, state = _columns(x), None
        if numbers is not None:
            state = _new_state(columns, pattern.n_out)
        ctx.save_for_backward(columns, values, state)
        ctx.pattern, ctx.shape, ctx.numbers = pattern, x.shape, numbers
        return owned(_rows(_product(columns, values, bias, pattern, numbers, state), x.shape))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():  # create_graph=True
            refuse_second(ctx)
        needed, by_input = list(ctx.needs_input_grad[:3]), ctx.pattern.by_input
        columns, values, state = ctx.saved_tensors
        columns = columns.contiguous()  # hooks of saved tensors may return others
        delta, of_bias = _columns(gradients[0]), None
        if state is not None:
            wanted = needed[2]
            delta, sums = _before_activation(delta, state, *ctx.numbers[:2])
            needed[2], of_bias = False, sums if wanted else None
        found = _gradients(delta, columns, values, by_input, needed)
        of_x = _rows(found[0], ctx.shape) if needed[0] else None
        of_bias = found[2] if needed[2] else of_bias
        return of_x, found[1] if needed[1] else None, of_bias, None, None


def _new_state(columns: Tensor, n: int) -> Tensor:
    """Return the bits of an activation, flat: while it is traced, nothing hangs on their shape."""
    words = (columns.shape[1] + 31) // 32
    return columns.new_zeros(n * 2 * words, dtype=torch.int32)


def _columns(x: Tensor) -> Tensor:
    return transposed(x.reshape(-1, x.shape[-1]))


def _rows(columns: Tensor, shape: torch.Size) -> Tensor:
    """Return (..., n) of (n, batch): a view of two axes, which the next such layer takes as it is.

    More axes are those of models that add and normalise rows, for which views are slow.
    """
    rows = columns.t() if len(shape) <= 2 else transposed(columns)
    return rows.reshape(*shape[:-1], len(columns))


def sparse_linear(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    pattern: Pattern,
    numbers: Numbers | None = None,
) -> Tensor:
    """Return x W + b, (..., n_out), of x (..., n_in); of two axes it is a transposed view.

    `values` (nnz,) are in input order; x and the result are float32 or bfloat16. With the numbers
    of an activation, it is applied.
    """
    out: Tensor = _Linear.apply(x, values, bias, pattern, numbers)
    return out


def traced_linear(x: Tensor, values: Tensor, bias: Tensor | None, *pattern: Tensor) -> Tensor:
    """Return the same by the custom operator; the pattern is as `Topology.arrays`."""
    columns = linear(x.reshape(-1, x.shape[-1]).t().contiguous(), values, bias, *pattern)
    rows = columns.t() if x.dim() <= 2 else columns.t().contiguous()
    return rows.reshape(*x.shape[:-1], len(columns))


# An activation: z for z > 0, slope·z for z <= 0, and dropout.


def _activate(
    rows: Tensor, slope: float, keep_below: int, seed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return activations, and the bits that `backends.kernels` calls their state: flat int32."""
    out = rows.clone()
    state = _new_state(rows, len(rows))
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
    return torch.empty_like(rows), _new_state(rows, rows.shape[0])


def _bits(state: Tensor, rows: Tensor) -> NDArray[np.uint32]:
    n, batch = rows.shape
    return array_of(state).view(np.uint32).reshape(n, 2, (batch + 31) // 32)


def _activate_backward(gradient: Tensor, state: Tensor, slope: float, keep_below: int) -> Tensor:
    return _before_activation(gradient, state, slope, keep_below)[0]


def _before_activation(
    gradient: Tensor, state: Tensor, slope: float, keep_below: int
) -> tuple[Tensor, Tensor]:
    """Return dL/dz of a gradient (n, batch), and the sums of its rows, float32 (n,)."""
    out = gradient.clone(memory_format=torch.contiguous_format)
    sums = torch.empty(len(out), dtype=torch.float32)
    share = np.float32(keep_below / RESOLUTION)
    derivative = Derivative(np.float32(slope), share, _bits(state, out))
    with kernel_threads(torch.get_num_threads()):
        kernels.differentiate(array_of(out), derivative, array_of(sums), False)
    return out, sums


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
