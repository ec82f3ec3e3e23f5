"""The activations of `SparseMLP` as PyTorch modules, and those that sparse layers compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules

from ..errors import DataError, check_range
from ..model.activations import left_slope
from .operators import all_relu


class AllReLU(nn.Module):
    """The paper's activation (eq. 3), and dropout: f(z) = z where z > 0, else ∓α·z.

    It keeps two bits a number for the backward pass.

    Parameters
    ----------
    alpha : float
    number : int
        Of the layer, as the paper counts: the first hidden layer is 2. The slope is -α where it is
        even, α where it is odd.
    dropout : float in [0, 1)
        Share of the numbers that are set to 0 in training; the others are divided by what is kept.
    """

    def __init__(self, alpha: float = 0.6, number: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        check_range("alpha", alpha, "AllReLU", low=0, high=math.inf, high_open=True)
        check_range("number", number, "AllReLU", low=2, integer=True)
        check_range("dropout", dropout, "AllReLU", low=0, high=1, high_open=True)
        self.alpha, self.number, self.dropout = float(alpha), number, float(dropout)

    @property
    def slope(self) -> float:
        """Slope for z <= 0."""
        return left_slope("all_relu", self.alpha, self.number)

    def forward(self, z: Tensor) -> Tensor:
        """Return f(z), as z."""
        if z.dtype not in (torch.float32, torch.bfloat16) or z.device.type != "cpu":
            raise DataError(
                "AllReLU takes float32 or bfloat16 on the CPU. "
                f"Got {z.dtype} on {str(z.device)!r} instead."
            )
        return all_relu(z, *self.shape())

    def shape(self) -> tuple[float, float]:
        """Return the slope for z <= 0, and the dropout of now."""
        return self.slope, self.dropout if self.training else 0.0

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}, number={self.number}, dropout={self.dropout:g}"


class SReLU(nn.Module):
    """SReLU, or PReLU, with a shape of every neuron that is trained.

    `srelu` (4, n) are t_left, a_left, t_right and a_right; rows that are not trained stay.
    """

    def __init__(self, srelu: Tensor, trained: tuple[bool, ...]) -> None:
        super().__init__()
        self.srelu = nn.Parameter(srelu)
        self.trained = trained

    def forward(self, z: Tensor) -> Tensor:
        """Return f(z), as z."""
        rows = [
            row if trained else row.detach()
            for row, trained in zip(self.srelu, self.trained, strict=True)
        ]
        t_left, a_left, t_right, a_right = rows
        right = torch.where(z >= t_right, t_right + a_right * (z - t_right), z)
        return torch.where(z <= t_left, t_left + a_left * (z - t_left), right)


# What a chain computes with its layers: slope for z <= 0, and dropout
ACTIVATIONS: dict[type[nn.Module], Callable[[Any], tuple[float, float]]] = {
    AllReLU: AllReLU.shape,
    nn.ReLU: lambda module: (0.0, 0.0),
    nn.LeakyReLU: lambda module: (float(module.negative_slope), 0.0),
}


HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def is_plain(module: nn.Module, kinds: Container[type]) -> bool:
    """Return whether calling a module only runs the forward pass of one of these types."""
    if type(module) not in kinds:
        return False
    own = module.__dict__
    return not (
        any(own[name] or getattr(modules, "_global" + name) for name in HOOKS)
        or own.get("_compiled_call_impl") is not None
        or "forward" in own
    )
