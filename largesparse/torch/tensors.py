"""What the operators of PyTorch are made with: views, transposes, registration."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ..backends.openmp import run_loops_on

# What glibc raises its own thresholds to as blocks are freed (mallopt(3)): `M_MMAP_THRESHOLD` and
# `M_TRIM_THRESHOLD`, by their numbers.
LIMITS = {-3: 32 * 2**20, -1: 64 * 2**20}


def keep_freed_memory() -> None:
    """Let the C library keep what PyTorch frees, as far as it would do by itself in time.

    PyTorch allocates every activation and gradient anew. As long as glibc's thresholds are low, it
    gives their pages back after each step, and a step of a small network is half page faults.
    Where the environment sets the allocator's variables nothing is changed.
    """
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
        for parameter, limit in LIMITS.items():
            if mallopt is not None:
                mallopt(parameter, limit)


def share_threads() -> None:
    """Let kernels run on PyTorch's own threads: see `backends.openmp`.

    Kernels that were run before, as by a `Trainer`, stay where they are.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if library.exists():  # its dependencies are searched too, so this is PyTorch's own OpenMP
        run_loops_on(ctypes.CDLL(str(library)))


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
    """Return whether PyTorch compiles, exports, traces, or passes another kind of tensor."""
    is_plain = type(tensor) in (Tensor, nn.Parameter)
    return torch.compiler.is_compiling() or not is_plain or _get_current_dispatch_mode() is not None


def owned(view: Tensor) -> Tensor:
    """Return a tensor of the same memory that is no view: those of a Function change in place."""
    return view.new_empty(0).set_(view)  # type: ignore[call-overload, no-any-return]


def refuse_second(ctx: Any, *gradients: Any) -> Any:
    """Raise the error of a second derivative."""
    raise NotImplementedError(
        "Sparse layers have no second derivatives. Call backward() or torch.autograd.grad without "
        "create_graph=True, or make the layer dense first: largesparse.torch.to_dense."
    )
