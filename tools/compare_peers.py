"""Time one training step of largesparse beside what one would use instead, in the same run.

    pip install ".[peers]"                                    # PyTorch and SparseLab, both optional
    python tools/compare_peers.py                             # the FashionMNIST net, one thread
    python tools/compare_peers.py --preset all --json peers.json
    python tools/compare_peers.py --preset cifar,madelon --peers sparselab --backends mkl
    python tools/compare_peers.py --layers 784,1000,10 --epsilon 20 --batch-size 128 --threads 2
    python tools/compare_peers.py --preset cifar --peers none --threads 2 --products --scaling
    python tools/compare_peers.py --phases --repeats 5        # every phase, and memory
    python tools/compare_peers.py --largest                   # double the layers till it fails
    python tools/compare_peers.py --check-noise               # how small a difference can be told
    python tools/compare_peers.py --task labels --data bibtex.npz     # rows of several labels

A step is forward with dropout, softmax cross-entropy, backward and update with momentum and weight
decay, in float32. All have the same layer sizes, All-ReLU slopes, batches, threads and expected
density of each layer (Erdős–Rényi, p = min(1, ε(n_in+n_out)/(n_in·n_out))).

  torch      dense nn.Linear layers; a 0/1 mask zeroes the weights once a step, after the update
  csr        PyTorch's CSR products and sampled_addmm, which keep gradients sparse
  sparselab  sparselab.SparseLinear layers, nn.Linear where the density is 1, as in its examples
  sklearn    MLPClassifier.partial_fit: dense, with ReLU, without dropout
  scipy      SciPy's CSR products on rows of samples, numba for the gradient, as the paper says
  ours       largesparse, once for each backend, and its layers in PyTorch ("--backends torch")

The peers use torch.optim.SGD(fused=True), its fastest form, which multiplies λ by η (the paper does
not), and torch.set_flush_denormal(True), which holds for the thread, so for ours too. PyTorch also
pays for fresh memory; MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647 (glibc) avoids that.

Before it is timed, each contestant must lower its loss on a fixed batch and move its first layer's
weights along a gradient, or a warning is printed. A repeat times every contestant once, in random
order, so that noise hits all alike. Printed are medians and quartiles over the repeats, and medians
of the repeats' ratios with their 95 % intervals (bootstrap, over five repeats at least): "time /
ours" 5 means that ours is five times as fast.

--products times the bare products of ours, and the forward products of all layers by SciPy, MKL
(the code path that it has loaded is named), PyTorch's CSR tensors, and AMD's AOCL-Sparse where the
wheel aoclda is installed; "product / ours" compares these. With that wheel, it also times steps of
ours whose products are AOCL-Sparse's.

--phases starts a process for every contestant and repeat, in random order, loads and compiles what
it needs on a small net, and then times initialisation, a step, an epoch of --rows rows in random
order, an evolution (SET: SparseLab's own; written here for the others, which have none), and
inference of --test-rows rows. Memory is the peak above that of the process before the net. What
would take longer than 20 s is measured on fewer rows.

--task labels trains ours, MLPClassifier((400,)), and omikuji and napkinXC where these are installed
(pip install omikuji napkinxc), each with its defaults and in a process of its own, on an archive of
CSR matrices (`read_task` of harness.peers.labels), or on a small task that is made up (--data
extreme). Rows of X get the length 1. Printed are P@1, 3 and 5 of the test rows in percent, the time
of training and of prediction, the peak of memory above that of a fit to 64 rows, and the size of
the model: of ours and scikit-learn's that of weights and indices, of the others that of their
files.
"""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_info, threadpool_limits
from tqdm import tqdm

from largesparse.commands import info
from largesparse.errors import LargeSparseError, MemoryPlanError, ParameterError
from largesparse.harness.noise import NoiseMeter, describe_noise, noise_so_far, tick
from largesparse.harness.peers import OURS, PEERS, Contestant, Maker
from largesparse.harness.peers.labels import LABEL_PEERS, MADE_UP, compare_labels, read_task
from largesparse.harness.peers.ours import Ours, Products
from largesparse.harness.peers.phases import compare_phases, find_largest
from largesparse.harness.peers.problem import N_BATCHES, PRESETS, SEED, Problem
from largesparse.harness.peers.vendors import AOCL, AOCLSteps, vendor_products
from largesparse.harness.records import check_output, new_record
from largesparse.harness.uncertainty import ratio_of, ratios_to
from largesparse.machine.environment import expand_user
from largesparse.machine.exit_codes import run_command
from largesparse.machine.sizes import parse_size
from largesparse.model.recipes import RECIPES

