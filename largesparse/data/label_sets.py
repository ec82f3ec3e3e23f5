"""Which labels every row of a data set has, where a row may have several or none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .checks import BLOCK_BYTES, refuse_masked, row_blocks

ONE_LABEL = "Pass one row of 0 and 1 a sample, with a column a label, dense or CSR."


@dataclass(frozen=True, eq=False)
class LabelSets:
    """The pattern of an indicator matrix (n_samples, n_labels), as CSR; its rows can be indexed.

    `weights`, float32 (n_labels,), are what each label counts in the loss; None is 1.
    """

    indptr: NDArray[np.int64]  # (n_samples + 1,)
    indices: NDArray[np.int32]  # the labels of every row, ascending
    n_labels: int
    weights: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def shape(self) -> tuple[int, int]:
        """Samples and labels."""
        return len(self), self.n_labels

    def __getitem__(self, rows: Any) -> LabelSets:
        """Return those of some rows, a slice or numbers (n,), in O(their labels)."""
        rows = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
        starts = self.indptr[rows]
        counts = self.indptr[rows + 1] - starts
        indptr = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(counts, out=indptr[1:])
        places = np.repeat(starts - indptr[:-1], counts) + np.arange(indptr[-1])
        return LabelSets(indptr, self.indices[places], self.n_labels, self.weights)

    def counts(self) -> NDArray[np.int64]:
        """Return how many rows have each label, int64 (n_labels,)."""
        return np.bincount(self.indices, minlength=self.n_labels)

    def to_csr(self, dtype: Any = np.int64) -> Any:
        """Return the indicator matrix, csr_array (n_samples, n_labels)."""
        from scipy.sparse import csr_array

        ones = np.ones(len(self.indices), dtype)
        few = len(ones) < 2**31  # other libraries want pointers of the type of indices
        indptr = self.indptr.astype(np.int32) if few else self.indptr
        return csr_array((ones, self.indices, indptr), shape=self.shape)


def join_label_sets(parts: list[LabelSets]) -> LabelSets:
    """Return the rows of all parts, one after the other."""
    ends = np.cumsum([0] + [len(part.indices) for part in parts])
    pointers = [part.indptr[1:] + end for part, end in zip(parts, ends[:-1], strict=True)]
    indptr = np.concatenate([[0], *pointers]).astype(np.int64)
    return LabelSets(indptr, np.concatenate([part.indices for part in parts]), parts[0].n_labels)


def check_label_sets(y: Any, n_labels: int | None = None) -> LabelSets:
    """Return an indicator matrix (n_samples, n_labels), dense or sparse, as `LabelSets`, or raise.

    Its values are 0 and 1, or False and True. A dense one is read in blocks of rows.
    """
    from scipy.sparse import issparse

    if not isinstance(y, LabelSets):
        y = _of_sparse(y) if issparse(y) else _of_dense(y)
    if n_labels is not None and y.n_labels != n_labels:
        raise DataError(
            f"y has {y.n_labels} labels, and the network has {n_labels} outputs. Pass the labels "
            "that the model was trained on, one a column."
        )
    return y


def _of_sparse(y: Any) -> LabelSets:
    from scipy.sparse import csr_array

    if y.ndim != 2 or y.dtype.kind not in "biuf":
        raise DataError(f"y is a sparse {y.dtype} array of {y.ndim} dimensions. {ONE_LABEL}")
    csr = csr_array(y, copy=False)
    try:
        csr.check_format(full_check=True)  # kernels write to where a label points
    except ValueError as error:
        raise DataError(f"y is not a valid sparse array: {error}") from error
    if not csr.has_canonical_format or (csr.data == 0).any():
        csr = csr.copy()
        csr.sum_duplicates()
        csr.eliminate_zeros()
    if (csr.data != 1).any():
        _refuse_value(csr.data[csr.data != 1][0])
    return LabelSets(csr.indptr.astype(np.int64), csr.indices.astype(np.int32), csr.shape[1])


def _of_dense(y: Any) -> LabelSets:
    refuse_masked(y=y)
    y = np.asarray(y)
    if y.ndim != 2 or not y.size or y.dtype.kind not in "biuf":
        raise DataError(f"y has {y.dtype} and the shape {y.shape}. {ONE_LABEL}")
    counts, indices = [np.zeros(1, np.int64)], []
    for block in row_blocks(len(y), y.itemsize * y.shape[1], BLOCK_BYTES):
        part = y[block]
        found = part != 0
        if y.dtype != bool and (part[found] != 1).any():
            _refuse_value(part[found & (part != 1)][0])
        counts.append(np.count_nonzero(found, axis=1))
        indices.append(np.nonzero(found)[1].astype(np.int32))
    return LabelSets(np.cumsum(np.concatenate(counts)), np.concatenate(indices), y.shape[1])


def _refuse_value(value: Any) -> None:
    raise DataError(f"y holds {value}, and an indicator of labels is 0 or 1. {ONE_LABEL}")
