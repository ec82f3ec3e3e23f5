"""A layer whose topology is given, from a list of connections to an exported model."""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from largesparse import (
    GivenTopology,
    NetworkConfig,
    SparseMLP,
    Trainer,
    TrainingConfig,
    compact,
    importance_table,
    load_checkpoint,
    load_model,
    save_model,
)
from largesparse.machine.sizes import parse_size
from largesparse.machine.usage import peak_rss_bytes
from largesparse.model.export import to_scipy
from largesparse.model.topology import Topology
from largesparse.training.warming import warm_up

from . import add_common, add_figure

MEDIAN_SIZE, SPREAD, SMALLEST, LARGEST = 50, 0.9, 10, 500  # of sets, log-normal
INFORMATIVE = 5  # sets whose activity the classes depend on


def topology(options: argparse.Namespace) -> None:
    """Train, stop, resume, prune, save and export a network of genes and named sets, and check it.

    The sets are made up: their sizes are log-normal (median 50, from 10 to 500), and some genes are
    in many of them. A gene follows the activities of its sets, as much noise apart; the class of a
    row is the sign of the summed activity of 5 sets. The frozen layer's pattern must be unchanged
    to the bit at every stage, but for the connections of sets that Importance Pruning has removed.
    """
    rng = np.random.default_rng(options.seed)
    genes = [f"GENE{k}" for k in range(options.genes)]
    members = gene_sets(options.genes, options.sets, rng)
    n_rows = options.rows + options.test_rows
    X = rng.standard_normal((n_rows, options.genes), dtype=np.float32)
    activity = rng.standard_normal((n_rows, options.sets), dtype=np.float32)
    shares = np.bincount(np.concatenate(members), minlength=options.genes)
    for own, genes_of_set in zip(activity.T, members, strict=True):
        X[:, genes_of_set] += own[:, None] / np.sqrt(shares[genes_of_set], dtype=np.float32)
    y = (activity[:, :INFORMATIVE].sum(axis=1) > 0).astype(int)
    warm_up(options.backend)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_edges(folder / "sets.csv.gz", genes, members)
        with timed("read the list, gzipped"):
            given = GivenTopology.read(folder / "sets.csv.gz")
        sizes = options.genes, options.sets, options.hidden, 2
        config = NetworkConfig(sizes, epsilon=10, recipe="width", seed=options.seed)
        with timed("make the network"):
            network = SparseMLP(config, topology=given, feature_names=genes, progress=False)
        pattern = network.layers[0].topology
        print(f"{network}\n{pattern.nnz:,} connections of {len(members):,} sets", flush=True)
        settings = {"backend": options.backend, "threads": options.threads, "seed": options.seed}
        training = TrainingConfig(
            epochs=options.epochs,
            batch_size=32,
            learning_rate=options.learning_rate,
            pruning_start=options.epochs - 1,
            pruning_every=1,
            pruning_percentile=10,
            **settings,
        )
        train, test = slice(options.rows), slice(options.rows, None)
        trainer = Trainer(network, training)
        with timed(f"train {options.epochs // 2} epochs, stop"):
            trainer.fit(
                *(X[train], y[train]),
                checkpoint=folder / "run",
                callbacks=[lambda trainer, record: record.epoch == options.epochs // 2],
                progress=False,
            )
        check("trained", pattern, network, dead=False)
        with timed("resume"):
            trainer = load_checkpoint(folder / "run", threads=options.threads)
            check("resumed", pattern, trainer.network, dead=False)
            trainer.fit(X[train], y[train], test=(X[test], y[test]), progress=False)
        network = trainer.network
        check("pruned", pattern, network, dead=True)
        with timed("save"):
            save_model(network, folder / "model")
        with timed("load"):
            loaded = load_model(folder / "model")
        check("loaded", pattern, loaded, dead=True)
        exported = to_scipy(loaded)[0]
        assert np.array_equal(exported.indices, loaded.layers[0].topology.indices)
        print(f"compact: {compact(loaded)}")
        print(importance_table(loaded).head(3).to_string(index=False))
        print(f"test accuracy {trainer.history.epochs[-1].test_accuracy:.3f}")
        print(f"peak memory {peak_rss_bytes() / 2**30:.2f} GiB")


def gene_sets(genes: int, sets: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return the genes of every set, of sizes as in public collections, some in many sets."""
    sizes = MEDIAN_SIZE * np.exp(SPREAD * rng.standard_normal(sets))
    popularity = rng.pareto(2, genes) + 0.2
    popularity /= popularity.sum()
    largest = min(LARGEST, genes)
    return [
        rng.choice(genes, int(size), replace=False, p=popularity)
        for size in np.clip(sizes, min(SMALLEST, largest), largest)
    ]


def write_edges(path: Path, genes: list[str], members: list[np.ndarray]) -> None:
    import gzip

    with gzip.open(path, "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "target"])
        for k, each in enumerate(members):
            writer.writerows((genes[gene], f"SET{k}") for gene in each)


def check(stage: str, pattern: Topology, network: SparseMLP, *, dead: bool) -> None:
    """Compare the first layer's pattern with what was given, to the bit."""
    layer = network.layers[0]
    kept, pruned = np.ones(pattern.nnz, bool), 0
    if dead:
        assert layer.dead is not None
        kept, pruned = ~layer.dead[pattern.indices], int(layer.dead.sum())
    if not np.array_equal(layer.topology.cells(), pattern.cells()[kept]):
        raise SystemExit(f"{stage}: the pattern has changed")
    print(f"{stage}: the pattern is unchanged to the bit, {pruned} sets pruned", flush=True)


@contextmanager
def timed(what: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    print(f"{what}: {time.perf_counter() - started:.2f} s", flush=True)


def add_figures(figures) -> None:
    figure = add_figure(figures, "topology", topology)
    add_common(figure, "fused")
    add = figure.add_argument
    add("--genes", type=parse_size, default=20_000, help="default %(default)s")
    add("--sets", type=parse_size, default=2_000, help="default %(default)s")
    add("--hidden", type=parse_size, default=200, help="neurons above the sets (%(default)s)")
    add("--rows", type=parse_size, default=3_000, help="trained on (%(default)s)")
    add("--test-rows", type=parse_size, default=500, help="default %(default)s")
    add("--epochs", type=parse_size, default=20, help="default %(default)s")
    add("--learning-rate", type=float, default=0.1, help="default %(default)s")
