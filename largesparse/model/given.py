"""Topologies that are given, not drawn: of genes and pathways, of local fields, of other models.

Such a layer is *frozen*: its weights are trained, its connections stay. Or evolution replaces its
connections, anywhere (*free*) or *within* a set of candidate cells. Importance Pruning takes the
connections of the neurons that die, of any layer, and no others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..data.edges import read_edges
from ..data.frames import first_doubled
from ..errors import DataError, ParameterError, check_range
from .matrices import OWNER, cells_of, check_kind, is_frame, plain_matrix
from .topology import Topology

SHARE = 0.5  # of the candidates, that are drawn as the first connections

Evolution = Literal["frozen", "free", "within"]
EVOLUTIONS = get_args(Evolution)


@dataclass(frozen=True)
class GivenLayer:
    """What a configuration says of a layer whose connections were given."""

    connections: int  # of it at first
    evolution: Evolution
    candidates: int = 0  # cells in which connections may grow; "within"
    digest: str = ""  # of all that was given
    by_name: bool = False  # whether its inputs are known by their names alone


@dataclass(frozen=True, eq=False)
class GivenTopology:
    """The connections of a layer, and where evolution may put others.

    Parameters
    ----------
    connections : sparse matrix or array (n_in, n_out), data frame, Topology, or callable
        Those that the layer begins with. In a sparse matrix, too, zeros are none, and a cell that
        is there twice is one connection. A data frame is a matrix with the names of its rows and
        columns. A callable is given n_in (the number of `input_names`, where there are some), n_out
        and a NumPy generator, which follows from the network's seed, and returns a matrix, but no
        data frame.
    evolution : {"frozen", "free", "within"}
        Whether the connections stay, or are replaced by evolution; "within" only by those of
        `candidates`. By default "within" where candidates are given, else "frozen".
    candidates : as connections
        The cells in which connections may be. By default, if they evolve within it, what is given
        as `connections`. Where both are data frames, they have the same rows and columns.
    share : float in (0, 1], optional
        Of the candidates, that are drawn as the first connections where only candidates are given:
        by default one half.
    weights : bool
        Whether the values of `connections` are the initial weights: then a zero that is stored is
        a connection (but those of BSR blocks), and a cell that is there twice an error. By default
        they are drawn, as in any layer.
    input_names, output_names : sequence of str, optional
        Of rows and columns. Rows are found among a table's columns by their names; the names of
        columns become those of the layer's neurons.
    by_name : bool
        Whether inputs are known by their names alone, so that tables need them.

    Raises
    ------
    ParameterError, DataError
        Where these are not possible, or, as the network is made, do not fit it.

    Examples
    --------
    >>> given = GivenTopology.from_edges(["BRCA1", "TP53", "TP53"], ["repair", "repair", "cycle"])
    >>> given.shape, given.output_names
    ((2, 2), ('repair', 'cycle'))
    """

    connections: Any = None
    evolution: Evolution | None = None
    candidates: Any = None
    share: float | None = None
    weights: bool = False
    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None
    by_name: bool = False

    def __post_init__(self) -> None:
        def set_(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        if self.evolution is None:
            set_("evolution", "frozen" if self.candidates is None else "within")
        if self.evolution not in EVOLUTIONS:
            raise ParameterError(
                f"The 'evolution' parameter of {OWNER} must be one of {sorted(EVOLUTIONS)}. "
                f"Got {self.evolution!r} instead."
            )
        frames = [each for each in (self.connections, self.candidates) if is_frame(each)]
        for axis, name in enumerate(("input_names", "output_names")):
            found = [list(map(str, frame.axes[axis])) for frame in frames]
            if any(each != found[0] for each in found):
                raise DataError(
                    f"The data frames 'connections' and 'candidates' of {OWNER} must have the same "
                    "rows and columns. Bring them into one order: candidates.loc[index, columns]."
                )
            if found and getattr(self, name) is None:
                set_(name, found[0])
        for name in ("connections", "candidates"):
            if getattr(self, name) is not None:
                set_(name, plain_matrix(getattr(self, name)))
                check_kind(getattr(self, name), name)
        if self.evolution == "within" and self.candidates is None:
            if self.weights:
                raise ParameterError(
                    f"{OWNER} with evolution='within' draws the first connections from those that "
                    "are given. Leave their weights out (the third column of a file), or give "
                    "'candidates' too."
                )
            set_("candidates", self.connections)
            set_("connections", None)
        if (self.candidates is not None) != (self.evolution == "within"):
            raise ParameterError(
                f"The 'candidates' parameter of {OWNER} goes with evolution='within', which needs "
                f"it. Got evolution={self.evolution!r}."
            )
        if self.connections is None and self.candidates is None:
            raise ParameterError(f"{OWNER} needs 'connections' or 'candidates'.")
        if self.weights and self.connections is None:
            raise ParameterError(
                f"The 'weights' parameter of {OWNER} goes with 'connections', whose values they "
                "are. Give these, or leave it out."
            )
        if self.share is not None:
            check_range("share", self.share, OWNER, low=0, high=1, low_open=True)
            if self.connections is not None:
                raise ParameterError(
                    f"The 'share' parameter of {OWNER} is of the candidates that are drawn, where "
                    "no other connections are given. Leave it out."
                )
        for name in ("input_names", "output_names"):
            if (names := getattr(self, name)) is not None:
                if isinstance(names, str) or not isinstance(names, Iterable):
                    raise ParameterError(
                        f"The {name!r} parameter of {OWNER} must be a list of names. "
                        f"Got {names!r} instead."
                    )
                set_(name, tuple(map(str, names)))
                if (twice := first_doubled(list(getattr(self, name)))) is not None:
                    raise DataError(f"The {name!r} of {OWNER} have {twice!r} twice.")
        for axis, names in enumerate((self.input_names, self.output_names)):
            if names is not None and self.shape is not None and len(names) != self.shape[axis]:
                raise DataError(
                    f"{OWNER} has {len(names)} {('input', 'output')[axis]}_names for a matrix of "
                    f"shape {self.shape}. Give as many."
                )

    @classmethod
    def from_edges(
        cls,
        sources: Sequence[Any],
        targets: Sequence[Any],
        weights: Sequence[float] | None = None,
        **options: Any,
    ) -> GivenTopology:
        """Return the topology of connections by the names of what they lead from and to.

        Neurons are numbered as they come first. A connection that comes twice counts once, or is
        an error where there are weights, which are initial ones. `options` are those of the class.
        """
        from scipy.sparse import coo_array

        if len(sources) != len(targets) or (weights is not None and len(weights) != len(sources)):
            raise DataError("Connections need as many sources as targets, and as weights if any.")
        (inputs, rows), (outputs, columns) = _number(sources), _number(targets)
        try:
            values = np.ones(len(rows), bool) if weights is None else np.asarray(weights, float)
        except (TypeError, ValueError) as error:
            raise DataError(f"The weights of connections must be numbers: {error}.") from error
        shape = len(inputs), len(outputs)
        names: dict[str, Any] = {"input_names": inputs, "output_names": outputs, "by_name": True}
        matrix = coo_array((values, (rows, columns)), shape=shape)
        if weights is not None:
            cells_of(matrix, True, inputs, outputs)  # tells doubled ones by their names
        return cls(matrix, weights=weights is not None, **names | options)

    @classmethod
    def read(cls, path: str | Path, **options: Any) -> GivenTopology:
        """Return the topology of a list of connections in a file: see `edges.read_edges`."""
        edges = read_edges(path)
        try:
            return cls.from_edges(*edges, **options)
        except (DataError, ParameterError) as error:
            raise type(error)(f"{path}: {error}") from None

    @property
    def shape(self) -> tuple[int, int] | None:
        """Inputs and outputs of the matrix; None where a callable returns it."""
        matrix = self.candidates if self.connections is None else self.connections
        if isinstance(matrix, Topology):
            return matrix.n_in, matrix.n_out
        return None if callable(matrix) else tuple(matrix.shape)

    @property
    def n_out(self) -> int | None:
        """Neurons of the layer, where that is known without a network."""
        return None if self.shape is None else self.shape[1]

    def __repr__(self) -> str:
        shape = "callable" if self.shape is None else "{} x {}".format(*self.shape)
        return f"{type(self).__name__}({shape}, {self.evolution})"


def _number(names: Sequence[Any]) -> tuple[list[str], NDArray[np.int64]]:
    """Return the distinct names in their order, and the number of each name's place there."""
    numbers: dict[str, int] = {}
    found = [numbers.setdefault(str(name), len(numbers)) for name in names]
    return list(numbers), np.array(found, dtype=np.int64)


def receptive_fields(height: int, width: int, size: int, stride: int = 1) -> Any:
    """Return the pattern of neurons that each see a square of an image, as a bool CSR.

    It is (height·width, n_out) with pixels row by row. Neurons stand `stride` pixels apart, at
    ⌈height/stride⌉ · ⌈width/stride⌉ places, each in the middle of its square of `size` pixels a
    side, which ends at the border.

    Examples
    --------
    >>> receptive_fields(28, 28, 5, stride=2).shape
    (784, 196)
    """
    from scipy.sparse import csc_array, csr_array, kron

    for name, value in {"height": height, "width": width, "size": size, "stride": stride}.items():
        check_range(name, value, "receptive_fields", low=1, integer=True)

    def along(length: int) -> csc_array:
        first = np.arange(0, length, stride) - size // 2
        ends, first = np.minimum(first + size, length), np.maximum(first, 0)
        indptr = np.concatenate([[0], np.cumsum(ends - first)])
        places = np.arange(indptr[-1]) + np.repeat(first - indptr[:-1], ends - first)
        ones = np.ones(len(places), dtype=bool)
        return csc_array((ones, places, indptr), shape=(length, len(first)))

    return csr_array(kron(along(height), along(width)), dtype=bool)
