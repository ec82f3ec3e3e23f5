"""Small trainings that the tests run under mpiexec, and repeat in one process to compare.

    mpiexec -n K python parallel_cases.py FOLDER NAME...

trains the cases one after another. Of each, every rank writes its history to FOLDER/NAME, and
rank 0 the network.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from largesparse import GivenTopology, NetworkConfig, SparseMLP, TrainingConfig, load_model

ROWS, FEATURES, CLASSES = 47, 8, 3
# Of hidden layers: candidates of the first one, and the connections of the second, which is frozen
MASKS = [np.random.default_rng(k).random(s) < 0.5 for k, s in enumerate([(FEATURES, 24), (24, 16)])]
PRUNING = {"pruning_start": 1, "pruning_every": 1, "pruning_percentile": 20.0}


@dataclass(frozen=True)
class Case:
    """A training; what is not given is a small network's on `ROWS` rows."""

    algorithm: str = "wasap"
    network: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    rows: int = ROWS
    sparse: bool = False
    zeros: float = 0.5  # share of the values of sparse rows
    weighted: bool = False
    targets: bool = False  # numbers to predict in place of classes
    augment: bool = False
    stop_after: int | None = None  # epochs
    checkpoint: str | None = None  # folders, beside those of the cases
    resume: str | None = None
    copied: str | None = None  # folder that is copied to the one to resume
    on_disk: bool = False  # where trained replicas wait
    topology: bool = False  # whether hidden layers are given: see `MASKS`
    blind: bool = False  # whether nothing is evaluated, so that an epoch ends at once
    recovery: int = 0  # updates that a replica needs after an evolution

    def make_network(self) -> SparseMLP:
        sizes = (FEATURES, 24, 16, 2 if self.targets else CLASSES)
        loss = "mean_squared_error" if self.targets else "softmax_cross_entropy"
        settings = {"layer_sizes": sizes, "epsilon": 3.0, "seed": 5, "loss": loss}
        topology = [GivenTopology(MASKS[0], "within"), MASKS[1]] if self.topology else None
        config = NetworkConfig(**settings | self.network)
        return SparseMLP(config, progress=False, topology=topology)

    def make_config(self, **changes: Any) -> TrainingConfig:
        settings = {
            "epochs": 3,
            "batch_size": 6,
            "learning_rate": 0.05,
            "dropout": 0.2,
            "seed": 11,
            "backend": "scipy",
            "threads": 1,
        }
        return TrainingConfig(**settings | self.training | changes)

    def data(self) -> tuple[Any, Any]:
        """Rows whose classes (or targets) can be learnt."""
        rng = np.random.default_rng(0)
        X = rng.normal(size=(self.rows, FEATURES)).astype(np.float32)
        outputs = X @ rng.normal(size=(FEATURES, CLASSES))
        if self.sparse:
            X[rng.random(X.shape) < self.zeros] = 0
        y = outputs[:, :2].astype(np.float32) if self.targets else outputs.argmax(axis=1)
        return csr_array(X) if self.sparse else X, y

    def given(self) -> dict[str, Any]:
        """What `Trainer.fit` and the parallel functions are given alike."""
        X, y = self.data()
        weights = np.arange(1.0, self.rows + 1) if self.weighted else None
        return {"X": X, "y": y, "test": (X[:9], y[:9]), "sample_weight": weights}


def grow_by_output(layer, state, count, rng):
    """A rule of one's own: where the strongest weights lead, which looks at both orders."""
    cells = state.draw(min(state.n_free, 3 * count), rng)
    outputs = np.repeat(np.arange(layer.n_out), np.diff(layer.indptr_by_output))
    strength = np.bincount(outputs, layer.values_by_output**2, layer.n_out)
    best = np.argsort(strength[cells % layer.n_out], kind="stable")[-count:]
    return np.sort(cells[best])


WIDTH = {"recipe": "width", "activation": "all_relu"}
SRELU = {"activation": "srelu"}
ADAM = {"optimizer": "adamw", "learning_rate": 0.01, "clip_norm": 1.0, "connection_warmup": 3}
NORMALISED = {"batch_norm": True}
ONE = {"phase_one_epochs": 3}
SHRINKING = {"network": {"density": 0.1, "epsilon": None, "start_factor": 3.0}}

