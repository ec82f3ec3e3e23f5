"""SET evolution: prune and regrow."""

from __future__ import annotations

import numpy as np

from .common import SIZES, connections_of, find, make_network, warm_up

evolve = find("model.evolution.evolve")
ZETA = 0.3


class Evolution:
    """The time to evolve the layer between the first two hidden layers."""

    params = (SIZES,)
    param_names = ("neurons",)

    def setup(self, neurons):
        warm_up()
        self.layer = make_network(neurons).layers[1]
        self.start = connections_of(self.layer)

    def time_evolve(self, neurons):
        evolve(self.layer, ZETA, np.random.default_rng(0))

    time_evolve.pretty_name = "SET evolution of a layer, time"

    def teardown(self, neurons):
        self.layer.replace(*self.start)  # evolution makes new arrays: these are as they were
