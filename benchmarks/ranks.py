"""Training by several ranks of MPI.

`mpiexec -n RANKS python -m benchmarks.ranks ALGORITHM ROWS` is the job; asv starts it. One rank is
the server, so that two have one worker.
"""

from __future__ import annotations

import statistics
import sys

from largesparse import TrainingConfig

from .common import BATCH_SIZE, COUNTS, MIDDLE, make_batch, make_network, run_mpi

EPOCHS = 3
ROWS = 4 * BATCH_SIZE
ALGORITHMS = ("wasap", "wassp")
RANKS = tuple(count + 1 for count in COUNTS)


class Ranks:
    """Samples a second of phase one, by workers of one thread that share the same rows."""

    params = (ALGORITHMS, RANKS)
    param_names = ("algorithm", "ranks")

    def track_rate(self, algorithm, ranks):
        return run_mpi("ranks", ranks, algorithm, ROWS)

    track_rate.unit = "samples/s"
    track_rate.pretty_name = "Training by ranks, strong scaling"


class WeakRanks:
    """The same where every worker has as many rows."""

    params = (RANKS,)
    param_names = ("ranks",)

    def track_rate(self, ranks):
        return run_mpi("ranks", ranks, "wasap", (ranks - 1) * ROWS // 2)

    track_rate.unit = "samples/s"
    track_rate.pretty_name = "Training by ranks, weak scaling"


def main(algorithm: str, rows: int) -> None:
    from mpi4py import MPI

    from largesparse import parallel

    if algorithm not in ALGORITHMS:
        raise SystemExit(f"no algorithm: {algorithm}")
    comm = MPI.COMM_WORLD
    config = TrainingConfig(epochs=EPOCHS, batch_size=BATCH_SIZE, backend="fused", threads=1)
    network = data = None
    if comm.rank == 0:
        network, data = make_network(MIDDLE), make_batch(rows)
    train = {"wasap": parallel.train_wasap, "wassp": parallel.train_wassp}[algorithm]
    X, y = data or (None, None)
    history = train(network, config, X, y, phase_one_epochs=EPOCHS, progress=False)
    if comm.rank == 0:
        seconds = history["epoch_s"][1:]  # in the first kernels are loaded
        print(rows / statistics.median(seconds))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