# One worker, phase one alone: nothing but the sequential training, bit for bit.
SEQUENTIAL = {
    "plain": Case(options=ONE),
    "fused": Case(options=ONE, training={"backend": "fused"}),
    "micro-batches": Case(options=ONE, training={"micro_batch": 4, "batch_size": 10}),
    "pruned": Case(options=ONE, training=PRUNING),
    "sparse-weighted": Case(options=ONE, sparse=True, weighted=True),
    "few-nonzeros": Case(options=ONE, sparse=True, zeros=0.97, training={"standardize": False}),
    "srelu": Case(options=ONE, network=SRELU, training=PRUNING),
    "normalised": Case(options=ONE, network=NORMALISED, training=PRUNING, weighted=True),
    "width": Case(options=ONE, network=WIDTH, training={"growth": "gradient"}),
    "rules": Case(options=ONE, training={"drop": "mest", "growth": "topology"}),
    "own-rules": Case(options=ONE, training={"growth": "parallel_cases:grow_by_output"}),
    "targets": Case(options=ONE, targets=True, training={"schedule": "cosine"}),
    "augmented": Case(options=ONE, augment=True),
    "intervals": Case(options=ONE, training={"evolution_interval": 2, "evolve_last": True}),
    "synchronous": Case("wassp", options=ONE, network=WIDTH),
    "unevaluated": Case(
        "wassp", options=ONE | {"server": False}, training={"evaluate_first": False}
    ),
    "shrinking": Case(options=ONE, **SHRINKING),
    "adam": Case(options=ONE | {"ranks_per_node": 1}, network=SRELU, training=PRUNING | ADAM),
    "adam-allreduce": Case(
        "wassp", options=ONE | {"server": False, "ranks_per_node": 1}, training=ADAM
    ),
    "nesterov": Case("wassp", options=ONE, training={"optimizer": "nesterov", "clip_norm": 0.1}),
    "simulated": Case(options=ONE | {"ranks_per_node": 1}, network=SRELU, training=PRUNING),
    "small-chunks": Case(options=ONE | {"ranks_per_node": 1, "chunk_bytes": 100}),
    "given": Case(options=ONE, topology=True, training=PRUNING),
    "stopped": Case(options=ONE, stop_after=2, checkpoint="resumed-checkpoint"),
    "resumed": Case(options=ONE, checkpoint="resumed-checkpoint", resume="resumed-checkpoint"),
}
# Several workers that take turns in one slot: the same.
TURNS = {
    f"turns-{name}": Case(options=ONE | {"slots": 1}, rows=160, training={"batch_size": 4} | more)
    for name, more in {
        "plain": {},
        "points": {"curve_points": 3, "curve_rows": 5, "evaluate_first": False} | ADAM,
    }.items()
}
# One worker, both phases: the same weights; the velocities are not kept.
BOTH_PHASES = {
    "both-phases": Case(training=PRUNING, network=SRELU),
    "both-shrinking": Case(**SHRINKING, training={"epochs": 4, "shrink_end": 3}),
    "both-with-own-rules": Case(training={"growth": "parallel_cases:grow_by_output"}),
    "both-synchronous": Case("wassp", options={"ranks_per_node": 1}, augment=True, sparse=True),
    "both-adam": Case(training=PRUNING | ADAM),
}

SEVEN = {"phase_one_epochs": 7}  # past the warm-up
SCHEDULED = {"epochs": 7, "schedule": "cosine"}
JOINED = {
    f"joined-{name}": Case("wassp", network=WIDTH, training=SCHEDULED, options=SEVEN | options)
    for name, options in {
        "one-node": {},
        "one-slot": {"slots": 1},
        "two-nodes": {"ranks_per_node": 2},
        "four-nodes": {"ranks_per_node": 1},
        "without-server-on-two-nodes": {"server": False, "ranks_per_node": 2},
        "without-server-on-four-nodes": {"server": False, "ranks_per_node": 1},
    }.items()
}

START = {"training": PRUNING | {"epochs": 4}, "network": SRELU, "resume": "start-checkpoint"}
REPLICAS = {
    "start": Case(
        **START | {"resume": None},
        options={"phase_one_epochs": 2},
        stop_after=2,
        checkpoint="start-checkpoint",
    )
} | {
    f"replicas-{name}": Case(
        **START,
        options={"phase_one_epochs": 2} | options,
        on_disk=name == "on-disk",
        checkpoint=f"replicas-{name}-checkpoint",
    )
    for name, options in {
        "one-node": {},
        "on-disk": {"slots": 1},
        "two-nodes": {"ranks_per_node": 2},
        "four-nodes": {"ranks_per_node": 1},
    }.items()
}

