"""What a training step takes: by its parts, the micro-batch, its options, after many idle ones."""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from tqdm import trange

from largesparse import NetworkConfig, SparseMLP, Trainer, TrainingConfig
from largesparse.backends import BACKENDS, get_backend
from largesparse.backends.limits import seconds_of
from largesparse.backends.operands import SGD, Derivative
from largesparse.errors import check_range
from largesparse.harness.presets import hidden_sizes
from largesparse.harness.uncertainty import ratio_of
from largesparse.machine.mapped_memory import aligned_zeros
from largesparse.machine.sizes import parse_size, parse_sizes
from largesparse.machine.threads import resolve_threads
from largesparse.model.workspace import ACTIVATION_DTYPES
from largesparse.training.memory import GIB, MicroBatching, activation_bytes
from largesparse.training.stepping import Stepper
from largesparse.training.warming import warm_up

from . import add_common, add_figure, seconds_in_turns

SETTINGS = "64 64/3 32 32/3 16 64/1/bfloat16 32/1/bfloat16 32/2/bfloat16"
LAYER_SIZES = (784, 1000, 1000, 1000, 10)
BATCH_SIZE = 128
ROUNDS = 31
TINY = np.finfo(np.float32).tiny
BFLOAT16_ONE = 0x3F80


def setting(text: str) -> MicroBatching:
    """Return the setting of a text such as 64, 64/2 or 64/1/bfloat16."""
    size, every, dtype, *rest = [*text.split("/"), *MicroBatching(0)[text.count("/") + 1 : 3]]
    if rest or dtype not in ACTIVATION_DTYPES:
        raise argparse.ArgumentTypeError(f"{text!r} is not M[/K[/DTYPE]], such as 64/2/bfloat16")
    return MicroBatching(parse_size(size), parse_size(str(every)), str(dtype))


def micro_batch(options: argparse.Namespace) -> None:
    """Time a gradient by the micro-batch, and by which activations are kept, and how.

    The settings take turns, in one process and on one network; medians per sample, relative to the
    first setting, with the bytes of the activations. `memory.micro_batchings` orders by this.
    """
    sizes = (options.features, *hidden_sizes(options.neurons, options.layers), 2)
    network = SparseMLP(NetworkConfig(sizes, epsilon=options.epsilon, recipe="width"))
    largest = max(each.micro_batch for each in options.settings)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((largest, options.features), dtype=np.float32)
    y = rng.integers(0, 2, largest).astype(np.int32)
    warm_up(options.backend)
    seconds: dict[MicroBatching, list[float]] = {each: [] for each in options.settings}
    for repeat in range(options.repeats + 1):
        for each in options.settings:
            size = each.micro_batch
            config = TrainingConfig(
                **each.settings(),
                batch_size=size,
                dropout=0.0,
                backend=options.backend,
                threads=options.threads,
            )
            stepper = Stepper(network, config)
            rows = np.arange(size)
            with stepper.backend.threads(stepper.threads):
                stepper.gradient(X, y, rows, plain=True)  # touches the memory
                started = time.perf_counter()
                stepper.gradient(X, y, rows, plain=True)
            if repeat:
                seconds[each].append((time.perf_counter() - started) / size)
            del stepper
    first = seconds[options.settings[0]]
    print(f"{network.neurons:,} neurons, {network.connections:,} connections, {options.backend}")
    print(f"{'micro-batch':<34}{'ms a sample':>13}{'GiB':>8}{'ratio':>8}")
    for each in options.settings:
        found = statistics.median(seconds[each])
        taken = activation_bytes(sizes, *each) / GIB
        ratio = ratio_of(seconds[each], first)
        print(f"{each!s:<34}{found * 1e3:>13.1f}{taken:>8.2f}{ratio:>8.2f}")


def idle_steps(options: argparse.Namespace) -> None:
    """Does a training become slower when nothing has happened to its connections for long?

    Two equal networks of FashionMNIST's shape are trained for a few steps. One of them then makes
    --steps more at learning rate 0, of which each multiplies the velocities by the momentum, 0.9:
    without a remedy they were subnormal numbers after about 900, and arithmetic with those is up to
    8 times slower. Then steps of both, still at rate 0, are timed in turns.

    Printed are, for each backend, the median times, the median of their ratios with its 95 %
    interval, and how many velocities are subnormal numbers.
    """
    check_range("--steps", options.steps, "idle_steps", low=1)
    rows = [after_idle_steps(backend, options.steps) for backend in options.backends]
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3g}".format))


