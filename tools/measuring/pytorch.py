"""Our layers in PyTorch: a GPT next to SparseLab's, dense and sparse in turn, and memory."""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import psutil

from largesparse.commands import info
from largesparse.harness.uncertainty import ratio_of
from largesparse.machine.sizes import parse_size

from . import add_figure, seconds_in_turns

MIB = 2**20
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.1, "fused": True},
    "adamw": {"lr": 3e-4, "weight_decay": 0.1, "fused": True},
}


def make_text(characters: int, seed: int) -> np.ndarray:
    """Return text of made-up words as bytes from 0 on: int64 (characters,), 28 of them.

    Words follow Zipf's law, and each is followed by a few others most of the time.
    """
    rng = np.random.default_rng(seed)
    n_words = 2000
    words = [rng.integers(26, size=size) for size in rng.integers(2, 9, size=n_words)]
    shares = 1 / np.arange(1, n_words + 1)
    followers = rng.choice(n_words, size=(n_words, 4), p=shares / shares.sum())
    pieces, word, count = [], 0, 0
    while count < characters:
        likely = rng.random() < 0.8
        word = int(followers[word, rng.integers(4)] if likely else rng.integers(n_words))
        end = 27 if rng.random() < 0.1 else 26  # a full stop, or a space
        pieces.append(np.append(words[word], end))
        count += len(pieces[-1])
    return np.concatenate(pieces)[:characters]


def make_gpt(options: argparse.Namespace) -> Any:
    """Return a GPT of characters: pre-norm blocks of causal attention and GELU, no dropout."""
    import torch
    from torch import nn

    width, heads = options.width, options.heads

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.mlp = nn.Sequential(
                nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
            )

        def forward(self, x: Any) -> Any:
            shape = (*x.shape[:2], heads, width // heads)
            parts = self.qkv(self.norms[0](x)).split(width, 2)
            q, k, v = (part.reshape(shape).transpose(1, 2) for part in parts)
            y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(x.shape))
            return x + self.mlp(self.norms[1](x))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(28, width)
            self.places = nn.Embedding(options.context, width)
            self.blocks = nn.Sequential(*(Block() for _ in range(options.layers)))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 28)

        def forward(self, tokens: Any) -> Any:
            x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
            return self.head(self.norm(self.blocks(x)))

    torch.manual_seed(options.seed)
    return GPT()


def with_sparselab(model: Any, density: float) -> Any:
    """Replace the feed-forward layers by SparseLab's."""
    import sparselab

    for block in model.blocks:
        for place in (0, 2):
            dense = block.mlp[place]
            sizes = dense.in_features, dense.out_features
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
                block.mlp[place] = sparselab.SparseLinear(*sizes, sparsity=1 - density)
    return model


def with_ours(model: Any, density: float) -> Any:
    """Replace the feed-forward layers by ours."""
    from largesparse.torch import convert

    return convert(model, density=density, include="*.mlp.*", keep="random", seed=0)


def with_free(model: Any, density: float) -> Any:
    """Replace the feed-forward layers by ones that cost nothing: results are there already."""
    import torch

    class Given(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, result: Any, gradient: Any) -> Any:
            ctx.gradient = gradient
            return result.view_as(result)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return ctx.gradient, None, None

    class Free(torch.nn.Module):
        def __init__(self, out_features: int) -> None:
            super().__init__()
            self.out_features, self.result = out_features, None

        def forward(self, x: Any) -> Any:
            if self.result is None or self.result.shape[:-1] != x.shape[:-1]:
                self.result = torch.randn(*x.shape[:-1], self.out_features)
                self.gradient = torch.zeros(x.shape)
            return Given.apply(x, self.result, self.gradient)

    for block in model.blocks:
        for place in (0, 2):
            block.mlp[place] = Free(block.mlp[place].out_features)
    return model


def gpt(options: argparse.Namespace) -> None:
    """PyTorch: a step of a GPT whose feed-forward layers are sparse, ours, SparseLab's and dense.

    By default the sizes are those of SparseLab's own showcase (0.2.2, "Gate F2"). All train from
    the same weights elsewhere, on the same batches of made-up text, and take turns. The ratio is
    the median of those of steps that were taken in turn. The loss is that on 8 batches of other
    text after the steps. The contestant "free" has layers that cost nothing and compute nothing:
    the bound of all others.
    """
    import torch

    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    text = torch.from_numpy(make_text(options.characters, options.seed))
    rng = np.random.default_rng(options.seed)
    makers: dict[str, Callable[[Any, float], Any]] = {
        "ours": with_ours,
        "sparselab": with_sparselab,
        "dense": lambda model, density: model,
        "free": with_free,
    }
    names = options.contestants.split(",")
    models = {name: makers[name](make_gpt(options), options.density) for name in names}

    def batch(low: int, high: int) -> tuple[Any, Any]:
        starts = rng.integers(low, high - options.context - 1, size=options.batch)
        rows = torch.stack([text[k : k + options.context + 1] for k in starts])
        return rows[:, :-1], rows[:, 1:]

    train, end = int(0.9 * len(text)), len(text)
    batches = [batch(0, train) for _ in range(options.steps + 2)]
    tests = [batch(train, end) for _ in range(8)]

    def loss_of(model: Any, pair: tuple[Any, Any]) -> Any:
        return torch.nn.functional.cross_entropy(model(pair[0]).flatten(0, 1), pair[1].flatten())

    def stepper(model: Any) -> Callable[[], object]:
        is_sgd = options.optimizer == "sgd"
        kind: Any = torch.optim.SGD if is_sgd else torch.optim.AdamW
        optimizer = kind(model.parameters(), **OPTIMIZERS[options.optimizer])
        left = iter(batches)

        def step() -> None:
            optimizer.zero_grad()
            loss_of(model, next(left)).backward()
            if not is_sgd:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        return step

    steps = {name: stepper(model) for name, model in models.items()}
    seconds = seconds_in_turns(steps, options.steps, warm_ups=2)
    rows = {}
    for name, model in models.items():
        with torch.no_grad():
            losses = [float(loss_of(model, pair)) for pair in tests]
        rows[name] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "step_s": statistics.median(seconds[name]),
            "time / first": str(ratio_of(seconds[name], seconds[names[0]])),
            "test loss": statistics.mean(losses),
            "its standard error": statistics.stdev(losses) / len(losses) ** 0.5,
        }
    print(f"{info.cpu_model()}, {options.threads} threads, density {options.density:g} of MLPs")
    print(pd.DataFrame(rows).T.to_string(float_format="{:.4g}".format))


