"""What the estimators take where the user says "auto" or None, by the size of the table."""

from __future__ import annotations

import itertools

import numpy as np
from joblib import effective_n_jobs

from .._version import DOCUMENTATION
from ..errors import ParameterError, check_range
from ..machine.threads import available_threads
from ..model.config import NetworkConfig, Recipe

OWNER = "a sparse MLP estimator"
DOC_LINK = "largesparse", f"{DOCUMENTATION}api/estimators.html#largesparse.{{estimator_name}}"
STOPPING_ROWS = 10_000  # early_stopping="auto" sets a validation part aside above these
SMALLEST_BATCH, LARGEST_BATCH = 8, 128
UPDATES_PER_EVOLUTION = 16
STEPS_PER_EPOCH = 16  # small tables get at least about as many updates an epoch
FEWEST_EPOCHS, UNWATCHED_EPOCHS, MOST_EPOCHS = 20, 50, 100
EPOCH_ROWS = 2_000_000  # max_epochs="auto" trains on about as many rows, between these bounds
EPOCH_CELLS = 2_000_000_000  # and on about as many cells of the table
LARGEST_EPSILON = 20.0
MOST_CONNECTIONS = 500_000  # above these, ε is lower where it is not given
WIDE_FACTOR = 1 / 3  # of the rate of recipe "width", with more features than rows
WEIGHT_DECAY = 1e-5  # where validation rows tell the best epoch, and in partial_fit
LARGEST_DECAY = 0.01
SMALLEST_DENSITY = 0.01  # of a layer, for recipe="auto" to be the paper's
RATES = {  # learning_rate="auto", by loss and recipe
    "softmax_cross_entropy": {"paper": 0.01, "width": 0.3},
    "mean_squared_error": {"paper": 0.003, "width": 0.02},
}
ADAMS = ("adam", "adamw")
ADAM_RATES = {"paper": 0.005, "width": 0.01}  # of these, by recipe, whatever the loss
HIDDEN = (400, 400)
DROPOUT, WEIGHT_DECAY = 0.2, 1e-5  # of rows of one label, and of numbers
PARTIAL_FACTOR = 0.25  # of the rate, where neither a warm-up nor a schedule tames it


def auto_batch_size(n_rows: int) -> int:
    """Return the samples per update for a number of training rows: a power of two, 8 to 128."""
    wanted = max(SMALLEST_BATCH, min(LARGEST_BATCH, n_rows // STEPS_PER_EPOCH))
    return min(n_rows, 2 ** (wanted.bit_length() - 1))


def evolution_interval(n_rows: int, batch_size: int) -> int:
    """Return the epochs between evolutions: between two of them are at least 16 updates.

    Fewer do not tell which weights stay small, and evolution would take longer than they do.

    Examples
    --------
    >>> evolution_interval(114, 32), evolution_interval(60_000, 128)
    (4, 1)
    """
    return -(-UPDATES_PER_EVOLUTION // -(-n_rows // batch_size))


def auto_epochs(n_rows: int, n_features: int, *, watched: bool) -> int:
    """Return the number of epochs: 50, or 100 where validation rows tell the best one; fewer for
    large tables.
    """
    most = min(EPOCH_ROWS // n_rows, EPOCH_CELLS // (n_rows * n_features))
    return max(FEWEST_EPOCHS, min(most, MOST_EPOCHS if watched else UNWATCHED_EPOCHS))


def auto_decay(updates: int) -> float:
    """Return the weight decay of a training without validation rows: one over its updates.

    So it takes about e^-½ (the schedule halves it) from weights that nothing renews.

    Examples
    --------
    >>> auto_decay(1000)
    0.001
    """
    return min(LARGEST_DECAY, 1 / updates)


def auto_epsilon(layer_sizes: tuple[int, ...]) -> float:
    """Return ε where the user gives neither it nor a density: 20, less for very wide tables.

    On 800 × 88,119 binary features ε 5 is faster and no less accurate than 20.
    """
    sizes = sum(n_in + n_out for n_in, n_out in itertools.pairwise(layer_sizes))
    return max(1.0, min(LARGEST_EPSILON, MOST_CONNECTIONS / sizes))


def auto_rate(config: NetworkConfig, n_rows: int) -> float:
    """Return the learning rate for a network and a number of rows."""
    rate = RATES[config.loss][config.recipe]
    wide = config.recipe == "width" and config.layer_sizes[0] > n_rows
    return rate * WIDE_FACTOR if wide else rate


def auto_recipe(config: NetworkConfig, n_rows: int | None) -> Recipe:
    """Return the recipe of a network that is trained on a number of rows (None: not known).

    That is "width", which learns at every width. With more features than rows the paper's
    smaller initial weights generalise better (105 × 22,283 microarrays, 10 classes, five folds:
    accuracy 0.68 for 0.58), as long as the layers are dense enough for a signal to pass.
    """
    few_rows = n_rows is not None and config.layer_sizes[0] > n_rows
    return "paper" if few_rows and min(config.probabilities()) >= SMALLEST_DENSITY else "width"


def stops_early(early_stopping: bool | str, n_rows: int) -> bool:
    """Return whether a part of the rows is set aside: "auto" is above 10,000 rows."""
    if isinstance(early_stopping, bool | np.bool_):
        return bool(early_stopping)
    if early_stopping != "auto":
        raise ParameterError(
            f"The 'early_stopping' parameter of {OWNER} must be True, False or 'auto'. "
            f"Got {early_stopping!r} instead."
        )
    return n_rows > STOPPING_ROWS


def resolve_jobs(n_jobs: int | None) -> int:
    """Return the threads that scikit-learn's `n_jobs` means: None is 1, -1 all cores.

    Under `joblib.parallel_config(n_jobs=…)`, None is that number.
    """
    if n_jobs is None:
        return int(effective_n_jobs(None))
    check_range("n_jobs", n_jobs, OWNER, low=-4096, high=4096, integer=True)
    if n_jobs == 0:
        raise ParameterError(
            f"The 'n_jobs' parameter of {OWNER} must not be 0: pass the number of threads, or "
            "-1 for all cores."
        )
    return int(n_jobs) if n_jobs > 0 else max(1, available_threads() + 1 + int(n_jobs))