# Replicas of few updates, which keep their connections: 6 or 4 in two epochs.
SETTLED_OPTIONS: dict[str, Any] = {"phase_one_epochs": 2, "ranks_per_node": 2}
SETTLED = {
    f"{part}-{name}": Case(
        algorithm,
        network=SRELU,
        training=training | {"epochs": 4},
        options=SETTLED_OPTIONS,
        recovery=recovery,
        stop_after=2 if part == "start" else None,
        checkpoint=f"{part}-{name}-checkpoint",
        resume=None if part == "start" else f"start-{name}-checkpoint",
    )
    for name, algorithm, recovery, training in (
        ("settled", "wasap", 5, {}),
        ("settled-synchronously", "wassp", 5, {}),
        ("settled-pruned", "wasap", 5, PRUNING),
        ("settled-late", "wasap", 4, {}),  # enough after the evolution between the phases
    )
    for part in ("start", "replicas")
}

REPLICAS_SHRINKING = {  # to the end within phase two
    f"shrinking-{name}": Case(
        **SHRINKING,
        training={"epochs": 5, "shrink_end": 4, "batch_size": 5, **training},
        options={"phase_one_epochs": 2, **options},
        recovery=recovery,
    )
    for name, options, training, recovery in (
        ("one-node", {}, {}, 0),
        ("four-nodes", {"ranks_per_node": 1}, {"zeta": 0.0}, 0),
        ("settled", {}, {}, 100),
    )
}
# Batch normalisation: a worker's part of a joined mini-batch is normalised by itself.
NORMALISED_START = START | {"network": NORMALISED, "resume": "normalised-checkpoint"}
NORMALISED_CASES = {
    "joined-normalised": Case(
        "wassp",
        network=NORMALISED,
        training=SCHEDULED,
        options=SEVEN | {"ranks_per_node": 2},
    ),
    "start-normalised": Case(
        **NORMALISED_START | {"resume": None},
        options={"phase_one_epochs": 2},
        stop_after=2,
        checkpoint="normalised-checkpoint",
    ),
    "replicas-normalised": Case(
        **NORMALISED_START,
        options={"phase_one_epochs": 2, "ranks_per_node": 2},
        checkpoint="replicas-normalised-checkpoint",
    ),
}

SLOW = {"epochs": 6, "learning_rate": 0.06, "momentum": 0.5, "zeta": 0.1, "dropout": 0.0}
# Begun by three ranks, and gone on with by others.
LONG = {"training": {"epochs": 6, "batch_size": 5, "learning_rate": 0.02, "momentum": 0.5}}
LONG_OPTIONS = {"phase_one_epochs": 4, "noted": True, "slots": 3}
BEGUN = {
    "begun": Case(**LONG, options=LONG_OPTIONS, stop_after=2, checkpoint="begun-checkpoint"),
}
CONTINUED = {
    f"continued-{name}": Case(
        algorithm,
        **LONG,
        options=LONG_OPTIONS | options,
        resume="begun-checkpoint",
        checkpoint=f"continued-{name}-checkpoint",
    )
    for name, algorithm, options in (
        ("by-1", "wasap", {}),
        ("by-2", "wasap", {"ranks_per_node": 1}),
        ("by-4", "wasap", {}),
        ("synchronously", "wassp", {}),
    )
}
# Phase two, ended by an error in every replica's second epoch, and gone on with.
AGAIN = START | {"resume": "broken-checkpoint", "checkpoint": "broken-checkpoint"}
BROKEN = {
    "broken": Case(
        **AGAIN,
        options={"phase_one_epochs": 2, "slots": 3, "broken": True},
        copied="start-checkpoint",
    ),
    "mended": Case(**AGAIN, options={"phase_one_epochs": 2, "noted": True}),
}

NOTED = {"noted": True, "phase_one_epochs": 2}
ASYNCHRONOUS = (
    {
        f"noted-{name}": Case(training={"epochs": 3, "batch_size": 5}, options=NOTED | options)
        for name, options in {
            "one-node": {},
            "four-nodes": {"ranks_per_node": 1},
        }.items()
    }
    | {
        f"{name}": Case(rows=402, training=SLOW | training, options=options)
        for name, options, training in (
            ("asynchronous-1", {"slots": 3, "delay_compensation": 0.1}, PRUNING),
            ("asynchronous-ahead", {"slots": 6, "ranks_per_node": 2}, {}),
            ("asynchronous-2", {"ranks_per_node": 2, "staleness_power": 0.5}, {}),
            ("asynchronous-adam", {"ranks_per_node": 2, "delay_compensation": 0.1}, ADAM),
            ("asynchronous-4", {"ranks_per_node": 1, "delay_compensation": 0.1}, PRUNING),
        )
    }
    | {
        # Transfers of many messages, longer than those that MPI sends ahead.
        f"large-{name}": Case(
            network={"layer_sizes": (FEATURES, 3000, 3000, CLASSES)},
            training=SLOW | {"batch_size": 4} | training,
            blind=True,
            options={"ranks_per_node": 1, "chunk_bytes": 2**16, "phase_one_epochs": 5},
            stop_after=stop_after,
        )
        for name, training, stop_after in (("evolved", {}, None), ("stopped", {"zeta": 0.0}, 2))
    }
)

