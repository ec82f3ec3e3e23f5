"""The folder of a model: what in it may be replaced, and what is known before a training."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import helpers
import numpy as np
import pytest

import largesparse.training.trainer as training_module
from largesparse import (
    NetworkConfig,
    SparseMLP,
    load_checkpoint,
    load_model,
    save_checkpoint,
    save_model,
)
from largesparse.errors import CheckpointError
from largesparse.machine.environment import expand_user
from largesparse.machine.folders import COMPLETE, WRITING

X = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
Y = np.arange(40) % 2


def network(seed=0):
    return SparseMLP(NetworkConfig((6, 8, 2), epsilon=3.0, seed=seed), progress=False)


def make_trainer(seed=0, **config):
    settings = {"epochs": 2, "batch_size": 20, "epsilon": 3.0, "network": {"seed": seed}}
    return helpers.make_trainer((6, 8, 2), **settings | config)


def fit(trainer, folder, **options):
    return trainer.fit(X, Y, checkpoint=folder, progress=False, **options)


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def is_saved(folder, seed):
    expected = network(seed).layers[0].values
    return np.array_equal(load_model(folder).layers[0].values, expected)


@pytest.fixture
def old(tmp_path):
    """A saved model, of seed 0."""
    save_model(network(), tmp_path / "model")
    return tmp_path / "model"


# What is not the format's stays


@pytest.mark.parametrize("save", [save_model, save_checkpoint, fit])
def test_a_folder_with_another_s_manifest_is_not_replaced(tmp_path, save):
    folder = tmp_path / "extension"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"manifest_version": 3, "name": "blocker"}')
    (folder / "background.js").write_text("precious")
    before = contents(folder)
    what = network() if save is save_model else make_trainer()
    with pytest.raises(CheckpointError, match="not a model's"):
        save(what, folder)
    assert contents(folder) == before
    assert os.listdir(tmp_path) == ["extension"]


def test_files_of_the_user_beside_a_model_stay(old):
    (old / "notes.txt").write_text("precious")
    (old / "figures").mkdir()
    (old / "figures/a.png").write_text("precious")
    (old / "replica-1").mkdir()  # a name like ours
    (old / "replica-1/data").write_text("precious")
    save_model(network(1), old)
    assert is_saved(old, 1)
    trainer = make_trainer()
    save_checkpoint(trainer, old)
    others = ["figures/a.png", "notes.txt", "replica-1/data"]
    found = contents(old)
    ours = (".safetensors", "manifest.json")
    assert sorted(name for name in found if not name.endswith(ours)) == others
    assert all(found[name] == b"precious" for name in others)


def test_a_user_s_file_under_a_name_of_the_format_is_not_replaced(old):
    weights = old / "best-layer-01.safetensors"
    weights.write_bytes(b"precious")
    with pytest.raises(CheckpointError, match=r"best-layer-01\.safetensors is not of the model"):
        save_model(network(1), old)
    assert weights.read_bytes() == b"precious"
    assert is_saved(old, 0)


def test_siblings_of_a_model_stay(tmp_path):
    names = [".run-archived", ".run-2024runs", ".run.previous", "run-12345678"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("precious")
    fit(make_trainer(), tmp_path / "run")
    assert sorted(os.listdir(tmp_path)) == sorted([*names, "run"])
    assert all((tmp_path / name / "thesis.tex").exists() for name in names)


def test_only_files_that_a_manifest_lists_are_removed(tmp_path):
    trainer = make_trainer(validation_fraction=0.2)
    fit(trainer, tmp_path / "run")
    assert (tmp_path / "run/best-layer-01.safetensors").exists()
    (tmp_path / "outside.safetensors").write_text("precious")
    path = tmp_path / "run/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../outside.safetensors"] = {"bytes": 8, "sha256": ""}
    path.write_text(json.dumps(manifest))
    save_model(network(1), tmp_path / "run")
    assert (tmp_path / "outside.safetensors").read_text() == "precious"
    layers = ["layer-01.safetensors", "layer-02.safetensors", "manifest.json"]
    assert sorted(os.listdir(tmp_path / "run")) == layers


def test_checkpoints_of_replicas_go_with_the_training_s(tmp_path):
    trainer = make_trainer()
    save_checkpoint(trainer, tmp_path / "run")
    for name in ("replica-001", "replica-002"):
        save_checkpoint(trainer, tmp_path / "run" / name)
    (tmp_path / "run/replica-002/notes.txt").write_text("precious")
    save_checkpoint(trainer, tmp_path / "run")
    assert not (tmp_path / "run/replica-001").exists()
    assert os.listdir(tmp_path / "run/replica-002") == ["notes.txt"]


def test_links_are_followed_to_the_folder_and_replaced_within(tmp_path, old):
    (tmp_path / "link").symlink_to(old)
    elsewhere = tmp_path / "elsewhere.safetensors"
    (old / "layer-01.safetensors").rename(elsewhere)
    (old / "layer-01.safetensors").symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    save_model(network(1), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert is_saved(old, 1)
    assert elsewhere.read_bytes() == before


# Crashes, and several writers


def test_a_crash_after_the_new_model_is_complete_leaves_the_new_one(old, monkeypatch):
    """Whichever of its files has been moved into its place."""
    replace = os.replace
    for allowed in range(3):
        moved = []

        def die(*arguments, allowed=allowed, moved=moved):
            if len(moved) == allowed:
                raise KeyboardInterrupt
            moved.append(arguments)
            replace(*arguments)

        save_model(network(), old)  # tidies up
        assert len(os.listdir(old)) == 3
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", die)
            save_model(network(allowed + 1), old)
        assert (old / COMPLETE).is_dir()
        assert is_saved(old, allowed + 1)


def test_a_file_that_cannot_be_moved_is_told_and_the_model_is_saved(old, monkeypatch, caplog):
    def fail(*_):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        save_model(network(1), old)
    assert "the next save will tidy it up" in caplog.text
    assert is_saved(old, 1)


def test_the_old_place_of_earlier_releases_is_read(old):
    old.rename(old.with_name(".model.previous"))
    assert is_saved(old, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="it cannot be told who still writes")
def test_what_a_killed_writer_has_left_goes_and_a_living_one_s_stays(old, tmp_path):
    script = f"""
