"""Rates as networks grow, in the problems of others: Nerva's ladder, the Graph Challenge."""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from tqdm import tqdm

from largesparse import NetworkConfig, SparseMLP, Trainer, TrainingConfig
from largesparse.backends import BACKENDS
from largesparse.commands import info
from largesparse.errors import DataError
from largesparse.harness.radixnet import (
    BIASES,
    CEILING,
    RadixNet,
    generated_inputs,
    infer,
    radix_net,
)
from largesparse.machine.sizes import parse_size
from largesparse.machine.threads import resolve_threads
from largesparse.training.warming import warm_up

from . import add_figure, seconds_in_turns

NERVA = {1024: 626, 2048: 718, 4096: 650, 8192: 619, 16384: 267, 32768: 252}  # millions
N_FEATURES, N_CLASSES = 3072, 10
DEPTH = 3  # hidden layers


def width_ladder(options: argparse.Namespace) -> None:
    """Rates of training as layers become wider or deeper, beside those that Nerva's authors logged.

    CIFAR10-shaped data (3072 features, 10 classes; standard normal), 3 hidden layers, 1 % of the
    connections, mini-batches of 100, as in the Nerva paper (2024), whose logs give these rates for
    4 threads. A rate is connections times samples in a second of training steps: forward, backward
    and update, without loading of batches. Theirs are from another machine: the cores are in the
    output.
    """
    options.threads = resolve_threads(options.threads, "width_ladder")
    warm_up(options.backend, options.threads)
    cases = [(width, depth) for width in options.widths for depth in options.depths]
    rows = [width_row(*case, options) for case in tqdm(cases, unit="network", disable=None)]
    print(f"{info.cpu_model()}, backend {options.backend}, {options.threads} threads")
    print(pd.DataFrame(rows).to_string(index=False))


def width_row(width: int, depth: int, options: argparse.Namespace) -> dict[str, object]:
    """Return a row of the table."""
    sizes = (N_FEATURES, *[width] * depth, N_CLASSES)
    config = NetworkConfig(sizes, density=options.density, activation="relu")
    network = SparseMLP(config, threads=options.threads, progress=False)
    settings = {"batch_size": options.batch_size, "threads": options.threads}
    trainer = Trainer(network, TrainingConfig(**settings, backend=options.backend))
    rng = np.random.default_rng(0)
    X = rng.standard_normal((options.batch_size, N_FEATURES), dtype=np.float32)
    y = rng.integers(N_CLASSES, size=options.batch_size, dtype=np.int32)
    step = partial(trainer.step, X, y)
    seconds = seconds_in_turns({"step": step}, options.steps, warm_ups=1)["step"]
    low, middle, high = np.percentile(seconds, [25, 50, 75])
    work = network.connections * options.batch_size / 1e6
    logged = options.density == 0.01 and options.batch_size == 100 and depth == DEPTH
    return {
        "neurons a layer": width,
        "hidden layers": depth,
        "connections": f"{network.connections:,}",
        "step, ms": round(1000 * statistics.median(seconds), 2),
        "10^6/s": round(work / middle),
        "25 %": round(work / high),
        "75 %": round(work / low),
        "Nerva, 4 threads": NERVA.get(width, "") if logged else "",
    }


def graph_challenge(options: argparse.Namespace) -> None:
    """Inference through the networks of the Sparse DNN Graph Challenge, on generated data.

    Networks have the shape of RadiX-Net, with 32 connections a neuron and the challenge's biases;
    networks and inputs are generated here, so rates may be compared, and categories not. The rate
    is the challenge's: inputs times connections, whether they were computed or not, divided by the
    time. Beside it stands the rate of what was computed: rows that have become zero are dropped.
    The first rows are also computed with SciPy, and must agree. Public rates of one core of a Xeon
    of 2016 (LAGraph with SuiteSparse:GraphBLAS): 9.7 to 15.5 billion a second at 1024 neurons, 3.3
    to 3.7 at 65,536.
    """
    options.threads = resolve_threads(options.threads, "graph_challenge")
    cases = [(neurons, layers) for neurons in options.neurons for layers in options.layers]
    rows = []
    for neurons, layers in tqdm(cases, unit="network", disable=None):
        rows.append(challenge_row(radix_net(neurons, layers), options))
    print(f"{info.cpu_model()}, {options.threads} threads, {options.rows:,} generated rows")
    print(pd.DataFrame(rows).to_string(index=False))


