"""The synthetic task: its distribution, its cache, and what goes wrong with caches."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ks_2samp, kstest
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from largesparse.data import synthetic
from largesparse.data.synthetic import make_large_classification
from largesparse.errors import DataError, ParameterError
from largesparse.machine import environment

SMALL = {"n_samples": 200, "n_features": 30, "n_informative": 4, "n_redundant": 3}
FILES = ["X_train.npy", "X_test.npy", "y_train.npy", "y_test.npy", "manifest.json"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("LARGESPARSE_CACHE", str(folder))
    return folder


def generated_folder(cache):
    (folder,) = cache.iterdir()  # and nothing beside it
    return folder


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one[:4], other[:4], strict=True))


# The data


def test_shapes_dtypes_and_maps():
    data = make_large_classification(**SMALL, test_fraction=0.25)
    for X, y, n in ((data.X_train, data.y_train, 150), (data.X_test, data.y_test, 50)):
        assert isinstance(X, np.memmap)
        assert (X.shape, X.dtype, y.shape, y.dtype) == ((n, 30), np.float32, (n,), np.int32)
        assert X.flags.c_contiguous and not X.flags.writeable
        assert abs(y.sum() - n / 2) <= 5


@pytest.mark.parametrize("random_state", [0, 1])
def test_distribution_is_that_of_the_direct_call(random_state):
    """Signal columns stand out by their deviation; the others are independent noise."""
    sizes = {"n_samples": 4000, "n_features": 300, "n_informative": 8, "n_redundant": 8}
    data = make_large_classification(**sizes, random_state=random_state)
    X, y = np.vstack([data.X_train, data.X_test]), np.concatenate([data.y_train, data.y_test])
    X_direct, y_direct = make_classification(**sizes, random_state=random_state)

    assert abs(y.mean() - y_direct.mean()) < 0.02
    deviations, direct = np.sort(X.std(axis=0)), np.sort(X_direct.std(axis=0))
    # Cluster shapes and centres are drawn before anything that depends on n_features.
    np.testing.assert_allclose(deviations[-16:], direct[-16:], rtol=0.05)
    np.testing.assert_allclose(deviations[:284], direct[:284], atol=0.02)
    signal, signal_direct = X.std(axis=0) > 1.2, X_direct.std(axis=0) > 1.2
    assert signal.sum() == signal_direct.sum() == 16
    means, means_direct = X.mean(axis=0), X_direct.mean(axis=0)
    np.testing.assert_allclose(
        np.sort(means[signal]), np.sort(means_direct[signal_direct]), atol=0.25
    )
    pairs = zip(  # columns of the two paired by their deviation
        X.T[np.argsort(X.std(axis=0))[-16:]],
        X_direct.T[np.argsort(X_direct.std(axis=0))[-16:]],
        strict=True,
    )
    assert all(ks_2samp(one, other).pvalue > 1e-5 for one, other in pairs)

    noise = X[:, ~signal]
    assert kstest(noise.ravel(), "norm").pvalue > 1e-3
    worst = min(kstest(column, "norm").pvalue for column in noise.T)
    assert worst > 1e-3 / noise.shape[1]
    correlation = np.corrcoef(noise, rowvar=False) - np.eye(noise.shape[1])
    assert np.abs(correlation).max() < 6 / np.sqrt(len(noise))
    assert np.abs(np.corrcoef(np.column_stack([noise, y]).T)[-1, :-1]).max() < 6 / np.sqrt(len(y))


def test_rows_of_different_blocks_and_parts_differ(monkeypatch):
    monkeypatch.setattr(synthetic, "BLOCK_BYTES", 4 * 30 * 7)
    data = make_large_classification(**SMALL)
    rows = np.vstack([data.X_train, data.X_test])
    assert len(np.unique(rows.round(5), axis=0)) == 200
    assert np.unique(rows).size > 0.99 * rows.size


@pytest.mark.parametrize("random_state", [0, 1, 2])
def test_logistic_regression_is_as_good_as_on_the_direct_call(random_state):
    sizes = {"n_samples": 3000, "n_features": 200, "n_informative": 16, "n_redundant": 16}
    data = make_large_classification(**sizes, random_state=random_state)
    X, y = make_classification(**sizes, random_state=random_state)

    def accuracy(X_train, y_train, X_test, y_test):
        scaler = StandardScaler().fit(X_train)
        model = LogisticRegression(max_iter=1000).fit(scaler.transform(X_train), y_train)
        return model.score(scaler.transform(X_test), y_test)

    ours = accuracy(*data[:4])
    direct = accuracy(X[:2100], y[:2100], X[2100:], y[2100:])
    assert ours > 0.6
    assert abs(ours - direct) < 0.06  # three standard errors of a difference with 900 test rows


def test_the_split_is_stratified_and_of_the_size_asked():
    data = make_large_classification(**SMALL | {"n_samples": 1000}, test_fraction=0.2)
    assert len(data.y_test) == 200
    assert abs(data.y_test.mean() - data.y_train.mean()) < 0.01


def test_no_noise_columns():
    data = make_large_classification(100, 7, n_informative=4, n_redundant=3)
    X = np.vstack([data.X_train, data.X_test])
    assert X.shape == (100, 7)
    assert np.linalg.matrix_rank(X, tol=1e-3) == 4  # redundant columns are combinations


def test_signal_columns_stand_at_random_positions():
    sizes = {"n_samples": 500, "n_features": 100, "n_informative": 5, "n_redundant": 5}
    places = []
    for seed in range(3):
        X = make_large_classification(**sizes, random_state=seed).X_train
        places.append(set(np.flatnonzero(X.std(axis=0) > 1.2)))
    assert all(max(place) > 15 for place in places)
    assert max(len(places[i] & places[i - 1]) for i in range(3)) < 5


def test_the_data_depends_on_nothing_but_the_parameters(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "BLOCK_BYTES", 4 * 30 * 7)
    first = make_large_classification(**SMALL, cache_dir=tmp_path / "1")
    monkeypatch.setattr(synthetic, "BUFFER_BYTES", 1)  # one thread
    assert same(first, make_large_classification(**SMALL, cache_dir=tmp_path / "2"))
    other = make_large_classification(**SMALL, random_state=1, cache_dir=tmp_path / "1")
    assert (first.X_train == other.X_train).mean() < 0.01
    assert len(list((tmp_path / "1").iterdir())) == 2


def test_memory_stays_far_below_the_size_of_the_data():
    tracemalloc.start()
    data = make_large_classification(2000, 40000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = data.X_train.nbytes + data.X_test.nbytes
    assert size == 320_000_000
    assert peak < 120_000_000


# Parameters


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_samples": 0}, "'n_samples'"),
        ({"n_samples": 10.5}, "'n_samples'"),
        ({"n_samples": 4, "test_fraction": 0.1}, "no stratified split"),
        ({"n_features": 63}, r"'n_features'.*\[64, inf\)"),
        ({"n_informative": 1}, r"'n_informative'.*2\*\*n_informative"),
        ({"n_redundant": -1}, "'n_redundant'"),
        ({"test_fraction": 0}, "'test_fraction'"),
        ({"test_fraction": 1.0}, "'test_fraction'"),
        ({"test_fraction": np.nan}, "'test_fraction'"),
        ({"random_state": -1}, "'random_state'"),
        ({"random_state": 2**32}, "'random_state'"),
        ({"random_state": None}, "'random_state'"),
    ],
)
def test_parameters_out_of_range(cache, arguments, message):
    with pytest.raises(ParameterError, match=message):
        make_large_classification(**{"n_samples": 100, "n_features": 100} | arguments)
    assert not cache.exists() or not list(cache.iterdir())


def test_numpy_numbers_are_parameters_too():
    plain = make_large_classification(**SMALL)
    data = make_large_classification(**{key: np.int64(value) for key, value in SMALL.items()})
    assert data.X_train.filename == plain.X_train.filename


# The cache


def test_cache_folder(monkeypatch, tmp_path):
    assert environment.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("LARGESPARSE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert environment.cache_folder() == tmp_path / "largesparse"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert environment.cache_folder() == tmp_path / ".cache" / "largesparse"


def test_the_second_call_maps_what_the_first_one_wrote(cache, monkeypatch):
    first = make_large_classification(**SMALL)
    written = {path: path.stat().st_mtime_ns for path in generated_folder(cache).iterdir()}
    assert sorted(path.name for path in written) == sorted(FILES)
    monkeypatch.setattr(synthetic, "_write_task", None)
    assert same(first, make_large_classification(**SMALL))
    assert written == {path: path.stat().st_mtime_ns for path in generated_folder(cache).iterdir()}


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def flip_first(path):
    flip(path, 0)


def flip_last(path):
    flip(path, path.stat().st_size - 1)


def flip_middle(path):
    flip(path, path.stat().st_size // 2)


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [truncate, flip_first, flip_middle, flip_last, Path.unlink])
def test_damaged_files_are_detected_and_made_again(cache, caplog, name, damage):
    first = [np.array(part) for part in make_large_classification(**SMALL)[:4]]
    damage(generated_folder(cache) / name)
    with caplog.at_level(logging.WARNING):
        again = make_large_classification(**SMALL)
    assert same(first, again)
    assert "is damaged" in caplog.text
    caplog.clear()
    assert same(first, make_large_classification(**SMALL))
    assert not caplog.records
    generated_folder(cache)


@pytest.mark.parametrize("damage", [truncate, flip_first, flip_last])
def test_damage_to_a_file_of_many_pieces_is_detected(cache, caplog, damage):
    make_large_classification(300, 4000)
    path = generated_folder(cache) / "X_train.npy"
    assert path.stat().st_size > 50 * synthetic.PIECE_BYTES
    damage(path)
    make_large_classification(300, 4000)
    assert "X_train.npy has changed" in caplog.text


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"parameters": 1}', "\xff"])
def test_a_manifest_of_something_else_is_damage(cache, caplog, content):
    first = make_large_classification(**SMALL)
    (generated_folder(cache) / "manifest.json").write_text(content, encoding="latin-1")
    assert same(first, make_large_classification(**SMALL))
    assert "is damaged" in caplog.text


def test_a_manifest_of_other_parameters_is_damage(cache, caplog):
    make_large_classification(**SMALL)
    path = generated_folder(cache) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["parameters"]["random_state"] = 7
    path.write_text(json.dumps(manifest))
    make_large_classification(**SMALL)
    assert "of other data" in caplog.text


def test_a_disk_that_gives_back_other_bytes_is_told(cache, monkeypatch):
    monkeypatch.setattr(synthetic, "_fingerprint", lambda path: {"time": time.perf_counter()})
    with pytest.raises(DataError, match=r"cannot be read back.*Set LARGESPARSE_CACHE"):
        make_large_classification(**SMALL)
    assert not list(cache.iterdir())


def test_data_that_may_not_be_read_is_kept(cache, monkeypatch):
    make_large_classification(**SMALL)

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(synthetic, "_fingerprint", refuse)
    with pytest.raises(DataError, match=r"cannot be read: Permission denied\. Make it readable"):
        make_large_classification(**SMALL)
    assert sorted(path.name for path in generated_folder(cache).iterdir()) == sorted(FILES)


def test_a_cache_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        DataError, match=r"cannot take .* bytes: Not a directory.*LARGESPARSE_CACHE"
    ):
        make_large_classification(**SMALL, cache_dir=tmp_path / "file" / "cache")


def test_a_disk_that_is_too_small_is_refused_before_the_work(cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    monkeypatch.setattr(synthetic, "_write_task", None)
    with pytest.raises(DataError, match=r"cannot take .* bytes: only 5 bytes are free"):
        make_large_classification(**SMALL)
    assert not list(cache.iterdir())


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt]
)
def test_nothing_is_left_when_writing_fails(cache, monkeypatch, error):
    write = synthetic._write_task

    def fail(*arguments):
        write(*arguments)
        raise error

    monkeypatch.setattr(synthetic, "_write_task", fail)
    expected = KeyboardInterrupt if error is KeyboardInterrupt else DataError
    with pytest.raises(expected) as caught:
        make_large_classification(**SMALL)
    if expected is DataError:
        assert "No space left on device" in str(caught.value)
        assert str(cache) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not list(cache.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_below_a_block(cache, monkeypatch):
    """The real error of the operating system, in the middle of the threads' writing."""
    fallible = open

    def redirect(path, mode="r", *rest, **options):
        if mode == "r+b":
            return fallible("/dev/full", "wb")
        return fallible(path, mode, *rest, **options)

    monkeypatch.setattr(synthetic, "open", redirect, raising=False)
    with pytest.raises(DataError, match="No space left on device"):
        make_large_classification(**SMALL)
    assert not list(cache.iterdir())


