"""Counters of the processor, by an event that every Linux has: the nanoseconds of a thread."""

from __future__ import annotations

import time

import pytest

from largesparse.machine import counters
from largesparse.machine.counters import Counters, Event

SOFTWARE = {"task clock": Event(1, 1)}  # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_TASK_CLOCK


def test_work_is_counted_and_sleep_is_not():
    with Counters(SOFTWARE) as found:
        if found.why:
            pytest.skip(found.why)
        before, cpu = found.read(), time.thread_time_ns()
        while time.thread_time_ns() - cpu < 20_000_000:
            pass
        used = time.thread_time_ns() - cpu
        time.sleep(0.05)
        assert 0.5 * used < found.since(before)["task clock"] < 1.5 * used + 20_000_000
    assert found.read() == {}


def test_what_is_not_there_is_told(monkeypatch):
    with Counters({"none": Event(99, 0)}) as found:
        assert found.why and found.names == [] and found.since(found.read()) == {}
    monkeypatch.setattr(counters.sys, "platform", "win32")
    assert "only Linux" in Counters().why


def test_misses_are_bytes(monkeypatch):
    with Counters({}) as found:
        counts = iter([{"LLC misses": 2}, {"LLC misses": 5}])
        monkeypatch.setattr(found, "read", lambda: next(counts))
        assert found.since(found.read()) == {"LLC misses": 3, "bytes from memory": 192}
