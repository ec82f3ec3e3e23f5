"""Truly sparse neural networks on CPUs: only the connections that exist are ever stored."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__

if TYPE_CHECKING:
    from .data.datasets import Dataset, load_dataset
    from .data.skewness import alpha_from_skewness
    from .data.standardizer import Standardizer
    from .data.synthetic import make_large_classification
    from .errors import LargeSparseError
    from .estimators.classifier import SparseMLPClassifier
    from .estimators.regressor import SparseMLPRegressor
    from .estimators.selection import SparseFeatureSelector, input_strength
    from .harness.measurements import read_measurements
    from .harness.records import read_records
    from .model.config import NetworkConfig, TrainingConfig
    from .model.importance import active_neurons, compact, neuron_importance, prune_neurons
    from .model.network import SparseMLP
    from .parallel import train_wasap, train_wassp
    from .training.checkpoint import load_model, save_model
    from .training.history import EpochRecord, History, ParallelReport
    from .training.monitoring import GradientFlow, InputDegrees
    from .training.prediction import Predictor, predict, predict_proba
    from .training.resumed_settings import load_checkpoint
    from .training.trainer import Trainer, save_checkpoint

# public name -> module that defines it; imported when it is first used
_MODULES = {
    "Dataset": "data.datasets",
    "EpochRecord": "training.history",
    "GradientFlow": "training.monitoring",
    "History": "training.history",
    "InputDegrees": "training.monitoring",
    "LargeSparseError": "errors",
    "NetworkConfig": "model.config",
    "ParallelReport": "training.history",
    "Predictor": "training.prediction",
    "SparseFeatureSelector": "estimators.selection",
    "SparseMLP": "model.network",
    "SparseMLPClassifier": "estimators.classifier",
    "SparseMLPRegressor": "estimators.regressor",
    "Standardizer": "data.standardizer",
    "Trainer": "training.trainer",
    "TrainingConfig": "model.config",
    "active_neurons": "model.importance",
    "alpha_from_skewness": "data.skewness",
    "compact": "model.importance",
    "input_strength": "estimators.selection",
    "load_checkpoint": "training.resumed_settings",
    "load_dataset": "data.datasets",
    "load_model": "training.checkpoint",
    "make_large_classification": "data.synthetic",
    "neuron_importance": "model.importance",
    "predict": "training.prediction",
    "predict_proba": "training.prediction",
    "prune_neurons": "model.importance",
    "read_measurements": "harness.measurements",
    "read_records": "harness.records",
    "save_checkpoint": "training.trainer",
    "save_model": "training.checkpoint",
    "train_wasap": "parallel",
    "train_wassp": "parallel",
}

__all__ = [
    "Dataset",
    "EpochRecord",
    "GradientFlow",
    "History",
    "InputDegrees",
    "LargeSparseError",
    "NetworkConfig",
    "ParallelReport",
    "Predictor",
    "SparseFeatureSelector",
    "SparseMLP",
    "SparseMLPClassifier",
    "SparseMLPRegressor",
    "Standardizer",
    "Trainer",
    "TrainingConfig",
    "active_neurons",
    "alpha_from_skewness",
    "compact",
    "input_strength",
    "load_checkpoint",
    "load_dataset",
    "load_model",
    "make_large_classification",
    "neuron_importance",
    "predict",
    "predict_proba",
    "prune_neurons",
    "read_measurements",
    "read_records",
    "save_checkpoint",
    "save_model",
    "train_wasap",
    "train_wassp",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