def after_idle_steps(backend: str, steps: int) -> dict[str, object]:
    """Return a row of the table for one backend."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((BATCH_SIZE, LAYER_SIZES[0]), dtype=np.float32)
    y = rng.integers(LAYER_SIZES[-1], size=BATCH_SIZE)
    fresh, idle = (trained(backend, X, y) for _ in range(2))
    for _ in trange(steps, desc=backend, leave=False, disable=None):
        idle.step(X, y)
    times = [
        [seconds_of(partial(trainer.step, X, y), repeats=1) for trainer in (fresh, idle)]
        for _ in range(ROUNDS)
    ]
    fresh_s, idle_s = np.array(times).T
    velocities = np.concatenate([layer.velocity for layer in idle.network.layers])
    return {
        "backend": backend,
        "fresh, ms": 1e3 * np.median(fresh_s),
        f"after {steps}, ms": 1e3 * np.median(idle_s),
        "ratio": str(ratio_of(idle_s, fresh_s)),
        "subnormal": int(((velocities != 0) & (abs(velocities) < TINY)).sum()),
    }


def trained(backend: str, X: np.ndarray, y: np.ndarray) -> Trainer:
    """Return a trainer at learning rate 0 whose network another one has trained for 10 steps."""
    network = SparseMLP(NetworkConfig(LAYER_SIZES), threads=1, progress=False)
    settings = {"batch_size": BATCH_SIZE, "backend": backend, "threads": 1}
    trainer = Trainer(network, TrainingConfig(learning_rate=0.01, **settings))
    for _ in range(10):
        trainer.step(X, y)
    return Trainer(network, TrainingConfig(learning_rate=0, **settings))


STEP_OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of network and training
    "plain": ({}, {}),
    "label_smoothing=0.1": ({}, {"label_smoothing": 0.1}),
    "average_decay=0.999": ({}, {"average_decay": 0.999}),
    "activation='srelu'": ({"activation": "srelu"}, {}),
    "batch_norm=True": ({"batch_norm": True}, {}),
}


def step_options(options: argparse.Namespace) -> None:
    """Time a step of the FashionMNIST network with options of network and training, in turns."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((BATCH_SIZE, LAYER_SIZES[0]), dtype=np.float32)
    y = rng.integers(LAYER_SIZES[-1], size=BATCH_SIZE)
    contestants = {}
    for name, (network, training) in STEP_OPTIONS.items():
        made = SparseMLP(NetworkConfig(LAYER_SIZES, **network), threads=1, progress=False)
        given = {"batch_size": BATCH_SIZE, "backend": options.backend, "threads": options.threads}
        contestants[name] = partial(Trainer(made, TrainingConfig(**given | training)).step, X, y)
    seconds = seconds_in_turns(contestants, options.repeats, warm_ups=10)
    print(f"{'':<22}{'ms a step':>10}{'ratio':>8}")
    for name, found in seconds.items():
        ratio = ratio_of(found, seconds["plain"])
        print(f"{name:<22}{1e3 * statistics.median(found):>10.2f}{ratio:>8.2f}")


