"""Training by the ranks of an MPI job, WASAP-SGD and WASSP-SGD (Algorithm 1), and prediction.

    from largesparse.parallel import predict, train_pipeline, train_wasap

Every rank of `mpiexec -n K python script.py` calls them. By `train_wasap` rank 0 is the parameter
server and has the result; by `train_pipeline` each rank has some of the layers. Needs mpi4py, which
is imported only when more than one rank was started.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .comm.leaving import watch_script

if TYPE_CHECKING:
    from ..training.history import ParallelReport
    from .options import ParallelOptions
    from .pipeline.pipeline import Pipeline, load_pipeline, train_pipeline
    from .prediction import predict, predict_proba, predict_top
    from .train import train_wasap, train_wassp

# public name -> module that defines it; imported when it is first used
_MODULES = {
    "ParallelOptions": "options",
    "ParallelReport": ".training.history",
    "Pipeline": "pipeline.pipeline",
    "load_pipeline": "pipeline.pipeline",
    "predict": "prediction",
    "predict_proba": "prediction",
    "predict_top": "prediction",
    "train_pipeline": "pipeline.pipeline",
    "train_wasap": "train",
    "train_wassp": "train",
}

__all__ = [
    "ParallelOptions",
    "ParallelReport",
    "Pipeline",
    "load_pipeline",
    "predict",
    "predict_proba",
    "predict_top",
    "train_pipeline",
    "train_wasap",
    "train_wassp",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)


watch_script()
