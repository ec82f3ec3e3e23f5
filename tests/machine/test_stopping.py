"""SIGTERM and Ctrl-C in the middle of a training: what is saved, and what it goes on to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from functools import partial

import helpers
import pytest
from helpers import ROOT, normal_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from largesparse import Trainer, load_checkpoint
from largesparse.machine import environment
from largesparse.machine import signals as stopping
from largesparse.machine.exit_codes import run_command
from largesparse.training import trainer as training_module

# The usual cache of compiled code, for child processes with another cache folder too.
KERNELS = os.environ.get("NUMBA_CACHE_DIR") or str(environment.cache_folder() / "kernels")
BIGMODEL = ("-m", "largesparse", "bigmodel")
ROWS, EPOCHS, STEPS = 80, 3, 12  # 80 rows, 16 of them watched, are 4 steps of 16 an epoch
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def task():
    X = normal_rows(ROWS, 12)
    return X, X[:, :3].argmax(axis=1)


make_trainer = partial(
    helpers.make_trainer,
    epsilon=4,
    network={"seed": 3},
    epochs=EPOCHS,
    batch_size=16,
    learning_rate=0.3,
    dropout=0.3,
    schedule="cosine",
    validation_fraction=0.2,
)


def result(trainer):
    """All that a training has come to, but for the times."""
    arrays = []
    for layer in trainer.network.layers:
        topology = layer.topology
        arrays += [topology.indptr, topology.indices, layer.values, layer.velocity, layer.bias]
        arrays.append(layer.bias_velocity)
    records = [vars(record) for record in trainer.history]
    told = [{key: r[key] for key in sorted(r) if not key.endswith("_s")} for r in records]
    return [array.tolist() for array in arrays], told, trainer.step_count, trainer.epoch


def fit(trainer, folder, calls=(), **options):
    """Train, with one of the signals before certain mini-batches, counted over the fit."""
    done = iter(range(10**6))

    def augment(part, rows, epoch):
        number = next(done)
        for when, what in calls:
            if when == number:
                signal.raise_signal(what)
        return part * (1 + epoch)

    return trainer.fit(
        *task(), augment=augment, checkpoint=folder, progress=False, test=task(), **options
    )


@pytest.fixture(autouse=True)
def ctrl_c_is_heard():
    """A shell lets the jobs that it starts in the background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def undisturbed():
    trainer = make_trainer()
    fit(trainer, None)
    return result(trainer)


def stop(trainer, folder, number, *calls, **options):
    """Train until a signal ends it with its status."""
    expected = SystemExit if number == signal.SIGTERM else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        fit(trainer, folder, calls, **options)
    if number == signal.SIGTERM:
        assert caught.value.code == 143
    return load_checkpoint(folder)


@settings(max_examples=10)
@given(
    stops=st.lists(st.integers(0, STEPS - 1), min_size=1, max_size=3), what=st.sampled_from(SIGNALS)
)
def test_a_training_that_is_stopped_anywhere_comes_to_the_same_bits(
    stops, what, undisturbed, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("stop") / "run"
    trainer, before = make_trainer(), 0
    for step in stops:
        if before + step >= STEPS:
            break
        trainer = stop(trainer, folder, what, (step, what))
        before += step + 1  # the mini-batch that the signal comes before is the last one
        assert trainer.step_count == before
        assert trainer.epoch * 4 + trainer.state.part.samples / 16 == before
    fit(trainer, folder)
    assert result(trainer) == undisturbed
    assert load_checkpoint(folder).state.part is None


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    "place", ["evaluate", "evolve", "save", "callback", "the first evaluation"]
)
def test_a_signal_between_epochs_is_heeded_too(undisturbed, tmp_path, monkeypatch, place, number):
    folder = tmp_path / "run"
    calls = []

    def struck(function):
        def call(*arguments, **named):
            calls.append(place)
            if len(calls) == (1 if "first" in place else 2):
                signal.raise_signal(number)
            return function(*arguments, **named)

        return call

    options = {}
    with monkeypatch.context() as patch:
        if place == "callback":
            options["callbacks"] = [struck(lambda *_: None)]
        elif place == "save":
            save = struck(training_module.save_checkpoint)
            patch.setattr(training_module, "save_checkpoint", save)
        else:
            name = "evolve" if place == "evolve" else "sum_scores"
            patch.setattr(Trainer, name, struck(getattr(Trainer, name)))
        trainer = stop(make_trainer(), folder, number, **options)
    epochs, part = {"evaluate": (0, None), "the first evaluation": (0, None)}.get(place, (2, None))
    assert (trainer.epoch, trainer.state.part) == (epochs, part)
    assert len(trainer.history) == (0 if epochs == 0 else 3)
    fit(trainer, folder)
    assert result(trainer) == undisturbed


def test_an_evaluation_is_not_waited_for(undisturbed, tmp_path, monkeypatch):
    """The epoch before it is complete, and is not trained again."""
    folder, sum_scores = tmp_path / "run", Trainer.sum_scores
    evaluated = []

    def struck(trainer, *arguments):
        if trainer.state.part is not None:
            signal.raise_signal(signal.SIGTERM)
        evaluated.append(trainer.epoch)
        return sum_scores(trainer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "sum_scores", struck)
        trainer = stop(make_trainer(), folder, signal.SIGTERM)
    assert evaluated == [0, 0, 0]  # before training
    assert (trainer.epoch, trainer.state.part.samples, trainer.step_count) == (0, 64, 4)
    fit(trainer, folder)
    assert result(trainer) == undisturbed


