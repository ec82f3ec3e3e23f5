"""The command-line flags of `bigmodel`, in groups."""

from __future__ import annotations

from argparse import ArgumentParser

from ..backends.choice import AUTO, BACKEND_HELP, BACKENDS
from ..machine.sizes import parse_size
from ..model.config import COVERAGE
from ..model.workspace import ACTIVATION_DTYPES
from ..parallel.comm.transfer import CHUNK_BYTES
from ..parallel.pipeline.plan import SPLITS
from .presets import (
    BATCH_SIZE,
    CURVE_POINTS,
    CURVE_ROWS,
    FEATURES,
    HYPERPARAMETERS,
    LEAST_BATCH,
    LEAST_UPDATES,
)
from .setting_flags import add_settings

ALGORITHMS = ("wasap", "wassp", "allreduce", "pipeline")


def add_model_flags(parser: ArgumentParser) -> None:
    """Add the flags about the network."""
    group = parser.add_argument_group("model (defaults follow the nearest row of Table 4)")
    group.add_argument(
        "--neurons",
        type=parse_size,
        metavar="N",
        help="hidden neurons of all layers together: 250k, 1M, 2.5M, 50M (required, but for "
        "--resume)",
    )
    group.add_argument("--layers", type=parse_size, metavar="N", help="number of hidden layers")
    group.add_argument(
        "--coverage",
        choices=COVERAGE,
        help="'full': at first no neuron is without an input and an output, as far as there are "
        f"enough connections (default: {told_default('coverage')})",
    )
    group.add_argument("--alpha", type=float, help="All-ReLU's slope (default 0.6)")
    group.add_argument(
        "--recipe",
        choices=sorted(HYPERPARAMETERS),
        default="width",
        help="initial values and learning rates: 'width' learns at any width, "
        "'paper' is the paper's (default %(default)s)",
    )


def add_data_flags(parser: ArgumentParser) -> None:
    """Add the flags about the data set."""
    group = parser.add_argument_group("data: make_classification with two classes")
    group.add_argument(
        "--features", type=parse_size, default=FEATURES, metavar="N", help="default %(default)s"
    )
    group.add_argument(
        "--samples",
        type=parse_size,
        default=10000,
        metavar="N",
        help="training and test rows together (default %(default)s)",
    )
    group.add_argument(
        "--informative", type=parse_size, default=32, metavar="N", help="default %(default)s"
    )
    group.add_argument(
        "--redundant", type=parse_size, default=32, metavar="N", help="default %(default)s"
    )
    group.add_argument("--test-fraction", type=float, default=0.3, help="default %(default)s")


def add_training_flags(parser: ArgumentParser) -> None:
    """Add the flags about the training."""
    group = parser.add_argument_group("training")
    group.add_argument(
        "--epochs", type=parse_size, default=2, metavar="N", help="default %(default)s"
    )
    group.add_argument(
        "--batch-size",
        type=parse_size,
        metavar="N",
        help=f"samples per update (default: with recipe 'width' {BATCH_SIZE}, or with fewer than "
        f"{LEAST_UPDATES * BATCH_SIZE} training rows 64 or {LEAST_BATCH}, so that an epoch has "
        f"about {LEAST_UPDATES} updates; {BATCH_SIZE} with recipe 'paper', as in the paper)",
    )
    group.add_argument(
        "--micro-batch",
        type=parse_size,
        metavar="N",
        help="samples computed at once (default: what the memory allows)",
    )
    group.add_argument(
        "--keep-every",
        type=parse_size,
        metavar="K",
        help="keep the activations of every K-th layer, and compute the others again in the "
        "backward pass: up to 40 %% less memory (default: 1, or what the memory allows)",
    )
    group.add_argument(
        "--activation-dtype",
        choices=sorted(ACTIVATION_DTYPES),
        help="how activations are kept: bfloat16 halves their memory and what wide layers move "
        "(default: bfloat16 in layers of 100,000 neurons or more with backend fused)",
    )
    group.add_argument(
        "--storage",
        metavar="DIR",
        help="keep weights, gradients and activations in unnamed files in this folder, of which a "
        "layer or two are in memory at a time: the disk bounds the size; slower",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the data, the model and the training (default %(default)s)",
    )


def told_default(name: str) -> str:
    """Return the default of a flag that follows the recipe, as --help has it."""
    values = {recipe: getattr(each, name) for recipe, each in sorted(HYPERPARAMETERS.items())}
    if len(set(values.values())) == 1:
        return str(next(iter(values.values())))
    return ", ".join(f"{value} ({recipe})" for recipe, value in values.items())


