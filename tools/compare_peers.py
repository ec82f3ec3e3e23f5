"""Time one training step of largesparse beside what one would use instead, in the same run.

    pip install ".[peers]"                                    # PyTorch and SparseLab, both optional
    python tools/compare_peers.py                             # the FashionMNIST net, one thread
    python tools/compare_peers.py --preset all --json peers.json
    python tools/compare_peers.py --preset cifar,madelon --peers sparselab --backends mkl
    python tools/compare_peers.py --layers 784,1000,10 --epsilon 20 --batch-size 128 --threads 2
    python tools/compare_peers.py --preset cifar --peers none --threads 2 --products --scaling
    python tools/compare_peers.py --check-noise               # how small a difference can be told

A step is forward with dropout, softmax cross-entropy, backward and update with momentum and weight
decay, in float32. All have the same layer sizes, All-ReLU slopes, batches, threads and expected
density of each layer (Erdős–Rényi, p = min(1, ε(n_in+n_out)/(n_in·n_out))).

  torch      dense nn.Linear layers; a 0/1 mask zeroes the weights once a step, after the update
  sparselab  sparselab.SparseLinear layers, nn.Linear where the density is 1, as in its examples
  sklearn    MLPClassifier.partial_fit: dense, with ReLU, without dropout
  scipy      SciPy's CSR products on rows of samples, numba for the gradient, as the paper says
  ours       largesparse, once for each backend

The peers use torch.optim.SGD(fused=True), its fastest form, which multiplies λ by η (the paper does
not), and torch.set_flush_denormal(True), which holds for the thread, so for ours too. PyTorch also
pays for fresh memory; MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647 (glibc) avoids that.

Before it is timed, each contestant must lower its loss on a fixed batch and move its first layer's
weights along a gradient, or a warning is printed. A repeat times every contestant once, in random
order, so that noise hits all alike. Printed are medians and quartiles over the repeats, and ratios
of medians: "time / ours" 5 means that ours is five times as fast.
"""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from peers import (
    DROPOUT,
    LEARNING_RATE,
    N_BATCHES,
    PEERS,
    PRESETS,
    SEED,
    SGD,
    Batches,
    Contestant,
    Maker,
    Problem,
)
from threadpoolctl import threadpool_info, threadpool_limits
from tqdm import tqdm

from largesparse import info
from largesparse.backends import BACKENDS
from largesparse.cli import parse_size, run_command
from largesparse.errors import LargeSparseError, MemoryPlanError, ParameterError
from largesparse.limits import best_distance, gather
from largesparse.network import SparseMLP
from largesparse.recipes import RECIPES
from largesparse.records import check_output, new_record
from largesparse.threads import kernel_threads
from largesparse.training import Trainer, TrainingConfig

BLOCK_STEPS, BLOCK_SECONDS = 3, 0.1  # a timing spans at least these,
LONG_SECONDS = 1.0  # or, if steps are slow, this
ENVIRONMENT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class Ours:
    """largesparse with one of its backends."""

    def __init__(
        self, problem: Problem, batches: Batches, backend: str, threads: int | None = None
    ) -> None:
        self.name, self.batches = f"ours, {backend}", batches
        if threads is not None and threads != problem.threads:
            self.name += f", {threads} thread" + "s" * (threads > 1)
            problem = replace(problem, threads=threads)
        self.network = SparseMLP(problem.network(), threads=problem.threads)
        self.connections = self.network.connections
        same: dict[str, Any] = {"threads": problem.threads, "batch_size": problem.batch_size}
        config = TrainingConfig(
            backend=backend, learning_rate=LEARNING_RATE, dropout=DROPOUT, **same, **SGD
        )
        self.trainer = Trainer(self.network, config)

    def step(self, index: int) -> float:
        return self.trainer.step(*self.batches[index % len(self.batches)])

    def first_weights(self) -> NDArray[np.float32]:
        return self.network.layers[0].values.copy()


