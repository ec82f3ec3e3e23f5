"""What sparse layers that follow each other compute, tensors in and tensors out, without autograd.

A pass is one compiled call, whatever the number of layers: `backends.chain_kernel`. Kernels compute
columns, (features, batch). Tensors of two axes are transposed views of such columns where that can
be, and computed as a whole: the next such layer takes them as they are. Those of more axes are of
models that add and normalise rows, for which views are slow: they are rows, contiguous, and go
through the layers in blocks of rows. Who calls a pass sets the threads.
"""

from __future__ import annotations

import operator
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..backends.chain_kernel import LINK, Matrix, backward_chain, forward_chain
from ..backends.kernels import are_below
from ..backends.operands import RESOLUTION
from .tensors import array_of

# Of an activation: slope for z <= 0; of 2^16, the numbers that dropout keeps; what it draws by
Numbers = tuple[float, int, int | None]

# The weights of a layer in output order, written before every use: one array for each topology,
# freed with the tensor of its output order.
workspaces: Any = WeakTensorKeyDictionary()
_lock = threading.Lock()  # threads may predict with one layer


class Pattern:
    """The topology of a layer as kernels take it: addresses of its tensors, and its workspace."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.tensors = tensors
        self.places = [tensor.data_ptr() for tensor in tensors]
        assert all(each.is_contiguous() and each.dtype == torch.int32 for each in tensors)
        self.n_in, self.n_out, self.nnz = (len(tensors[k]) - shift for k, shift in SIZES)
        with _lock:
            if tensors[4] not in workspaces:
                workspaces[tensors[4]] = np.empty(self.nnz, np.float32), threading.Lock()
            self.workspace, self.lock = workspaces[tensors[4]]
        self.workspace_place = self.workspace.ctypes.data

    def is_whole(self) -> bool:
        """Return whether the tensors are a topology, so that kernels stay within their arrays."""
        indptr, indices, indptr_by_output, indices_by_output, order = map(array_of, self.tensors)
        return (
            (len(indices), len(indices_by_output)) == (self.nnz, self.nnz)
            and all(
                ends[0] == 0 and ends[-1] == self.nnz and bool((ends[1:] >= ends[:-1]).all())
                for ends in (indptr, indptr_by_output)
            )
            and are_below(indices, self.n_out)
            and are_below(indices_by_output, self.n_in)
            and are_below(order, self.nnz)
        )

    def is_of(self, tensors: tuple[Tensor, ...]) -> bool:
        """Return whether these are its tensors, in the memory that they were in."""
        same = all(map(operator.is_, self.tensors, tensors))
        return same and self.places == list(map(Tensor.data_ptr, tensors))


SIZES = (0, 1), (2, 1), (4, 0)  # of a pattern: by a tensor's length, less this


class Link(NamedTuple):
    """A layer of a chain, but for its parameters."""

    pattern: Pattern
    numbers: Numbers | None  # of its activation


class Kept(NamedTuple):
    """What the backward pass needs of the forward pass, but inputs and parameters."""

    hidden: Tensor  # activations of all layers but the last, one after the other
    states: Tensor  # int32: bits of all activations (see `backends.kernels`)


class Places(NamedTuple):
    """Where the activations and the bits of every layer begin, and how long a block of all is."""

    hidden: list[int]
    states: list[int | None]  # None where a layer has none
    hidden_size: int
    states_size: int
    blocks: int  # that are kept, one after the other


# Writes numbers to a record of `LINK`, in an eighth of NumPy's time
KINDS = "".join("q" if LINK[name].kind == "i" else "f" for name in LINK.names or ())
pack_record = struct.Struct("=" + KINDS).pack_into
LINE = 16  # numbers: every array begins with a cache line
BLOCK = 128  # rows: those of all inputs together leave the caches


def _rows_of(x: Tensor) -> tuple[int, int]:
    """Return how many rows x has, and how many are computed together."""
    count = x.numel() // x.shape[-1]
    return count, min(count, BLOCK) if x.dim() > 2 else count


def _places(links: Sequence[Link], x: Tensor, keeps: bool) -> Places:
    """Return the layout; what need not be kept is overwritten by the next layer but one."""
    count, batch = _rows_of(x)
    hidden: list[int] = []
    states: list[int | None] = []
    size = of_states = 0
    largest = max(link.pattern.n_out for link in links)
    for k, (pattern, numbers) in enumerate(links):
        length = -(-(pattern.n_out if keeps else largest) * batch // LINE) * LINE
        hidden.append(size if keeps else k % 2 * length)
        if k < len(links) - 1:
            size = max(size, hidden[-1] + length)
        if numbers is not None and (keeps or numbers[2] is not None):
            states.append(of_states)
            of_states += pattern.n_out * 2 * ((batch + 31) // 32)
        else:
            states.append(None)
    return Places(hidden, states, size, of_states, -(-count // batch) if keeps else 1)


def _table(
    links: Sequence[Link],
    weights: Sequence[Tensor],
    kept: Kept,
    places: Places,
    others: Sequence[tuple[int, ...]],
) -> NDArray[Any]:
    """Return the records of `LINK`; `others` are bias, output and the gradients of every layer."""
    hidden, states = kept.hidden.data_ptr(), kept.states.data_ptr()
    itemsize, last = kept.hidden.element_size(), len(links) - 1
    steps = (itemsize * places.hidden_size, 4 * places.states_size) if places.blocks > 1 else (0, 0)
    table = np.empty(len(links), dtype=LINK)
    for k, ((pattern, numbers), values, (bias, out, *gradients)) in enumerate(
        zip(links, weights, others, strict=True)
    ):
        slope, keep_below, seed = numbers or (1.0, RESOLUTION, None)
        indptr, indices, indptr_by_output, indices_by_output, to_output_order = pattern.places
        state = places.states[k]
        pack_record(
            *(table.data, LINK.itemsize * k),
            *(pattern.n_in, pattern.n_out, pattern.nnz, keep_below, seed or 0),
            *(0 if k == last else steps[0], steps[1]),
            *(indptr, indices, values.data_ptr(), to_output_order),
            *(indptr_by_output, indices_by_output, pattern.workspace_place),
            *(bias, out if k == last else hidden + itemsize * places.hidden[k]),
            *(0 if state is None else states + 4 * state, *gradients),
            *(slope, keep_below / RESOLUTION),
        )
    return table


@contextmanager
def _workspaces_of(links: Sequence[Link]) -> Iterator[None]:
    """Keep other threads from the workspaces of layers, taken in one order for all threads."""
    locks = {id(link.pattern.lock): link.pattern.lock for link in links}
    taken = [locks[key] for key in sorted(locks)]
    for lock in taken:
        lock.acquire()
    try:
        yield
    finally:
        for lock in taken:
            lock.release()


def _new_like(x: Tensor, n: int) -> Tensor:
    """Return (..., n) for x (..., any), to be written to."""
    if x.dim() == 2:
        return x.new_empty_strided((len(x), n), (1, len(x)))
    return x.new_empty(*x.shape[:-1], n)


def _matrix(x: Tensor) -> tuple[Tensor, Matrix]:
    """Return the columns of x (..., n) or, if they are not in memory, space for a block of them."""
    n, (count, size) = x.shape[-1], _rows_of(x)
    rows = x.detach().reshape(count, n)
    columns = rows.t()
    if size == count and columns.is_contiguous():
        columns = columns.reshape(-1)
        return columns, Matrix(array_of(columns), array_of(x.new_empty(0, 0)))
    columns = x.new_empty(n * size)
    return columns, Matrix(array_of(columns), array_of(rows.contiguous()))


def forward_pass(
    x: Tensor, links: Sequence[Link], parameters: Sequence[Tensor | None], keeps: bool
) -> tuple[Tensor, Kept]:
    """Return what layers make of x (..., n_in), and what they keep.

    The result is (..., n_out), and no view. `parameters` are values (nnz,), in input order, and
    bias (n_out,) or None of every layer. Where nothing is to be kept, what is returned for it is of
    no use.
    """
    out = _new_like(x, links[-1].pattern.n_out)
    if x.numel() == 0:
        return out, Kept(x.new_empty(0), x.new_empty(0, dtype=torch.int32))
    places = _places(links, x, keeps)
    hidden = x.new_empty(places.hidden_size * places.blocks)
    kept = Kept(hidden, x.new_empty(places.states_size * places.blocks, dtype=torch.int32))
    given = [each if each is None else each.contiguous() for each in parameters]
    weights: Any = given[::2]
    _, inputs = _matrix(x)
    columns, outputs = _matrix(out)
    last = columns.data_ptr()
    others = [(0 if b is None else b.data_ptr(), last, 0, 0, 0, 0) for b in given[1::2]]
    with _workspaces_of(links):
        table = _table(links, weights, kept, places, others)
        forward_chain(table, inputs, outputs, *_rows_of(x))
    return out, kept


def backward_pass(
    gradient: Tensor,
    x: Tensor,
    kept: Kept,
    links: Sequence[Link],
    weights: Sequence[Tensor],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradients of x, and of values and bias of every layer; None if not needed.

    `gradient` (..., n_out of the last) is that of what `forward_pass` returned for x, with `kept`.
    """
    count = len(links)
    found: list[Tensor | None] = [_new_like(x, x.shape[-1]) if needed[0] else None]
    for k, (pattern, _) in enumerate(links):
        for size, wanted in zip((pattern.nnz, pattern.n_out), needed[2 * k + 1 :], strict=False):
            found.append(weights[k].new_empty(size) if wanted else None)
    if x.numel() == 0:
        return [each if each is None else each.zero_() for each in found]
    batch = _rows_of(x)[1]
    _, inputs = _matrix(x)
    columns, outputs = _matrix(gradient)
    if links[-1].numbers is not None and columns.data_ptr() == gradient.data_ptr():
        outputs = Matrix(outputs.columns.copy(), outputs.rows)  # it is made dL/dz in place
    of_x, delta_of_x = (None, inputs) if found[0] is None else _matrix(found[0])
    addresses = [0 if each is None else each.data_ptr() for each in (of_x, *found[1:])]
    largest = max((link.pattern.n_in for link in links[1:]), default=0)
    length = -(-largest * batch // LINE) * LINE
    deltas = x.new_empty(min(count - 1, 2) * length)
    sums = weights[0].new_empty(max(link.pattern.n_in for link in links) + links[-1].pattern.n_out)
    others = []
    for k in range(count):
        goes_on = any(needed[: 2 * k + 1])
        delta = deltas.data_ptr() + deltas.element_size() * ((k - 1) % 2) * length
        delta_sums = addresses[2 * k] if k > 0 and addresses[2 * k] else sums.data_ptr()
        bias = addresses[2 * k + 2]
        if k == count - 1 and links[k].numbers is not None:
            bias = bias or sums.data_ptr()  # it has to be made dL/dz
        delta = (addresses[0] if k == 0 else delta) if goes_on else 0
        others.append((0, 0, addresses[2 * k + 1], bias, delta, delta_sums))
    table = _table(links, weights, kept, _places(links, x, True), others)
    backward_chain(table, inputs, outputs, delta_of_x, *_rows_of(x))
    return found
