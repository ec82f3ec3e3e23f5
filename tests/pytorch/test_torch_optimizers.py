"""Trainings without evolution next to `torch.optim` on the same network, masked and dense."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import dense, make_network, normal_rows, pattern

from largesparse import Trainer, TrainingConfig

torch = pytest.importorskip("torch")

SIZES = (20, 40, 30, 4)
PEERS = {
    "sgd": lambda parameters, rate: torch.optim.SGD(parameters, rate, momentum=0.9),
    "nesterov": lambda parameters, rate: torch.optim.SGD(
        parameters, rate, momentum=0.9, nesterov=True
    ),
    "adam": lambda parameters, rate: torch.optim.Adam(parameters, rate, weight_decay=0.1),
    "adamw": lambda parameters, rate: torch.optim.AdamW(parameters, rate, weight_decay=0.1),
}


@pytest.mark.parametrize("backend", ["fused", "scipy"])
@pytest.mark.parametrize("clip_norm", [None, 0.3])
@pytest.mark.parametrize("name", PEERS)
def test_fifty_steps_equal_those_of_torch(name, clip_norm, backend):
    network = make_network(SIZES, density=0.3, seed=4)
    rate = 0.05 if name in ("sgd", "nesterov") else 0.003
    config = TrainingConfig(
        optimizer=name,
        learning_rate=rate,
        weight_decay=0.1 if name.startswith("adam") else 0.0,
        clip_norm=clip_norm,
        dropout=0.0,
        batch_size=32,
        backend=backend,
        threads=1,
    )
    trainer = Trainer(network, config)
    masks = [torch.tensor(pattern(layer), dtype=torch.float64) for layer in network.layers]
    weights = [torch.tensor(dense(layer), requires_grad=True) for layer in network.layers]
    biases = [torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in SIZES[1:]]
    optimizer = PEERS[name]([*weights, *biases], rate)
    X = normal_rows(96, SIZES[0])
    y = (X @ normal_rows(SIZES[0], SIZES[-1], 5)).argmax(1)
    for step in range(50):
        rows = np.arange(32) + 32 * (step % 3)
        trainer.step(X, y, rows)
        h = torch.tensor(X[rows], dtype=torch.float64)
        for k, (W, mask, b) in enumerate(zip(weights, masks, biases, strict=True)):
            h = h @ (W * mask) + b
            if k < len(weights) - 1:
                slope = network.layers[k].slope
                h = torch.where(h > 0, h, slope * h)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(h, torch.tensor(y[rows])).backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_([*weights, *biases], clip_norm)
        optimizer.step()
    for layer, W, mask, b in zip(network.layers, weights, masks, biases, strict=True):
        expected = (W * mask).detach().numpy()
        np.testing.assert_allclose(dense(layer), expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(layer.bias, b.detach().numpy(), rtol=1e-5, atol=1e-5)
