"""Importance Pruning: the neurons of little importance go (Algorithm 2)."""

from __future__ import annotations

from largesparse import prune_neurons

from .common import SIZES, connections_of, make_network, warm_up

PERCENTILE = 10


class Pruning:
    """The time to prune a tenth of every hidden layer's neurons."""

    params = (SIZES,)
    param_names = ("neurons",)
    number = 1  # the second pruning of a network would remove fewer

    def setup(self, neurons):
        warm_up()
        self.network = make_network(neurons)
        self.start = [_state(layer) for layer in self.network.layers]

    def time_prune_neurons(self, neurons):
        prune_neurons(self.network, PERCENTILE)

    time_prune_neurons.pretty_name = "Importance Pruning of a tenth of the neurons, time"

    def teardown(self, neurons):
        for layer, (arrays, bias, dead) in zip(self.network.layers, self.start, strict=True):
            layer.replace(*arrays)
            layer.bias[:] = bias
            layer.dead = dead


def _state(layer):
    dead = None if layer.dead is None else layer.dead.copy()
    return connections_of(layer), layer.bias.copy(), dead
