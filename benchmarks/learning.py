"""What is learnt in a fixed number of epochs: a kernel that is fast and wrong shows here."""

from __future__ import annotations

import statistics

from largesparse import NetworkConfig, SparseMLP, Trainer, TrainingConfig
from largesparse.backends import BACKENDS

from .common import THREADS, warm_up

EPOCHS = 10
TRAIN_ROWS, TEST_ROWS = 2000, 1000


class Learning:
    """Test accuracy after 10 epochs with evolution, and the seconds of an epoch beside it."""

    params = (BACKENDS,)
    param_names = ("backend",)

    def setup_cache(self):
        return {backend: train(backend) for backend in BACKENDS}

    def setup(self, trained, backend):
        if trained[backend] is None:
            raise NotImplementedError(f"there is no backend {backend}")

    def track_accuracy(self, trained, backend):
        return trained[backend][0]

    def track_epoch(self, trained, backend):
        return trained[backend][1]

    track_accuracy.unit = "%"
    track_accuracy.pretty_name = "Test accuracy after 10 epochs"
    track_epoch.unit = "s"
    track_epoch.pretty_name = "Epoch of learning, time"


def train(backend: str) -> tuple[float, float] | None:
    """Return accuracy, in per cent, and an epoch's seconds of a synthetic task; None without it."""
    try:
        warm_up(backend)
    except NotImplementedError:
        return None
    from sklearn.datasets import make_classification  # not for those who read the cache

    X, y = make_classification(
        TRAIN_ROWS + TEST_ROWS, 500, n_informative=20, n_redundant=20, class_sep=2, random_state=0
    )
    X = X.astype("float32")
    network = SparseMLP(NetworkConfig((500, 1000, 1000, 2), epsilon=10, recipe="width", seed=0))
    config = TrainingConfig(
        epochs=EPOCHS, batch_size=32, learning_rate=0.1, backend=backend, threads=THREADS
    )
    test = X[TRAIN_ROWS:], y[TRAIN_ROWS:]
    trainer = Trainer(network, config)
    history = trainer.fit(X[:TRAIN_ROWS], y[:TRAIN_ROWS], test=test, progress=False)
    return 100 * history["test_accuracy"][-1], statistics.median(history["epoch_s"][1:])