def test_the_loser_of_a_race_takes_the_winners_data(cache, monkeypatch):
    write = synthetic._write_task
    winners = []

    def lose(folder, *rest):
        monkeypatch.setattr(synthetic, "_write_task", write)
        winners.append(make_large_classification(**SMALL))
        write(folder, *rest)

    monkeypatch.setattr(synthetic, "_write_task", lose)
    data = make_large_classification(**SMALL)
    assert same(data, winners[0])
    assert os.path.samestat(*(os.stat(d.X_train.filename) for d in (data, winners[0])))
    generated_folder(cache)


def test_processes_that_generate_the_same_thing(cache):
    code = (
        "from largesparse.data.synthetic import make_large_classification as make\n"
        "data = make(1000, 1000)\n"
        "assert data.X_train.shape == (700, 1000)\n"
        "import hashlib; print(hashlib.sha256(data.X_train).hexdigest())\n"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(set(printed)) == 1
    generated_folder(cache)


def test_a_map_survives_the_removal_of_its_folder(cache):
    data = make_large_classification(**SMALL)
    before = np.array(data.X_train)
    truncate(generated_folder(cache) / "X_test.npy")
    make_large_classification(**SMALL)
    np.testing.assert_array_equal(data.X_train, before)


def test_a_file_of_the_user_in_damaged_data_is_not_removed(cache):
    make_large_classification(**SMALL)
    folder = generated_folder(cache)
    truncate(folder / "X_test.npy")
    (folder / "notes.txt").write_text("precious")
    with pytest.raises(DataError, match=r"it has notes\.txt"):
        make_large_classification(**SMALL)
    assert (folder / "notes.txt").read_text() == "precious"


def test_unfinished_folders_of_killed_runs_are_removed_in_time(cache):
    make_large_classification(**SMALL)
    name = generated_folder(cache).name
    old, new = cache / f"{name}.tmp-1", cache / f"{name}.tmp-2"
    for folder in (old, new):
        folder.mkdir()
        (folder / "X_train.npy").write_text("")
    two_days_ago = time.time() - 2 * 86400
    os.utime(old, (two_days_ago, two_days_ago))
    make_large_classification(**SMALL, random_state=1)
    assert not old.exists()
    assert new.exists()


@pytest.mark.parametrize(
    ("progress", "terminal", "shown"),
    [
        (True, False, True),
        (False, True, False),
        (None, False, False),
        (None, True, True),
    ],
)
def test_progress_goes_to_standard_error(capsys, monkeypatch, progress, terminal, shown):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    make_large_classification(**SMALL, progress=progress)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("200/200" in err) == shown