class Products:
    """The bare products of a step of ours, and the reading and writing of memory under them."""

    def __init__(self, ours: Ours) -> None:
        self.trainer, self.layers = ours.trainer, ours.network.layers
        self.batch = len(ours.batches[0][1])
        self.workspace, self.backend = self.trainer.workspace, self.trainer.backend
        self.zeros = [np.zeros(layer.n_out, np.float32) for layer in self.layers]
        self.actions: dict[str, Callable[[int], Any]] = {
            f"{ours.name}: forward products": self.forward,
            f"{ours.name}: dX and dW products": self.backward,
        }
        if self.batch % 16 == 0:
            self.distance = best_distance(*self.gathered(0))
            self.actions[f"{ours.name}: reads and writes of forward"] = self.gather

    def inputs(self, k: int) -> NDArray[np.float32]:
        """Return what layer k (0 is the first hidden one) reads."""
        if k == 0:
            return self.workspace.inputs(self.batch)
        return self.workspace.activations(k - 1, self.batch)

    def gathered(self, k: int) -> tuple[NDArray[Any], ...]:
        """Return what `limits.gather` takes for layer k, its distance apart."""
        layer = self.layers[k]
        out = self.workspace.activations(k, self.batch)
        return layer.indptr_by_output, layer.indices_by_output, self.inputs(k), out

    def forward(self, index: int) -> None:
        """Make the forward product of every layer."""
        with self.backend.threads(self.trainer.threads):
            for k, layer in enumerate(self.layers):
                self.backend.forward(
                    layer.indptr_by_output,
                    layer.indices_by_output,
                    layer.values_by_output,
                    self.zeros[k],
                    self.inputs(k),
                    slope=1.0,
                    out=self.workspace.activations(k, self.batch),
                )

    def backward(self, index: int) -> None:
        """Make the products of the backward pass of every layer."""
        last = len(self.layers) - 1
        delta = np.ones((self.layers[last].n_out, self.batch), dtype=np.float32)
        with self.backend.threads(self.trainer.threads):
            for k in range(last, -1, -1):
                layer, gradient = self.layers[k], self.workspace.gradients[k]
                arrays = layer.topology.indptr, layer.topology.indices
                if k == 0:
                    self.backend.weight_gradient(
                        *arrays, self.inputs(0), delta, out=gradient, accumulate=False
                    )
                    break
                out = self.workspace.delta(k - 1, self.batch)
                self.backend.backward(
                    *arrays,
                    layer.values,
                    self.inputs(k),
                    delta,
                    out_gradient=gradient,
                    out_delta=out,
                    slope_below=1.0,
                    state_below=self.workspace.state(k - 1, self.batch),
                    keep_share_below=np.float32(1),
                    out_bias_gradient_below=self.workspace.bias_gradients[k - 1],
                    accumulate=False,
                )
                delta = out

    def gather(self, index: int) -> None:
        """Read and write what the forward products do, and compute nothing."""
        with kernel_threads(self.trainer.threads):
            for k in range(len(self.layers)):
                indptr, indices, X, out = self.gathered(k)
                gather(indptr, indices, X, self.distance, out)


OURS: dict[str, Maker] = {backend: partial(Ours, backend=backend) for backend in BACKENDS}


def check(contestant: Contestant) -> list[str]:
    """Train on one fixed batch and return what speaks against this being training, if anything."""
    before = contestant.first_weights().astype(float)
    losses = [contestant.step(0) for _ in range(20)]
    after = contestant.first_weights().astype(float)
    found = []
    if not np.mean(losses[-3:]) < np.mean(losses[:3]):  # single losses are noisy by dropout
        found.append(f"its loss went from {losses[0]:.4g} to {losses[-1]:.4g}")
    moved = after - before * (before @ after) / (before @ before)  # decay alone scales the weights
    if not np.linalg.norm(moved) > 1e-5 * np.linalg.norm(before):
        found.append("no gradient reached its first layer")
    return found