def challenge_row(network: RadixNet, options: argparse.Namespace) -> dict[str, object]:
    """Return a row of the table."""
    X = generated_inputs(network.neurons, options.rows, seed=options.seed)
    checked = X[: options.check_rows]
    settings = {"batch_size": options.batch_size, "threads": options.threads}
    if not np.array_equal(infer(network, checked, **settings).rows, scipy_rows(network, checked)):
        raise DataError("The backend and SciPy differ in which rows are not zero at the end.")
    found: list[Any] = []
    infer_all = lambda: found.append(infer(network, X, **settings))  # noqa: E731
    seconds = seconds_in_turns({"infer": infer_all}, options.repeats)["infer"]
    middle = statistics.median(seconds)
    return {
        "neurons": network.neurons,
        "layers": len(network.layers),
        "connections": f"{network.connections:,}",
        "s": round(middle, 2),
        "spread, %": round(100 * (max(seconds) - min(seconds)) / middle),
        "10^9 edges/s": round(X.shape[0] * network.connections / middle / 1e9, 2),
        "computed": round(found[-1].edges / middle / 1e9, 2),
        "alive at the end, %": round(100 * len(found[-1].rows) / X.shape[0], 1),
    }


def scipy_rows(network: RadixNet, X: csr_array) -> np.ndarray:
    """Return which rows are not zero at the end, by products of sparse matrices."""
    Y = X.astype(np.float32)
    shape = network.neurons, network.neurons
    for layer in network.layers:
        by_output = csr_array((layer.values, layer.indices, layer.indptr), shape=shape)
        Y = csr_array(Y @ by_output.T)
        Y.data += np.float32(network.bias)  # where there is no signal, ReLU gives 0
        np.clip(Y.data, 0, CEILING, out=Y.data)
        Y.eliminate_zeros()
    return np.flatnonzero(np.diff(Y.indptr))


def add_figures(figures: Any) -> None:
    """Add width_ladder and graph_challenge."""
    add = add_figure(figures, "width_ladder", width_ladder).add_argument
    sizes = {"type": parse_size, "nargs": "+", "metavar": "N"}
    add("--widths", **sizes, default=list(NERVA), help="default 1024 2048 … 32768")
    add("--depths", **sizes, default=[DEPTH], help="hidden layers (default 3)")
    add("--density", type=float, default=0.01, help="share of connections (default %(default)s)")
    add("--batch-size", type=parse_size, default=100, metavar="N", help="default %(default)s")
    add("--backend", choices=BACKENDS, default="fused", help="default %(default)s")
    add("--threads", type=parse_size, metavar="N", help="default: all cores")
    add("--steps", type=parse_size, default=15, metavar="N", help="default %(default)s")
    add = add_figure(figures, "graph_challenge", graph_challenge).add_argument
    sizes = {"type": parse_size, "nargs": "+"}
    add("--neurons", **sizes, choices=sorted(BIASES), default=[1024], help="default 1024")
    add("--layers", **sizes, default=[120], help="the challenge has 120, 480, 1920; default 120")
    add("--rows", type=parse_size, default=60_000, help="inputs (default %(default)s)")
    add("--batch-size", type=parse_size, default=64, help="default %(default)s")
    add("--threads", type=parse_size, help="default: all cores")
    add("--repeats", type=parse_size, default=3, help="default %(default)s")
    add("--check-rows", type=parse_size, default=64, help="of SciPy's (default %(default)s)")
    add("--seed", type=int, default=0, help="of the inputs (default %(default)s)")
