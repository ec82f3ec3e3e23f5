"""Small trainings by a pipeline that the tests run under mpiexec, and repeat in one process.

    mpiexec -n K python pipeline_cases.py FOLDER NAME...

trains the cases one after another. Of each, every rank writes its history to FOLDER/NAME, and
rank 0 the predictions; the network is in the checkpoint.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from largesparse import NetworkConfig, TrainingConfig

ROWS, FEATURES, CLASSES = 47, 8, 3
PRUNING = {"pruning_start": 1, "pruning_every": 1, "pruning_percentile": 20.0}


@dataclass(frozen=True)
class Case:
    """A training; what is not given is a small network's on `ROWS` rows."""

    network: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    stop_after: int | None = None  # epochs
    resume: str | None = None  # case whose checkpoint it goes on from

    def network_config(self) -> NetworkConfig:
        settings = {"layer_sizes": (FEATURES, 24, 16, 20, CLASSES), "epsilon": 3.0, "seed": 5}
        return NetworkConfig(**settings | self.network)

    def config(self, **changes: Any) -> TrainingConfig:
        settings = {
            "epochs": 5,  # of 10 updates
            "batch_size": 5,
            "micro_batch": 2,
            "learning_rate": 0.05,
            "dropout": 0.2,
            "seed": 11,
            "backend": "scipy",
            "threads": 1,
            **PRUNING,
        }
        return TrainingConfig(**settings | self.training | changes)

    def data(self) -> tuple[Any, Any]:
        """Rows whose classes can be learnt."""
        rng = np.random.default_rng(0)
        X = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
        return X, (X @ rng.normal(size=(FEATURES, CLASSES))).argmax(axis=1)


CASES = {
    "stopped": Case(stop_after=2),
    "resumed": Case(resume="stopped"),
    "resumed-by-fewer": Case(resume="stopped"),
    "resumed-alone": Case(resume="stopped"),
    "groups": Case(options={"groups": 2}, training={"batch_size": 8}),
}


def run_case(name: str, comm: Any, folder: Path) -> None:
    from largesparse.parallel import load_pipeline, train_pipeline

    case, place = CASES[name], folder / name
    X, y = case.data()
    groups = case.options.get("groups", 1)
    number = comm.rank % (comm.size // groups)  # of the stage
    first, last = number == 0, number == comm.size // groups - 1
    stop = [lambda _, record: record.epoch == case.stop_after] if case.stop_after else []
    pipeline = train_pipeline(
        case.network_config() if comm.rank == 0 and case.resume is None else None,
        case.config(),
        X if first else None,
        y if last else None,
        test=(X[:9] if first else None, y[:9] if last else None),
        callbacks=stop if comm.rank == 0 else (),
        checkpoint=place / "checkpoint",
        resume=folder / case.resume / "checkpoint" if case.resume else None,
        progress=False,
        **case.options,
    )
    outputs = pipeline.outputs(X if first else None)
    labels = pipeline.predict(X if first else None)
    scores = pipeline.evaluate(X if first else None, y if last else None)
    pipeline.save(place / "model")
    used = {"backend": pipeline.trainer.backend.name, "batch_size": pipeline.trainer.micro_batch}
    read = load_pipeline(place / "model", threads=1, **used, **case.options)
    again = read.outputs(X if first else None)
    report = pipeline.history.parallel
    told = {
        "history": pipeline.history.to_list(),
        "scores": scores,
        "own": [layer.number for layer in pipeline.network.layers],
        "report": None if report is None else vars(report),
    }
    (place / f"told-{comm.rank}.json").write_text(json.dumps(told))
    if comm.rank == 0:
        np.savez(place / "predicted.npz", outputs=outputs, labels=labels, again=again)


def main() -> None:
    from largesparse.parallel.comm.ranks import get_communicator

    comm = get_communicator()
    for name in sys.argv[2:]:
        if comm.rank == 0:
            print(name, flush=True)
            (Path(sys.argv[1]) / name).mkdir()
        run_case(name, comm, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
