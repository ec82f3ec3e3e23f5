"""Train where the kernels are compiled and where they are loaded, and compare the bits.

    python -m soak fresh_kernels
    python -m soak fresh_kernels --cases width gradients

Each case is a small training by a process with an empty cache, which compiles the kernels, and by
a second one, which finds them there. Both print a digest of the network and of the losses. The
exit status is 1 unless the two are the same in all cases. A case takes one to two minutes.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import Any

import numpy as np

from largesparse import NetworkConfig, SparseMLP, Trainer, TrainingConfig
from soak import program

FEATURES, CLASSES = 60, 4
# options of the network and of the training
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "width": ({"recipe": "width"}, {}),
    "squares": ({"recipe": "width", "loss": "mean_squared_error"}, {}),
    "srelu": ({"recipe": "width", "activation": "srelu"}, {}),
    "gradients": ({"recipe": "width"}, {"micro_batch": 16}),  # by the separate kernels
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool with the arguments `argv`."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    add("--alone", action="store_true", help="one case in this process, as the tool calls itself")
    options = parser.parse_args(argv)
    if options.alone:
        print(train(*CASES[options.cases[0]]))
        return 0
    differing = 0
    for case in options.cases:
        with tempfile.TemporaryDirectory() as cache:
            compiled, loaded = (run(case, cache) for _ in range(2))
        differing += compiled != loaded
        print(f"{case:<11}{compiled} {'same' if compiled == loaded else loaded}", flush=True)
    return 1 if differing else 0


def run(case: str, cache: str) -> str:
    """Return the digest that a process with a cache of its own prints."""
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_CACHE_DIR"}
    command = [*program("fresh_kernels"), "--alone", "--cases", case]
    done = subprocess.run(
        command,
        env=environment | {"LARGESPARSE_CACHE": cache},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def train(network: dict[str, Any], training: dict[str, Any]) -> str:
    """Train with weights of samples; return a digest of the network and the losses."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((400, FEATURES), dtype=np.float32)
    scores = X @ rng.standard_normal((FEATURES, CLASSES), dtype=np.float32)
    y: Any = scores if network.get("loss") == "mean_squared_error" else scores.argmax(axis=1)
    net = SparseMLP(NetworkConfig((FEATURES, 120, 90, CLASSES), epsilon=8, seed=3, **network))
    config = TrainingConfig(epochs=4, batch_size=32, seed=5, backend="fused", threads=1, **training)
    trainer = Trainer(net, config)
    weights = np.linspace(0.1, 2, len(y))
    trainer.fit(X, y, test=(X[:50], y[:50]), sample_weight=weights, progress=False)
    digest = hashlib.sha256()
    for layer in net.layers:
        for array in (layer.topology.indptr, layer.topology.indices, layer.values, layer.bias):
            digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(np.array([epoch.loss for epoch in trainer.history.epochs]).tobytes())
    return digest.hexdigest()[:16]