def alternating(options: argparse.Namespace) -> None:
    """PyTorch: a training of dense and sparse layers in turn, next to the sum of its parts.

    The parts are the dense and the sparse layers, each trained alone in the same process, in turns
    with the whole. A ratio above 1 is what the threads of both cost each other.
    """
    import torch

    from largesparse.torch import SparseLinear

    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    n = options.neurons

    def dense(k: int) -> Any:
        return torch.nn.Linear(n, n)

    def sparse(k: int) -> Any:
        return SparseLinear(n, n, density=options.density, seed=k)

    def stepper(*layers: Any) -> Callable[[], object]:
        model = torch.nn.Sequential(*layers)
        optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9, fused=True)
        x = torch.randn(options.batch, n)

        def step() -> None:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

        return step

    depth = range(4)
    whole = [layer for k in depth for layer in (dense(k), sparse(k))]
    steps = {
        "alternating": stepper(*whole),
        "dense": stepper(*map(dense, depth)),
        "sparse": stepper(*map(sparse, depth)),
    }
    seconds = seconds_in_turns(steps, options.repeats, warm_ups=5)
    parts = [a + b for a, b in zip(seconds["dense"], seconds["sparse"], strict=True)]
    found = {name: 1000 * statistics.median(times) for name, times in seconds.items()}
    print(f"{info.cpu_model()}, {options.threads} threads, {n} neurons, batch {options.batch}")
    print(", ".join(f"{name} {ms:.2f} ms" for name, ms in found.items()))
    print(f"alternating / (dense + sparse): {ratio_of(seconds['alternating'], parts):.3f}")


def steady(options: argparse.Namespace) -> None:
    """PyTorch: resident memory over a training with evolution, and after the model is deleted."""
    import torch

    from largesparse.torch import AllReLU, Evolution, SparseLinear, passes

    torch.set_num_threads(options.threads)
    process = psutil.Process()
    sizes, model = (784, 1000, 1000, 1000, 10), torch.nn.Sequential()
    for k in range(4):
        model.append(SparseLinear(sizes[k], sizes[k + 1], epsilon=20, seed=k))
        if k < 3:
            model.append(AllReLU(0.6, k + 2, 0.3))
    optimizer = torch.optim.Adam(model.parameters())
    evolution = Evolution(model, optimizer, every=10)
    X, y = torch.randn(128, 784), torch.randint(10, (128,))
    start = time.perf_counter()
    for step in range(1, options.steps + 1):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(X), y).backward()
        optimizer.step()
        evolution.step()
        if step % max(1, options.steps // 10) == 0:
            rss, seconds = process.memory_info().rss / MIB, time.perf_counter() - start
            print(f"step {step}: {rss:.1f} MiB, {seconds:.1f} s", flush=True)
    del model, optimizer, evolution
    gc.collect()
    print(f"deleted: {process.memory_info().rss / MIB:.1f} MiB", end=", ")
    print(f"{len(passes.workspaces)} workspaces left")


def add_figures(figures: Any) -> None:
    """Add gpt, alternating and steady."""

    def with_threads(run: Callable[[argparse.Namespace], None]) -> Any:
        def pinned(options: argparse.Namespace) -> None:
            os.environ.update(dict.fromkeys(THREADS, str(options.threads)))  # before PyTorch loads
            run(options)

        pinned.__doc__ = run.__doc__
        add = add_figure(figures, run.__name__, pinned).add_argument
        add("--threads", type=parse_size, default=1, help="default %(default)s")
        return add

    add = with_threads(gpt)
    for name, size, about in (
        ("layers", 8, "blocks"),
        ("width", 640, "of the model; its feed-forward layers have four times as many neurons"),
        ("heads", 10, "of attention"),
        ("context", 128, "characters"),
        ("batch", 8, "sequences a step"),
        ("steps", 200, "of training"),
        ("characters", 2_000_000, "of text"),
    ):
        add(f"--{name}", type=parse_size, default=size, help=f"{about} (%(default)s)")
    add("--density", type=float, default=0.1, help="of the feed-forward layers (%(default)s)")
    add(
        "--contestants",
        default="ours,sparselab,dense",
        help="of ours, sparselab, dense, free (default %(default)s)",
    )
    add("--optimizer", choices=OPTIMIZERS, default="sgd", help="default %(default)s")
    add("--seed", type=int, default=0, help="default %(default)s")
    add = with_threads(alternating)
    add("--neurons", type=parse_size, default=1000, help="of every layer (%(default)s)")
    add("--density", type=float, default=0.05, help="of the sparse layers (%(default)s)")
    add("--batch", type=parse_size, default=128, help="rows a step (%(default)s)")
    add("--repeats", type=parse_size, default=200, help="steps of each (%(default)s)")
    add = with_threads(steady)
    add("--steps", type=parse_size, default=2000, help="default %(default)s")
