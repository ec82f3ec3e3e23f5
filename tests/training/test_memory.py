"""The memory plan: against what a network really takes, and how it is chosen."""

from __future__ import annotations

import itertools
import re
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from largesparse import NetworkConfig, SparseMLP, Trainer, TrainingConfig
from largesparse.errors import MemoryPlanError
from largesparse.harness.presets import hidden_sizes
from largesparse.machine import control_groups
from largesparse.machine.control_groups import free_memory, group_free_memory, group_memory_limit
from largesparse.machine.sizes import parse_size
from largesparse.model.workspace import Workspace
from largesparse.parallel.comm.nodes import Nodes
from largesparse.parallel.comm.ranks import Alone
from largesparse.parallel.plan import memory_of_ranks
from largesparse.training import memory as memory_module
from largesparse.training.memory import (
    HEADROOM,
    WIDE,
    MicroBatching,
    activation_bytes,
    available_memory,
    choose_plan,
    plan_training,
    prediction_batch,
)
from largesparse.training.memory import micro_batchings as settings_of
from largesparse.training.warming import warm_up

GIB = 2**30
SPARSE = [((30, 4000, 3000, 5), 40), ((3000, 5000, 5000, 5000, 2), 12), ((2000, 8000, 2), 30)]
FULL = [(30, 50, 40, 5), (8, 3, 2), (10, 2), (7, 100, 5, 80, 3)]


def array_bytes(thing):
    """The bytes of the NumPy arrays in an object, its lists and dictionaries; views count once."""
    found, values = {}, list(vars(thing).values())
    while values:
        value = values.pop()
        if isinstance(value, list | dict):
            values += value.values() if isinstance(value, dict) else value
        elif isinstance(value, np.ndarray) and value.nbytes:
            found[value.ctypes.data] = max(found.get(value.ctypes.data, 0), value.nbytes)
    return sum(found.values())


def layer_bytes(layer):
    topology = layer.topology
    arrays = [layer.values, layer.velocity, layer.values_by_output, layer.bias, layer.bias_velocity]
    return sum(array.nbytes for array in arrays + topology.arrays)


def plan_of(config, *setting):
    return plan_training(config, *setting)


# Against what is really taken


@pytest.mark.parametrize(
    ("sizes", "epsilon", "tolerance"),
    [*((sizes, epsilon, 0.03) for sizes, epsilon in SPARSE), *((sizes, 1e6, 0) for sizes in FULL)],
)
@pytest.mark.parametrize(
    "setting", [(1,), (33,), (33, 2), (5, 3), (33, 2, "float32", True)], ids=str
)
def test_the_plan_is_what_network_and_workspace_take(sizes, epsilon, tolerance, setting):
    config = NetworkConfig(sizes, epsilon=epsilon)
    network = SparseMLP(config, progress=False)
    workspace = Workspace(network.layers, **MicroBatching(*setting)._asdict())
    plan = plan_of(config, *setting)
    gradients = sum(a.nbytes for a in workspace.gradients + workspace.bias_gradients)
    model = sum(map(layer_bytes, network.layers))
    assert network.nbytes == model
    # The plan is never below, but for the chance of a topology three deviations above the mean.
    assert model <= plan.model <= model * (1 + tolerance)
    assert gradients <= plan.gradients <= gradients * (1 + tolerance)
    assert plan.activations == array_bytes(workspace) - gradients
    assert plan.activations == activation_bytes(sizes, *setting)


@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
def test_the_plan_counts_what_an_optimizer_keeps(optimizer):
    config = NetworkConfig(FULL[0], epsilon=1e6)
    training = TrainingConfig(optimizer=optimizer, backend="scipy")
    trainer = Trainer(SparseMLP(config, progress=False), training)
    plan, plain = (plan_training(config, 8, moments=m) for m in (training.moments, ("velocity",)))
    assert trainer.network.nbytes == plan.model
    extra = plan.model - plain.model
    assert extra == (6 * (trainer.network.connections + 95) if optimizer == "adamw" else 0)
    widest = max(trainer.network.layer_connections)
    assert plan.passing - plain.passing == (6 * widest if optimizer == "adamw" else 0)
    kept = "velocities" if optimizer == "nesterov" else "moments of 10 bytes"
    assert f"model (weights, {kept}, both orders)" in str(plan)


