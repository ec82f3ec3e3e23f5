"""Two processes over gloo: their topologies stay equal."""

from __future__ import annotations

from datetime import timedelta

import pytest

torch = pytest.importorskip("torch")

from largesparse.errors import ParameterError  # noqa: E402
from largesparse.torch import (  # noqa: E402
    AllReLU,
    Evolution,
    SparseLinear,
    SparseSequential,
    evolve,
    recording,
)

GROWTHS = ("random", "gradient")
DROPS = {"random": "set", "gradient": "mest"}


def run(rank, folder):
    """Train in one of two processes, on rows of its own, by each growth."""
    torch.set_num_threads(1)
    distributed = torch.distributed
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    for growth in GROWTHS:
        torch.save(train(rank, growth), f"{folder}/{growth}-{rank}.pt")
    torch.save(train_branches(rank), f"{folder}/branches-{rank}.pt")
    model = Branches()
    with recording(model):
        model(torch.randn(4, 20), both=True).sum().backward()
    with pytest.raises(ParameterError, match="evolve layers of other sizes"):
        evolve(model if rank == 0 else model.first, 0.3, growth="gradient")
    distributed.destroy_process_group()


def train(rank, growth):
    """Return the state after a training, the momentum, and the indices before."""
    model = torch.nn.Sequential(
        SparseLinear(20, 30, density=0.3, seed=1),
        AllReLU(),
        SparseLinear(30, 4, density=0.3, seed=2),
    )
    model[0].random_state[0] += rank  # the first process's is taken
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.001, momentum=0.9)
    evolution = Evolution(parallel, optimizer, every=2, growth=growth, drop=DROPS[growth])
    torch.manual_seed(rank)
    first = model[0].indices.clone()
    for _ in range(5):
        optimizer.zero_grad()
        parallel(torch.randn(16, 20)).square().sum().backward()
        optimizer.step()
        evolution.step()
    momentum = optimizer.state[model[0].values]["momentum_buffer"]
    return model.state_dict(), momentum, first


class Branches(torch.nn.Module):
    """Two models, of which a process may use the first alone."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (
            SparseSequential(
                SparseLinear(20, 30, density=0.3, activation=AllReLU(), seed=seed),
                SparseLinear(30, 4, density=0.3, seed=seed + 1),
            )
            for seed in (1, 3)
        )

    def forward(self, x, both):
        return self.first(x) + self.second(x) if both else self.first(x)


def train_branches(rank):
    """Return the state after a training whose second branch one process uses, and that before."""
    model = Branches()
    parallel = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.001, momentum=0.9)
    evolution = Evolution(parallel, optimizer, every=2, growth="gradient")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(rank)
    for _ in range(4):
        optimizer.zero_grad()
        parallel(torch.randn(16, 20), both=rank == 0).square().sum().backward()
        optimizer.step()
        evolution.step()
    return model.state_dict(), before


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    if not torch.distributed.is_available():
        pytest.skip("PyTorch without distributed")
    folder = tmp_path_factory.mktemp("distributed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.multiprocessing.spawn(run, (str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize("growth", GROWTHS)
def test_topologies_stay_equal(folder, growth):
    (one, momentum, first), (other, also, _) = (
        torch.load(folder / f"{growth}-{rank}.pt") for rank in range(2)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(momentum, also)
    assert not torch.equal(one["0.indices"], first)


def test_layers_that_one_process_uses_grow_in_all(folder):
    (one, before), (other, _) = (torch.load(folder / f"branches-{rank}.pt") for rank in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["second.0.indices"], before["second.0.indices"])
