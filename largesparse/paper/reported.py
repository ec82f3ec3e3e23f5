"""What the paper states: its tasks (Tables 1 and 7) and its results (Tables 2, 3, 5 and 6).

Accuracies are in per cent, times in minutes. A result's variant is a name of
`reproduction.trainings`, or begins with "keras" where the paper ran Keras.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from typing import NamedTuple

from ..model.config import Initializer

EPOCHS = 500
TRIALS = 5  # trainings of each, with the mean of their best test accuracies
PRUNING_START = 200  # τ; the paper does not state p and t
WORKERS = 5  # of the parallel trainings (section 2.3)


class Task(NamedTuple):
    """A data set, its network and how it is trained (Tables 1 and 7)."""

    layer_sizes: tuple[int, ...]
    epsilon: float
    learning_rate: float
    batch_size: int
    initializer: Initializer
    alpha: float
    train_samples: int
    test_samples: int
    dense_alpha: float  # of the dense network with All-ReLU in Table 2


TASKS = {
    "leukemia": Task(
        (54675, 27500, 27500, 18), 10, 0.005, 5, "normal", 0.75, 1397, 699, dense_alpha=0.75
    ),
    "higgs": Task(
        (28, 1000, 1000, 1000, 2), 10, 0.01, 128, "xavier", 0.05, 105_000, 50_000, dense_alpha=0.05
    ),
    "madelon": Task((500, 400, 100, 400, 2), 10, 0.01, 32, "normal", 0.5, 2000, 600, 0.5),
    "fashion_mnist": Task(
        (784, 1000, 1000, 1000, 10), 20, 0.01, 128, "he_uniform", 0.6, 60_000, 10_000, 0.25
    ),
    "cifar10": Task(
        (3072, 4000, 1000, 4000, 10), 20, 0.01, 128, "he_uniform", 0.75, 50_000, 10_000, 0.25
    ),
}

MOMENTUM = 0.9  # this and the next two: section 5.4
DROPOUT = 0.3
ZETA = 0.3


class Result(NamedTuple):
    """A line of Table 2 or 3; None is what it does not state."""

    dataset: str
    variant: str
    pruning: bool
    accuracy: float | None  # Table 2: the best of the epochs
    minutes: float | None = None
    start: int | None = None  # connections at the start, start_nW
    end: int | None = None  # and at the end, end_nW
    cpu_percent: float | None = None
    memory_mb: float | None = None


TABLE_2 = (
    Result("leukemia", "relu", False, 85.98, 375, 1_684_944, 1_684_944),
    Result("leukemia", "relu", True, 85.40, 266.5, 1_582_214, 312_900),
    Result("leukemia", "all_relu", False, 86.42, 375, 1_582_518, 1_582_518),
    Result("leukemia", "all_relu", True, 85.69, 266.5, 1_582_581, 313_047),
    Result("leukemia", "dense_relu", False, None, None, 2_260_362_518, 2_260_362_518),
    Result("leukemia", "dense_all_relu", False, None, None, 2_260_362_518, 2_260_362_518),
    Result("higgs", "relu", False, 73.59, 216.67, 50_224, 50_244),
    Result("higgs", "relu", True, 73.50, 182.3, 50_246, 10_065),
    Result("higgs", "all_relu", False, 73.67, 216.67, 50_165, 50_165),
    Result("higgs", "all_relu", True, 73.76, 140.3, 50_165, 9_992),
    Result("higgs", "dense_relu", False, 70.59, 182.3, 2_033_002, 2_033_002),
    Result("higgs", "dense_all_relu", False, 70.10, 140.13, 2_033_002, 2_033_002),
    Result("madelon", "relu", False, 68.50, 3.6, 19_000, 19_000),
    Result("madelon", "relu", True, 75.00, 3.2, 19_000, 2_739),
    Result("madelon", "all_relu", False, 71.33, 3.6, 19_011, 19_011),
    Result("madelon", "all_relu", True, 77.00, 3.2, 19_000, 2_737),
    Result("madelon", "dense_relu", False, 59.66, 3.62, 281_702, 281_702),
    Result("madelon", "dense_all_relu", False, 62.00, 3.62, 281_702, 281_702),
    Result("fashion_mnist", "relu", False, 90.48, 137.5, 126_302, 126_302),
    Result("fashion_mnist", "relu", True, 89.43, 96.25, 126_302, 26_111),
    Result("fashion_mnist", "all_relu", False, 91.38, 137.5, 126_302, 126_302),
    Result("fashion_mnist", "all_relu", True, 90.12, 96.25, 126_302, 25_759),
    Result("fashion_mnist", "dense_relu", False, 90.85, 95.05, 2_797_010, 2_797_010),
    Result("fashion_mnist", "dense_all_relu", False, 90.73, 95.05, 2_797_010, 2_797_010),
    Result("fashion_mnist", "srelu", False, 90.10),  # section 2.2's text, "around"
    Result("cifar10", "relu", False, 67.05, 590, 381_758, 381_758),
    Result("cifar10", "relu", True, 65.21, 530, 381_758, 238_114),
    Result("cifar10", "all_relu", False, 69.83, 590, 381_425, 381_425),
    Result("cifar10", "all_relu", True, 68.55, 530, 380_318, 221_323),
    Result("cifar10", "dense_relu", False, 64.94, 530.7, 20_337_010, 20_337_010),
    Result("cifar10", "dense_all_relu", False, 67.96, 530.7, 20_337_010, 20_337_010),
    Result("cifar10", "srelu", False, 70.30),  # section 2.2's text, "about"
)


def _parallel(dataset: str, variant: str, pruning: bool, *values: float | None) -> Result:
    accuracy, minutes, cpu, memory = values
    return Result(dataset, variant, pruning, accuracy, minutes, None, None, cpu, memory)


TABLE_3 = (
    _parallel("higgs", "wassp", False, 74.26, 142.52, 62, 2800),
    _parallel("higgs", "wassp", True, 74.16, 113.33, 62, 2800),
    _parallel("higgs", "wasap", False, 74.47, 138.52, 62, 2800),
    _parallel("higgs", "wasap", True, 74.88, 108.33, 62, 2800),
    _parallel("higgs", "sequential", False, 73.67, 216.67, 24, 1700),
    _parallel("higgs", "sequential", True, 73.76, 182.3, 24, 1700),
    _parallel("higgs", "keras, 1 core", False, 74.28, 350, 27, 2100),
    _parallel("higgs", "keras, 12 cores", False, 74.28, 191.7, 65, 2300),
    _parallel("higgs", "keras, GPU", False, 74.28, 78.3, 25, 2400),
    _parallel("fashion_mnist", "wassp", False, 90.52, 90.6, 65, 3300),
    _parallel("fashion_mnist", "wassp", True, 89.96, 77.6, 65, 3300),
    _parallel("fashion_mnist", "wasap", False, 91.23, 87.25, 65, 3300),
    _parallel("fashion_mnist", "wasap", True, 90.15, 74.85, 65, 3300),
    _parallel("fashion_mnist", "sequential", False, 91.38, 137.5, 20, 1900),
    _parallel("fashion_mnist", "sequential", True, 90.12, 96.25, 20, 1900),
    _parallel("fashion_mnist", "keras, 1 core", False, None, 316, 20, 2800),
    _parallel("fashion_mnist", "keras, 12 cores", False, None, 135.6, 76, 2800),
    _parallel("fashion_mnist", "keras, GPU", False, None, 65, 26, 3000),
    _parallel("cifar10", "wassp", False, 67.13, 309.9, 70, 6500),
    _parallel("cifar10", "wassp", True, 66.88, 279.9, 70, 6500),
    _parallel("cifar10", "wasap", False, 69.03, 281.9, 70, 6500),
    _parallel("cifar10", "wasap", True, 68.51, 246.5, 70, 6500),
    _parallel("cifar10", "sequential", False, 69.83, 590, 25, 2200),
    _parallel("cifar10", "sequential", True, 68.55, 530, 25, 2200),
    _parallel("cifar10", "keras, 1 core", False, None, 1000, 20, 4700),
    _parallel("cifar10", "keras, 12 cores", False, None, 530.7, 80, 4700),
    _parallel("cifar10", "keras, GPU", False, None, 195, 20, 4800),
)

# Slope of All-ReLU -> best accuracy on FashionMNIST. Table 5 has 0.5 twice; the first of them,
# between 0 and 0.1, is taken for 0.05, which the text below it names.
TABLE_5 = {
    0.0: 90.48,
    0.05: 90.86,
    0.1: 90.87,
    0.2: 90.75,
    0.25: 91.00,
    0.5: 91.08,
    0.6: 91.38,
    0.75: 91.09,
    0.8: 91.16,
    0.9: 91.02,
}


class PostPruning(NamedTuple):
    """What pruning once after the training leaves, at a percentile."""

    accuracy: float
    connections: int


# Data set -> percentile -> result; 0 is the network that is pruned.
TABLE_6 = {
    "leukemia": {
        0: PostPruning(86.42, 1_684_944),
        5: PostPruning(86.89, 1_074_251),
        10: PostPruning(86.69, 1_034_977),
        15: PostPruning(85.84, 992_711),
        20: PostPruning(85.84, 947_981),
        25: PostPruning(85.69, 901_289),
    },
    "higgs": {
        0: PostPruning(73.67, 50_224),
        5: PostPruning(73.00, 48_508),
        10: PostPruning(73.16, 46_693),
        15: PostPruning(72.61, 44_897),
        20: PostPruning(72.27, 42_601),
        25: PostPruning(71.51, 40_491),
    },
    "madelon": {
        0: PostPruning(71.33, 19_006),
        5: PostPruning(71.33, 18_385),
        10: PostPruning(72.00, 17_661),
        15: PostPruning(70.33, 16_883),
        20: PostPruning(69.16, 16_106),
        25: PostPruning(65.33, 15_297),
    },
    "fashion_mnist": {
        0: PostPruning(91.38, 125_901),
        5: PostPruning(90.66, 120_894),
        10: PostPruning(90.12, 115_486),
        15: PostPruning(89.37, 109_923),
        20: PostPruning(88.70, 104_158),
        25: PostPruning(85.97, 98_360),
    },
    "cifar10": {
        0: PostPruning(69.83, 381_758),
        5: PostPruning(69.53, 368_062),
        10: PostPruning(68.61, 352_791),
        15: PostPruning(68.38, 336_968),
        20: PostPruning(67.35, 320_316),
        25: PostPruning(66.57, 276_349),
    },
}


class Extreme(NamedTuple):
    """A sequential training of section 2.4; seconds."""

    neurons: int
    epsilon: float
    epoch_s: float
    inference_s: float | None
    evolution_s: float | None


EXTREMES = (
    Extreme(10_000_000, 1, 33 * 60 + 18, 12 * 60 + 9, 30),
    Extreme(50_000_000, 1, 75 * 60, None, None),
)


def parse_dataset(text: str) -> str:
    """Return the name of a data set, however it is written: fashionmnist, FashionMNIST.

    It is an argument's `type`.
    """
    known = {name.replace("_", ""): name for name in TASKS}
    found = known.get(text.lower().replace("_", "").replace("-", ""))
    if found is None:
        names = ", ".join(TASKS)
        raise ArgumentTypeError(f"{text!r} is no data set of the paper: {names}")
    return found


def result(table: tuple[Result, ...], dataset: str, variant: str, pruning: bool) -> Result | None:
    """Return a line of Table 2 or 3, or None where the paper has none."""
    wanted = dataset, variant, pruning
    return next((row for row in table if row[:3] == wanted), None)


def share_left(dataset: str) -> float:
    """Return the share of the connections that Table 2 has at the end with Importance Pruning.

    It is that of All-ReLU; 0.2 for data sets that are not in the table.
    """
    found = result(TABLE_2, dataset, "all_relu", True)
    if found is None or found.start is None or found.end is None:
        return 0.2
    return found.end / found.start