def test_it_is_told_in_one_sentence(tmp_path, capsys):
    folder = tmp_path / "run"
    stop(make_trainer(), folder, signal.SIGTERM, (5, signal.SIGTERM))
    shown = capsys.readouterr().err
    assert shown == (
        f"largesparse: stopped by SIGTERM in epoch 2, after 32 of 64 samples; saved in {folder}. "
        f"Go on with --resume {folder}, in Python with load_checkpoint.\n"
    )
    code = run_command(lambda: fit(load_checkpoint(folder), folder, [(1, signal.SIGINT)]))
    assert code == 130
    shown = capsys.readouterr().err
    assert shown.startswith("largesparse: stopped by Ctrl-C in epoch 2, after 64 of 64 samples; ")
    assert shown.count("\n") == 1


def test_a_state_that_cannot_be_saved_is_not_called_saved(tmp_path, monkeypatch, capsys, caplog):
    def fail(*_):
        raise training_module.CheckpointError("The disk is full.")

    monkeypatch.setattr(training_module, "save_checkpoint", fail)
    with pytest.raises(SystemExit):
        fit(make_trainer(), tmp_path / "run", [(1, signal.SIGTERM)])
    shown = capsys.readouterr().err
    assert "after 32 of 64 samples, and not saved." in shown and "--resume" not in shown
    assert "The disk is full." in caplog.text


def test_the_second_ctrl_c_is_not_waited_for(tmp_path):
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(make_trainer(), tmp_path / "run", [(5, signal.SIGINT), (5, signal.SIGINT)])
    assert not isinstance(caught.value, stopping.Interrupted)
    assert load_checkpoint(tmp_path / "run").step_count == 4  # of the end of the epoch


def test_handlers_are_put_back_and_others_left_alone(tmp_path):
    seen, mine = [], lambda *_: seen.append("mine")
    before = signal.signal(signal.SIGTERM, mine)
    try:
        fit(make_trainer(), tmp_path / "first", [(1, signal.SIGTERM)])
        assert signal.getsignal(signal.SIGTERM) == mine
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == ["mine"]
    stop(make_trainer(), tmp_path / "run", signal.SIGINT, (1, signal.SIGINT))
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == before


def test_without_a_folder_and_in_threads_nothing_is_noted(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(make_trainer(), None, [(1, signal.SIGINT)])
    trainer = make_trainer()
    thread = threading.Thread(target=fit, args=(trainer, tmp_path / "run"))
    thread.start()
    thread.join()
    assert trainer.epoch == EPOCHS


def test_a_signal_after_the_last_look_is_not_lost():
    with pytest.raises(KeyboardInterrupt), stopping.stop_request():
        signal.raise_signal(signal.SIGINT)


def test_another_batch_size_goes_on_with_the_rows_that_are_left(tmp_path):
    folder = tmp_path / "run"
    stop(make_trainer(), folder, signal.SIGTERM, (1, signal.SIGTERM))
    trainer = load_checkpoint(folder, batch_size=10, epochs=1)
    seen = []
    trainer.fit(*task(), augment=lambda part, rows, _: (seen.append(len(rows)), part)[1])
    assert seen == [10, 10, 10, 2]  # of 64 - 32


@pytest.mark.parametrize(
    "part",
    [3, {"samples": -1}, {"samples": 0.5}, {"loss": float("nan")}, {"rows": 2}, {"loss": "x"}],
)
def test_a_part_of_an_epoch_that_cannot_be_is_refused(part):
    from largesparse.training.history import EpochPart

    with pytest.raises((TypeError, ValueError)):  # which `load_checkpoint` calls damage
        EpochPart.from_dict(part)


def start(*program, **options):
    command = [sys.executable, *map(str, program)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **options)


def test_the_driver_ends_with_143_and_goes_on_without_flags(tmp_path):
    sizes = ("--neurons=400", "--features=100", "--samples=400", "--batch-size=16")
    flags = (*sizes, "--epochs=3000", "--learning-rate=0.01", "--threads=1", "--backend=scipy")
    variables = os.environ | {"LARGESPARSE_CACHE": str(tmp_path / "cache")}
    variables["NUMBA_CACHE_DIR"] = KERNELS
    options = {"env": variables, "cwd": tmp_path}
    process = start(*BIGMODEL, *flags, "--checkpoint", "run", "--resume", **options)
    for line in process.stdout:
        if line.startswith("epoch 2"):
            break
    process.send_signal(signal.SIGTERM)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 143, shown
    assert "stopped by SIGTERM" in shown and "--resume run" in shown and "Traceback" not in shown
    saved = load_checkpoint(tmp_path / "run")
    assert saved.epoch >= 2
    end = saved.epoch + 1
    process = start(*BIGMODEL, "--resume", "run", "--epochs", end, **options)
    out, shown = process.communicate(timeout=60)
    assert process.returncode == 0, shown
    assert f"resumed after epoch {saved.epoch}" in out
    assert load_checkpoint(tmp_path / "run").epoch == end
    record = json.loads((tmp_path / "runs.jsonl").read_text())
    assert (record["neurons"], record["batch_size"], record["threads"]) == (400, 16, 1)
    assert len(record["loss"]) == end + 1


@pytest.mark.long
def test_a_training_that_is_killed_at_random_is_compared():
    options = ("--times=1", "--signal=KILL", "--strikes=1", "--seed=4", "--neurons=2k")
    process = start(
        ROOT / "soak" / "__main__.py", "kill_resume", *options, "--epochs=2", "--samples=600"
    )
    out, shown = process.communicate(timeout=120)
    assert process.returncode == 0, shown
    assert "1 of 1 equal the undisturbed training, to the bit" in out