def test_a_step_keeps_no_more_than_the_plan():
    X = np.random.default_rng(0).standard_normal((64, 300), dtype=np.float32)
    y = np.arange(64, dtype=np.int32) % 2
    config = NetworkConfig((300, 2000, 2000, 2), epsilon=10)
    settings = TrainingConfig(batch_size=64, micro_batch=16, backend="scipy", threads=1)
    trainer = Trainer(SparseMLP(config, progress=False), settings)
    for _ in range(2):
        trainer.step(X, y)
        trainer.epoch += 1
        trainer.evolve()
    plan = plan_of(config, 16)
    assert array_bytes(trainer.workspace) <= plan.activations + plan.gradients
    assert sum(map(layer_bytes, trainer.network.layers)) <= plan.model


def test_the_parts_sum_up():
    plan = plan_training(NetworkConfig((10, 100, 100, 2), density=0.1), 8, mapped=12345)
    parts = plan.model + plan.gradients + plan.activations + plan.passing
    assert plan.required == parts + plan.base
    assert plan.total == plan.required + 12345
    assert plan.passing > 0


def test_the_printed_plan_has_a_line_a_part():
    plan = plan_training(NetworkConfig((10, 100, 2), density=0.1), 8, mapped=3 * GIB)
    lines = str(plan).splitlines()
    assert len(lines) == 8
    assert all(re.search(r" \d+\.\d{3} GiB$", line) for line in lines)
    assert "micro-batch of 8" in str(plan)
    assert lines[-1].split() == ["peak", f"{plan.total / GIB:.3f}", "GiB"]
    assert "3.000 GiB" in lines[-2]


def test_what_is_done_once_is_planned_where_the_cache_lacks_it(monkeypatch, tmp_path):
    config = NetworkConfig((10, 100, 2), density=0.1)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    compiling = memory_module.bytes_once("fused", "float32", True)
    assert 0 < compiling < memory_module.bytes_once("fused", "float32", False)
    plan, without = choose_plan(config, 8, once=compiling), choose_plan(config, 8)
    assert plan.required == without.required + compiling
    assert len(str(plan).splitlines()) == 9 and "compiling" in str(plan)
    (tmp_path / "largesparse.seconds").touch()  # another process has compiled some
    assert memory_module.bytes_once("scipy", "float32", True) == compiling // 2
    warm_up("scipy")
    assert memory_module.bytes_once("scipy", "float32", True) == 0
    assert memory_module.bytes_once("scipy", "bfloat16", True) == compiling // 2
    assert memory_module.bytes_once("fused", "float32", True) == compiling // 2
    small = choose_plan(config, 8, backend="fused")
    assert small.base < choose_plan(config, 8, backend="mkl").base == without.base


def test_the_largest_networks_of_the_paper():
    """DESIGN section 3.6: 50M neurons take 3.8 GB, and about 250 MB a sample.

    One of the two buffers of the backward pass has been saved since.
    """
    config = NetworkConfig((65536, *[5_000_000] * 10, 2), epsilon=1)
    plan = plan_of(config, 1)
    assert plan.model + plan.gradients == pytest.approx(3.8e9, rel=0.05)
    sample = plan_of(config, 64).activations / 64
    assert sample == pytest.approx(253e6 - 4 * 5_000_000, rel=0.01)


# The choice


def choose(sizes, epsilon, batch_size=128, **options):
    config = NetworkConfig(sizes, epsilon=epsilon)
    return choose_plan(config, batch_size, **options)