BLOCK_STEPS, BLOCK_SECONDS = 3, 0.1  # a timing spans at least these,
LONG_SECONDS = 1.0  # or, if steps are slow, this
# Not NUMBA_NUM_THREADS, which numba, imported before, would refuse as it compiles.
ENVIRONMENT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


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

    With `products`, the bare products of ours with the fused backend are timed as well, and the
    forward products by vendors' libraries.
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
    parts: dict[str, Callable[[int], Any]] = {}
    if products and fused:
        ours = Products(fused[0])
        parts = ours.actions | vendor_products(ours)
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
        ratios = ratios_to(dict(frame.times_ms), name)
        shown[f"time / {name}"] = [str(ratios[other]) for other in frame.index]
    forward = "ours, fused: forward products"
    if forward in frame.index:
        ratios = ratios_to(dict(frame.times_ms), forward)
        products = frame.index.str.endswith("forward products")
        shown["product / ours"] = [
            str(ratios[name]) if is_product else ""
            for name, is_product in zip(frame.index, products, strict=True)
        ]
    return shown.to_string(float_format="{:.2f}".format)


def phase_table(frame: pd.DataFrame) -> str:
    """Return medians over the repeats, quartiles of the epoch, and its ratio to the fastest.

    The ratio's interval is by bootstrap over the repeats, of which a median needs five.
    """
    groups = frame.groupby("contestant", sort=False)
    shown = groups.median()
    quartiles = groups.epoch_s.quantile([0.25, 0.75]).unstack()
    place = shown.columns.get_loc("epoch_s") + 1
    spread = [f"{low:.3g} to {high:.3g}" for low, high in quartiles.loc[shown.index].to_numpy()]
    shown.insert(place, "quartiles", spread)
    times = {str(name): list(rows.dropna()) for name, rows in groups.epoch_s}
    ratios = ratios_to(times, str(shown.epoch_s.idxmin()), paired=False)
    shown.insert(place + 1, "epoch / least", [str(ratios[name]) for name in shown.index])
    return shown.sort_values("epoch_s").rename_axis(None).to_string(float_format="{:.3g}".format)


def check_noise(problem: Problem, repeats: int) -> str:
    """Time ours, fused, beside itself, and say which differences this machine can tell now.

    The bound is the larger of the ratio itself and of the ends of its 95 % interval.
    """
    batches = problem.batches()
    one, other = (Ours(problem, batches, backend="fused") for _ in range(2))
    times = measure({"one": one.step, "other": other.step}, repeats)
    first, second = (np.median(values) for values in times.values())
    ratio = ratio_of(times["one"], times["other"])
    bound = np.log([ratio.value, ratio.high / ratio.value, ratio.value / ratio.low])
    bound = np.nan if np.isnan(bound).any() else abs(bound).max()
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


