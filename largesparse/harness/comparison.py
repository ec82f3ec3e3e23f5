"""What the drivers print: plan, settings, epochs, and the run beside the paper's Table 4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..machine.sizes import show_seconds
from ..model.config import NetworkConfig
from ..model.rules import describe_rule
from ..parallel.options import JOINED
from ..training.history import EpochRecord, History
from ..training.memory import GIB
from .presets import BATCH_SIZE, FEATURES, nearest_row, nominal_parameters
from .records import RunRecord, median_of


def describe_plan(config: NetworkConfig, plan: object) -> str:
    """Return the size of the problem and the memory plan, which is printed as `str` has it."""
    if config.epsilon is None:
        density = f"density {config.density:g}, {config.distribution}"
    else:
        nominal = nominal_parameters(config.layer_sizes, config.epsilon)
        density = f"epsilon {config.epsilon:g}: {nominal:,.0f} parameters as Table 4 counts"
    lines = [
        f"architecture {'-'.join(map(str, config.layer_sizes))}: {config.neurons:,} neurons, "
        f"{config.expected_connections():,.0f} connections expected",
        density,
    ]
    for number, probability in enumerate(config.probabilities(), start=2):
        if probability == 1:
            lines.append(f"layer {number} is fully connected at this density")
    return "\n".join([*lines, "memory plan", str(plan)])


def describe_training(used: Any, state: Any, *, resumed: bool) -> str:
    """Return the settings of a training that begins now, or goes on; `state` says where."""
    text = describe_settings(used)
    if not resumed:
        return text
    part = f", and {state.samples:,} samples of the next" if state.samples else ""
    return f"{text}, as in the checkpoint\nresumed after epoch {state.epoch}{part}"


def describe_settings(used: Any) -> str:
    """Return the settings of a training in a line."""
    return (
        f"training: {used.optimizer}, learning rate {used.learning_rate:g} ({used.schedule}), "
        f"batch {used.batch_size}, micro-batch {used.micro_batch}, momentum {used.momentum:g}, "
        f"dropout {used.dropout:g}, weight decay {used.weight_decay:g}, zeta {used.zeta:g}, drop "
        f"{describe_rule(used.drop)}, growth {describe_rule(used.growth)}"
    )


def describe_epoch(record: EpochRecord, epochs: int) -> str:
    """Return a line about an epoch. One of phase two has no model that could be evaluated."""
    if record.loss is None:
        running = record.running_loss
        results = "replicas apart" + ("" if running is None else f", their loss {running:.4f}")
    else:
        results = f"loss {record.loss:.4f}"
        if record.test_accuracy is not None:
            results += f", test accuracy {record.test_accuracy:.3f}"
    times = [("training", record.epoch_s), ("inference", record.inference_s)]
    times.append(("evolution", record.evolution_s))
    times.append(("learning curve", record.curve_s))
    if record.curve:
        results += ", within it " + " ".join(f"{point['accuracy']:.2f}" for point in record.curve)
    shown = [f"{name} {show_seconds(value)}" for name, value in times if value is not None]
    return f"epoch {record.epoch}/{epochs}: {', '.join([results, *shown])}"


def describe_new_epochs(epochs: Sequence[EpochRecord], total: int) -> list[str]:
    """Return a line for the last epoch, and for those of phase two right before it."""
    first = len(epochs) - 1
    while first > 1 and epochs[first - 1].loss is None:
        first -= 1
    return [describe_epoch(record, total) for record in epochs[first:]]


def compare_with_table_4(record: RunRecord, config: NetworkConfig) -> str:
    """Return the times and sizes of a run, of a size of Table 4 beside those of its row."""
    epsilon, nominal = "-", "-"
    if config.epsilon is not None:
        epsilon = f"{config.epsilon:g}"
        nominal = f"{nominal_parameters(config.layer_sizes, config.epsilon) / 1e6:.1f} M"
    row = nearest_row(config.neurons)
    rows = [
        ("neurons", f"{record.neurons:,}", f"{row.neurons:,}"),
        ("active before training", _active(record, 0), "-"),
        ("active in the last epoch", _active(record, -1), "-"),
        ("connections", f"{record.connections:,}", "-"),
        ("hidden layers", str(record.layers), str(row.hidden_layers)),
        ("epsilon", epsilon, f"{row.epsilon:g}"),
        ("parameters, as Table 4 counts", nominal, f"{row.parameters / 1e6:.1f} M"),
        ("connections and biases", f"{(record.parameters or 0) / 1e6:.1f} M", "-"),
        ("initialisation", _median([record.init_s]), f"{row.init_min:g} min"),
        ("epoch (median)", _median(record.epoch_s), f"{row.epoch_min:g} min"),
        ("inference (median)", _median(record.inference_s), f"{row.inference_min:g} min"),
        ("evolution (median)", _median(record.evolution_s), f"{row.evolution_min:g} min"),
        ("mini-batch", f"{record.batch_size}", f"{BATCH_SIZE}"),
        ("updates an epoch", _updates(record), f"{-(-7000 // BATCH_SIZE)}"),
        ("workers or threads", _workers(record), str(row.workers)),
        ("training rows", f"{record.train_samples:,}", "7,000"),
        ("test rows", f"{record.test_samples:,}", "3,000"),
    ]
    lines = [f"{'':<32}{'this run':>16}{'paper, Table 4':>18}"]
    lines += [f"{name:<32}{ours:>16}{paper:>18}" for name, ours, paper in rows]
    if (config.neurons, config.layer_sizes[0]) != (row.neurons, FEATURES):
        lines = [line[:48] for line in lines]
    accuracies = [value for value in (record.accuracy or [])[1:] if value is not None]
    losses = [value for value in record.loss or [] if value is not None]
    before = f"{record.loss[0]:.4f} -> " if record.loss and record.loss[0] is not None else ""
    if record.curve:
        took, whole = (sum(s for s in many or [] if s) for many in (record.curve_s, record.epoch_s))
        lines.append(
            f"learning curve: {len(record.curve)} points on {record.curve_rows} test rows in "
            f"{show_seconds(took)}, {took / (whole or 1):.1%} of the training"
        )
    lines += [
        "",
        f"test accuracy {accuracies[-1]:.3f} after the last epoch, {max(accuracies):.3f} at best; "
        f"loss {before}{losses[-1]:.4f}",
    ]
    return "\n".join(lines)


def describe_use(record: RunRecord, history: History) -> str:
    """Return the memory of a run beside the plan, and what the ranks did."""
    assert record.peak_rss_bytes is not None and record.planned_bytes is not None
    planned = record.planned_bytes / GIB
    report = history.parallel
    if report is None:
        return f"peak memory {record.peak_rss_bytes / GIB:.2f} GiB, planned {planned:.2f}"
    slots = ", ".join(map(str, report.slots))
    return (
        f"{report.ranks} ranks, {report.nodes} nodes with {slots} slots: staleness "
        f"{report.mean_staleness:.1f} in the mean, {report.max_staleness} at most; "
        f"{report.bytes_moved / GIB:.2f} GiB between nodes; {sum(report.cpu_s):.0f} s of "
        f"processors\nmemory of the largest node {report.node_pss_bytes / GIB:.2f} GiB, planned "
        f"{planned:.2f}"
    )


def _active(record: RunRecord, epoch: int) -> str:
    count = (record.active_neurons or [None])[epoch]
    if count is None or not record.neurons:
        return "-"
    return f"{count:,} ({count / record.neurons:.1%})"


def _updates(record: RunRecord) -> str:
    rows, batch = record.train_samples or 0, record.batch_size or 1
    if record.algorithm in JOINED:  # of all workers' mini-batches together
        batch *= max(1, (record.ranks or 1) - 1)
    return f"{-(-rows // batch):,}"


def _workers(record: RunRecord) -> str:
    ranks = record.ranks or 1
    if record.algorithm == "pipeline":
        return f"{ranks} ranks"
    return f"{ranks - 1} workers" if ranks > 1 else str(record.threads)


def _median(values: Sequence[float | None] | None) -> str:
    median = median_of(values)
    return "-" if median is None else show_seconds(median)
