"""The forward and backward passes of a stage, micro-batch by micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...backends.base import Backend
from ...backends.operands import Dropout
from ...model.backward import (
    backward_inputs,
    backward_layer,
    begin_backward,
    through_activation_,
)
from ...model.folding import fold_layers
from ...model.forward import forward
from ...model.layer import SparseLayer
from ...model.network import Visit
from .flow import ACTIVATIONS, BIASES, DELTAS, Incoming, Links, Outgoing
from .stage import Edge, Place
from .workspace import StageWorkspace

Rows = NDArray[np.int64]


@dataclass
class Passes:
    """What the passes of a rank go through: its layers between the edges to its neighbours."""

    place: Place
    links: Links
    before: Edge | None
    behind: Edge | None
    layers: Sequence[SparseLayer]
    workspace: StageWorkspace
    backend: Backend

    @property
    def chain(self) -> list[Any]:
        """The layers, with the edges."""
        return [
            *([] if self.before is None else [self.before]),
            *self.layers,
            *([] if self.behind is None else [self.behind]),
        ]

    @property
    def shift(self) -> int:
        """The place of the first own layer in the chain."""
        return int(self.before is not None)

    @property
    def own(self) -> range:
        """The places of the own layers in the chain."""
        return range(self.shift, self.shift + len(self.layers))

    def incoming(self, sizes: Sequence[int], *, training: bool = True) -> Incoming | None:
        """Return the activations that come, of micro-batches of these sizes."""
        if self.place.before is None:
            return None
        space = self.workspace
        return Incoming(
            self.links,
            (self.place.before, ACTIVATIONS),
            lambda i: space.arriving(i, sizes[i], training=training),
            space.arrivals,
            len(sizes),
        )

    def outgoing(self) -> Outgoing | None:
        """Return what sends activations on."""
        behind = self.place.behind
        return None if behind is None else Outgoing(self.links, (behind, ACTIVATIONS))

    def forward(
        self, chain: Sequence[Any], batch: int, going: Outgoing | None, number: int, **how: Any
    ) -> Any:
        """Compute the activations of a micro-batch; return the last layer's.

        What goes to the rank behind has one buffer, which the micro-batch before may still use.
        """
        given = chain, self.workspace, batch, self.backend
        how["prefetch"] = self.links.advance
        if going is None:
            return forward(*given, numbers=self.own, **how)
        if len(self.own) > 1:
            forward(*given, numbers=self.own[:-1], **how)
        going.finish(number - 1)
        return forward(*given, numbers=self.own[-1:], **how)


class TrainingPasses:
    """The passes of one mini-batch, whose micro-batches have these sizes."""

    def __init__(self, passes: Passes, sizes: Sequence[int], visit: Visit | None = None) -> None:
        self.passes, self.sizes, self.visit = passes, sizes, visit
        self.workspace, self.chain = passes.workspace, passes.chain
        self.dropouts: dict[int, Dropout] = {}
        self._coming, self._going = passes.incoming(sizes), passes.outgoing()
        place, links = passes.place, passes.links
        self._deltas_back = None
        if place.before is not None:
            self._deltas_back = Outgoing(links, (place.before, DELTAS))
        self._deltas = None
        if place.behind is not None:
            top, space = passes.own[-1], self.workspace
            self._deltas = Incoming(
                links,
                (place.behind, DELTAS),
                lambda i: [space.delta(top, sizes[i])],
                1,
                len(sizes),
            )

    def forward(self, number: int, dropout: Dropout, weights: Any) -> Any:
        """Compute the activations of a micro-batch; return the logits where they are here."""
        passes, batch = self.passes, self.sizes[number]
        if self._coming is not None:
            self._coming.take(number)
        self.dropouts[number] = dropout
        how: dict[str, Any] = {"training": True, "dropout": dropout, "weights": weights}
        out = passes.forward(self.chain, batch, self._going, number, **how)
        if self._going is None:
            return out
        self._going.send(number, self.workspace.leaving(passes.own[-1], batch))
        return None

    def backward(
        self, number: int, delta: Any, weights: Any, part: float, touched_only: bool = False
    ) -> None:
        """Compute the gradients of a micro-batch; `delta` is dL/dz of the outputs, if here."""
        passes, space, batch = self.passes, self.workspace, self.sizes[number]
        dropout, accumulate = self.dropouts.pop(number), number > 0
        space.turn_to_(number)
        samples = weights, part
        top = passes.own[-1]
        if self._deltas is None:
            begin_backward(self.chain, space, delta, accumulate, weights)
        else:
            self._deltas.take(number)
            delta = space.delta(top, batch)
            through_activation_(self.chain[top], top, space, delta, dropout, accumulate, samples)
        if self._deltas_back is not None:
            self._deltas_back.finish(number - 1)  # which lies in a buffer of this pass
        for k in range(top, 0, -1):
            below = self.chain[k - 1]
            given: Any = (below, k, space, delta, passes.backend, dropout, accumulate)
            out = backward_layer(self.chain[k], *given)
            if k > passes.shift:
                through_activation_(below, k - 1, space, out, dropout, accumulate, samples)
            if self.visit is not None:
                self.visit(k - passes.shift, space.activations(k - 1, batch), delta)
            delta = out
            if k == top and self._deltas is not None:
                self._deltas.release()
            passes.links.advance()
        if self._deltas_back is not None:
            self._deltas_back.send(number, [delta])
        else:
            backward_inputs(self.chain[0], space, delta, accumulate, touched_only)
            if self.visit is not None:
                self.visit(0, space.below(0, batch), delta)
            if top == 0 and self._deltas is not None:
                self._deltas.release()
        if self._coming is not None:
            self._coming.release()

    def finish(self) -> None:
        """Hand on the gradient of biases that is computed behind the layer that has them."""
        passes, gradients = self.passes, self.workspace.by_layer
        place, links = passes.place, passes.links
        last = None
        if passes.before is not None and passes.before.srelu is None:
            assert place.before is not None
            last = links.send([gradients[0]["bias"]], place.before, BIASES)
        top = passes.own[-1]
        if place.behind is not None and self.chain[top].srelu is None:
            links.wait(links.receive([gradients[top]["bias"]], place.behind, BIASES))
        if last is not None:
            links.wait(last)
        for sent in (self._going, self._deltas_back):
            if sent is not None:
                sent.finish()


def predict(passes: Passes, sizes: Sequence[int], load: Any, take: Any) -> None:
    """Pass micro-batches of these sizes through the pipeline, without dropout.

    `load(number)` has the first stage's inputs in the workspace; `take(number, logits)` is called
    where the outputs are.
    """
    space = passes.workspace
    coming, going = passes.incoming(sizes, training=False), passes.outgoing()
    shift = passes.shift
    chain = passes.chain
    chain[shift : shift + len(passes.layers)] = fold_layers(passes.layers)
    for number, batch in enumerate(sizes):
        space.turn_to_(number)
        if coming is None:
            load(number)
        else:
            coming.take(number)
        out = passes.forward(chain, batch, going, number)
        if going is None:
            take(number, out)
        else:
            going.send(number, space.leaving(passes.own[-1], batch, training=False))
        if coming is not None:
            coming.release()
    if going is not None:
        going.finish()