import os, sys
from largesparse.machine import folders
from pathlib import Path
with folders.replacing(Path({str(old)!r})) as beside:
    (beside / "layer-01.safetensors").write_bytes(b"x" * 1000)
    print("writing", flush=True)
    sys.stdin.readline()
"""
    command = [sys.executable, "-c", script]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as writer:
        assert writer.stdout.readline() == "writing\n"
        save_model(network(1), old)
        (left,) = old.glob(f"{WRITING}*")
        assert contents(left) == {"layer-01.safetensors": b"x" * 1000}
        writer.kill()
    (left / "notes.txt").write_text("precious")
    save_model(network(2), old)
    assert os.listdir(left) == ["notes.txt"]
    (left / "notes.txt").unlink()
    save_model(network(3), old)
    assert not left.exists()
    assert is_saved(old, 3)


def test_two_writers_of_one_folder_leave_a_whole_model(tmp_path):
    folder, errors = tmp_path / "model", []

    def write(seed):
        for _ in range(20):
            try:
                save_model(network(seed), folder)
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert is_saved(folder, 1) or is_saved(folder, 2)
    assert len(os.listdir(folder)) == 3


# Other trainings' checkpoints


def test_another_training_s_checkpoint_is_not_replaced(tmp_path):
    fit(make_trainer(epochs=7), tmp_path / "run")
    before = contents(tmp_path / "run")
    trainer = make_trainer(seed=1)
    with pytest.raises(CheckpointError, match=r"after epoch 7.*--resume.*load_checkpoint"):
        fit(trainer, tmp_path / "run")
    assert trainer.step_count == 0 and len(trainer.history) == 0
    assert contents(tmp_path / "run") == before


def test_a_saved_model_is_not_replaced_by_a_checkpoint(old):
    with pytest.raises(CheckpointError, match="saved model"):
        fit(make_trainer(), old)
    assert is_saved(old, 0)


@pytest.mark.parametrize("crashed", [False, True])
def test_a_training_that_goes_on_replaces_its_own_checkpoint(tmp_path, crashed):
    folder = tmp_path / "run"
    trainer = make_trainer()
    fit(trainer, folder)
    fit(trainer, folder)  # there is nothing left to train
    if crashed:
        folder.rename(tmp_path / ".run.previous")
    again = load_checkpoint(folder, epochs=3)
    fit(again, folder)
    assert load_checkpoint(folder).epoch == 3
    fit(load_checkpoint(folder, epochs=4), tmp_path / "other")
    with pytest.raises(CheckpointError, match="another training"):
        fit(load_checkpoint(folder, epochs=4), tmp_path / "other")


def test_two_trainings_that_begin_at_once_do_not_replace_each_other_s(tmp_path, caplog):
    folder, other = tmp_path / "run", make_trainer(seed=1, epochs=1)
    trainer = make_trainer()
    fit(trainer, folder, augment=lambda X, *_: (other.epoch or fit(other, folder), X)[1])
    assert "another training" in caplog.text
    assert load_checkpoint(folder).epoch == 1
    (beside,) = tmp_path.glob("run-*")
    assert load_checkpoint(beside).epoch == trainer.epoch == 2


# Before the training


def test_notes_that_json_cannot_hold_are_refused_before_training(tmp_path, caplog):
    for notes in ({"seen": {1, 2}}, {"path": Path("x")}, {("a", 1): 2}):
        trainer = make_trainer()
        trainer.state.notes = notes
        with pytest.raises(CheckpointError, match=r"'notes'.*JSON"):
            fit(trainer, tmp_path / "run")
        assert trainer.step_count == 0
    trainer = make_trainer()
    fit(trainer, tmp_path / "run", callbacks=[lambda t, _: t.notes.update(seen={1})])
    assert trainer.epoch == 2  # the epochs are not lost
    assert "'notes'" in caplog.text


def test_too_little_room_is_told_before_training(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    trainer = make_trainer()
    with pytest.raises(CheckpointError, match="100 are free"):
        fit(trainer, tmp_path / "run")
    assert trainer.step_count == 0


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_folder_that_may_not_be_written_is_told_before_training(tmp_path):
    (tmp_path / "run").mkdir(mode=0o500)
    trainer = make_trainer()
    with pytest.raises(CheckpointError, match="Permission denied"):
        fit(trainer, tmp_path / "run")
    assert trainer.step_count == 0


# Places


BIND = """
import numpy as np
from largesparse import *
X = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
network = SparseMLP(NetworkConfig((6, 8, 2), epsilon=3.0), progress=False)
trainer = Trainer(network, TrainingConfig(epochs=2, batch_size=20, threads=1, backend="scipy"))
trainer.fit(X, np.arange(40) % 2, checkpoint="mounted", progress=False)
assert load_checkpoint("mounted").epoch == 2
save_model(network, "mounted")
"""


def test_a_mount_point_is_written_to(tmp_path):
    """As of `docker -v $PWD/model:/model`."""
    for name in ("source", "mounted"):
        (tmp_path / name).mkdir()
    unshare = ["unshare", "--mount", "sh", "-c"]
    mount = "mount --bind source mounted"
    try:
        subprocess.run([*unshare, mount], cwd=tmp_path, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user cannot mount a folder")
    program = [sys.executable, "-c", BIND]
    command = [*unshare, f'{mount} && exec "$@"', "sh", *program]
    options = {"cwd": tmp_path, "capture_output": True, "text": True}
    result = subprocess.run(command, check=False, **options)
    assert result.returncode == 0, result.stderr
    assert load_model(tmp_path / "source").neurons == 8
    assert os.listdir(tmp_path / "mounted") == []


def test_the_working_directory_can_be_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".git").mkdir()
    (tmp_path / "lost+found").mkdir()  # of a file system of its own
    for seed in (1, 2):
        save_model(network(seed), ".")
        assert Path.cwd() == tmp_path
        assert is_saved(".", seed)
    assert (tmp_path / ".git").is_dir()


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    save_model(network(1), "~/a/model")
    assert is_saved(tmp_path / "a/model", 1) and is_saved("~/a/model", 1)
    fit(make_trainer(), "~/run")
    again = load_checkpoint("~/run", epochs=3)
    fit(again, "~/run")
    assert load_checkpoint(tmp_path / "run").epoch == 3
    assert os.listdir(tmp_path / "work") == []
    assert expand_user("~no such user/x") == Path("~no such user/x")


# A failure at the end


def test_a_training_whose_last_checkpoint_fails_is_saved_beside(tmp_path, monkeypatch, caplog):
    folder = tmp_path / "run"
    save = training_module.save_checkpoint

    def fail_there(trainer, place):
        if place == folder and trainer.epoch > 1:
            raise CheckpointError("The disk is full.")
        save(trainer, place)

    monkeypatch.setattr(training_module, "save_checkpoint", fail_there)
    trainer = make_trainer()
    fit(trainer, folder)
    (beside,) = tmp_path.glob("run-*")
    assert f"saved in {beside}" in caplog.text
    found = load_checkpoint(beside)
    assert found.epoch == 2
    assert np.array_equal(found.network.layers[0].values, trainer.network.layers[0].values)
    assert load_checkpoint(folder).epoch == 1
