"""Training by a pipeline: the sequential trainer's bits, whatever the ranks.

Most of it is by ranks that are threads of this process; what needs MPI is in two jobs.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pipeline_cases
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpi_runs import run_mpi
from pipeline_cases import CASES, Case
from rank_threads import run_ranks

from largesparse import (
    NetworkConfig,
    SparseMLP,
    Trainer,
    load_checkpoint,
    load_model,
    predict,
    predict_proba,
    save_model,
)
from largesparse.backends import operands
from largesparse.errors import CheckpointError, DataError, ParallelError, ParameterError
from largesparse.model.layer import initial_layer
from largesparse.parallel.pipeline import pipeline, saving
from largesparse.parallel.pipeline.data import Given, prepare_stage_
from largesparse.parallel.pipeline.flow import BACKWARD, FORWARD, one_forward_one_backward
from largesparse.parallel.pipeline.job import PipelineOptions
from largesparse.parallel.pipeline.pipeline import Pipeline, load_pipeline
from largesparse.parallel.pipeline.split import split_layers, stages_of
from largesparse.parallel.pipeline.stage import Place
from largesparse.parallel.pipeline.trainer import StageTrainer
from largesparse.training.prepared import prepare_

MEASURED = ("loss", "train_accuracy", "test_accuracy", "validation_accuracy", "running_loss")
MEASURED += ("nnz", "active_neurons", "explored")
FUSED = {"backend": "fused"}


def sequential(case: Case, **fit) -> Trainer:
    X, y = case.data()
    trainer = Trainer(SparseMLP(case.network_config(), progress=False), case.config())
    trainer.fit(X, y, test=(X[:9], y[:9]), progress=False, **fit)
    return trainer


def begun(case: Case, comm, groups: int, stages, **fit):
    """Return the trainer of a rank, and its data."""
    X, y = case.data()
    place, config = Place.of(comm.rank, groups, stages), case.network_config()
    layers = [initial_layer(config, k, 1) for k in place.stage.layers]
    network = SparseMLP.from_layers(config, layers)
    options = {name: fit[name] for name in ("augment", "chunk_bytes") if name in fit}
    trainer = StageTrainer(network, case.config(), comm, place, **options)
    trainer.meet()
    first, last = place.is_first, place.is_last
    test = (X[:9] if first else None, y[:9] if last else None)
    own = Given(X if first else None, y if last else None, test, fit.get("sample_weight"))
    return trainer, prepare_stage_(trainer, own)


def by_threads(case: Case, ranks: int, stages=None, groups: int = 1, **fit) -> list[StageTrainer]:
    layers = len(case.network_config().layer_sizes) - 1
    stages = stages or split_layers([1.0] * layers, ranks // groups)

    def train(comm):
        trainer, data = begun(case, comm, groups, stages, **fit)
        trainer.train(data, progress=False)
        return trainer

    return run_ranks(ranks, train)


def assert_same_layers(expected: SparseMLP, found: list) -> None:
    assert len(expected.layers) == len(found)
    for layer, other in zip(expected.layers, found, strict=True):
        mine, theirs = layer.arrays(True), other.arrays(True)
        assert mine.keys() == theirs.keys()
        for name, array in mine.items():
            np.testing.assert_array_equal(array, theirs[name], f"{name} of layer {layer.number}")


def assert_same(trainer: Trainer, stages: list[StageTrainer]) -> None:
    assert_same_layers(trainer.network, [layer for each in stages for layer in each.network.layers])
    for each in stages:
        for mine, theirs in zip(trainer.history, each.history, strict=True):
            for name in MEASURED:
                assert getattr(mine, name) == getattr(theirs, name), name


NORMALISED = {"batch_norm": True}
AVERAGED = {"average_decay": 0.9}
SAME = {
    "plain": (Case(), {}),
    "fused": (Case(training=FUSED), {}),
    "even": (Case({"layer_sizes": (8, *[12] * 6, 3)}, FUSED), {}),
    "srelu": (Case(network={"activation": "srelu"}), {}),
    "normalised": (Case(network=NORMALISED), {"sample_weight": np.arange(47.0) % 5}),
    "gradients": (Case({"recipe": "width"}, {"growth": "gradient", "drop": "mest"}), {}),
    "paths": (Case(training={"growth": "topology"}), {}),
    "adam": (Case(training={"optimizer": "adamw", "learning_rate": 0.01, "clip_norm": 0.1}), {}),
    "averaged": (Case(NORMALISED, AVERAGED), {}),
    "watched": (Case(training=AVERAGED | {"validation_fraction": 0.3, "patience": 2}), {}),
    "bfloat16": (Case(training=FUSED | {"activation_dtype": "bfloat16"}), {}),
    "minimum": (Case({"output_minimum": 2}), {}),
    "outputs": (Case(training={"evolve_output": True, "evolve_last": True}), {}),
    "smoothed": (Case(training={"label_smoothing": 0.1, "schedule": "cosine"}), {}),
    "augmented": (Case(), {"augment": lambda X, rows, epoch: X + rows[:, None] % 3 + epoch}),
}


@pytest.mark.parametrize("name", SAME)
def test_any_number_of_ranks_gives_the_sequential_bits(name):
    case, fit = SAME[name]
    expected = sequential(case, **fit)
    for ranks in (1, 2, 4):
        assert_same(expected, by_threads(case, ranks, **fit))


@pytest.mark.long  # compiles most kernels once more
@pytest.mark.parametrize("name", SAME)
def test_connections_counted_by_int64_give_the_same_bits(name, monkeypatch):
    case, fit = SAME[name]
    expected = sequential(case, **fit)
    most = max(initial_layer(case.network_config(), k, 1).nnz for k in range(4)) // 2
    monkeypatch.setattr(operands, "MOST_INT32", most)
    found = [sequential(case, **fit), *by_threads(case, 2, **fit)]
    layers = found[0].network.layers
    assert [layer.topology.is_int64 for layer in layers] == [layer.nnz > most for layer in layers]
    assert_same(expected, found[:1])
    assert_same(expected, found[1:])


def test_without_an_evaluation_before_it_the_bits_are_the_same():
    case = Case(training={"evaluate_first": False})
    expected = sequential(case)
    assert expected.history["loss"][0] is None
    assert_same(expected, by_threads(case, 2))


def test_small_chunks_give_the_sequential_bits():
    """Several transfers are on their way at a time, each in several messages."""
    case = Case(training=FUSED | {"batch_size": 12})
    assert_same(sequential(case), by_threads(case, 4, chunk_bytes=24))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_depths_widths_and_splits_give_the_sequential_bits(data):
    hidden = data.draw(st.lists(st.integers(2, 40), min_size=1, max_size=5), label="hidden")
    layers = len(hidden) + 1
    cuts = data.draw(st.sets(st.integers(1, layers - 1), max_size=min(4, layers - 1)), label="cuts")
    stages = stages_of((0, *sorted(cuts), layers))
    batch = data.draw(st.integers(1, 47), label="batch")
    micro = data.draw(st.integers(1, batch), label="micro-batch")
    dtype = data.draw(st.sampled_from(["float32", "bfloat16"]), label="dtype")
    training = FUSED | {"batch_size": batch, "micro_batch": micro, "epochs": 2}
    training |= {"learning_rate": 0.002}  # with mini-batches of one row, too
    training |= {"activation_dtype": dtype, "seed": data.draw(st.integers(0, 9), label="seed")}
    case = Case({"layer_sizes": (8, *hidden, 3)}, training)
    assert_same(sequential(case), by_threads(case, len(stages), stages))


@settings(max_examples=50, deadline=None)
@given(stages=st.integers(1, 6), count=st.integers(1, 12))
def test_each_pass_comes_once_and_few_activations_are_kept(stages, count):
    """As many micro-batches are in flight as there are ranks from here on; the end is reached."""
    orders = [list(one_forward_one_backward(k, stages, count)) for k in range(stages)]
    for k, order in enumerate(orders):
        for kind in (FORWARD, BACKWARD):
            assert [number for each, number in order if each == kind] == list(range(count))
        in_flight = np.cumsum([1 if kind == FORWARD else -1 for kind, _ in order])
        assert in_flight.max() == min(stages - k, count) and in_flight[-1] == 0
    done, places = set(), [0] * stages
    while any(place < 2 * count for place in places):  # a stage goes on when its input is there
        before = list(places)
        for k, order in enumerate(orders):
            if places[k] < 2 * count:
                kind, number = order[places[k]]
                ends = (kind, 0) if kind == FORWARD else (kind, stages - 1)
                other = k - 1 if kind == FORWARD else k + 1
                if k == ends[1] or (kind, number, other) in done:
                    done.add((kind, number, k))
                    places[k] += 1
        assert places != before, "the stages wait for each other"


def test_groups_sum_what_one_pipeline_computes():
    """The sums are in another order; a mini-batch may have fewer rows than there are groups."""
    case = Case(training={"batch_size": 46, "micro_batch": 4, "zeta": 0.0, "pruning_start": None})
    expected = sequential(case)
    for groups, ranks in ((2, 4), (3, 3)):
        found = by_threads(case, ranks, groups=groups)
        each = ranks // groups
        for group in range(groups):
            stages = found[group * each : (group + 1) * each]
            layers = [layer for stage in stages for layer in stage.network.layers]
            for layer, other in zip(expected.network.layers, layers, strict=True):
                np.testing.assert_allclose(layer.values, other.values, rtol=1e-5, atol=1e-6)
        for k in range(each):  # all groups have the same bits
            for group in range(1, groups):
                mine, theirs = found[k].network.layers, found[group * each + k].network.layers
                for layer, other in zip(mine, theirs, strict=True):
                    np.testing.assert_array_equal(layer.values, other.values)
        losses = np.array(found[0].history["running_loss"][1:])
        np.testing.assert_allclose(losses, expected.history["running_loss"][1:], rtol=1e-5)


def test_sparse_inputs_give_the_sequential_bits():
    from scipy.sparse import csr_array

    case = Case({"layer_sizes": (8, 24, 16, 3)}, {"batch_size": 6, "micro_batch": 6})
    X, y = case.data()
    X[np.abs(X) < 1] = 0

    class Sparse(Case):
        def data(self):
            return csr_array(X), y

    for training in (case.training, case.training | {"standardize": False}):
        sparse = Sparse(case.network, training)
        assert_same(sequential(sparse), by_threads(sparse, 2))


def test_mini_batches_with_fewer_nonzeros_than_others_give_the_sequential_bits():
    """`Trainer` takes them as it takes most, where its update is one compiled step."""
    from scipy.sparse import csr_array

    rng = np.random.default_rng(0)
    X = rng.normal(size=(47, 60)).astype(np.float32)
    X[:38, 2:] = 0  # less than SPARSE of them have a value

    class Mixed(Case):
        def data(self):
            return csr_array(X), Case.data(self)[1]

    training = FUSED | {"batch_size": 4, "micro_batch": 4, "standardize": False, "epochs": 3}
    case = Mixed({"layer_sizes": (60, 24, 16, 3)}, training)
    found = [layer for trainer in by_threads(case, 2) for layer in trainer.network.layers]
    assert_same_layers(sequential(case).network, found)


def test_groups_agree_on_a_mini_batch_of_one_sparse_row():
    """The group that has it must not leave out weights of inputs that the row does not have."""
    from scipy.sparse import csr_array

    rows, features = 9, 80
    X = csr_array((np.ones(rows), (np.arange(rows), 7 * np.arange(rows))), (rows, features))

    class Sparse(Case):
        def data(self):
            return X, np.arange(rows) % 3

    training = {"batch_size": 4, "micro_batch": 4, "standardize": False, "dropout": 0.0}
    case = Sparse(
        {"layer_sizes": (features, 6, 3)}, training | {"zeta": 0.0, "pruning_start": None}
    )
    expected = sequential(case).network.layers
    for trainer in by_threads(case, 2, groups=2):
        for layer, other in zip(expected, trainer.network.layers, strict=True):
            np.testing.assert_allclose(layer.values, other.values, rtol=1e-5, atol=1e-6)


def test_the_first_group_has_the_loss_of_all():
    """So that its sum over an epoch is the same whatever the epoch was saved after."""
    case = Case(training={"batch_size": 8})

    def step(comm):
        trainer, data = begun(case, comm, 2, stages_of((0, 4)))
        return trainer.step(data.X, data.y, np.arange(8))

    trainer = Trainer(SparseMLP(case.network_config(), progress=False), case.config())
    X, y = case.data()
    data = prepare_(trainer.network, case.config(), X, y)
    expected = trainer.step(data.X, data.y, np.arange(8))
    assert run_ranks(2, step) == [pytest.approx(expected), 0]


def test_groups_with_other_rows_are_refused():
    class Shuffled(Case):
        def data(self):
            X, y = super().data()
            return X[np.random.default_rng().permutation(len(X))], y

    with pytest.raises(DataError, match="Ranks 0 and 1 have other rows"):
        by_threads(Shuffled(training={"batch_size": 8}), 2, groups=2)


def test_evaluation_wants_as_many_targets_as_inputs():
    X, y = Case().data()

    def evaluate(comm):
        stages = stages_of((0, 2, 4))
        place, config = Place.of(comm.rank, 1, stages), Case().network_config()
        layers = [initial_layer(config, k, 1) for k in place.stage.layers]
        network = SparseMLP.from_layers(config, layers)
        network.classes = np.arange(3)
        pipeline = Pipeline(StageTrainer(network, Case().config(), comm, place))
        return pipeline.evaluate(*((X, None) if place.is_first else (None, y[:-1])))

    with pytest.raises(DataError, match="as many rows on all ranks"):
        run_ranks(2, evaluate)


def test_evaluation_takes_targets_in_the_units_of_predictions(tmp_path):
    X, _ = Case().data()
    network = SparseMLP(NetworkConfig((8, 9, 1), loss="mean_squared_error"), progress=False)
    network.target_mean, network.target_scale = np.array([50.0]), np.array([7.0])
    save_model(network, tmp_path / "model")
    pipeline = load_pipeline(tmp_path / "model", threads=1)
    found = pipeline.predict(X)
    assert 30 < found.mean() < 70
    assert pipeline.evaluate(X, found)[1] == pytest.approx(1)


def test_what_a_pipeline_cannot_do_is_refused():
    from largesparse import TrainingConfig, train_pipeline

    X, y = Case().data()
    config, plain = Case().network_config(), Case().config()
    for network, training, options, told in (
        (config, Case().config(keep_every=2), {}, "'keep_every' parameter must be 1"),
        (config, Case().config(redistribute=True), {}, "'redistribute'"),
        (NetworkConfig((8, 9, 3), start_factor=2.0), plain, {}, "'start_factor'"),
        (SparseMLP(config, progress=False), plain, {}, "NetworkConfig. Got SparseMLP"),
        (config, plain, {"groups": 2}, "'groups'"),
        (config, plain, {"split": (0, 2, 4)}, "2 bounds from 0 to 4"),
        (config, plain, {"split": 4}, "such as \\(0, 3, 5\\). Got 4"),
        (config, plain, {"split": (0, 4.0)}, "must be whole numbers"),
        (config, {}, {}, "TrainingConfig"),
    ):
        with pytest.raises(ParameterError, match=told):
            train_pipeline(network, training, X, y, progress=False, **options)
    with pytest.raises(ParameterError, match="1 to 4 ranks"):
        PipelineOptions().stages(config, 5)
    with pytest.raises(ParameterError, match="'y' parameter of train_pipeline must be given"):
        train_pipeline(config, TrainingConfig(epochs=1, batch_size=4), X, progress=False)


def test_a_training_that_kept_few_activations_goes_on_and_its_settings_can_change(tmp_path):
    from largesparse import train_pipeline

    X, y = Case().data()
    before = Trainer(SparseMLP(Case().network_config()), Case().config(epochs=1, keep_every=2))
    before.fit(X, y, progress=False, checkpoint=tmp_path)
    given = {"resume": tmp_path, "progress": False}
    pipeline = train_pipeline(None, Case().config(epochs=2), X, y, **given)
    assert pipeline.trainer.config.keep_every == 1
    expected = Trainer(SparseMLP(Case().network_config()), Case().config(epochs=2))
    expected.fit(X, y, progress=False)
    assert_same_layers(expected.network, pipeline.network.layers)
    given["changes"] = {"micro_batch": 4}
    pipeline = train_pipeline(None, Case().config(epochs=3), X, y, **given)
    assert pipeline.trainer.micro_batch == 4


@pytest.mark.parametrize("step", ["replacing", "write_layers", "write_rest"])
def test_a_checkpoint_that_cannot_be_written_ends_no_rank(tmp_path, monkeypatch, step):
    def fail(*_, **__):
        raise OSError("the disk is full")

    def save(comm):
        place = Place.of(comm.rank, 1, stages_of((0, 2, 4)))
        layers = [initial_layer(Case().network_config(), k, 1) for k in place.stage.layers]
        network = SparseMLP.from_layers(Case().network_config(), layers)
        trainer = StageTrainer(network, Case().config(), comm, place)
        return trainer.save(tmp_path / "run"), trainer.state.is_unsaved

    monkeypatch.setattr(saving, step, fail)
    assert run_ranks(2, save) == [(False, True)] * 2
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    assert run_ranks(2, save) == [(True, False)] * 2


def test_ranks_that_read_a_model_otherwise_are_told(tmp_path, monkeypatch):
    for name, function in (("threads_of", lambda *_: 1), ("get_communicator", lambda comm: comm)):
        monkeypatch.setattr(pipeline, name, function)  # these ranks are no MPI's
    save_model(SparseMLP(Case().network_config()), tmp_path)

    def load(comm):
        with pytest.raises(ParallelError, match="disagree on the batch size: rank 0 has 4"):
            load_pipeline(tmp_path, comm=comm, batch_size=4 + comm.rank)

    run_ranks(2, load)


def test_a_folder_that_a_rank_does_not_see_is_refused_before_training(tmp_path, monkeypatch):
    @contextmanager
    def on_this_host(folder):
        yield folder / "of-rank-0"

    monkeypatch.setattr(saving, "trying_writing", on_this_host)

    def check(comm):
        place = Place.of(comm.rank, 1, stages_of((0, 2, 4)))
        layers = [initial_layer(Case().network_config(), k, 1) for k in place.stage.layers]
        network = SparseMLP.from_layers(Case().network_config(), layers)
        with pytest.raises(CheckpointError, match="all hosts share"):
            StageTrainer(network, Case().config(), comm, place).check_saving(tmp_path / "run")

    run_ranks(2, check)
    monkeypatch.undo()
    assert not (tmp_path / "run").exists()


# --------------------------------------------------------------------------- under mpiexec
JOBS = {
    4: ("stopped", "groups", "resumed"),
    2: ("resumed-by-fewer",),
    1: ("resumed-alone",),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("pipelines")
    for ranks, names in JOBS.items():
        result = run_mpi(
            "", ranks, program=(pipeline_cases.__file__, str(place), *names), timeout=300
        )
        assert result.status == 0, f"{result.out}\n{result.err}"
    return place


def told(folder: Path, name: str, rank: int = 0) -> dict:
    return json.loads((folder / name / f"told-{rank}.json").read_text())


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("groups", "stopped")])
def test_jobs_end_with_the_sequential_bits(folder, name):
    expected = sequential(Case(training=CASES[name].training))
    found = load_checkpoint(folder / name / "checkpoint")
    assert_same_layers(expected.network, found.network.layers)
    for mine, theirs in zip(expected.history, found.history, strict=True):
        assert [getattr(mine, each) for each in MEASURED] == [
            getattr(theirs, each) for each in MEASURED
        ]
    X, y = Case().data()
    options = {"backend": found.backend.name, "threads": 1, "batch_size": found.micro_batch}
    with np.load(folder / name / "predicted.npz") as predicted:
        for kind in ("outputs", "again"):
            proba = predict_proba(expected.network, X, **options)
            np.testing.assert_array_equal(predicted[kind], proba)
        np.testing.assert_array_equal(predicted["labels"], predict(expected.network, X, **options))
    model = load_model(folder / name / "model")
    for layer, other in zip(expected.network.layers, model.layers, strict=True):
        np.testing.assert_array_equal(layer.values, other.values)
    assert told(folder, name)["scores"] == list(expected.evaluate(X, y))


def test_each_rank_has_its_own_layers_alone_and_all_tell_the_same(folder):
    for rank in range(4):
        mine = told(folder, "resumed", rank)
        assert mine["own"] == [rank + 2]
        for record, other in zip(mine["history"], told(folder, "resumed")["history"], strict=True):
            own = {"evolution_s", "pruning_s"}  # seconds that this rank took
            assert {k: v for k, v in record.items() if k not in own} == {
                k: v for k, v in other.items() if k not in own
            }
        assert mine["report"] == told(folder, "resumed")["report"]


def test_the_report_has_the_bubble_and_what_was_moved(folder):
    report = told(folder, "resumed")["report"]
    assert report["stages"] == [[0, 1], [1, 2], [2, 3], [3, 4]]
    assert report["micro_batches"] == 3 and report["bubble"] == 3 / 6
    assert len(report["waiting_share"]) == 4 and all(0 <= s < 1 for s in report["waiting_share"])
    assert len(report["rss_bytes"]) == 4 and report["peak_rss_bytes"] == max(report["rss_bytes"])
    # 47 rows of three boundaries, in the 3 epochs that were left, there and back
    passed = 4 * 47 * (24 + 16 + 20) * 3 * 2
    assert passed < report["steps_bytes"] < report["bytes_moved"] < 4 * passed


def test_groups_agree_with_one_pipeline(folder):
    case = Case(training=CASES["groups"].training)
    expected = sequential(case)
    found = told(folder, "groups")["history"]
    np.testing.assert_allclose(found[1]["running_loss"], expected.history["running_loss"][1], 1e-4)
    assert told(folder, "groups", 0)["own"] == told(folder, "groups", 2)["own"] == [2, 3]
