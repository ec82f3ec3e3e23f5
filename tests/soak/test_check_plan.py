"""soak/check_plan.py: what it reads from bigmodel's output and from /proc."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from largesparse import NetworkConfig
from largesparse.harness.comparison import describe_plan
from largesparse.training.memory import GIB, plan_training

MAPS = """\
55d0-55d4 r-xp 00000000 fe:00 123   /usr/lib/libbig.so
Rss:                 100 kB
Pss:                  50 kB
7f00-7f04 rw-p 00000000 00:00 0
Rss:                  40 kB
Pss:                  30 kB
7f04-7f08 rw-s 00000000 00:01 77    /memfd:largesparse (deleted)
Rss:                 200 kB
Pss:                  60 kB
7f08-7f0c r--s 00000000 fe:00 9     /cache/classification-9x9-ab/X_train.npy
Rss:                  70 kB
Pss:                  35 kB
7f0c-7f10 rw-p 00000000 00:00 0     [heap]
Rss:                   8 kB
Pss:                   8 kB
"""


@pytest.fixture(scope="module")
def check_plan():
    return importlib.import_module("soak.check_plan")


def test_files_count_once_and_data_apart(check_plan):
    kib = 1024
    one = check_plan.add_up([MAPS])
    assert one == ((100 + 30 + 60 + 8) * kib, 70 * kib, 183 * kib)
    two = check_plan.add_up([MAPS, MAPS.replace("100 kB", "120 kB")])
    assert two == ((120 + 2 * 98) * kib, 70 * kib, 366 * kib)
    assert check_plan.add_up([]) == (0, 0, 0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_what_a_process_takes_is_seen(check_plan):
    def own():
        return check_plan.add_up([Path(f"/proc/{os.getpid()}/smaps").read_text()]).own

    before = own()
    array = np.ones(2**26, np.uint8)
    assert own() - before == pytest.approx(array.nbytes, rel=0.1)


def test_a_printed_plan_is_read_back(check_plan):
    config = NetworkConfig((500, 200_000, 200_000, 2), epsilon=5)
    plan = plan_training(config, 32, mapped=GIB)
    found = check_plan.read_plan(describe_plan(config, plan).splitlines())
    watched = check_plan.Watched(planned=found)
    assert watched.required == pytest.approx(plan.required, rel=1e-3)
    assert found["model (weights, velocities, both orders)"] == pytest.approx(plan.model, rel=0.01)


def test_the_output_tells_the_phases(check_plan):
    phase = "initialisation"
    lines = {
        "memory plan": "initialisation",
        "initialised in 3.0 s: 9 connections": "before training, epoch 1",
        "epoch 1/2: loss 0.6": "epoch 2",
        "epoch 2/2: loss 0.5": "after training",
        "record appended": "after training",
    }
    for line, expected in lines.items():
        phase = check_plan.phase_after(line, phase)
        assert phase == expected


def test_one_process_counts_by_its_high_water(check_plan):
    peaks = {"epoch 1": check_plan.Memory(70, 30, 100), "epoch 2": check_plan.Memory(60, 30, 90)}
    watched = check_plan.Watched({"required": 100}, peaks, high_water=125)
    assert watched.measured(1) == 95
    assert watched.measured(3) == 70
    case = check_plan.CASES[0]
    assert "OUTSIDE" not in check_plan.describe(case, "1k", watched, 0.1)[0]
    assert "OUTSIDE" in check_plan.describe(case, "1k", watched, 0.04)[0]


def test_configurations_are_listed(check_plan, capsys):
    assert check_plan.main(["--list", "--only", "mkl"]) == 0
    assert all(line.startswith("mkl") for line in capsys.readouterr().out.splitlines())
