"""What parallel training reaches: accuracy, staleness, speed, applying a gradient.

Trainings by ranks are jobs of `mpiexec`, one after another. The network is that of Table 7 for
FashionMNIST; the data lie in LARGESPARSE_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from largesparse import NetworkConfig, SparseMLP, TrainingConfig, load_dataset
from largesparse.backends import BACKENDS
from largesparse.errors import LargeSparseError
from largesparse.harness.uncertainty import ratio_of
from largesparse.machine.launching import start_ranks
from largesparse.machine.mapped_memory import Arena, Segment
from largesparse.machine.sizes import parse_size
from largesparse.machine.threads import kernel_threads
from largesparse.parallel import train_wasap, train_wassp
from largesparse.parallel.shared.slots import Slot
from largesparse.parallel.shared.weights import (
    ServerLayer,
    Shape,
    SharedTopology,
    SharedWeights,
    shared_size,
)
from largesparse.training.warming import warm_up

from . import PROGRAM, add_figure, seconds_in_turns

SIZES = (784, 1000, 1000, 1000, 10)
STALENESS = {2: "0", 3: "1", 6: "4", 16: "14"}  # ranks: nominal staleness, with a slot a worker


def train(options: argparse.Namespace) -> None:
    """Train once, in a job of MPI, and write what was reached to a file."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    config = TrainingConfig(
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=0.01,
        dropout=0.3,
        weight_decay=0.0,
        zeta_decay=0.92,
        seed=options.seed,
        backend=options.backend,
        threads=1,
    )
    network = X = y = test = None
    if comm.rank == 0:
        data = load_dataset("fashion_mnist")
        X, y, test = data.X_train, data.y_train, (data.X_test, data.y_test)
        network = SparseMLP(NetworkConfig(SIZES, epsilon=20, regrowth="zero", seed=options.seed))
        warm_up(options.backend)
    shared: dict[str, Any] = {
        "phase_one_epochs": options.phase_one_epochs,
        "test": test,
        "progress": False,
        "slots": options.slots,
    }
    if options.algorithm in ("wassp", "allreduce"):
        shared["server"] = options.algorithm == "wassp"
        history = train_wassp(network, config, X, y, **shared)
    else:
        shared["staleness_power"] = options.staleness_power
        history = train_wasap(network, config, X, y, **shared)
    if comm.rank > 0:
        return
    found = {
        "accuracy": history["test_accuracy"],
        "epoch_s": history["epoch_s"][1:],
        "mean_staleness": None,
        "max_staleness": None,
        "phase_one_s": None,
        "phase_two_s": None,
    }
    if history.parallel is not None:
        for name in ("mean_staleness", "max_staleness", "phase_one_s", "phase_two_s"):
            found[name] = getattr(history.parallel, name)
    Path(options.out).write_text(json.dumps(found), encoding="utf-8")


def start(ranks: int, options: argparse.Namespace, **settings: Any) -> dict[str, Any]:
    """Run `train` on so many ranks, and return what it wrote."""
    merged = {"seed": options.seed, "backend": options.backend, **settings}
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "found.json")
        command = [*start_ranks(ranks), *PROGRAM, "train", "--out", out]
        for name, value in merged.items():
            if value is not None:
                command += ["--" + name.replace("_", "-"), str(value)]
        if code := subprocess.run(command, check=False).returncode:
            raise LargeSparseError(f"The training by {ranks} ranks failed with {code}: see above.")
        found: dict[str, Any] = json.loads(Path(out).read_text(encoding="utf-8"))
    return found


def accuracy(options: argparse.Namespace) -> None:
    """Compare sequential training, WASAP and WASSP at the same number of epochs."""
    epochs, one = options.epochs, options.phase_one_epochs
    print(f"FashionMNIST, {epochs} epochs, {one} of them in phase one, {options.ranks} ranks")
    print(f"{'':<12}{'final':>8}{'best':>8}{'phase one':>11}{'phase two':>11}{'staleness':>11}")
    for algorithm in options.algorithms:
        ranks = 1 if algorithm == "sequential" else options.ranks
        name = "wasap" if algorithm == "sequential" else algorithm
        settings = {"algorithm": name, "epochs": epochs, "phase_one_epochs": one}
        found = start(ranks, options, slots=options.slots, **settings)
        reached = [a for a in found["accuracy"][1:] if a is not None]
        if algorithm == "sequential":
            found |= {"phase_one_s": sum(found["epoch_s"][:one])}
            found |= {"phase_two_s": sum(found["epoch_s"][one:]), "mean_staleness": 0.0}
        print(
            f"{algorithm:<12}{reached[-1]:>8.4f}{max(reached):>8.4f}{found['phase_one_s']:>9.1f} s"
            f"{found['phase_two_s']:>9.1f} s{found['mean_staleness']:>11.2f}",
            flush=True,
        )


def staleness(options: argparse.Namespace) -> None:
    """Accuracy of phase one alone with more and more gradients on their way."""
    print(f"FashionMNIST, {options.epochs} epochs of phase one, a slot a worker")
    print(f"{'workers':>8}{'power':>7}{'mean':>8}{'max':>6}{'final':>9}{'best':>8}")
    for ranks in STALENESS:
        for power in options.powers:
            if ranks == 2 and power:
                continue  # there is no staleness
            found = start(
                ranks,
                options,
                algorithm="wasap",
                epochs=options.epochs,
                phase_one_epochs=options.epochs,
                slots=ranks - 1,
                staleness_power=power,
            )
            reached = [a for a in found["accuracy"][1:] if a is not None]
            print(
                f"{ranks - 1:>8}{power:>7g}{found['mean_staleness']:>8.2f}"
                f"{found['max_staleness']:>6}{reached[-1]:>9.4f}{max(reached):>8.4f}",
                flush=True,
            )