def add_setting_flags(parser: ArgumentParser) -> None:
    """Add the flags that `largesparse train` has, too."""
    add_settings(
        parser,
        epsilon="that of the nearest row",
        schedule="the recipe's",
        dropout="0 (width), 0.4 (paper)",
        optimizer=told_default("optimizer") + "; from files sgd",
        learning_rate="by length and slots, 0.1 at most, with sgd by depth and width too, 4 at "
        "most (width); 0.01, with adam and adamw 0.001 (paper)",
        weight_decay="2e-4 (sgd, nesterov), 0 (adam), 0.01 (adamw)",
        growth=told_default("growth") + "; from files random",
        keep_active=told_default("keep_active"),
    )


def add_curve_flags(parser: ArgumentParser) -> None:
    """Add the flags about the learning curve within epochs."""
    group = parser.add_argument_group("learning curve")
    group.add_argument(
        "--curve-points",
        type=int,
        metavar="N",
        help="times an epoch that a fixed part of the test rows is evaluated; the record has loss "
        f"and accuracy (default: {CURVE_POINTS} for 1M neurons or more, otherwise 0: not at all)",
    )
    group.add_argument(
        "--curve-rows",
        type=parse_size,
        metavar="N",
        help=f"rows of that part (default: 1 %% of the training rows, 8 to {CURVE_ROWS})",
    )


def add_run_flags(parser: ArgumentParser) -> None:
    """Add the flags about how it runs and what it leaves."""
    group = parser.add_argument_group("run")
    group.add_argument("--backend", choices=(AUTO, *BACKENDS), help=BACKEND_HELP)
    group.add_argument(
        "--threads",
        type=parse_size,
        metavar="N",
        help="of a rank (default: all cores; under mpiexec the node's cores divided by its slots)",
    )
    group.add_argument(
        "--processes",
        type=parse_size,
        default=1,
        metavar="N",
        help="without mpiexec: also time inference with this many worker processes",
    )
    group.add_argument(
        "--out",
        default="runs.jsonl",
        metavar="FILE",
        help="receives the run record, one JSON line (default %(default)s)",
    )
    group.add_argument(
        "--checkpoint",
        metavar="DIR",
        help="write a checkpoint after every epoch, and where SIGTERM or Ctrl-C stops the run "
        "(default with --resume: the folder that is resumed); one of another run is not replaced",
    )
    group.add_argument(
        "--resume",
        metavar="DIR",
        nargs="?",
        const="",
        help="go on from a checkpoint, in the middle of an epoch too; other flags need not be "
        "repeated, and those of the model and the data cannot change. Without DIR: go on from the "
        "folder of --checkpoint, or start where it has none yet",
    )
    group.add_argument("--plan", action="store_true", help="print the memory plan and stop")


def add_ranks_flags(parser: ArgumentParser) -> None:
    """Add the flags about how a training is spread over ranks."""
    group = parser.add_argument_group("ranks (under mpiexec -n 2 or more)")
    group.add_argument(
        "--algorithm",
        choices=ALGORITHMS,
        default="wasap",
        help="how gradients are applied in phase one: 'wasap' each as it arrives, 'wassp' the mean "
        "of all workers' at once, 'allreduce' as wassp, but added up by the nodes, without server; "
        "'pipeline': each rank has consecutive layers alone, and no rank the whole network "
        "(default %(default)s)",
    )
    group.add_argument(
        "--groups",
        type=parse_size,
        default=1,
        metavar="G",
        help="of a pipeline: divide the ranks into G pipelines, which train on different rows of "
        "every mini-batch and sum their gradients (default %(default)s)",
    )
    group.add_argument(
        "--split",
        choices=SPLITS,
        default=SPLITS[0],
        help="of a pipeline: divide the layers so that the longest step is shortest (time) or the "
        "largest memory of a rank smallest (default: both, else memory)",
    )
    group.add_argument(
        "--phase-one-epochs",
        type=parse_size,
        metavar="N",
        help="epochs with one model; in the rest every worker trains a replica alone, and their "
        "average is the result (default: all of them with recipe 'width', 0.7 with 'paper')",
    )
    group.add_argument(
        "--slots",
        type=parse_size,
        metavar="N",
        help="gradients that a node computes at a time (default: by wasap with recipe 'width' one, "
        "of all cores; by allreduce one a worker; else as many as cores, fewer if memory asks)",
    )
    group.add_argument(
        "--ranks-per-node",
        type=parse_size,
        metavar="N",
        help="treat every N ranks of a machine as a node of its own, which shares no memory",
    )
    group.add_argument(
        "--chunk-bytes",
        type=parse_size,
        default=CHUNK_BYTES,
        metavar="N",
        help="largest message between nodes (default 2^28)",
    )
