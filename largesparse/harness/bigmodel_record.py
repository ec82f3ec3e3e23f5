"""What `bigmodel` records of a run: one line of its output file."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..machine.usage import peak_rss_bytes
from ..model.config import NetworkConfig, TrainingConfig
from ..parallel.pipeline.plan import PipelinePlan
from ..training.history import History, ParallelReport
from ..training.trainer import Trainer
from .records import RunRecord, new_record


class Trained(NamedTuple):
    """What has been trained, and how."""

    config: TrainingConfig
    micro_batch: int
    connections: int
    parameters: int
    backend: str
    backend_reason: str | None
    threads: int

    @classmethod
    def of(cls, trainer: Trainer) -> Trained:
        """Return what a trainer that has the whole network has trained."""
        network = trainer.network
        return cls(
            trainer.config,
            trainer.micro_batch,
            network.connections,
            network.parameters,
            trainer.backend.name,
            network.trained_with and network.trained_with.reason,
            trainer.threads,
        )

    @classmethod
    def by_stages(cls, trainer: Trainer, history: History) -> Trained:
        """Return what the ranks of a pipeline have trained together; `trainer` is one's."""
        connections = sum(history.epochs[-1].nnz)
        neurons = sum(trainer.network.config.layer_sizes[1:])
        return cls.of(trainer)._replace(connections=connections, parameters=connections + neurons)


def record_of(
    config: NetworkConfig,
    plan: Any,
    trained: Trained,
    history: History,
    data: Any,
    init_s: float | None,
) -> RunRecord:
    """Return the record of a run."""
    used = trained.config
    return new_record(
        "bigmodel",
        neurons=config.neurons,
        layers=len(config.layer_sizes) - 2,
        features=config.layer_sizes[0],
        epsilon=config.epsilon,
        parameters=trained.parameters,
        connections=trained.connections,
        backend=trained.backend,
        backend_reason=trained.backend_reason,
        recipe=config.recipe,
        batch_size=used.batch_size,
        micro_batch=trained.micro_batch,
        keep_every=used.keep_every,
        activation_dtype=used.activation_dtype,
        train_samples=len(data.y_train),
        test_samples=len(data.y_test),
        seed=config.seed,
        init_s=init_s,
        epoch_s=history["epoch_s"][1:],
        inference_s=history["inference_s"][1:],
        evolution_s=history["evolution_s"][1:],
        loss=history["loss"],
        accuracy=history["test_accuracy"],
        coverage=config.coverage,
        active_neurons=history["active_neurons"],
        planned_bytes=plan.total,
        optimizer=used.optimizer,
        learning_rate=used.learning_rate,
        growth=used.growth,
        curve=history.curve,
        curve_s=history["curve_s"][1:],
        curve_rows=min(used.curve_rows, len(data.y_test)) if used.curve_points else None,
        **_of_ranks(plan, trained, history.parallel),
    )


def _of_ranks(plan: Any, trained: Trained, report: ParallelReport | None) -> dict[str, Any]:
    """Return what the record has about the ranks."""
    if report is None:
        return {
            "algorithm": "sequential",
            "ranks": 1,
            "threads": trained.threads,
            "peak_rss_bytes": peak_rss_bytes(),
        }
    names = ("algorithm", "ranks", "peak_rss_bytes", "idle_s", "bytes_moved", "cpu_s")
    found = {name: getattr(report, name) for name in names} | {"threads": report.threads[0]}
    if isinstance(plan, PipelinePlan):
        return found | {
            "groups": plan.request.groups,
            "split": plan.split,
            "stages": report.stages,
            "stage_bytes": report.rss_bytes,
            "steps_s": report.step_s,
            "bubble": report.waiting_share,
            "least_bubble": report.bubble,
            "steps_bytes": report.steps_bytes,
        }
    found |= {name: getattr(report, name) for name in ("node_pss_bytes", "phase_one_epochs")}
    return found | {"staleness": report.staleness_record()}
