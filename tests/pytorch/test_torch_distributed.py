"""Two processes over gloo: their topologies stay equal."""

from __future__ import annotations

from datetime import timedelta

import pytest

torch = pytest.importorskip("torch")

from largesparse.torch import AllReLU, Evolution, SparseLinear  # noqa: E402


def train(rank, folder, growth):
    """Train in one of two processes, on rows of its own, and save the state."""
    torch.set_num_threads(1)
    distributed = torch.distributed
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    model = torch.nn.Sequential(
        SparseLinear(20, 30, density=0.3, seed=1),
        AllReLU(),
        SparseLinear(30, 4, density=0.3, seed=2),
    )
    model[0].random_state[0] += rank  # the first process's is taken
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.001, momentum=0.9)
    evolution = Evolution(parallel, optimizer, every=2, growth=growth)
    torch.manual_seed(rank)
    first = model[0].indices.clone()
    for _ in range(5):
        optimizer.zero_grad()
        parallel(torch.randn(16, 20)).square().sum().backward()
        optimizer.step()
        evolution.step()
    momentum = optimizer.state[model[0].values]["momentum_buffer"]
    torch.save((model.state_dict(), momentum, first), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without distributed")
@pytest.mark.parametrize("growth", ["random", "gradient"])
def test_topologies_stay_equal(tmp_path, growth, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.multiprocessing.spawn(train, (str(tmp_path), growth), nprocs=2)
    (one, momentum, first), (other, also, _) = (
        torch.load(tmp_path / f"{rank}.pt") for rank in range(2)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(momentum, also)
    assert not torch.equal(one["0.indices"], first)
