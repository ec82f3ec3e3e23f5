"""Writes `version-2/`: models and checkpoints, and what came of them, by the commit 8c4a090.

    python tests/data/make_version_2.py FOLDER

They are what later releases must read: run it again only with a later version of the format, and
into another folder.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np

from largesparse import (
    NetworkConfig,
    SparseMLP,
    SparseMLPClassifier,
    SparseMLPRegressor,
    Trainer,
    TrainingConfig,
    load_checkpoint,
    predict_proba,
)

out = Path(sys.argv[1])
rng = np.random.default_rng(7)
X = rng.normal(3, 2, (60, 6)).astype(np.float32)
labels = X[:, :3].argmax(1)
expected = {"X": X, "y": labels}

settings = {"epsilon": 3, "max_epochs": 3, "random_state": 1, "backend": "fused", "n_jobs": 1}
settings["batch_size"] = 16
classes = np.array(["no", "some", "yes"])
classifier = SparseMLPClassifier(hidden_layer_sizes=(8, 5), **settings).fit(X, classes[labels])
classifier.save(out / "classifier")
expected["classifier"] = classifier.predict_proba(X)
regressor = SparseMLPRegressor(hidden_layer_sizes=(8,), **settings).fit(X, X[:, 0] * 100 + 1e6)
regressor.save(out / "regressor")
expected["regressor"] = regressor.predict(X)

for activation in ("all_relu", "srelu"):
    folder = out / f"checkpoint-{activation}"
    config = NetworkConfig((6, 9, 7, 3), epsilon=3, activation=activation, seed=2)
    training = TrainingConfig(
        epochs=3,
        batch_size=16,
        learning_rate=0.05,
        dropout=0.2,
        pruning_start=2,
        pruning_every=1,
        pruning_percentile=10.0,
        validation_fraction=0.2,
        patience=50,
        seed=4,
        backend="fused",
        threads=1,
    )
    trainer = Trainer(SparseMLP(config), training)
    trainer.notes = {"made": "before"}
    trainer.fit(X, labels, checkpoint=folder, progress=False)
    trainer = load_checkpoint(folder)
    saved = predict_proba(trainer.network, X, backend="fused", threads=1)
    trainer.config = dataclasses.replace(trainer.config, epochs=6)
    trainer.fit(X, labels, progress=False)
    expected[f"{activation}-saved"] = saved
    expected[f"{activation}-losses"] = np.array([record.loss for record in trainer.history.epochs])
    for k, layer in enumerate(trainer.network.layers):
        expected |= {
            f"{activation}-{k}-indptr": layer.topology.indptr,
            f"{activation}-{k}-indices": layer.topology.indices,
            f"{activation}-{k}-values": layer.values,
            f"{activation}-{k}-bias": layer.bias,
        }
np.savez_compressed(out / "expected.npz", **expected)