def make_parser() -> ArgumentParser:
    """Return the parser of the command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--task", choices=("step", "labels"), default="step", help="what is compared (step)")
    add("--data", default=MADE_UP, help=f"of --task labels: an archive ({MADE_UP}, a made-up task)")
    add("--preset", default="fashion", help=f"nets: {', '.join(PRESETS)}, or all (fashion)")
    add("--layers", help="sizes of a net from features to classes, in place of a preset")
    add("--epsilon", type=float, help="density control ε (the preset's, or 20)")
    add("--batch-size", type=parse_size, help="samples a step (the preset's, or 128)")
    add("--threads", type=parse_size, default=1, help="threads of every contestant (1)")
    add("--repeats", type=parse_size, default=15, help="timings of every contestant (15)")
    add("--peers", default="all", help=f"contestants: {', '.join(PEERS)}, all or none (all)")
    add("--backends", default="all", help=f"ours: {', '.join(OURS)}, all or none (all)")
    add("--recipe", choices=sorted(RECIPES), default="paper", help="of ours (paper)")
    add("--products", action="store_true", help="the bare products too, also by vendors")
    add("--scaling", action="store_true", help="time ours, fused, with one thread as well")
    add("--phases", action="store_true", help="initialisation, epoch, evolution, ..., memory")
    add("--rows", type=parse_size, default=7000, help="training rows of an epoch (7000)")
    add("--test-rows", type=parse_size, default=3000, help="rows to predict (3000)")
    add("--largest", action="store_true", help="the largest net, by doubling the hidden layers")
    add("--seconds", type=float, default=120, help="for one size of --largest (120)")
    add("--check-noise", action="store_true", help="only ours beside itself: what is noise?")
    add("--json", metavar="FILE", help="write all times, versions and the machine there as well")
    return parser


def problems_of(options: Namespace) -> dict[str, Problem]:
    """Return the problems that are asked for, by name."""
    problems = chosen(PRESETS, options.preset)
    if options.layers:
        problems = {"layers": Problem(tuple(map(parse_size, options.layers.split(","))))}
    keys = ("threads", "epsilon", "batch_size", "recipe")
    given = {key: getattr(options, key) for key in keys}
    given = {key: value for key, value in given.items() if value is not None}
    problems = {name: replace(problem, **given) for name, problem in problems.items()}
    for problem in problems.values():
        problem.network()  # refuses bad sizes and ε before any work
    return problems


def measure_problem(
    problem: Problem, makers: dict[str, Maker], options: Namespace
) -> list[Any] | None:
    """Measure a problem as the options say, and print it; return rows for the report, if any."""
    if options.check_noise:
        print(check_noise(problem, options.repeats), flush=True)
        return None
    if options.phases:
        frame = compare_phases(problem, makers, options.repeats, options.rows, options.test_rows)
        print(phase_table(frame), flush=True)
        return frame.to_dict("records")
    if options.largest:
        frame = find_largest(problem, makers, options.seconds)
        print(frame.to_string(index=False, float_format="{:.3g}".format), flush=True)
        return frame.to_dict("records")
    rows = compare(problem, makers, options.repeats, options.products)
    print(table(rows), flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print, and write the report."""
    options = make_parser().parse_args(argv)
    os.environ.update(dict.fromkeys(ENVIRONMENT, str(options.threads)))  # read as libraries load
    if options.task == "labels":
        task = read_task(options.data)
        names = list(chosen(LABEL_PEERS, options.peers))
        sizes = f"{task.X.shape[0]} and {task.X_test.shape[0]} rows, {task.X.shape[1]} features"
        print(f"{task.name}: {sizes}, {task.Y.shape[1]} labels, {options.threads} threads")
        frame = compare_labels(task, names, options.threads)
        print(frame.to_string(index=False, float_format="{:.4g}".format))
        if options.json:
            record = asdict(new_record("compare_peers", threads=options.threads))
            report = {**record, "task": task.name, "results": frame.to_dict("records")}
            check_output(options.json).write_text(json.dumps(report, indent=1))
        return
    ours = chosen(OURS, options.backends)
    makers = chosen(PEERS, options.peers) | {f"ours, {name}": make for name, make in ours.items()}
    if options.scaling:
        makers["scaling"] = partial(Ours, backend="fused", threads=1)
    if options.products:
        makers[AOCL] = AOCLSteps
    problems = problems_of(options)
    if options.json:
        check_output(options.json)
    with NoiseMeter():
        report = compare_problems(problems, makers, options)
    if options.json:
        expand_user(options.json).write_text(json.dumps(report, indent=1))


def compare_problems(
    problems: Mapping[str, Problem], makers: dict[str, Maker], options: Namespace
) -> dict[str, Any]:
    """Measure and print all problems; return the report."""
    report = asdict(new_record("compare_peers", threads=options.threads))
    report = {key: value for key, value in report.items() if value is not None}
    report["versions"] |= {peer: info.version(peer) for peer in PEERS}
    report |= {"cores": info.usable_cores(), "problems": []}
    print(f"{report['cpu']}, {report['cores']} cores, {options.threads} threads used")
    print(", ".join(f"{name} {version}" for name, version in report["versions"].items() if version))
    for name, problem in problems.items():
        sizes = "-".join(map(str, problem.layer_sizes))
        print(f"\n{name}: {sizes}, ε {problem.epsilon:g}, batch {problem.batch_size}", flush=True)
        rows = measure_problem(problem, makers, options)
        if rows is not None:
            report["problems"].append({"name": name, **asdict(problem), "results": rows})
        tick()
    report["thread_pools"] = [(pool["prefix"], pool["num_threads"]) for pool in threadpool_info()]
    report["noise"] = noise_so_far()
    print(f"\nnoise of the machine: {describe_noise(report['noise'])}")
    return report


if __name__ == "__main__":
    sys.exit(run_command(main))
