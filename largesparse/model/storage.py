"""Networks whose arrays lie in files, for those that do not fit in memory.

The system reads what is used and writes back what has changed; a layer ahead, it is told what comes
next. The files have no names, so nothing of them is left behind, even by a process that is killed.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from ..errors import MemoryPlanError, ParameterError
from ..machine.environment import expand_user
from ..machine.mapped_memory import map_file
from .layer import Float32, Forward, LayerArrays, SparseLayer, Zeros
from .topology import Topology

if TYPE_CHECKING:
    from .workspace import Workspace


class Storage:
    """Arrays in files of a folder, which must be writable and should be on a fast local disk."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = expand_user(folder)
        if not self.folder.is_dir() or not os.access(self.folder, os.W_OK):
            raise ParameterError(
                "The 'storage' parameter must be a folder that can be written. Got "
                f"{str(folder)!r} instead."
            )
        self._maps: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()  # by the address

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays that are in use; a file goes with its array."""
        return sum(map(len, self._maps.values()))

    def zeros(self, shape: int | tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
        """Return an array of zeros in a file of its own; raise if the disk has no room for it."""
        dtype = np.dtype(dtype)
        count = math.prod(shape) if isinstance(shape, tuple) else shape
        if count == 0:
            return np.zeros(shape, dtype)
        size = count * dtype.itemsize
        try:
            mapped = map_file(self.folder, size)
        except OSError as error:
            raise MemoryPlanError(
                f"{size} bytes more cannot be stored in {self.folder}, which has {self.nbytes} "
                f"bytes of this network: {error}. Take a folder on a disk with more room, or fewer "
                "neurons."
            ) from error
        array = np.frombuffer(mapped, dtype).reshape(shape)
        self._maps[array.ctypes.data] = mapped
        return array

    def copy(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return a copy in a file of its own."""
        stored = self.zeros(array.shape, array.dtype)
        stored[...] = array
        return stored

    def expect(self, *arrays: NDArray[Any]) -> None:
        """Have the system begin to read arrays that are used soon."""
        for array in arrays:
            mapped = self._maps.get(array.ctypes.data)
            if mapped is not None and hasattr(mapped, "madvise"):
                mapped.madvise(mmap.MADV_WILLNEED)

    def before_forward(self, layer: Forward) -> None:
        """Expect the forward pass of a layer."""
        weights = layer.indices_by_output, layer.values_by_output
        self.expect(layer.indptr_by_output, *weights, layer.bias)

    def before_backward(self, layer: SparseLayer, workspace: Workspace, k: int, batch: int) -> None:
        """Expect the backward pass of layer k."""
        topology = layer.topology
        self.expect(topology.indptr, topology.indices, layer.values)
        if k > 0:
            self.expect(workspace.activations(k - 1, batch), workspace.state(k - 1, batch))

    def before_update(self, layer: SparseLayer, gradient: Float32) -> None:
        """Expect the update of a layer."""
        moments = (getattr(layer, kind) for kind in layer.kinds)
        arrays = gradient, layer.values, *moments, layer.topology.to_output_order
        self.expect(*arrays, layer.values_by_output)


class StoredLayer(SparseLayer):
    """A copy of a layer in files, which have room for the connections that it had at first."""

    def __init__(self, layer: SparseLayer, storage: Storage) -> None:
        self._storage = storage
        topology = layer.topology
        self._patterns = list(map(storage.copy, topology.arrays))
        parameters, *moments = (
            {name: storage.copy(array) for name, array in arrays.items()}
            for arrays in (layer.parameters, *layer.moments.values())
        )
        self._by_output = storage.copy(layer.values_by_output)
        super().__init__(
            layer.number,
            Topology(topology.n_in, topology.n_out, *self._patterns),
            parameters,
            layer.config,
            moments=dict(zip(layer.kinds, moments, strict=True)),
            dead=layer.dead,
            values_by_output=self._by_output,
            candidates=_stored(layer.candidates, storage),
        )
        self._rooms = self._of_connections()
        self.explored = layer.explored

    def _of_connections(self) -> LayerArrays:
        return {name: getattr(self, name) for name in ("values", *self.kinds)}

    def keep_moments_(self, kinds: Sequence[str], zeros: Zeros | None = None) -> None:
        """Have moments of these kinds, and no others, in files."""
        super().keep_moments_(kinds, zeros or self._storage.zeros)
        self._rooms = self._of_connections()

    def replace(self, topology: Topology, values: Float32, moments: LayerArrays) -> None:
        """Copy another topology with its weights and moments to the files."""
        arrays = {"values": values, **moments}
        counts = topology.indptr.dtype
        if len(values) > len(self._patterns[1]) or counts != self._patterns[0].dtype:
            self._patterns = list(map(self._storage.copy, topology.arrays))
        if len(values) > len(self._rooms["values"]):  # weights from before a pruning
            self._rooms = {name: self._storage.copy(arrays[name]) for name in self._rooms}
            self._by_output = self._storage.copy(values)
        parts = map(_fill, self._patterns, topology.arrays)
        self.topology = Topology(topology.n_in, topology.n_out, *parts)
        for name, room in self._rooms.items():
            setattr(self, name, _fill(room, arrays[name]))
        self.values_by_output = self._by_output[: len(values)]
        self.refresh()

    def snapshot(self) -> LayerArrays:
        """Return copies of all arrays in files: `replace` changes the topology in place."""
        return {name: self._storage.copy(array) for name, array in self.arrays().items()}


def _stored(candidates: Topology | None, storage: Storage) -> Topology | None:
    if candidates is None:
        return None
    arrays = map(storage.copy, (candidates.indptr, candidates.indices))
    return Topology(candidates.n_in, candidates.n_out, *arrays)


def _fill(room: NDArray[Any], array: NDArray[Any]) -> NDArray[Any]:
    """Copy an array to the start of a buffer; return that part."""
    room[: len(array)] = array
    return room[: len(array)]
