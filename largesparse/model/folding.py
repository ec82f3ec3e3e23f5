"""Layers as they predict: with nothing but weights, biases and activations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from .layer import LayerArrays, SparseLayer
from .normalization import gain_and_shift


def fold_layers(layers: Sequence[SparseLayer]) -> list[SparseLayer]:
    """Return layers that predict as these do, by weights and biases alone: see `export.fold`."""
    return [_fold(layer) for layer in layers]


def _fold(layer: SparseLayer) -> SparseLayer:
    found: LayerArrays = layer.evaluated
    if layer.config.normalised:
        gain, shift = gain_and_shift(found)
        found = {"values": found["values"] * gain[layer.topology.indices], "bias": shift}
    elif "average" not in layer.kinds:
        return layer
    folded = SparseLayer(
        layer.number,
        layer.topology,
        found,
        dataclasses.replace(layer.config, normalised=False),
        moments={},
        dead=layer.dead,
        values_by_output=np.empty(0, np.float32),
    )
    folded.is_stale = True  # sparse inputs do not need the output order
    return folded
