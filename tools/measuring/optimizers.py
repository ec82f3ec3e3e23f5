"""What an optimizer's step costs, and what the counts of Adam's updates do after an evolution."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import statistics
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from largesparse import NetworkConfig, SparseMLP, Trainer, TrainingConfig, load_dataset
from largesparse.commands.learning_curve import check_plot
from largesparse.harness.uncertainty import ratio_of
from largesparse.machine.environment import expand_user
from largesparse.machine.sizes import parse_size
from largesparse.model.optimizer import OPTIMIZERS
from largesparse.training.warming import warm_up

from . import add_common, add_figure, seconds_in_turns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FASHION = (784, 1000, 1000, 1000, 10)
# name -> sizes, network, samples of a mini-batch
NETS: dict[str, tuple[tuple[int, ...], dict[str, Any], int]] = {
    "fashion": (FASHION, {"epsilon": 20}, 128),
    "large": ((65_536, 5_000_000, 5_000_000, 2), {"epsilon": 1, "recipe": "width"}, 32),
}
AFTER = 20  # updates after an evolution
SHOWN_ROWS = 10_000  # whose loss is shown after each
LABELS = {
    "connection": "count of each connection",
    "global": "count of the training",
    "no evolution": "no evolution",
}


def optimizers(options: argparse.Namespace) -> None:
    """Time a step of each optimizer, next to momentum SGD's; or --evolution.

    The optimizers take turns, in one process, each on a copy of one network. The ratio is the
    median of those of neighbouring turns.

    With --evolution FashionMNIST is trained by AdamW for some epochs, and evolves. Then come 20
    updates with the count of each connection, with the count of the training, and without having
    evolved. Shown is the loss of 10,000 training rows: mean and standard deviation over seeds.
    """
    if options.evolution:
        return after_evolution(options)
    sizes, network, batch_size = NETS[options.net]
    names = options.optimizers
    for name in names:
        warm_up(options.backend, options.threads, optimizer=name)
    net = SparseMLP(NetworkConfig(sizes, **network), threads=options.threads)
    rng = np.random.default_rng(options.seed)
    X = rng.standard_normal((batch_size, sizes[0]), dtype=np.float32)
    y = rng.integers(0, sizes[-1], batch_size).astype(np.int32)
    trainers = {}
    for name in names:
        training = TrainingConfig(
            optimizer=name,
            batch_size=batch_size,
            learning_rate=1e-5,
            clip_norm=options.clip_norm,
            backend=options.backend,
            threads=options.threads,
        )
        own = SparseMLP.from_layers(net.config, [layer.copy() for layer in net.layers])
        shared = trainers[names[0]].workspace if trainers else None
        trainers[name] = Trainer(own, training, workspace=shared)
    steps = {name: partial(trainer.step, X, y) for name, trainer in trainers.items()}
    seconds = seconds_in_turns(steps, options.repeats, warm_ups=2)
    print(f"{net!r}, mini-batches of {batch_size}, {options.backend}, {options.threads} thread(s)")
    print(f"{'optimizer':<12}{'ms a step':>12}{'next to ' + names[0]:>16}")
    for name in names:
        ratio = ratio_of(seconds[name], seconds[names[0]])
        print(f"{name:<12}{1e3 * statistics.median(seconds[name]):>12.3f}{ratio:>16.3f}")


def after_evolution(options: argparse.Namespace) -> None:
    """Print the loss over the updates after an evolution, by how Adam's are counted."""
    if options.plot:
        check_plot(options.plot)
    data = load_dataset("fashion_mnist")
    rows = [row for seed in range(options.seeds) for row in losses(data, seed, options)]
    table = pd.DataFrame(rows).groupby(["update", "counts"], sort=False)["loss"]
    shown = table.agg(["mean", "std"]).unstack()
    if options.plot:
        plot_losses(shown).savefig(expand_user(options.plot), dpi=150)
    shown.index = [f"{update}" for update in shown.index]
    print(shown.round(4).to_string())


def plot_losses(table: pd.DataFrame) -> Figure:
    """Draw the means by the updates, with a standard deviation to either side.

    The table has a row for every number of updates, and columns (mean or std, counts).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for counts, label in LABELS.items():
        mean, std = table["mean", counts], table["std", counts].fillna(0)
        (line,) = axes.plot(table.index, mean, marker=".", label=label)
        axes.fill_between(table.index, mean - std, mean + std, color=line.get_color(), alpha=0.2)
    axes.set(xlabel="updates after an evolution", ylabel=f"loss of {SHOWN_ROWS:,} training rows")
    axes.set(xticks=range(0, AFTER + 1, 2), title="AdamW on FashionMNIST")
    axes.legend()
    return figure


def losses(data: Any, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the losses on training rows after each of the updates that follow an evolution."""
    X, y = data.X_train, data.y_train
    training = TrainingConfig(
        epochs=options.epochs,
        optimizer="adamw",
        learning_rate=options.learning_rate,
        dropout=0.0,
        zeta=options.zeta,
        loss_rows=0,
        seed=seed,
        backend=options.backend,
        threads=options.threads,
    )
    config = NetworkConfig(FASHION, epsilon=20, regrowth=options.regrowth, seed=seed)
    trained = Trainer(SparseMLP(config), training)
    trained.fit(X, y, progress=False)
    order = np.random.default_rng(seed).permutation(len(y))
    shown, parts = np.sort(order[:SHOWN_ROWS]), np.split(order[-128 * AFTER :], AFTER)
    found = []
    for counts in LABELS:
        network = copy.copy(trained.network)
        network.layers = [layer.copy() for layer in network.layers]
        changed = {"step_counts": counts} if counts == "global" else {}
        trainer = Trainer(network, dataclasses.replace(training, **changed), state=trained.state)
        if counts != "no evolution":
            trainer.evolve()
        for update in range(AFTER + 1):
            if update:
                trainer.step(X, y, np.sort(parts[update - 1]))
            loss = trainer.evaluate(X, y, shown)[0]
            found.append({"counts": counts, "update": update, "loss": loss})
    return found


def add_figures(figures: Any) -> None:
    """Add optimizers."""
    figure = add_figure(figures, "optimizers", optimizers)
    add_common(figure, "fused")
    add = figure.add_argument
    add("--net", choices=NETS, default="fashion", help="default %(default)s")
    add("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS), metavar="NAME",
        help="compared with the first (default: all)")  # fmt: skip
    add("--clip-norm", type=float, metavar="NORM", help="clip the gradients of all")
    add("--repeats", type=parse_size, default=51, metavar="N", help="default %(default)s")
    add("--evolution", action="store_true", help="the loss after an evolution")
    add("--plot", metavar="FILE", help="of --evolution: also as a picture (needs matplotlib)")
    add("--epochs", type=parse_size, default=3, metavar="N", help="before it; default %(default)s")
    add("--learning-rate", type=float, default=1e-3, help="default %(default)s")
    add("--zeta", type=float, default=0.3, help="default %(default)s")
    add("--regrowth", choices=("initial", "zero"), default="zero", help="default %(default)s")
    add("--seeds", type=parse_size, default=3, metavar="N", help="default %(default)s")