def measure(actions: Mapping[str, Callable[[int], Any]], repeats: int) -> dict[str, list[float]]:
    """Return `repeats` times, in milliseconds, of a call of each action with a batch's number."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    rng = np.random.default_rng(SEED)
    for _ in tqdm(range(repeats), desc="repeats", leave=False, disable=None):
        for name in rng.permutation(list(actions)):
            actions[name](0)  # untimed: fills the caches again
            calls, elapsed, start = 0, 0.0, time.perf_counter()
            while elapsed < BLOCK_SECONDS or (calls < BLOCK_STEPS and elapsed < LONG_SECONDS):
                actions[name](calls)
                calls, elapsed = calls + 1, time.perf_counter() - start
            times[name].append(1000 * elapsed / calls)
    return times


def compare(
    problem: Problem, makers: Mapping[str, Maker], repeats: int, products: bool = False
) -> list[dict[str, Any]]:
    """Check and time all contestants that can run here; say of the others why they cannot.

    With `products`, the bare products of ours with the fused backend are timed as well.
    """
    batches, contestants, rows = problem.batches(), [], []
    for name, make in makers.items():
        try:
            contestants.append(make(problem, batches))
        except (ImportError, MemoryPlanError) as error:
            print(f"{name} is skipped: {error}", file=sys.stderr)
    if not contestants:
        raise LargeSparseError("None of the contestants can run here.")
    threadpool_limits(problem.threads)  # of libraries too that were loaded before main()
    found = [check(contestant) for contestant in contestants]
    actions: dict[str, Callable[[int], Any]] = {
        contestant.name: contestant.step for contestant in contestants
    }
    fused = [one for one in contestants if isinstance(one, Ours) and one.name == "ours, fused"]
    parts = Products(fused[0]).actions if products and fused else {}
    times = measure(actions | parts, repeats)
    for contestant, reasons in zip(contestants, found, strict=True):
        name = contestant.name
        if not all(np.isfinite(contestant.step(index)) for index in range(N_BATCHES)):
            reasons.append("its loss is not finite after the timing")
        for reason in reasons:
            print(f"warning: {name} may not train: {reason}", file=sys.stderr)
        q25, median, q75 = np.percentile(times[name], (25, 50, 75))
        row = {"contestant": name, "median_ms": median, "q25_ms": q25, "q75_ms": q75}
        row |= {"connections": contestant.connections, "warnings": reasons}
        rows.append(row | {"times_ms": times[name]})
    for name in parts:
        q25, median, q75 = np.percentile(times[name], (25, 50, 75))
        row = {"contestant": name, "median_ms": median, "q25_ms": q25, "q75_ms": q75}
        row |= {"connections": fused[0].connections, "warnings": []}
        rows.append(row | {"times_ms": times[name]})
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as text, with a column of ratios to each of our backends."""
    frame = pd.DataFrame(rows).set_index("contestant").rename_axis(None)
    shown = frame[["median_ms", "q25_ms", "q75_ms", "connections"]].copy()
    for name in frame.index[frame.index.str.fullmatch("ours, [a-z]+")]:
        shown[f"time / {name}"] = frame.median_ms / frame.median_ms[name]
    return shown.to_string(float_format="{:.2f}".format)


def check_noise(problem: Problem, repeats: int) -> str:
    """Time ours, fused, beside itself, and say which differences this machine can tell now.

    The ratio of the two medians is drawn again from the repeats, 2000 times (bootstrap): 19 of 20
    such ratios are within the bound that is told.
    """
    batches = problem.batches()
    one, other = (Ours(problem, batches, backend="fused") for _ in range(2))
    times = measure({"one": one.step, "other": other.step}, repeats)
    draws = np.random.default_rng(SEED).integers(repeats, size=(2, 2000, repeats))
    medians = [
        np.log(np.median(np.array(values)[draw], axis=1))
        for values, draw in zip(times.values(), draws, strict=True)
    ]
    first, second = (np.median(values) for values in times.values())
    found = np.log(first / second)
    bound = max(abs(found), np.quantile(abs(medians[0] - medians[1] - found), 0.95))
    spread = np.percentile(times["one"] + times["other"], (25, 75))
    return (
        f"The same step twice, {repeats} repeats in turns: {first:.3g} and {second:.3g} ms "
        f"(quartiles {spread[0]:.3g} to {spread[1]:.3g}). Differences below "
        f"{100 * np.expm1(bound):.1f} % are noise on this machine now."
    )


