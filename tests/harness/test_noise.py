"""What the machine did during a run: steal, load, the reference kernel, and what is said of it."""

from __future__ import annotations

import os
import threading
import time
import zlib
from collections import namedtuple

import pytest

from largesparse.harness import noise, records
from largesparse.harness.noise import NoiseMeter, busy_and_stolen, describe_noise, is_heavy

Times = namedtuple("Times", "user nice system idle iowait steal guest")


def test_steal_is_a_share_of_the_time_that_was_asked_for():
    before = Times(10, 0, 5, 100, 1, 2, 3)
    after = Times(16, 1, 6, 150, 9, 4, 9)  # 8 s busy, 2 s stolen; guests are in `user`
    assert busy_and_stolen(before, after) == {"busy": 8, "steal": 0.2}
    assert busy_and_stolen(before, before) == {"busy": 0, "steal": 0}
    Mac = namedtuple("Mac", "user nice system idle")
    assert busy_and_stolen(Mac(1, 0, 1, 5), Mac(2, 0, 2, 9)) == {"busy": 2}


def test_a_record_has_the_noise_of_its_run(tmp_path, monkeypatch):
    times = iter([2e-3, 2e-3, 3e-3, 2e-3, 7e-3])
    monkeypatch.setattr(noise, "reference_seconds", lambda: next(times))
    monkeypatch.setattr(noise.psutil, "cpu_times", lambda: Times(1, 0, 0, 5, 0, 0, 0))
    monkeypatch.setattr(noise, "core_seconds", lambda _: None)
    noise.tick()  # nobody measures
    assert noise.noise_so_far() is None and records.new_record("test").noise is None
    with NoiseMeter() as meter:
        noise.tick()
        noise.tick()
        record = records.new_record("test")
        assert record.noise["reference_s"] == [2e-3, 2e-3, 3e-3, 2e-3]
        assert record.noise["spread"] == record.noise["score"] == pytest.approx(0.35)
    assert meter.result()["reference_s"][-1] == 7e-3  # and does not measure once more
    records.append_record(tmp_path / "runs.jsonl", record)
    (row,) = records.record_rows(records.read_records(tmp_path / "runs.jsonl"))
    assert row["noise"] == record.noise and row["schema"] == 7


def test_a_decorated_function_is_measured_at_every_call(monkeypatch):
    monkeypatch.setattr(noise, "reference_seconds", lambda: 1e-3)
    lengths = NoiseMeter()(lambda: len(noise.noise_so_far()["reference_s"]))
    assert [lengths(), lengths()] == [2, 2]


def test_waiting_for_a_core_that_others_have_is_noise(monkeypatch):
    monkeypatch.setattr(noise, "reference_seconds", lambda: 1e-3)
    answers = iter([(1.0, 2.0), (4.0, 8.0), (1.0, 1.0), (1.0, 1.0)])
    monkeypatch.setattr(noise, "core_seconds", lambda _: next(answers))
    with NoiseMeter() as meter:
        pass
    found = meter.result()
    assert found["waited"] == pytest.approx(2 / 3) and found["score"] >= found["waited"]
    with NoiseMeter() as meter:
        pass
    assert meter.result()["waited"] == 0


def test_two_threads_on_a_core_wait_for_each_other():
    if not any(noise.core_seconds(threading.get_native_id()) or ()):
        pytest.skip("the system does not tell how long threads wait")

    def spin():
        end = time.monotonic() + 0.4
        while time.monotonic() < end:
            zlib.crc32(block)  # which lets other threads run

    block, cores = bytes(10**6), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        other = threading.Thread(target=spin)
        other.start()
        with NoiseMeter() as meter:
            spin()
        other.join()
    finally:
        os.sched_setaffinity(0, cores)
    assert meter.result()["score"] >= meter.result()["waited"] > 0.2


def test_the_reference_kernel_is_measured():
    with NoiseMeter() as meter:
        pass
    found = meter.result()
    assert 0 <= found["score"] < float("inf") and found["load"] >= 0 and found["cores"] >= 1
    assert len(found["reference_s"]) == 2 and min(found["reference_s"]) > 0


def test_words():
    quiet = {"steal": None, "spread": 0.04, "score": 0.04}
    assert describe_noise(quiet) == "quiet 0.04" and not is_heavy(quiet)
    stolen = {"steal": 0.21, "spread": 0.1, "score": 0.21}
    assert describe_noise(stolen) == "HEAVY STEAL 21 %, noisy 0.21" and is_heavy(stolen)
    assert describe_noise({"score": 0.4, "steal": 0.0}) == "very noisy 0.40"
    for nothing in (None, float("nan"), {}, "much", {"score": "x", "steal": [1]}):
        assert describe_noise(nothing) == "" and not is_heavy(nothing)


def test_heavy_steal_is_told_wherever_a_run_is_shown(tmp_path):
    pytest.importorskip("matplotlib")
    from largesparse.harness.measurements import read_measurements
    from largesparse.harness.plots import scaling_figures, scaling_table
    from largesparse.harness.report import runs_section
    from largesparse.harness.scaling import shown_table

    path = tmp_path / "runs.jsonl"
    values = {"neurons": 1000, "connections": 9, "train_samples": 7, "epoch_s": [1.0]}
    stolen = {"steal": 0.21, "spread": 0.1, "score": 0.21}
    records.append_record(path, records.new_record("bigmodel", **values, noise=stolen))
    table = scaling_table(records.read_records(path))
    assert "HEAVY STEAL 21 %" in shown_table(table).to_string()
    assert "HEAVY STEAL 21 %" in runs_section(read_measurements(path))
    for figure in scaling_figures(table).values():
        assert "heavy steal, up to 21%" in [text.get_text() for text in figure.texts]
