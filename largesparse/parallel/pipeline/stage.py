"""Where a rank stands in a pipeline, and what it knows of the layers of its neighbours."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...model.activations import TRAINED
from ...model.config import NetworkConfig
from ...model.layer import LayerArrays, LayerConfig
from .split import Stage

Rows = NDArray[np.int64]


class Place(NamedTuple):
    """A rank's part: one stage of one of several pipelines, which train on different rows.

    The ranks of a pipeline follow each other: rank = group·stages + number.
    """

    group: int
    number: int  # of its stage
    groups: int
    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, rank: int, groups: int, stages: tuple[Stage, ...]) -> Place:
        """Return that of a rank."""
        group, number = divmod(rank, len(stages))
        return cls(group, number, groups, stages)

    @property
    def stage(self) -> Stage:
        """The layers of this rank."""
        return self.stages[self.number]

    @property
    def is_first(self) -> bool:
        """Whether it has the inputs."""
        return self.number == 0

    @property
    def is_last(self) -> bool:
        """Whether it has the outputs."""
        return self.number == len(self.stages) - 1

    @property
    def rank(self) -> int:
        """This rank."""
        return self.group * len(self.stages) + self.number

    @property
    def before(self) -> int | None:
        """The rank that activations come from."""
        return None if self.is_first else self.rank - 1

    @property
    def behind(self) -> int | None:
        """The rank that activations go to."""
        return None if self.is_last else self.rank + 1

    @property
    def last(self) -> int:
        """The rank with the outputs, in this pipeline."""
        return self.rank - self.number + len(self.stages) - 1

    @property
    def peers(self) -> list[int]:
        """The ranks with the same layers, of all pipelines, this one included."""
        return [group * len(self.stages) + self.number for group in range(self.groups)]

    def part(self, count: int) -> slice:
        """Return which of so many things, in order, are this pipeline's."""
        bounds = [count * group // self.groups for group in (self.group, self.group + 1)]
        return slice(*bounds)

    def parts_of_groups(self, rows: Rows, micro_batch: int) -> list[Rows]:
        """Return the rows that each pipeline predicts: whole micro-batches, as one alone has."""
        blocks, found = -(-len(rows) // micro_batch), []
        for group in range(self.groups):
            part = self._replace(group=group).part(blocks)
            found.append(rows[part.start * micro_batch : part.stop * micro_batch])
        return found


class Edge:
    """A layer of another rank, as its neighbour knows it: nothing that takes memory to compute.

    Of the layer before the first of a stage that is what its activations' derivative needs; its
    biases' gradient is computed here. Of the one behind the last it is nothing.
    """

    is_stale = False
    kinds: tuple[str, ...] = ()

    def __init__(self, number: int, n_out: int, config: LayerConfig, srelu: Any = None) -> None:
        self.number, self.n_in, self.n_out = number, 0, n_out
        self.config, self.srelu = config, srelu
        self.slope = config.slope
        self.dead: NDArray[np.bool_] | None = None

    @classmethod
    def before(cls, network: NetworkConfig, k: int) -> Edge:
        """Return what is known of layer k (0 is the first hidden one) by the rank behind it."""
        config = LayerConfig.of(network, k)
        plain = LayerConfig(config.slope)  # shape and statistics are its owner's
        return cls(k + 2, network.layer_sizes[k + 1], plain, network.activation in TRAINED or None)

    @classmethod
    def behind(cls, k: int) -> Edge:
        """Return what is known of layer k by the rank before it."""
        return cls(k + 2, 0, LayerConfig(1.0))

    @property
    def parameters(self) -> LayerArrays:
        """Arrays of the shapes of what gradients are computed of here."""
        return {"bias": np.empty(self.n_out, dtype=np.float32)} if self.n_out else {}

    @property
    def nnz(self) -> int:
        """Its connections are others' business."""
        return 0

    def living(self) -> NDArray[np.int64]:
        """Return the numbers of the neurons that are not dead, ascending."""
        return np.arange(self.n_out) if self.dead is None else np.flatnonzero(~self.dead)
