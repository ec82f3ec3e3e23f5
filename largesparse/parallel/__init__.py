"""Training by the ranks of an MPI job, WASAP-SGD and WASSP-SGD (Algorithm 1), and prediction.

    from largesparse.parallel import predict, train_wasap

Every rank of `mpiexec -n K python script.py` calls them; rank 0 is the parameter server and has
the result. Needs mpi4py, which is imported only when more than one rank was started.
"""

from .leaving import watch_script
from .options import ParallelOptions
from .prediction import predict, predict_proba
from .report import ParallelReport
from .wasap import train_wasap, train_wassp

__all__ = [
    "ParallelOptions",
    "ParallelReport",
    "predict",
    "predict_proba",
    "train_wasap",
    "train_wassp",
]

watch_script()
