"""What sparse layers that follow each other compute, tensors in and tensors out, without autograd.

A pass is one compiled call, whatever the number of layers: `backends.chain_kernel`. Kernels take
columns, contiguous (features, batch). Who calls a pass sets the threads.
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

from ..backends.chain_kernel import LINK, backward_chain, forward_chain
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
    """Where the activations and the bits of every layer begin, and how long they are together."""

    hidden: list[int]
    states: list[int | None]  # None where a layer has none
    hidden_size: int
    states_size: int


# Writes numbers to a record of `LINK`, in an eighth of NumPy's time
KINDS = "".join("q" if LINK[name].kind == "i" else "f" for name in LINK.names or ())
pack_record = struct.Struct("=" + KINDS).pack_into
NO_ROWS = np.empty((0, 0), dtype=np.float32)
LINE = 16  # numbers: every array begins with a cache line


def _places(links: Sequence[Link], batch: int, keeps: bool) -> Places:
    """Return the layout; what need not be kept is overwritten by the next layer but one."""
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
    return Places(hidden, states, size, of_states)


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


def to_columns(rows: Tensor) -> tuple[Tensor, NDArray[Any]]:
    """Return the transpose of rows, contiguous, and the rows that a kernel has yet to write to it.

    Without any, it is a view where the rows are one, or written already.
    """
    columns = rows.t()
    if columns.is_contiguous() or rows.dtype != torch.float32:
        return columns.contiguous(), NO_ROWS
    return rows.new_empty(columns.shape), array_of(rows.contiguous())


def forward_pass(
    x: Tensor, links: Sequence[Link], parameters: Sequence[Tensor | None], keeps: bool
) -> tuple[Tensor, Tensor, Kept]:
    """Return what layers make of rows x (batch, n_in), the columns of x, and what they keep.

    The result is rows (batch, n_out) of contiguous columns, and no view. `parameters` are values
    (nnz,), in input order, and bias (n_out,) or None of every layer. Where nothing is to be kept,
    what is returned for it is of no use.
    """
    columns, rows = to_columns(x)
    batch, n_out = columns.shape[1], links[-1].pattern.n_out
    places = _places(links, batch, keeps)
    hidden = columns.new_empty(places.hidden_size)
    kept = Kept(hidden, hidden.new_empty(places.states_size, dtype=torch.int32))
    out = columns.new_empty_strided((batch, n_out), (1, batch))
    if batch == 0:
        return out, columns, kept
    given = [each if each is None else each.contiguous() for each in parameters]
    weights: Any = given[::2]
    others = [(0 if b is None else b.data_ptr(), out.data_ptr(), 0, 0, 0, 0) for b in given[1::2]]
    with _workspaces_of(links):
        forward_chain(_table(links, weights, kept, places, others), rows, array_of(columns))
    return out, columns, kept


def backward_pass(
    gradient: Tensor,
    columns: Tensor,
    kept: Kept,
    links: Sequence[Link],
    weights: Sequence[Tensor],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradients of columns, and of values and bias of every layer; None if not needed.

    `gradient` (batch, n_out of the last) is that of what `forward_pass` returned, with `columns`
    and `kept`.
    """
    batch = columns.shape[1]
    count = len(links)
    found: list[Tensor | None] = [columns.new_empty(columns.shape) if needed[0] else None]
    for k, (pattern, _) in enumerate(links):
        for size, wanted in zip((pattern.nnz, pattern.n_out), needed[2 * k + 1 :], strict=False):
            found.append(weights[k].new_empty(size) if wanted else None)
    if batch == 0:
        return [each if each is None else each.zero_() for each in found]
    addresses = [0 if each is None else each.data_ptr() for each in found]
    largest = max((link.pattern.n_in for link in links[1:]), default=0)
    length = -(-largest * batch // LINE) * LINE
    deltas = columns.new_empty(min(count - 1, 2) * length)
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
    table = _table(links, weights, kept, _places(links, batch, True), others)
    outputs, rows = to_columns(gradient)
    if links[-1].numbers is not None and outputs.data_ptr() == gradient.data_ptr():
        outputs = outputs.clone()  # it is made dL/dz in place
    backward_chain(table, array_of(columns), rows, array_of(outputs))
    return found
