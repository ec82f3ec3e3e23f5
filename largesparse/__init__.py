"""Truly sparse neural networks on CPUs: only the connections that exist are ever stored."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__

if TYPE_CHECKING:  # under their own names, so that type checkers hand them on
    from .data.datasets import Dataset as Dataset
    from .data.datasets import load_dataset as load_dataset
    from .data.extreme import make_extreme_classification as make_extreme_classification
    from .data.ranking import ndcg_at_k as ndcg_at_k
    from .data.ranking import precision_at_k as precision_at_k
    from .data.ranking import propensities as propensities
    from .data.ranking import psndcg_at_k as psndcg_at_k
    from .data.ranking import psp_at_k as psp_at_k
    from .data.skewness import alpha_from_skewness as alpha_from_skewness
    from .data.standardizer import Standardizer as Standardizer
    from .data.synthetic import make_large_classification as make_large_classification
    from .errors import LargeSparseError as LargeSparseError
    from .estimators.classifier import SparseMLPClassifier as SparseMLPClassifier
    from .estimators.regressor import SparseMLPRegressor as SparseMLPRegressor
    from .estimators.selection import SparseFeatureSelector as SparseFeatureSelector
    from .harness.measurements import read_measurements as read_measurements
    from .harness.records import read_records as read_records
    from .model.config import NetworkConfig as NetworkConfig
    from .model.config import TrainingConfig as TrainingConfig
    from .model.export import fold as fold
    from .model.given import GivenTopology as GivenTopology
    from .model.given import receptive_fields as receptive_fields
    from .model.importance import active_neurons as active_neurons
    from .model.importance import compact as compact
    from .model.importance import importance_table as importance_table
    from .model.importance import input_strength as input_strength
    from .model.importance import neuron_importance as neuron_importance
    from .model.importance import prune_neurons as prune_neurons
    from .model.network import SparseMLP as SparseMLP
    from .parallel import load_pipeline as load_pipeline
    from .parallel import train_pipeline as train_pipeline
    from .parallel import train_wasap as train_wasap
    from .parallel import train_wassp as train_wassp
    from .training.checkpoint import load_model as load_model
    from .training.checkpoint import save_model as save_model
    from .training.history import EpochRecord as EpochRecord
    from .training.history import History as History
    from .training.history import ParallelReport as ParallelReport
    from .training.monitoring import GradientFlow as GradientFlow
    from .training.monitoring import InputDegrees as InputDegrees
    from .training.prediction import Predictor as Predictor
    from .training.prediction import predict as predict
    from .training.prediction import predict_proba as predict_proba
    from .training.prediction import predict_top as predict_top
    from .training.resumed_settings import load_checkpoint as load_checkpoint
    from .training.trainer import Trainer as Trainer
    from .training.trainer import save_checkpoint as save_checkpoint

# module -> its public names; it is imported when one of them is first used
_NAMES = {
    "data.datasets": ("Dataset", "load_dataset"),
    "data.extreme": ("make_extreme_classification",),
    "data.ranking": (*("ndcg_at_k", "precision_at_k", "propensities", "psndcg_at_k", "psp_at_k"),),
    "data.skewness": ("alpha_from_skewness",),
    "data.standardizer": ("Standardizer",),
    "data.synthetic": ("make_large_classification",),
    "errors": ("LargeSparseError",),
    "estimators.classifier": ("SparseMLPClassifier",),
    "estimators.regressor": ("SparseMLPRegressor",),
    "estimators.selection": ("SparseFeatureSelector",),
    "harness.measurements": ("read_measurements",),
    "harness.records": ("read_records",),
    "model.config": ("NetworkConfig", "TrainingConfig"),
    "model.export": ("fold",),
    "model.importance": (
        *("active_neurons", "compact", "importance_table", "input_strength"),
        *("neuron_importance", "prune_neurons"),
    ),
    "model.given": ("GivenTopology", "receptive_fields"),
    "model.network": ("SparseMLP",),
    "parallel": ("load_pipeline", "train_pipeline", "train_wasap", "train_wassp"),
    "training.checkpoint": ("load_model", "save_model"),
    "training.history": ("EpochRecord", "History", "ParallelReport"),
    "training.monitoring": ("GradientFlow", "InputDegrees"),
    "training.prediction": ("Predictor", "predict", "predict_proba", "predict_top"),
    "training.resumed_settings": ("load_checkpoint",),
    "training.trainer": ("Trainer", "save_checkpoint"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
