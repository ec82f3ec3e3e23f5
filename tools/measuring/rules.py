"""Evolution by every rule."""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from functools import partial
from typing import Any

import numpy as np

from largesparse import NetworkConfig
from largesparse.harness.uncertainty import ratio_of
from largesparse.machine.sizes import parse_size, parse_sizes
from largesparse.machine.threads import kernel_threads
from largesparse.model.evolution import evolve
from largesparse.model.layer import SparseLayer, initial_layer
from largesparse.model.rule_state import RuleState
from largesparse.model.rules import DROPS, GROWTHS, Rules
from largesparse.randomness import stream

from . import add_common, add_figure, seconds_in_turns

ZETA = 0.3


def rules(options: argparse.Namespace) -> None:
    """Evolve a layer by every rule that is built in, next to SET's, in turns.

    By one thread it is the processor's time. Rules that ask for gradients are given those of a
    mini-batch of random numbers; to compute it is a forward and a backward pass more.
    """
    sizes = (*options.sizes, 2)
    config = NetworkConfig(sizes, epsilon=options.epsilon, seed=options.seed)
    n_in, n_out = options.sizes
    rng = stream(options.seed, "augmentation")
    X = rng.standard_normal((n_in, options.batch_size), dtype=np.float32)
    delta = rng.standard_normal((n_out, options.batch_size), dtype=np.float32)
    with kernel_threads(options.threads):
        layer = initial_layer(config, 0, options.threads)
        print(f"{layer!r}, batch {options.batch_size}, threads {options.threads}")

        def run(chosen: Rules) -> SparseLayer:
            own = copy.copy(layer)  # which shares the arrays: evolution makes new ones
            state = RuleState(own, ZETA, X=X, delta=delta)
            evolve(own, ZETA, stream(options.seed, "evolution"), rules=chosen, state=state)
            return own

        pairs = [("set", growth) for growth in GROWTHS]
        pairs += [(drop, "random") for drop in DROPS if drop != "set"]
        contestants = {pair: partial(run, Rules.of(*pair)) for pair in pairs}
        clock = time.process_time if options.threads == 1 else time.perf_counter
        seconds = seconds_in_turns(contestants, options.repeats, warm_ups=1, clock=clock)
    print(f"{'drop':>12}{'growth':>12}{'ms':>12}{'of SET':>9}")
    for pair in pairs:
        ratio = ratio_of(seconds[pair], seconds["set", "random"])
        median = 1e3 * statistics.median(seconds[pair])
        print(f"{pair[0]:>12}{pair[1]:>12}{median:>12.2f}{ratio:>9.2f}", flush=True)


def add_figures(figures: Any) -> None:
    """Add rules."""
    figure = add_figure(figures, "rules", rules)
    add_common(figure)
    add = figure.add_argument
    add("--sizes", type=parse_sizes, default=(784, 1000), help="inputs,outputs (784,1000)")
    add("--epsilon", type=float, default=20.0, help="default %(default)s")
    add("--batch-size", type=parse_size, default=128, help="default %(default)s")
    add("--repeats", type=parse_size, default=15, help="default %(default)s")