GIVEN = {
    f"given-{name}": Case(
        topology=True, training=PRUNING | {"epochs": 4}, options={"phase_one_epochs": 2} | options
    )
    for name, options in {"one-node": {}, "two-nodes": {"ranks_per_node": 2}}.items()
}
FEWER = {  # by two workers
    "replicas-fewer": dataclasses.replace(
        REPLICAS["replicas-one-node"], checkpoint="replicas-fewer-checkpoint"
    )
}
CASES = (
    SEQUENTIAL
    | TURNS
    | BOTH_PHASES
    | JOINED
    | REPLICAS
    | SETTLED
    | REPLICAS_SHRINKING
    | NORMALISED_CASES
    | GIVEN
    | FEWER
    | ASYNCHRONOUS
    | BEGUN
    | CONTINUED
    | BROKEN
)


def shift(part, rows, epoch):
    """An augmentation that is a function of the row and of the epoch."""
    return part + np.float32(0.1) * ((rows[:, None] + epoch) % 3).astype(np.float32)


class Notes:
    """An augmentation that changes nothing, and writes down the rows that it is given."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, part, rows, epoch):
        with open(self.path, "a", encoding="ascii") as file:
            file.writelines(f"{epoch} {row}\n" for row in rows)
        return part


class Breaker:
    """An augmentation that fails in epoch 3, as soon as there are three replicas' checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, part, rows, epoch):
        deadline = time.monotonic() + 20
        while epoch == 3 and time.monotonic() < deadline:
            if len(list(self.folder.glob("replica-*/manifest.json"))) == 3:
                raise RuntimeError("broken")
            time.sleep(0.02)
        return part


def save_network(network: SparseMLP, path: Path) -> None:
    arrays = {}
    for k, layer in enumerate(network.layers):
        arrays |= {f"{name}-{k}": array for name, array in layer.arrays(moments=True).items()}
        for name in ("indptr_by_output", "indices_by_output"):
            arrays[f"{name}-{k}"] = getattr(layer.topology, name)
        arrays[f"values_by_output-{k}"] = layer.values_by_output
    np.savez(path, **arrays)


def run_case(case: Case, comm: Any, folder: Path, name: str) -> None:
    """Train a case on all ranks."""
    from largesparse.parallel import train_wasap, train_wassp
    from largesparse.parallel.wasap import phase_two, replicas
    from largesparse.parallel.wasap.server import Server

    (folder / name).mkdir(exist_ok=True)
    replicas.RECOVERY_UPDATES = case.recovery
    if case.on_disk:
        phase_two.RESULTS_SHARE = 0.0
    fill_in = Server.fill_in
    if case.blind:
        Server.fill_in = lambda server, record: None
    augment: Any = shift if case.augment else None
    if case.options.get("noted"):
        augment = Notes(folder / name / f"rows-{comm.rank}.txt")
    if case.options.get("broken"):
        augment = Breaker(folder / str(case.checkpoint))
    options = {k: value for k, value in case.options.items() if k not in ("noted", "broken")}
    train = train_wasap if case.algorithm == "wasap" else train_wassp
    config = case.make_config()
    network = None
    if comm.rank == 0:
        if case.copied is not None:
            shutil.copytree(folder / case.copied, folder / str(case.resume))
        with_network = case.resume is None or name == "resumed"
        network = case.make_network() if with_network else None
        options |= case.given()
        options["callbacks"] = [lambda trainer, record: record.epoch == case.stop_after]
        for place in ("checkpoint", "resume"):
            if getattr(case, place) is not None:
                options[place] = folder / getattr(case, place)
    history = train(network, config, augment=augment, progress=False, **options)
    told = {"epochs": history.to_list(), "report": None}
    if history.parallel is not None:
        told["report"] = dataclasses.asdict(history.parallel)
    (folder / name / f"history-{comm.rank}.json").write_text(json.dumps(told))
    if comm.rank == 0 and network is None:
        network = load_model(options["checkpoint"])
    if network is not None:
        save_network(network, folder / name / "network.npz")
    phase_two.RESULTS_SHARE, Server.fill_in = 0.25, fill_in


def main() -> None:
    from largesparse.parallel.comm.ranks import get_communicator

    comm = get_communicator()
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        if comm.rank == 0:
            print(name, flush=True)
        run_case(CASES[name], comm, folder, name)


if __name__ == "__main__":
    main()
