"""What the operators of PyTorch are made with: views, transposes, registration."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..backends import kernels
from ..machine.threads import kernel_threads


def array_of(tensor: Tensor) -> NDArray[Any]:
    """Return a view; a bfloat16 is a uint16 for the kernels."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def custom_operator(name: str, schema: str) -> Any:
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


def transposed(matrix: Tensor) -> Tensor:
    """Return the contiguous transpose, by a kernel that takes a third of PyTorch's time."""
    view = matrix.t()
    if view.is_contiguous() or matrix.dtype != torch.float32 or is_traced(matrix):
        return view.contiguous()
    out = matrix.new_empty(view.shape)
    with kernel_threads(torch.get_num_threads()):
        rows = np.arange(len(matrix))
        kernels.load_float32(array_of(matrix.contiguous()), rows, array_of(out))
    return out
