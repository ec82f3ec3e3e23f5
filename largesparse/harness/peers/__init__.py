"""The contestants of `compare_peers.py` and `bench`: what trains a sparse network in place of
largesparse, and largesparse itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ...backends import BACKENDS
from .cpu import DenseSklearn, SciPyRows
from .ours import Ours
from .problem import Batches, Contestant, Problem
from .pytorch import MaskedDense, OursInTorch, SparseCSR, SparseLab

Maker = Callable[[Problem, Batches], Contestant]

PEERS: dict[str, Maker] = {
    "torch": MaskedDense,
    "csr": SparseCSR,
    "sparselab": SparseLab,
    "sklearn": DenseSklearn,
    "scipy": SciPyRows,
}
OURS: dict[str, Maker] = {backend: partial(Ours, backend=backend) for backend in BACKENDS}
OURS["torch"] = OursInTorch
