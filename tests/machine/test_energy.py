"""Energy from RAPL's counters, in a made-up folder of the kernel's."""

from __future__ import annotations

import time

import pytest

from largesparse.machine.energy import EnergyMeter, find_counters

LARGEST = 1_000_000_000


@pytest.fixture
def zones(tmp_path):
    """Write zones of two processors; return a function that sets a counter."""

    def put(zone, microjoules):
        path = tmp_path / zone / "energy_uj"
        beside = path.with_suffix(".new")  # as the kernel's, never read half written
        beside.write_text(f"{microjoules}\n")
        beside.replace(path)

    names = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "dram",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",  # the same processor, by another way
        "intel-rapl": None,  # the folder of the driver
    }
    for zone, name in names.items():
        (tmp_path / zone).mkdir()
        if name is not None:
            (tmp_path / zone / "name").write_text(f"{name}\n")
            (tmp_path / zone / "max_energy_range_uj").write_text(f"{LARGEST}\n")
            put(zone, 0)
    return put


def test_every_watt_counts_once(tmp_path, zones):
    found = [counter.path.parent.name for counter in find_counters(tmp_path)]
    assert found == ["intel-rapl:0", "intel-rapl:0:1", "intel-rapl:1"]


def test_the_energy_of_a_block(tmp_path, zones):
    zones("intel-rapl:0", 5_000_000)
    zones("intel-rapl:1", 1_000_000)
    with EnergyMeter(tmp_path) as meter:
        zones("intel-rapl:0", 7_500_000)
        zones("intel-rapl:0:0", 90_000_000)  # within the package already
        zones("intel-rapl:0:1", 250_000)
        zones("intel-rapl:1", 1_000_000)
    assert meter.joules == pytest.approx(2.75)


def test_a_counter_that_wraps_around(tmp_path, zones):
    zones("intel-rapl:0", LARGEST - 2_000_000)
    with EnergyMeter(tmp_path) as meter:
        zones("intel-rapl:0", 3_000_000)
        meter.update()
        zones("intel-rapl:0", 4_000_000)
    assert meter.joules == pytest.approx(6.0)


def test_a_thread_looks_in_between(tmp_path, zones):
    with EnergyMeter(tmp_path, seconds=0.005) as meter:
        zones("intel-rapl:0", LARGEST - 1)
        end = time.monotonic() + 10
        while meter.joules < 999 and time.monotonic() < end:
            time.sleep(0.005)
        zones("intel-rapl:0", 1_000_000)  # round again: 1001 J in all
    assert meter.joules == pytest.approx(1001.0)


def test_without_counters_nothing_is_known(tmp_path):
    with EnergyMeter(tmp_path / "absent") as meter:
        meter.update()
    assert meter.joules is None


@pytest.mark.parametrize("while_running", [False, True])
def test_a_counter_that_cannot_be_read(tmp_path, zones, while_running):
    # As for a user who may not: root may read whatever its mode is.
    path = tmp_path / "intel-rapl:1" / "energy_uj"
    if not while_running:
        path.unlink()
    with EnergyMeter(tmp_path) as meter:
        if while_running:
            path.unlink()
    assert meter.joules is None
