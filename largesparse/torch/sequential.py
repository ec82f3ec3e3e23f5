"""A `torch.nn.Sequential` that computes its sparse layers together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .activations import ACTIVATIONS, is_plain
from .linear import SparseLinear, compute
from .tensors import is_traced


class SparseSequential(nn.Sequential):
    """`torch.nn.Sequential`, with one backward pass for sparse layers that follow each other.

    It takes the same arguments and returns the same results. Layers of type `SparseLinear`, with
    `AllReLU`, `torch.nn.ReLU` or `LeakyReLU` after them or not, are computed without autograd
    between them: in less time, and with fewer copies of activations and gradients. All their
    gradients come at once.

    Modules that have hooks, that are subclasses, or that `recording` observes are called one by
    one; all are while the model is compiled, exported or traced.
    """

    def forward(self, input: Any) -> Any:
        """Return what the modules make of the input, one after the other."""
        if torch.compiler.is_compiling():
            return super().forward(input)
        x = input
        for run in _runs(self):
            if len(run) > 1 and not is_traced(x):
                x = compute(x, run)
            else:
                for module in run:
                    x = module(x)
        return x


def _runs(modules: Iterable[nn.Module]) -> list[list[nn.Module]]:
    """Return the modules in groups: sparse layers and activations that `compute` takes together."""
    runs: list[list[nn.Module]] = []
    last: SparseLinear | None = None  # of the run
    has_activation = False
    for module in modules:
        if isinstance(module, SparseLinear) and module.can_chain():
            if last is not None and last.out_features == module.in_features:
                runs[-1].append(module)
            else:
                runs.append([module])
            last, has_activation = module, module.activation is not None
        elif last is not None and not has_activation and is_plain(module, ACTIVATIONS):
            runs[-1].append(module)
            has_activation = True
        else:
            runs.append([module])
            last = None
    return runs
