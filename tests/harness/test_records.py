"""Run records: fields, appending, damaged files, reading back, memory figures."""

import json
import logging
import math
import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from largesparse.errors import DataError, LargeSparseError, ParameterError
from largesparse.harness import records
from largesparse.machine import usage

# DESIGN, section 6: the order is part of the interface.
FIELDS = """
    schema kind command timestamp commit versions cpu algorithm neurons layers epsilon parameters
    connections ranks threads backend recipe batch_size micro_batch keep_every train_samples
    test_samples seed init_s epoch_s inference_s evolution_s loss accuracy planned_bytes
    peak_rss_bytes node_pss_bytes phase_one_epochs idle_s staleness bytes_moved cpu_s coverage
    active_neurons activation_dtype dataset settings nnz train_s train_accuracy test_loss
    selected_accuracy gradient_flow pruned distributions energy_j features
    backend_reason explored groups split stages stage_bytes steps_s bubble
    least_bubble steps_bytes noise curve curve_s curve_rows learning_rate optimizer growth
""".split()  # noqa: SIM905 (one line a field is harder to compare)

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def read_json(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_record_has_the_fields_of_the_interface_in_order(tmp_path):
    path = tmp_path / "runs.jsonl"
    records.append_record(path, records.new_record("test"))
    (row,) = read_json(path)
    assert list(row) == FIELDS
    assert row["schema"] == 7
    assert row["kind"] == "test"


def test_a_new_record_knows_its_run(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tool.py", "--out", "a file"])
    record = records.new_record("test", neurons=20000)
    assert record.command == "tool.py --out 'a file'"
    assert record.timestamp.endswith("+00:00")
    assert record.versions["numpy"] == np.__version__
    assert record.neurons == 20000
    assert record.accuracy is None


def test_a_given_field_has_precedence():
    assert records.new_record("test", commit="abc").commit == "abc"


def test_an_unknown_field_is_refused():
    with pytest.raises(ParameterError, match="no field 'nuerons'"):
        records.new_record("test", nuerons=1)


def test_numpy_values_and_what_json_has_no_word_for(tmp_path):
    path = tmp_path / "runs.jsonl"
    record = records.new_record(
        "test",
        neurons=np.int64(3),
        init_s=np.float32(0.5),
        loss=[math.nan, math.inf, 0.25],
        accuracy=np.array([0.5, np.nan]),
        command="caf\udce9",  # an undecodable byte of a command line
    )
    records.append_record(path, record)
    (row,) = read_json(path)
    assert row["neurons"] == 3
    assert row["init_s"] == 0.5
    assert row["loss"] == [None, None, 0.25]
    assert row["accuracy"] == [0.5, None]
    assert row["command"] == "caf\udce9"


def test_a_record_follows_a_line_that_a_crash_cut_off(tmp_path, caplog):
    path = tmp_path / "runs.jsonl"
    path.write_text('{"schema": 1, "ki')
    records.append_record(path, records.new_record("whole"))
    with caplog.at_level(logging.WARNING):
        table = records.read_records(path)
    assert table["kind"].tolist() == ["whole"]
    assert "line 1" in caplog.text


def append_some(path, kind):
    for _ in range(20):
        records.append_record(path, records.RunRecord(kind=kind, loss=[0.5] * 5000))


def test_processes_append_without_mixing_lines(tmp_path, caplog):
    path = tmp_path / "runs.jsonl"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=append_some, args=(path, kind)) for kind in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted(records.read_records(path)["kind"]) == sorted("abc" * 20)
    assert not caplog.records


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_told_and_the_record_logged(caplog):
    with pytest.raises(LargeSparseError, match="No space left"):
        records.append_record("/dev/full", records.new_record("precious"))
    assert "precious" in caplog.text


def test_reading_joins_files_and_skips_damaged_lines(tmp_path, caplog):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    records.append_record(first, records.new_record("a", neurons=10, epoch_s=[1.0, 2.0]))
    first.write_bytes(
        first.read_bytes() + b'not json\n[1]\n\xff\xfe\n\n{"schema": 1, "kind": "b"}\n'
    )
    second.write_text('{"schema": 3, "kind": "c", "watts": 65}\n')
    with caplog.at_level(logging.WARNING):
        table = records.read_records(first, second)
    assert table["kind"].tolist() == ["a", "b", "c"]
    assert list(table.columns) == [*FIELDS, "watts"]
    assert table["epoch_s"][0] == [1.0, 2.0]
    assert table["watts"].tolist()[2] == 65
    assert [record.args[1] for record in caplog.records] == [2, 3, 4]


def test_records_of_an_older_schema_lack_what_came_later(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text('{"schema": 1, "kind": "old", "neurons": 5}\n')
    records.append_record(path, records.new_record("new", active_neurons=[4, None, 3]))
    table = records.read_records(path)
    assert table["schema"].tolist() == [1, records.SCHEMA]
    assert table["neurons"].tolist()[0] == 5
    assert table["active_neurons"].isna()[0]
    assert table["active_neurons"][1] == [4, None, 3]


DAMAGED = ['"ranks": "three"', '"epoch_s": 5.0', '"epoch_s": ["a"]', '"neurons": 1.5', '"cpu": 7']
DAMAGED += ['"neurons": true', f'"connections": {10**30}', '"loss": ' + 100_000 * "["]


@pytest.mark.parametrize("damaged", DAMAGED, ids=lambda text: text[:15])
def test_a_line_with_a_value_of_another_type_is_skipped(tmp_path, caplog, damaged):
    path = tmp_path / "runs.jsonl"
    path.write_text(f'{{"kind": "a", {damaged}}}\n{{"kind": "b", "init_s": 1e400}}\n')
    with caplog.at_level(logging.WARNING):
        (row,) = records.record_rows(records.read_records(path))
    assert row["kind"] == "b" and row["init_s"] is None
    assert "line 1" in caplog.text


def test_what_a_record_lacks_is_none_in_its_row(tmp_path):
    path = tmp_path / "runs.jsonl"
    records.append_record(path, records.new_record("a", ranks=3))
    path.write_text(path.read_text() + '{"kind": "b"}\n')
    whole, part = records.record_rows(records.read_records(path))
    assert (whole["ranks"], part["ranks"]) == (3, None)
    assert set(part) == set(FIELDS) and set(part.values()) == {"b", None}


def test_an_empty_file_gives_a_table_without_rows(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.touch()
    table = records.read_records(path)
    assert len(table) == 0
    assert list(table.columns) == FIELDS


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        records.read_records(tmp_path / "none.jsonl")


def test_an_output_that_can_be_written_leaves_nothing_behind(tmp_path):
    path = tmp_path / "runs.jsonl"
    assert records.check_output(path) == path
    assert not path.exists()


def test_a_record_another_process_appends_meanwhile_is_kept(tmp_path, monkeypatch):
    """Neither is the output made and removed, nor one that is there."""
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: pytest.fail("removed"))
    records.check_output(tmp_path / "runs.jsonl")


def test_an_output_may_be_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    records.check_output("~/runs.jsonl")
    records.append_record("~/runs.jsonl", records.RunRecord(kind="test"))
    assert list(records.read_records("~/runs.jsonl")["kind"]) == ["test"]
    assert (tmp_path / "runs.jsonl").exists()


def test_an_existing_output_is_left_as_it_is(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text("{}\n")
    records.check_output(path)
    assert path.read_text() == "{}\n"


def test_an_output_without_a_folder_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="mkdir -p"):
        records.check_output(tmp_path / "no" / "runs.jsonl")


def test_a_folder_as_output_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="is a folder"):
        records.check_output(tmp_path)


@linux_only
def test_an_output_where_nothing_can_be_created_is_refused():
    with pytest.raises(ParameterError, match="cannot be written"):
        records.check_output("/proc/runs.jsonl")


def test_peak_memory_covers_what_was_touched():
    before = usage.peak_rss_bytes()
    size = 64 * 2**20
    block = np.ones(size, dtype=np.uint8)
    peak = usage.peak_rss_bytes()
    assert peak >= block.nbytes
    assert before <= peak < 2**40


@linux_only
def test_the_peak_can_begin_anew():
    size = 64 * 2**20
    block = np.ones(size, dtype=np.uint8)
    highest = usage.peak_rss_bytes()
    del block
    usage.start_peak_rss()
    assert usage.peak_rss_bytes() < highest - size // 2


@linux_only
def test_the_peaks_of_the_two_sources_agree():
    import resource

    other = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # ru_maxrss may hold the parent's size at the fork, so it can only be larger.
    assert usage.peak_rss_bytes() <= other * 1.05


@linux_only
def test_pss_of_this_process_is_below_its_peak():
    assert 0 < usage.node_pss_bytes([os.getpid()]) <= usage.peak_rss_bytes()


@linux_only
def test_pss_of_a_process_that_is_not_there_is_unknown():
    assert usage.node_pss_bytes([os.getpid(), 2**22 + 1]) is None
