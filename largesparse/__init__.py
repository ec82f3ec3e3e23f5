"""Truly sparse neural networks on CPUs: only the connections that exist are ever stored."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__

if TYPE_CHECKING:
    from .checkpoint import load_model, save_model
    from .classifier import SparseMLPClassifier
    from .config import NetworkConfig, TrainingConfig
    from .datasets import Dataset, load_dataset
    from .errors import LargeSparseError
    from .history import EpochRecord, History, ParallelReport
    from .importance import active_neurons, compact, neuron_importance, prune_neurons
    from .inference import Predictor, predict, predict_proba
    from .measurements import read_measurements
    from .monitoring import GradientFlow, InputDegrees
    from .network import SparseMLP
    from .parallel import train_wasap, train_wassp
    from .records import read_records
    from .regressor import SparseMLPRegressor
    from .resumed_settings import load_checkpoint
    from .selection import SparseFeatureSelector, input_strength
    from .skewness import alpha_from_skewness
    from .standardizer import Standardizer
    from .synthetic import make_large_classification
    from .training import Trainer, save_checkpoint

# public name -> module that defines it; imported when it is first used
_MODULES = {
    "Dataset": "datasets",
    "EpochRecord": "history",
    "GradientFlow": "monitoring",
    "History": "history",
    "InputDegrees": "monitoring",
    "LargeSparseError": "errors",
    "NetworkConfig": "config",
    "ParallelReport": "history",
    "Predictor": "inference",
    "SparseFeatureSelector": "selection",
    "SparseMLP": "network",
    "SparseMLPClassifier": "classifier",
    "SparseMLPRegressor": "regressor",
    "Standardizer": "standardizer",
    "Trainer": "training",
    "TrainingConfig": "config",
    "active_neurons": "importance",
    "alpha_from_skewness": "skewness",
    "compact": "importance",
    "input_strength": "selection",
    "load_checkpoint": "resumed_settings",
    "load_dataset": "datasets",
    "load_model": "checkpoint",
    "make_large_classification": "synthetic",
    "neuron_importance": "importance",
    "predict": "inference",
    "predict_proba": "inference",
    "prune_neurons": "importance",
    "read_measurements": "measurements",
    "read_records": "records",
    "save_checkpoint": "training",
    "save_model": "checkpoint",
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
