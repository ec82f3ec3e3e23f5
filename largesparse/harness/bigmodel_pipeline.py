"""`bigmodel --algorithm pipeline`: layers divided over the ranks, none of which has them all."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from ..errors import ParameterError, check_range
from ..model.config import NetworkConfig, TrainingConfig
from ..parallel.pipeline.choice import choose_pipeline_plan
from ..parallel.pipeline.job import check_settings
from ..parallel.pipeline.pipeline import train_pipeline
from ..parallel.pipeline.plan import Machine, PipelinePlan, Request
from ..training.checkpoint import read_network_config
from ..training.manifest import open_training
from ..training.memory_plan import GIB
from ..training.state import TrainingState
from .bigmodel_record import Trained, record_of
from .comparison import describe_training
from .records import RunRecord
from .resuming import check_network

NAME = "pipeline"
OF_OTHERS = {  # flags, with what they may be
    "phase_one_epochs": (None,),
    "slots": (None,),
    "ranks_per_node": (None,),
    "keep_every": (None, 1),
}
OWN = {"groups": 1, "split": "auto"}  # and of this one, with their defaults


def is_pipeline(options: argparse.Namespace, ranks: int) -> bool:
    """Return whether a run divides the layers over ranks: one alone has all of them."""
    return ranks > 1 and options.algorithm == NAME


def forget_noted_(options: argparse.Namespace, noted: dict[str, Any], ranks: int) -> None:
    """Give flags of another algorithm their defaults where the run that goes on had others.

    `noted` are those that it was started with, which are this one's defaults.
    """
    defaults: dict[str, Any] = {}
    if options.algorithm == NAME:
        defaults |= dict.fromkeys(OF_OTHERS)
    if not is_pipeline(options, ranks):
        defaults |= OWN
    for name, value in defaults.items():
        if name in noted and getattr(options, name) == noted[name]:
            setattr(options, name, value)


def check_flags(options: argparse.Namespace, ranks: int) -> None:
    """Raise `ParameterError` for flags of another algorithm than the one that is named.

    There are at most as many groups as ranks.
    """
    if options.algorithm == NAME:
        wrong = [name for name, fine in OF_OTHERS.items() if getattr(options, name) not in fine]
        problem = f"is not one of --algorithm {NAME}"
    else:
        wrong = [name for name, value in OWN.items() if getattr(options, name) != value]
        problem = f"is one of --algorithm {NAME}"
    if wrong:
        raise ParameterError(
            f"The {wrong[0]!r} parameter of bigmodel {problem}. Got "
            f"{getattr(options, wrong[0])!r} with --algorithm {options.algorithm}. Leave it out."
        )
    remedy = "Start as many ranks as groups, or more, by mpiexec -n."
    check_range(
        "groups", options.groups, "bigmodel", low=1, high=ranks, integer=True, remedy=remedy
    )


def plan_pipeline(
    options: argparse.Namespace,
    config: NetworkConfig,
    training: TrainingConfig,
    machines: tuple[Machine, ...],
    *,
    activation_dtype: str,
    backend: str,
    once: int,
) -> PipelinePlan:
    """Return which rank has which layers, the micro-batch, and what each rank takes.

    Settings that layers on several ranks cannot have are refused before.
    """
    check_settings(config, training)
    if options.resume:
        check_network(read_network_config(options.resume), config)
    request = Request(
        config,
        options.batch_size,
        machines,
        options.groups,
        options.split,
        training.moments,
        backend,
        4 * options.samples * options.features,
        once,
        training.candidates_per_connection,
        not training.rules.needs_gradient,
    )
    return choose_pipeline_plan(
        request, micro_batch=options.micro_batch, activation_dtype=activation_dtype
    )


def has_ends(plan: PipelinePlan, rank: int) -> bool:
    """Return whether a rank has the first or the last layers, and so needs the data."""
    stages = len(plan.stages)
    return rank % stages in (0, stages - 1)


def describe_start(resume: str | None, training: TrainingConfig, changes: dict[str, Any]) -> str:
    """Return the settings of a training that begins now, or of the checkpoint that it resumes."""
    if resume is None:
        return describe_training(training, None, resumed=False)
    found = open_training(resume)[2]
    used = argparse.Namespace(**dataclasses.asdict(training) | found["config"] | changes)
    return describe_training(used, TrainingState.from_dict(found, None), resumed=True)


def train_stages(
    options: argparse.Namespace,
    plan: PipelinePlan,
    config: NetworkConfig,
    training: TrainingConfig,
    data: Any,
    *,
    comm: Any,
    **own: Any,
) -> tuple[RunRecord, Any] | None:
    """Train by all ranks; return the record and the history on rank 0. `own` are its options."""
    given: dict[str, Any] = {}
    if data is not None:
        given = {"X": data.X_train, "y": data.y_train, "test": (data.X_test, data.y_test)}
    pipeline = train_pipeline(
        config,
        training,
        comm=comm,
        groups=plan.request.groups,
        split=[0, *(stage.last for stage in plan.stages)],
        chunk_bytes=options.chunk_bytes,
        **given,
        **own,
    )
    if comm.rank > 0:
        return None
    trained = Trained.by_stages(pipeline.trainer, pipeline.history)
    return record_of(config, plan, trained, pipeline.history, data, None), pipeline.history


def planned_steps_bytes(plan: PipelinePlan, rows: int, epochs: int) -> int:
    """Return the bytes that the steps of epochs of so many rows move between ranks, as planned."""
    size = plan.request.batch_size
    whole, rest = divmod(rows, size)
    each = whole * plan.step_bytes + (plan.bytes_between(rest) if rest else 0)
    return epochs * (each + (whole + bool(rest)) * plan.summed_bytes)


def describe_stages(plan: PipelinePlan, record: RunRecord) -> str:
    """Return what the ranks took and moved, next to the plan."""
    planned = [plan.plans[rank % len(plan.stages)] for rank in range(plan.ranks)]
    took = ", ".join(
        f"{size / GIB:.2f} of {own.required / GIB:.2f}"
        for size, own in zip(record.stage_bytes or [], planned, strict=True)
    )
    waited = ", ".join(f"{share:.0%}" for share in record.bubble or [])
    moved, steps = record.bytes_moved or 0, record.steps_bytes or 0
    return (
        f"{plan.ranks} ranks waited {waited} of their steps, {record.least_bubble:.0%} or more by "
        f"the pipeline; {moved / GIB:.3f} GiB between ranks, {steps / GIB:.3f} of it in steps\n"
        f"peak memory of each, of what was planned: {took} GiB"
    )