WIDE_NET = (1000, *[WIDE // 10] * 5, 2)


def test_the_whole_mini_batch_where_there_is_room():
    assert choose(WIDE_NET, 1, 128, available=64 * GIB).micro_batch == 128
    assert choose(WIDE_NET, 1, 100, available=64 * GIB).micro_batch == 100


def test_very_wide_layers_gain_nothing_from_large_micro_batches():
    assert choose((100, WIDE, 2), 1, available=2**50).micro_batch == 32
    assert choose((100, WIDE, 2), 1, 20, available=2**50).micro_batch == 20


def test_smaller_micro_batches_where_memory_is_short():
    chosen, kept, notes = [], [], []
    for available in np.linspace(0.42 * GIB, 0.9 * GIB, 60, dtype=np.int64):
        plan = choose(WIDE_NET, 1, 100, available=int(available))
        budget = HEADROOM * available
        assert plan.required <= budget
        options = settings_of(NetworkConfig(WIDE_NET, epsilon=1), 100, None, None)
        for better in options[: options.index(plan.micro_batching)]:
            assert plan_of(NetworkConfig(WIDE_NET, epsilon=1), *better).required > budget
        chosen.append(plan.micro_batch)
        notes.append(plan.note)
        kept.append(plan.micro_batching.keep_every)
    assert chosen == sorted(chosen)
    assert len(set(chosen)) >= 4
    assert chosen[-1] == 100
    assert [note == "" for note in notes] == [size == 100 for size in chosen]
    assert re.fullmatch(r"a micro-batch of 100 would need 0\.\d GiB, and 0\.\d GiB .*", notes[0])
    assert str(choose(WIDE_NET, 1, 100, available=int(0.5 * GIB))).endswith("can be used")
    assert {1, 2} == set(kept)  # with 5 layers 3 keeps as many as 2
    assert all(k == 1 for k, size in zip(kept, chosen, strict=True) if size > 32)


def test_activations_that_are_computed_twice_take_less():
    plans = [plan_of(NetworkConfig((10, *[1000] * 10, 2), epsilon=1), 32, k) for k in range(1, 12)]
    buffers = [(plan.activations - plans[0].activations) / (4 * 1000 * 32) for plan in plans]
    assert buffers == [0, -3, -4, -4, -3, -3, -2, -1, 0, 1, 1]
    assert ", every 3rd layer's" in str(plans[2]) and "every" not in str(plans[0])
    given = choose((10, *[1000] * 10, 2), 1, available=GIB, keep_every=2, micro_batch=7)
    assert given.micro_batching == (7, 2, "float32", False)


@pytest.mark.parametrize("micro_batch", [1, 3, 64, 128])
def test_a_micro_batch_that_is_given_is_taken(micro_batch):
    plan = choose((100, WIDE, 2), 1, available=64 * GIB, micro_batch=micro_batch)
    assert plan == plan_of(NetworkConfig((100, WIDE, 2), epsilon=1), micro_batch)
    with pytest.raises(MemoryPlanError, match=f"micro-batch of {micro_batch} "):
        choose((100, WIDE, 2), 1, available=GIB // 3, micro_batch=micro_batch)


def test_mapped_data_need_not_fit():
    plan = choose((100, 1000, 2), 1, available=GIB, mapped=100 * GIB)
    assert plan.mapped == 100 * GIB


def test_a_plan_that_does_not_fit_is_refused_with_one_sentence():
    with pytest.raises(MemoryPlanError) as caught:
        choose((1000, *[WIDE] * 10, 2), 1, available=GIB)
    message = str(caught.value)
    assert isinstance(caught.value, MemoryError)
    assert "\n" not in message
    assert message.startswith("10000000 neurons with a micro-batch of 1 need about ")
    assert "0.9 GiB can be used (90% of the 1.0 GiB available)" in message
    assert re.search(r"about \d\S* neurons would fit", message)
    assert "smaller micro-batch" not in message


def test_a_machine_that_is_too_small_for_anything():
    with pytest.raises(MemoryPlanError, match="not even a small network fits"):
        choose((10, 100, 2), 1, available=2**20)


def test_a_smaller_micro_batch_is_advised_where_that_would_help():
    sizes = (1000, *[WIDE // 2] * 4, 2)
    with pytest.raises(MemoryPlanError, match="smaller micro-batch") as caught:
        choose(sizes, 1, 128, available=GIB, micro_batch=128)
    assert "\n" not in str(caught.value)
    assert choose(sizes, 1, 128, available=GIB, micro_batch=1).micro_batch == 1


CASES = [
    case
    for case in itertools.product(
        (2, 10), (1, 10), (784, 65536), (None, 64), (2 * GIB, 20 * GIB), (3_000_000, 10**9)
    )
]


def test_what_is_said_to_fit_does_fit():
    refused = []
    for layers, epsilon, features, micro_batch, available, neurons in CASES:

        def plan(neurons, layers=layers, features=features, epsilon=epsilon, **options):
            return choose((features, *hidden_sizes(neurons, layers), 2), epsilon, **options)

        options = {"micro_batch": micro_batch, "available": available}
        try:
            plan(neurons, **options)
        except MemoryPlanError as error:
            advice = re.search(r"about (\S+) neurons would fit", str(error))
            assert advice
            fitting = parse_size(advice[1])
            assert neurons / 2000 < fitting < neurons
            try:
                plan(fitting, **options)
            except MemoryPlanError:
                refused.append((neurons, fitting, options))
    assert not refused


@settings(max_examples=50)
@given(
    neurons=st.integers(10, 10**7),
    more=st.integers(0, 10**7),
    layers=st.integers(1, 10),
    epsilon=st.floats(0.5, 30),
    micro_batch=st.integers(1, 128),
    larger=st.integers(0, 100),
)
def test_more_neurons_and_larger_micro_batches_take_more(
    neurons, more, layers, epsilon, micro_batch, larger
):
    def plan(neurons, micro_batch):
        sizes = (500, *hidden_sizes(neurons, layers), 2)
        return plan_of(NetworkConfig(sizes, epsilon=epsilon), micro_batch)

    assume(neurons >= layers)
    small, wide = plan(neurons, micro_batch), plan(neurons + more, micro_batch)
    for part in ("model", "gradients", "activations", "passing", "required"):
        assert getattr(small, part) <= getattr(wide, part)
    if more:
        assert small.required < wide.required
    deep = plan(neurons, micro_batch + larger)
    assert deep.activations >= small.activations + 4 * neurons * larger
    assert deep.model == small.model


@settings(max_examples=50)
@given(
    neurons=st.integers(10, 10**7),
    more=st.integers(0, 10**7),
    available=st.integers(GIB // 2, 32 * GIB),
    batch_size=st.integers(1, 300),
)
def test_more_neurons_never_get_a_larger_micro_batch(neurons, more, available, batch_size):
    def chosen(neurons):
        try:
            return choose((500, neurons, 2), 2, batch_size, available=available).micro_batch
        except MemoryPlanError:
            return 0

    assert batch_size >= chosen(neurons) >= chosen(neurons + more)


# Arrays in files


def test_with_files_a_part_must_fit_in_memory_and_all_on_the_disk(monkeypatch, tmp_path):
    config = NetworkConfig((100, *[100_000] * 10, 2), epsilon=1)
    plain, stored = plan_training(config, 16), plan_training(config, 16, stored=True)
    assert stored.on_disk == plain.model + plain.gradients + plain.activations
    assert stored.required < plain.required - (plain.model + plain.activations) // 2
    assert str(stored).splitlines()[-1].split()[-2:] == [f"{stored.on_disk / GIB:.3f}", "GiB"]
    available = int(stored.required / HEADROOM) + 1
    with pytest.raises(MemoryPlanError, match="or arrays in files"):
        choose_plan(config, 128, micro_batch=16, available=available)
    chosen = choose_plan(config, 128, micro_batch=16, available=available, storage=tmp_path)
    assert chosen == stored
    usage = SimpleNamespace(free=stored.on_disk - 1)
    monkeypatch.setattr(memory_module.shutil, "disk_usage", lambda folder: usage)
    files = {"available": available, "storage": tmp_path}
    with pytest.raises(MemoryPlanError, match=r"in files, and .* neurons would fit"):
        choose_plan(config, 128, micro_batch=16, keep_every=1, **files)
    assert choose_plan(config, 128, micro_batch=16, **files).micro_batching.keep_every == 2
    assert choose_plan(config, 128, keep_every=1, **files).micro_batch < 16


# The memory there is


def test_available_memory_is_below_that_of_the_machine():
    assert 0 < available_memory() <= psutil.virtual_memory().total


def make_group(folder, version, limit, used, cached=0):
    """Write the files of a control group as the kernel does."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max",)}[version]
    names = (*names, "memory.current")[:2]
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    of_children = "total_" if version == 1 else ""
    lines = [f"{of_children}inactive_file {cached}", f"{of_children}active_file {cached}", "anon 7"]
    (folder / "memory.stat").write_text("\n".join(lines) + "\n")


UNLIMITED = {1: 2**63 - 4096, 2: "max"}


@pytest.fixture(params=[1, 2])
def groups(request, tmp_path, monkeypatch):
    """The version of control groups, and the folder of those of this process: /job/step."""
    version, mounts = request.param, tmp_path / "cgroup"
    line = {1: "9:cpu:/else\n4:memory:/job/step\n", 2: "0::/job/step\n"}[version]
    (tmp_path / "membership").write_text(line)
    monkeypatch.setattr(control_groups, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(control_groups, "MOUNTS", mounts)
    return version, mounts / "memory" if version == 1 else mounts


def test_what_others_in_the_group_use_is_not_free(groups):
    version, base = groups
    make_group(base / "job" / "step", version, 2**30, int(0.68 * 2**30))
    assert group_memory_limit() == 2**30
    assert group_free_memory() == pytest.approx(0.32 * 2**30, abs=1)
    assert available_memory() <= free_memory() == group_free_memory()


def test_the_page_cache_is_free(groups):
    version, base = groups
    make_group(base / "job" / "step", version, 2**30, 2**30 - 5, cached=2**28)
    assert group_free_memory() == 2**29 + 5
    make_group(base / "job" / "step", version, 2**30, 2**20, cached=2**28)
    assert group_free_memory() == 2**30


def test_a_group_s_ancestors_bound_it(groups):
    version, base = groups
    make_group(base / "job" / "step", version, UNLIMITED[version], 2**20)
    assert group_memory_limit() is group_free_memory() is None
    assert free_memory() > 0
    make_group(base / "job", version, 2**30, 2**30 - 2**27)
    make_group(base, version, 2**31, 2**20)
    assert (group_memory_limit(), group_free_memory()) == (2**30, 2**27)
    make_group(base, version, 2**31, 2**31 - 2**20)
    assert group_free_memory() == 2**20
    make_group(base / "job", version, 2**30, 2**30 + 4096)  # as it is while the kernel reclaims
    assert group_free_memory() == available_memory() == 0


def test_a_container_s_own_group_is_the_base(groups):
    """The path of the membership is the host's, which the container does not see."""
    version, base = groups
    make_group(base, version, 2**30, 2**28)
    assert group_free_memory() == 2**30 - 2**28


def test_a_plan_does_not_count_on_what_others_use(groups):
    version, base = groups
    sizes = NetworkConfig((1000, 1_000_000, 2), epsilon=1)
    make_group(base / "job" / "step", version, 8 * 2**30, 2**20)
    choose_plan(sizes, 32)
    make_group(base / "job" / "step", version, 8 * 2**30, 8 * 2**30 - 2**28)
    with pytest.raises(MemoryPlanError, match=r"0\.2 GiB available"):
        choose_plan(sizes, 32)
    ranks = memory_of_ranks(Alone(), Nodes.of(Alone()))
    assert 2**28 < ranks < 2**28 + psutil.Process().memory_info().rss


def test_what_is_available_is_asked_for_when_it_is_not_given(monkeypatch):
    monkeypatch.setattr(memory_module, "available_memory", lambda: 2**28)
    with pytest.raises(MemoryPlanError, match=r"0\.2 GiB available"):
        choose((1000, WIDE, 2), 1)


@pytest.mark.parametrize(
    ("sizes", "batch"),
    [((784, 1000, 10), 1024), ((65536, 5_000_000, 5_000_000, 2), 13), ((5, 2), 1024)],
)
def test_prediction_stays_within_half_a_gigabyte(sizes, batch):
    assert prediction_batch(sizes) == batch
    layers = SparseMLP(NetworkConfig((8, 20, 30, 2), epsilon=1), progress=False).layers
    taken = array_bytes(Workspace(layers, 7, training=False))
    assert taken == 4 * 7 * (8 + 2 * 30 + 2)  # as prediction_batch counts


def test_prediction_of_layers_too_wide_is_one_by_one():
    assert prediction_batch((10, 10**9, 2)) == 1
