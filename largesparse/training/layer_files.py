"""The arrays of a layer as a file holds them, and what they must be on reading."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends.operands import count_dtype
from ..model.config import NetworkConfig
from ..model.layer import (
    CANDIDATES,
    MOMENTS,
    LayerArrays,
    LayerConfig,
    Moments,
    SparseLayer,
    moment_name,
)
from ..model.topology import checked_topology


def layer_of_arrays(arrays: LayerArrays, config: NetworkConfig, k: int, name: str) -> SparseLayer:
    """Return layer k (0 is the first hidden one) of the arrays in a file called `name`."""
    n_in, n_out = config.layer_sizes[k : k + 2]
    nnz = int(arrays["indptr"][-1])
    indptr = expect(arrays, "indptr", count_dtype(nnz), n_in + 1)
    indices = expect(arrays, "indices", np.int32, nnz)
    own = LayerConfig.of(config, k)
    shapes = own.shapes(nnz, n_out).items()
    parameters = {key: expect(arrays, key, np.float32, *shape) for key, shape in shapes}
    moments: Moments = {
        kind: {
            key: expect(arrays, moment_name(key, kind), of.dtype, *shape) for key, shape in shapes
        }
        for kind, of in MOMENTS.items()
        if moment_name("values", kind) in arrays
    }
    topology = checked_topology(n_in, n_out, indptr, indices, name)
    candidates, given = None, config.given_layer(k)
    if given is not None and given.evolution == "within":
        pattern = (
            expect(arrays, CANDIDATES[0], count_dtype(given.candidates), n_in + 1),
            expect(arrays, CANDIDATES[1], np.int32, given.candidates),
        )
        candidates = checked_topology(n_in, n_out, *pattern, f"{name}, candidates")
        if not candidates.contains(topology.cells()).all():
            raise ValueError(f"{name}: a connection is no candidate")
    dead = None
    if "dead" in arrays:
        dead = expect(arrays, "dead", np.bool_, n_out)
        if dead.all() or k == len(config.layer_sizes) - 2:
            raise ValueError(f"{name}: outputs, or all neurons of a layer, are dead")
    rest: dict[str, Any] = {"moments": moments or None, "dead": dead, "candidates": candidates}
    return SparseLayer(k + 2, topology, parameters, own, **rest)


def check_dead(layers: Sequence[SparseLayer], name: str) -> None:
    """Verify that nothing leads to or from the dead neurons around the last one of the layers."""
    layer = layers[-1]
    dead_inputs = layers[-2].dead if len(layers) > 1 else None
    if layer.dead is not None and np.diff(layer.topology.indptr_by_output)[layer.dead].any():
        raise ValueError(f"{name}: a connection leads to a dead neuron")
    if dead_inputs is not None and np.diff(layer.topology.indptr)[dead_inputs].any():
        raise ValueError(f"{name}: a connection leads from a dead neuron")


def expect(arrays: LayerArrays, name: str, dtype: type, *shape: int) -> NDArray[Any]:
    """Return an array of the name, type and shape given; floats must be finite."""
    array = arrays[name]
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{name} is {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{name} has a value that is not finite")
    return array