def speed(options: argparse.Namespace) -> None:
    """Time an epoch by 3 ranks and by one thread, alternating; ratios of neighbours.

    Beside them half of an epoch's time where as many single trainings as workers run at once: what
    the cores allow when nothing is exchanged.
    """
    settings = {"epochs": options.epochs, "phase_one_epochs": options.epochs}
    times: dict[str, list[float]] = {"alone": [], "together": [], "at once": []}

    def epoch_s(ranks: int) -> float:
        found = start(ranks, options, algorithm="wasap", slots=options.slots, **settings)
        return statistics.median(found["epoch_s"])

    workers = options.ranks - 1
    for repeat in range(options.repeats):
        alone, together = epoch_s(1), epoch_s(options.ranks)
        with ThreadPoolExecutor(workers) as pool:
            at_once = statistics.mean(pool.map(epoch_s, [1] * workers)) / workers
        for name, seconds in zip(times, (alone, together, at_once), strict=True):
            times[name].append(seconds)
        print(
            f"repeat {repeat + 1}: one thread {alone:.2f} s, {options.ranks} ranks "
            f"{together:.2f} s an epoch: {together / alone:.2f}; {workers} trainings at once "
            f"{at_once:.2f} s: {at_once / alone:.2f}",
            flush=True,
        )
    ratios = [str(ratio_of(times[name], times["alone"])) for name in ("together", "at once")]
    print(f"median ratios {', '.join(ratios)}")


def apply(options: argparse.Namespace) -> None:
    """Time the update by a gradient that lies in a slot, as the server makes it."""
    width = options.connections // 2
    network = SparseMLP(NetworkConfig((1000, width, 2), epsilon=1.0), threads=2)
    shape = Shape.of(network, 1)
    topology = SharedTopology(shape, _arena(SharedTopology, shape))
    segment = Segment.create(shared_size(SharedWeights, shape))
    weights = SharedWeights(shape, Arena(segment.buffer), segment)
    for k, layer in enumerate(network.layers):
        network.layers[k] = ServerLayer(layer, k, topology, weights)
    slot = Slot(shape, topology, _arena(Slot, shape, topology))
    slot.take(weights)
    for array in slot.workspace.arrays():
        array[...] = 1e-3
    optimizer = TrainingConfig().optimizer_at()
    print(f"{network.connections:,} connections")

    def update(threads: int) -> None:
        with weights.writing(), kernel_threads(threads):
            network.update_(slot.workspace, optimizer, 0.01, both_orders=False)

    calls = {threads: partial(update, threads) for threads in (1, 2)}
    for threads, seconds in seconds_in_turns(calls, options.repeats).items():
        print(f"threads {threads}: median {statistics.median(seconds) * 1e3:.1f} ms")


def _arena(kind: Any, *arguments: Any) -> Arena:
    return Arena(Segment.create(shared_size(kind, *arguments)).buffer)


def add_figures(figures: Any) -> None:
    """Add accuracy, staleness, speed, apply, and train, which the others start."""
    compared = add(figures, "accuracy", accuracy)
    add_number(compared, "--epochs", 60, "of the training")
    add_number(compared, "--phase-one-epochs", 40, "of these in phase one")
    add_number(compared, "--ranks", 6, "of the parallel runs")
    add_number(compared, "--slots", None, "gradients at a time; default: the cores")
    algorithms = ["sequential", "wasap", "wassp", "allreduce"]
    compared.add_argument("--algorithms", nargs="+", choices=algorithms, default=algorithms[:3])
    stale = add(figures, "staleness", staleness)
    add_number(stale, "--epochs", 10, "of phase one; there is no phase two")
    stale.add_argument("--powers", nargs="+", type=float, default=[0.0, 1.0], help="of (1 + s)")
    timed = add(figures, "speed", speed)
    add_number(timed, "--ranks", 3, "beside one thread alone")
    add_number(timed, "--epochs", 4, "of each run")
    add_number(timed, "--slots", None, "of the parallel run, as for train_wasap")
    add_number(timed, "--repeats", 7, "of the pair")
    applied = add(figures, "apply", apply)
    add_number(applied, "--connections", 10_000_000, "of the network")
    add_number(applied, "--repeats", 21, "of the update")
    one = add(figures, "train", train)
    one.add_argument("--algorithm", choices=algorithms[1:], default="wasap")
    one.add_argument("--staleness-power", type=float, default=0.0)
    one.add_argument("--out", required=True, metavar="FILE", help="receives the figures as JSON")
    for name, default in (("--epochs", 2), ("--phase-one-epochs", None), ("--batch-size", 128)):
        add_number(one, name, default, "as for train_wasap")
    add_number(one, "--slots", None, "as for train_wasap")


def add(figures: Any, name: str, run: Any) -> argparse.ArgumentParser:
    """Add a figure with the flags that all of these have."""
    figure = add_figure(figures, name, run)
    figure.add_argument("--backend", choices=BACKENDS, default="fused", help="default fused")
    figure.add_argument("--seed", type=int, default=0, help="default %(default)s")
    return figure


def add_number(figure: argparse.ArgumentParser, name: str, default: Any, text: str) -> None:
    """Add a flag that takes a whole number."""
    shown = "" if default is None else " (default %(default)s)"
    figure.add_argument(name, type=parse_size, default=default, metavar="N", help=text + shown)