def chosen(known: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return what a list such as "torch,sparselab" names; "all" and "none" are lists too."""
    names = {"all": list(known), "none": []}.get(text, text.split(","))
    if set(names) - set(known):
        raise ParameterError(f"Names are {', '.join(known)}, all and none. Got {text!r} instead.")
    return {name: known[name] for name in names}


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--preset", default="fashion", help=f"nets: {', '.join(PRESETS)}, or all (fashion)")
    add("--layers", help="sizes of a net from features to classes, in place of a preset")
    add("--epsilon", type=float, help="density control ε (the preset's, or 20)")
    add("--batch-size", type=parse_size, help="samples a step (the preset's, or 128)")
    add("--threads", type=parse_size, default=1, help="threads of every contestant (1)")
    add("--repeats", type=parse_size, default=15, help="timings of every contestant (15)")
    add("--peers", default="all", help=f"contestants: {', '.join(PEERS)}, all or none (all)")
    add("--backends", default="all", help=f"ours: {', '.join(OURS)}, all or none (all)")
    add("--recipe", choices=sorted(RECIPES), default="paper", help="of ours (paper)")
    add("--products", action="store_true", help="time the bare products of ours, fused, as well")
    add("--scaling", action="store_true", help="time ours, fused, with one thread as well")
    add("--check-noise", action="store_true", help="only ours beside itself: what is noise?")
    add("--json", metavar="FILE", help="write all times, versions and the machine there as well")
    options = parser.parse_args(argv)
    os.environ.update(dict.fromkeys(ENVIRONMENT, str(options.threads)))  # read as libraries load
    makers = chosen(PEERS, options.peers) | chosen(OURS, options.backends)
    if options.scaling:
        makers["scaling"] = partial(Ours, backend="fused", threads=1)
    problems = chosen(PRESETS, options.preset)
    if options.layers:
        problems = {"layers": Problem(tuple(map(parse_size, options.layers.split(","))))}
    keys = ("threads", "epsilon", "batch_size", "recipe")
    given = {key: getattr(options, key) for key in keys}
    given = {key: value for key, value in given.items() if value is not None}
    problems = {name: replace(problem, **given) for name, problem in problems.items()}
    for problem in problems.values():
        problem.network()  # refuses bad sizes and ε before any work
    if options.json:
        check_output(options.json)
    report = asdict(new_record("compare_peers", threads=options.threads))
    report = {key: value for key, value in report.items() if value is not None}
    report["versions"] |= {peer: info.version(peer) for peer in PEERS}
    report |= {"cores": info.usable_cores(), "problems": []}
    print(f"{report['cpu']}, {report['cores']} cores, {options.threads} threads used")
    print(", ".join(f"{name} {version}" for name, version in report["versions"].items() if version))
    for name, problem in problems.items():
        sizes = "-".join(map(str, problem.layer_sizes))
        print(f"\n{name}: {sizes}, ε {problem.epsilon:g}, batch {problem.batch_size}", flush=True)
        if options.check_noise:
            print(check_noise(problem, options.repeats), flush=True)
            continue
        rows = compare(problem, makers, options.repeats, options.products)
        print(table(rows), flush=True)
        report["problems"].append({"name": name, **asdict(problem), "results": rows})
    report["thread_pools"] = [(pool["prefix"], pool["num_threads"]) for pool in threadpool_info()]
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    sys.exit(run_command(main))
