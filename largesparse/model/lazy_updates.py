"""Momentum SGD on the weights of sparse inputs, of which a mini-batch has few."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..backends.operands import SGD, Float32, SparseBatch

if TYPE_CHECKING:
    from .layer import SparseLayer

GROUP = 32  # updates after which all weights are brought up to date
FEW = 8  # inputs for every entry of a mini-batch, above which the others are left for later


class LazyUpdates:
    """Updates the weights of a mini-batch's inputs, and brings up to date what others need later.

    The gradient of the weights of an input that is 0 in all samples is 0. Their update is linear:

        v ← μv,  w ← w + v - λw

    By Nesterov's momentum w moves by μv in place of v. So several of them are one,
    w ← w + m·v - d·w and v ← M·v, which is done when the input comes
    again, and for all inputs at the end of a group of updates. But for rounding the result is that
    of `MomentumSGD.update_`. Until `settle_`, or while `is_settled`, the layer's weights are not
    those of the training.
    """

    def __init__(self, layer: SparseLayer) -> None:
        self._layer = layer
        self._seen = np.zeros(layer.n_in, np.int32)  # updates of the group, by input
        self._batch: SparseBatch | None = None
        self._open_group_()

    def _open_group_(self) -> None:
        self._seen[:] = 0
        # M, m and d that lead from each number of updates of the group to the present one
        self._lags = np.array([[1.0, 0.0, 0.0]])

    @property
    def is_settled(self) -> bool:
        """Whether all weights are up to date."""
        return len(self._lags) == 1

    @property
    def is_waiting(self) -> bool:
        """Whether a mini-batch has been prepared for `update_`."""
        return self._batch is not None

    def prepare_(self, batch: SparseBatch | Float32 | None, gradient: Float32) -> bool:
        """Bring up to date the weights that a mini-batch needs; set their gradients to 0.

        Return False, with all weights up to date, where all are to be updated, as they are where
        the mini-batch is dense (or None), or its features have a shift.
        """
        from ..backends.sparse_input_kernels import catch_up

        layer = self._layer
        self._batch = None
        is_few = isinstance(batch, SparseBatch) and FEW * len(batch.features) <= layer.n_in
        if not isinstance(batch, SparseBatch) or not is_few or len(batch.shift):
            self.settle_()
            return False
        self._batch = batch
        lags, places = self._lags.astype(np.float32), (batch.starts, batch.features)
        catch_up(places, lags, self._seen, layer.by_input, layer.velocity, gradient)
        return True

    def update_(self, gradient: Float32, sgd: SGD) -> None:
        """Update the weights of the inputs that `prepare_` was given."""
        from ..backends.sparse_input_kernels import update_present

        layer, batch, now = self._layer, self._batch, len(self._lags) - 1
        assert batch is not None
        places = batch.starts, batch.features
        update_present(places, now, self._seen, layer.by_input, layer.velocity, gradient, sgd)
        self._batch = None
        lags, decay = self._lags, float(sgd.decay)
        lags[:, 0] *= float(sgd.momentum)
        moved = lags[:, 0] * float(sgd.momentum) if sgd.nesterov else lags[:, 0]
        lags[:, 1] = (1 - decay) * lags[:, 1] + moved
        lags[:, 2] += decay * (1 - lags[:, 2])
        self._lags = np.vstack([lags, [1.0, 0.0, 0.0]])
        if len(self._lags) > GROUP:
            self.settle_()

    def settle_(self) -> None:
        """Bring all weights up to date."""
        from ..backends.sparse_input_kernels import catch_up_all

        if not self.is_settled:
            layer, lags = self._layer, self._lags.astype(np.float32)
            catch_up_all(lags, self._seen, layer.by_input, layer.velocity)
            self._open_group_()
