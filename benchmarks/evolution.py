"""SET evolution: prune and regrow."""

from __future__ import annotations

import copy

import numpy as np

from .common import SIZES, beside_scipy, connections_of, find, make_network, warm_up

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


class Relative:
    """The time of an evolution of that layer over that of its product by SciPy, in turns."""

    params = (SIZES[:1],)
    param_names = ("neurons",)

    def track_evolve(self, neurons):
        warm_up()
        layer = copy.deepcopy(make_network(neurons).layers[1])
        rng = np.random.default_rng(0)
        evolution, product = beside_scipy(lambda: evolve(layer, ZETA, rng), layer)
        return float(np.median(evolution / product))

    track_evolve.unit = "x SciPy's product"
    track_evolve.pretty_name = "SET evolution over SciPy's product"