def layer_step(options: argparse.Namespace) -> None:
    """Time what a step does with one wide layer: its two passes, and the update of its weights.

    The parts take turns; medians, with the time a connection. The update is momentum SGD's, without
    and with the copy of the weights in output order that the next forward pass reads.
    """
    from largesparse.backends.kernels import momentum_update, momentum_update_reorder

    network = SparseMLP(
        NetworkConfig((*options.sizes, 2), epsilon=options.epsilon, recipe="width"), progress=False
    )
    layer, batch = network.layers[0], options.batch_size
    dtype = np.uint16 if options.activation_dtype == "bfloat16" else np.float32
    X, Z = (aligned_zeros((n, batch), dtype) for n in options.sizes)
    delta, below = (aligned_zeros(array.shape, dtype) for array in (Z, X))
    for array in (X, Z, delta, below):
        array[:] = BFLOAT16_ONE if dtype == np.uint16 else 1  # so that it has pages of its own
    words = (batch + 31) // 32
    states = [np.zeros((n, 2, words), dtype=np.uint32) for n in options.sizes]
    gradient, sums = np.zeros_like(layer.values), np.zeros(layer.n_in, dtype=np.float32)
    backend, topology = get_backend("fused"), layer.topology
    derivative = Derivative(np.float32(0.5), np.float32(1), states[0])
    sgd = SGD(np.float32(0), np.float32(0.9), np.float32(0), False)
    arrays = layer.values, layer.velocity, gradient, sgd
    outputs = {"out_gradient": gradient, "out_delta": below, "out_bias_gradient": sums}
    parts = {
        "forward pass": lambda: backend.forward(
            layer.by_output, layer.bias, X, slope=0.5, out=Z, state=states[1]
        ),
        "backward pass": lambda: backend.backward(
            layer.by_input, X, delta, derivative, accumulate=False, **outputs
        ),
        "update": lambda: momentum_update(*arrays),
        "update and copy": lambda: momentum_update_reorder(
            *arrays, topology.to_output_order, layer.values_by_output
        ),
    }
    with backend.threads(resolve_threads(options.threads, "layer_step")):
        seconds = seconds_in_turns(parts, options.repeats, warm_ups=1)
    step = sum(statistics.median(found) for name, found in seconds.items() if name != "update")
    print(f"{layer.nnz} connections, {batch} samples, {options.activation_dtype}")
    print(f"{'':<16}{'ms':>8}{'ns a connection':>17}{'of a step':>11}")
    for name, found in seconds.items():
        median = statistics.median(found)
        each, share = 1e9 * median / layer.nnz, median / step
        print(f"{name:<16}{1e3 * median:>8.1f}{each:>17.2f}{share:>10.0%}")


def add_figures(figures: Any) -> None:
    """Add layer_step, micro_batch, idle_steps and step_options."""
    figure = add_figure(figures, "layer_step", layer_step)
    add = figure.add_argument
    add("--sizes", type=parse_sizes, default=(5_000_000, 5_000_000), metavar="N,M", help="5M,5M")
    add("--epsilon", type=float, default=1.0, help="default %(default)s")
    add("--batch-size", type=parse_size, default=32, metavar="N", help="default %(default)s")
    add("--activation-dtype", choices=sorted(ACTIVATION_DTYPES), default="bfloat16")
    add("--threads", type=parse_size, metavar="N", help="default: all cores")
    add("--repeats", type=parse_size, default=9, metavar="N", help="default %(default)s")

    figure = add_figure(figures, "step_options", step_options)
    add_common(figure, backend="fused")
    figure.add_argument("--repeats", type=parse_size, default=300, help="default %(default)s")

    figure = add_figure(figures, "micro_batch", micro_batch)
    add = figure.add_argument
    add("--neurons", type=parse_size, default=20_000_000, metavar="N", help="default %(default)s")
    add("--layers", type=parse_size, default=4, metavar="N", help="default %(default)s")
    add("--epsilon", type=float, default=1.0, help="default %(default)s")
    add("--features", type=parse_size, default=4096, metavar="N", help="default %(default)s")
    add("--backend", choices=BACKENDS, default="fused", help="default %(default)s")
    add("--threads", type=parse_size, metavar="N", help="default: all cores")
    add("--repeats", type=parse_size, default=3, metavar="N", help="default %(default)s")
    add(
        "--settings",
        type=setting,
        nargs="+",
        default=[setting(text) for text in SETTINGS.split()],
        metavar="M[/K[/DTYPE]]",
        help=f"micro-batch, keep every K-th layer, float32 or bfloat16 (default {SETTINGS})",
    )
    add = add_figure(figures, "idle_steps", idle_steps).add_argument
    add("--steps", type=parse_size, default=5000, metavar="N", help="idle (default %(default)s)")
    add("--backends", nargs="+", choices=BACKENDS, default=BACKENDS, help="default: all")
